//! When this home served, and what directories said of it: what receipts are made of. No targets, no people, no counts.

use std::path::{Path, PathBuf};

use eebt_page::private_file;
use eebt_proto::limits::MAX_CLOCK_SKEW;
use eebt_proto::{Attestation, SignedDocument};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// The file's name in the state folder.
const FILE: &str = "served.json";

/// What is kept: so many intervals, and those that ended in the last 13 months.
const KEPT: usize = 800;
const KEPT_FOR: SignedDuration = SignedDuration::from_hours(400 * 24);

/// Most attestations of one directory in one interval.
const OF_ONE_DIRECTORY: usize = 8;

/// Most attestations of one interval; each directory has one as long as nothing breaks.
const ATTESTATIONS: usize = 64;

/// Longest time between two notes of one interval. After a longer one the machine slept.
const GAP: SignedDuration = SignedDuration::from_secs(120);

/// How often it is written while nothing happens.
const SAVE_EVERY: SignedDuration = SignedDuration::from_secs(60);

/// A time in which the exit bridge served, and who saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// From when, by this machine's clock.
    pub from: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// What directories signed.
    #[serde(default)]
    pub attestations: Vec<SignedDocument>,
}

/// As the file has it.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    intervals: Vec<Interval>,
}

/// All intervals.
#[derive(Debug)]
pub struct Served {
    path: PathBuf,
    intervals: Vec<Interval>,
    /// The last one goes on.
    open: bool,
    saved: Timestamp,
}

/// Why it can't be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {}", path.display())]
pub struct ServedError {
    path: PathBuf,
    source: std::io::Error,
}

impl Interval {
    /// Is the attestation about a time in it, or near to it by another clock?
    pub(crate) fn touches(&self, seen: &Attestation) -> bool {
        let (Some(from), Some(until)) = (timestamp(seen.from), timestamp(seen.until)) else { return false };
        let skew = SignedDuration::try_from(MAX_CLOCK_SKEW).unwrap_or_default();
        until.duration_since(self.from) >= -skew && self.until.duration_since(from) >= -skew
    }

    /// Takes in what is new. Was there anything?
    fn take(&mut self, attestations: &[SignedDocument]) -> bool {
        let mut any = false;
        for new in attestations {
            if self.attestations.contains(new) {
                continue;
            }
            // One of before the machine slept stays where it is.
            let Some(seen) = Attestation::verify(new).ok().filter(|seen| self.touches(seen)) else {
                continue;
            };
            let known: Vec<_> = self.attestations.iter().map(|old| Attestation::verify(old).ok()).collect();
            let goes_on = |old: &Attestation| Attestation { until: seen.until, ..old.clone() } == seen;
            let same = |old: &Attestation| old.directory == seen.directory;
            let of_it: Vec<_> = (0..known.len()).filter(|i| known[*i].as_ref().is_some_and(same)).collect();
            let place = known.iter().position(|old| old.as_ref().is_some_and(goes_on));
            // One directory's shall not push the others' out.
            let place = place.or(of_it.last().copied().filter(|_| of_it.len() >= OF_ONE_DIRECTORY));
            match place {
                Some(place) => self.attestations[place] = new.clone(),
                None => self.attestations.push(new.clone()),
            }
            any = true;
        }
        let over = self.attestations.len().saturating_sub(ATTESTATIONS);
        self.attestations.drain(..over);
        any
    }
}

