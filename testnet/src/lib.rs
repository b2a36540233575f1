//! A private Tor network of C tor processes on loopback, and origins that block Tor.
//!
//! [`TestNet`] starts authorities, relays and one plain Tor client, each on its own 127.x address, and
//! writes a network file for Arti programs; Chutney may run them instead ([`TestNetBuilder::chutney`]).
//! [`Origins`] are the web sites that such a network visits. [`delay_link`] makes any TCP link as long as an
//! ocean is wide. [`Postgres`] is a database server.
//!
//! ```no_run
//! # async fn doc() -> Result<(), Box<dyn std::error::Error>> {
//! let net = testnet::TestNet::builder().start().await?;
//! let origins = testnet::Origins::start(testnet::OriginsConfig::on_network(&net)).await?;
//! println!("curl --socks5-hostname {} {}", net.socks_addr(), origins.blocking_tor_exits().url("/"));
//! net.shutdown().await?;
//! # Ok(()) }
//! ```
//!
//! Everything is bound to loopback. Everything a `TestNet` started ends when it is dropped, and also when
//! its process dies in any other way: each tor holds a socket to its owner and exits when that closes.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod arti;
mod background;
mod delay;
mod error;
mod keys;
mod lock;
mod network;
pub mod origins;
pub mod postgres;
mod process;
mod slice;
mod state;
mod torrc;

pub use delay::{DelayLink, delay_link};
pub use error::TestNetError;
pub use network::{TestNet, TestNetBuilder, UnlistedRelay};
pub use origins::{Hit, Origin, Origins, OriginsConfig, OriginsError, Ports, TurnAway};
pub use postgres::Postgres;
pub use state::{OriginState, State};
pub use torrc::{RelayInfo, Role, Scheduler};
