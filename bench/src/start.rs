//! How long it takes until an exit bridge that was not there can be used.

use std::time::Instant;

use crate::figures::{Plan, Unit, ttfb};
use crate::paths::{self, LOG, Path, Paths};
use crate::report::{Report, Sample};

/// An operator's `eebt up` and a person's client, both started from nothing.
pub const UP: &str = "eebt up, then eebt-client";

/// Measures exit bridges of both kinds until they say that they can be reached, and `eebt up` until
/// the first byte of a page that comes through what it started.
pub async fn measure(paths: &Paths, plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    for _ in 0..plan.rounds {
        let mut note = |figure: &str, path: &str, start: Instant| {
            report.add(Sample {
                figure: figure.to_owned(),
                path: path.to_owned(),
                latency_ms: paths.latency.as_secs_f64() * 1000.0,
                unit: Unit::Milliseconds,
                value: start.elapsed().as_secs_f64() * 1000.0,
            });
        };
        for (path, is_onion) in [(paths::CIRCUIT, false), (paths::ONION, true)] {
            let start = Instant::now();
            let bridge = paths.lab.bridge().log(LOG);
            let bridge = if is_onion { bridge.onion() } else { bridge.behind(paths.latency).await? };
            let bridge = bridge.run().await?;
            note("start_to_reachable", path, start);
            drop(bridge);
        }
        let operator = paths.lab.operator();
        let start = Instant::now();
        let lines = operator.lines("1", "10m").await?;
        let client = lines.iter().fold(paths.lab.client(), |client, line| client.via_line(line));
        let client = client.log(LOG).run().await?;
        ttfb(&Path::socks(UP, client.proxy), paths.blocking(), "start").await?;
        note("up_to_first_byte", UP, start);
        operator.run(&["down", "--all"]).await?;
    }
    Ok(())
}
