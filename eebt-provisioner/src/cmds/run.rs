//! `eebt run`

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::Scope;
use std::time::{Duration, Instant, SystemTime};

use eebt_provisioner::block_list::{ListError, Source};
use eebt_provisioner::check::Checker;
use eebt_provisioner::cloud::BuyError;
use eebt_provisioner::cloud::cost::SPENDING_TIME;
use eebt_provisioner::fleet::{FleetError, News};
use eebt_provisioner::folder::StateDir;
use eebt_provisioner::instance::{Instance, Provider, State};
use eebt_provisioner::keep::{Keep, MEASURED, Measured, Pauses, Plan, Quiet, Rotation, Why};
use eebt_provisioner::locks::{self, LockError};
use eebt_provisioner::lower::LowerError;
use eebt_provisioner::report::{PlaceReport, Report};
use eebt_provisioner::watch::{BlockLists, Seen, Watch};
use eebt_provisioner::{Fleet, causes};

use super::make::{self, How, Made, Patience, between, make};
use super::up::{on_signals, place};
use crate::print::{Hinted, Printer, Usage};

/// How often what has happened is looked at.
const TICK: Duration = Duration::from_millis(500);
/// How often all regions of a cloud are looked through, also those where nothing should be.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    make: make::Args,
    /// How many more are kept in each region, against losses [default: by what was measured of starts and losses]
    #[arg(long, value_name = "N")]
    spares: Option<usize>,
    /// Lifetimes are so much longer or shorter, by chance
    #[arg(long, default_value = "30m", value_name = "TIME", value_parser = jitter)]
    jitter: Duration,
    /// Replace all that are older, by a cron expression in UTC: "0 4 * * *" is each day at 4
    #[arg(long, value_name = "CRON")]
    rotate: Option<Rotation>,
    /// When nothing is ended or replaced by plan, in UTC, such as 22:00-06:00 (may be repeated)
    #[arg(long, value_name = "HH:MM-HH:MM")]
    quiet_hours: Vec<Quiet>,
    /// Look at each exit bridge so often, through Tor
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = check_every)]
    check_every: Duration,
    /// First page of a site that lets exit bridges in until it knows them: those that it turns away are replaced (may
    /// be repeated)
    #[arg(long = "canary", value_name = "URL")]
    canaries: Vec<String>,
    /// Replace exit bridges whose address is on this list (may be repeated)
    #[arg(long = "block-list", value_name = "FILE|URL")]
    block_lists: Vec<Source>,
    /// Keep the bridge lines of all that serve in this file
    #[arg(long, value_name = "FILE")]
    lines_file: Option<PathBuf>,
    /// Look at processes and clouds so often
    #[arg(long, default_value = "15s", value_name = "TIME", value_parser = interval)]
    interval: Duration,
    /// Print what would be done now, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Buy without asking; a cloud needs it, for nobody is there to be asked
    #[arg(long, short)]
    yes: bool,
}

fn jitter(text: &str) -> Result<Duration, String> {
    between(text, Duration::ZERO, Duration::from_secs(24 * 3600))
}

fn check_every(text: &str) -> Result<Duration, String> {
    between(text, Duration::from_secs(1), Duration::from_secs(24 * 3600))
}

fn interval(text: &str) -> Result<Duration, String> {
    between(text, Duration::from_secs(1), Duration::from_secs(600))
}

impl Args {
    /// Finds the mistakes that need no fleet to be seen.
    pub fn check(&self) -> anyhow::Result<()> {
        self.make.check()?;
        self.make.client()?;
        let is_cloud = self.make.provider != Provider::Local;
        if is_cloud && !(self.yes || self.dry_run) {
            let what = "--yes: not given, and `eebt run` buys while nobody is there to be asked";
            return Err(Usage::new(what, "--dry-run shows what it would buy; --max-spend limits it").into());
        }
        if is_cloud {
            let (kept, most) =
                (usize::from(self.make.count) * self.keep()?.places.len(), self.make.max_count());
            if most <= kept {
                let what =
                    format!("--max-count: {most} leaves no room to replace one of the {kept} that are kept");
                return Err(Usage::new(what, format!("allow {} at least", kept + kept.div_ceil(4))).into());
            }
        }
        Ok(())
    }

