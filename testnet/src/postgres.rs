//! A PostgreSQL server of the distribution's, for one test run: in a temporary folder of its own, on a
//! unix socket and nothing else.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, io};

/// Nothing that a server does for us takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at what is waited for.
const TICK: Duration = Duration::from_millis(20);

/// The user that the distribution's package makes. The server refuses to run as root.
const USER: &str = "postgres";

/// Holds the server as long as its own standard input is open, whatever becomes of whoever opened it, and
/// then removes the folder. Each line there ends the server as a crash would, and starts it again. SIGQUIT
/// is sent again and again since a program that has only just started does not hear it.
const KEEPER: &str = r#"
dir=$1; shift
start() { "$@" </dev/null >>"$dir/log" 2>&1 & server=$!; echo started; }
end() { while kill -QUIT "$server" 2>/dev/null; do sleep 0.05; done; }
start "$@"
while read -r _; do end; start "$@"; done
end
rm -rf "$dir"
"#;

/// A running server. Dropping it ends it, and so does the end of this process, however it comes.
#[derive(Debug)]
pub struct Postgres {
    programs: PathBuf,
    dir: PathBuf,
    databases: AtomicU32,
    keeper: Child,
    /// Closing it ends the server.
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// It is not installed.
    #[error("PostgreSQL is not installed; deploy/setup installs it")]
    Missing,
    /// The operating system refused.
    #[error("PostgreSQL for tests: cannot {doing}")]
    Io {
        /// What was attempted, as a verb.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A program of PostgreSQL's failed, or took too long.
    #[error("PostgreSQL for tests: cannot {doing}: {said}")]
    Failed {
        /// What was attempted, as a verb.
        doing: &'static str,
        /// The last lines that were written.
        said: String,
    },
}

impl PostgresError {
    fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

impl Postgres {
    /// Starts a server with no database of ours in it. Blocks until it answers, for a second or two.
    ///
    /// # Errors
    /// See [`PostgresError`].
    pub fn start() -> Result<Self, PostgresError> {
        let programs = programs().ok_or(PostgresError::Missing)?;
        let dir = tempfile::Builder::new().prefix("eebt-postgres-").tempdir();
        let dir = dir.map_err(PostgresError::io("make a folder"))?;
        let metadata = dir.path().metadata().map_err(PostgresError::io("make a folder"))?;
        let as_root = metadata.uid() == 0;
        if as_root {
            run("give the folder away", Command::new("chown").arg(format!("{USER}:")).arg(dir.path()))?;
        }
        let data = dir.path().join("data");
        run(
            "make a cluster",
            as_user(as_root)
                .arg(programs.join("initdb"))
                .args(["--username", USER, "--auth", "trust", "--encoding", "UTF8", "--locale", "C"])
                .args(["--no-sync", "--pgdata"])
                .arg(&data),
        )?;
        let server = as_user(as_root);
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .arg(dir.path())
            .arg(server.get_program())
            .args(server.get_args())
            .args(["--pdeathsig", "QUIT"]) // should the keeper itself be killed
            .arg(programs.join("postgres"))
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(dir.path())
            .args(["-c", "listen_addresses=", "-c", "max_connections=500"])
            .args(["-c", "dynamic_shared_memory_type=mmap"]) // in its folder
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0) // Ctrl-C is for its owner, whose end it survives long enough to tidy up.
            .spawn()
            .map_err(PostgresError::io("run sh"))?;
        let commands = keeper.stdin.take();
        let Some(answers) = keeper.stdout.take().map(BufReader::new) else {
            return Err(PostgresError::io("run sh")(io::ErrorKind::BrokenPipe.into()));
        };
        let dir = dir.keep(); // The keeper removes it.
        let mut this = Self { programs, dir, databases: AtomicU32::new(0), keeper, commands, answers };
        this.wait()?;
        Ok(this)
    }

