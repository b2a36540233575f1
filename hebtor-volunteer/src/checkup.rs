//! When the address is checked, and what came of it so far.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use eebt_page::private_file;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use crate::health::{Answer, Question, is_listed};
use crate::machine;

/// The file's name in the state folder.
const FILE: &str = "address.json";

/// How often one address is checked.
const EVERY: Duration = Duration::from_secs(24 * 3600);

/// How soon after a check that came to nothing.
const AGAIN: Duration = Duration::from_secs(1800);

/// How long a check may take.
const LIMIT: Duration = Duration::from_secs(900);

/// Checks that are kept.
const KEPT: usize = 60;

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// When.
    pub at: Timestamp,
    /// Of which address.
    pub address: IpAddr,
    /// All that was said.
    pub answers: Vec<Answer>,
}

/// The address of this home, as sites see it, and its checks, the newest one last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// The address; unknown before a directory said it.
    pub address: Option<IpAddr>,
    /// When it was learnt.
    pub learnt: Timestamp,
    /// The last checks.
    pub checks: Vec<Checked>,
}

impl Health {
    /// What the state folder knows. It is for reading only, so that one that is broken begins anew.
    pub fn load(state_dir: &Path) -> Self {
        let bytes = std::fs::read(state_dir.join(FILE)).ok();
        bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    fn save(&self, state_dir: &Path) {
        let written = serde_json::to_vec(self).map_err(std::io::Error::from);
        if let Err(error) = written.and_then(|text| private_file::write(&state_dir.join(FILE), &text)) {
            tracing::warn!(%error, "what is known of the address can't be written");
        }
    }

    /// The last check of the address that this home has now.
    pub fn last(&self) -> Option<&Checked> {
        self.checks.iter().rev().find(|check| Some(check.address) == self.address)
    }

    /// Is the address on a list?
    pub fn is_listed(&self) -> bool {
        self.last().is_some_and(|check| is_listed(&check.answers))
    }

    /// Is a check due?
    fn is_due(&self, now: Timestamp) -> bool {
        self.last().is_none_or(|check| now.duration_since(check.at).unsigned_abs() >= EVERY)
    }

    /// Takes note of the address.
    pub fn note_address(&mut self, state_dir: &Path, address: IpAddr, now: Timestamp) {
        if self.address.replace(address) != Some(address) {
            self.learnt = now;
            self.save(state_dir);
        }
    }

    /// Forgets an address that was listed a day ago: the provider may have given another one, and only a directory can say which.
    /// If it is the same one, it is known to be listed as soon as it is known, and is asked about again.
    pub fn doubt(&mut self, state_dir: &Path, now: Timestamp) {
        let old =
            self.is_listed() && self.is_due(now) && self.last().is_some_and(|last| self.learnt <= last.at);
        if old {
            self.address = None;
            self.save(state_dir);
        }
    }

    /// Takes note of a check.
    pub fn note(&mut self, state_dir: &Path, check: Checked) {
        self.checks.push(check);
        let over = self.checks.len().saturating_sub(KEPT);
        self.checks.drain(..over);
        self.save(state_dir);
    }
}

/// Has checks made.
#[derive(Default)]
pub struct Checkups {
    running: Option<tokio::task::JoinHandle<Option<Checked>>>,
    /// One is due at each start.
    checked: Option<IpAddr>,
    not_before: Option<Timestamp>,
}

impl Checkups {
    /// One that has ended since the last time, if it came to something. To be called often.
    pub async fn done(&mut self, now: Timestamp) -> Option<Checked> {
        let running = self.running.as_mut().filter(|running| running.is_finished())?;
        let checked = running.await.ok().flatten();
        self.running = None;
        match &checked {
            Some(checked) => self.checked = Some(checked.address),
            None => self.not_before = Some(now + AGAIN),
        }
        checked
    }

    /// The address, if it is to be checked now.
    pub fn due(&self, health: &Health, now: Timestamp) -> Option<IpAddr> {
        let address = health.address?;
        let is_due = health.is_due(now) || self.checked != Some(address);
        let may_begin = self.running.is_none() && self.not_before.is_none_or(|at| now >= at);
        (is_due && may_begin).then_some(address)
    }

    /// Begins one.
    pub fn begin(&mut self, question: Question) {
        self.running = Some(tokio::spawn(async move {
            let answers = timeout(LIMIT, check(&question)).await.ok().flatten()?;
            Some(Checked { at: Timestamp::now(), address: question.address, answers })
        }));
    }
}

impl Drop for Checkups {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

/// Asks, in a process of its own.
async fn check(question: &Question) -> Option<Vec<Answer>> {
    let mut child = machine::worker("check-address").ok()?.spawn().ok()?;
    let mut stdin = child.stdin.take()?;
    stdin.write_all(&serde_json::to_vec(question).ok()?).await.ok()?;
    drop(stdin);
    let out = child.wait_with_output().await.ok()?;
    serde_json::from_slice(&out.stdout).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{Verdict, Way};

    fn check(at: i64, address: &str, verdict: Verdict) -> Checked {
        let answer = Answer { who: "bl.example".into(), canary: false, way: Way::Direct, verdict };
        Checked {
            at: Timestamp::from_second(at).unwrap(),
            address: address.parse().unwrap(),
            answers: vec![answer],
        }
    }

    #[test]
    fn a_check_holds_for_a_day_and_for_its_address() {
        let dir = tempfile::tempdir().unwrap();
        let mut health = Health::default();
        let now = |at| Timestamp::from_second(at).unwrap();
        health.note_address(dir.path(), "192.0.2.1".parse().unwrap(), now(0));
        assert!(health.is_due(now(0)) && !health.is_listed());
        health.note(dir.path(), check(0, "192.0.2.1", Verdict::Bad));
        assert!(health.is_listed() && !health.is_due(now(86_399)) && health.is_due(now(86_400)));
        health.note_address(dir.path(), "192.0.2.2".parse().unwrap(), now(1));
        assert!(!health.is_listed() && health.is_due(now(1)));
        assert_eq!(Health::load(dir.path()), health);
        for n in 0..100 {
            health.note(dir.path(), check(n, "192.0.2.2", Verdict::Good));
        }
        assert_eq!(health.checks.len(), KEPT);
    }

    #[test]
    fn an_address_that_was_listed_a_day_ago_is_learnt_anew() {
        let dir = tempfile::tempdir().unwrap();
        let now = |at| Timestamp::from_second(at).unwrap();
        let (address, day) = ("192.0.2.1".parse().unwrap(), 86_400);
        let mut health = Health::default();
        health.note_address(dir.path(), address, now(10));
        health.note(dir.path(), check(20, "192.0.2.1", Verdict::Bad));
        health.doubt(dir.path(), now(20 + day - 1));
        assert!(health.is_listed(), "not before");
        health.doubt(dir.path(), now(20 + day));
        assert!(!health.is_listed() && health.address.is_none());
        // The same one: it is asked about, and not doubted again before that.
        health.note_address(dir.path(), address, now(60 + day));
        health.doubt(dir.path(), now(61 + day));
        assert!(health.is_listed() && health.is_due(now(61 + day)));
        health.note(dir.path(), check(62 + day, "192.0.2.1", Verdict::Good));
        assert!(!health.is_listed());
    }
}
