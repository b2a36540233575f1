//! Whether exit bridges serve, asked through Tor as their clients do: `eebt-client check` at our side answers for each
//! bridge line that it is given.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;

use crate::folder::StateDir;

/// What is known of one exit bridge.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Checked {
    line: u64,
    /// It takes circuits.
    pub serves: bool,
    /// Why not.
    pub error: Option<String>,
    /// Nothing is known, for there is no way into the Tor network from here.
    pub no_tor: bool,
    /// The canary origins.
    pub visits: Vec<Visit>,
}

/// One canary origin.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Visit {
    /// Its URL.
    pub page: String,
    /// What became of the visit.
    pub result: Visited,
}

/// What became of a visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Visited {
    /// A page came.
    Open,
    /// The origin turned the exit bridge away.
    Blocked,
    /// No answer, for whatever reason.
    NoAnswer,
}

/// Why nothing can be checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// It can't be started.
    #[error("can't start {}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It has ended.
    #[error("eebt-client has ended: {0}")]
    Ended(String),
}

/// A bridge line that was given, by its number.
#[derive(Debug, PartialEq, Eq)]
pub struct Question(u64);

/// An `eebt-client check` that runs.
pub struct Checker {
    child: Child,
    asked: Mutex<(u64, ChildStdin)>,
    answers: Arc<Mutex<Answers>>,
    /// What it writes to stderr, in a file without a name.
    log: File,
}

#[derive(Default)]
struct Answers {
    known: HashMap<u64, Checked>,
    is_over: bool,
}

/// An `eebt-client` that does one thing, for us to talk to.
pub(crate) fn client(program: &Path, what: &str, state: &Path, network: Option<&Path>) -> Command {
    let mut command = Command::new(program);
    command.args([what, "--state-dir"]).arg(state);
    if let Some(path) = network {
        command.arg("--network").arg(path);
    }
    // What it needs not see, such as a cloud's credentials, it does not get.
    command.env_clear().envs(std::env::vars_os().filter(|(name, _)| {
        ["HOME", "LANG", "PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "TMPDIR"].iter().any(|known| name == known)
    }));
    // Ctrl-C is for us: its answers are wanted until the end.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Checker {
    /// Starts `program`, which visits `canaries` (URLs) through each exit bridge that serves.
    ///
    /// # Errors
    /// [`CheckError::Start`].
    pub fn start(
        program: &Path,
        dir: &StateDir,
        network: Option<&Path>,
        canaries: &[String],
    ) -> Result<Self, CheckError> {
        let failed = |source| CheckError::Start { program: program.to_owned(), source };
        let log = dir.nameless().map_err(failed)?;
        let stderr = log.try_clone().map_err(failed)?;
        let mut command = client(program, "check", &dir.check(), network);
        command.args(["--stdin", "--json"]).stderr(stderr);
        for url in canaries {
            command.args(["--visit", url]);
        }
        let mut child = command.spawn().map_err(failed)?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(io::ErrorKind::BrokenPipe.into()));
        };
        let answers = Arc::new(Mutex::new(Answers::default()));
        let to = Arc::clone(&answers);
        std::thread::spawn(move || {
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Ok(checked) = serde_json::from_str::<Checked>(&text) {
                    lock(&to).known.insert(checked.line, checked);
                }
            }
            lock(&to).is_over = true;
        });
        Ok(Self { child, asked: Mutex::new((0, stdin)), answers, log })
    }

    /// Asks for one exit bridge.
    ///
    /// # Errors
    /// [`CheckError::Ended`].
    pub fn ask(&self, line: &str) -> Result<Question, CheckError> {
        let mut asked = lock(&self.asked);
        asked.0 += 1;
        let number = asked.0;
        let written = writeln!(asked.1, "{}", line.trim()).and_then(|()| asked.1.flush());
        written.map_err(|_| self.ended()).map(|()| Question(number))
    }

    /// The answer, if it has come.
    ///
    /// # Errors
    /// [`CheckError::Ended`]; none will come then.
    pub fn answer(&self, question: &Question) -> Result<Option<Checked>, CheckError> {
        let mut answers = lock(&self.answers);
        match answers.known.remove(&question.0) {
            None if answers.is_over => Err(self.ended()),
            answer => Ok(answer),
        }
    }

    fn ended(&self) -> CheckError {
        let mut log = vec![0; 4096];
        let read = self.log.read_at(&mut log, 0).unwrap_or_default();
        let log = String::from_utf8_lossy(&log[..read]);
        let last = log.lines().rfind(|line| !line.starts_with("hint: "));
        CheckError::Ended(
            last.unwrap_or("it does not say why").trim_start_matches("eebt-client: ").to_owned(),
        )
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
