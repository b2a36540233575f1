//! `testnet`: a private Tor network and origins that block Tor, for a shell.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod commands;
mod options;
mod output;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A private Tor network on loopback, and web sites that block Tor.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a network in the background and return when it is ready.
    Up(commands::up::Up),
    /// Start a network and keep it up until Ctrl-C or SIGTERM.
    Run(commands::run::Run),
    /// Stop a network that `up` or `run` started.
    Down(commands::down::Down),
    /// Show whether a network is up, and where everything is.
    Status(commands::status::Status),
    /// Start a network, run a command that finds it in TESTNET_* variables, stop the network.
    Exec(commands::exec::Exec),
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Up(up) => up.run().await,
        Command::Run(run) => run.run().await,
        Command::Down(down) => down.run().await,
        Command::Status(status) => status.run(),
        Command::Exec(exec) => exec.run().await,
    };
    done.unwrap_or_else(|error| {
        output::error(&error);
        ExitCode::FAILURE
    })
}
