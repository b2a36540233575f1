//! Locks that end with their process, however it ends: `flock` on an open file.
//!
//! Nothing here ever unlocks: a lock belongs to the open file, which a child may have inherited, and
//! ends when the last copy is closed.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Why a lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The file can't be opened or locked.
    #[error("can't lock {}", path.display())]
    Io {
        /// The lock's file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Someone else has it.
    #[error("{} stays locked by another process", path.display())]
    Held {
        /// The lock's file.
        path: PathBuf,
    },
}

/// Opens `path`, made if need be, and locks it; waits up to `patience` for whoever has it.
///
/// # Errors
/// See [`LockError`].
pub fn lock(path: &Path, patience: Duration) -> Result<File, LockError> {
    let io = |source| LockError::Io { path: path.to_owned(), source };
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path).map_err(io)?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if start.elapsed() < patience => sleep(Duration::from_millis(20)),
            Err(TryLockError::WouldBlock) => return Err(LockError::Held { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
    }
}

/// Does someone hold the lock at `path`? Looks with a shared lock, so that two who look don't see
/// each other.
///
/// # Errors
/// The file exists but can't be opened or locked.
pub fn is_held(path: &Path) -> Result<bool, LockError> {
    let io = |source| LockError::Io { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(io(source)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

/// What one run of `eebt` shows to others: "rows with this name in `claim` are mine, and I live".
#[derive(Debug)]
pub struct Claim {
    /// Its name in the ledger.
    pub id: String,
    path: PathBuf,
    file: File,
}

impl Claim {
    /// A new claim in the folder `claims`. To be called under the fleet's door lock only, since
    /// [`sweep`](Claim::sweep) removes files that nobody has locked.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn new(claims: &Path) -> Result<Self, LockError> {
        let id = format!("{:032x}", rand::random::<u128>());
        let path = Self::path(claims, &id);
        let file = lock(&path, Duration::ZERO)?;
        Ok(Self { id, path, file })
    }

    fn path(claims: &Path, id: &str) -> PathBuf {
        claims.join(id)
    }

    /// Does the holder of claim `id` live?
    ///
    /// # Errors
    /// See [`is_held`].
    pub fn is_live(claims: &Path, id: &str) -> Result<bool, LockError> {
        is_held(&Self::path(claims, id))
    }

    /// The standard input of a short-lived helper process: as long as the helper lives, the claim
    /// counts as live, and nobody cleans up under its hands.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn share(&self) -> Result<Stdio, LockError> {
        self.file
            .try_clone()
            .map(Stdio::from)
            .map_err(|source| LockError::Io { path: self.path.clone(), source })
    }

    /// Removes what crashed runs left behind. Under the fleet's door lock only.
    pub fn sweep(claims: &Path) {
        for entry in std::fs::read_dir(claims).into_iter().flatten().flatten() {
            if is_held(&entry.path()).is_ok_and(|held| !held) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_as_long_as_any_copy_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(!is_held(&path).unwrap());
        let file = lock(&path, Duration::ZERO).unwrap();
        let copy = file.try_clone().unwrap();
        drop(file);
        assert!(is_held(&path).unwrap());
        assert!(matches!(lock(&path, Duration::from_millis(30)), Err(LockError::Held { .. })));
        drop(copy);
        assert!(!is_held(&path).unwrap());
    }

    #[test]
    fn a_claim_lives_until_it_is_dropped_and_survives_a_sweep() {
        let dir = tempfile::tempdir().unwrap();
        let claim = Claim::new(dir.path()).unwrap();
        let id = claim.id.clone();
        std::fs::write(dir.path().join("dead"), "").unwrap();
        Claim::sweep(dir.path());
        assert!(Claim::is_live(dir.path(), &id).unwrap());
        drop(claim);
        assert!(!Claim::is_live(dir.path(), &id).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
