//! Keeps a fleet at its number: looks, decides by `keep.rs`, and has threads do what takes time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::Scope;
use std::time::{Duration, Instant, SystemTime};

use eebt_proto::causes;
use eebt_provisioner::Fleet;
use eebt_provisioner::block_list::ListError;
use eebt_provisioner::check::Checker;
use eebt_provisioner::fleet::{FleetError, News};
use eebt_provisioner::folder::StateDir;
use eebt_provisioner::instance::{Instance, Provider, State};
use eebt_provisioner::keep::{Keep, MEASURED, Measured, Pauses, Plan};
use eebt_provisioner::lower::LowerError;
use eebt_provisioner::report::{PlaceReport, Report};
use eebt_provisioner::watch::{BlockLists, Seen, Watch};

use super::{Args, named, reason};
use crate::cmds::make::{How, Made, Patience, make};
use crate::cmds::up::place;
use crate::print::Printer;

/// How often what has happened is looked at.
const TICK: Duration = Duration::from_millis(500);
/// How often all regions of a cloud are looked through, also those where nothing should be.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);

/// Keeps the fleet until it is interrupted.
pub(super) fn keep_going(
    args: &Args,
    fleet: &Fleet,
    printer: &Printer,
    keep: &Keep,
    interrupted: &AtomicBool,
) -> anyhow::Result<()> {
    let client = args.make.client()?;
    let network = args.make.network.as_deref();
    let checker = || Checker::start(&client, fleet.dir(), network, &args.canaries);
    let lists = BlockLists::default();
    std::thread::scope(|scope| {
        if !args.block_lists.is_empty() {
            let say = |error: &ListError| printer.failed(causes(error));
            let (lists, sources, interrupted) = (&lists, &args.block_lists, interrupted);
            scope.spawn(move || lists.keep_fresh(sources, interrupted, say));
        }
        let (sender, events) = mpsc::channel();
        let places: Vec<_> = keep.places.iter().map(|place| (args.make.provider, place.clone())).collect();
        let is_cloud = args.make.provider != Provider::Local;
        let look = Look { fleet, places: if is_cloud { places } else { Vec::new() }, every: args.interval };
        let (looked, stop) = (sender.clone(), interrupted);
        scope.spawn(move || look.again_and_again(stop, &looked));
        let keeper = Keeper {
            args,
            fleet,
            printer,
            keep,
            lists: &lists,
            interrupted,
            sender,
            watch: Watch::new(&checker, args.check_every),
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

    /// Takes in what is seen of exit bridges from outside. Returns whether that changed the ledger: of 500 that are
    /// looked at one serves still at any moment, which is no reason to think anew about all.
    fn watch(&mut self, rows: &[Instance], now: SystemTime) -> anyhow::Result<bool> {
        let mut seen = self.watch.look(rows, now);
        seen.extend(self.lists.find(rows));
        let mut is_new = false;
        for seen in seen {
            match seen {
                Seen::Serves(id) => {
                    self.blind = None;
                    let Some(row) = rows.iter().find(|row| row.id == id) else { continue };
                    if self.fleet.note_serving(row, now)? {
                        is_new = true;
                        self.printer.say(format_args!("{} is ready", place(row)));
                    }
                    if row.burned.is_none() && !self.is_young(row, now) {
                        self.burns.worked(row.region().unwrap_or_default());
                    }
                }
                Seen::Burned(id, by) => {
                    let Some(row) = rows.iter().find(|row| row.id == id) else { continue };
                    if self.fleet.ledger().burn(&id, &by, now)? {
                        is_new = true;
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
                    let _ = sender.send(Event::Ended(id, result));
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
        let where_to = named(&place);
        self.say_trouble(place, &where_to, error);
    }

    fn say_trouble(&mut self, key: String, what: &str, error: String) {
        if self.trouble.get(&key) != Some(&error) {
            self.printer.failed(format_args!("{what}: {error}"));
            self.trouble.insert(key, error);
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
        const FIELD: &str = "--lines-file";
        match StateDir::replace_private(Path::new(path), &lines) {
            Ok(()) => {
                self.lines = Some(lines);
                self.trouble.remove(FIELD);
            }
            // Tried again at the next look, and said once.
            Err(error) => self.say_trouble(FIELD.to_owned(), FIELD, causes(&error)),
        }
    }
}
