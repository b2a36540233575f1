//! What the owner chose. Kept in the state folder; the page and `hebtor-volunteer set` change it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use eebt_page::private_file;
use eebt_proto::Country;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The file's name in the state folder.
const FILE: &str = "settings.json";

/// Which text the owner agrees to. A new one, when what it says changes in earnest, asks again.
pub const CONSENT: u32 = 1;

/// All of it. Every default is safe: nothing runs before [`Settings::consent`] is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// When the owner agreed, and to what.
    pub consent: Option<Consent>,
    /// On, off or paused.
    pub switch: Switch,
    /// When it is to rest.
    pub rules: Rules,
    /// How much it may take.
    pub limits: Limits,
    /// What may leave.
    pub leave: Leave,
    /// When the owner last saved a copy of the identity.
    pub backed_up: Option<Timestamp>,
}

/// The owner's word that this address may be lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consent {
    /// When it was given.
    pub at: Timestamp,
    /// Which text was shown.
    pub version: u32,
}

/// The owner's main switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Switch {
    /// Serves when the rules let it.
    #[default]
    On,
    /// Never serves.
    Off,
    /// Serves again from this time on.
    Paused(Timestamp),
}

/// When it rests. Each rule can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// Minutes without a key or a pointer movement after which the machine counts as idle.
    pub idle_minutes: Option<u32>,
    /// Rest on battery.
    pub battery: bool,
    /// Rest on a metered line.
    pub metered: bool,
    /// Rest while a VPN is in the way: its address would be lent, not this home's.
    pub vpn: bool,
    /// Rest behind a page that wants a log-in.
    pub captive_portal: bool,
    /// Rest while a program fills the screen: a film, a game, a talk.
    pub full_screen: bool,
    /// Rest while the line carries more than this for others, in kilobytes a second.
    pub other_traffic_kbs: Option<u32>,
    /// Serve only at these hours.
    pub hours: Option<Hours>,
}

/// Hours of the day, in minutes from midnight, local time. They may go past midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hours {
    /// The first minute.
    pub from: u16,
    /// The minute that is out again.
    pub to: u16,
}

/// How much it may take of this machine and its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// What people send to sites, in kilobytes a second. It passes the line twice: in from Tor, and out.
    pub up_kbs: u32,
    /// What sites send to people; this, too, passes the line twice.
    pub down_kbs: u32,
    /// Megabytes on the line in a day; as many as it likes without it.
    pub day_mb: Option<u32>,
    /// Megabytes on the line in a calendar month.
    pub month_mb: Option<u32>,
    /// People at once.
    pub clients: u32,
    /// Memory for what waits to be sent, in MiB.
    pub memory_mib: u32,
    /// Time of one processor, in percent.
    pub cpu_percent: u32,
    /// How long what is open may go on after it was told to rest, in seconds.
    pub drain_seconds: u32,
}

/// What may leave from this address. Web ports in each case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Leave {
    /// Only sites of these [categories](crate::categories); all, where there is none.
    pub only: Vec<String>,
    /// A file of domains that are never visited.
    pub block_list: Option<PathBuf>,
    /// Tell exit-bridge directories this country, so that people who ask for it find this address.
    pub country: Option<Country>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            idle_minutes: Some(5),
            battery: true,
            metered: true,
            vpn: true,
            captive_portal: true,
            full_screen: true,
            other_traffic_kbs: Some(500),
            hours: None,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            up_kbs: 250,
            down_kbs: 500,
            day_mb: Some(5_000),
            month_mb: Some(100_000),
            clients: 32,
            memory_mib: 64,
            cpu_percent: 25,
            drain_seconds: 20,
        }
    }
}

impl Hours {
    /// Is this minute of the day one of them?
    pub fn contain(self, minute: u16) -> bool {
        match self.from <= self.to {
            true => (self.from..self.to).contains(&minute),
            false => minute >= self.from || minute < self.to,
        }
    }
}

