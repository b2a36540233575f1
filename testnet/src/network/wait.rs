//! Waiting for a network: with deadlines, and only for as long as every tor runs.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;

use super::TestNet;
use crate::error::TestNetError;
use crate::torrc::{self, Role};

/// No single wait is longer.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks at what is waited for.
pub(super) const TICK: Duration = Duration::from_millis(50);

impl TestNet {
    /// Waits until `done`, for as long as every tor runs. The log of `name` tells more.
    pub(super) async fn wait_for(
        &mut self,
        what: &str,
        name: &str,
        mut done: impl FnMut() -> bool,
    ) -> Result<(), TestNetError> {
        let start = Instant::now();
        loop {
            if done() {
                return Ok(());
            }
            self.check()?;
            if start.elapsed() > PATIENCE {
                return Err(TestNetError::TimedOut {
                    what: what.to_owned(),
                    waited: PATIENCE,
                    log: self.node_dir(name).join("log"),
                });
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Waits until each authority has a consensus that lists every relay.
    pub(super) async fn wait_for_consensus(&mut self) -> Result<(), TestNetError> {
        let listed: Vec<String> = self.relays.iter().map(|r| format!("\nr {} ", r.nickname)).collect();
        for name in self.names(|role| role == Role::Authority) {
            let consensus = [self.node_dir(&name).join("data/cached-microdesc-consensus")];
            let what = "a consensus that lists every relay";
            self.wait_for(what, &name, || contains_all(&consensus, &listed)).await?;
        }
        Ok(())
    }

    /// Waits until each relay that is no authority knows them all.
    pub(super) async fn wait_for_microdescs(&mut self) -> Result<(), TestNetError> {
        let authorities = self.names(|role| role == Role::Authority);
        // SIGHUP makes them forget that nobody had a consensus when they first asked.
        for tor in self.tors.iter_mut().filter(|tor| !authorities.contains(&tor.name)) {
            tor.signal(Signal::SIGHUP);
        }
        let ids: Vec<String> =
            self.relays.iter().map(|r| format!("id ed25519 {}\n", r.ed_identity)).collect();
        for name in self.names(|role| role != Role::Authority) {
            let data = self.node_dir(&name).join("data");
            let caches = [data.join("cached-microdescs"), data.join("cached-microdescs.new")];
            let what = format!("{name} to fetch all microdescriptors");
            self.wait_for(&what, &name, || contains_all(&caches, &ids)).await?;
        }
        Ok(())
    }

    fn names(&self, wanted: impl Fn(Role) -> bool) -> Vec<String> {
        let relays = self.relays.iter().filter(|relay| wanted(relay.role));
        relays.map(|relay| relay.nickname.clone()).collect()
    }
}

/// How long to wait for a phase of the initial voting interval, which follows the clock.
///
/// Authorities vote 3 s into each interval of 5 s (tor cuts both delays to 1 s), and vote late when they start
/// in the last 2 s. So they start just before an interval's end and vote 3.7 s later. Relays upload their
/// descriptors 2.3 to 3.1 s after their own start, or later on a busy machine, so they start a second before
/// the authorities: a vote that comes too early costs a whole interval, and the next is longer.
pub(super) fn until_phase(phase: Duration, now: SystemTime) -> Duration {
    let interval = u128::from(torrc::INITIAL_VOTING_INTERVAL) * 1000;
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let wait = (phase.as_millis() + interval - now % interval) % interval;
    Duration::from_millis(u64::try_from(wait).unwrap_or_default())
}

/// Whether the files together contain every string. A missing file is an empty one.
pub(super) fn contains_all(files: &[PathBuf], wanted: &[String]) -> bool {
    let mut missing: HashSet<&String> = wanted.iter().collect();
    for file in files {
        let bytes = fs::read(file).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        missing.retain(|wanted| !text.contains(wanted.as_str()));
    }
    missing.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_phase_is_always_ahead() {
        let phase = Duration::from_millis(2400);
        let at = |ms| until_phase(phase, UNIX_EPOCH + Duration::from_millis(ms));
        assert_eq!(at(1_000_000_002_400), Duration::ZERO);
        assert_eq!(at(1_000_000_002_500), Duration::from_millis(4900));
        assert_eq!(at(1_000_000_000_000), Duration::from_millis(2400));
    }

    #[test]
    fn files_are_searched_together() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "one\n").unwrap();
        let wanted = ["one".to_owned(), "two".to_owned()];
        assert!(!contains_all(&[a.clone(), b.clone()], &wanted));
        fs::write(&b, "two\n").unwrap();
        assert!(contains_all(&[a, b], &wanted));
    }
}
