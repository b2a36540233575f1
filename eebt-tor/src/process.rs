//! A program among others: how it is told to stop, how it is found, how much it may open.

use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::ConfigError;

/// SIGTERM or Ctrl-C (on Windows: Ctrl-C, or the console is closed) cancels `shutdown`: stop taking what is new, and drain. A second one ends the
/// program at once. Call it on the runtime.
///
/// # Errors
/// The system's.
pub fn stop_on_signal(shutdown: CancellationToken) -> std::io::Result<()> {
    #[cfg(unix)]
    let (mut terminate, mut interrupt) = {
        use tokio::signal::unix::{SignalKind, signal};
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    #[cfg(windows)]
    let (mut terminate, mut interrupt) =
        (tokio::signal::windows::ctrl_close()?, tokio::signal::windows::ctrl_c()?);
    tokio::spawn(async move {
        let mut next = async || tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} };
        next().await;
        shutdown.cancel();
        next().await;
        tracing::warn!("told to stop twice: streams are cut");
        std::process::exit(1);
    });
    Ok(())
}

/// Each stream takes a file descriptor, and the usual soft limit of 1024 is for programs of old. Windows has no such limit.
pub fn raise_file_limit() {
    #[cfg(unix)]
    raise_soft_limit();
}

#[cfg(unix)]
fn raise_soft_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // macOS has no hard limit, and takes nothing above OPEN_MAX for a soft one (setrlimit(2)).
    let most = |hard| if cfg!(target_os = "macos") { 10_240.min(hard) } else { hard };
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, most(hard), hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// A file that holds the process id while this lives.
pub struct PidFile(PathBuf);

impl PidFile {
    /// Writes it.
    ///
    /// # Errors
    /// [`ConfigError::Write`].
    pub fn write(path: &Path) -> Result<Self, ConfigError> {
        std::fs::write(path, format!("{}\n", std::process::id())).map_err(|source| ConfigError::Write {
            field: "pid_file",
            path: path.into(),
            source,
        })?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}
