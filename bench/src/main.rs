//! `bench`: ways out of Tor, measured in turn on one private network, so that their ratios mean something.
//!
//! The data path: [`paths`] brings up a network and every way to a target on it, [`figures`] measures them
//! one after the other and again (A B C A B C), [`stats`] makes medians and ratios of the samples, and
//! [`report`] writes them down. `docs/performance.md` says what the figures are.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod crypto;
mod directory;
mod engine;
mod figures;
mod fleet;
mod paths;
mod process;
mod report;
mod start;
mod stats;
mod visit;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use testnet::Scheduler;
use tokio::signal::unix::{SignalKind, signal};

use crate::figures::{Figure, Plan};
use crate::paths::Paths;
use crate::report::Report;

/// Measures exit bridges and their peers side by side on a private Tor network.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// One-way delay on each link to a relay or a proxy; one network is measured for each.
    #[arg(long, value_delimiter = ',', default_values = ["0ms", "20ms", "60ms"])]
    latency: Vec<humantime::Duration>,

    /// When C tor writes to its links: `kist10` (its default), `kist2` (every so many ms), or `vanilla`.
    #[arg(long, default_value = "kist10", value_parser = scheduler)]
    scheduler: Scheduler,

    /// Measure only these figures.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Figure>,

    /// Measure only the paths whose names contain one of these.
    #[arg(long, value_delimiter = ',')]
    paths: Vec<String>,

    /// Few samples and few bytes: to see that it works, not how fast.
    #[arg(long)]
    quick: bool,

    /// Samples of the figures that take long, for each path.
    #[arg(long)]
    rounds: Option<usize>,

    /// Where the results go.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

fn scheduler(text: &str) -> Result<Scheduler, String> {
    match text.strip_prefix("kist") {
        None if text == "vanilla" => Ok(Scheduler::Vanilla),
        Some(ms) => ms.parse().map(Scheduler::Kist).map_err(|_| "kist and a number of ms".to_owned()),
        None => Err("`vanilla`, or `kist` and a number of ms, such as kist10".to_owned()),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    // What runs is ended when the future is dropped, so a signal must not end the process first.
    let done = tokio::select! {
        done = run(Args::parse()) => done,
        error = told_to_stop() => Err(error),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Waits for Ctrl-C or SIGTERM.
async fn told_to_stop() -> anyhow::Error {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return anyhow::anyhow!("cannot handle SIGTERM");
    };
    tokio::select! { _ = tokio::signal::ctrl_c() => {}, _ = terminate.recv() => {} }
    anyhow::anyhow!("told to stop; what was measured so far is kept")
}

async fn run(args: Args) -> anyhow::Result<()> {
    process::raise_file_limit()?;
    let mut plan = if args.quick { Plan::quick() } else { Plan::default() };
    plan.rounds = args.rounds.unwrap_or(plan.rounds);
    let rounds = plan.rounds;
    let mut report = Report::new(&args.out, args.scheduler)?;
    let wanted = |figure: &Figure| args.only.is_empty() || args.only.contains(figure);
    if wanted(&Figure::Engine) && args.paths.is_empty() {
        eprintln!("== the egress engine alone, encryption alone");
        report = tokio::task::spawn_blocking(move || {
            engine::measure(rounds, &mut report)?;
            crypto::measure(rounds, &mut report)?;
            anyhow::Ok(report)
        })
        .await??;
        report.write()?;
    }
    if wanted(&Figure::Directory) && args.paths.is_empty() {
        eprintln!("== the exit-bridge directory alone");
        directory::measure(&plan, &mut report).await?;
        report.write()?;
    }
    if wanted(&Figure::Fleet) && args.paths.is_empty() {
        eprintln!("== fleets in an emulated cloud");
        let plan = plan.clone();
        report = tokio::task::spawn_blocking(move || fleet::measure(&plan, &mut report).map(|()| report))
            .await??;
        report.write()?;
    }
    let of_a_network: Vec<Figure> = Figure::OF_A_NETWORK.into_iter().filter(wanted).collect();
    if of_a_network.is_empty() {
        report.print();
        return Ok(());
    }
    for latency in args.latency {
        let latency = Duration::from(latency);
        eprintln!("== {latency:?} one way on each link");
        let paths = Paths::start(latency, args.scheduler, &args.paths).await?;
        for figure in &of_a_network {
            figures::measure(*figure, &paths, &plan, &mut report).await?;
            // After each, so that nothing is lost when a later one fails.
            report.write()?;
        }
        paths.shutdown().await?;
    }
    report.print();
    Ok(())
}
