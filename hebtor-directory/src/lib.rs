//! The exit-bridge directory: exit bridges register here, are tested, and are given to clients.
//!
//! The data path, in the order of the files: requests arrive at [`serve`], over the onion service or on
//! loopback, and are read by [`api`]. A descriptor goes into the [`store`]; [`tester`] connects through the
//! exit bridge to our own [`echo`] and notes what it learns; [`index`] follows the store and keeps those
//! who passed on the [`ring`]. A client shows a ticket at the [`door`] and is given those that follow its
//! place on the ring.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod api;
pub mod config;
pub mod directory;
pub mod door;
pub mod echo;
pub mod index;
pub mod metrics;
pub mod ring;
pub mod serve;
pub mod store;
pub mod tester;

pub use config::Config;
pub use directory::{Directory, RunError};
