//! `hebtor-directory`: parse arguments, load the configuration, run, exit code.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use eebt_tor::ConfigError;
use hebtor_directory::directory::open_store;
use hebtor_directory::store::StoreError;
use hebtor_directory::{Config, Directory, RunError};
use tokio_util::sync::CancellationToken;

/// The exit-bridge directory: exit bridges register here, are tested, and are given to clients.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Configuration file (TOML); see deploy/hebtor-directory.example.toml.
    #[arg(long, global = true, env = "HEBTOR_DIRECTORY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any key of the configuration, such as --set listen=127.0.0.1:8080 (repeatable).
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    settings: Vec<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the directory. Its onion address is printed when clients can come.
    Run,
    /// Pools: exit bridges that you give out yourself.
    #[command(subcommand)]
    Pool(Pool),
}

#[derive(Subcommand)]
enum Pool {
    /// Make a pool, or change its size.
    Set {
        /// Its name, for you alone.
        #[arg(value_parser = pool_name)]
        name: String,
        /// How many exit bridges should be in it.
        #[arg(long, short = 'n', default_value_t = 3)]
        size: u32,
    },
    /// Print the bridge lines in a pool that work now.
    Show {
        /// Its name.
        #[arg(value_parser = pool_name)]
        name: String,
    },
    /// List the pools.
    Ls {
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// End a pool; its exit bridges may go to others.
    Rm {
        /// Its name.
        #[arg(value_parser = pool_name)]
        name: String,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    eebt_tor::init_log();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hebtor-directory: {error:#}");
            eprintln!("hint: {}", hint(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config::load_with(args.config.as_deref(), &args.settings)?;
    let (tokio, runtime) = eebt_tor::create_runtime(1).context("cannot start the async runtime")?;
    match &args.command {
        Command::Run => {
            eebt_tor::raise_file_limit();
            let _pid_file = config.pid_file.as_deref().map(eebt_tor::PidFile::write).transpose()?;
            let directory = Directory::new(config)?;
            let shutdown = CancellationToken::new();
            tokio.block_on(async move {
                eebt_tor::stop_on_signal(shutdown.clone()).context("cannot handle signals")?;
                let ready = |address: &eebt_proto::OnionReach| print(&address.to_string());
                directory.run(runtime, shutdown, ready).await?;
                Ok(())
            })
        }
        Command::Pool(pool) => tokio.block_on(pool.run(&config)),
    }
}

impl Pool {
    async fn run(&self, config: &Config) -> anyhow::Result<()> {
        let store = open_store(&config.store).await?;
        let now = SystemTime::now();
        match self {
            Self::Set { name, size } => {
                store.set_pool(name, *size).await?;
                store.fill_pool(name, now).await?;
                let live = store.pool_lines(name, now).await?.len();
                eprintln!("pool {name}: {live} of {size} exit bridges");
            }
            Self::Show { name } => {
                if !store.pools(now).await?.iter().any(|pool| pool.name == *name) {
                    bail!("no pool {name}");
                }
                store.fill_pool(name, now).await?;
                let lines = store.pool_lines(name, now).await?;
                lines.iter().for_each(|line| print(&line.to_string()));
            }
            Self::Ls { json } => {
                let pools = store.pools(now).await?;
                if *json {
                    let pool = |p: &hebtor_directory::store::Pool| serde_json::json!({ "name": p.name, "size": p.size, "live": p.live });
                    print(&serde_json::to_string_pretty(&pools.iter().map(pool).collect::<Vec<_>>())?);
                } else {
                    print(&format!("{:<24} {:>6} {:>6}", "POOL", "LIVE", "SIZE"));
                    for pool in pools {
                        print(&format!("{:<24} {:>6} {:>6}", pool.name, pool.live, pool.size));
                    }
                }
            }
            Self::Rm { name } => {
                if !store.remove_pool(name).await? {
                    bail!("no pool {name}");
                }
            }
        }
        Ok(())
    }
}

/// The one place that writes to stdout: data.
#[allow(clippy::print_stdout)]
fn print(text: &str) {
    println!("{text}");
}

/// A name that can be typed and listed.
fn pool_name(text: &str) -> Result<String, String> {
    let plain = !text.trim().is_empty() && text.chars().count() <= 64 && !text.chars().any(char::is_control);
    plain.then(|| text.to_owned()).ok_or_else(|| "expected 1 to 64 characters, not only spaces".to_owned())
}

/// What to try.
fn hint(error: &anyhow::Error) -> &'static str {
    const STORE: &str =
        "is the database there, may this user open it, and was it made by this version? `store` names it";
    let config = match error.downcast_ref::<RunError>() {
        Some(RunError::Keys(_)) => return "the folder must belong to you alone: chmod 700",
        Some(RunError::Store(_)) => return STORE,
        Some(RunError::Listen { field: "echo.listen", .. }) => {
            return "ports below 1024 need the capability CAP_NET_BIND_SERVICE; deploy/hebtor-directory.service grants it";
        }
        Some(RunError::Listen { .. }) => return "is another program there?",
        Some(RunError::Tor(_)) => return "is the Internet reachable, and the clock right?",
        Some(RunError::Stopped) => {
            return "start it again; if it happens again, please tell the project of it";
        }
        Some(RunError::Config(config)) => Some(config),
        None => error.downcast_ref::<ConfigError>(),
    };
    match config {
        Some(ConfigError::Field { field: "store", .. }) => {
            "sqlite:FILE needs nothing; PostgreSQL is reached over a unix socket (postgresql:///DATABASE), \
             or over a tunnel that ends on loopback"
        }
        Some(ConfigError::Read { .. }) => "is the path right, and may this user read it?",
        Some(ConfigError::Write { .. }) => "does the folder exist, and may this user write there?",
        Some(_) => "deploy/hebtor-directory.example.toml documents every key",
        None if error.is::<StoreError>() => STORE,
        None if error.to_string().starts_with("no pool") => "`hebtor-directory pool ls` lists them",
        None => "`hebtor-directory help` lists commands and options",
    }
}
