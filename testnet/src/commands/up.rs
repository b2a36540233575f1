//! `testnet up`: `testnet run` in the background, waited for.

use std::fs::{DirBuilder, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testnet::{State, TestNetError};

use super::StopSignals;
use crate::options::{DirOption, NetworkOptions};
use crate::output::{WithHint, data, say, summary};

#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    dir: DirOption,
    #[command(flatten)]
    network: NetworkOptions,
    /// Give up when the network is not ready by then.
    #[arg(long, default_value = "180s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
}

impl Up {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let dir = self.dir.path();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        if State::supervisor(&dir)?.is_some() {
            return Err(TestNetError::DirInUse { dir }.into());
        }
        State::remove(&dir); // of a network that crashed
        let log = dir.join("supervisor.log");
        let mut signals = StopSignals::new()?;
        let mut supervisor = self.spawn(&dir, &log)?;
        let mut talk = Talk(File::open(&log).context("cannot read supervisor.log")?);
        let deadline = Instant::now() + self.timeout;
        loop {
            talk.relay(&mut supervisor)?;
            if let Some(state) = State::load(&dir)?.filter(|s| s.supervisor_pid == supervisor.id()) {
                data(&if self.json { serde_json::to_string_pretty(&state)? } else { summary(&state) })?;
                return Ok(ExitCode::SUCCESS);
            }
            if supervisor.try_wait()?.is_some() {
                talk.relay(&mut supervisor)?; // it has said why, with a hint
                return Ok(ExitCode::FAILURE);
            }
            if Instant::now() > deadline {
                stop(&mut supervisor);
                return Err(WithHint {
                    message: format!(
                        "the network was not ready after {}",
                        humantime::format_duration(self.timeout)
                    ),
                    hint: format!("less {}", log.display()),
                }
                .into());
            }
            let stopped = tokio::time::timeout(Duration::from_millis(50), signals.next()).await.is_ok();
            if stopped {
                stop(&mut supervisor);
                return Ok(ExitCode::FAILURE);
            }
        }
    }

    fn spawn(&self, dir: &Path, log: &Path) -> anyhow::Result<Child> {
        let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let myself = std::env::current_exe().context("cannot find this program")?;
        Command::new(myself)
            .arg("run")
            .arg("--dir")
            .arg(dir)
            .args(self.network.to_args())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(out)
            .process_group(0) // a Ctrl-C in this terminal is not meant for it
            .spawn()
            .context("cannot start the supervisor")
    }
}

/// What the supervisor says, passed on.
struct Talk(File);

impl Talk {
    fn relay(&mut self, supervisor: &mut Child) -> anyhow::Result<()> {
        let start = self.0.stream_position()?;
        let mut text = String::new();
        let _ = self.0.read_to_string(&mut text); // half a character comes whole the next time
        let ended = supervisor.try_wait()?.is_some();
        let whole = if ended { text.len() } else { text.rfind('\n').map_or(0, |i| i + 1) };
        text[..whole].lines().for_each(say);
        self.0.seek(SeekFrom::Start(start + whole as u64))?;
        Ok(())
    }
}

fn stop(supervisor: &mut Child) {
    // Not waited for yet, so the id is still its own.
    if let (Ok(None), Ok(pid)) = (supervisor.try_wait(), i32::try_from(supervisor.id())) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline && matches!(supervisor.try_wait(), Ok(None)) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = supervisor.kill();
    let _ = supervisor.wait();
}
