//! The volunteer's app: a home machine lends its idle address, as an onion exit bridge, safely and by choice.
//!
//! [`sources`] know the machine, [`rules`] decide from that and from the owner's [`settings`] whether to serve or to rest, [`app`]
//! does it, once a second: it starts and ends the exit bridge, which is a process of its own ([`engine`]), and keeps [`usage`] to
//! the caps. [`page`] is what the owner sees and presses. Nothing starts before the owner agreed.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod app;
pub mod categories;
pub mod checkup;
pub mod config;
pub mod engine;
pub mod health;
pub mod log;
pub mod machine;
pub mod page;
pub mod pdf;
pub mod receipt;
pub mod remote;
mod router;
pub mod rules;
pub mod served;
pub mod settings;
pub mod sources;
pub mod tray;
pub mod usage;
pub mod window;

pub use app::App;
pub use config::Config;
