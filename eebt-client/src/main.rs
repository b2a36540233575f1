//! `eebt-client`: parse arguments, load the configuration, run, exit code.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use eebt_client::blockers::ListSource;
use eebt_client::check::{Checked, Checker, Page};
use eebt_client::client::Ready;
use eebt_client::config::{parse_bridge_lines, parse_page};
use eebt_client::page;
use eebt_client::route::{Mode, Rule};
use eebt_client::selftest;
use eebt_client::{Client, Config, RunError};
use eebt_page::PlaceError;
use eebt_proto::{BridgeLine, Country, OnionReach};
use eebt_tor::{ConfigError, PathKind};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How many exit bridges are checked at once.
const LINES_AT_ONCE: usize = 16;

/// A local SOCKS and HTTP CONNECT proxy whose streams leave Tor through exit bridges.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, after_long_help = selftest::HINTS)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    args: Args,
}

#[derive(Subcommand)]
enum Command {
    /// Check this set-up: that nothing goes around Tor, as far as that can be seen without being root.
    ///
    /// Starts a client with the same options on a spare port, asks of it what a careless program could ask, and
    /// looks at its sockets. Exit code 0: no check failed; 1: one did.
    #[command(after_long_help = selftest::HINTS)]
    Selftest {
        /// Test the client that runs here, of which less can be seen; the other options are not used then.
        #[arg(long, value_name = "ADDR:PORT")]
        proxy: Option<SocketAddr>,
        /// A site to visit that speaks plain HTTP.
        #[arg(long, value_name = "HOST:PORT", default_value = "example.com:80", value_parser = host_and_port)]
        site: (String, u16),
        /// Print the report as JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        args: Box<Args>,
    },
    /// Check exit bridges: whether each works, and which pages turn it away.
    ///
    /// Exit code 0: all work; 1: one does not. A page that turns one away is told, and is no failure.
    Check {
        /// A page to visit through each, such as https://example.com/ (repeatable).
        #[arg(long = "visit", value_name = "URL")]
        pages: Vec<Page>,
        /// Read bridge lines from stdin as well, and answer as each comes.
        #[arg(long)]
        stdin: bool,
        /// Print one JSON document for each.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        args: Box<Args>,
    },
    /// Print the server descriptors of circuit exit bridges, which each is asked for over Tor: what C tor wants to know
    /// of them. `eebt attach` does that by itself.
    ///
    /// Exit code 0: all were had; 1: one was not.
    Descriptor {
        #[command(flatten)]
        args: Box<Args>,
    },
}

