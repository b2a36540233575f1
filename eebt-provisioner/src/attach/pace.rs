//! When something that failed is tried again.

use std::time::{Duration, Instant};

/// At once after a success; after each failure in a row twice as late as before, up to the longest pause.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    first: Duration,
    longest: Duration,
    failures: u32,
    not_before: Option<Instant>,
}

impl Pace {
    /// Nothing failed yet.
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0, not_before: None }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| at <= now)
    }

    pub(super) fn failed(&mut self, now: Instant) {
        let pause = self.first.saturating_mul(1 << self.failures.min(16)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + pause);
    }

    pub(super) fn succeeded(&mut self) {
        (self.failures, self.not_before) = (0, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_something_succeeds() {
        let (second, now) = (Duration::from_secs(1), Instant::now());
        let mut pace = Pace::new(second, second * 5);
        for pause in [1, 2, 4, 5, 5] {
            assert!(pace.is_due(now + second * 5));
            pace.failed(now);
            assert!(!pace.is_due(now + second * pause - second / 2) && pace.is_due(now + second * pause));
        }
        pace.succeeded();
        assert!(pace.is_due(now));
    }
}
