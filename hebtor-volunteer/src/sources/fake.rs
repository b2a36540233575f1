//! Sources that say what a test wants.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Facts, Source};

/// How often these want to be looked at: often, for tests wait for it.
pub const EVERY: Duration = Duration::from_millis(100);

/// A source, and the handle that sets what it says.
pub fn fake() -> (Fake, Handle) {
    let facts = Arc::new(Mutex::new(Facts::default()));
    (Fake(facts.clone()), Handle(facts))
}

/// Says what its [`Handle`] sets.
pub struct Fake(Arc<Mutex<Facts>>);

/// Sets what a [`Fake`] says, from any thread.
#[derive(Clone)]
pub struct Handle(Arc<Mutex<Facts>>);

impl Handle {
    /// From now on, these are the facts.
    pub fn set(&self, facts: Facts) {
        self.change(|old| *old = facts);
    }

    /// Changes some facts and leaves the others.
    pub fn change(&self, how: impl FnOnce(&mut Facts)) {
        how(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Source for Fake {
    fn name(&self) -> &'static str {
        "test"
    }

    fn every(&self) -> Duration {
        EVERY
    }

    fn look(&mut self) -> Facts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Reads [`Facts`] as JSON from a file: `{"idle": 600, "on_battery": false}`. No file: nothing is known.
/// A file that is half written leaves the facts as they were.
pub struct FromFile {
    path: PathBuf,
    facts: Facts,
}

impl FromFile {
    /// Nothing is read yet; the file may come later.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), facts: Facts::default() }
    }
}

impl Source for FromFile {
    fn name(&self) -> &'static str {
        "file"
    }

    fn every(&self) -> Duration {
        EVERY
    }

    fn look(&mut self) -> Facts {
        match std::fs::read(&self.path) {
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(facts) => self.facts = facts,
                Err(error) => tracing::debug!(path = %self.path.display(), %error, "these are no facts"),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => self.facts = Facts::default(),
            Err(error) => tracing::debug!(path = %self.path.display(), %error, "facts can't be read"),
        }
        self.facts.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_changes_what_its_source_says() {
        let (mut source, handle) = fake();
        assert_eq!(source.look(), Facts::default());
        handle.set(Facts { vpn: Some(true), ..Facts::default() });
        handle.change(|facts| facts.metered = Some(false));
        assert_eq!(source.look(), Facts { vpn: Some(true), metered: Some(false), ..Facts::default() });
    }

    #[test]
    fn a_file_is_read_at_each_look() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("facts.json");
        let mut source = FromFile::new(&path);
        assert_eq!(source.look(), Facts::default());

        let idle = Facts { idle: Some(Duration::from_secs(600)), ..Facts::default() };
        std::fs::write(&path, r#"{"idle": 600}"#).unwrap();
        assert_eq!(source.look(), idle);
        std::fs::write(&path, r#"{"idle": 60"#).unwrap();
        assert_eq!(source.look(), idle);
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(source.look(), Facts::default());
    }

    #[test]
    fn without_its_file_nothing_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("facts.json");
        std::fs::write(&path, r#"{"full_screen": true}"#).unwrap();
        let mut source = FromFile::new(&path);
        assert_eq!(source.look().full_screen, Some(true));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(source.look(), Facts::default());
    }
}
