//! What is measured, and how: each figure goes round all paths, again and again.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::ValueEnum;
use futures::future::try_join_all;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};

use crate::paths::{self, Path, Paths};
use crate::process::{Cost, memory};
use crate::report::{Report, Sample};
use crate::{start, visit};

/// A group of figures that are measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Figure {
    /// Time to the first byte of a body, on a circuit that is in use.
    TtfbWarm,
    /// The same for somebody who comes for the first time.
    TtfbCold,
    /// Time to the first byte of a page that is refused to Tor, for those who open it, on circuits that are in use.
    TtfbBlocked,
    /// Time to load a page of 40 resources on 6 hosts.
    Page,
    /// One large download, with what it costs.
    Download,
    /// One large upload.
    Upload,
    /// 20 downloads at once.
    Parallel,
    /// New streams in a second.
    Streams,
    /// Memory of streams that carry nothing.
    Idle,
    /// From the start of an exit bridge until it can be used.
    Start,
    /// The egress engine and encryption alone, without Tor.
    Engine,
    /// The exit-bridge directory alone, without Tor.
    Directory,
    /// `eebt` with a large fleet in an emulated cloud, without Tor.
    Fleet,
}

impl Figure {
    /// Those of a network, in the order in which they are measured.
    pub const OF_A_NETWORK: [Self; 10] = [
        Self::TtfbWarm,
        Self::TtfbCold,
        Self::TtfbBlocked,
        Self::Page,
        Self::Download,
        Self::Upload,
        Self::Parallel,
        Self::Streams,
        Self::Idle,
        Self::Start,
    ];

    /// Whether it is worth its time on this way. Some ways differ from others in a few figures only.
    fn is_for(self, path: &Path) -> bool {
        let first_bytes = matches!(self, Self::TtfbWarm | Self::TtfbCold);
        match path.name {
            paths::AUTO => matches!(self, Self::TtfbWarm | Self::TtfbCold | Self::TtfbBlocked),
            paths::AUTO_AGAIN => self == Self::TtfbBlocked,
            paths::ONION_DIRECT | paths::ONION_ANONYMOUS => matches!(self, Self::TtfbWarm | Self::Download),
            paths::UNLISTED => first_bytes || self == Self::Download,
            paths::CIRCUIT => true,
            _ => self != Self::TtfbBlocked,
        }
    }
}

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Samples of quick figures, for each path.
    samples: usize,
    /// Samples of figures that take long.
    pub rounds: usize,
    /// Bytes of the large transfers.
    bytes: u64,
    /// Longest time for one of them; what came until then counts.
    limit: Duration,
    /// Streams opened for the rate of new ones.
    streams: usize,
    /// Streams that are held.
    idle: usize,
    /// Exit bridges that are registered with the directory.
    pub exit_bridges: u32,
    /// Times that it is asked for some.
    pub asks: usize,
    /// Is it only to be seen that it works?
    pub quick: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            samples: 30,
            rounds: 3,
            bytes: 50_000_000,
            limit: Duration::from_secs(15),
            streams: 100,
            idle: 1000,
            exit_bridges: 100_000,
            asks: 40_000,
            quick: false,
        }
    }
}

impl Plan {
    /// A little of everything.
    pub fn quick() -> Self {
        Self {
            samples: 3,
            rounds: 1,
            bytes: 5_000_000,
            limit: Duration::from_secs(10),
            streams: 20,
            idle: 50,
            exit_bridges: 5000,
            asks: 4000,
            quick: true,
        }
    }
}

/// What a value is, and which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Less is better.
    Milliseconds,
    /// More is better.
    BytesPerSecond,
    /// Less is better: seconds on a processor for 100 MB.
    CpuSecondsPer100Mb,
    /// Less is better: context switches for 100 MB.
    SwitchesPer100Mb,
    /// Less is better.
    Kilobytes,
    /// More is better.
    PerSecond,
    /// Less is better.
    Count,
}

impl Unit {
    /// Is a smaller value the better one?
    pub fn less_is_better(self) -> bool {
        !matches!(self, Self::BytesPerSecond | Self::PerSecond)
    }
}

