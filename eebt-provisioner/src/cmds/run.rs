//! `eebt run`

mod keeper;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use eebt_provisioner::Fleet;
use eebt_provisioner::block_list::Source;
use eebt_provisioner::cloud::cost::SPENDING_TIME;
use eebt_provisioner::cloud::{self, BuyError};
use eebt_provisioner::instance::{Instance, Provider};
use eebt_provisioner::keep::{Keep, MEASURED, Measured, Plan, Quiet, Rotation, Why};
use eebt_provisioner::locks::{self, LockError};
use eebt_provisioner::plan::{MAX_COUNT, Request};

use super::make::{self, How, between};
use super::up::on_signals;
use crate::print::{Hinted, Printer, Usage};

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
        keeper::keep_going(&self, fleet, printer, &keep, &interrupted)
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
        let most = if self.make.provider == Provider::Local { MAX_COUNT } else { cloud::MAX_COUNT };
        let count = u16::try_from(count).unwrap_or(u16::MAX).min(most);
        if self.make.provider == Provider::Local {
            let settings = self.make.settings()?;
            let request = Request { count, ..self.make.request() };
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
