//! `eebt down`

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::Context;
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
    let live = fleet.ledger().live()?;
    let known: BTreeSet<String> =
        live.iter().filter(|row| row.purchase.is_some()).map(|row| row.provider.to_string()).collect();
    for provider in fleet.dir().clouds() {
        // Where the ledger knows some, it was not lost.
        if known.contains(&provider) {
            continue;
        }
        let Ok(provider) = provider.parse() else { continue };
        printer.progress(format_args!("looking through all regions of {provider} ..."));
        let news = fleet.sweep(provider, SystemTime::now());
        printer.wipe();
        news?.iter().for_each(|news| printer.news(news));
    }
    Ok(fleet.ledger().live()?)
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

        let results: Mutex<Vec<(String, Result<Lowered, LowerError>)>> = Mutex::default();
        std::thread::scope(|scope| {
            printer.progress(format_args!("waiting for the streams of {} exit bridges ...", rows.len()));
            for row in &rows {
                scope.spawn(|| {
                    let result = fleet.lower(&row.id, self.now);
                    if let Ok(lowered) = &result {
                        let how = match lowered {
                            Lowered::Stopped => "is down",
                            Lowered::ByOther => "was taken down by another eebt",
                            Lowered::Already => "was down already",
                        };
                        printer.say(format_args!("{} {how}", row.id));
                    }
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((row.id.clone(), result));
                });
            }
        });

        printer.wipe();
        let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut failed = Vec::new();
        for (id, result) in results {
            if let Err(err) = result {
                let err = format!("{:#}", anyhow::Error::from(err));
                printer.failed(format_args!("{id}: {err}"));
                failed.push(json!({ "id": id, "error": err }));
            }
        }
        if self.json {
            let after: Vec<Instance> =
                rows.iter().map(|row| named(fleet, &row.id)).collect::<Result<_, _>>()?;
            let views: Vec<View> = after.iter().map(View::from).collect();
            printer.json(&json!({ "instances": views, "failed": failed })).context("can't print")?;
        }
        if failed.is_empty() {
            return Ok(());
        }
        Err(Hinted {
            message: format!("{} of {} instances are not down", failed.len(), rows.len()),
            hint: Some("run the same command again; what was begun is taken up".into()),
        }
        .into())
    }
}
