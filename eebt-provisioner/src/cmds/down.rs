//! `eebt down`

use std::sync::Mutex;
use std::sync::PoisonError;

use anyhow::Context;
use eebt_provisioner::lower::{LowerError, Lowered};
use eebt_provisioner::{Fleet, Instance};
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

impl Args {
    pub fn run(self, fleet: &Fleet, printer: &Printer) -> anyhow::Result<()> {
        let mut rows: Vec<Instance> = if self.all {
            fleet.ledger().live()?
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