impl Served {
    /// What the state folder knows. An interval that was not ended in order ends at its last note that was written.
    ///
    /// # Errors
    /// [`ServedError`].
    pub fn load(state_dir: &Path) -> Result<Self, ServedError> {
        let path = state_dir.join(FILE);
        let failed = |source| ServedError { path: path.clone(), source };
        let Kept { intervals } = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(failed(error)),
        };
        Ok(Self { path, intervals, open: false, saved: Timestamp::MIN })
    }

    /// It serves now, and these are the last words of directories. To be called every few seconds while it serves.
    ///
    /// # Errors
    /// [`ServedError`]; it is noted all the same, and written the next time.
    pub fn note(&mut self, now: Timestamp, attestations: &[SignedDocument]) -> Result<(), ServedError> {
        let goes_on = |last: &&mut Interval| now.duration_since(last.until).abs() <= GAP;
        let mut news = false;
        match self.intervals.last_mut().filter(|_| self.open).filter(goes_on) {
            Some(last) => last.until = last.until.max(now),
            None => {
                self.intervals.push(Interval { from: now, until: now, attestations: Vec::new() });
                (self.open, news) = (true, true);
            }
        }
        if let Some(last) = self.intervals.last_mut() {
            news |= last.take(attestations);
        }
        let old = |i: &Interval| now.duration_since(i.until) > KEPT_FOR;
        let over = self.intervals.len().saturating_sub(KEPT);
        let over = over.max(self.intervals.iter().take_while(|i| old(i)).count());
        self.intervals.drain(..over);
        match news || now.duration_since(self.saved).abs() >= SAVE_EVERY {
            true => self.save(now),
            false => Ok(()),
        }
    }

    /// It ended to serve, in order.
    ///
    /// # Errors
    /// [`ServedError`].
    pub fn end(&mut self, now: Timestamp) -> Result<(), ServedError> {
        if !std::mem::take(&mut self.open) {
            return Ok(());
        }
        if let Some(last) = self.intervals.last_mut()
            && now.duration_since(last.until).abs() <= GAP
        {
            last.until = last.until.max(now);
        }
        self.save(now)
    }

    /// The last one.
    pub fn last(&self) -> Option<&Interval> {
        self.intervals.last()
    }

    /// Those of which a part lies between these times, the older ones first.
    pub fn between(&self, first: Timestamp, last: Timestamp) -> Vec<Interval> {
        let some = self.intervals.iter().filter(|i| i.until >= first && i.from <= last);
        some.cloned().collect()
    }

    fn save(&mut self, now: Timestamp) -> Result<(), ServedError> {
        let failed = |source| ServedError { path: self.path.clone(), source };
        // Not again with the next note if it fails, but soon.
        self.saved = now;
        let kept = Kept { intervals: std::mem::take(&mut self.intervals) };
        let text = serde_json::to_vec(&kept);
        self.intervals = kept.intervals;
        private_file::write(&self.path, &text.map_err(|error| failed(error.into()))?).map_err(failed)
    }
}

