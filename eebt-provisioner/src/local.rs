//! The provider `local`: each instance is a process of `eebt-bridge` on this machine.
//!
//! Whether a process lives is never guessed from a pid. Its standard input is the locked file
//! `lock` in its folder: the lock goes to the child with the open file, and ends when the process
//! does. So "the lock is held" means "the process lives", also when `eebt` was killed between
//! starting it and writing that down, and a pid is only ever signalled while the lock is held.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use eebt_proto::{BridgeLine, OnionReach};
use ipnet::IpNet;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::folder::{Folder, FolderError};
use crate::instance::{DRAIN, Instance};
use crate::locks::{self, Claim, LockError};

/// How long `eebt-bridge keygen` and `line` may take.
const HELPER_PATIENCE: Duration = Duration::from_secs(30);

/// How long a process that was just started may take to write its pid.
const PID_PATIENCE: Duration = Duration::from_secs(5);

/// What of our environment an exit bridge gets to see.
const ENVIRONMENT: &[&str] = &["PATH", "HOME", "RUST_LOG"];

/// What the operator chose for all instances of one `eebt up`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program.
    pub bridge: PathBuf,
    /// A private Tor network.
    pub network: Option<PathBuf>,
    /// Ports that are let out: a preset or a list.
    pub policy: String,
    /// Special-use ranges that a test network opens.
    pub allow_egress: Vec<IpNet>,
    /// Addresses that relays of a test network connect from.
    pub allow_ingress: Vec<IpNet>,
    /// How clients reach them.
    pub reach: Reach,
    /// Exit-bridge directories that they register with.
    pub directories: Vec<OnionReach>,
}

/// How clients reach an exit bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// Circuits are extended to it: it needs an address and an open port.
    #[default]
    Circuit,
    /// As an onion service: from behind any NAT, over more relays.
    Onion,
}

/// `bridge.toml`, as `eebt-bridge` reads it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct BridgeConfig {
    keys: PathBuf,
    state_dir: PathBuf,
    pid_file: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<PathBuf>,
    reach: Vec<Reach>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    directories: Vec<OnionReach>,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where clients reach it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress_address: Option<IpAddr>,
    /// Its status page.
    pub status: SocketAddr,
    policy: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    allow_egress: Vec<IpNet>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    allow_ingress: Vec<IpNet>,
    drain: String,
    expires: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limits: Option<Limits>,
}

/// Of the exit bridge's own limits, what is not left at its default.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Limits {
    total_bytes: Rate,
}

/// A token bucket.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Rate {
    per_second: f64,
    burst: f64,
}

impl BridgeConfig {
    /// The configuration of one instance.
    pub fn new(row: &Instance, folder: &Folder, settings: &Settings) -> Self {
        Self {
            keys: folder.keys(),
            state_dir: folder.state(),
            pid_file: folder.pid_file(),
            network: settings.network.clone(),
            reach: vec![settings.reach],
            directories: settings.directories.clone(),
            listen: row.listen,
            address: row.address,
            egress_address: Some(row.listen.ip()).filter(|ip| !ip.is_unspecified()),
            status: row.status,
            policy: settings.policy.clone(),
            allow_egress: settings.allow_egress.clone(),
            allow_ingress: settings.allow_ingress.clone(),
            drain: humantime::format_duration(DRAIN).to_string(),
            expires: humantime::format_rfc3339_seconds(row.expires).to_string(),
            limits: None,
        }
    }

    /// The same on a machine of its own, which keeps things elsewhere.
    pub fn in_guest(self, keys: PathBuf, state_dir: PathBuf, network: Option<PathBuf>) -> Self {
        Self { keys, pid_file: state_dir.join("pid"), state_dir, network, ..self }
    }

    /// The same, which carries so many bytes in its life at most: half of them as fast as it can, the rest evenly over
    /// its life.
    #[allow(clippy::cast_precision_loss)] // of bytes that a network carries
    pub fn carrying(self, bytes: u64, lifetime: Duration) -> Self {
        // An exit bridge refuses a bucket that holds less than a write of its own.
        let half = (bytes as f64 / 2.0).max(65_536.0);
        let total_bytes = Rate { per_second: half / lifetime.as_secs_f64().max(1.0), burst: half };
        Self { limits: Some(Limits { total_bytes }), ..self }
    }

    /// When the instance ends by itself.
    pub fn expires(&self) -> Option<SystemTime> {
        humantime::parse_rfc3339(&self.expires).ok()
    }
}