/// Measures one figure on all paths, in turn.
pub async fn measure(figure: Figure, paths: &Paths, plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let name = figure.to_possible_value().map_or_else(String::new, |v| v.get_name().replace('-', "_"));
    eprintln!("   {name}");
    match figure {
        Figure::Idle => return idle(paths, plan, report).await,
        Figure::Start => return start::measure(paths, plan, report).await,
        _ => {}
    }
    let rounds = match figure {
        Figure::TtfbWarm | Figure::TtfbCold | Figure::TtfbBlocked => plan.samples,
        _ => plan.rounds,
    };
    for round in 0..rounds {
        for path in paths.all.iter().filter(|path| figure.is_for(path)) {
            let mut note = |figure: &str, unit: Unit, value: f64| {
                report.add(Sample {
                    figure: figure.to_owned(),
                    path: path.name.to_owned(),
                    latency_ms: paths.latency.as_secs_f64() * 1000.0,
                    unit,
                    value,
                });
            };
            let one = async {
                match figure {
                    Figure::TtfbWarm => {
                        let took = ttfb(path, paths.origin(), "warm").await?;
                        note(&name, Unit::Milliseconds, took);
                    }
                    Figure::TtfbCold => {
                        let took = ttfb(path, paths.origin(), &format!("cold-{round}")).await?;
                        note(&name, Unit::Milliseconds, took);
                        // The circuits that are built ahead for the next one are not part of what comes next.
                        tokio::time::sleep(2 * paths.latency + Duration::from_millis(200)).await;
                    }
                    Figure::TtfbBlocked => {
                        note(&name, Unit::Milliseconds, ttfb(path, paths.blocking(), "warm").await?);
                    }
                    Figure::Page => note(&name, Unit::Milliseconds, page(paths, path).await?),
                    Figure::Download => download(paths, path, plan, &mut note).await?,
                    Figure::Upload => {
                        let mut stream = path.connect("bulk", paths.origin()).await?;
                        let rate = visit::upload(&mut stream, &host(paths), plan.bytes, plan.limit).await?;
                        note(&name, Unit::BytesPerSecond, rate);
                    }
                    Figure::Parallel => {
                        note(&name, Unit::BytesPerSecond, parallel(paths, path, plan).await?);
                    }
                    Figure::Streams => {
                        note(&name, Unit::PerSecond, new_streams(paths, path, plan).await?);
                    }
                    Figure::Idle | Figure::Start | Figure::Engine | Figure::Directory | Figure::Fleet => {}
                }
                anyhow::Ok(())
            };
            // One path that fails says so, and the others go on.
            if let Err(error) = one.await {
                report.failed(&name, path.name, paths.latency, &error);
            }
        }
    }
    Ok(())
}

fn host(paths: &Paths) -> String {
    paths.origin().to_string()
}

/// From nothing to the first byte of a small body, in ms.
pub async fn ttfb(path: &Path, origin: SocketAddr, group: &str) -> anyhow::Result<f64> {
    let start = Instant::now();
    let mut stream = path.connect(group, origin).await?;
    // A page that its origin sends in one piece, head and body.
    let at = visit::first_byte(&mut stream, &origin.to_string(), "/").await?;
    Ok((at - start).as_secs_f64() * 1000.0)
}

/// Sizes of what a page consists of; the first is the page itself.
const RESOURCES: [u64; 8] = [30_000, 2_000, 5_000, 12_000, 20_000, 40_000, 80_000, 8_000];

/// Resources of the page, and hosts that they come from.
const PAGE: (usize, usize) = (40, 6);

/// Streams that a browser opens to one host.
const PER_HOST: usize = 6;

/// Loads a page, then what it refers to, as a browser does over HTTP/1.1: up to six streams to each host,
/// used again. In ms.
async fn page(paths: &Paths, path: &Path) -> anyhow::Result<f64> {
    let host = host(paths);
    let fetch = async |stream: &mut visit::Stream, n: usize| {
        visit::get(stream, &host, &format!("/bulk/{}", RESOURCES[n % RESOURCES.len()])).await
    };
    let start = Instant::now();
    let mut first = path.connect("page", paths.origin()).await?;
    fetch(&mut first, 0).await?;
    let (resources, hosts) = PAGE;
    // The resources of each stream; each host has its own streams.
    let mut streams: Vec<Vec<usize>> = vec![Vec::new(); hosts * PER_HOST];
    for n in 1..resources {
        let (at_host, nth) = (n % hosts, n / hosts);
        streams[at_host * PER_HOST + nth % PER_HOST].push(n);
    }
    let loads = streams.into_iter().filter(|queue| !queue.is_empty()).map(async |queue| {
        let mut stream = path.connect("page", paths.origin()).await?;
        for n in queue {
            fetch(&mut stream, n).await?;
        }
        anyhow::Ok(())
    });
    try_join_all(loads).await?;
    Ok(start.elapsed().as_secs_f64() * 1000.0)
}

