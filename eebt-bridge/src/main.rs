//! `eebt-bridge`: parse arguments, load the configuration, run, exit code.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use eebt_bridge::config::ReachKind;
use eebt_bridge::server_descriptor::server_descriptor;
use eebt_bridge::{BridgeKeys, Config, ExitBridge};
use eebt_proto::{BridgeLine, Reach};
use eebt_tor::ConfigError;
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
    /// Print the server descriptor by which C tor can be told of it (POSTDESCRIPTOR). C tor forgets it after two days.
    Descriptor(WithConfig),
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
            print_lines(&circuit.into_iter().chain(onion).map(line).collect::<Vec<_>>());
            Ok(())
        }
        Command::Descriptor(args) => {
            let config = args.load()?;
            if !config.reach.contains(&ReachKind::Circuit) {
                let problem = "has no circuit, and only circuits can be extended by C tor";
                return Err(ConfigError::field("reach", problem).into());
            }
            let (address, keys) = (fixed_address(&config)?, BridgeKeys::load(&config.keys)?);
            let text = server_descriptor(&keys, address, &config.policy, SystemTime::now())?;
            print(&text);
            Ok(())
        }
        Command::Run(args) => serve(args.load()?),
    }
}

/// The address in the bridge line, where it is known before the exit bridge runs.
fn fixed_address(config: &Config) -> anyhow::Result<SocketAddr> {
    let problem = "not set, and listen has no fixed address and port to take its place";
    let address =
        config.address.or(Some(config.listen).filter(|a| a.port() != 0 && !a.ip().is_unspecified()));
    Ok(address.ok_or_else(|| ConfigError::field("address", problem))?)
}

fn serve(config: Config) -> anyhow::Result<()> {
    eebt_tor::raise_file_limit();
    let _pid_file = config.pid_file.as_deref().map(eebt_tor::PidFile::write).transpose()?;
    let (tokio, runtime) =
        eebt_tor::create_runtime(config.threads).context("cannot start the async runtime")?;
    let bridge = ExitBridge::new(config)?;
    let shutdown = CancellationToken::new();
    tokio.block_on(async move {
        eebt_tor::stop_on_signal(shutdown.clone()).context("cannot handle signals")?;
        bridge.run(runtime, shutdown, |lines, _| print_lines(lines)).await?;
        Ok(())
    })
}

fn print_lines(lines: &[BridgeLine]) {
    lines.iter().for_each(|line| print(&format!("{line}\n")));
}

/// The one place that writes to stdout: data.
#[allow(clippy::print_stdout)]
fn print(text: &str) {
    print!("{text}");
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
    use eebt_bridge::keys::KeysError;
    if let Some(KeysError::Exist(_)) = error.downcast_ref() {
        return Some("an exit bridge keeps its keys for life; choose another folder for a new one");
    }
    if let Some(KeysError::Missing(_)) = error.downcast_ref() {
        return Some("make them with: eebt-bridge keygen --keys DIR");
    }
    let config = match error.downcast_ref() {
        Some(RunError::Listen { .. }) => {
            return Some("is the port taken, or is the address none of this machine's?");
        }
        Some(RunError::Tor(_)) => return Some("is the Internet reachable, and the clock right?"),
        Some(RunError::Keys(KeysError::Folder(_))) => {
            return Some("the folder must belong to you alone: chmod 700");
        }
        Some(RunError::Config(config)) => Some(config),
        Some(_) => None,
        None => error.downcast_ref(),
    };
    match config? {
        ConfigError::Field { .. } | ConfigError::Parse { .. } => {
            Some("deploy/eebt-bridge.example.toml documents every key")
        }
        ConfigError::Read { .. } => Some("is the path right, and may this user read it?"),
        ConfigError::Write { .. } => Some("does the folder exist, and may this user write there?"),
        _ => None,
    }
}
