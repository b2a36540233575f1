//! `eebt logs`

use std::fs::File;
use std::io::Read;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context;
use eebt_provisioner::{Fleet, local};
use serde_json::json;

use super::named;
use crate::print::{Hinted, Printer};

#[derive(clap::Args)]
pub struct Args {
    /// Which one, as `eebt ls` names it
    id: String,
    /// Go on until it ends
    #[arg(long, short, conflicts_with = "json")]
    follow: bool,
    /// Only the last N lines
    #[arg(long, short = 'n', value_name = "N")]
    lines: Option<usize>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self, fleet: &Fleet, printer: &Printer) -> anyhow::Result<()> {
        let row = named(fleet, &self.id)?;
        let folder = fleet.folder(&row.id);
        let mut log = File::open(folder.log()).map_err(|err| Hinted {
            message: format!("instance {} has no log: {err}", row.id),
            hint: Some("it was never launched, wrote nothing, or ended more than 7 days ago".into()),
        })?;
        let mut bytes = Vec::new();
        let mut read = |bytes: &mut Vec<u8>| log.read_to_end(bytes).context("can't read the log");
        read(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let all: Vec<&str> = text.lines().collect();
        let last = &all[all.len().saturating_sub(self.lines.unwrap_or(usize::MAX))..];
        if self.json {
            return printer.json(&json!({ "id": row.id, "lines": last }));
        }
        for line in last {
            printer.data(line)?;
        }
        if !self.follow {
            return Ok(());
        }
        loop {
            // Before the last look, so that nothing is missed.
            let alive = local::is_alive(&folder)?;
            bytes.clear();
            read(&mut bytes)?;
            if !bytes.is_empty() {
                printer.data(String::from_utf8_lossy(&bytes).trim_end_matches('\n'))?;
            }
            if !alive {
                return Ok(());
            }
            sleep(Duration::from_millis(200));
        }
    }
}
