//! One tor process: started with a socket to its owner, watched, and surely ended.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::TestNetError;

/// A running tor. Dropping it kills the process and waits for its end.
#[derive(Debug)]
pub(crate) struct Tor {
    pub(crate) name: String,
    pub(crate) log: PathBuf,
    process: Process,
}

#[derive(Debug)]
enum Process {
    Ours {
        child: Child,
        /// tor exits when this closes, so even a SIGKILL of this process leaves nothing behind.
        _owner: UnixStream,
    },
    /// Started by another program. Its id counts as long as its command line names this configuration.
    Others { pid: u32, torrc: PathBuf },
}

impl Tor {
    /// Starts tor with `dir/torrc`; what it says goes to `dir/log`.
    pub(crate) fn spawn(program: &Path, name: &str, dir: &Path, empty: &Path) -> Result<Self, TestNetError> {
        let log = dir.join("log");
        let open = |options: &mut OpenOptions| options.open(&log).map_err(TestNetError::file("write", &log));
        let out = open(OpenOptions::new().create(true).write(true).truncate(true))?;
        let err = open(OpenOptions::new().append(true))?;
        let (ours, theirs) = UnixStream::pair().map_err(TestNetError::file("make a socket for", &log))?;
        let child = Command::new(program)
            .args(["--defaults-torrc".as_ref(), empty.as_os_str()])
            .args(["-f".as_ref(), dir.join("torrc").as_os_str()])
            .current_dir(dir)
            .stdin(OwnedFd::from(theirs))
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(|source| failed_to_run(program, source))?;
        let process = Process::Ours { child, _owner: ours };
        Ok(Self { name: name.to_owned(), log, process })
    }

    /// Takes over a tor that another program started with this torrc. It ends with this value, like any other.
    pub(crate) fn adopt(name: &str, log: PathBuf, pid: u32, torrc: PathBuf) -> Self {
        Self { name: name.to_owned(), log, process: Process::Others { pid, torrc } }
    }

    pub(crate) fn pid(&self) -> u32 {
        match &self.process {
            Process::Ours { child, .. } => child.id(),
            Process::Others { pid, .. } => *pid,
        }
    }

    /// An error once the process has ended.
    pub(crate) fn check(&mut self) -> Result<(), TestNetError> {
        let status = match &mut self.process {
            Process::Ours { child, .. } => match child.try_wait() {
                Ok(None) => return Ok(()),
                Ok(Some(status)) => status.to_string(),
                Err(source) => return Err(TestNetError::file("wait for", &self.log)(source)),
            },
            Process::Others { pid, torrc } if runs_with(*pid, torrc) => return Ok(()),
            Process::Others { .. } => "exit status unknown".into(),
        };
        Err(TestNetError::ExitedEarly {
            name: self.name.clone(),
            status,
            last_lines: last_complaints(&self.log),
            log: self.log.clone(),
        })
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        match &mut self.process {
            Process::Ours { child, .. } => !matches!(child.try_wait(), Ok(None)),
            Process::Others { pid, torrc } => !runs_with(*pid, torrc),
        }
    }

    /// Sends a signal, unless the process has ended and its id may be someone else's.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if !self.has_ended()
            && let Ok(pid) = i32::try_from(self.pid())
        {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Tor {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        if let Process::Ours { child, .. } = &mut self.process {
            let _ = child.wait();
            return;
        }
        // What is not our child cannot be waited for; that it is killed is a matter of moments.
        for _ in 0..200 {
            if self.has_ended() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Whether this process has this file among its arguments. One that has ended has none.
fn runs_with(pid: u32, torrc: &Path) -> bool {
    let args = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    args.split(|byte| *byte == 0).any(|arg| arg == torrc.as_os_str().as_bytes())
}

/// Runs a program to its end, with `input` on its standard input.
pub(crate) fn run(command: &mut Command, input: File) -> Result<String, TestNetError> {
    let program = PathBuf::from(command.get_program());
    let output =
        command.stdin(Stdio::from(input)).output().map_err(|source| failed_to_run(&program, source))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    Err(TestNetError::ProgramFailed {
        program,
        status: output.status.to_string(),
        output: said.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("it said nothing").to_owned(),
    })
}

pub(crate) fn failed_to_run(program: &Path, source: io::Error) -> TestNetError {
    match source.kind() {
        io::ErrorKind::NotFound => TestNetError::MissingProgram { program: program.to_owned() },
        _ => TestNetError::file("run", program)(source),
    }
}

/// The last few warnings and errors of a tor's log, or its last lines when there are none.
fn last_complaints(log: &Path) -> Vec<String> {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let bad: Vec<&str> =
        lines.iter().copied().filter(|l| l.contains("[warn]") || l.contains("[err]")).collect();
    let chosen = if bad.is_empty() { lines } else { bad };
    chosen.iter().rev().take(5).rev().map(|l| (*l).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_the_last_warnings() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "[notice] a\n[warn] b\n[notice] c\n[err] d\n[notice] e\n").unwrap();
        assert_eq!(last_complaints(&log), ["[warn] b", "[err] d"]);
        std::fs::write(&log, "1\n2\n").unwrap();
        assert_eq!(last_complaints(&log), ["1", "2"]);
    }

    #[test]
    fn adopted_process_is_signalled_only_while_it_has_its_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let (torrc, other) = (dir.path().join("torrc"), dir.path().join("other"));
        let mut sh = Command::new("sh");
        let mut stranger = sh.args(["-c", "read line"]).arg(&torrc).stdin(Stdio::piped()).spawn().unwrap();
        let pid = stranger.id();
        // For a moment it has no arguments yet.
        while std::fs::read(format!("/proc/{pid}/cmdline")).unwrap().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let adopt = |torrc: &Path| Tor::adopt("n", dir.path().join("log"), pid, torrc.into());
        let mut mistaken = adopt(&other);
        assert!(mistaken.has_ended() && mistaken.check().is_err());
        drop(mistaken);
        assert!(stranger.try_wait().unwrap().is_none(), "a stranger was killed");
        let mut adopted = adopt(&torrc);
        assert!(!adopted.has_ended() && adopted.check().is_ok());
        drop(adopted);
        assert!(stranger.try_wait().unwrap().is_some());
    }

    #[test]
    fn missing_program_comes_with_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let error = Tor::spawn(Path::new("/no/such/tor"), "n", dir.path(), Path::new("e")).unwrap_err();
        assert_eq!(error.to_string(), "the program `/no/such/tor` was not found");
        assert_eq!(error.hint().unwrap(), "apt-get install tor");
    }
}
