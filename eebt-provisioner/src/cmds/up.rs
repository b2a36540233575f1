//! `eebt up`

use std::collections::BTreeMap;
use std::io::{self, BufRead, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use eebt_proto::causes;
use eebt_provisioner::check::Checker;
use eebt_provisioner::cloud::{Come, MicroUsd, Offers, Wanted};
use eebt_provisioner::instance::{Instance, Provider, expiry};
use eebt_provisioner::ledger::LedgerError;
use eebt_provisioner::raise::{self, Failed, ReserveError};
use eebt_provisioner::{Fleet, locks};
use serde_json::json;

use super::make::{self, How, Patience, make};
use super::{down, named};
use crate::print::{Hinted, Printer, Usage, View, rfc3339};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    make: make::Args,
    /// Print bridge lines without waiting until they serve
    #[arg(long)]
    no_wait: bool,
    /// Print the plan, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask before buying (the provider local costs nothing and never asks)
    #[arg(long, short)]
    yes: bool,
    /// Where machines are billed until somebody deletes them (hetzner, digitalocean): leave that to an `eebt run`, or to
    /// deploy/eebt-reap.timer, instead of keeping watch until they have ended
    #[arg(long)]
    detach: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// How often machines are looked at that are kept watch over, and when they are due.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const LOOK_WHEN_DUE: Duration = Duration::from_secs(5);
/// How long after `eebt gc --due` it is believed that it comes again.
const REAPED: Duration = Duration::from_secs(15 * 60);

impl Args {
    /// Finds the mistakes that need no fleet to be seen.
    pub fn check(&self) -> anyhow::Result<()> {
        self.make.check()?;
        if self.make.provider != Provider::Local && !self.no_wait {
            // Before anything is bought.
            self.make.client()?;
        }
        Ok(())
    }

    pub fn run(self, fleet: &Fleet, printer: &Printer) -> anyhow::Result<()> {
        let interrupted = on_signals()?;
        match self.make.provider {
            Provider::Local => self.raise(fleet, printer, &interrupted),
            _ => self.buy(fleet, printer, &interrupted),
        }
    }

    fn raise(&self, fleet: &Fleet, printer: &Printer, interrupted: &AtomicBool) -> anyhow::Result<()> {
        let (settings, request, now) = (self.make.settings()?, self.make.request(), SystemTime::now());
        let expires = expiry(now, self.make.lifetime);
        if self.dry_run {
            let slots = raise::choose(&request, &fleet.ledger().live()?).map_err(ReserveError::from)?;
            let addresses: Vec<String> = slots.iter().map(|slot| slot.address.ip().to_string()).collect();
            self.say_local_plan(printer, &addresses, expires);
            let plan = json!({ "provider": self.make.provider, "count": self.make.count, "addresses": addresses,
                "expires": rfc3339(expires), "policy": self.make.policy, "cost": 0 });
            return if self.json { printer.json(&json!({ "plan": plan })) } else { Ok(()) };
        }
        let rows = fleet.reserve(&request, now, || expires)?;
        let addresses: Vec<String> =
            rows.iter().filter_map(|row| Some(row.address?.ip().to_string())).collect();
        self.say_local_plan(printer, &addresses, expires);
        self.make_all(fleet, printer, &rows, &How::Local(&settings), None, interrupted)
    }

    fn buy(&self, fleet: &Fleet, printer: &Printer, interrupted: &AtomicBool) -> anyhow::Result<()> {
        self.check_detached(fleet)?;
        let wanted = self.make.wanted()?;
        printer.progress("asking what can be had ...");
        let offers = fleet.offers(&wanted)?;
        let reserve = |is_plan| {
            let now = SystemTime::now();
            fleet.reserve_machines(&wanted, &offers, now, || expiry(now, self.make.lifetime), is_plan)
        };
        let (rows, cost) = reserve(true)?;
        printer.wipe();
        self.say_cloud_plan(printer, &rows, cost);
        if self.dry_run {
            return if self.json { print_cloud_plan(printer, &wanted, &offers, cost) } else { Ok(()) };
        }
        if !self.yes {
            agree(printer)?;
        }
        // It connects to Tor while the machines start.
        let checker = (!self.no_wait).then(|| {
            let (program, network) = (self.make.client()?, wanted.settings.network.as_deref());
            Ok::<_, anyhow::Error>(Checker::start(&program, fleet.dir(), network, &[])?)
        });
        let checker = checker.transpose()?;
        // Money may have been spent while somebody thought about it.
        let (rows, _) = reserve(false)?;
        let how = How::Cloud(&wanted, &offers);
        let made = self.make_all(fleet, printer, &rows, &how, checker.as_ref(), interrupted);
        drop(checker);
        if self.detach || wanted.provider.frees_what_is_off() {
            return made;
        }
        let watched = self.keep_watch(fleet, printer, &rows, interrupted);
        made.and(watched)
    }

    /// Stays until these machines have ended: they switch themselves off, and are billed all the same until they are
    /// deleted.
    fn keep_watch(
        &self,
        fleet: &Fleet,
        printer: &Printer,
        rows: &[Instance],
        interrupted: &AtomicBool,
    ) -> anyhow::Result<()> {
        let live = || -> Result<Vec<Instance>, LedgerError> {
            let mut live = Vec::new();
            for row in rows {
                live.extend(fleet.ledger().get(&row.id)?.filter(|row| !row.state.is_final()));
            }
            Ok(live)
        };
        let (mut looked, mut has_said) = (Instant::now(), false);
        loop {
            let live = match live() {
                Ok(live) => live,
                // It may work the next time, and nobody else sees to these machines.
                Err(error) => {
                    printer.failed(causes(&error));
                    std::thread::sleep(LOOK_WHEN_DUE);
                    continue;
                }
            };
            if live.is_empty() {
                return Ok(());
            }
            if !std::mem::replace(&mut has_said, true) {
                printer.say(format_args!(
                    "keeping watch until they have ended, for {} bills machines until they are deleted; Ctrl-C ends them now",
                    self.make.provider
                ));
            }
            if interrupted.load(Ordering::Relaxed) {
                return down::check(&down::end(fleet, printer, &live, false), live.len());
            }
            let now = SystemTime::now();
            let is_due = live.iter().any(|row| now >= row.expires);
            if looked.elapsed() >= if is_due { LOOK_WHEN_DUE } else { LOOK_EVERY } {
                looked = Instant::now();
                match fleet.look(now, &[]) {
                    Ok(news) => news.iter().for_each(|news| printer.news(news)),
                    Err(error) => printer.failed(causes(&error)),
                }
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Sees whether somebody ends these machines when they are due, if this command does not stay for it.
    fn check_detached(&self, fleet: &Fleet) -> anyhow::Result<()> {
        if !self.detach || self.make.provider.frees_what_is_off() {
            return Ok(());
        }
        let is_recent = |at: SystemTime| at.elapsed().is_ok_and(|age| age < REAPED);
        if fleet.dir().reaped().is_some_and(is_recent) || locks::is_held(&fleet.dir().run_lock())? {
            return Ok(());
        }
        let what = format!(
            "--detach: nothing would end the machines when they are due, and {} bills on",
            self.make.provider
        );
        let hint = "leave it out, and this command stays; or enable deploy/eebt-reap.timer, or start `eebt run`, first";
        Err(Usage::new(what, hint).into())
    }

    fn make_all(
        &self,
        fleet: &Fleet,
        printer: &Printer,
        rows: &[Instance],
        how: &How<'_>,
        checker: Option<&Checker>,
        interrupted: &AtomicBool,
    ) -> anyhow::Result<()> {
        let start = Instant::now();
        let patience = Patience { time: self.make.patience(), waits: !self.no_wait, checker };
        let (mut good, mut failed) = (Vec::new(), Vec::new());
        std::thread::scope(|scope| -> anyhow::Result<()> {
            let (sender, made) = mpsc::channel();
            scope.spawn(move || make(fleet, rows, how, patience, interrupted, &sender));
            loop {
                printer.done(
                    good.len(),
                    rows.len(),
                    format_args!("ready after {}s", start.elapsed().as_secs()),
                );
                match made.recv_timeout(Duration::from_secs(1)) {
                    Ok((row, Ok(Come { line, serves }))) => {
                        if !self.json {
                            printer.data(&line)?;
                        }
                        let (place, after) = (place(&row), start.elapsed().as_secs_f32());
                        match serves {
                            Ok(()) => printer.say(format_args!("{place} is ready after {after:.1}s")),
                            Err(why) => {
                                printer.say(format_args!("{place} is starting after {after:.1}s ({why})"));
                            }
                        }
                        good.push(named(fleet, &row.id)?);
                    }
                    Ok((row, Err(error))) => failed.push((row, error)),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
            }
        })?;
        printer.wipe();
        if self.json {
            let views: Vec<View> = good.iter().map(View::from).collect();
            let failed: Vec<_> = failed.iter().map(|(row, failed)| view(row, failed)).collect();
            printer.json(&json!({ "instances": views, "failed": failed }))?;
        }
        report(printer, &failed, rows.len())
    }

    fn say_local_plan(&self, printer: &Printer, addresses: &[String], expires: SystemTime) {
        let (what, provider) = (some(self.make.count.into()), self.make.provider);
        printer.say(format_args!("plan: {what} by provider {provider}, cost 0"));
        printer.say(format_args!("  on {}, letting out: {}", addresses.join(", "), self.make.policy));
        self.say_end(printer, expires);
    }

    fn say_cloud_plan(&self, printer: &Printer, rows: &[Instance], cost: MicroUsd) {
        let (what, provider) = (some(rows.len()), self.make.provider);
        printer
            .say(format_args!("plan: {what} by provider {provider}, for {cost} at most, traffic included"));
        let mut regions: BTreeMap<&str, usize> = BTreeMap::new();
        rows.iter().filter_map(Instance::region).for_each(|region| *regions.entry(region).or_default() += 1);
        for (region, count) in regions {
            printer.say(format_args!("  {count} in {region}"));
        }
        if let Some(row) = rows.first() {
            self.say_end(printer, row.expires);
        }
    }

    fn say_end(&self, printer: &Printer, expires: SystemTime) {
        let lifetime = humantime::format_duration(self.make.lifetime);
        printer.say(format_args!("  until {} ({lifetime})", rfc3339(expires)));
    }
}

/// Set when this program is told to stop.
pub(super) fn on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).context("can't handle signals")?;
    }
    Ok(interrupted)
}

fn some(count: usize) -> String {
    format!("{count} {}", if count == 1 { "exit bridge" } else { "exit bridges" })
}

fn print_cloud_plan(
    printer: &Printer,
    wanted: &Wanted,
    offers: &Offers,
    cost: MicroUsd,
) -> anyhow::Result<()> {
    let plan = json!({ "provider": wanted.provider, "count": wanted.count, "regions": wanted.regions,
        "cost_usd": cost.plain(), "offers": offers });
    printer.json(&json!({ "plan": plan }))
}

/// Asks a person. Nobody there to be asked is a no.
fn agree(printer: &Printer) -> anyhow::Result<()> {
    if !io::stdin().is_terminal() {
        let what = "--yes: not given, and there is nobody to be asked";
        return Err(Usage::new(what, "`eebt up --dry-run` shows what would be bought").into());
    }
    printer.say("buy them? [y/N]");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("can't read the answer")?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(anyhow::anyhow!("nothing was bought")),
    }
}

fn report(printer: &Printer, failed: &[(Instance, Failed)], of: usize) -> anyhow::Result<()> {
    for (row, Failed { error, log, .. }) in failed {
        let causes = causes(error.as_ref());
        printer.failed(format_args!("{}: {causes}", place(row)));
        log.iter().for_each(|line| printer.say(format_args!("  | {line}")));
    }
    let Some((_, first)) = failed.first() else { return Ok(()) };
    let message = format!("{} of {of} exit bridges did not come up", failed.len());
    Err(Hinted { message, hint: first.error.hint() }.into())
}

fn view(row: &Instance, Failed { id, error, log }: &Failed) -> serde_json::Value {
    json!({ "id": id, "provider": row.provider, "address": row.address, "error": causes(error.as_ref()), "log": log })
}

/// Which one, and where.
pub(super) fn place(row: &Instance) -> String {
    let place = row.address.map(|address| address.to_string()).or(row.region().map(str::to_owned));
    format!("{} {}", row.id, place.unwrap_or_default())
}
