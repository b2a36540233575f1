//! `eebt gc`

use std::time::SystemTime;

use eebt_provisioner::instance::Provider;
use eebt_provisioner::{Fleet, Instance};
use serde_json::json;

use crate::print::{Printer, Usage, View};

#[derive(clap::Args)]
pub struct Args {
    /// Which cloud to look through
    #[arg(long, value_enum)]
    provider: Provider,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self, fleet: &Fleet, printer: &Printer) -> anyhow::Result<()> {
        if self.provider == Provider::Local {
            return Err(
                Usage::new("--provider: local is no cloud", "every eebt cleans up on this machine").into()
            );
        }
        printer.progress("looking through all regions ...");
        let news = fleet.sweep(self.provider, SystemTime::now())?;
        printer.wipe();
        news.iter().for_each(|news| printer.news(news));
        let live: Vec<Instance> =
            fleet.ledger().live()?.into_iter().filter(|row| row.provider == self.provider).collect();
        if self.json {
            let views: Vec<View> = live.iter().map(View::from).collect();
            return printer.json(&json!({ "instances": views }));
        }
        printer.say(format_args!("{} machines are alive, and all are in the ledger", live.len()));
        Ok(())
    }
}