/// Why settings can't be read, written or taken.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file is not readable, or was edited by hand and has a slip.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It can't be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A value makes no sense.
    #[error("{field}: {problem}")]
    Field {
        /// Which one.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl Settings {
    /// Those in the state folder, or the defaults. One that can't be read is an error, not a reason for defaults: they could
    /// allow what the owner has forbidden.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub fn load(state_dir: &Path) -> Result<Self, SettingsError> {
        let path = state_dir.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(SettingsError::Read { path, source: Box::new(error) }),
            Ok(text) => text,
        };
        let settings: Self = serde_json::from_str(&text)
            .map_err(|error| SettingsError::Read { path, source: Box::new(error) })?;
        settings.check()?;
        Ok(settings)
    }

    /// Writes them, for the owner's eyes only.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub fn save(&self, state_dir: &Path) -> Result<(), SettingsError> {
        let path = state_dir.join(FILE);
        let failed = |source| SettingsError::Write { path: path.clone(), source };
        let text = serde_json::to_string_pretty(self).map_err(|error| failed(error.into()))?;
        private_file::write(&path, text.as_bytes()).map_err(failed)
    }

    /// Refuses what makes no sense.
    ///
    /// # Errors
    /// [`SettingsError::Field`].
    pub fn check(&self) -> Result<(), SettingsError> {
        let (rules, limits) = (&self.rules, &self.limits);
        for (field, problem, ok) in [
            (
                "idle_minutes",
                "must be from 1 to 600",
                rules.idle_minutes.is_none_or(|n| (1..=600).contains(&n)),
            ),
            ("other_traffic_kbs", "must be at least 1", rules.other_traffic_kbs != Some(0)),
            (
                "hours",
                "must be times of a day, from 00:00 to 24:00, and two of them",
                rules.hours.is_none_or(|h| h.from < 1440 && h.to <= 1440 && h.from != h.to),
            ),
            ("up_kbs", "must be from 10 to 1000000", (10..=1_000_000).contains(&limits.up_kbs)),
            ("down_kbs", "must be from 10 to 1000000", (10..=1_000_000).contains(&limits.down_kbs)),
            ("day_mb", "must be at least 10", limits.day_mb.is_none_or(|n| n >= 10)),
            ("month_mb", "must be at least 10", limits.month_mb.is_none_or(|n| n >= 10)),
            ("clients", "must be from 1 to 1024", (1..=1024).contains(&limits.clients)),
            ("memory_mib", "must be from 16 to 4096", (16..=4096).contains(&limits.memory_mib)),
            ("cpu_percent", "must be from 1 to 100", (1..=100).contains(&limits.cpu_percent)),
            ("drain_seconds", "must be at most 600", limits.drain_seconds <= 600),
            (
                "only",
                "names a category that is not known",
                self.leave.only.iter().all(|name| crate::categories::find(name).is_some()),
            ),
        ] {
            if !ok {
                return Err(SettingsError::Field { field, problem });
            }
        }
        Ok(())
    }

    /// Did the owner agree to what the text says now?
    pub fn agreed(&self) -> bool {
        self.consent.is_some_and(|consent| consent.version == CONSENT)
    }

    /// How long what is open may go on.
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.limits.drain_seconds.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_agreed_to_by_default_and_a_new_text_asks_again() {
        let mut settings = Settings::default();
        assert!(!settings.agreed());
        settings.check().unwrap();
        settings.consent = Some(Consent { at: Timestamp::UNIX_EPOCH, version: CONSENT - 1 });
        assert!(!settings.agreed());
        settings.consent = Some(Consent { at: Timestamp::UNIX_EPOCH, version: CONSENT });
        assert!(settings.agreed());
    }

    #[test]
    fn they_are_kept_and_slips_are_no_defaults() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Settings::load(dir.path()).unwrap(), Settings::default());
        let mut settings = Settings { switch: Switch::Paused(Timestamp::UNIX_EPOCH), ..Settings::default() };
        settings.rules.hours = Some(Hours { from: 1300, to: 420 });
        settings.leave.country = Some("SE".parse().unwrap());
        settings.save(dir.path()).unwrap();
        assert_eq!(Settings::load(dir.path()).unwrap(), settings);
        for bad in
            ["{", r#"{"rulez":{}}"#, r#"{"limits":{"up_kbs":0}}"#, r#"{"rules":{"hours":{"from":5,"to":5}}}"#]
        {
            std::fs::write(dir.path().join(FILE), bad).unwrap();
            assert!(Settings::load(dir.path()).is_err(), "{bad}");
        }
    }

    #[test]
    fn hours_may_go_past_midnight() {
        let night = Hours { from: 22 * 60, to: 7 * 60 };
        assert!(night.contain(23 * 60) && night.contain(0) && night.contain(419));
        assert!(!night.contain(420) && !night.contain(12 * 60));
        let day = Hours { from: 60, to: 1440 };
        assert!(day.contain(1439) && !day.contain(59));
    }
}
