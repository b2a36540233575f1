//! The last decisions, which the owner can read: what it did, since when, and why.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use eebt_page::private_file;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::rules::Decision;

/// The file's name in the state folder.
const FILE: &str = "decisions.json";

/// So many are kept.
pub const KEPT: usize = 50;

/// One decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// From when on.
    pub at: Timestamp,
    /// What.
    pub decision: Decision,
}

/// The last ones, the newest in front.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    entries: VecDeque<Entry>,
}

impl Log {
    /// Those that the state folder has. It is for reading only, so that one that is broken begins anew.
    pub fn load(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let entries = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { path, entries: entries.unwrap_or_default() }
    }

    /// Takes note of a decision if it is another one than the last.
    pub fn note(&mut self, at: Timestamp, decision: Decision) -> bool {
        if self.entries.front().is_some_and(|last| last.decision == decision) {
            return false;
        }
        self.entries.push_front(Entry { at, decision });
        self.entries.truncate(KEPT);
        if let Ok(text) = serde_json::to_vec(&self.entries)
            && let Err(error) = private_file::write(&self.path, &text)
        {
            tracing::warn!(%error, "the log of decisions can't be written");
        }
        true
    }

    /// All of them.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Reason;

    #[test]
    fn the_last_fifty_changes_are_kept_and_survive() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::load(dir.path());
        for second in 0..120 {
            let decision = if second / 2 % 2 == 0 { Decision::Serve } else { Decision::Rest(Reason::InUse) };
            log.note(Timestamp::from_second(second).unwrap(), decision);
        }
        assert_eq!(log.entries().count(), KEPT);
        let last = log.entries().next().copied().unwrap();
        assert_eq!(
            last,
            Entry { at: Timestamp::from_second(118).unwrap(), decision: Decision::Rest(Reason::InUse) }
        );
        assert_eq!(Log::load(dir.path()).entries().next(), Some(&last));
    }
}
