//! Which targets refused Tor, for how long that is believed, and why.
//!
//! Each isolation group learns for itself. A verdict that all shared would let a site mark a visitor by the hosts that
//! refuse them Tor, and another site read the mark: see decision 0012.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::blocked::Reason;
use crate::connect::Group;
use crate::route::normal;
use crate::visits::{MAX_HOST, Site, first_party};

/// How long is believed what one Tor exit said, which may have made it up, and silence, since a circuit that had trouble
/// looks the same. As long as a circuit takes new streams: after that another exit is asked.
const ONCE: Duration = Duration::from_secs(600);

/// Most verdicts that are kept; then those who have most of them lose the one that ends first.
const MAX: usize = 10_000;

/// Most verdicts for the same credentials, likewise.
const MAX_FOR_ONE: usize = 1000;

/// Where and for whom a verdict holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    credentials: Credentials,
    host: String,
    port: u16,
}

/// A keyed hash of a stream's credentials, so that long ones take no more room; `None` for streams that have none,
/// which all share their verdicts.
type Credentials = Option<u64>;

/// That a target refused Tor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Verdict {
    reason: String,
    #[serde(with = "humantime_serde")]
    until: SystemTime,
    /// The site in the address bar, for the local page. On disk there is none.
    #[serde(skip)]
    first_party: Option<String>,
}

/// A target that turned Tor away, as it is shown to the person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The sites in the address bar for which that is known; empty where programs named none.
    pub first_parties: BTreeSet<String>,
    /// What it did.
    pub reason: String,
    /// How long that is believed.
    pub until: SystemTime,
}

/// The verdicts; in memory, and in a file only where the person asks for that, and only those of streams without
/// credentials.
pub struct Verdicts {
    known: Mutex<HashMap<Key, Verdict>>,
    lifetime: Duration,
    file: Option<PathBuf>,
    noted: watch::Sender<()>,
    hash: RandomState,
}

impl Verdicts {
    /// With those of the file. What can't be read there is forgotten: it will be learned again.
    pub fn new(lifetime: Duration, file: Option<PathBuf>) -> Self {
        let kept: Vec<((String, u16), Verdict)> = match &file {
            Some(path) => std::fs::read(path)
                .ok()
                .and_then(|text| {
                    let read = serde_json::from_slice(&text);
                    read.inspect_err(|_| tracing::warn!("verdict_file can't be read; it starts anew")).ok()
                })
                .unwrap_or_default(),
            None => Vec::new(),
        };
        let of_nobody = |(host, port)| Key { credentials: None, host, port };
        let known = kept.into_iter().take(MAX_FOR_ONE).map(|(target, v)| (of_nobody(target), v)).collect();
        let (noted, hash) = (watch::Sender::new(()), RandomState::new());
        Self { known: Mutex::new(known), lifetime, file, noted, hash }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Key, Verdict>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, group: &Group, host: &str, port: u16) -> Key {
        let credentials = Some(&group.credentials).filter(|given| !given.is_empty());
        Key { credentials: credentials.map(|given| self.hash.hash_one(given)), host: normal(host), port }
    }

    /// A clock that was set back must not keep one for ever.
    fn holds(&self, verdict: &Verdict, now: SystemTime) -> bool {
        now < verdict.until && verdict.until <= now + self.lifetime
    }

    /// Did it refuse Tor to this group, or another one with its credentials, not long ago?
    pub fn refuses(&self, group: &Group, host: &str, port: u16, now: SystemTime) -> bool {
        let key = self.key(group, host, port);
        let mut known = self.known();
        match known.get(&key) {
            Some(verdict) if self.holds(verdict, now) => true,
            Some(verdict) if self.is_remembered(verdict, now) => false,
            Some(_) => {
                known.remove(&key);
                false
            }
            None => false,
        }
    }

    /// It may be over, but when it is met again, that is the second time.
    fn is_remembered(&self, verdict: &Verdict, now: SystemTime) -> bool {
        now < verdict.until + self.lifetime && verdict.until <= now + self.lifetime
    }

