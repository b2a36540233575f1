//! When was a terminal typed into? For machines without logind.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::sources::{Facts, Source};

/// Reads the access times of the terminals in /dev: a terminal that a program reads from was typed into.
/// The kernel rounds them to 8 seconds.
pub struct Console(PathBuf);

impl Default for Console {
    fn default() -> Self {
        Self("/dev".into())
    }
}

impl Source for Console {
    fn name(&self) -> &'static str {
        "console"
    }

    fn every(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn look(&mut self) -> Facts {
        let newest = [terminals(&self.0, "tty"), terminals(&self.0.join("pts"), "")]
            .into_iter()
            .flatten()
            .filter_map(|path| fs::metadata(path).ok()?.accessed().ok())
            .max();
        Facts { idle: newest.map(|then| since(then, SystemTime::now())), ..Facts::default() }
    }
}

/// Files of a folder whose name is the prefix and a number: not `tty`, `ttyS0` or `ptmx`.
fn terminals(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let is_terminal = |path: &PathBuf| {
        let number = path.file_name().and_then(|name| name.to_str()?.strip_prefix(prefix));
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit()))
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(is_terminal).collect()
}

/// A clock that was set back makes no time of its own.
fn since(then: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(then).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs::{File, FileTimes};

    use super::*;

    fn touch(folder: &Path, name: &str, ago: u64) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let then = SystemTime::now() - Duration::from_secs(ago);
        File::create(path).unwrap().set_times(FileTimes::new().set_accessed(then)).unwrap();
    }

    #[test]
    fn the_terminal_typed_into_last_counts() {
        let dev = tempfile::tempdir().unwrap();
        let mut console = Console(dev.path().into());
        assert_eq!(console.look(), Facts::default());

        for name in ["tty", "ttyS0", "pts/ptmx", "null"] {
            touch(dev.path(), name, 1);
        }
        assert_eq!(console.look(), Facts::default());

        touch(dev.path(), "tty1", 9000);
        touch(dev.path(), "pts/0", 500);
        touch(dev.path(), "pts/12", 700);
        assert_eq!(console.look().idle.unwrap().as_secs(), 500);
        touch(dev.path(), "tty1", 100);
        assert_eq!(console.look().idle.unwrap().as_secs(), 100);
    }

    #[test]
    fn a_time_to_come_is_now() {
        let now = SystemTime::now();
        assert_eq!(since(now + Duration::from_secs(5), now), Duration::ZERO);
    }
}
