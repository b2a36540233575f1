//! Programs that end with their test, and waiting for what they do.

use std::io::{BufRead, BufReader, ErrorKind};
use std::process::{self, Command, Stdio};
use std::time::{Duration, Instant};

use hebtor_volunteer::sources::{Facts, Source};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A program; ended when dropped.
pub struct Child(process::Child);

impl Child {
    /// Starts it. A program that is missing says which package has it.
    pub fn start(command: &mut Command, package: &str) -> Self {
        Self(command.spawn().unwrap_or_else(|error| explain(command, package, error)))
    }

    /// Starts it, and waits for the first line that it prints.
    pub fn that_prints(command: &mut Command, package: &str) -> (Self, String) {
        let mut child = Self::start(command.stdout(Stdio::piped()), package);
        let mut line = String::new();
        BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "{command:?} ended early: {:?}", child.0.wait());
        (child, line.trim().into())
    }

    /// Waits until it has ended by itself, without an error.
    pub fn ends_well(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            match self.0.try_wait().unwrap() {
                Some(status) => return assert!(status.success(), "{status}"),
                None => assert!(Instant::now() < deadline, "it does not end"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Runs a program that ends by itself and must succeed.
pub fn run(command: &mut Command, package: &str) {
    let status = command.status().unwrap_or_else(|error| explain(command, package, error));
    assert!(status.success(), "{command:?}: {status} (apt-get install {package})");
}

fn explain<T>(command: &Command, package: &str, error: std::io::Error) -> T {
    let hint = if error.kind() == ErrorKind::NotFound { "apt-get install " } else { "from " };
    panic!("{command:?}: {error} ({hint}{package})");
}

/// Looks until the facts are as they should be.
pub fn until(source: &mut dyn Source, should: impl Fn(&Facts) -> bool) -> Facts {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let facts = source.look();
        if should(&facts) {
            return facts;
        }
        assert!(Instant::now() < deadline, "{} says {facts:?}", source.name());
        std::thread::sleep(Duration::from_millis(50));
    }
}