    fn keep(&self) -> anyhow::Result<Keep> {
        let places = match self.make.provider {
            Provider::Local => vec![String::new()],
            _ => self.make.wanted()?.regions,
        };
        Ok(Keep {
            places,
            count: self.make.count.into(),
            spares: self.spares,
            lifetime: self.make.lifetime,
            jitter: self.jitter,
            rotate: self.rotate.clone(),
            quiet: self.quiet_hours.clone(),
        })
    }

    pub fn run(self, fleet: &Fleet, printer: &Printer) -> anyhow::Result<()> {
        let keep = self.keep()?;
        if self.dry_run {
            return self.say_plan(fleet, printer, &keep);
        }
        let _lock = locks::lock(&fleet.dir().run_lock(), Duration::ZERO).map_err(|error| match error {
            LockError::Held { .. } => anyhow::Error::from(Hinted {
                message: "another `eebt run` keeps this fleet".into(),
                hint: Some("`eebt status` shows it; a second fleet needs a --state-dir of its own".into()),
            }),
            error => error.into(),
        })?;
        let interrupted = on_signals()?;
        let where_to = if keep.places.len() > 1 { "in each of its regions" } else { "at work" };
        printer.say(format_args!(
            "keeping {} {where_to}, each for about {}; they go on when this program is stopped",
            keep.count,
            humantime::format_duration(keep.lifetime)
        ));
        let client = self.make.client()?;
        let network = self.make.network.as_deref();
        let checker = || Checker::start(&client, fleet.dir(), network, &self.canaries);
        let lists = BlockLists::default();
        std::thread::scope(|scope| {
            if !self.block_lists.is_empty() {
                let say = |error: &ListError| printer.failed(causes(error));
                let (lists, sources, interrupted) = (&lists, &self.block_lists, &interrupted);
                scope.spawn(move || lists.keep_fresh(sources, interrupted, say));
            }
            let (sender, events) = mpsc::channel();
            let places: Vec<_> =
                keep.places.iter().map(|place| (self.make.provider, place.clone())).collect();
            let is_cloud = self.make.provider != Provider::Local;
            let look =
                Look { fleet, places: if is_cloud { places } else { Vec::new() }, every: self.interval };
            let (looked, stop) = (sender.clone(), &interrupted);
            scope.spawn(move || look.again_and_again(stop, &looked));
            let keeper = Keeper {
                args: &self,
                fleet,
                printer,
                keep: &keep,
                lists: &lists,
                interrupted: &interrupted,
                sender,
                watch: Watch::new(&checker, self.check_every),
                pauses: Pauses::default(),
                reserving: BTreeSet::new(),
                ending: BTreeSet::new(),
                trouble: BTreeMap::new(),
                blind: None,
                lines: None,
                said: BTreeMap::new(),
                burns: Pauses::default(),
                since: SystemTime::now(),
            };
            let result = keeper.go(scope, &events);
            // Also after a failure: what is being made is taken back.
            interrupted.store(true, Ordering::Relaxed);
            result
        })
    }

    fn say_plan(&self, fleet: &Fleet, printer: &Printer, keep: &Keep) -> anyhow::Result<()> {
        let now = SystemTime::now();
        let measured = Measured::new(&fleet.ledger().since(now - MEASURED)?, now);
        let plan = keep.plan(&fleet.ledger().live()?, &BTreeSet::new(), &measured, now);
        for (place, count) in &plan.start {
            printer.say(format_args!("would start {count} {}", named(place)));
        }
        for (id, why) in &plan.end {
            printer.say(format_args!("would end {id}: {}", reason(*why)));
        }
        if plan == Plan::default() {
            printer.say("would do nothing now");
        }
        if self.make.provider == Provider::Local {
            return Ok(());
        }
        let wanted = self.make.wanted()?;
        let kept = u64::try_from(keep.kept(&measured)).unwrap_or(u64::MAX);
        for (region, offers) in &fleet.offers(&wanted)? {
            let Some(best) = offers.first() else { continue };
            let month = best.per_hour().for_seconds(SPENDING_TIME.as_secs().saturating_mul(kept));
            printer.say(format_args!(
                "{region}: {kept} of {} at {} an hour each, {month} in 30 days",
                best.kind,
                best.per_hour()
            ));
        }
        printer.say(format_args!(
            "limited to {} in 30 days by --max-spend; traffic comes on top",
            wanted.max_spend
        ));
        Ok(())
    }
}

fn named(place: &str) -> String {
    if place.is_empty() { "on this machine".into() } else { format!("in {place}") }
}