/// Why something with a process of this machine did not work.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// In the instance's folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// With a lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The program can't be run.
    #[error("can't run {}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The program can't be waited for.
    #[error("can't wait for eebt-bridge")]
    Wait(#[source] io::Error),
    /// A helper ended with an error.
    #[error("`eebt-bridge {command}` failed ({status}): {said}")]
    Refused {
        /// The sub-command.
        command: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The last line it wrote.
        said: String,
    },
    /// A helper did not end.
    #[error("`eebt-bridge {command}` did not end within {} s", HELPER_PATIENCE.as_secs())]
    Slow {
        /// The sub-command.
        command: &'static str,
    },
    /// What it printed is no bridge line.
    #[error("`eebt-bridge line` printed no bridge line")]
    Line(#[source] eebt_proto::LineError),
    /// The configuration can't be written as TOML.
    #[error("can't write bridge.toml")]
    Toml(#[source] toml::ser::Error),
    /// A process holds the lock, but which?
    #[error("a process holds {}, but {} does not say which", lock.display(), pid_file.display())]
    NoPid {
        /// The lock's file.
        lock: PathBuf,
        /// Where its pid should be.
        pid_file: PathBuf,
    },
    /// A process can't be signalled.
    #[error("can't send {signal} to process {pid}")]
    Signal {
        /// The signal.
        signal: Signal,
        /// The process.
        pid: i32,
        /// What the system says.
        source: nix::Error,
    },
}

impl LocalError {
    /// What to try.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Spawn { .. } | Self::Line(_) => Some(
                "--bridge-binary names another eebt-bridge; it must be of the same version as eebt".into(),
            ),
            _ => None,
        }
    }
}

/// Makes the keys of one instance.
///
/// # Errors
/// See [`LocalError`].
pub fn make_keys(folder: &Folder, settings: &Settings, claim: &Claim) -> Result<(), LocalError> {
    helper("keygen", "--keys", &folder.keys(), folder, settings, claim).map(|_| ())
}

/// Writes its configuration.
///
/// # Errors
/// See [`LocalError`].
pub fn write_config(row: &Instance, folder: &Folder, settings: &Settings) -> Result<(), LocalError> {
    let text = toml::to_string(&BridgeConfig::new(row, folder, settings)).map_err(LocalError::Toml)?;
    Ok(folder.write_private(&folder.config(), &text)?)
}

/// Its bridge line.
///
/// # Errors
/// See [`LocalError`].
pub fn bridge_line(folder: &Folder, settings: &Settings, claim: &Claim) -> Result<String, LocalError> {
    let said = helper("line", "--config", &folder.config(), folder, settings, claim)?;
    let line = said.trim().to_owned();
    line.parse::<BridgeLine>().map_err(LocalError::Line)?;
    folder.write_private(&folder.line(), &line)?;
    Ok(line)
}

/// Starts its process, in its own process group so that a Ctrl-C meant for us passes it by.
///
/// # Errors
/// See [`LocalError`].
pub fn launch(folder: &Folder, settings: &Settings) -> Result<Child, LocalError> {
    let log = folder.open_log()?;
    let spawn = |source| LocalError::Spawn { program: settings.bridge.clone(), source };
    let mut command = bridge(settings);
    command.args(["run", "--config"]).arg(folder.config()).current_dir("/").process_group(0);
    // What it prints is its bridge line, which belongs in no log.
    command.stdout(Stdio::null()).stderr(log);
    // From here on the lock belongs to the child as well, and our copy goes with `command`.
    command.stdin(Stdio::from(locks::lock(&folder.lock(), Duration::ZERO)?));
    command.spawn().map_err(spawn)
}

/// Does its process live?
///
/// # Errors
/// The lock can't be looked at.
pub fn is_alive(folder: &Folder) -> Result<bool, LockError> {
    locks::is_held(&folder.lock())
}

/// Sends a signal to its process, if that lives.
///
/// # Errors
/// See [`LocalError`].
pub fn signal(folder: &Folder, pid: Option<u32>, signal: Signal) -> Result<(), LocalError> {
    let start = Instant::now();
    loop {
        let pid = pid.and_then(|pid| i32::try_from(pid).ok()).or_else(|| read_pid(&folder.pid_file()));
        // After the pid is known, so that it can't be another process's by now.
        if !is_alive(folder)? {
            return Ok(());
        }
        match pid {
            Some(pid) => {
                return match kill(Pid::from_raw(pid), signal) {
                    Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
                    Err(source) => Err(LocalError::Signal { signal, pid, source }),
                };
            }
            None if start.elapsed() > PID_PATIENCE => {
                return Err(LocalError::NoPid { lock: folder.lock(), pid_file: folder.pid_file() });
            }
            None => sleep(Duration::from_millis(20)),
        }
    }
}

