//! What the exit bridge and the client both need of Arti: its configuration, a runtime whose sockets
//! do not wait, a log that does not tell too much, circuits to onion services, and the loop that moves bytes.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod config;
mod log;
mod onion;
mod pump;
mod runtime;

pub use config::{TorConfigError, tor_client_config};
pub use log::init_log;
pub use onion::{OnionConnector, OnionError};
pub use pump::pump;
pub use runtime::{TorRuntime, create_runtime};