    /// Makes one more database, and returns its URL.
    ///
    /// # Errors
    /// See [`PostgresError`].
    pub fn database(&self) -> Result<String, PostgresError> {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        // Template 0 is the one that nobody is ever connected to, so that several can be made at once.
        let mut command = self.client("createdb");
        run("make a database", command.args(["--template", "template0", &name]))?;
        Ok(format!("postgresql:///{name}?user={USER}&host={}", self.dir.display()))
    }

    /// Ends the server as a crash would, and starts it again. Blocks until it answers.
    ///
    /// # Errors
    /// See [`PostgresError`].
    pub fn restart(&mut self) -> Result<(), PostgresError> {
        let Some(commands) = &mut self.commands else { return Ok(()) };
        commands.write_all(b"\n").map_err(PostgresError::io("restart the server"))?;
        self.wait()
    }

    /// Its folder, with the socket and a file `log`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits until it was started, and answers.
    fn wait(&mut self) -> Result<(), PostgresError> {
        self.answers.read_line(&mut String::new()).map_err(PostgresError::io("start the server"))?;
        let start = Instant::now();
        loop {
            match run("start the server", &mut self.client("pg_isready")) {
                Ok(()) => return Ok(()),
                Err(PostgresError::Failed { .. }) if start.elapsed() < PATIENCE => {}
                Err(PostgresError::Failed { doing, .. }) => {
                    let said = last_lines(&fs::read(self.dir.join("log")).unwrap_or_default());
                    return Err(PostgresError::Failed { doing, said });
                }
                Err(error) => return Err(error),
            }
            std::thread::sleep(TICK);
        }
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.arg("--host").arg(&self.dir).args(["--username", USER]).env_clear();
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.commands = None;
        let start = Instant::now();
        while matches!(self.keeper.try_wait(), Ok(None)) && start.elapsed() < PATIENCE {
            std::thread::sleep(TICK);
        }
        let _ = self.keeper.kill(); // does nothing when it has ended
        let _ = self.keeper.wait();
    }
}

/// The newest version's folder of programs, where Debian has them; else the one in the `PATH`.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    versions.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = versions.into_iter().map(|(_, bin)| bin).chain(env::split_paths(&path));
    folders.into_iter().find(|bin| bin.join("postgres").exists() && bin.join("initdb").exists())
}

/// What a program is run with that must not be root.
fn as_user(as_root: bool) -> Command {
    let mut command = Command::new("setpriv");
    if as_root {
        command.args(["--reuid", USER, "--regid", USER, "--init-groups"]);
    }
    command
}

/// Runs a program to its end.
fn run(doing: &'static str, command: &mut Command) -> Result<(), PostgresError> {
    let output = command.current_dir("/").stdin(Stdio::null()).output().map_err(PostgresError::io(doing))?;
    if output.status.success() {
        return Ok(());
    }
    Err(PostgresError::Failed { doing, said: last_lines(&[output.stdout, output.stderr].concat()) })
}

fn last_lines(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(dir: &Path) -> bool {
        let needle = dir.to_str().unwrap().as_bytes();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let command_lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
        let needs = |line: Vec<u8>| line.windows(needle.len()).any(|part| part == needle);
        command_lines.into_iter().any(needs)
    }

    #[test]
    fn a_dropped_server_is_gone_with_its_folder() {
        let mut server = Postgres::start().unwrap_or_else(|e| panic!("{e}"));
        let dir = server.dir().to_owned();
        assert!(runs(&dir));
        assert_ne!(server.database().unwrap(), server.database().unwrap());
        server.restart().unwrap();
        server.database().unwrap();
        drop(server);
        assert!(!dir.exists() && !runs(&dir));
    }

    #[test]
    fn a_server_does_not_outlive_its_keeper() {
        let mut server = Postgres::start().unwrap_or_else(|e| panic!("{e}"));
        let dir = server.dir().to_owned();
        server.keeper.kill().unwrap();
        let start = Instant::now();
        while runs(&dir) {
            assert!(start.elapsed() < PATIENCE);
            std::thread::sleep(TICK);
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
