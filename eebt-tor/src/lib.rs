//! What the programs that embed Arti share: how they are configured and stopped; its configuration, a runtime whose sockets do not wait, a log that
//! does not tell too much, circuits to exit bridges and to onion services, onion services of one's own
//! and the folder of their keys, HTTP to an onion service, and the loop that moves bytes.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod circuit;
mod config;
mod hops;
mod http;
mod https;
mod keys;
mod log;
mod onion;
mod process;
mod pump;
mod rendezvous;
mod runtime;
mod service;
mod settings;

pub use circuit::{Circuit, CircuitError, PathKind, Paths};
pub use config::{TorConfigError, tor_client_config, tor_server_config};
pub use http::{HttpError, OnionHttp, Reply};
pub use https::{FetchError, Https, fetch};
pub use keys::{KeyFolder, KeyFolderError, service_key, sign_as_service};
pub use log::init_log;
pub use onion::{OnionConnector, OnionError};
pub use process::{PidFile, raise_file_limit, stop_on_signal};
pub use pump::{PumpError, pump};
pub use rendezvous::{Rendezvous, RendezvousPath};
pub use runtime::{TorRuntime, create_runtime};
pub use service::{OnionService, ServiceError, onion_reach};
pub use settings::{ConfigError, load_config};
