//! `eebt-bridge`: parse arguments, load the configuration, run, exit code.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use eebt_bridge::config::ReachKind;
use eebt_bridge::{BridgeKeys, Config, ExitBridge};
use eebt_proto::{BridgeLine, Reach};
use tokio_util::sync::CancellationToken;

/// An exit bridge: a short-lived way out of Tor that is on no list.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the keys of a new exit bridge.
    Keygen {
        /// Folder to make them in.
        #[arg(long, default_value = "keys")]
        keys: PathBuf,
    },
    /// Print the bridge line that clients need.
    Line(WithConfig),
    /// Run the exit bridge. Its bridge line is printed when it serves.
    Run(WithConfig),
}

#[derive(clap::Args)]
struct WithConfig {
    /// Configuration file (TOML); see deploy/eebt-bridge.example.toml.
    #[arg(long, env = "EEBT_BRIDGE_CONFIG")]
    config: Option<PathBuf>,
    /// Any key of the configuration, such as --set listen=0.0.0.0:44321 (repeatable).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Local address of connections to targets; the same as --set egress_address=IP.
    #[arg(long, value_name = "IP")]
    egress_address: Option<IpAddr>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    eebt_tor::init_log();
    match run(args.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("eebt-bridge: {error:#}");
            if let Some(hint) = hint(&error) {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Keygen { keys } => {
            BridgeKeys::generate(&keys)?;
            eprintln!("keys made in {}", keys.display());
            Ok(())
        }
        Command::Line(args) => {
            let config = args.load()?;
            let address = match config.reach.contains(&ReachKind::Circuit) {
                true => Some(fixed_address(&config)?),
                false => None,
            };
            let keys = BridgeKeys::load(&config.keys)?;
            let circuit = address.map(|address| Reach::Circuit(keys.circuit_reach(vec![address])));
            let onion = config.reach.contains(&ReachKind::Onion).then(|| Reach::Onion(keys.onion_reach()));
            let line = |reach| BridgeLine { reach, ports: config.policy.clone(), expires: config.expires };
            print(&circuit.into_iter().chain(onion).map(line).collect::<Vec<_>>());
            Ok(())
        }
        Command::Run(args) => serve(args.load()?),
    }
}

/// The address in the bridge line, where it is known before the exit bridge runs.
fn fixed_address(config: &Config) -> anyhow::Result<SocketAddr> {
    config
        .address
        .or(Some(config.listen).filter(|a| a.port() != 0 && !a.ip().is_unspecified()))
        .context("address: not set, and listen has no fixed address and port to take its place")
}

fn serve(config: Config) -> anyhow::Result<()> {
    raise_file_limit();
    let _pid_file = config.pid_file.clone().map(PidFile::write).transpose()?;
    let (tokio, runtime) =
        eebt_tor::create_runtime(config.threads).context("cannot start the async runtime")?;
    let bridge = ExitBridge::new(config)?;
    let shutdown = CancellationToken::new();
    tokio.block_on(async move {
        stop_on_signal(shutdown.clone())?;
        bridge.run(runtime, shutdown, print).await?;
        Ok(())
    })
}

/// Each stream takes a file descriptor, and the usual soft limit of 1024 is for programs of old.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// The one place that writes to stdout: data, bridge lines.
#[allow(clippy::print_stdout)]
fn print(lines: &[BridgeLine]) {
    lines.iter().for_each(|line| println!("{line}"));
}

/// SIGTERM or Ctrl-C: stop taking streams and drain. A second one ends at once, by default.
fn stop_on_signal(shutdown: CancellationToken) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle Ctrl-C")?;
    tokio::spawn(async move {
        let next = async || tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} };
        let mut next = next;
        next().await;
        shutdown.cancel();
        next().await;
        tracing::warn!("told to stop twice: streams are cut");
        std::process::exit(1);
    });
    Ok(())
}

/// Holds the process id while this lives.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: PathBuf) -> anyhow::Result<Self> {
        std::fs::write(&path, format!("{}\n", std::process::id()))
            .with_context(|| format!("pid_file: cannot write {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

impl WithConfig {
    fn load(&self) -> anyhow::Result<Config> {
        let egress = self.egress_address.map(|ip| format!("egress_address={ip}"));
        let settings: Vec<String> = self.settings.iter().cloned().chain(egress).collect();
        Ok(Config::load_with(self.config.as_deref(), &settings)?)
    }
}

/// What to try, for errors where that is known.
fn hint(error: &anyhow::Error) -> Option<&'static str> {
    use eebt_bridge::RunError;
    use eebt_bridge::config::ConfigError;
    use eebt_bridge::keys::KeysError;
    if let Some(KeysError::Exist(_)) = error.downcast_ref() {
        return Some("an exit bridge keeps its keys for life; choose another folder for a new one");
    }
    if let Some(KeysError::Missing(_)) = error.downcast_ref() {
        return Some("make them with: eebt-bridge keygen --keys DIR");
    }
    match error.downcast_ref()? {
        RunError::Listen { .. } => Some("is the port taken, or is the address none of this machine's?"),
        RunError::Tor(_) => Some("is the Internet reachable, and the clock right?"),
        RunError::Config(ConfigError::Field { .. } | ConfigError::Parse { .. }) => {
            Some("deploy/eebt-bridge.example.toml documents every key")
        }
        RunError::Keys(KeysError::Folder(_)) => Some("the folder must belong to you alone: chmod 700"),
        _ => None,
    }
}
