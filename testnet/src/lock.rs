//! Lock files that a crash frees.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

/// Takes the lock, or gives `None` when someone holds it. The kernel frees it with the process.
///
/// An existing file is opened for reading only, so that a lock file another user made can be tried too.
pub(crate) fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            OpenOptions::new().create(true).truncate(false).write(true).open(path)?
        }
        Err(e) => return Err(e),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// Takes the lock and writes this process's id into the file, for [`holder`].
pub(crate) fn try_lock_as_me(path: &Path) -> io::Result<Option<File>> {
    // [`holder`] takes the lock for a moment to see whether it is free: one refusal proves nothing.
    let mut attempts = 0;
    let lock = loop {
        match try_lock(path)? {
            Some(lock) => break lock,
            None if attempts == 10 => return Ok(None),
            None => attempts += 1,
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(Some(lock))
}

/// The process that holds the lock now, if one does. Never a stale process id, which may be anyone's by now:
/// it counts only while the lock is held, by a process that has this very file open.
pub(crate) fn holder(path: &Path) -> io::Result<Option<u32>> {
    if !path.exists() {
        return Ok(None);
    }
    if let Some(_free) = try_lock(path)? {
        return Ok(None);
    }
    let pid = std::fs::read_to_string(path)?.trim().parse().ok();
    Ok(pid.filter(|pid| has_open(*pid, path)))
}

fn has_open(pid: u32, path: &Path) -> bool {
    let (Ok(path), Ok(open)) = (path.canonicalize(), std::fs::read_dir(format!("/proc/{pid}/fd"))) else {
        return false;
    };
    open.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|file| file == path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_taker_gets_nothing_and_sees_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert_eq!(holder(&path).unwrap(), None);
        let held = try_lock_as_me(&path).unwrap().unwrap();
        assert!(try_lock(&path).unwrap().is_none());
        assert_eq!(holder(&path).unwrap(), Some(std::process::id()));
        drop(held);
        assert_eq!(holder(&path).unwrap(), None);
    }
}
