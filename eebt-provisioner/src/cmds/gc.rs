//! `eebt gc`

use std::time::SystemTime;

use eebt_provisioner::instance::Provider;
use eebt_provisioner::{Fleet, Instance, State};
use serde_json::json;

use crate::print::{Hinted, Printer, Usage, View};

#[derive(clap::Args)]
pub struct Args {
    /// Which cloud to look through
    #[arg(long, value_enum, required_unless_present = "due")]
    provider: Option<Provider>,
    /// See to it that what is due is ended, in clouds that bill it until then; fails if something is not. For a timer:
    /// deploy/eebt-reap.timer
    #[arg(long, conflicts_with_all = ["provider", "fleet"])]
    due: bool,
    /// The fleet whose state folder was lost: what its machines have as tag (`eebt:fleet`, at hetzner the label
    /// `eebt-fleet`)
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
        let Some(provider) = self.provider else { return self.end_due(fleet, printer) };
        if provider == Provider::Local {
            return Err(
                Usage::new("--provider: local is no cloud", "every eebt cleans up on this machine").into()
            );
        }
        if let Some(name) = &self.fleet {
            fleet.dir().adopt_fleet(name)?;
            fleet.dir().note_cloud(&provider.to_string())?;
        }
        printer.progress("looking through all regions ...");
        let news = fleet.sweep(provider, SystemTime::now())?;
        printer.wipe();
        news.iter().for_each(|news| printer.news(news));
        let live: Vec<Instance> =
            fleet.ledger().live()?.into_iter().filter(|row| row.provider == provider).collect();
        if self.json {
            let views: Vec<View> = live.iter().map(View::from).collect();
            return printer.json(&json!({ "instances": views }));
        }
        printer.say(format_args!("{} machines are alive, and all are in the ledger", live.len()));
        Ok(())
    }

    /// What was due was ended as the fleet was opened. Looks also where the ledger knows of nothing, and says what is left.
    fn end_due(&self, fleet: &Fleet, printer: &Printer) -> anyhow::Result<()> {
        let clouds = fleet.dir().clouds().into_iter().filter_map(|name| name.parse::<Provider>().ok());
        for provider in clouds.filter(|provider| !provider.frees_what_is_off()) {
            fleet.sweep(provider, SystemTime::now())?.iter().for_each(|news| printer.news(news));
        }
        let now = SystemTime::now();
        let is_due = |row: &Instance| row.expires <= now || row.state == State::Stopping;
        let left: Vec<Instance> = fleet.ledger().live()?.into_iter().filter(is_due).collect();
        if self.json {
            printer.json(&json!({ "due": left.iter().map(View::from).collect::<Vec<_>>() }))?;
        }
        // On AWS, and on this machine, they have a little time to end by themselves.
        let late: Vec<&Instance> = left.iter().filter(|row| !row.provider.frees_what_is_off()).collect();
        let Some(first) = late.first() else { return Ok(fleet.dir().note_reaped()?) };
        let message = format!("{} machines are due and not ended, {} among them", late.len(), first.id);
        Err(Hinted {
            message,
            hint: Some("its cloud bills on: delete it in its console if this goes on".into()),
        }
        .into())
    }
}
