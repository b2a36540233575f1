//! One program under test: its output in files, its end when this is dropped.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// A program built by this workspace.
pub fn binary(name: &str) -> PathBuf {
    // Binaries run from target/PROFILE, tests from its folder deps.
    let exe = std::env::current_exe().expect("own path");
    let places = exe.ancestors().skip(1).take(2).map(|dir| dir.join(name));
    places.into_iter().find(|path| path.exists()).unwrap_or_else(|| panic!("{name} is not built: run `make`"))
}

/// Both ends of each TCP connection of the process `pid`: its own, and the other one.
pub async fn connections_of(pid: u32) -> anyhow::Result<Vec<(SocketAddr, SocketAddr)>> {
    let out = Command::new("ss").args(["-Htnp", "state", "established"]).output().await.context("ss")?;
    let mut found = Vec::new();
    for line in String::from_utf8(out.stdout)?.lines() {
        // Queues, our end, the other end, the process.
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, _, ours, theirs, process, ..] = words[..] else { continue };
        if process.contains(&format!("pid={pid},")) {
            found.push((ours.parse()?, theirs.parse()?));
        }
    }
    Ok(found)
}

/// Who has, or had a moment ago, a TCP connection to this address.
pub async fn peers_of(address: SocketAddr) -> anyhow::Result<Vec<SocketAddr>> {
    let out = Command::new("ss").args(["-Htan", "state", "connected"]).output().await.context("ss")?;
    let mut found = Vec::new();
    for line in String::from_utf8(out.stdout)?.lines() {
        // The state, queues, one end, the other end.
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, _, _, one, other, ..] = words[..] else { continue };
        match (one.parse()?, other.parse()?) {
            (one, other) if one == address => found.push(other),
            (one, other) if other == address => found.push(one),
            _ => {}
        }
    }
    Ok(found)
}

/// Without a line that is still being written.
fn whole_lines(text: &str) -> &str {
    text.rfind('\n').map_or("", |end| &text[..=end])
}

/// A running program.
pub struct Running {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    /// Starts `command` with stdout and stderr in `dir`.
    pub fn start(mut command: Command, dir: &Path) -> anyhow::Result<Self> {
        let (stdout, stderr) = (dir.join("stdout"), dir.join("stderr"));
        command.stdin(std::process::Stdio::null());
        command.stdout(File::create(&stdout)?).stderr(File::create(&stderr)?);
        command.kill_on_drop(true);
        let child = command.spawn().context("cannot start the program")?;
        Ok(Self { child, stdout, stderr })
    }

    /// All that it wrote to stdout.
    pub fn stdout(&self) -> String {
        std::fs::read_to_string(&self.stdout).unwrap_or_default()
    }

    /// All that it wrote to stderr.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    /// Waits until `ready` finds what it wants in the whole lines of stdout and stderr.
    pub async fn wait_for<T>(
        &mut self,
        what: &str,
        mut ready: impl FnMut(&str, &str) -> Option<T>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(found) = ready(whole_lines(&self.stdout()), whole_lines(&self.stderr())) {
                return Ok(found);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended ({status}) before {what}:\n{}", self.stderr());
            }
            if Instant::now() > deadline {
                bail!("no {what} in 60 s:\n{}", self.stderr());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            kill(Pid::from_raw(pid), signal).expect("signal");
        }
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Is it still running?
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// Its exit code, when it ends within `limit`; `None` for one that a signal ended.
    pub async fn exit_code(&mut self, limit: Duration) -> anyhow::Result<Option<i32>> {
        Ok(tokio::time::timeout(limit, self.child.wait()).await.context("it does not end")??.code())
    }
}