/// A time of the protocol as one of ours.
pub(crate) fn timestamp(at: std::time::SystemTime) -> Option<Timestamp> {
    Timestamp::try_from(at).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use ed25519_dalek::{Signer as _, SigningKey};
    use eebt_proto::OnionReach;
    use std::time::SystemTime;

    pub(crate) fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    pub(crate) fn onion(n: u8) -> OnionReach {
        OnionReach { service: key(n).verifying_key().to_bytes() }
    }

    pub(crate) fn at(text: &str) -> Timestamp {
        format!("2026-12-01T{text}Z").parse().unwrap()
    }

    /// What directory `n` says of exit bridge 1.
    pub(crate) fn attestation(n: u8, from: Timestamp, until: Timestamp) -> Attestation {
        Attestation {
            identity: onion(1).service,
            egress: "203.0.113.7".parse().unwrap(),
            from: SystemTime::from(from),
            until: SystemTime::from(until),
            directory: onion(n),
        }
    }

    pub(crate) fn attested(n: u8, from: &str, until: &str) -> SignedDocument {
        attestation(n, at(from), at(until)).sign(|bytes| key(n).sign(bytes).to_bytes())
    }

    fn times(served: &Served) -> Vec<(Timestamp, Timestamp)> {
        served.intervals.iter().map(|i| (i.from, i.until)).collect()
    }

    #[test]
    fn an_interval_lasts_while_it_is_noted_and_ends_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut served = Served::load(dir.path()).unwrap();
        served.end(at("10:00:00")).unwrap();
        assert!(!dir.path().join(FILE).exists(), "nothing ended");
        for second in 0..9 {
            served.note(at(&format!("10:00:0{second}")), &[]).unwrap();
        }
        served.end(at("10:00:10")).unwrap();
        served.end(at("10:00:20")).unwrap();
        served.note(at("10:00:30"), &[]).unwrap();
        served.end(at("10:00:40")).unwrap();
        let expected = [(at("10:00:00"), at("10:00:10")), (at("10:00:30"), at("10:00:40"))];
        assert_eq!(times(&served), expected);
        assert_eq!(times(&Served::load(dir.path()).unwrap()), expected);
        assert_eq!(served.between(at("10:00:11"), at("10:00:29")), []);
        assert_eq!(served.between(at("10:00:10"), at("10:00:29")).len(), 1);
        assert_eq!(served.between(at("09:00:00"), at("11:00:00")).len(), 2);
    }

    #[test]
    fn after_a_crash_it_ends_at_the_last_note_that_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut served = Served::load(dir.path()).unwrap();
        for minute in 10..20 {
            served.note(at(&format!("10:{minute}:00")), &[]).unwrap();
        }
        served.note(at("10:19:30"), &[]).unwrap(); // not written yet
        let mut again = Served::load(dir.path()).unwrap();
        assert_eq!(times(&again), [(at("10:10:00"), at("10:19:00"))]);
        // It starts again at once: that is another interval all the same.
        again.note(at("10:19:40"), &[]).unwrap();
        assert_eq!(times(&again), [(at("10:10:00"), at("10:19:00")), (at("10:19:40"), at("10:19:40"))]);
    }

    #[test]
    fn a_machine_that_slept_or_whose_clock_jumped_did_not_serve_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let mut served = Served::load(dir.path()).unwrap();
        let before = attested(2, "10:00:00", "10:00:30");
        for now in ["10:00:00", "10:01:00", "13:00:00", "13:00:01", "09:00:00", "09:00:02", "09:00:01"] {
            served.note(at(now), std::slice::from_ref(&before)).unwrap();
        }
        assert_eq!(
            times(&served),
            [
                (at("10:00:00"), at("10:01:00")),
                (at("13:00:00"), at("13:00:01")),
                (at("09:00:00"), at("09:00:02"))
            ]
        );
        let counts: Vec<_> = served.intervals.iter().map(|i| i.attestations.len()).collect();
        assert_eq!(counts, [1, 0, 0], "what was said before is not said of later");
        // It ended while it slept.
        served.end(at("12:00:00")).unwrap();
        assert_eq!(served.intervals[2].until, at("09:00:02"));
    }

    #[test]
    fn the_last_word_of_each_directory_stays_and_is_written_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut served = Served::load(dir.path()).unwrap();
        served.note(at("10:00:00"), &[]).unwrap();
        let first = attested(2, "10:00:05", "10:00:05");
        served.note(at("10:00:06"), std::slice::from_ref(&first)).unwrap();
        let longer = attested(2, "10:00:05", "10:00:20");
        let anew = attested(2, "10:00:21", "10:00:21");
        let other = attested(3, "10:00:05", "10:00:21");
        let forged = attestation(2, at("10:00:05"), at("10:00:22")).sign(|b| key(3).sign(b).to_bytes());
        served.note(at("10:00:20"), &[longer.clone(), forged]).unwrap();
        served.note(at("10:00:22"), &[anew.clone(), other.clone()]).unwrap();
        let again = Served::load(dir.path()).unwrap();
        assert_eq!(again.intervals[0].attestations, [longer, anew, other]);
        assert_eq!(again.intervals[0].until, at("10:00:22"));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut served = Served::load(dir.path()).unwrap();
        let start = at("00:00:00");
        let hour = SignedDuration::from_hours(1);
        let one =
            |n: i32| Interval { from: start + hour * n, until: start + hour * n, attestations: Vec::new() };
        served.intervals = (0..900).map(one).collect();
        served.note(start + hour * 900, &[]).unwrap();
        assert_eq!((served.intervals.len(), served.intervals[0].from), (KEPT, start + hour * 101));
        served.note(start + hour * 200 + KEPT_FOR, &[]).unwrap();
        assert_eq!(served.intervals[0].from, start + hour * 200);
        let interval = served.intervals.last_mut().unwrap();
        let far = |n: i64| start + hour * 200 + KEPT_FOR + SignedDuration::from_secs(n);
        let of = |directory: u8, n| {
            attestation(directory, far(n), far(n)).sign(|b| key(directory).sign(b).to_bytes())
        };
        let many: Vec<_> = (0..70).map(|n| of(2, n)).collect();
        assert!(interval.take(&many));
        assert_eq!(interval.attestations, [&many[..7], &many[69..]].concat(), "those of one directory");
        for directory in 3..12 {
            interval.take(&(0..8).map(|n| of(directory, n)).collect::<Vec<_>>());
        }
        assert_eq!(interval.attestations.len(), ATTESTATIONS);
    }

    #[test]
    fn a_file_that_is_damaged_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(Served::load(dir.path()).unwrap_err().to_string().ends_with("served.json"));
    }
}