fn reason(why: Why) -> &'static str {
    match why {
        Why::Burned => "it is known for what it is",
        Why::Rotated => "its time has come by the schedule",
        Why::Silent => "it does not serve",
    }
}

/// Looks at processes and clouds, which may take their time.
struct Look<'a> {
    fleet: &'a Fleet,
    places: Vec<(Provider, String)>,
    every: Duration,
}

impl Look<'_> {
    fn again_and_again(&self, interrupted: &AtomicBool, sender: &Sender<Event>) {
        let mut sweep_at = Instant::now() + SWEEP_EVERY;
        while !interrupted.load(Ordering::Relaxed) {
            let (start, now) = (Instant::now(), SystemTime::now());
            let mut news = self.fleet.look(now, &self.places);
            if let (Some((provider, _)), true) = (self.places.first(), start >= sweep_at) {
                sweep_at = start + SWEEP_EVERY;
                news = news.and_then(|mut news| {
                    news.extend(self.fleet.sweep(*provider, now)?);
                    Ok(news)
                });
            }
            if sender.send(Event::Looked(news)).is_err() {
                return;
            }
            while start.elapsed() < self.every && !interrupted.load(Ordering::Relaxed) {
                std::thread::sleep(TICK.min(self.every));
            }
        }
    }
}

/// What threads tell the one that decides.
enum Event {
    /// What processes and clouds have done.
    Looked(Result<Vec<News>, FleetError>),
    /// What was planned for a place is in the ledger, or can't be had.
    Reserved(String, Result<usize, String>),
    /// One has come up, or has not.
    Made(Box<Made>),
    /// One was ended.
    Ended(String, Result<(), LowerError>),
}

/// The one that decides. Threads of its scope do what takes time.
struct Keeper<'a> {
    args: &'a Args,
    fleet: &'a Fleet,
    printer: &'a Printer,
    keep: &'a Keep,
    lists: &'a BlockLists,
    interrupted: &'a AtomicBool,
    sender: Sender<Event>,
    watch: Watch<'a>,
    pauses: Pauses,
    /// Places where a purchase is being prepared.
    reserving: BTreeSet<String>,
    /// Exit bridges that are being ended.
    ending: BTreeSet<String>,
    /// Why the last one could not be had, by place.
    trouble: BTreeMap<String, String>,
    /// Why it is not seen whether they serve.
    blind: Option<String>,
    /// The bridge lines that were written last.
    lines: Option<String>,
    /// What was said of each exit bridge last, so that it is not said again at each look.
    said: BTreeMap<String, News>,
    /// Where new ones are known from the start: buying more of them helps nobody.
    burns: Pauses,
    since: SystemTime,
}

