//! `eebt history`

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use eebt_provisioner::{Fleet, Instance, State};
use serde_json::json;

use super::make::between;
use crate::print::{Printer, View, rfc3339, span};

/// How wide it is in a terminal.
const COLUMNS: usize = 60;

#[derive(clap::Args)]
pub struct Args {
    /// How far back
    #[arg(long, default_value = "24h", value_name = "TIME", value_parser = since)]
    since: Duration,
    /// Write a picture into this file instead
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    svg: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

fn since(text: &str) -> Result<Duration, String> {
    between(text, Duration::from_secs(60), Duration::from_secs(366 * 24 * 3600))
}

/// A stretch of time, drawn in steps.
#[derive(Clone, Copy)]
struct Time {
    from: SystemTime,
    length: Duration,
}

impl Time {
    /// How far along a moment is, from 0 to 1.
    fn part(self, at: SystemTime) -> f64 {
        let since = at.duration_since(self.from).unwrap_or_default();
        (since.as_secs_f64() / self.length.as_secs_f64()).min(1.0)
    }

    fn at(self, step: usize, of: usize) -> SystemTime {
        self.from + self.length.mul_f64(to_f64(step) / to_f64(of))
    }
}

#[allow(clippy::cast_precision_loss)] // of steps and exit bridges there are not so many
fn to_f64(n: usize) -> f64 {
    n as f64
}

/// When it began to serve. Of those of old ledgers that is not known: then, when it was planned.
fn served_from(row: &Instance) -> Option<SystemTime> {
    let served = row.state != State::Failed && !row.state.is_creating();
    row.ready.or(served.then_some(row.created))
}

/// Does it serve at any time from `from` until before `to`?
fn serves(row: &Instance, (from, to): (SystemTime, SystemTime)) -> bool {
    served_from(row).is_some_and(|begin| begin < to) && row.ended.is_none_or(|ended| from < ended)
}

fn serves_at(row: &Instance, at: SystemTime) -> bool {
    served_from(row).is_some_and(|begin| begin <= at) && row.ended.is_none_or(|ended| at < ended)
}

impl Args {
    pub fn run(self, fleet: &Fleet, printer: &Printer) -> anyhow::Result<()> {
        let now = SystemTime::now();
        let time = Time { from: now - self.since, length: self.since };
        let rows = fleet.ledger().since(time.from)?;
        if self.json {
            let all: Vec<_> = rows
                .iter()
                .map(|row| {
                    json!({ "instance": View::from(row), "served_from": served_from(row).map(rfc3339),
                    "burned": row.burned })
                })
                .collect();
            return printer
                .json(&json!({ "from": rfc3339(time.from), "to": rfc3339(now), "instances": all }));
        }
        if let Some(path) = &self.svg {
            std::fs::write(path, svg(&rows, time))
                .with_context(|| format!("--svg: can't write {}", path.display()))?;
            printer.say(format_args!("{} exit bridges are drawn in {}", rows.len(), path.display()));
            return Ok(());
        }
        if rows.is_empty() {
            printer.say("no exit bridges in that time");
            return Ok(());
        }
        Ok(printer.data(&text(&rows, time))?)
    }
}

/// A line for each exit bridge, and one for how many serve.
fn text(rows: &[Instance], time: Time) -> String {
    let mut lines = vec![format!(
        "{:10}{:COLUMNS$}  {} until now",
        "",
        rfc3339(time.from),
        span(time.from, time.from + time.length)
    )];
    let ends = |column: usize| (time.at(column, COLUMNS), time.at(column + 1, COLUMNS));
    for row in rows {
        let cell = |column: usize| {
            let (from, to) = ends(column);
            match () {
                () if serves(row, (from, to)) => '█',
                () if row.created < to && row.ended.is_none_or(|ended| from < ended) => '░',
                () => ' ',
            }
        };
        let bar: String = (0..COLUMNS).map(cell).collect();
        let known = row.burned.as_ref().map(|by| format!(", known to {by}")).unwrap_or_default();
        let place = row.region().map(|region| format!(" {region}")).unwrap_or_default();
        lines.push(format!("{:10}{bar}  {}{place}{known}", row.id, row.state));
    }
    let counts: Vec<usize> =
        (0..COLUMNS).map(|column| rows.iter().filter(|row| serves(row, ends(column))).count()).collect();
    let most = counts.iter().max().copied().unwrap_or_default();
    let level = |count: usize| {
        [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'][(count * 8).div_ceil(most.max(1)).min(8)]
    };
    let bar: String = counts.iter().map(|count| level(*count)).collect();
    lines.push(format!("{:10}{bar}  {most} at most", "serving"));
    lines.join("\n")
}

const WIDTH: f64 = 960.0;
const LEFT: f64 = 110.0;
const ROW: f64 = 18.0;
const CHART: f64 = 120.0;

/// One picture, whole in itself.
fn svg(rows: &[Instance], time: Time) -> String {
    let x = |at: SystemTime| LEFT + time.part(at) * (WIDTH - LEFT - 20.0);
    let bars_top = CHART + 60.0;
    let height = bars_top + to_f64(rows.len()) * ROW + 20.0;
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <title>Exit bridges from {from} to {to}</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">Exit bridges that serve</text>\n",
        from = rfc3339(time.from),
        to = rfc3339(time.from + time.length),
    );
    let mut moments: Vec<SystemTime> =
        rows.iter().flat_map(|row| [served_from(row), row.ended]).flatten().collect();
    moments.push(time.from);
    moments.push(time.from + time.length);
    moments.retain(|at| *at >= time.from);
    moments.sort_unstable();
    let count = |at: SystemTime| rows.iter().filter(|row| serves_at(row, at)).count();
    let most = moments.iter().map(|at| count(*at)).max().unwrap_or_default().max(1);
    let y = |n: usize| 40.0 + CHART - to_f64(n) / to_f64(most) * CHART;
    let mut path = format!("M{LEFT:.1} {:.1}", y(0));
    let mut last = 0;
    for at in moments {
        let (here, now) = (x(at), count(at));
        let _ = write!(path, " L{here:.1} {:.1} L{here:.1} {:.1}", y(last), y(now));
        last = now;
    }
    let _ = write!(path, " L{:.1} {:.1} Z", x(time.from + time.length), y(0));
    let _ = writeln!(out, "<path d=\"{path}\" fill=\"#7d4698\" fill-opacity=\"0.3\" stroke=\"#7d4698\"/>");
    for (n, anchor) in [(most, y(most) + 4.0), (0, y(0))] {
        let _ =
            writeln!(out, "<text x=\"{:.1}\" y=\"{anchor:.1}\" text-anchor=\"end\">{n}</text>", LEFT - 6.0);
    }
    for (at, anchor) in [(time.from, "start"), (time.from + time.length, "end")] {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            x(at),
            CHART + 54.0,
            rfc3339(at)
        );
    }
    for (n, row) in rows.iter().enumerate() {
        let top = bars_top + to_f64(n) * ROW;
        let end = row.ended.unwrap_or(time.from + time.length);
        let mut bar = |from: SystemTime, to: SystemTime, fill: &str| {
            let _ = writeln!(
                out,
                "<rect x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"12\" fill=\"{fill}\"/>",
                x(from),
                (x(to) - x(from)).max(1.0)
            );
        };
        bar(row.created, served_from(row).unwrap_or(end), "#d4c4de");
        if let Some(from) = served_from(row) {
            let fill = match row.state {
                _ if row.burned.is_some() => "#d98c1f",
                State::Died | State::Failed => "#c0392b",
                _ => "#7d4698",
            };
            bar(from, end, fill);
        }
        let place = row.region().map(|region| format!(" {region}")).unwrap_or_default();
        let known = row.burned.as_ref().map(|by| format!(", known to {by}")).unwrap_or_default();
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}<title>{}{place}: {}{}</title></text>",
            LEFT - 6.0,
            top + 10.0,
            escape(&row.id),
            row.provider,
            row.state,
            escape(&known)
        );
    }
    out + "</svg>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
