//! Looks at the sockets of a process again and again.

use std::collections::HashSet;
use std::io;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::sockets::{Socket, of_process};

/// How often. A socket that lives for less may be missed; a look-up of a name takes longer as a rule.
const EVERY: Duration = Duration::from_millis(5);

/// Ends when dropped.
pub(super) struct Watch {
    seen: Arc<Mutex<io::Result<HashSet<Socket>>>>,
    _until: Sender<()>,
}

impl Watch {
    /// Begins. `pid` is a number or `self`.
    pub(super) fn start(pid: String) -> Self {
        let seen = Arc::new(Mutex::new(Ok(HashSet::new())));
        let (until, ended) = channel();
        let all = Arc::clone(&seen);
        std::thread::spawn(move || {
            while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                let now = of_process(&pid);
                let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                match (all.as_mut(), now) {
                    (Ok(all), Ok(now)) => all.extend(now),
                    (Ok(_), Err(error)) => *all = Err(error),
                    (Err(_), _) => {}
                }
            }
        });
        Self { seen, _until: until }
    }

    /// All that was seen since the last time.
    ///
    /// # Errors
    /// The first look that failed.
    pub(super) fn take(&self) -> io::Result<HashSet<Socket>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *seen, Ok(HashSet::new()))
    }
}
