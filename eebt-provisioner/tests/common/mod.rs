//! The real `eebt` with a fake exit bridge, in a state folder of its own.
#![allow(dead_code)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

pub struct Run {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Run {
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }

    /// Failed with this exit code, and says each of these on stderr.
    #[track_caller]
    pub fn fails(self, code: i32, says: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.out, self.err);
        for text in says {
            assert!(self.err.contains(text), "{text:?} is not in stderr: {}", self.err);
        }
        self
    }

    pub fn lines(&self) -> Vec<&str> {
        self.out.lines().collect()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|err| panic!("{err}: {}", self.out))
    }
}

pub struct Operator {
    home: TempDir,
    range: String,
}

impl Operator {
    /// `third` is the third byte of the addresses 127.45.x.0/24, a different one in each test.
    pub fn new(third: u8, knobs: &[(&str, &str)]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let operator = Self { home, range: format!("127.45.{third}.0/24") };
        fs::write(operator.network(), "# a private Tor network\n").unwrap();
        operator.set(knobs);
        operator
    }

    /// How the fake exit bridge misbehaves from now on.
    pub fn set(&self, knobs: &[(&str, &str)]) {
        let knobs: String = knobs.iter().map(|(name, value)| format!("{name}={value} ")).collect();
        self.fake("fake_bridge", &knobs, &self.bridge());
        self.fake("fake_client", &format!("FAKE_SAYS={} ", self.says().display()), &self.client());
    }

    fn fake(&self, name: &str, knobs: &str, path: &Path) {
        let exe = Path::new(env!("CARGO_BIN_EXE_eebt")).with_file_name("examples").join(name);
        assert!(exe.exists(), "first: cargo build --release -p eebt-provisioner --example {name}");
        let script = format!("#!/bin/sh\n{knobs}exec {} \"$@\"\n", exe.display());
        // Renamed into place: a script that is being written can't be executed.
        let fresh = path.with_extension("new");
        fs::write(&fresh, script).unwrap();
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&fresh, path).unwrap();
    }

    /// What checks say from now on; see `fake_client.rs`.
    pub fn say(&self, says: &Value) {
        let fresh = self.says().with_extension("new");
        fs::write(&fresh, says.to_string()).unwrap();
        fs::rename(&fresh, self.says()).unwrap();
    }

    pub fn path(&self) -> &Path {
        self.home.path()
    }
    pub fn range(&self) -> String {
        self.range.clone()
    }
    pub fn bridge(&self) -> PathBuf {
        self.path().join("eebt-bridge")
    }
    pub fn client(&self) -> PathBuf {
        self.path().join("eebt-client")
    }
    fn says(&self) -> PathBuf {
        self.path().join("says.json")
    }
    pub fn network(&self) -> PathBuf {
        self.path().join("network.toml")
    }
    pub fn state(&self) -> PathBuf {
        self.path().join("state")
    }
    pub fn ledger(&self) -> PathBuf {
        self.state().join("ledger.sqlite")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eebt"));
        command.args(args).env("EEBT_STATE_DIR", self.state()).env("EEBT_BRIDGE_BINARY", self.bridge());
        command.env("EEBT_CLIENT_BINARY", self.client());
        command.env_remove("EEBT_CRASH_AT").stdin(Stdio::null());
        command
    }

    pub fn eebt(&self, args: &[&str]) -> Run {
        finish(&mut self.command(args))
    }

    /// `eebt up` on the test network.
    pub fn up_command(&self, args: &[&str]) -> Command {
        let mut command = self.command(&["up", "--address", &self.range, "--network"]);
        command.arg(self.network()).args(["--allow-egress", "127.0.0.0/8"]).args(args);
        command
    }

    pub fn up(&self, args: &[&str]) -> Run {
        finish(&mut self.up_command(args))
    }

    pub fn ls(&self) -> Vec<Value> {
        instances(&self.eebt(&["ls", "--json"]).ok())
    }

    pub fn ls_all(&self) -> Vec<Value> {
        instances(&self.eebt(&["ls", "--all", "--json"]).ok())
    }

    /// Names of instances by `eebt ls`.
    pub fn ids(&self) -> Vec<String> {
        self.ls().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Instance folders that hold more than a log.
    pub fn folders_with_secrets(&self) -> Vec<String> {
        let entries = fs::read_dir(self.state().join("instances")).into_iter().flatten().flatten();
        let more =
            |path: &Path| fs::read_dir(path).unwrap().flatten().any(|entry| entry.file_name() != "log");
        let mut names: Vec<String> = entries
            .filter(|entry| more(&entry.path()))
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Pids of exit bridges of this operator, as the system sees them.
    pub fn processes(&self) -> Vec<i32> {
        let needle = self.state().join("instances");
        let needle = needle.to_str().unwrap().as_bytes();
        let mine = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.windows(needle.len()).any(|window| window == needle)
        };
        let entries = fs::read_dir("/proc").unwrap().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(mine).collect()
    }

    /// The ledger, the processes and the folders agree, and all that lives runs.
    #[track_caller]
    pub fn assert_truth(&self, context: &str) -> usize {
        // A helper (keygen, line) that outlives its `up` counts as that `up` at work, for its few
        // milliseconds.
        let creating = |row: &Value| ["planned", "keys"].contains(&row["state"].as_str().unwrap());
        eventually(context, || !self.ls().iter().any(creating));
        let rows = self.ls();
        for row in &rows {
            assert_eq!(row["state"], "running", "{context}: {row}");
        }
        let mut ids: Vec<&str> = rows.iter().map(|row| row["id"].as_str().unwrap()).collect();
        ids.sort_unstable();
        assert_eq!(self.processes().len(), rows.len(), "{context}: processes and {rows:?}");
        assert_eq!(self.folders_with_secrets(), ids, "{context}");
        let claims: Vec<_> = fs::read_dir(self.state().join("claims")).unwrap().collect();
        assert!(claims.is_empty(), "{context}: {claims:?}");
        rows.len()
    }

    /// How many rows a query counts, without an `eebt` that would see to them; 0 where there is no ledger yet.
    pub fn count(&self, what: &str) -> usize {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let Ok(ledger) = rusqlite::Connection::open_with_flags(self.ledger(), flags) else { return 0 };
        let sql = format!("SELECT count(*) FROM instances WHERE {what}");
        let counted = ledger.query_row(&sql, [], |row| row.get::<_, u32>(0)).unwrap_or_default();
        counted as usize
    }

    pub fn sql(&self, sql: &str) {
        rusqlite::Connection::open(self.ledger()).unwrap().execute_batch(sql).unwrap();
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn instances(run: &Run) -> Vec<Value> {
    run.json()["instances"].as_array().unwrap().clone()
}

/// An `eebt run` that is looked at from outside.
pub struct Running {
    child: Child,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0).spawn().unwrap();
        Self { child }
    }

    /// Stops it in order; what it said.
    pub fn stop(self) -> String {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Waits until it ends by itself; what it said.
    pub fn wait(mut self) -> String {
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(self.child.wait().unwrap().success(), "{said}");
        said
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn finish(command: &mut Command) -> Run {
    let output = command.output().unwrap();
    Run {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[track_caller]
pub fn eventually(what: &str, check: impl Fn() -> bool) {
    within(30, what, check);
}

#[track_caller]
pub fn within(seconds: u64, what: &str, check: impl Fn() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < Duration::from_secs(seconds), "not within {seconds} s: {what}");
        sleep(Duration::from_millis(50));
    }
}
