//! What the app is and leaves on this machine besides its own folder, and how all of it is taken away again: its processes, the
//! start at log-in, and the copy of its identity that the owner may keep.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;

use auto_launch::{AutoLaunch, AutoLaunchBuilder, MacOSLaunchMode, WindowsEnableMode};
use data_encoding::BASE64;
use eebt_bridge::BridgeKeys;
use eebt_bridge::config::ReachKind;
use eebt_bridge::keys::KeysError;
use eebt_page::private_file;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::receipt::Receipt;
use crate::served::{Served, ServedError};

/// Largest file of keys, in bytes, and how many there may be.
const MAX_KEY: u64 = 64 * 1024;
const MAX_KEYS: usize = 64;

/// All that is ever in the state folder.
const FOLDERS: [&str; 3] = ["keys", "tor", "check"];
const FILES: [&str; 9] = [
    "settings.json",
    "decisions.json",
    "usage.json",
    "served.json",
    "address.json",
    "page.url",
    "page.lock",
    "page.html",
    "lock",
];

/// What can't be done.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Starting at log-in.
    #[error("cannot change what starts at log-in")]
    Autostart(#[source] auto_launch::Error),
    /// The own program can't be found.
    #[error("cannot tell where this program is")]
    Program(#[source] io::Error),
    /// A file or folder.
    #[error("cannot {what} {}", path.display())]
    File {
        /// Such as "read".
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No copy of an identity.
    #[error("{} is no copy of an identity", path.display())]
    NoCopy {
        /// The file.
        path: PathBuf,
    },
    /// The identity.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// When it served.
    #[error(transparent)]
    Served(#[from] ServedError),
    /// There are no keys, since it never served.
    #[error("there is no identity yet: it is made when the app serves for the first time")]
    NoKeys,
    /// There are keys, which would be lost.
    #[error("{} has an identity already", path.display())]
    HasKeys {
        /// The folder of keys.
        path: PathBuf,
    },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::File { what, path: path.to_owned(), source }
}

/// This program as a process of its own, for the app: to be told and read by pipes, and to end with us.
pub(crate) fn worker(command: &str) -> io::Result<Command> {
    // Not by its path: an update may have put another program there.
    let program = if cfg!(target_os = "linux") { "/proc/self/exe".into() } else { std::env::current_exe()? };
    let mut worker = Command::new(program);
    worker.arg(command).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    #[cfg(windows)]
    worker.creation_flags(BELOW_NORMAL_PRIORITY_CLASS | CREATE_NO_WINDOW);
    Ok(worker)
}

/// Process creation flags of Windows.
#[cfg(windows)]
const BELOW_NORMAL_PRIORITY_CLASS: u32 = 0x4000;
#[cfg(windows)]
const CREATE_NO_WINDOW: u32 = 0x0800_0000;

/// Lets whatever else runs on this machine come first. Windows was told by who started us.
pub(crate) fn make_room() {
    #[cfg(unix)]
    if let Err(error) = rustix::process::nice(10) {
        tracing::warn!(%error, "can't make room for other programs");
    }
}

/// What starts at log-in; with this configuration file, where it is not the one in the usual place.
fn autostart(config: Option<&Path>) -> Result<AutoLaunch, MachineError> {
    // Inside an AppImage, the program's own path is gone with its mount.
    let program = std::env::var_os("APPIMAGE").map(PathBuf::from);
    let program = program.map_or_else(std::env::current_exe, Ok).map_err(MachineError::Program)?;
    let mut args = vec!["--hidden".to_owned()];
    args.extend(config.into_iter().flat_map(|file| ["--config".into(), quoted(file)]));
    AutoLaunchBuilder::new()
        .set_app_name("hebtor-volunteer")
        .set_app_path(&quoted(&program))
        .set_args(&args)
        .set_windows_enable_mode(WindowsEnableMode::CurrentUser)
        .set_macos_launch_mode(MacOSLaunchMode::LaunchAgent)
        .build()
        .map_err(MachineError::Autostart)
}

/// A path as one word of a command line: quoted where it has to be (Desktop Entry Specification, "The Exec key").
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    if cfg!(windows) {
        // No path has a quotation mark there.
        return format!("\"{text}\"");
    }
    let plain = |c: char| c.is_alphanumeric() || "/._-+:@,".contains(c);
    // macOS keeps words apart by itself.
    if cfg!(target_os = "macos") || text.chars().all(plain) {
        return text;
    }
    let mut word = String::from('"');
    for c in text.chars() {
        match c {
            // Escaped in the word, and each backslash once more in the entry.
            '"' | '`' | '$' => {
                word.push_str("\\\\");
                word.push(c);
            }
            '\\' => word.push_str("\\\\\\\\"),
            '%' => word.push_str("%%"),
            c => word.push(c),
        }
    }
    word + "\""
}

/// Starts it at log-in, or no longer. `config` is the configuration file, where it is not the one in the usual place.
///
/// # Errors
/// See [`MachineError`].
pub fn start_at_log_in(yes: bool, config: Option<&Path>) -> Result<(), MachineError> {
    let launch = autostart(config)?;
    let done = if yes { launch.enable() } else { launch.disable() };
    done.map_err(MachineError::Autostart)
}

/// Does it start at log-in?
pub fn starts_at_log_in() -> bool {
    autostart(None).is_ok_and(|launch| launch.is_enabled().unwrap_or(false))
}

/// Takes away all that the app left.
///
/// # Errors
/// See [`MachineError`].
pub fn uninstall(state_dir: &Path) -> Result<(), MachineError> {
    start_at_log_in(false, None)?;
    let gone = |path: &Path, removed: io::Result<()>| match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    };
    // Not whatever else somebody keeps there.
    for name in FOLDERS {
        let path = state_dir.join(name);
        gone(&path, std::fs::remove_dir_all(&path))?;
    }
    for name in FILES {
        let path = state_dir.join(name);
        gone(&path, std::fs::remove_file(&path))?;
        gone(&path, std::fs::remove_file(path.with_extension("new")))?;
    }
    match std::fs::remove_dir(state_dir) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        removed => gone(state_dir, removed),
    }
}

