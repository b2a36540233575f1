//! What lies where: the state folder, and one folder for each instance.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::cloud::Order;

/// Why something in the state folder can't be had.
#[derive(Debug, thiserror::Error)]
#[error("can't {what} {}", path.display())]
pub struct FolderError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    move |source| FolderError { what, path: path.to_owned(), source }
}

/// Makes a folder that only its owner may read, unless it is there.
fn private_dir(path: &Path) -> Result<(), FolderError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create", path))
}

/// Writes a file that only its owner may read.
fn write_private(path: &Path, text: &str) -> Result<(), FolderError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).map_err(failed("create", path))?;
    file.write_all(text.as_bytes()).map_err(failed("write", path))
}

/// Where a fleet is remembered.
#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// Uses `path`, which is made if need be.
    ///
    /// # Errors
    /// It can't be made or written to.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        private_dir(path)?;
        // Processes that we start have another working directory.
        let dir = Self(path.canonicalize().map_err(failed("open", path))?);
        private_dir(&dir.0.join("instances"))?;
        private_dir(&dir.claims())?;
        private_dir(&dir.attach())?;
        Ok(dir)
    }

    /// The SQLite file.
    pub fn ledger(&self) -> PathBuf {
        self.0.join("ledger.sqlite")
    }

    /// By which the machines of this fleet are known in a cloud: 16 hexadecimal digits, drawn when they are first asked
    /// for. In a file of its own, for a ledger may be lost.
    ///
    /// # Errors
    /// It can't be read or written.
    pub fn fleet(&self) -> Result<String, FolderError> {
        let path = self.0.join("fleet");
        let new = path.with_extension(format!("{:016x}", rand::random::<u64>()));
        loop {
            match fs::read_to_string(&path) {
                Ok(id) => return Ok(id.trim().to_owned()),
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(err) => return Err(failed("read", &path)(err)),
            }
            write_private(&new, &format!("{:016x}\n", rand::random::<u64>()))?;
            // Whoever comes second finds the first one's.
            let linked = fs::hard_link(&new, &path);
            fs::remove_file(&new).map_err(failed("remove", &new))?;
            match linked {
                Err(err) if err.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("create", &path)(err));
                }
                _ => {}
            }
        }
    }

    /// Takes on the name of a fleet whose folder was lost.
    ///
    /// # Errors
    /// This one has another name already, or it can't be written.
    pub fn adopt_fleet(&self, fleet: &str) -> Result<(), FolderError> {
        let path = self.0.join("fleet");
        match fs::read_to_string(&path) {
            Ok(known) if known.trim() == fleet => Ok(()),
            Ok(_) => Err(failed("take another fleet's name in", &path)(io::ErrorKind::AlreadyExists.into())),
            Err(_) => write_private(&path, &format!("{fleet}\n")),
        }
    }

    /// Notes that machines are bought from this provider: in files, for a ledger may be lost.
    ///
    /// # Errors
    /// It can't be written.
    pub fn note_cloud(&self, provider: &str) -> Result<(), FolderError> {
        private_dir(&self.0.join("clouds"))?;
        let path = self.0.join("clouds").join(provider);
        if path.exists() { Ok(()) } else { write_private(&path, "") }
    }

    /// The providers that machines were ever bought from.
    pub fn clouds(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.join("clouds")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Notes that somebody has just seen to it that what is due is ended.
    ///
    /// # Errors
    /// It can't be written.
    pub fn note_reaped(&self) -> Result<(), FolderError> {
        Self::replace_private(&self.0.join("reaped"), "")
    }

    /// When that was last so.
    pub fn reaped(&self) -> Option<SystemTime> {
        self.0.join("reaped").metadata().ok()?.modified().ok()
    }

    /// The lock that one `eebt` at a time holds while it looks at what others left.
    pub fn door(&self) -> PathBuf {
        self.0.join("door.lock")
    }

    /// The folder of claims.
    pub fn claims(&self) -> PathBuf {
        self.0.join("claims")
    }

    /// What the client that checks exit bridges keeps: its guards, and the consensus.
    pub fn check(&self) -> PathBuf {
        self.0.join("check")
    }

    /// What `eebt attach` changed at which tor.
    pub fn attach(&self) -> PathBuf {
        self.0.join("attach")
    }

    /// A file that nobody else can open, and that is gone when it is closed.
    ///
    /// # Errors
    /// It can't be made.
    pub fn nameless(&self) -> io::Result<File> {
        let path = self.0.join(format!("{:016x}", rand::random::<u64>()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        fs::remove_file(&path).map(|()| file)
    }

    /// Puts a file that only its owner may read in the place of another one, at once.
    ///
    /// # Errors
    /// It can't be written.
    pub fn replace_private(path: &Path, text: &str) -> Result<(), FolderError> {
        let new = path.with_extension(format!("{:016x}", rand::random::<u64>()));
        write_private(&new, text)?;
        fs::rename(&new, path).map_err(|error| {
            let _ = fs::remove_file(&new);
            failed("replace", path)(error)
        })
    }

    /// The lock of the `eebt run` that keeps this fleet.
    pub fn run_lock(&self) -> PathBuf {
        self.0.join("run.lock")
    }

    /// What the `eebt run` that keeps this fleet says of itself.
    pub fn run_report(&self) -> PathBuf {
        self.0.join("run.json")
    }

    /// The folder of one instance, which may not exist (any more).
    pub fn instance(&self, id: &str) -> Folder {
        Folder(self.0.join("instances").join(id))
    }

    /// The names of all instance folders.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn instance_ids(&self) -> Result<Vec<String>, FolderError> {
        let path = self.0.join("instances");
        let entries = fs::read_dir(&path).map_err(failed("list", &path))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }
}

/// The folder of one instance.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }
    /// The exit bridge's keys.
    pub fn keys(&self) -> PathBuf {
        self.0.join("keys")
    }
    /// The exit bridge's own cache.
    pub fn state(&self) -> PathBuf {
        self.0.join("state")
    }
    /// Its configuration.
    pub fn config(&self) -> PathBuf {
        self.0.join("bridge.toml")
    }
    /// Its bridge line, so that a lost ledger can be rebuilt.
    pub fn line(&self) -> PathBuf {
        self.0.join("line")
    }
    /// What was ordered for it, word by word.
    pub fn order(&self) -> PathBuf {
        self.0.join("order.json")
    }
    /// What it says on standard output and standard error.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }
    /// Written by the exit bridge.
    pub fn pid_file(&self) -> PathBuf {
        self.0.join("bridge.pid")
    }
    /// Held exactly as long as the exit bridge's process lives.
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Makes it.
    ///
    /// # Errors
    /// It can't be made.
    pub fn create(&self) -> Result<(), FolderError> {
        private_dir(&self.0)?;
        private_dir(&self.state())
    }

    /// Writes a file that only its owner may read.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write_private(&self, path: &Path, text: &str) -> Result<(), FolderError> {
        write_private(path, text)
    }

    /// Keeps what is going to be ordered.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write_order(&self, order: &Order) -> Result<(), FolderError> {
        let path = self.order();
        let text = serde_json::to_string(order).map_err(|error| failed("write", &path)(error.into()))?;
        self.write_private(&path, &text)
    }

    /// What was ordered last, if that is known.
    pub fn read_order(&self) -> Option<Order> {
        serde_json::from_str(&fs::read_to_string(self.order()).ok()?).ok()
    }

    /// Opens the log to append to it.
    ///
    /// # Errors
    /// It can't be opened.
    pub fn open_log(&self) -> Result<File, FolderError> {
        let path = self.log();
        OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(failed("open", &path))
    }

    /// Removes keys, configuration and cache. A log that says anything stays.
    ///
    /// # Errors
    /// Something can't be removed.
    pub fn clear(&self) -> Result<(), FolderError> {
        let entries = match fs::read_dir(&self.0) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(failed("list", &self.0))?,
        };
        let mut keep = false;
        for entry in entries.flatten() {
            let (path, meta) = (entry.path(), entry.metadata().ok());
            if path == self.log() && meta.as_ref().is_some_and(|meta| meta.len() > 0) {
                keep = true;
            } else if meta.is_some_and(|meta| meta.is_dir()) {
                fs::remove_dir_all(&path).or_else(gone).map_err(failed("remove", &path))?;
            } else {
                fs::remove_file(&path).or_else(gone).map_err(failed("remove", &path))?;
            }
        }
        if keep { Ok(()) } else { fs::remove_dir(&self.0).or_else(gone).map_err(failed("remove", &self.0)) }
    }

    /// Does it hold nothing but what an instance's folder holds? Asked before one that the ledger
    /// never heard of is removed, in case that the state folder is also someone else's.
    pub fn is_instance(&self) -> bool {
        const NAMES: &[&str] =
            &["keys", "state", "bridge.toml", "line", "log", "bridge.pid", "lock", "order.json"];
        let ours = |name: &str| NAMES.contains(&name) || name.starts_with("scratch-");
        fs::read_dir(&self.0)
            .is_ok_and(|entries| entries.flatten().all(|entry| entry.file_name().to_str().is_some_and(ours)))
    }

    /// Removes it with its log.
    ///
    /// # Errors
    /// Something can't be removed.
    pub fn remove(&self) -> Result<(), FolderError> {
        fs::remove_dir_all(&self.0).or_else(gone).map_err(failed("remove", &self.0))
    }

    /// The last `count` lines of the log, of its last 64 kB at most. Empty if there is none.
    pub fn log_tail(&self, count: usize) -> Vec<String> {
        const MOST: u64 = 64 * 1024;
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(self.log()) {
            let len = file.metadata().map_or(0, |meta| meta.len());
            let _ = file.seek(SeekFrom::Start(len.saturating_sub(MOST)));
            let _ = file.take(MOST).read_to_end(&mut text);
        }
        // It ends up on terminals, which control characters could do things to.
        let text = String::from_utf8_lossy(&text).replace(|c: char| c.is_control() && c != '\n', "");
        let mut lines: Vec<String> = text
            .lines()
            .rev()
            .filter(|line| !line.trim().is_empty())
            .take(count)
            .map(str::to_owned)
            .collect();
        lines.reverse();
        lines
    }
}

fn gone(err: io::Error) -> io::Result<()> {
    if err.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(err) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn clearing_removes_secrets_and_keeps_a_log_that_says_something() {
        let dir = tempfile::tempdir().unwrap();
        let folder = StateDir::open(dir.path()).unwrap().instance("abc");
        folder.create().unwrap();
        fs::create_dir(folder.keys()).unwrap();
        fs::write(folder.keys().join("secret"), "s").unwrap();
        folder.write_private(&folder.config(), "x = 1").unwrap();
        assert_eq!(fs::metadata(folder.config()).unwrap().permissions().mode() & 0o777, 0o600);
        writeln!(folder.open_log().unwrap(), "one\n\ntwo").unwrap();
        folder.clear().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(folder.log_tail(1), ["two"]);
        assert_eq!(folder.log_tail(9), ["one", "two"]);
        fs::write(folder.log(), "").unwrap();
        folder.clear().unwrap();
        assert!(!folder.path().exists());
        folder.clear().unwrap();
        folder.remove().unwrap();
    }
}
