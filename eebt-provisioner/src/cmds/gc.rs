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
    /// The fleet whose state folder was lost: what its machines have as tag `eebt:fleet`
    #[arg(long, value_name = "HEX", value_parser = fleet)]
    fleet: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

fn fleet(text: &str) -> Result<String, String> {
    let is_name = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if is_name { Ok(text.to_owned()) } else { Err("must be 16 hexadecimal digits".into()) }
}

impl Args {
    pub fn run(self, fleet: &Fleet, printer: &Printer) -> anyhow::Result<()> {
        if self.provider == Provider::Local {
            return Err(
                Usage::new("--provider: local is no cloud", "every eebt cleans up on this machine").into()
            );
        }
        if let Some(name) = &self.fleet {
            fleet.dir().adopt_fleet(name)?;
            fleet.dir().note_cloud(&self.provider.to_string())?;
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