/// A statement of when this home served, signed with its identity.
///
/// # Errors
/// See [`MachineError`].
pub fn receipt(state_dir: &Path, first: Timestamp, last: Timestamp) -> Result<Receipt, MachineError> {
    let keys = match BridgeKeys::load(&state_dir.join("keys")) {
        Err(KeysError::Missing(_)) => return Err(MachineError::NoKeys),
        keys => keys?,
    };
    let intervals = Served::load(state_dir)?.between(first, last);
    let sign = |message: &[u8]| keys.sign(ReachKind::Onion, message);
    Ok(Receipt::sign(keys.onion_reach(), intervals, Timestamp::now(), sign))
}

/// Writes a file that does not exist yet, for the owner's eyes only.
///
/// # Errors
/// See [`MachineError`].
pub fn write_new(to: &Path, bytes: &[u8]) -> Result<(), MachineError> {
    let file = private_file::create_new(to);
    file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(failed("write", to))
}

/// A copy of an identity.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Copy {
    hebtor_volunteer_identity: u32,
    /// Name of each file of keys, and what is in it, in base64.
    keys: BTreeMap<String, String>,
}

/// Writes a copy of the identity, for the owner's eyes only. Replaces nothing.
///
/// # Errors
/// See [`MachineError`].
pub fn back_up(state_dir: &Path, to: &Path) -> Result<(), MachineError> {
    let keys = read_keys(&state_dir.join("keys"), "")?;
    if keys.is_empty() {
        return Err(MachineError::NoKeys);
    }
    let copy = Copy { hebtor_volunteer_identity: 1, keys };
    let text = serde_json::to_vec_pretty(&copy).map_err(|error| failed("write", to)(error.into()))?;
    write_new(to, &text)
}