#[derive(clap::Args)]
struct Args {
    /// A bridge line (repeatable).
    #[arg(long = "bridge", value_name = "LINE")]
    bridges: Vec<BridgeLine>,
    /// A file of bridge lines, one a line; read again when it changes.
    #[arg(long, value_name = "FILE")]
    bridge_file: Option<PathBuf>,
    /// Onion address of an exit-bridge directory to ask for exit bridges (repeatable, or with commas).
    #[arg(long = "directory", value_name = "ONION", value_delimiter = ',')]
    directories: Vec<OnionReach>,
    /// Country that exit bridges from directories should be in, as two letters.
    #[arg(long, value_name = "CC")]
    country: Option<Country>,
    /// Where programs connect: SOCKS4a, SOCKS5 and HTTP CONNECT on each (repeatable).
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Vec<SocketAddr>,
    /// Where the local page is served, on loopback; "off" for no page.
    #[arg(long, value_name = "ADDR:PORT")]
    page: Option<String>,
    /// Print the address of the local page of the client that runs with this state folder, and end.
    #[arg(long)]
    print_page: bool,
    /// Which targets leave through an exit bridge.
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// PATTERN=exit-bridge, PATTERN=tor or PATTERN=auto, for modes `auto` and `rules`; the first that matches
    /// wins (repeatable).
    #[arg(long = "rule", value_name = "PATTERN=WAY")]
    rules: Vec<Rule>,
    /// Ask HTTPS sites for their first page, over a circuit of its own, to see whether they turn Tor away: once a day
    /// while this runs, for each who visits them.
    #[arg(long)]
    probe: bool,
    /// A list of hosts that turn Tor away: a file, or a URL that is fetched over Tor once a day.
    #[arg(long, value_name = "FILE|URL")]
    blocker_list: Option<ListSource>,
    /// Where to keep which targets turned Tor away, when the program ends, of programs without SOCKS credentials; not
    /// kept without it.
    #[arg(long, value_name = "FILE")]
    verdict_file: Option<PathBuf>,
    /// Relays before the exit bridge.
    #[arg(long, value_enum)]
    path: Option<PathKind>,
    /// Whether programs are told that they are connected before the exit bridge says so.
    #[arg(long, value_name = "BOOL")]
    optimistic: Option<bool>,
    /// Folder for guards and the cached consensus.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Arti settings that name another Tor network, for tests.
    #[arg(long, value_name = "FILE")]
    network: Option<PathBuf>,
    /// Configuration file (TOML); see deploy/eebt-client.example.toml.
    #[arg(long, env = "EEBT_CLIENT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Cli { command, args } = Cli::parse();
    let done = match command {
        None => {
            eebt_tor::init_log();
            run(args).map(|()| ExitCode::SUCCESS)
        }
        Some(Command::Selftest { proxy, site, json, args }) => run_selftest(proxy, &site, json, *args),
        Some(Command::Check { pages, stdin, json, args }) => run_check(pages, stdin, json, *args),
        Some(Command::Descriptor { args }) => run_descriptor(*args),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("eebt-client: {error:#}");
            if let Some(hint) = hint(&error) {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let print_page = args.print_page;
    let config = args.into_config()?;
    if print_page {
        print(&page::find(&config.state_folder()?)?);
        return Ok(());
    }
    let threads = config.threads;
    let client = Client::new(config)?;
    let (tokio, runtime) = eebt_tor::create_runtime(threads).context("cannot start the async runtime")?;
    let shutdown = CancellationToken::new();
    tokio.block_on(async move {
        eebt_tor::stop_on_signal(shutdown.clone()).context("cannot handle signals")?;
        let ready = |Ready { addresses, page, .. }: Ready<'_>| {
            for addr in addresses {
                eprintln!("ready: SOCKS5, SOCKS4a and HTTP CONNECT on {addr}");
            }
            // Its whole address lets one in: it is for the person and not for a journal.
            match page {
                Some(page) if std::io::stderr().is_terminal() => {
                    eprintln!("local page: {}", page.url())
                }
                Some(page) => {
                    eprintln!("local page: on {}; --print-page prints its whole address", page.addr())
                }
                None => {}
            }
        };
        client.run(runtime, shutdown, ready).await?;
        Ok(())
    })
}

fn run_selftest(
    proxy: Option<SocketAddr>,
    (host, port): &(String, u16),
    json: bool,
    args: Args,
) -> anyhow::Result<ExitCode> {
    if std::env::var_os("RUST_LOG").is_some() {
        eebt_tor::init_log(); // else the report speaks for itself
    }
    let (tokio, runtime) = eebt_tor::create_runtime(1).context("cannot start the async runtime")?;
    let site = (host.as_str(), *port);
    let report = match proxy {
        Some(proxy) => tokio.block_on(selftest::running(proxy, site)),
        None => {
            let config = args.into_config()?;
            eprintln!("this takes up to some minutes");
            tokio.block_on(selftest::own(config, site, runtime))?
        }
    };
    if json {
        print(&serde_json::to_string(&report)?);
    } else {
        print(report.to_string().trim_end());
        eprintln!("\n{}", selftest::HINTS);
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_check(pages: Vec<Page>, stdin: bool, json: bool, args: Args) -> anyhow::Result<ExitCode> {
    if std::env::var_os("RUST_LOG").is_some() {
        eebt_tor::init_log();
    }
    let config = args.into_config()?;
    let lines = given_lines(&config)?;
    if lines.is_empty() && !stdin {
        return Err(no_line("check").into());
    }
    let (sender, mut more) = mpsc::channel(LINES_AT_ONCE);
    std::thread::spawn(move || {
        let from_stdin = std::io::stdin().lines().map_while(Result::ok).take_while(|_| stdin);
        let from_stdin = from_stdin.flat_map(|text| parse_bridge_lines(&text, "stdin"));
        lines.into_iter().chain(from_stdin).try_for_each(|line| sender.blocking_send(line).ok())
    });
    let (tokio, runtime) = eebt_tor::create_runtime(1).context("cannot start the async runtime")?;
    tokio.block_on(async {
        let checker = Checker::start(&config, pages, runtime).await?;
        let (mut checks, mut number, mut all_work) = (FuturesUnordered::new(), 0, true);
        let mut open = true;
        while open || !checks.is_empty() {
            tokio::select! {
                line = more.recv(), if open && checks.len() < LINES_AT_ONCE => match line {
                    Some(line) => {
                        number += 1;
                        let checker = &checker;
                        checks.push(async move {
                            match line {
                                Ok(line) => checker.check(number, &line).await,
                                Err(error) => Checked::unusable(number, &error),
                            }
                        });
                    }
                    None => open = false,
                },
                Some(checked) = checks.next() => {
                    all_work &= checked.serves;
                    if json {
                        print(&serde_json::to_string(&checked)?);
                    } else {
                        print(&checked.to_string());
                    }
                }
            }
        }
        Ok(if all_work { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

fn run_descriptor(args: Args) -> anyhow::Result<ExitCode> {
    if std::env::var_os("RUST_LOG").is_some() {
        eebt_tor::init_log();
    }
    let config = args.into_config()?;
    let lines = given_lines(&config)?.into_iter().collect::<Result<Vec<_>, _>>()?;
    if lines.is_empty() {
        return Err(no_line("ask").into());
    }
    let (tokio, runtime) = eebt_tor::create_runtime(1).context("cannot start the async runtime")?;
    tokio.block_on(async {
        let checker = Checker::start(&config, Vec::new(), runtime).await?;
        let asked = lines.iter().map(|line| checker.server_descriptor(line));
        let mut all = true;
        for (index, descriptor) in futures::future::join_all(asked).await.into_iter().enumerate() {
            match descriptor {
                Ok(text) => print(text.trim_end()),
                Err(error) => {
                    all = false;
                    eprintln!("eebt-client: line {}: {error:#}", index + 1);
                }
            }
        }
        Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// The bridge lines of the configuration and of the file that it names.
fn given_lines(config: &Config) -> Result<Vec<Result<BridgeLine, ConfigError>>, ConfigError> {
    let mut lines: Vec<_> = config.bridges.iter().cloned().map(Ok).collect();
    if let Some(path) = &config.bridge_file {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        lines.extend(parse_bridge_lines(&text, &path.display().to_string()));
    }
    Ok(lines)
}

fn no_line(what: &str) -> ConfigError {
    ConfigError::field("bridges", format!("no bridge line is given, so there is nothing to {what}"))
}

fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let wrong = || "expected HOST:PORT".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok((host.to_owned(), port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?))
}

/// The one place that writes to stdout: data.
#[allow(clippy::print_stdout)]
fn print(text: &str) {
    println!("{text}");
}

impl Args {
    /// The file's settings with the flags over them.
    fn into_config(self) -> Result<Config, ConfigError> {
        let mut config: Config = eebt_tor::load_config(self.config.as_deref(), &[])?;
        config.bridges.extend(self.bridges);
        config.directories.extend(self.directories);
        config.country = self.country.or(config.country);
        if !self.listen.is_empty() {
            config.listen = self.listen;
        }
        if let Some(page) = &self.page {
            config.page = parse_page(page).map_err(|problem| ConfigError::field("page", problem))?;
        }
        if !self.rules.is_empty() {
            config.rules = self.rules;
        }
        config.bridge_file = self.bridge_file.or(config.bridge_file);
        config.mode = self.mode.unwrap_or(config.mode);
        config.probe |= self.probe;
        config.blocker_list = self.blocker_list.or(config.blocker_list);
        config.verdict_file = self.verdict_file.or(config.verdict_file);
        config.path = self.path.unwrap_or(config.path);
        config.optimistic = self.optimistic.unwrap_or(config.optimistic);
        config.state_dir = self.state_dir.or(config.state_dir);
        config.network = self.network.or(config.network);
        Ok(config)
    }
}

/// What to try, for errors where that is known.
fn hint(error: &anyhow::Error) -> Option<&'static str> {
    if let Some(PlaceError::NotRunning { .. }) = error.downcast_ref() {
        return Some(
            "it is there once the client is ready; --state-dir or --config must be the same as there",
        );
    }
    let config = match error.downcast_ref::<RunError>() {
        Some(RunError::Listen { .. }) => {
            return Some(
                "is another program there, Tor Browser perhaps? --listen 127.0.0.1:9250 takes another port",
            );
        }
        Some(RunError::Page { .. }) => {
            return Some("is another program there? --page 127.0.0.1:0 takes any free port, --page off none");
        }
        Some(RunError::Tor(_) | RunError::Circuits(_) | RunError::Onion(_)) => {
            return Some("is the Internet reachable, and the clock right?");
        }
        Some(RunError::Probe(_)) => return Some("is the package ca-certificates installed?"),
        Some(RunError::Config(config)) => Some(config),
        None => error.downcast_ref::<ConfigError>(),
    };
    match config? {
        ConfigError::Line { .. } => Some("copy the whole line, as `eebt up` printed it"),
        ConfigError::Field { field: "bridges", .. } => {
            Some("an operator's `eebt up` prints bridge lines; put one in quotes after --bridge")
        }
        ConfigError::Parse { .. } | ConfigError::Field { .. } => {
            Some("deploy/eebt-client.example.toml documents every key")
        }
        ConfigError::Read { .. } => Some("is the path right, and may this user read it?"),
        ConfigError::Write { .. } => Some("does the folder exist, and may this user write there?"),
        _ => None,
    }
}