impl<'a> Keeper<'a> {
    fn go<'scope>(mut self, scope: &'scope Scope<'scope, '_>, events: &Receiver<Event>) -> anyhow::Result<()>
    where
        'a: 'scope,
    {
        // Nothing is decided before the first look.
        let mut rows = Vec::new();
        while !self.interrupted.load(Ordering::Relaxed) {
            let mut is_new = match events.recv_timeout(TICK) {
                Ok(event) => {
                    self.take(event);
                    true
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => false,
            };
            is_new |= events.try_iter().map(|event| self.take(event)).count() > 0;
            let now = SystemTime::now();
            is_new |= self.watch(&rows, now)?;
            if is_new {
                rows = self.fleet.ledger().live()?;
                self.act(scope, &rows, now)?;
            }
        }
        self.printer.say("stopping; what is being made is taken back, what serves goes on");
        Ok(())
    }

    /// Takes in what is seen of exit bridges from outside. Returns whether there was anything.
    fn watch(&mut self, rows: &[Instance], now: SystemTime) -> anyhow::Result<bool> {
        let mut seen = self.watch.look(rows, now);
        seen.extend(self.lists.find(rows));
        let is_new = !seen.is_empty();
        for seen in seen {
            match seen {
                Seen::Serves(id) => {
                    self.blind = None;
                    let Some(row) = rows.iter().find(|row| row.id == id) else { continue };
                    if self.fleet.note_serving(row, now)? {
                        self.printer.say(format_args!("{} is ready", place(row)));
                    }
                    if row.burned.is_none() && !self.is_young(row, now) {
                        self.burns.worked(row.region().unwrap_or_default());
                    }
                }
                Seen::Burned(id, by) => {
                    let Some(row) = rows.iter().find(|row| row.id == id) else { continue };
                    if self.fleet.ledger().burn(&id, &by, now)? {
                        self.printer.say(format_args!("{} is known to {by}", place(row)));
                        if self.is_young(row, now) {
                            self.burns.failed(row.region().unwrap_or_default(), now);
                        }
                    }
                }
                Seen::Blind(why) if self.blind.as_ref() != Some(&why) => {
                    self.printer.failed(format_args!("can't see whether they serve: {why}"));
                    self.blind = Some(why);
                }
                Seen::Blind(_) => {}
            }
        }
        Ok(is_new)
    }

    fn is_young(&self, row: &Instance, now: SystemTime) -> bool {
        now.duration_since(row.created).unwrap_or_default() < self.keep.lifetime / 4
    }

    /// Until when none is started there.
    fn paused(&self, place: &str, now: SystemTime) -> Option<SystemTime> {
        self.pauses.until(place, now).max(self.burns.until(place, now))
    }

    /// Holds what is against what should be.
    fn act<'scope>(
        &mut self,
        scope: &'scope Scope<'scope, '_>,
        rows: &[Instance],
        now: SystemTime,
    ) -> anyhow::Result<()>
    where
        'a: 'scope,
    {
        let ledger = self.fleet.ledger();
        let measured = Measured::new(&ledger.since(now - MEASURED)?, now);
        let plan = self.keep.plan(rows, &self.watch.silent(), &measured, now);
        self.report(rows, &plan, &measured, now);
        self.write_lines(rows);
        for (place, count) in plan.start {
            if self.paused(&place, now).is_none() && self.reserving.insert(place.clone()) {
                self.start(scope, place, count);
            }
        }
        for (id, why) in plan.end {
            if self.ending.insert(id.clone()) {
                self.printer.say(format_args!("ending {id}: {}", reason(why)));
                let (fleet, sender) = (self.fleet, self.sender.clone());
                scope.spawn(move || {
                    let result = fleet.lower(&id, false).map(|_| ());
                    sender.send(Event::Ended(id, result))
                });
            }
        }
        Ok(())
    }

    fn start<'scope>(&self, scope: &'scope Scope<'scope, '_>, place: String, count: usize)
    where
        'a: 'scope,
    {
        let (args, fleet, keep, interrupted) = (self.args, self.fleet, self.keep, self.interrupted);
        let (sender, checker) = (self.sender.clone(), self.watch.checker());
        scope.spawn(move || {
            let told = |result| drop(sender.send(Event::Reserved(place.clone(), result)));
            let patience = Patience { time: args.make.patience(), waits: true, checker: checker.as_deref() };
            let (made_sender, made) = mpsc::channel();
            let make = |rows: &[Instance], how: &How<'_>| {
                told(Ok(rows.len()));
                std::thread::scope(|scope| {
                    scope.spawn(|| make(fleet, rows, how, patience, interrupted, &made_sender));
                    // One for each row.
                    for made in made.iter().take(rows.len()) {
                        let _ = sender.send(Event::Made(Box::new(made)));
                    }
                });
            };
            if let Err(error) = args.prepare(fleet, keep, &place, count, make) {
                told(Err(format!("{error:#}")));
            }
        });
    }

    fn take(&mut self, event: Event) {
        let now = SystemTime::now();
        match event {
            Event::Looked(Ok(news)) => {
                for news in &news {
                    if self.said.insert(news.id.clone(), news.clone()).as_ref() != Some(news) {
                        self.printer.news(news);
                    }
                }
                self.said.retain(|id, _| news.iter().any(|news| news.id == *id));
            }
            // The next look may work: a full disk, a door that is held, a cloud that is down.
            Event::Looked(Err(error)) => self.printer.failed(causes(&error)),
            Event::Reserved(place, result) => {
                self.reserving.remove(&place);
                match result {
                    Ok(count) => self.printer.say(format_args!("starting {count} {}", named(&place))),
                    Err(error) => self.failed(place, error, now),
                }
            }
            Event::Made(made) => {
                let (row, result) = *made;
                let region = row.region().unwrap_or_default().to_owned();
                match result {
                    Ok(come) => {
                        self.pauses.worked(&region);
                        self.trouble.remove(&region);
                        let how = match come.serves {
                            Ok(()) => "is ready".to_owned(),
                            Err(why) => format!("is starting ({why})"),
                        };
                        self.printer.say(format_args!("{} {how}", place(&row)));
                    }
                    Err(_) if self.interrupted.load(Ordering::Relaxed) => {}
                    Err(failed) => {
                        self.failed(region, format!("{}: {}", row.id, causes(failed.error.as_ref())), now)
                    }
                }
            }
            Event::Ended(id, result) => {
                self.ending.remove(&id);
                match result {
                    Ok(()) => self.printer.say(format_args!("{id} is down")),
                    Err(error) => self.printer.failed(format_args!("{id} is not down: {}", causes(&error))),
                }
            }
        }
    }

    fn failed(&mut self, place: String, error: String, now: SystemTime) {
        self.pauses.failed(&place, now);
        if self.trouble.get(&place) != Some(&error) {
            self.printer.failed(format_args!("{}: {error}", named(&place)));
            self.trouble.insert(place, error);
        }
    }

    /// For `eebt status`. That it can't be written keeps nobody from work.
    fn report(&self, rows: &[Instance], plan: &Plan, measured: &Measured, now: SystemTime) {
        let place = |place: &String| {
            let here = || rows.iter().filter(|row| row.region().unwrap_or_default() == place);
            PlaceReport {
                place: place.clone(),
                kept: self.keep.kept(measured),
                serving: here().filter(|row| row.state == State::Running).count(),
                coming: here().filter(|row| row.state.is_creating() || row.state == State::Starting).count(),
                going: here().filter(|row| plan.end.iter().any(|(id, _)| *id == row.id)).count(),
                trouble: self.trouble.get(place).cloned(),
                paused_until: self.paused(place, now),
            }
        };
        let report = Report {
            pid: std::process::id(),
            since: self.since,
            at: now,
            start_up_seconds: measured.start_up.as_secs(),
            losses_per_hour: measured.losses,
            next_rotation: self.keep.rotate.as_ref().and_then(|rotation| rotation.next(now)),
            blind: self.blind.clone(),
            places: self.keep.places.iter().map(place).collect(),
        };
        let _ = report.write(self.fleet.dir());
    }

    fn write_lines(&mut self, rows: &[Instance]) {
        let Some(path) = &self.args.lines_file else { return };
        let serving = rows.iter().filter(|row| row.state == State::Running && row.burned.is_none());
        let lines: String =
            serving.filter_map(|row| row.line.as_deref()).map(|line| format!("{}\n", line.trim())).collect();
        if self.lines.as_ref() == Some(&lines) {
            return;
        }
        match StateDir::replace_private(Path::new(path), &lines) {
            Ok(()) => self.lines = Some(lines),
            Err(error) if self.lines.is_some() || self.blind.is_none() => {
                self.printer.failed(format_args!("--lines-file: {}", causes(&error)));
                // Said once; tried again when they change.
                self.lines = Some(lines);
            }
            Err(_) => {}
        }
    }
}

