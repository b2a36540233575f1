//! Samples, what follows from them, and the page that shows it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use testnet::Scheduler;

use crate::figures::Unit;
use crate::stats::{self, Comparison};
use crate::{crypto, directory, engine, fleet, paths, start};

/// One measured value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// What was measured.
    pub figure: String,
    /// On which path.
    pub path: String,
    /// One-way delay of each link.
    pub latency_ms: f64,
    /// What the value is.
    pub unit: Unit,
    /// The value.
    pub value: f64,
}

/// A measurement that did not work.
#[derive(Clone, Debug, Serialize)]
struct Failure {
    figure: String,
    path: String,
    latency_ms: f64,
    error: String,
}

/// One line of the summary: two paths, one figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Entry {
    name: String,
    latency_ms: f64,
    unit: Unit,
    /// Median of our path.
    ours: f64,
    /// Median of the other.
    peer: f64,
    ratio: f64,
    n: usize,
    /// Quartiles of the ratios of samples taken one after the other.
    spread: [f64; 2],
    /// Whether the ratio is at or under 1 (or over it, where more is better).
    better: bool,
}

/// Who is held against whom.
const COMPARED: [(&str, &str); 13] = [
    (paths::AUTO, paths::PLAIN_ARTI),
    (paths::AUTO, paths::CIRCUIT),
    (paths::AUTO_AGAIN, paths::CIRCUIT),
    (paths::CIRCUIT, paths::PLAIN),
    (paths::CIRCUIT, paths::PLAIN_ARTI),
    (paths::CIRCUIT_VANGUARDS, paths::PLAIN),
    (paths::CIRCUIT, paths::UNLISTED),
    (paths::CIRCUIT, paths::EEBT_PROTOTYPE),
    (paths::ONION, paths::HEBTOR_PROTOTYPE),
    (paths::ONION_DIRECT, paths::HEBTOR_PROTOTYPE),
    (paths::ONION, paths::ONION_ANONYMOUS),
    (paths::ONION, paths::PLAIN),
    (engine::ENGINE, engine::BARE),
];

/// What has no peer: it is held against what one wants of it.
const ALONE: [&str; 6] =
    [directory::DIRECTORY, start::UP, crypto::CLIENT, crypto::EXIT_BRIDGE, fleet::SMALL, fleet::LARGE];

/// All results of one run.
pub struct Report {
    out: PathBuf,
    scheduler: String,
    samples: Vec<Sample>,
    failures: Vec<Failure>,
}

