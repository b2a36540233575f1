//! `testnet down`: politely, then surely, and nothing but its own.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testnet::State;

use crate::options::DirOption;
use crate::output::say;

#[derive(Debug, Args)]
pub(crate) struct Down {
    #[command(flatten)]
    dir: DirOption,
}

impl Down {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let dir = self.dir.path();
        let dir = dir.canonicalize().unwrap_or(dir);
        let Some(pid) = State::supervisor(&dir)? else {
            State::remove(&dir);
            say(&format!("no network is up in {}", dir.display()));
            return Ok(ExitCode::SUCCESS);
        };
        let tors = State::load(&dir)?.map(|state| state.pids).unwrap_or_default();
        for (signal, patience) in [(Signal::SIGTERM, 15), (Signal::SIGKILL, 5)] {
            // Whoever holds the lock is the supervisor; without a holder the id may be anyone's.
            if State::supervisor(&dir)? == Some(pid) {
                let _ = kill(Pid::from_raw(i32::try_from(pid)?), signal);
            }
            if wait_until(patience, || Ok(State::supervisor(&dir)? != Some(pid))).await? {
                break;
            }
        }
        State::remove(&dir);
        // Tors end with their supervisor. Should one hang, it is known by its command line.
        let ours: Vec<i32> = tors.iter().filter_map(|pid| i32::try_from(*pid).ok()).collect();
        if !wait_until(5, || Ok(!ours.iter().any(|pid| is_our_tor(*pid, &dir)))).await? {
            for pid in ours.iter().filter(|pid| is_our_tor(**pid, &dir)) {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
        }
        if State::supervisor(&dir)? == Some(pid) {
            bail!("process {pid} does not end");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Whether this process is a tor with a configuration in this folder.
fn is_our_tor(pid: i32, dir: &Path) -> bool {
    let Ok(cmdline) = std::fs::read(PathBuf::from(format!("/proc/{pid}/cmdline"))) else {
        return false;
    };
    cmdline.split(|b| *b == 0).any(|arg| Path::new(&*String::from_utf8_lossy(arg)).starts_with(dir))
}

async fn wait_until(seconds: u64, mut done: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<bool> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !done()? {
        if Instant::now() > deadline {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(true)
}