/// A large download and its price: on the path's own processes, and on all.
async fn download(
    paths: &Paths,
    path: &Path,
    plan: &Plan,
    note: &mut impl FnMut(&str, Unit, f64),
) -> anyhow::Result<()> {
    let own: Vec<u32> = path.processes.iter().map(|(_, pid)| *pid).collect();
    let mut all = paths.tors();
    all.extend(&own);
    all.sort_unstable();
    all.dedup();
    let mut stream = path.connect("bulk", paths.origin()).await?;
    let before: Vec<Cost> = path.processes.iter().map(|(_, pid)| Cost::of(&[*pid])).collect();
    let (own_before, all_before) = (Cost::of(&own), Cost::of(&all));
    let start = Instant::now();
    let rate = visit::download(&mut stream, &host(paths), plan.bytes, plan.limit).await?;
    let moved = rate * start.elapsed().as_secs_f64();
    let per_100_mb = 1e8 / moved;
    note("download", Unit::BytesPerSecond, rate);
    note("cpu_of_all", Unit::CpuSecondsPer100Mb, Cost::of(&all).since(all_before).cpu * per_100_mb);
    let own_cost = Cost::of(&own).since(own_before);
    note("cpu_of_ends", Unit::CpuSecondsPer100Mb, own_cost.cpu * per_100_mb);
    note("switches_of_ends", Unit::SwitchesPer100Mb, own_cost.switches * per_100_mb);
    for ((name, pid), before) in path.processes.iter().zip(before) {
        let cost = Cost::of(&[*pid]).since(before);
        let name = name.replace(['-', ' '], "_");
        note(&format!("cpu_of_{name}"), Unit::CpuSecondsPer100Mb, cost.cpu * per_100_mb);
        note(&format!("switches_of_{name}"), Unit::SwitchesPer100Mb, cost.switches * per_100_mb);
        let peak = memory(*pid).context("a process has ended")?.1;
        note(&format!("peak_memory_of_{name}"), Unit::Kilobytes, peak);
    }
    Ok(())
}

/// Bytes per second of 20 downloads at once.
async fn parallel(paths: &Paths, path: &Path, plan: &Plan) -> anyhow::Result<f64> {
    let (host, each) = (host(paths), plan.bytes / 50);
    let start = Instant::now();
    let got = try_join_all((0..20).map(async |_| {
        let mut stream = path.connect("bulk", paths.origin()).await?;
        visit::get(&mut stream, &host, &format!("/bulk/{each}")).await
    }))
    .await?;
    Ok(visit::rate(got.iter().sum(), start))
}

/// Small requests in a second, each on a stream of its own, 20 at once.
async fn new_streams(paths: &Paths, path: &Path, plan: &Plan) -> anyhow::Result<f64> {
    let host = host(paths);
    let start = Instant::now();
    stream::iter(0..plan.streams)
        .map(async |_| {
            let mut stream = path.connect("streams", paths.origin()).await?;
            visit::get(&mut stream, &host, "/bulk/100").await
        })
        .buffer_unordered(20)
        .try_fold(0, async |sum, n| Ok(sum + n))
        .await?;
    #[allow(clippy::cast_precision_loss)]
    Ok(plan.streams as f64 / start.elapsed().as_secs_f64())
}

/// Memory that each stream costs that was used once and then held, in each process of the path.
async fn idle(paths: &Paths, plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let host = host(paths);
    for path in paths.all.iter().filter(|path| Figure::Idle.is_for(path)) {
        let resident = || -> Vec<f64> {
            path.processes.iter().map(|(_, pid)| memory(*pid).unwrap_or_default().0).collect()
        };
        let hold = async {
            let before = resident();
            let held: Vec<_> = stream::iter(0..plan.idle)
                .map(async |_| {
                    let mut stream = path.connect("idle", paths.origin()).await?;
                    visit::get(&mut stream, &host, "/bulk/1000").await?;
                    anyhow::Ok(stream)
                })
                .buffer_unordered(50)
                .try_collect()
                .await?;
            let after = resident();
            drop(held);
            anyhow::Ok((before, after))
        };
        match hold.await {
            Ok((before, after)) => {
                for (((name, _), before), after) in path.processes.iter().zip(before).zip(after) {
                    #[allow(clippy::cast_precision_loss)]
                    let each = (after - before) / plan.idle as f64;
                    report.add(Sample {
                        figure: format!("idle_stream_in_{}", name.replace(['-', ' '], "_")),
                        path: path.name.to_owned(),
                        latency_ms: paths.latency.as_secs_f64() * 1000.0,
                        unit: Unit::Kilobytes,
                        value: each,
                    });
                }
            }
            Err(error) => report.failed("idle", path.name, paths.latency, &error),
        }
    }
    Ok(())
}
