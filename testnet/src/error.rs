//! What can go wrong while a network starts, runs and stops.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Why a network did not start or did not go on. Each message fits one line, except for quoted log lines.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TestNetError {
    /// A program that the network is made of is not installed.
    #[error("the program `{}` was not found", program.display())]
    MissingProgram {
        /// What was to be run.
        program: PathBuf,
    },
    /// `CHUTNEY_PATH` names no checkout of Chutney.
    #[error("there is no Chutney: $CHUTNEY_PATH is to name a folder that has its program `chutney`")]
    NoChutney,
    /// A command of Chutney's failed.
    #[error("`chutney {verb}` failed ({status}): {last}")]
    Chutney {
        /// Which command.
        verb: String,
        /// How it ended.
        status: String,
        /// The last line it wrote.
        last: String,
        /// All that it wrote.
        log: PathBuf,
    },
    /// Every /16 of loopback that networks may use is taken.
    #[error("no free range of loopback addresses for one more network")]
    NoFreeSlice,
    /// A network lives in this folder already.
    #[error("another network uses the folder {}", dir.display())]
    DirInUse {
        /// The folder.
        dir: PathBuf,
    },
    /// The file system refused.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was attempted, as a verb.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A listener could not be opened.
    #[error("cannot listen on {addr}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The runtime that carries delayed links and origins could not start.
    #[error("cannot start background threads")]
    Background(#[source] io::Error),
    /// A program ran and failed.
    #[error("`{}` failed ({status}): {output}", program.display())]
    ProgramFailed {
        /// What was run.
        program: PathBuf,
        /// How it ended.
        status: String,
        /// The last line it wrote.
        output: String,
    },
    /// A tor wrote something that this crate does not understand.
    #[error("cannot make sense of {}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A tor process ended by itself.
    #[error("{name} exited early ({status}); its log {} ends with:{}", log.display(), quote(last_lines))]
    ExitedEarly {
        /// The nickname of the tor.
        name: String,
        /// How it ended.
        status: String,
        /// The log to read.
        log: PathBuf,
        /// The last warnings and errors in it.
        last_lines: Vec<String>,
    },
    /// Something did not happen in time.
    #[error("waited {} s for {what}; see {}", waited.as_secs(), log.display())]
    TimedOut {
        /// What was waited for.
        what: String,
        /// For how long.
        waited: Duration,
        /// The log to read.
        log: PathBuf,
    },
}

impl TestNetError {
    /// What to try, for a person.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::MissingProgram { .. } => Some("apt-get install tor".into()),
            Self::NoChutney => Some(
                "git clone https://gitlab.torproject.org/tpo/core/chutney ~/chutney; export CHUTNEY_PATH=~/chutney".into(),
            ),
            Self::Chutney { log, .. } => Some(format!("less {}; chutney-configs/README.md says what Chutney needs", log.display())),
            Self::NoFreeSlice => Some("stop some networks: testnet down --dir DIR".into()),
            Self::DirInUse { dir } => Some(format!("testnet down --dir {}", dir.display())),
            Self::ExitedEarly { log, .. } | Self::TimedOut { log, .. } => {
                Some(format!("less {}", log.display()))
            }
            Self::File { path, .. } => {
                Some(format!("check the owner, the permissions and the free space of {}", path.display()))
            }
            Self::ProgramFailed { .. } | Self::Malformed { .. } => {
                Some("check the version of tor: `tor --version`; 0.4.8 and 0.4.9 are known to work".into())
            }
            Self::Listen { .. } | Self::Background(_) => None,
        }
    }

    /// For `map_err` on file operations.
    pub(crate) fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { doing, path, source }
    }
}

/// Log lines below a message, indented.
fn quote(lines: &[String]) -> String {
    if lines.is_empty() {
        return " (nothing)".into();
    }
    lines.iter().map(|line| format!("\n  {line}")).collect()
}
