//! The log of a program that embeds Arti.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Crates whose debug and trace levels carry what is nobody's business: targets and payload in cells
/// (tor-proto), keys and addresses of exit bridges, guards and onion services, host names in DNS
/// queries, HTTP heads, what is written to a database. They are cut off below `info` whatever `RUST_LOG` says.
const QUIET: &[&str] = &[
    "arti_client",
    "tor_proto",
    "tor_chanmgr",
    "tor_circmgr",
    "tor_guardmgr",
    "tor_hsclient",
    "tor_hsservice",
    "tor_dirclient",
    "hickory_resolver",
    "hickory_proto",
    "hickory_net",
    "hyper",
    "axum",
    "tower",
    "rustls",
    "tokio_postgres",
];

/// What is logged when `RUST_LOG` says nothing: our own news, and Arti's warnings (less those of its
/// relay selection, which warns of every small network).
const DEFAULT: &str = "info,arti_client=warn,tor_=warn,tor_netdir=error";

/// Logs to stderr what `RUST_LOG` asks for.
pub fn init_log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let cap = QUIET.iter().fold(Targets::new().with_default(LevelFilter::TRACE), |cap, name| {
        cap.with_target(*name, LevelFilter::INFO)
    });
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = tracing_subscriber::fmt::layer().with_ansi(colour).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(filter).with(cap).with(lines).init();
}