/// Samples by latency (in µs, to have an order), figure and path.
type Grouped<'a> = BTreeMap<(u64, &'a str), (Unit, BTreeMap<&'a str, Vec<f64>>)>;

impl Report {
    /// Nothing yet; results will be written to the folder `out`.
    pub fn new(out: &Path, scheduler: Scheduler) -> anyhow::Result<Self> {
        fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
        let scheduler = match scheduler {
            Scheduler::Kist(ms) => format!("KIST, every {ms} ms"),
            Scheduler::Vanilla => "Vanilla".to_owned(),
        };
        Ok(Self { out: out.to_owned(), scheduler, samples: Vec::new(), failures: Vec::new() })
    }

    /// Takes one value.
    pub fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// Takes a measurement that did not work.
    pub fn failed(&mut self, figure: &str, path: &str, latency: Duration, error: &anyhow::Error) {
        eprintln!("   FAILED: {figure}: {path}: {error:#}");
        self.failures.push(Failure {
            figure: figure.to_owned(),
            path: path.to_owned(),
            latency_ms: latency.as_secs_f64() * 1000.0,
            error: format!("{error:#}"),
        });
    }

    fn grouped(&self) -> Grouped<'_> {
        let mut grouped = Grouped::new();
        for sample in &self.samples {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a few ms
            let key = ((sample.latency_ms * 1000.0) as u64, sample.figure.as_str());
            let (_, paths) = grouped.entry(key).or_insert_with(|| (sample.unit, BTreeMap::new()));
            paths.entry(&sample.path).or_default().push(sample.value);
        }
        grouped
    }

    fn summary(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        for ((latency_us, figure), (unit, paths)) in self.grouped() {
            for (ours, peer) in COMPARED {
                let (Some(our_values), Some(peer_values)) = (paths.get(ours), paths.get(peer)) else {
                    continue;
                };
                let Some(compared) = stats::compare(our_values, peer_values) else { continue };
                let Comparison { ours: our_median, peer: peer_median, ratio, n, spread } = compared;
                #[allow(clippy::cast_precision_loss)]
                entries.push(Entry {
                    name: format!("{figure}: {ours} / {peer}"),
                    latency_ms: latency_us as f64 / 1000.0,
                    unit,
                    ours: our_median,
                    peer: peer_median,
                    ratio,
                    n,
                    spread,
                    better: if unit.less_is_better() { ratio <= 1.0 } else { ratio >= 1.0 },
                });
            }
        }
        entries
    }

    /// Writes `summary.json`, `raw.json` and `index.html`.
    pub fn write(&self) -> anyhow::Result<()> {
        let raw = serde_json::json!({
            "scheduler": self.scheduler, "samples": self.samples, "failures": self.failures,
        });
        for (name, text) in [
            ("summary.json", serde_json::to_string_pretty(&self.summary())?),
            ("raw.json", serde_json::to_string(&raw)?),
            ("index.html", self.page()),
        ] {
            let path = self.out.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Prints the ratios for people.
    #[allow(clippy::print_stdout)] // this is the one place
    pub fn print(&self) {
        println!(
            "{:<86} {:>7} {:>12} {:>12} {:>6}  spread",
            "figure: ours / peer", "latency", "ours", "peer", "ratio"
        );
        for e in self.summary() {
            let latency = format!("{} ms", e.latency_ms);
            let (ours, peer) = (shown(e.unit, e.ours), shown(e.unit, e.peer));
            let [low, high] = e.spread;
            println!(
                "{:<86} {latency:>7} {ours:>12} {peer:>12} {:>6.2}  {low:.2} to {high:.2}",
                e.name, e.ratio
            );
        }
        for ((_, figure), (unit, paths)) in self.grouped() {
            for alone in ALONE {
                if let Some(median) = paths.get(alone).and_then(|values| stats::median(values)) {
                    println!("{:<94} {:>12}", format!("{figure}: {alone}"), shown(unit, median));
                }
            }
        }
        println!("page with charts: {}", self.out.join("index.html").display());
    }

    fn page(&self) -> String {
        let mut html = String::from(PAGE_HEAD);
        let _ = writeln!(
            html,
            "<p>C tor's scheduler: {}. Medians; lines show the quartiles.</p>",
            self.scheduler
        );
        for ((latency_us, figure), (unit, paths)) in self.grouped() {
            #[allow(clippy::cast_precision_loss)]
            let latency = latency_us as f64 / 1000.0;
            let _ = writeln!(html, "<h2>{figure}, {latency} ms on each link</h2>\n{}", chart(unit, &paths));
        }
        html.push_str("<h2>Ratios</h2>\n<table><tr><th>figure: ours / peer<th>latency<th>ours<th>peer<th>ratio<th>spread<th>n\n");
        for e in self.summary() {
            let [low, high] = e.spread;
            let _ = writeln!(
                html,
                "<tr class=\"{}\"><td>{}<td>{} ms<td>{}<td>{}<td>{:.2}<td>{low:.2} to {high:.2}<td>{}",
                if e.better { "better" } else { "worse" },
                e.name,
                e.latency_ms,
                shown(e.unit, e.ours),
                shown(e.unit, e.peer),
                e.ratio,
                e.n
            );
        }
        html.push_str("</table>\n");
        for f in &self.failures {
            let error = f.error.replace('&', "&amp;").replace('<', "&lt;");
            let _ = writeln!(html, "<p>Failed: {}, {}, {} ms: {error}</p>", f.figure, f.path, f.latency_ms);
        }
        html.push_str("</html>\n");
        html
    }
}

const PAGE_HEAD: &str = "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Ways out of Tor</title>\n\
<style>body{font:15px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}h2{font-size:1.1em;margin:1.6em 0 .3em}\
table{border-collapse:collapse}td,th{padding:.2em .6em;text-align:left;border-bottom:1px solid #ddd}\
.better td:nth-child(5){color:#06622b}.worse td:nth-child(5){color:#a11}</style>\n\
<h1>Ways out of Tor, side by side</h1>\n\
<p>Every path was measured in turn on one private network of C tor relays on one machine. Such figures mean something \
only against each other.</p>\n";

/// Bars, one a path, with the quartiles as a line.
fn chart(unit: Unit, paths: &BTreeMap<&str, Vec<f64>>) -> String {
    const LABEL: f64 = 290.0;
    const BAR: f64 = 460.0;
    const ROW: f64 = 26.0;
    let most = paths.values().flatten().copied().fold(f64::MIN_POSITIVE, f64::max);
    #[allow(clippy::cast_precision_loss)] // a handful of paths
    let height = paths.len() as f64 * ROW;
    let mut svg = format!("<svg viewBox=\"0 0 860 {height}\" width=\"860\" font-size=\"13\" role=\"img\">\n");
    let mut y = 0.0;
    for (path, values) in paths {
        let at = |q| stats::quantile(values, q).unwrap_or_default();
        let x = |value: f64| LABEL + BAR * (value / most).clamp(0.0, 1.0);
        let colour = if path.contains("exit bridge") { "#5b3fa0" } else { "#a9a4b8" };
        let middle = y + ROW / 2.0;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{path}</text>\
             <rect x=\"{LABEL}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>\
             <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"#222\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{}\">{}</text>",
            LABEL - 8.0,
            middle + 4.5,
            y + 4.0,
            x(at(0.5)) - LABEL,
            ROW - 8.0,
            x(at(0.25)),
            x(at(0.75)),
            x(at(0.75)).max(x(at(0.5))) + 8.0,
            middle + 4.5,
            shown(unit, at(0.5)),
        );
        y += ROW;
    }
    svg + "</svg>"
}

/// A value with its unit.
fn shown(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Milliseconds => format!("{value:.1} ms"),
        Unit::BytesPerSecond => format!("{:.2} MB/s", value / 1e6),
        Unit::CpuSecondsPer100Mb => format!("{value:.2} s"),
        Unit::SwitchesPer100Mb => format!("{:.1} k", value / 1e3),
        Unit::Kilobytes => format!("{value:.1} kB"),
        Unit::PerSecond if value > 1e6 => format!("{:.1} M/s", value / 1e6),
        Unit::PerSecond => format!("{value:.0} /s"),
        Unit::Count => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> (tempfile::TempDir, Report) {
        let dir = tempfile::tempdir().unwrap();
        let mut report = Report::new(dir.path(), Scheduler::Kist(10)).unwrap();
        for (path, values) in [(paths::CIRCUIT, [10.0, 12.0, 11.0]), (paths::PLAIN, [20.0, 24.0, 22.0])] {
            for value in values {
                report.add(Sample {
                    figure: "ttfb_warm".into(),
                    path: path.into(),
                    latency_ms: 20.0,
                    unit: Unit::Milliseconds,
                    value,
                });
            }
        }
        (dir, report)
    }

    #[test]
    fn summary_has_one_entry_for_each_pair_that_was_measured() {
        let (_dir, report) = report();
        let summary = report.summary();
        assert_eq!(summary.len(), 1);
        let entry = &summary[0];
        assert_eq!(entry.name, "ttfb_warm: circuit exit bridge / plain exit, C tor client");
        assert_eq!((entry.ours, entry.peer, entry.ratio, entry.n), (11.0, 22.0, 0.5, 3));
        assert!(entry.better);
    }

    #[test]
    fn files_are_written_and_the_page_holds_its_charts() {
        let (dir, mut report) = report();
        report.failed("page", paths::PLAIN, Duration::ZERO, &anyhow::anyhow!("a <b>"));
        report.write().unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        let summary: serde_json::Value = serde_json::from_str(&read("summary.json")).unwrap();
        assert_eq!(summary[0]["ratio"], 0.5);
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&read("raw.json")).unwrap()["samples"]
                .as_array()
                .unwrap()
                .len(),
            6
        );
        let page = read("index.html");
        assert!(page.contains("<svg") && page.contains("11.0 ms") && page.contains("a &lt;b>"));
        assert!(!page.contains("http://") && !page.contains("<script"), "the page needs nothing else");
    }
}
