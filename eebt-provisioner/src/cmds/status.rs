//! `eebt status`

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use eebt_provisioner::keep::{MEASURED, Measured};
use eebt_provisioner::report::Report;
use eebt_provisioner::{Fleet, Instance, State, locks};
use serde_json::json;

use crate::print::{Printer, rfc3339, span, table};

#[derive(clap::Args)]
pub struct Args {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// What is at one place.
#[derive(Default)]
struct Here {
    serving: usize,
    coming: usize,
    stopping: usize,
    burned: usize,
    next_end: Option<SystemTime>,
}

impl Args {
    pub fn run(self, fleet: &Fleet, printer: &Printer) -> anyhow::Result<()> {
        let now = SystemTime::now();
        let rows = fleet.ledger().live()?;
        let measured = Measured::new(&fleet.ledger().since(now - MEASURED)?, now);
        let is_kept = locks::is_held(&fleet.dir().run_lock())?;
        // One that was killed says nothing of now.
        let report = Report::read(fleet.dir()).filter(|_| is_kept);
        let places = places(&rows);
        if self.json {
            let places: Vec<_> = places
                .iter()
                .map(|(place, here)| {
                    json!({ "place": place, "serving": here.serving, "coming": here.coming,
                        "stopping": here.stopping, "burned": here.burned, "next_end": here.next_end.map(rfc3339) })
                })
                .collect();
            return printer.json(&json!({ "kept": is_kept, "places": places,
                "start_up_seconds": measured.start_up.as_secs(), "losses_per_hour": measured.losses,
                "run": report.as_ref().map(view) }));
        }
        let head =
            ["WHERE", "SERVING", "COMING", "GOING", "KNOWN", "NEXT END IN"].map(str::to_owned).to_vec();
        let cells = |(place, here): (&String, &Here)| {
            let mut cells = vec![place.clone()];
            cells.extend([here.serving, here.coming, here.stopping, here.burned].map(|n| n.to_string()));
            cells.push(here.next_end.map_or("-".into(), |end| span(now, end)));
            cells
        };
        if places.is_empty() {
            printer.say("no exit bridges; `eebt up` starts one, `eebt run` keeps some");
        } else {
            printer
                .data(&table(&std::iter::once(head).chain(places.iter().map(cells)).collect::<Vec<_>>()))?;
        }
        printer.data(&format!(
            "a start takes {}; of one exit bridge, {:.3} are lost in an hour (both measured in 7 days)",
            humantime::format_duration(Duration::from_secs(measured.start_up.as_secs())),
            measured.losses
        ))?;
        match report {
            Some(report) => printer.data(&told(&report, now))?,
            None if is_kept => printer.data("`eebt run` keeps this fleet, and has not looked at it yet")?,
            None => printer.data("no `eebt run` keeps this fleet")?,
        }
        Ok(())
    }
}

fn places(rows: &[Instance]) -> BTreeMap<String, Here> {
    let mut places: BTreeMap<String, Here> = BTreeMap::new();
    for row in rows {
        let place = match row.region() {
            Some(region) => format!("{} {region}", row.provider),
            None => row.provider.to_string(),
        };
        let here = places.entry(place).or_default();
        match row.state {
            State::Running => here.serving += 1,
            State::Stopping => here.stopping += 1,
            _ => here.coming += 1,
        }
        here.burned += usize::from(row.burned.is_some());
        here.next_end = Some(here.next_end.map_or(row.expires, |end| end.min(row.expires)));
    }
    places
}

fn told(report: &Report, now: SystemTime) -> String {
    let mut lines = vec![format!(
        "`eebt run` has kept this fleet for {}, by process {}",
        span(report.since, now),
        report.pid
    )];
    if let Some(next) = report.next_rotation {
        lines.push(format!("  all are replaced next at {}", rfc3339(next)));
    }
    if let Some(why) = &report.blind {
        lines.push(format!("  it can't see whether they serve: {why}"));
    }
    for place in &report.places {
        let name = if place.place.is_empty() { "this machine" } else { &place.place };
        let mut line = format!("  {name}: {} of {} serve", place.serving, place.kept);
        if let Some(trouble) = &place.trouble {
            line += &format!("; the last one could not be had: {trouble}");
        }
        if let Some(until) = place.paused_until.filter(|until| *until > now) {
            line += &format!("; the next try is in {}", span(now, until));
        }
        lines.push(line);
    }
    lines.join("\n")
}

fn view(report: &Report) -> serde_json::Value {
    let places: Vec<_> = report
        .places
        .iter()
        .map(|place| {
            json!({ "place": place.place, "kept": place.kept, "serving": place.serving, "coming": place.coming,
                "going": place.going, "trouble": place.trouble, "paused_until": place.paused_until.map(rfc3339) })
        })
        .collect();
    json!({ "pid": report.pid, "since": rfc3339(report.since), "at": rfc3339(report.at), "blind": report.blind,
        "next_rotation": report.next_rotation.map(rfc3339), "places": places })
}