/// All files below a folder of keys, by their path in it.
fn read_keys(dir: &Path, prefix: &str) -> Result<BTreeMap<String, String>, MachineError> {
    let mut keys = BTreeMap::new();
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(keys),
        entries => entries.map_err(failed("read", dir))?,
    };
    for entry in entries {
        let path = entry.map_err(failed("read", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = format!("{prefix}{name}");
        let meta = path.symlink_metadata().map_err(failed("read", &path))?;
        if meta.is_dir() {
            keys.extend(read_keys(&path, &format!("{name}/"))?);
        } else if meta.is_file() && meta.len() <= MAX_KEY && keys.len() < MAX_KEYS {
            keys.insert(name, BASE64.encode(&std::fs::read(&path).map_err(failed("read", &path))?));
        }
    }
    Ok(keys)
}

/// Puts an identity back from a copy, where there is none.
///
/// # Errors
/// See [`MachineError`].
pub fn restore(state_dir: &Path, from: &Path) -> Result<(), MachineError> {
    let keys = state_dir.join("keys");
    if !read_keys(&keys, "")?.is_empty() {
        return Err(MachineError::HasKeys { path: keys });
    }
    let no_copy = || MachineError::NoCopy { path: from.to_owned() };
    let text = std::fs::read(from).map_err(failed("read", from))?;
    let copy: Copy = serde_json::from_slice(&text).map_err(|_| no_copy())?;
    let plain = |part: &str| {
        // Of the characters, one names another drive or a stream beside a file on Windows.
        Path::new(part).components().eq([Component::Normal(part.as_ref())]) && !part.contains([':', '\\'])
    };
    let mut files = Vec::new();
    for (name, text) in &copy.keys {
        if !name.split('/').all(plain) || copy.keys.len() > MAX_KEYS {
            return Err(no_copy());
        }
        files.push((keys.join(name), BASE64.decode(text.as_bytes()).map_err(|_| no_copy())?));
    }
    for (path, bytes) in files {
        let dir = path.parent().unwrap_or(&keys);
        private_file::make_folder(dir).map_err(failed("make", dir))?;
        private_file::write(&path, &bytes).map_err(failed("write", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_comes_back_from_its_copy_and_replaces_none() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let copy = one.path().join("copy.json");
        assert!(matches!(back_up(one.path(), &copy), Err(MachineError::NoKeys)));
        std::fs::create_dir_all(one.path().join("keys/hs")).unwrap();
        std::fs::write(one.path().join("keys/hs/id"), b"secret\0").unwrap();
        back_up(one.path(), &copy).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert!(back_up(one.path(), &copy).is_err(), "a copy was replaced");
        restore(other.path(), &copy).unwrap();
        assert_eq!(std::fs::read(other.path().join("keys/hs/id")).unwrap(), b"secret\0");
        assert!(matches!(restore(other.path(), &copy), Err(MachineError::HasKeys { .. })));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_path_is_one_word_of_what_starts_at_log_in() {
        assert_eq!(quoted(Path::new("/usr/bin/hebtor-volunteer")), "/usr/bin/hebtor-volunteer");
        assert_eq!(quoted(Path::new("/home/Ann B/100%.toml")), r#""/home/Ann B/100%%.toml""#);
        assert_eq!(quoted(Path::new(r#"/a"$\"#)), r#""/a\\"\\$\\\\""#);
    }

    #[test]
    fn a_copy_can_write_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("copy.json");
        for name in ["../x", "/etc/x", "a/../../x", "a//b", "", ".", "C:/x", "C:x", "id:x", "..\\x"] {
            let text = format!(r#"{{"hebtor_volunteer_identity":1,"keys":{{{name:?}:"eA=="}}}}"#);
            std::fs::write(&copy, text).unwrap();
            assert!(matches!(restore(dir.path(), &copy), Err(MachineError::NoCopy { .. })), "{name}");
        }
        std::fs::write(&copy, "{}").unwrap();
        assert!(restore(dir.path(), &copy).is_err());
        assert!(!dir.path().join("keys").exists());
    }
}
