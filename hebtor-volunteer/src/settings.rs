//! What the owner chose. Kept in the state folder; the page and `hebtor-volunteer set` change it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use eebt_page::private_file;
use eebt_proto::{Country, HostSet};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;

/// The file's name in the state folder.
const FILE: &str = "settings.json";

/// Lines that are remembered.
const MAX_LINES: usize = 16;

/// Largest block list, in bytes.
const MAX_BLOCK_LIST: u64 = 64_000_000;

/// The groups of keys that can be set one by one. Consent is given on the page, where it is said what it means.
const GROUPS: [&str; 3] = ["rules", "limits", "leave"];

/// Which text the owner agrees to. A new one, when what it says changes in earnest, asks again.
pub const CONSENT: u32 = 1;

/// All of it. Every default is safe: nothing runs before [`Settings::consent`] is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// When the owner agreed, and to what.
    pub consent: Option<Consent>,
    /// For which lines, the newest last: hardware addresses of their routers. None where that was not known.
    pub lines: Vec<String>,
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
    /// Rest on lines that the owner did not agree for.
    pub known_line: bool,
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

/// Hours of the day, in minutes from midnight, local time; as text `22:00-07:00`. They may go past midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
            known_line: true,
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

impl Leave {
    /// Is the block list a file of domains that can be read?
    ///
    /// # Errors
    /// What is wrong, with the line.
    pub fn check_block_list(&self) -> Result<(), String> {
        let Some(path) = &self.block_list else { return Ok(()) };
        let wrong = |error: &dyn fmt::Display| format!("{}: {error}", path.display());
        let about = std::fs::metadata(path).map_err(|error| wrong(&error))?;
        if !about.is_file() || about.len() > MAX_BLOCK_LIST {
            return Err(wrong(&"is no file of at most 64 MB"));
        }
        let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
        text.parse::<HostSet>().map_err(|error| wrong(&error))?;
        Ok(())
    }
}

/// A minute of the day as a time: 07:30.
pub fn clock(minute: u16) -> String {
    format!("{:02}:{:02}", minute / 60, minute % 60)
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", clock(self.from), clock(self.to))
    }
}

impl FromStr for Hours {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (from, to) = text.split_once('-').ok_or("times such as 22:00-07:00 are expected")?;
        Ok(Self { from: minute(from)?, to: minute(to)? })
    }
}

impl Serialize for Hours {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hours {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A time of the day, such as 07:30, in minutes.
fn minute(text: &str) -> Result<u16, &'static str> {
    let parts =
        text.split_once(':').and_then(|(h, m)| Some((h.parse::<u16>().ok()?, m.parse::<u16>().ok()?)));
    match parts {
        Some((hour, minute)) if hour < 24 && minute < 60 || (hour, minute) == (24, 0) => {
            Ok(hour * 60 + minute)
        }
        _ => Err("a time such as 07:30 is expected"),
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
    /// A key that is not one of the owner's choices, or a value that it can't have.
    #[error("{key}: {problem}")]
    Key {
        /// As it was given.
        key: String,
        /// What is wrong with it.
        problem: String,
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

    /// All keys that [`with`](Self::with) takes, and what they are now.
    pub fn pairs(&self) -> Vec<(String, String)> {
        let value = serde_json::to_value(self).unwrap_or_default();
        let mut pairs = Vec::new();
        for group in GROUPS {
            for (name, value) in value[group].as_object().into_iter().flatten() {
                let text = match value {
                    Value::Null => "none".into(),
                    Value::String(text) => text.clone(),
                    Value::Array(only) if only.is_empty() => "none".into(),
                    Value::Array(_) => self.leave.only.join(","),
                    other => other.to_string(),
                };
                pairs.push((format!("{group}.{name}"), text));
            }
        }
        pairs
    }

    /// The same with another value of one key, such as `limits.day_mb`; `none` takes away what may be left out.
    ///
    /// # Errors
    /// [`SettingsError::Key`] and [`SettingsError::Field`].
    pub fn with(&self, key: &str, text: &str) -> Result<Self, SettingsError> {
        let wrong = |problem: String| SettingsError::Key { key: key.to_owned(), problem };
        let mut all = serde_json::to_value(self).map_err(|error| wrong(error.to_string()))?;
        let known = key.split_once('.').filter(|(group, _)| GROUPS.contains(group));
        let place = known.and_then(|(group, name)| all.get_mut(group)?.get_mut(name));
        *place.ok_or_else(|| wrong("is not known; without a key all are printed".into()))? = match key {
            "leave.only" if text == "none" => Value::Array(Vec::new()),
            "leave.only" => text.split(',').map(str::trim).collect(),
            _ if text == "none" => Value::Null,
            _ => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
        };
        let settings: Self = serde_json::from_value(all).map_err(|error| wrong(error.to_string()))?;
        settings.check()?;
        if key == "leave.block_list" {
            settings.leave.check_block_list().map_err(wrong)?;
        }
        Ok(settings)
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

    /// Did the owner agree for this line, as far as that can be told?
    pub fn is_for(&self, line: Option<&str>) -> bool {
        self.lines.is_empty() || line.is_none_or(|line| self.lines.iter().any(|known| known == line))
    }

    /// The owner agrees for this line, too.
    pub fn add_line(&mut self, line: String) {
        self.lines.retain(|known| *known != line);
        self.lines.push(line);
        self.lines.drain(..self.lines.len().saturating_sub(MAX_LINES));
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
            ["{", r#"{"rulez":{}}"#, r#"{"limits":{"up_kbs":0}}"#, r#"{"rules":{"hours":"05:00-05:00"}}"#]
        {
            std::fs::write(dir.path().join(FILE), bad).unwrap();
            assert!(Settings::load(dir.path()).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_key_can_be_set_and_read_and_slips_are_named() {
        let settings = Settings::default();
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("list");
        std::fs::write(&list, "a.example\n").unwrap();
        let list = list.to_str().unwrap();
        for (key, text) in [
            ("limits.day_mb", "2000"),
            ("limits.month_mb", "none"),
            ("rules.battery", "false"),
            ("rules.hours", "22:00-07:30"),
            ("rules.idle_minutes", "none"),
            ("leave.only", "search,news"),
            ("leave.only", "none"),
            ("leave.block_list", list),
            ("leave.country", "SE"),
        ] {
            let set = settings.with(key, text).unwrap();
            assert!(set.pairs().contains(&(key.into(), text.into())), "{key}: {:?}", set.pairs());
            for (key, text) in set.pairs() {
                assert_eq!(set.with(&key, &text).unwrap(), set, "{key}");
            }
        }
        for (key, text, said) in [
            ("limits.day_mb", "many", "invalid type"),
            ("limits.clients", "0", "must be from 1 to 1024"),
            ("limits.clients", "none", "invalid type"),
            ("rules.hours", "7-9", "07:30"),
            ("limits.speed", "1", "not known"),
            ("leave.only", "", "not known"),
            ("leave.block_list", "/nowhere", "os error 2"),
            #[cfg(unix)]
            ("leave.block_list", "/dev/zero", "no file"),
            ("consent", "{}", "not known"),
            ("switch", "on", "not known"),
        ] {
            let error = settings.with(key, text).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains(key.rsplit('.').next().unwrap()), "{error}");
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
