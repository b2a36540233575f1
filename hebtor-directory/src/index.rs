//! What this replica can hand out: a ring in memory that follows the store.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use eebt_proto::causes;

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

    /// Follows the store, from the last change that was seen. Never returns.
    pub async fn follow(&self, store: &dyn Store, mut seen: SystemTime, metrics: &Metrics) {
        let (mut moved, mut read) = (Instant::now(), Instant::now());
        loop {
            let start = Instant::now();
            match self.catch_up(store, Cursor::before(resume_at(seen, read - moved))).await {
                Ok(last) => {
                    read = start;
                    if last > seen {
                        (seen, moved) = (last, start);
                    }
                }
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

/// From where changes are read again, where nothing newer than `seen` came for so long. Whoever writes one
/// now, by whatever clock, dates it so much later: when nothing changes, soon nothing is read.
fn resume_at(seen: SystemTime, since: Duration) -> SystemTime {
    let overlap = OVERLAP.saturating_sub(since);
    seen.checked_sub(overlap).map_or(UNIX_EPOCH, |at| at.max(UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_changes_are_read_and_old_ones_are_not_read_for_ever() {
        let seen = UNIX_EPOCH + Duration::from_secs(1000);
        let seconds = Duration::from_secs;
        assert_eq!(resume_at(seen, seconds(0)), seen - OVERLAP);
        // One that is written 4 s later by a clock that is 9 s behind is dated 5 s earlier.
        assert!(resume_at(seen, seconds(4)) < seen - seconds(5));
        assert_eq!(resume_at(seen, OVERLAP), seen);
        assert_eq!(resume_at(seen, seconds(3600)), seen);
        assert_eq!(resume_at(UNIX_EPOCH, seconds(0)), UNIX_EPOCH);
    }
}
