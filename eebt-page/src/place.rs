//! Where the page is found: a port, and a token that is new at each start.
//!
//! The token is in the path and not in a cookie, for cookies are sent to every port of a machine. It is on
//! the person's terminal, in a file for its owner only, and nowhere else.

use std::fs::{File, TryLockError};
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use subtle::ConstantTimeEq as _;

use crate::{ENTRANCE, private_file};

/// The file's name in the state folder.
const FILE: &str = "page.url";

/// Beside it, the file that leads a browser there.
const ENTRANCE_FILE: &str = "page.html";

/// Longest address that is read, in bytes.
const MAX_URL: u64 = 200;

/// Where the page is. Has no `Debug`: the token must not get into a log.
pub(crate) struct Place {
    addr: SocketAddr,
    token: String,
}

/// Why the address of the page is not known.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// No program with a page runs with this state folder.
    #[error("no {program} with a local page runs with {}", dir.display())]
    NotRunning {
        /// The program.
        program: &'static str,
        /// The state folder.
        dir: PathBuf,
    },
    /// The file that leads there can't be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Place {
    /// A new token, of 128 random bits.
    pub(crate) fn new(addr: SocketAddr) -> Self {
        let token = rand::random::<[u8; 16]>().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { addr, token }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/{}/", self.addr, self.token)
    }

    /// Is this the token? Takes the same time whichever part of it is wrong.
    pub(crate) fn is_token(&self, said: &str) -> bool {
        said.as_bytes().ct_eq(self.token.as_bytes()).into()
    }

    /// Names by which a browser that was given our address knows us, as in a Host header.
    pub(crate) fn hosts(&self) -> Vec<String> {
        let mut hosts = vec![self.addr.to_string(), format!("localhost:{}", self.addr.port())];
        if self.addr.port() == 80 {
            let ip = self.addr.ip();
            hosts.push(if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() });
            hosts.push("localhost".into());
        }
        hosts
    }

    /// Writes the address into the state folder, until the result is dropped.
    pub(crate) fn keep(&self, state_dir: &Path) -> std::io::Result<Kept> {
        let path = state_dir.join(FILE);
        let url = format!("{}\n", self.url());
        // Whoever reads it sees by the lock that somebody is there.
        let lock = || {
            let file = File::options()
                .read(true)
                .append(cfg!(windows))
                .create(cfg!(windows))
                .open(lock_of(&path))?;
            file.try_lock()?;
            std::io::Result::Ok(file)
        };
        // Where it is a file of its own, who has it keeps it.
        let locked = if cfg!(windows) { Some(lock()?) } else { None };
        private_file::write(&path, url.as_bytes())?;
        let locked = locked.map_or_else(lock, Ok)?;
        Ok(Kept { path, url, _locked: locked })
    }
}

/// The file whose lock tells that the program runs: the one with the address. One that is locked can't be read on Windows, so that it
/// is another one there.
fn lock_of(path: &Path) -> PathBuf {
    if cfg!(windows) { path.with_extension("lock") } else { path.to_owned() }
}

/// The file with the address.
pub(crate) struct Kept {
    path: PathBuf,
    url: String,
    _locked: File,
}

impl Drop for Kept {
    fn drop(&mut self) {
        // Another one may have put its own there.
        if std::fs::read_to_string(&self.path).is_ok_and(|url| url == self.url) {
            let _gone = std::fs::remove_file(self.path.with_file_name(ENTRANCE_FILE));
            let _gone = std::fs::remove_file(&self.path);
        }
    }
}

/// A file that leads a browser to the page of the `program` that runs with this state folder. Programs are told of a file by
/// arguments, which others on the machine can see, and so not of the address itself.
///
/// # Errors
/// See [`PlaceError`].
pub fn entrance(state_dir: &Path, program: &'static str) -> Result<PathBuf, PlaceError> {
    let url = find(state_dir, program)?;
    let path = state_dir.join(ENTRANCE_FILE);
    // The address has neither quotes nor angle brackets: we made it.
    let page = format!("<!DOCTYPE html><meta http-equiv=\"refresh\" content=\"0; url={url}{ENTRANCE}\">\n");
    private_file::write(&path, page.as_bytes())
        .map_err(|source| PlaceError::Write { path: path.clone(), source })?;
    Ok(path)
}

/// The address of the page of the `program` that runs with this state folder.
///
/// # Errors
/// See [`PlaceError`].
pub fn find(state_dir: &Path, program: &'static str) -> Result<String, PlaceError> {
    let path = state_dir.join(FILE);
    let not_running = || PlaceError::NotRunning { program, dir: state_dir.into() };
    let read = |source| PlaceError::Read { path: path.clone(), source };
    let opened = |path: &Path| match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(not_running()),
        file => file.map_err(read),
    };
    let file = opened(&path)?;
    match opened(&lock_of(&path))?.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {}
        // It was left there by one that was killed.
        Ok(()) => return Err(not_running()),
        Err(TryLockError::Error(error)) => return Err(read(error)),
    }
    let mut url = String::new();
    file.take(MAX_URL).read_to_string(&mut url).map_err(read)?;
    Ok(url.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place::new(([127, 0, 0, 1], 9152).into())
    }

    #[test]
    fn a_token_is_new_each_time_and_taken_whole() {
        let (one, two) = (place(), place());
        assert!(one.is_token(&one.token) && !one.is_token(&two.token));
        assert!(
            !one.is_token("") && !one.is_token(&one.token[1..]) && !one.is_token(&format!("{}0", one.token))
        );
        assert_eq!(one.token.len(), 32);
        assert_eq!(one.url(), format!("http://127.0.0.1:9152/{}/", one.token));
    }

    #[test]
    fn the_address_is_for_its_owner_and_as_long_as_the_program_runs() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(find(dir.path(), "it"), Err(PlaceError::NotRunning { .. })));
        let place = place();
        let kept = place.keep(dir.path()).unwrap();
        let file = dir.path().join(FILE);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(find(dir.path(), "it").unwrap(), place.url());
        drop(kept);
        assert!(!file.exists());
        std::fs::write(&file, place.url()).unwrap();
        assert!(matches!(find(dir.path(), "it"), Err(PlaceError::NotRunning { .. })), "left by a killed one");
    }

    #[cfg(unix)]
    #[test]
    fn anothers_address_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let first = place().keep(dir.path()).unwrap();
        let other = place();
        let _second = other.keep(dir.path()).unwrap();
        drop(first);
        assert_eq!(find(dir.path(), "it").unwrap(), other.url());
    }

    #[cfg(windows)]
    #[test]
    fn who_is_there_stays_known() {
        let dir = tempfile::tempdir().unwrap();
        let first = place();
        let _kept = first.keep(dir.path()).unwrap();
        assert!(place().keep(dir.path()).is_err());
        assert_eq!(find(dir.path(), "it").unwrap(), first.url());
    }

    #[test]
    fn ipv6_and_port_80_are_named_as_browsers_name_them() {
        assert_eq!(Place::new("[::1]:9152".parse().unwrap()).hosts(), ["[::1]:9152", "localhost:9152"]);
        let port_80 = Place::new("127.0.0.1:80".parse().unwrap()).hosts();
        assert!(port_80.contains(&"127.0.0.1".into()) && port_80.contains(&"localhost".into()));
    }
}
