//! `eebt ls`

use std::time::SystemTime;

use eebt_provisioner::instance::KEPT;
use eebt_provisioner::{Fleet, Instance, State};
use serde_json::json;

use crate::print::{Printer, View, span, table};

#[derive(clap::Args)]
pub struct Args {
    /// Also those that ended in the last 7 days
    #[arg(long, short)]
    all: bool,
    /// Print the bridge lines of those that run, and nothing else
    #[arg(long, conflicts_with_all = ["all", "json"])]
    lines: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self, fleet: &Fleet, printer: &Printer) -> anyhow::Result<()> {
        let now = SystemTime::now();
        let rows = if self.all { fleet.ledger().since(now - KEPT)? } else { fleet.ledger().live()? };
        if self.json {
            let views: Vec<View> = rows.iter().map(View::from).collect();
            return printer.json(&json!({ "instances": views }));
        }
        if self.lines {
            for line in
                rows.iter().filter(|row| row.state == State::Running).filter_map(|row| row.line.as_ref())
            {
                printer.data(line)?;
            }
            return Ok(());
        }
        if rows.is_empty() {
            printer.say("no exit bridges; `eebt up` starts one");
            return Ok(());
        }
        let head = ["ID", "PROVIDER", "STATE", "ADDRESS", "AGE", "EXPIRES IN", "REMARK"];
        let cells = |row: &Instance| {
            let left = if row.state.is_final() { "-".into() } else { span(now, row.expires) };
            let state = if row.state.is_creating() { "creating".into() } else { row.state.to_string() };
            vec![
                row.id.clone(),
                row.region().map_or(row.provider.to_string(), |region| format!("{} {region}", row.provider)),
                state,
                row.address.map_or("-".into(), |address| address.to_string()),
                span(row.created, now),
                left,
                row.last_error.clone().unwrap_or_default(),
            ]
        };
        let mut lines = vec![head.map(str::to_owned).to_vec()];
        lines.extend(rows.iter().map(cells));
        if rows.iter().all(|row| row.last_error.is_none()) {
            lines.iter_mut().for_each(|line| line.truncate(head.len() - 1));
        }
        Ok(printer.data(&table(&lines))?)
    }
}
