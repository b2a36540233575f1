//! What was carried, day by day, and the caps on it.
//!
//! Written ahead: the file counts what may be carried until it is written again. After a crash the cap is reached a
//! little too early, and never too late.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use eebt_page::private_file;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use crate::settings::Limits;

/// The file's name in the state folder.
const FILE: &str = "usage.json";

/// Tenths of a byte that one byte we carry makes on the line. It passes twice: to or from its target, with
/// 5 % of TCP/IP headers and acknowledgements; and to or from Tor, where cells (514 bytes for 498), TLS, TCP/IP
/// and flow control add some 15 %.
const TENTHS_ON_THE_LINE: u64 = 22;

/// Days that are kept.
const KEPT: usize = 400;

/// A cap that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cap {
    /// That of the day.
    Day,
    /// That of the month.
    Month,
}

/// One day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Day {
    /// Bytes that people sent to sites.
    pub up: u64,
    /// Bytes that sites sent to people.
    pub down: u64,
    /// Seconds in which it served.
    pub seconds: u64,
    /// Circuits of people that were met.
    pub people: u64,
    /// Bytes that may have been carried before a crash, and are held against the caps.
    pub lost: u64,
}

impl Day {
    fn add(&mut self, other: Self) {
        self.up += other.up;
        self.down += other.down;
        self.seconds += other.seconds;
        self.people += other.people;
        self.lost += other.lost;
    }

    /// Bytes carried, both ways.
    pub fn carried(&self) -> u64 {
        self.up + self.down
    }

    /// Bytes that count against the caps.
    pub fn on_the_line(&self) -> u64 {
        on_the_line(self.carried() + self.lost)
    }
}

/// Bytes on the line of bytes carried.
pub fn on_the_line(carried: u64) -> u64 {
    carried.saturating_mul(TENTHS_ON_THE_LINE) / 10
}

/// As the file has it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    days: BTreeMap<Date, Day>,
    /// Bytes that may have been carried since it was written.
    ahead: u64,
}

/// All days.
#[derive(Debug)]
pub struct Usage {
    path: PathBuf,
    days: BTreeMap<Date, Day>,
}

/// Why it can't be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {}", path.display())]
pub struct UsageError {
    path: PathBuf,
    source: std::io::Error,
}

impl Usage {
    /// What the state folder knows. A file that can't be read is an error: without it the caps are not kept.
    ///
    /// # Errors
    /// [`UsageError`].
    pub fn load(state_dir: &Path, today: Date) -> Result<Self, UsageError> {
        let path = state_dir.join(FILE);
        let failed = |source| UsageError { path: path.clone(), source };
        let Kept { mut days, ahead } = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(failed(error)),
        };
        if ahead > 0 {
            // It was not ended in order. On the day it was written, or on this one: the later one holds it longer.
            days.entry(today).or_default().lost += ahead;
        }
        Ok(Self { path, days })
    }

    /// Adds what was carried.
    pub fn add(&mut self, today: Date, more: Day) {
        self.days.entry(today).or_default().add(more);
        while self.days.len() > KEPT {
            self.days.pop_first();
        }
    }

    /// The cap that is reached, if one is.
    pub fn cap(&self, limits: &Limits, today: Date) -> Option<Cap> {
        let over = |limit: Option<u32>, used: u64| limit.is_some_and(|mb| used >= u64::from(mb) * 1_000_000);
        if over(limits.day_mb, self.day(today).on_the_line()) {
            return Some(Cap::Day);
        }
        over(limits.month_mb, self.month(today).on_the_line()).then_some(Cap::Month)
    }

    /// One day.
    pub fn day(&self, day: Date) -> Day {
        self.days.get(&day).copied().unwrap_or_default()
    }

    /// The calendar month of a day, up to it.
    pub fn month(&self, today: Date) -> Day {
        self.since(today.first_of_month())
    }

    /// From a day on.
    pub fn since(&self, first: Date) -> Day {
        let mut sum = Day::default();
        self.days.range(first..).for_each(|(_, day)| sum.add(*day));
        sum
    }

    /// Writes it. `ahead` are bytes that may be carried until it is written again.
    ///
    /// # Errors
    /// [`UsageError`].
    pub fn save(&self, ahead: u64) -> Result<(), UsageError> {
        let failed = |source| UsageError { path: self.path.clone(), source };
        let kept = Kept { days: self.days.clone(), ahead };
        let text = serde_json::to_vec(&kept).map_err(|error| failed(error.into()))?;
        private_file::write(&self.path, &text).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(text: &str) -> Date {
        text.parse().unwrap()
    }

    fn carried(down: u64) -> Day {
        Day { down, ..Day::default() }
    }

    #[test]
    fn caps_of_day_and_month_hold_and_end() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { day_mb: Some(22), month_mb: Some(65), ..Limits::default() };
        let mut usage = Usage::load(dir.path(), date("2026-11-29")).unwrap();
        usage.add(date("2026-11-29"), carried(9_990_000));
        assert_eq!(usage.cap(&limits, date("2026-11-29")), None);
        usage.add(date("2026-11-29"), carried(10_000));
        assert_eq!(usage.cap(&limits, date("2026-11-29")), Some(Cap::Day));
        assert_eq!(usage.cap(&limits, date("2026-11-30")), None);
        usage.add(date("2026-11-30"), carried(9_900_000));
        usage.add(date("2026-11-28"), carried(9_900_000));
        assert_eq!(usage.cap(&limits, date("2026-11-30")), Some(Cap::Month));
        assert_eq!(usage.cap(&limits, date("2026-12-01")), None);
        let none = Limits { day_mb: None, month_mb: None, ..limits };
        assert_eq!(usage.cap(&none, date("2026-11-30")), None);
    }

    #[test]
    fn a_crash_counts_what_may_have_been_carried_and_an_ordered_end_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let today = date("2026-11-27");
        let limits = Limits { day_mb: Some(21), ..Limits::default() };
        let mut usage = Usage::load(dir.path(), today).unwrap();
        usage.add(today, Day { up: 1, down: 2, seconds: 3, people: 4, lost: 0 });
        usage.save(10_000_000).unwrap();
        let after_crash = Usage::load(dir.path(), today).unwrap();
        assert_eq!(after_crash.cap(&limits, today), Some(Cap::Day));
        assert_eq!(
            after_crash.day(today).carried(),
            3,
            "it is held against the cap, and not shown as carried"
        );
        usage.save(0).unwrap();
        let in_order = Usage::load(dir.path(), today).unwrap();
        assert_eq!((in_order.cap(&limits, today), in_order.day(today).people), (None, 4));
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(Usage::load(dir.path(), today).is_err());
    }

    #[test]
    fn a_year_is_kept_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let mut day = date("2025-01-01");
        let mut usage = Usage::load(dir.path(), day).unwrap();
        for _ in 0..500 {
            usage.add(day, carried(1));
            day = day.tomorrow().unwrap();
        }
        assert_eq!(usage.since(date("2020-01-01")).down, KEPT as u64);
    }
}