impl Args {
    /// Writes down what is going to be made at a place, as many of `count` as limits allow, and makes it.
    fn prepare(
        &self,
        fleet: &Fleet,
        keep: &Keep,
        place: &str,
        count: usize,
        make: impl FnOnce(&[Instance], &How<'_>),
    ) -> anyhow::Result<()> {
        let now = SystemTime::now();
        let expires = || keep.expiry(now, rand::random());
        let count = u16::try_from(count).unwrap_or(u16::MAX).min(eebt_provisioner::plan::MAX_COUNT);
        if self.make.provider == Provider::Local {
            let settings = self.make.settings()?;
            let request = eebt_provisioner::plan::Request { count, ..self.make.request() };
            let rows = fleet.reserve(&request, now, expires)?;
            make(&rows, &How::Local(&settings));
            return Ok(());
        }
        let mut wanted = self.make.wanted()?;
        wanted.regions = vec![place.to_owned()];
        // Prices of now.
        let offers = fleet.offers(&wanted)?;
        for count in (1..=count).rev() {
            wanted.count = count;
            match fleet.reserve_machines(&wanted, &offers, now, expires, false) {
                Ok((rows, _)) => {
                    make(&rows, &How::Cloud(&wanted, &offers));
                    return Ok(());
                }
                Err(BuyError::TooMany { .. } | BuyError::TooDear { .. }) if count > 1 => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
