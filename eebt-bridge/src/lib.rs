//! The exit bridge: a short-lived egress point behind Tor that is on no list.
//!
//! The data path, in the order of the files: a circuit arrives on a channel from a known relay
//! ([`ingress::circuit`]) or from a client of our onion service ([`ingress::onion`]), each of its
//! streams asks for a target, the [`policy`](eebt_proto::policy) and the [`limits`] say whether it may
//! leave, [`egress`] resolves, connects and copies bytes until one side is done. Beside it [`register`]
//! keeps exit-bridge directories informed, where the operator named some.
//!
//! [`ExitBridge`] is inert: it has read its configuration and its keys and can't touch the network.
//! [`ExitBridge::run`] does, until it is told to stop or its life is over.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod bridge;
pub mod config;
pub mod consensus;
pub mod egress;
pub mod ingress;
pub mod keys;
pub mod limits;
pub mod register;
pub mod resolve;
pub mod server_descriptor;
pub mod status;

pub use bridge::{ExitBridge, RunError};
pub use config::Config;
pub use keys::BridgeKeys;
