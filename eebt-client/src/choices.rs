//! What the person chose for single sites, on the local page. It wins over rules, verdicts and mode, and
//! outlives the program: a file for its owner only.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::route::{Route, Rule, is_onion, normal};
use eebt_page::private_file;

/// Most choices.
const MAX: usize = 2000;

/// The longest host that DNS can name, with the `*.` of a pattern.
const MAX_PATTERN: usize = 255;

/// The choices by pattern: a host, or `*.` and a domain. A way is Tor or an exit bridge; who chooses neither
/// leaves it to rules and mode.
pub struct Choices {
    made: Mutex<BTreeMap<String, Route>>,
    file: Option<PathBuf>,
}

/// Why a choice is not made. Carries no host.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// It is no pattern for single sites.
    #[error("that is no host and no *.domain")]
    Pattern,
    /// Onion services are reached as such.
    #[error("onion services are always reached through Tor alone")]
    Onion,
    /// There are too many.
    #[error("there are {MAX} choices already; forget some first")]
    TooMany,
    /// It holds until the program ends, for the file can't be written.
    #[error("it holds until the program ends: the file of choices can't be written ({0})")]
    NotKept(#[source] io::Error),
}

impl Choices {
    /// With those of the file. One that can't be read as a choice is left out.
    pub fn open(file: Option<PathBuf>) -> Self {
        let texts: Vec<String> = match file.as_ref().map(std::fs::read) {
            Some(Ok(text)) => serde_json::from_slice(&text).unwrap_or_else(|_| {
                tracing::warn!("choices.json is not as it was written; choices per site start anew");
                Vec::new()
            }),
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "choices.json can't be read; choices per site start anew");
                Vec::new()
            }
            _ => Vec::new(),
        };
        let made: BTreeMap<_, _> = texts
            .iter()
            .filter_map(|text| text.parse::<Rule>().ok())
            .map(|rule| rule.parts())
            .filter(|(pattern, route)| *route != Route::Auto && check(pattern).is_ok())
            .take(MAX)
            .collect();
        if !made.is_empty() {
            tracing::info!(choices = made.len(), "choices per site are in force");
        }
        Self { made: Mutex::new(made), file }
    }

    fn made(&self) -> MutexGuard<'_, BTreeMap<String, Route>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the person chose for `host`, a name or an address: for itself, or else for the nearest domain
    /// above it. Never anything for an onion service.
    pub fn get(&self, host: &str) -> Option<Route> {
        self.of(host).map(|(_, route)| route)
    }

    /// The same, with the pattern that says so.
    pub fn of(&self, host: &str) -> Option<(String, Route)> {
        let made = self.made();
        if made.is_empty() || is_onion(host) {
            return None;
        }
        let host = normal(host);
        let above = std::iter::successors(Some(host.as_str()), |name| name.split_once('.').map(|(_, up)| up));
        let patterns = std::iter::once(host.clone()).chain(above.map(|domain| format!("*.{domain}")));
        patterns.into_iter().find_map(|pattern| made.get(&pattern).map(|route| (pattern, *route)))
    }

    /// All of them.
    pub fn all(&self) -> Vec<(String, Route)> {
        self.made().iter().map(|(pattern, route)| (pattern.clone(), *route)).collect()
    }

    /// Makes one for `pattern`; [`Route::Auto`] forgets it. The pattern in its one spelling.
    ///
    /// # Errors
    /// See [`ChoiceError`].
    pub fn choose(&self, pattern: &str, route: Route) -> Result<String, ChoiceError> {
        let rule = format!("{pattern}=auto").parse::<Rule>().map_err(|_| ChoiceError::Pattern)?;
        let (pattern, _) = rule.parts();
        check(&pattern)?;
        let mut made = self.made();
        if route == Route::Auto {
            made.remove(&pattern);
        } else if made.len() >= MAX && !made.contains_key(&pattern) {
            return Err(ChoiceError::TooMany);
        } else {
            made.insert(pattern.clone(), route);
        }
        self.keep(&made).map(|()| pattern)
    }

    /// Forgets all.
    ///
    /// # Errors
    /// [`ChoiceError::NotKept`]: they are still in the file.
    pub fn forget_all(&self) -> Result<(), ChoiceError> {
        let mut made = self.made();
        made.clear();
        self.keep(&made)
    }

    /// Written while they are locked, so that the last change is the one that stays.
    fn keep(&self, made: &BTreeMap<String, Route>) -> Result<(), ChoiceError> {
        let Some(file) = &self.file else { return Ok(()) };
        if made.is_empty() {
            return match std::fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ChoiceError::NotKept(error)),
                _ => Ok(()),
            };
        }
        let way = |route: &Route| if *route == Route::Tor { "tor" } else { "exit-bridge" };
        let texts: Vec<String> =
            made.iter().map(|(pattern, route)| format!("{pattern}={}", way(route))).collect();
        let text = serde_json::to_vec_pretty(&texts).map_err(|e| ChoiceError::NotKept(e.into()))?;
        private_file::write(file, &text).map_err(ChoiceError::NotKept)
    }
}

