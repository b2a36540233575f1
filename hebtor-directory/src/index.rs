//! What this replica can hand out: a ring in memory that follows the store.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::metrics::Metrics;
use crate::ring::{Member, Ring};
use crate::store::{Cursor, Partition, Record, Result, Store};

/// How often the store is asked what changed.
pub const FOLLOW_EVERY: Duration = Duration::from_millis(500);

/// How far back it is asked: changes may be written in another order than they are dated, and the clocks
/// of replicas differ.
const OVERLAP: Duration = Duration::from_secs(10);

/// Records that are read at once.
const PAGE: u32 = 1000;

/// The exit bridges that can be handed out now.
pub struct Index(RwLock<Ring>);

impl Index {
    /// Empty, with the key that all replicas share.
    pub fn new(key: [u8; 32]) -> Self {
        Self(RwLock::new(Ring::new(key)))
    }

    /// The ring, for reading.
    pub fn ring(&self) -> RwLockReadGuard<'_, Ring> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring_mut(&self) -> RwLockWriteGuard<'_, Ring> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what is new of an exit bridge.
    pub fn update(&self, record: &Record, now: SystemTime) {
        let live_until = record.test.live_until.min(record.expires);
        let open = record.partition == Partition::Open && !record.withdrawn && live_until > now;
        let mut ring = self.ring_mut();
        if !open {
            ring.remove(record.identity());
            return;
        }
        ring.insert(Member {
            line: record.line.clone(),
            country: record.test.country,
            speed: record.test.speed,
            live_until,
        });
    }

    /// Reads all that changed since `cursor`. Returns the time of the last change.
    ///
    /// # Errors
    /// The store's.
    pub async fn catch_up(&self, store: &dyn Store, mut cursor: Cursor) -> Result<SystemTime> {
        loop {
            let changes = store.changes(cursor, PAGE).await?;
            let now = SystemTime::now();
            for (_, record) in &changes {
                self.update(record, now);
            }
            match changes.last() {
                Some((last, _)) if changes.len() == PAGE as usize => cursor = *last,
                Some((last, _)) => return Ok(last.at),
                None => return Ok(cursor.at),
            }
        }
    }

    /// Follows the store. Never returns.
    pub async fn follow(&self, store: &dyn Store, metrics: &Metrics) {
        let mut seen = UNIX_EPOCH;
        loop {
            let from = Cursor::before(seen.checked_sub(OVERLAP).unwrap_or(UNIX_EPOCH));
            match self.catch_up(store, from).await {
                Ok(last) => seen = seen.max(last),
                // What is known expires by itself, so that nobody is given a dead one meanwhile.
                Err(error) => tracing::warn!(error = %causes(&error), "cannot follow the store"),
            }
            self.forget_dead(SystemTime::now());
            metrics.set_on_ring(self.ring().len());
            tokio::time::sleep(FOLLOW_EVERY).await;
        }
    }

    /// Takes those off the ring whose time is over, so that it does not grow.
    fn forget_dead(&self, now: SystemTime) {
        let dead: Vec<_> = self
            .ring()
            .members()
            .filter(|m| m.live_until <= now || m.line.is_expired(now))
            .map(|m| *m.line.reach.identity())
            .collect();
        if !dead.is_empty() {
            let mut ring = self.ring_mut();
            dead.iter().for_each(|identity| ring.remove(identity));
        }
    }
}

/// An error with its causes on one line.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