/// Waits for its process to be gone. False if it still lives after `patience`.
///
/// # Errors
/// The lock can't be looked at.
pub fn wait_gone(folder: &Folder, patience: Duration) -> Result<bool, LockError> {
    let start = Instant::now();
    while is_alive(folder)? {
        if start.elapsed() >= patience {
            return Ok(false);
        }
        sleep(Duration::from_millis(20));
    }
    Ok(true)
}

/// Undoes whatever was done for an instance: kills its process, then removes its keys and
/// configuration. May be called after any step, and again.
///
/// # Errors
/// See [`LocalError`]; the folder is left alone as long as the process may live.
pub fn undo(folder: &Folder, pid: Option<u32>) -> Result<(), LocalError> {
    signal(folder, pid, Signal::SIGKILL)?;
    if !wait_gone(folder, PID_PATIENCE)? {
        return Err(LocalError::NoPid { lock: folder.lock(), pid_file: folder.pid_file() });
    }
    Ok(folder.clear()?)
}

fn bridge(settings: &Settings) -> Command {
    let mut command = Command::new(&settings.bridge);
    // Its log is a file: no colours.
    command.env_clear().env("NO_COLOR", "1");
    command.envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command
}

/// Runs a short-lived sub-command and returns what it prints.
fn helper(
    command: &'static str,
    flag: &str,
    path: &Path,
    folder: &Folder,
    settings: &Settings,
    claim: &Claim,
) -> Result<String, LocalError> {
    let spawn = |source| LocalError::Spawn { program: settings.bridge.clone(), source };
    let mut out = scratch(folder).map_err(LocalError::Wait)?;
    let mut err = scratch(folder).map_err(LocalError::Wait)?;
    let mut child = bridge(settings)
        .args([command, flag])
        .arg(path)
        .current_dir("/")
        .process_group(0)
        .stdin(claim.share()?)
        .stdout(out.try_clone().map_err(spawn)?)
        .stderr(err.try_clone().map_err(spawn)?)
        .spawn()
        .map_err(spawn)?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(LocalError::Wait)? {
            break status;
        }
        if start.elapsed() > HELPER_PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            return Err(LocalError::Slow { command });
        }
        sleep(Duration::from_millis(5));
    };
    if !status.success() {
        let text = all_of(&mut err).map_err(LocalError::Wait)?;
        let said = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        return Err(LocalError::Refused { command, status, said: said.trim().to_owned() });
    }
    all_of(&mut out).map_err(LocalError::Wait)
}

/// A file without a name. A pipe would do as well, but for a helper that writes more than it holds.
fn scratch(folder: &Folder) -> io::Result<File> {
    let path = folder.path().join(format!("scratch-{:016x}", rand::random::<u64>()));
    let file = File::options().read(true).append(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

fn all_of(file: &mut File) -> io::Result<String> {
    let mut text = Vec::new();
    file.rewind()?;
    file.take(64 * 1024).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn read_pid(path: &Path) -> Option<i32> {
    // 0 and below would mean whole process groups, 1 is init.
    std::fs::read_to_string(path).ok()?.trim().parse().ok().filter(|pid| *pid > 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::StateDir;
    use crate::instance::State;
    use crate::instance::tests::row;

    #[test]
    fn configuration_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let folder = StateDir::open(dir.path()).unwrap().instance("x");
        let settings = Settings {
            bridge: "/bin/true".into(),
            network: None,
            policy: "web".into(),
            allow_egress: vec!["127.0.0.0/8".parse().unwrap()],
            allow_ingress: Vec::new(),
            reach: Reach::Onion,
            directories: vec![OnionReach { service: [7; 32] }],
        };
        let config = BridgeConfig::new(&row("x", State::Planned), &folder, &settings);
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<BridgeConfig>(&text).unwrap(), config);
        assert!(text.contains("expires = \"1970-01-01T00:16:40Z\""), "{text}");
        assert!(
            text.contains("drain = \"10s\"") && text.contains("allow_egress = [\"127.0.0.0/8\"]"),
            "{text}"
        );
        assert!(text.contains("reach = [\"onion\"]") && text.contains(".onion\"]"), "{text}");
        assert!(!text.contains("network"), "{text}");
    }

    #[test]
    fn no_pid_is_signalled_unless_the_lock_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let folder = StateDir::open(dir.path()).unwrap().instance("x");
        folder.create().unwrap();
        let mut bystander = Command::new("sleep").arg("60").spawn().unwrap();
        signal(&folder, Some(bystander.id()), Signal::SIGKILL).unwrap();
        assert!(bystander.try_wait().unwrap().is_none());
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }

    #[test]
    fn pids_that_mean_more_than_one_process_are_not_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, pid) in [("123\n", Some(123)), ("0", None), ("-1", None), ("1", None), ("", None)] {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(read_pid(file.path()), pid, "{text:?}");
        }
    }
}
