//! The exit bridge, in a process of its own that lives while it serves.
//!
//! The app itself waits most of its life, and shall cost next to nothing then; all that Tor needs goes with the process. It
//! shares no memory with the page and the owner's settings, either. Both sides speak JSON, a line each: [`Order`]s on its standard
//! input, whose end tells it to end at once, and [`Event`]s on its standard output.

mod child;
mod handle;
mod home;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use eebt_bridge::status::{Totals, WayIn};
use eebt_proto::SignedDocument;
use serde::{Deserialize, Serialize};

pub use child::run;
pub use handle::{Engine, EngineError};
pub use home::{Outcome, Tried};

/// What it is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Order {
    /// The first one: with what to run.
    Start(Box<Start>),
    /// How fast it may be from now on.
    Rates(Rates),
    /// Takes nothing new, and ends.
    Drain,
    /// Tries to reach this home through itself, and tells.
    TryHome,
}

/// With what to run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Start {
    /// The configuration of the exit bridge, in TOML.
    pub config: String,
    /// Categories of sites that it lets out to.
    pub only: Vec<String>,
    /// A file of domains that it doesn't let out to.
    pub block_list: Option<PathBuf>,
    /// When that was changed last: it is read at the start.
    pub block_list_changed: Option<SystemTime>,
    /// Time of one processor, in percent.
    pub cpu_percent: u32,
    /// The home's public address, as far as it is known: no target.
    pub own_address: Option<IpAddr>,
    /// How fast it may be.
    pub rates: Rates,
}

/// Bytes a second, each way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rates {
    pub up: f64,
    pub down: f64,
}

/// When nothing may move any more.
pub(crate) const STOPPED: Rates = Rates { up: 1.0, down: 1.0 };

/// What it tells.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Event {
    /// How far it is on its way into Tor.
    WayIn(WayIn),
    /// It serves. Not with what bridge line: that is for directories alone.
    Serving,
    /// What was counted since it started; once a second while that changes.
    Totals(Totals),
    /// What directories signed last of when it served.
    Attested(Vec<SignedDocument>),
    /// How the tries to reach this home ended.
    Home(Vec<Tried>),
    /// It can't go on.
    Failed {
        /// Why.
        error: String,
    },
}
