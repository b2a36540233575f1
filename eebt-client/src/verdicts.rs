//! Which targets refused Tor, for how long that is believed, and why.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::blocked::Reason;
use crate::route::normal;

/// How long silence is believed at most: a circuit that had trouble looks the same.
const SILENCE: Duration = Duration::from_secs(600);

/// Most verdicts that are kept; then those go that end first.
const MAX: usize = 10_000;

/// A target that refused Tor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
struct Target(String, u16);

/// That it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Verdict {
    reason: String,
    #[serde(with = "humantime_serde")]
    until: SystemTime,
}

/// A verdict, as it is shown to the person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What it did.
    pub reason: String,
    /// How long that is believed.
    pub until: SystemTime,
}

/// The verdicts; in memory, and in a file only where the person asks for that.
pub struct Verdicts {
    known: Mutex<HashMap<Target, Verdict>>,
    lifetime: Duration,
    file: Option<PathBuf>,
    noted: watch::Sender<()>,
}

impl Verdicts {
    /// With those of the file. What can't be read there is forgotten: it will be learned again.
    pub fn new(lifetime: Duration, file: Option<PathBuf>) -> Self {
        let kept: Vec<(Target, Verdict)> = match &file {
            Some(path) => std::fs::read(path)
                .ok()
                .and_then(|text| {
                    let read = serde_json::from_slice(&text);
                    read.inspect_err(|_| tracing::warn!("verdict_file can't be read; it starts anew")).ok()
                })
                .unwrap_or_default(),
            None => Vec::new(),
        };
        Self { known: Mutex::new(kept.into_iter().collect()), lifetime, file, noted: watch::Sender::new(()) }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Target, Verdict>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Did it refuse Tor not long ago?
    pub fn refuses(&self, host: &str, port: u16, now: SystemTime) -> bool {
        let target = Target(normal(host), port);
        let mut known = self.known();
        match known.get(&target) {
            // A clock that was set back must not keep one for ever.
            Some(verdict) if now < verdict.until && verdict.until <= now + self.lifetime => true,
            Some(_) => {
                known.remove(&target);
                false
            }
            None => false,
        }
    }

    /// Waits until it refuses Tor.
    pub async fn until_refused(&self, host: &str, port: u16) {
        let mut noted = self.noted.subscribe();
        while !self.refuses(host, port, SystemTime::now()) {
            if noted.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// It refused Tor just now.
    pub fn note(&self, host: &str, port: u16, reason: Reason, now: SystemTime) {
        tracing::info!(%reason, "a target turns Tor away; it is reached through an exit bridge for a while");
        let lifetime = if reason == Reason::Silent { self.lifetime.min(SILENCE) } else { self.lifetime };
        let verdict = Verdict { reason: reason.to_string(), until: now + lifetime };
        self.change(|known| {
            known.insert(Target(normal(host), port), verdict);
            if known.len() > MAX {
                known.retain(|_, verdict| verdict.until > now);
            }
            while known.len() > MAX
                && let Some(first) = known.iter().min_by_key(|(_, v)| v.until).map(|(t, _)| t.clone())
            {
                known.remove(&first);
            }
        });
    }

    /// Those that hold, by host and port.
    pub fn shown(&self, now: SystemTime) -> Vec<Shown> {
        let known = self.known();
        let holds = known.iter().filter(|(_, v)| now < v.until && v.until <= now + self.lifetime);
        let mut all: Vec<Shown> = holds
            .map(|(Target(host, port), v)| Shown {
                host: host.clone(),
                port: *port,
                reason: v.reason.clone(),
                until: v.until,
            })
            .collect();
        all.sort_by(|a, b| (&a.host, a.port).cmp(&(&b.host, b.port)));
        all
    }

    /// Why this host is believed to turn Tor away, if it is, at any port.
    pub fn reason(&self, host: &str, now: SystemTime) -> Option<String> {
        let host = normal(host);
        let known = self.known();
        let found =
            known.iter().find(|(t, v)| t.0 == host && now < v.until && v.until <= now + self.lifetime);
        found.map(|(_, v)| v.reason.clone())
    }

    /// It is asked over Tor again.
    pub fn forget(&self, host: &str, port: u16) {
        self.change(|known| {
            known.remove(&Target(normal(host), port));
        });
    }

    /// So are all.
    pub fn forget_all(&self) {
        self.change(HashMap::clear);
    }

    /// Changes them, also in the file.
    fn change(&self, change: impl FnOnce(&mut HashMap<Target, Verdict>)) {
        let text = {
            let mut known = self.known();
            change(&mut known);
            let all: Vec<_> = known.iter().collect();
            self.file.as_ref().map(|path| (path, serde_json::to_vec(&all).unwrap_or_default()))
        };
        self.noted.send_replace(());
        if let Some((path, text)) = text
            && let Err(error) = crate::private_file::write(path, &text)
        {
            tracing::warn!(%error, "verdict_file can't be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_verdict_is_believed_for_a_while() {
        let verdicts = Verdicts::new(HOUR, None);
        let now = SystemTime::now();
        assert!(!verdicts.refuses("example.com", 443, now));
        verdicts.note("Example.com.", 443, Reason::Refused, now);
        assert!(verdicts.refuses("example.com", 443, now));
        assert!(verdicts.refuses("EXAMPLE.com", 443, now + HOUR / 2));
        assert!(!verdicts.refuses("example.com", 80, now), "another port");
        assert!(!verdicts.refuses("example.com", 443, now + HOUR));
        assert!(!verdicts.refuses("example.com", 443, now), "it was forgotten");
        verdicts.note("slow.example", 443, Reason::Silent, now);
        assert!(
            verdicts.refuses("slow.example", 443, now)
                && !verdicts.refuses("slow.example", 443, now + SILENCE)
        );
        verdicts.note("example.com", 443, Reason::Closed, now);
        assert!(!verdicts.refuses("example.com", 443, now - HOUR), "the clock was set back");
    }

    #[test]
    fn the_person_sees_them_and_has_them_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("verdicts.json");
        let verdicts = Verdicts::new(HOUR, Some(file.clone()));
        let now = SystemTime::now();
        for (host, port) in [("b.example", 443), ("a.example", 80), ("b.example", 80)] {
            verdicts.note(host, port, Reason::Refused, now);
        }
        let shown = |now| verdicts.shown(now).into_iter().map(|v| (v.host, v.port)).collect::<Vec<_>>();
        assert_eq!(
            shown(now),
            [("a.example".into(), 80), ("b.example".into(), 80), ("b.example".into(), 443)]
        );
        assert_eq!(verdicts.reason("B.example", now), Some(Reason::Refused.to_string()));
        assert!(shown(now + HOUR).is_empty());
        verdicts.forget("B.example.", 443);
        assert!(!verdicts.refuses("b.example", 443, now) && verdicts.refuses("b.example", 80, now));
        assert!(!Verdicts::new(HOUR, Some(file.clone())).refuses("b.example", 443, now), "in the file, too");
        verdicts.forget_all();
        assert!(shown(now).is_empty() && Verdicts::new(HOUR, Some(file)).shown(now).is_empty());
    }

    #[test]
    fn there_is_a_bound_and_the_oldest_go() {
        let verdicts = Verdicts::new(HOUR, None);
        let now = SystemTime::now();
        for n in 0..=MAX as u64 {
            verdicts.note(&format!("{n}.example"), 80, Reason::Refused, now + Duration::from_millis(n));
        }
        let later = now + Duration::from_secs(11);
        assert_eq!(verdicts.known().len(), MAX);
        assert!(!verdicts.refuses("0.example", 80, later) && verdicts.refuses("1.example", 80, later));
    }

    #[test]
    fn they_outlive_the_program_only_where_a_file_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("verdicts.json");
        let now = SystemTime::now();
        let open = || Verdicts::new(HOUR, Some(file.clone()));
        open().note("example.com", 443, Reason::Silent, now);
        assert!(open().refuses("example.com", 443, now));
        std::fs::write(&file, "{ not json").unwrap();
        assert!(!open().refuses("example.com", 443, now));
        Verdicts::new(HOUR, None).note("example.com", 443, Reason::Silent, now);
        assert_eq!(std::fs::read(&file).unwrap(), b"{ not json");
    }
}
