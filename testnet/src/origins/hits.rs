//! Who visited an origin.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// No more are remembered; the oldest are forgotten first.
const MOST: usize = 100_000;

/// One request, or one connection to a raw origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// Where it came from, as the origin sees it.
    pub peer_ip: IpAddr,
    /// The path, with its query; empty for a raw origin.
    pub path: String,
    /// The method; `CONNECT` stands for a connection to a raw origin.
    pub method: String,
    /// When its head had arrived.
    pub at: SystemTime,
}

/// Shared by an origin and its connections.
#[derive(Debug, Clone, Default)]
pub(super) struct HitLog(Arc<Mutex<VecDeque<Hit>>>);

impl HitLog {
    pub(super) fn add(&self, peer_ip: IpAddr, method: &str, path: &str) {
        let mut hits = self.lock();
        if hits.len() == MOST {
            hits.pop_front();
        }
        hits.push_back(Hit {
            peer_ip,
            path: path.to_owned(),
            method: method.to_owned(),
            at: SystemTime::now(),
        });
    }

    pub(super) fn all(&self) -> Vec<Hit> {
        self.lock().iter().cloned().collect()
    }

    pub(super) fn last(&self) -> Option<Hit> {
        self.lock().back().cloned()
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Hit>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner) // no half-made change is possible
    }
}
