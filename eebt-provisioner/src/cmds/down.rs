//! `eebt down`

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::Context;
use eebt_proto::causes;
use eebt_provisioner::lower::{LowerError, Lowered};
use eebt_provisioner::report::Report;
use eebt_provisioner::{Fleet, Instance, locks};
use serde_json::json;

use super::named;
use crate::print::{Hinted, Printer, View};

#[derive(clap::Args)]
pub struct Args {
    /// Which ones, as `eebt ls` names them
    #[arg(value_name = "ID", required_unless_present = "all")]
    ids: Vec<String>,
    /// All of them
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// Do not let streams finish
    #[arg(long)]
    now: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Also those that only their clouds know of, for the ledger was lost.
fn all(fleet: &Fleet, printer: &Printer) -> anyhow::Result<Vec<Instance>> {
    if locks::is_held(&fleet.dir().run_lock())? {
        let by =
            Report::read(fleet.dir()).map(|report| format!(" (process {})", report.pid)).unwrap_or_default();
        return Err(Hinted {
            message: format!("an `eebt run`{by} keeps this fleet, and would start others"),
            hint: Some("stop it first: Ctrl-C, `kill`, or `systemctl stop eebt-run`".into()),
        }
        .into());
    }
    for provider in fleet.dir().clouds() {
        let Ok(provider) = provider.parse() else { continue };
        printer.progress(format_args!("looking through all regions of {provider} ..."));
        let news = fleet.sweep(provider, SystemTime::now());
        printer.wipe();
        news?.iter().for_each(|news| printer.news(news));
    }
    Ok(fleet.ledger().live()?)
}

/// Ends these and tells of each. Returns those that are not down, and why.
pub(super) fn end(
    fleet: &Fleet,
    printer: &Printer,
    rows: &[Instance],
    at_once: bool,
) -> Vec<(String, LowerError)> {
    let (failed, over): (Mutex<Vec<(String, LowerError)>>, _) = (Mutex::default(), AtomicUsize::new(0));
    let show = |over: usize| printer.done(over, rows.len(), "down; streams may finish first");
    let tell = |id: &str, result: Result<Lowered, LowerError>| {
        match result {
            Ok(Lowered::Stopped) => printer.say(format_args!("{id} is down")),
            Ok(Lowered::ByOther) => printer.say(format_args!("{id} was taken down by another eebt")),
            Ok(Lowered::Already) => printer.say(format_args!("{id} was down already")),
            Err(error) => failed.lock().unwrap_or_else(PoisonError::into_inner).push((id.to_owned(), error)),
        }
        show(over.fetch_add(1, Ordering::Relaxed) + 1);
    };
    show(0);
    std::thread::scope(|scope| {
        let tell = &tell;
        let one_by_one = |id: String| {
            scope.spawn(move || tell(&id, fleet.lower(&id, at_once)));
        };
        let (machines, local): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.purchase.is_some());
        local.iter().for_each(|row| one_by_one(row.id.clone()));
        let machines: Vec<String> = machines.into_iter().map(|row| row.id.clone()).collect();
        fleet.lower_machines(&machines, tell).into_iter().for_each(one_by_one);
    });
    printer.wipe();
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (id, error) in &failed {
        printer.failed(format_args!("{id}: {}", causes(error)));
    }
    failed
}

/// Says how many are not down, if any.
pub(super) fn check(failed: &[(String, LowerError)], of: usize) -> anyhow::Result<()> {
    if failed.is_empty() {
        return Ok(());
    }
    Err(Hinted {
        message: format!("{} of {of} instances are not down", failed.len()),
        hint: Some("run the same command again; what was begun is taken up".into()),
    }
    .into())
}

impl Args {
    pub fn run(self, fleet: &Fleet, printer: &Printer) -> anyhow::Result<()> {
        let mut rows: Vec<Instance> = if self.all {
            all(fleet, printer)?
        } else {
            // All names are looked at before anything is ended.
            self.ids.iter().map(|id| named(fleet, id)).collect::<Result<_, _>>()?
        };
        rows.sort_by(|a, b| a.id.cmp(&b.id));
        rows.dedup_by(|a, b| a.id == b.id);
        if rows.is_empty() {
            printer.say("no exit bridges to end");
        }
        let mut failed = end(fleet, printer, &rows, self.now);
        // What another `eebt` has begun meanwhile is meant as well.
        while self.all && failed.is_empty() {
            let more = fleet.ledger().live()?;
            if more.is_empty() {
                break;
            }
            failed = end(fleet, printer, &more, self.now);
            rows.extend(more);
        }
        if self.json {
            let after: Vec<Instance> =
                rows.iter().map(|row| named(fleet, &row.id)).collect::<Result<_, _>>()?;
            let views: Vec<View> = after.iter().map(View::from).collect();
            let failed: Vec<_> =
                failed.iter().map(|(id, error)| json!({ "id": id, "error": causes(error) })).collect();
            printer.json(&json!({ "instances": views, "failed": failed })).context("can't print")?;
        }
        check(&failed, rows.len())
    }
}
