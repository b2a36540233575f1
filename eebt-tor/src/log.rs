//! The log of a program that embeds Arti.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Crates whose debug and trace levels may carry what is nobody's business (host names in a DNS
/// library's queries, HTTP heads): they are cut off below `info` whatever `RUST_LOG` says.
const QUIET: &[&str] = &["hickory_resolver", "hickory_proto", "hickory_net", "hyper", "axum", "tower", "rustls"];

/// Logs to stderr what `RUST_LOG` asks for; without it, what `default` does.
pub fn init_log(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let cap = QUIET
        .iter()
        .fold(Targets::new().with_default(LevelFilter::TRACE), |cap, name| cap.with_target(*name, LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    tracing_subscriber::registry().with(filter).with(cap).with(lines).init();
}