    /// Waits until it refuses Tor to this group.
    pub async fn until_refused(&self, group: &Group, host: &str, port: u16) {
        let mut noted = self.noted.subscribe();
        while !self.refuses(group, host, port, SystemTime::now()) {
            if noted.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// It refused Tor to this group just now, as a Tor exit says. The first time that is believed for a short while, and
    /// then for a long one.
    pub fn note(&self, group: &Group, host: &str, port: u16, reason: Reason, now: SystemTime) {
        self.insert(group, host, port, reason, false, now);
    }

    /// The same, by the site's own word, which no exit can make up.
    pub fn note_proven(&self, group: &Group, host: &str, port: u16, reason: Reason, now: SystemTime) {
        self.insert(group, host, port, reason, true, now);
    }

    fn insert(&self, group: &Group, host: &str, port: u16, reason: Reason, proven: bool, now: SystemTime) {
        tracing::info!(%reason, "a target turns Tor away; it is reached through an exit bridge for a while");
        let first_party = first_party(&group.credentials);
        let key = self.key(group, host, port);
        if key.host.len() > MAX_HOST {
            return;
        }
        self.change(|known| {
            // Streams side by side meet the same exit: only what comes after that time is another word.
            let before = known.get(&key).filter(|v| self.is_remembered(v, now));
            let again = before.is_some_and(|v| v.until <= now);
            let long = proven || (again && reason != Reason::Silent);
            let lifetime = if long { self.lifetime } else { self.lifetime.min(ONCE) };
            let until = before.map_or(now, |v| v.until).max(now + lifetime);
            let whose = key.credentials;
            known.insert(key, Verdict { reason: reason.to_string(), until, first_party });
            make_room(known, whose);
        });
    }

    /// Those that hold, by host and port, for all groups.
    pub fn shown(&self, now: SystemTime) -> Vec<Shown> {
        let known = self.known();
        let mut all: HashMap<(&str, u16), Shown> = HashMap::new();
        for (key, verdict) in known.iter().filter(|(_, v)| self.holds(v, now)) {
            let shown = all.entry((&key.host, key.port)).or_insert_with(|| Shown {
                host: key.host.clone(),
                port: key.port,
                first_parties: BTreeSet::new(),
                reason: verdict.reason.clone(),
                until: verdict.until,
            });
            shown.first_parties.extend(verdict.first_party.clone());
            if shown.until < verdict.until {
                (shown.reason, shown.until) = (verdict.reason.clone(), verdict.until);
            }
        }
        let mut all: Vec<Shown> = all.into_values().collect();
        all.sort_by(|a, b| (&a.host, a.port).cmp(&(&b.host, b.port)));
        all
    }

    /// Why this site is believed to turn Tor away, if it is, at any port.
    pub fn reason(&self, site: &Site, now: SystemTime) -> Option<String> {
        let host = normal(&site.host);
        let known = self.known();
        let here = |key: &Key, v: &Verdict| key.host == host && v.first_party == site.first_party;
        known.iter().find(|(key, v)| here(key, v) && self.holds(v, now)).map(|(_, v)| v.reason.clone())
    }

    /// It is asked over Tor again, whoever asks.
    pub fn forget(&self, host: &str, port: u16) {
        let host = normal(host);
        self.change(|known| known.retain(|key, _| (&key.host, key.port) != (&host, port)));
    }

    /// So are all.
    pub fn forget_all(&self) {
        self.change(HashMap::clear);
    }

    /// Changes them, also in the file.
    fn change(&self, change: impl FnOnce(&mut HashMap<Key, Verdict>)) {
        let text = {
            let mut known = self.known();
            change(&mut known);
            self.file.as_ref().map(|path| {
                let of_nobody = known.iter().filter(|(key, _)| key.credentials.is_none());
                let all: Vec<_> = of_nobody.map(|(key, v)| ((&key.host, key.port), v)).collect();
                (path, serde_json::to_vec(&all).unwrap_or_default())
            })
        };
        self.noted.send_replace(());
        if let Some((path, text)) = text
            && let Err(error) = eebt_page::private_file::write(path, &text)
        {
            tracing::warn!(%error, "verdict_file can't be written");
        }
    }
}

/// Keeps the bounds after one more for `whose`. Nobody makes others forget but who has more than they.
fn make_room(known: &mut HashMap<Key, Verdict>, whose: Credentials) {
    let too_many = if known.keys().filter(|key| key.credentials == whose).count() > MAX_FOR_ONE {
        Some(whose)
    } else if known.len() > MAX {
        let mut counts: HashMap<Credentials, usize> = HashMap::new();
        known.keys().for_each(|key| *counts.entry(key.credentials).or_default() += 1);
        counts.into_iter().max_by_key(|(_, n)| *n).map(|(most, _)| most)
    } else {
        None
    };
    if let Some(too_many) = too_many {
        let theirs = known.iter().filter(|(key, _)| key.credentials == too_many);
        let first = theirs.min_by_key(|(_, v)| v.until).map(|(key, _)| key.clone());
        first.map(|key| known.remove(&key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect::Protocol;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Streams with this user name; with an empty one, those without credentials.
    fn group(user: &str) -> Group {
        let credentials = match u8::try_from(user.len()) {
            Ok(0) | Err(_) => Vec::new(),
            Ok(length) => [&[5, length], user.as_bytes(), b"password"].concat(),
        };
        let listener = ([127, 0, 0, 1], 9150).into();
        Group { listener, protocol: Protocol::Socks5, peer: [127, 0, 0, 1].into(), credentials }
    }

    #[test]
    fn a_verdict_is_believed_for_a_while() {
        let (verdicts, all) = (Verdicts::new(HOUR, None), group(""));
        let now = SystemTime::now();
        assert!(!verdicts.refuses(&all, "example.com", 443, now));
        verdicts.note(&all, "Example.com.", 443, Reason::Refused, now);
        assert!(verdicts.refuses(&all, "example.com", 443, now));
        assert!(verdicts.refuses(&all, "EXAMPLE.com", 443, now + ONCE / 2));
        assert!(!verdicts.refuses(&all, "example.com", 80, now), "another port");
        assert!(!verdicts.refuses(&all, "example.com", 443, now + ONCE));
        verdicts.note_proven(&all, "proven.example", 443, Reason::Status(403), now);
        assert!(verdicts.refuses(&all, "proven.example", 443, now + HOUR / 2));
        assert!(!verdicts.refuses(&all, "proven.example", 443, now + HOUR));
        assert!(!verdicts.refuses(&all, "proven.example", 443, now + 2 * HOUR));
        assert!(!verdicts.refuses(&all, "proven.example", 443, now), "it was forgotten");
        verdicts.note_proven(&all, "example.com", 443, Reason::Closed, now);
        assert!(!verdicts.refuses(&all, "example.com", 443, now - HOUR), "the clock was set back");
    }

    #[test]
    fn what_one_exit_says_is_believed_for_a_short_while_and_what_the_next_one_confirms_for_long() {
        let (verdicts, all, now) = (Verdicts::new(HOUR, None), group(""), SystemTime::now());
        let refuses = |host: &str, at| verdicts.refuses(&all, host, 443, at);
        // Two streams side by side say no more than one.
        for _ in 0..2 {
            verdicts.note(&all, "a.example", 443, Reason::Closed, now);
        }
        assert!(refuses("a.example", now + ONCE / 2) && !refuses("a.example", now + ONCE));
        let second = now + ONCE * 2;
        verdicts.note(&all, "a.example", 443, Reason::Refused, second);
        assert!(refuses("a.example", second + HOUR / 2) && !refuses("a.example", second + HOUR));
        // What came long ago is no confirmation, nor is silence after silence.
        verdicts.note(&all, "b.example", 443, Reason::Closed, now);
        let late = now + ONCE + HOUR;
        verdicts.note(&all, "b.example", 443, Reason::Closed, late);
        assert!(refuses("b.example", late) && !refuses("b.example", late + ONCE));
        for at in [now, second] {
            verdicts.note(&all, "slow.example", 443, Reason::Silent, at);
            assert!(refuses("slow.example", at) && !refuses("slow.example", at + ONCE));
        }
        // And a short one does not cut a long one.
        verdicts.note_proven(&all, "c.example", 443, Reason::Status(403), now);
        verdicts.note(&all, "c.example", 443, Reason::Closed, now);
        assert!(refuses("c.example", now + HOUR / 2));
    }

    #[test]
    fn what_one_site_did_to_a_visitor_another_site_cannot_read() {
        // The first site writes 32 bits: hosts of its helper's that refuse Tor, or do not.
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("verdicts.json");
        let (verdicts, now) = (Verdicts::new(HOUR, Some(file.clone())), SystemTime::now());
        let (a, b) = (group("a.example"), group("b.example"));
        let hosts: Vec<String> = (0..32).map(|n| format!("b{n}.tracker.example")).collect();
        let written = |n: usize| 0xC0FF_EE11_u32 >> n & 1 == 1;
        for (n, host) in hosts.iter().enumerate().filter(|(n, _)| written(*n)) {
            verdicts.note(&a, host, 443, Reason::Closed, now);
            assert!(written(n) && verdicts.refuses(&a, host, 443, now));
        }
        let new_identity = Group { credentials: [&a.credentials[..], b"2"].concat(), ..a.clone() };
        for reader in [&b, &new_identity, &group("")] {
            assert!(hosts.iter().all(|host| !verdicts.refuses(reader, host, 443, now)));
        }
        assert_eq!(std::fs::read(file).unwrap(), b"[]", "nor is it in the file");
        // Streams without credentials are not told apart, whatever else differs.
        verdicts.note(&group(""), "c.example", 443, Reason::Closed, now);
        let other = Group { protocol: Protocol::HttpConnect, ..group("") };
        assert!(verdicts.refuses(&other, "c.example", 443, now));
        assert!(!verdicts.refuses(&a, "c.example", 443, now));
    }

    #[tokio::test]
    async fn only_the_groups_own_verdict_ends_its_streams() {
        let verdicts = Verdicts::new(HOUR, None);
        let (a, b) = (group("a.example"), group("b.example"));
        let waiting = async {
            tokio::select! {
                () = verdicts.until_refused(&a, "x.example", 443) => true,
                () = verdicts.until_refused(&b, "x.example", 443) => false,
            }
        };
        let noting = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            verdicts.note(&group("c.example"), "x.example", 443, Reason::Closed, SystemTime::now());
            tokio::time::sleep(Duration::from_millis(50)).await;
            verdicts.note(&a, "x.example", 443, Reason::Closed, SystemTime::now());
        };
        assert!(tokio::join!(waiting, noting).0);
    }

    #[test]
    fn the_person_sees_them_and_has_them_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("verdicts.json");
        let verdicts = Verdicts::new(HOUR, Some(file.clone()));
        let (now, all) = (SystemTime::now(), group(""));
        for (host, port) in [("b.example", 443), ("a.example", 80), ("b.example", 80)] {
            verdicts.note(&all, host, port, Reason::Refused, now);
        }
        for (n, party) in ["two.example", "one.example"].into_iter().enumerate() {
            let later = now + Duration::from_secs(n as u64);
            verdicts.note(&group(party), "b.example", 443, Reason::Closed, later);
        }
        let shown = |now| verdicts.shown(now).into_iter().map(|v| (v.host, v.port)).collect::<Vec<_>>();
        let later = now + Duration::from_secs(2);
        assert_eq!(
            shown(later),
            [("a.example".into(), 80), ("b.example".into(), 80), ("b.example".into(), 443)]
        );
        let both = &verdicts.shown(later)[2];
        assert!(both.first_parties.iter().eq(["one.example", "two.example"]));
        assert_eq!(both.reason, Reason::Closed.to_string(), "the last one");
        let site = |party: Option<&str>, host: &str| Site {
            first_party: party.map(str::to_owned),
            host: host.to_owned(),
        };
        assert_eq!(verdicts.reason(&site(None, "B.example"), later), Some(Reason::Refused.to_string()));
        let closed = verdicts.reason(&site(Some("one.example"), "b.example"), later);
        assert_eq!(closed, Some(Reason::Closed.to_string()));
        assert_eq!(verdicts.reason(&site(Some("one.example"), "a.example"), later), None);
        assert!(shown(now + 2 * HOUR).is_empty());
        verdicts.forget("B.example.", 443);
        assert!(!verdicts.refuses(&all, "b.example", 443, later));
        assert!(!verdicts.refuses(&group("one.example"), "b.example", 443, later));
        assert!(verdicts.refuses(&all, "b.example", 80, later));
        let read = Verdicts::new(HOUR, Some(file.clone()));
        assert!(!read.refuses(&all, "b.example", 443, later), "in the file, too");
        assert!(read.refuses(&all, "b.example", 80, later));
        verdicts.forget_all();
        assert!(shown(later).is_empty() && Verdicts::new(HOUR, Some(file)).shown(later).is_empty());
    }

    #[test]
    fn there_is_a_bound_and_who_has_most_loses_the_oldest() {
        let verdicts = Verdicts::new(HOUR, None);
        let now = SystemTime::now();
        let note = |group: &Group, n: usize| {
            let at = now + Duration::from_millis(n as u64);
            verdicts.note(group, &format!("{n}.example"), 80, Reason::Refused, at);
        };
        note(&group("victim.example"), 0);
        (0..=MAX_FOR_ONE).for_each(|n| note(&group("flood.example"), n));
        let refuses = |user: &str, n: usize| {
            verdicts.refuses(&group(user), &format!("{n}.example"), 80, now + ONCE / 2)
        };
        assert_eq!(verdicts.known().len(), 1 + MAX_FOR_ONE);
        assert!(!refuses("flood.example", 0) && refuses("flood.example", 1) && refuses("victim.example", 0));
        for flood in 0..MAX / MAX_FOR_ONE {
            (0..MAX_FOR_ONE).for_each(|n| note(&group(&format!("f{flood}.example")), n));
        }
        assert_eq!(verdicts.known().len(), MAX);
        assert!(refuses("victim.example", 0), "it had fewer than they");
        let long = "a".repeat(MAX_HOST + 1);
        verdicts.note(&group(""), &long, 80, Reason::Refused, now);
        assert!(!verdicts.refuses(&group(""), &long, 80, now), "no host");
    }

    #[test]
    fn they_outlive_the_program_only_where_a_file_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("verdicts.json");
        let (now, all) = (SystemTime::now(), group(""));
        let open = || Verdicts::new(HOUR, Some(file.clone()));
        open().note(&all, "example.com", 443, Reason::Silent, now);
        assert!(open().refuses(&all, "example.com", 443, now));
        std::fs::write(&file, "{ not json").unwrap();
        assert!(!open().refuses(&all, "example.com", 443, now));
        Verdicts::new(HOUR, None).note(&all, "example.com", 443, Reason::Silent, now);
        assert_eq!(std::fs::read(&file).unwrap(), b"{ not json");
    }
}