fn check(pattern: &str) -> Result<(), ChoiceError> {
    let plain = pattern.chars().all(|c| c.is_ascii_graphic() && c != '=' && c != ',');
    if pattern == "*" || !plain || pattern.len() > MAX_PATTERN {
        return Err(ChoiceError::Pattern);
    }
    if is_onion(pattern) { Err(ChoiceError::Onion) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_choice_wins() {
        let choices = Choices::open(None);
        assert_eq!(choices.choose("*.Example.com.", Route::ExitBridge).unwrap(), "*.example.com");
        choices.choose("Open.example.com", Route::Tor).unwrap();
        for (host, way) in [
            ("example.com", Some(Route::ExitBridge)),
            ("a.b.EXAMPLE.com.", Some(Route::ExitBridge)),
            ("open.example.com", Some(Route::Tor)),
            ("deep.open.example.com", Some(Route::ExitBridge)),
            ("notexample.com", None),
            ("com", None),
        ] {
            assert_eq!(choices.get(host), way, "{host}");
        }
        choices.choose("*.example.com", Route::Auto).unwrap();
        assert_eq!(choices.get("example.com"), None);
        assert_eq!(choices.all(), [("open.example.com".into(), Route::Tor)]);
        choices.choose("2001:db8:0::1", Route::ExitBridge).unwrap();
        assert_eq!(choices.get("2001:db8::1"), Some(Route::ExitBridge));
    }

    #[test]
    fn onion_services_are_nobodys_choice() {
        let choices = Choices::open(None);
        for host in ["abc.onion", "*.abc.Onion", "*.onion", "onion"] {
            let error = choices.choose(host, Route::ExitBridge).unwrap_err();
            assert!(matches!(error, ChoiceError::Onion), "{host}: {error}");
        }
        assert_eq!(choices.get("abc.onion"), None);
    }

    #[test]
    fn what_is_no_site_is_refused() {
        let choices = Choices::open(None);
        for bad in
            ["", "*", "*.", "a b", "a=tor", "http://example.com", "a.*.b", "a\nb", "ex\u{202e}ample.com"]
        {
            assert!(matches!(choices.choose(bad, Route::Tor), Err(ChoiceError::Pattern)), "{bad:?}");
        }
        assert!(matches!(choices.choose(&"a".repeat(256), Route::Tor), Err(ChoiceError::Pattern)));
        for n in 0..MAX {
            choices.choose(&format!("{n}.example"), Route::Tor).unwrap();
        }
        assert!(matches!(choices.choose("one.more.example", Route::Tor), Err(ChoiceError::TooMany)));
        choices.choose("1.example", Route::ExitBridge).unwrap();
    }

    #[test]
    fn they_outlive_the_program_in_a_file_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("choices.json");
        let open = || Choices::open(Some(file.clone()));
        open().choose("example.com", Route::ExitBridge).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(open().get("example.com"), Some(Route::ExitBridge));
        open().forget_all().unwrap();
        assert!(!file.exists() && open().all().is_empty());
        std::fs::write(
            &file,
            r#"["a.example=tor", "abc.onion=exit-bridge", "*=tor", "b.example=auto", "x"]"#,
        )
        .unwrap();
        assert_eq!(open().all(), [("a.example".into(), Route::Tor)]);
        std::fs::write(&file, "{ not json").unwrap();
        assert!(open().all().is_empty());
    }

    #[test]
    fn a_choice_that_cannot_be_kept_says_so_and_holds() {
        let dir = tempfile::tempdir().unwrap();
        let not_a_folder = dir.path().join("file");
        std::fs::write(&not_a_folder, "").unwrap();
        let choices = Choices::open(Some(not_a_folder.join("choices.json")));
        assert!(matches!(choices.choose("example.com", Route::Tor), Err(ChoiceError::NotKept(_))));
        assert_eq!(choices.get("example.com"), Some(Route::Tor));
    }
}
