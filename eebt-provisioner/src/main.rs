//! `eebt`: the operator's command line for fleets of exit bridges.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod cmds;
mod print;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use clap::{Parser, Subcommand};
use eebt_provisioner::Fleet;

use crate::print::{Printer, Usage};

/// Starts, lists and ends short-lived exit bridges for Tor.
#[derive(Parser)]
#[command(name = "eebt", version)]
struct Args {
    /// Where the fleet is remembered [default: the XDG state folder of eebt]
    #[arg(long, global = true, value_name = "DIR", env = "EEBT_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Say only what went wrong
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start exit bridges and print the bridge line of each as soon as it serves
    Up(Box<cmds::up::Args>),
    /// Keep so many exit bridges at work, until this program is stopped
    Run(Box<cmds::run::Args>),
    /// Say how the fleet is, and what `eebt run` makes of it
    Status(cmds::status::Args),
    /// Draw the fleet over time
    History(cmds::history::Args),
    /// List the exit bridges of this fleet
    Ls(cmds::ls::Args),
    /// End exit bridges, letting their streams finish first
    Down(cmds::down::Args),
    /// Look through a cloud for machines of this fleet, and clean up after them
    Gc(cmds::gc::Args),
    /// Look whether machines of a cloud can be bought, before any is
    Doctor(cmds::doctor::Args),
    /// Say what machines cost, and will
    Cost(cmds::cost::Args),
    /// Show what an exit bridge wrote to its log
    Logs(cmds::logs::Args),
    /// Have a C tor that runs here, Tor Browser's for one, leave through exit bridges
    Attach(cmds::attach::Args),
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(err) if err.use_stderr() => return Printer::new(false).failure(&usage(&err).into()),
        Err(help) => help.exit(),
    };
    let printer = Printer::new(args.quiet);
    match run(args, &printer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => printer.failure(&err),
    }
}

/// What clap says over several lines, in our form.
fn usage(err: &clap::Error) -> Usage {
    let text = err.to_string();
    let what = text.split("\n\n").next().unwrap_or(&text);
    let what: Vec<&str> = what.lines().map(str::trim).collect();
    let what = what.join(" ");
    let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
    Usage::new(
        what.trim_start_matches("error: "),
        tip.unwrap_or("`eebt help COMMAND` lists what can be given"),
    )
}

fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let dir = match args.state_dir {
        Some(dir) if dir.as_os_str().is_empty() => {
            return Err(Usage::new("--state-dir: is empty", "name a folder, or leave it out").into());
        }
        Some(dir) => dir,
        None => directories::ProjectDirs::from("", "", "eebt")
            .map(|dirs| dirs.state_dir().unwrap_or(dirs.data_local_dir()).to_owned())
            .context("no home folder to keep state in; name one with --state-dir")?,
    };
    // Before anything is written anywhere.
    match &args.command {
        Command::Up(args) => args.check()?,
        Command::Run(args) => args.check()?,
        _ => {}
    }
    let (fleet, news) = Fleet::open(&dir, SystemTime::now())?;
    for news in news {
        printer.news(&news);
    }
    match args.command {
        Command::Up(args) => args.run(&fleet, printer),
        Command::Run(args) => args.run(&fleet, printer),
        Command::Status(args) => args.run(&fleet, printer),
        Command::History(args) => args.run(&fleet, printer),
        Command::Ls(args) => args.run(&fleet, printer),
        Command::Down(args) => args.run(&fleet, printer),
        Command::Gc(args) => args.run(&fleet, printer),
        Command::Doctor(args) => args.run(&fleet, printer),
        Command::Cost(args) => args.run(&fleet, printer),
        Command::Logs(args) => args.run(&fleet, printer),
        Command::Attach(args) => args.run(&fleet, printer),
    }
}
