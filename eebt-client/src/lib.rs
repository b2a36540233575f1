//! The person's side: a local proxy whose streams leave Tor through an exit bridge.
//!
//! The data path, in the order of the files: a program speaks SOCKS or HTTP CONNECT to [`listen`];
//! [`route`] decides, as a pure function, whether the target is reached as usual or through an exit
//! bridge; [`bridges`] says which one serves this isolation group, [`circuits`] holds the circuits to
//! it, [`connect`] opens the stream and tries another exit bridge when one is dead; [`auto`] watches
//! whether the target answers Tor, which [`blocked`] tells and [`verdicts`] remembers, [`blockers`] are known
//! without that, and `probe` asks what TLS hides; [`listen`] copies
//! bytes until one side is done. [`find`] asks exit-bridge directories for exit bridges. [`visits`] counts
//! what goes where, the [`page`] shows it to the person, and [`choices`] is what they choose there. [`selftest`]
//! holds all of it to its promises on the person's own machine, and [`check`] an exit bridge to its own.
//!
//! It fails closed: there is no code here that connects to a target.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod auto;
pub mod blocked;
pub mod blockers;
pub mod bridges;
pub mod check;
pub mod choices;
pub mod circuits;
pub mod client;
pub mod config;
pub mod connect;
pub mod find;
mod hello;
pub mod listen;
pub mod page;
mod probe;
pub mod route;
pub mod selftest;
pub mod verdicts;
pub mod visits;

pub use client::{Client, RunError};
pub use config::Config;
