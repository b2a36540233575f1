//! Exit bridges are asked for their server descriptors, over Tor, by an `eebt-client descriptor` at our side.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use eebt_proto::BridgeLine;

use crate::check::{CheckError, client};
use crate::folder::StateDir;

/// How long it may take for all of them.
const LIMIT: Duration = Duration::from_secs(180);
/// Between two looks.
const TICK: Duration = Duration::from_millis(100);
/// What is read of an answer, in bytes.
const MOST: usize = 1 << 20;

/// How exit bridges are asked.
pub struct Asker {
    /// The program `eebt-client`.
    pub program: PathBuf,
    /// Where it keeps what it knows of the network.
    pub dir: StateDir,
    /// Arti settings that name another Tor network.
    pub network: Option<PathBuf>,
}

impl Asker {
    /// Begins to ask these.
    ///
    /// # Errors
    /// [`CheckError::Start`].
    pub fn ask(&self, lines: &[BridgeLine]) -> Result<Asking, CheckError> {
        let failed = |source| CheckError::Start { program: self.program.clone(), source };
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let (out, err) = (self.dir.nameless().map_err(failed)?, self.dir.nameless().map_err(failed)?);
        let state = self.dir.attach().join("tor");
        let mut command = client(&self.program, "descriptor", &state, self.network.as_deref());
        command.stdout(out.try_clone().map_err(failed)?).stderr(err.try_clone().map_err(failed)?);
        // Not as arguments, which everybody on this machine can see.
        let mut child = command.args(["--bridge-file", "/dev/stdin"]).spawn().map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // Who does not read must not keep us; why it does not, it says itself.
            std::thread::spawn(move || stdin.write_all(text.as_bytes()));
        }
        Ok(Asking { child, out, err, until: Instant::now() + LIMIT })
    }
}

/// They are being asked, until this is dropped.
pub struct Asking {
    child: Child,
    out: File,
    err: File,
    until: Instant,
}

impl Asking {
    /// Once all have answered, or time is up: what they gave, in one text, and why they gave no more.
    pub fn answer(&mut self) -> Option<(String, String)> {
        let runs = matches!(self.child.try_wait(), Ok(None));
        if runs && Instant::now() < self.until {
            return None;
        }
        Some((text(&self.out), text(&self.err)))
    }

    /// Waits for the answer; none if we are told to stop meanwhile.
    pub fn wait(mut self, stop: &AtomicBool) -> Option<(String, String)> {
        while !stop.load(Ordering::Relaxed) {
            if let Some(answer) = self.answer() {
                return Some(answer);
            }
            std::thread::sleep(TICK);
        }
        None
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(file: &File) -> String {
    let (mut bytes, mut read) = (vec![0; MOST], 0);
    while let Ok(more @ 1..) = file.read_at(&mut bytes[read..], read as u64) {
        read += more;
    }
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// An asker whose program is this script.
    fn asker(dir: &std::path::Path, script: &str) -> Asker {
        let program = dir.join("client");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o700)).unwrap();
        Asker { program, dir: StateDir::open(&dir.join("state")).unwrap(), network: None }
    }

    #[test]
    fn who_reads_nothing_and_fails_has_its_own_words_reported() {
        let dir = tempfile::tempdir().unwrap();
        let asker = asker(dir.path(), "exec <&-; echo 'eebt-client: no luck' >&2; exit 1");
        let lines: Vec<BridgeLine> = vec![super::super::fake::line(1); 2000];
        let (got, said) = asker.ask(&lines).unwrap().wait(&AtomicBool::new(false)).unwrap();
        assert_eq!((got.as_str(), said.as_str()), ("", "eebt-client: no luck\n"));
    }

    #[test]
    fn a_stop_ends_the_wait_and_who_was_asked() {
        let dir = tempfile::tempdir().unwrap();
        let asker = asker(dir.path(), "echo $$; exec sleep 600");
        let mut asking = asker.ask(&[super::super::fake::line(1)]).unwrap();
        while text(&asking.out).is_empty() {
            assert!(asking.answer().is_none());
            std::thread::sleep(TICK / 10);
        }
        let pid = text(&asking.out);
        assert!(asking.wait(&AtomicBool::new(true)).is_none());
        assert!(!std::path::Path::new("/proc").join(pid.trim()).exists());
    }

    #[test]
    fn what_was_got_when_time_is_up_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let mut asking =
            asker(dir.path(), "cat; exec sleep 600").ask(&[super::super::fake::line(1)]).unwrap();
        while text(&asking.out).is_empty() {
            std::thread::sleep(TICK / 10);
        }
        asking.until = Instant::now();
        let (got, _) = asking.answer().unwrap();
        assert_eq!(got, format!("{}\n", super::super::fake::line(1)));
    }
}
