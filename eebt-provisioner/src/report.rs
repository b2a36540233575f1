//! What an `eebt run` says of itself, for `eebt status`.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::folder::{FolderError, StateDir};

/// Written whenever it has looked at its fleet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Its process.
    pub pid: u32,
    /// When it was started, and when it wrote this.
    pub since: SystemTime,
    /// See above.
    pub at: SystemTime,
    /// How long a start takes, measured, in seconds.
    pub start_up_seconds: u64,
    /// How often an exit bridge is lost in an hour, measured.
    pub losses_per_hour: f64,
    /// When all are replaced next by schedule.
    pub next_rotation: Option<SystemTime>,
    /// Why it can't see whether they serve, if it can't.
    pub blind: Option<String>,
    /// Region by region.
    pub places: Vec<PlaceReport>,
}

/// One region, or this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceReport {
    /// Which; empty for this machine.
    pub place: String,
    /// How many are kept, spares included.
    pub kept: usize,
    /// How many serve.
    pub serving: usize,
    /// How many are on their way.
    pub coming: usize,
    /// How many serve still, and are to go.
    pub going: usize,
    /// Why the last one could not be had.
    pub trouble: Option<String>,
    /// Until when none is tried after that.
    pub paused_until: Option<SystemTime>,
}

impl Report {
    /// Leaves it for others.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write(&self, dir: &StateDir) -> Result<(), FolderError> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        StateDir::replace_private(&dir.run_report(), &text)
    }

    /// The last one that was left, if it can be read.
    pub fn read(dir: &StateDir) -> Option<Self> {
        serde_json::from_str(&std::fs::read_to_string(dir.run_report()).ok()?).ok()
    }
}
