//! The saga that ends an instance: stopping, told to, gone, ended.

use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;

use crate::crash_point;
use crate::fleet::Fleet;
use crate::folder::FolderError;
use crate::instance::{DRAIN, GRACE, Instance, State};
use crate::ledger::{LedgerError, Step};
use crate::local::{self, LocalError};
use crate::locks::LockError;
use crate::raise::RaiseError;

/// How long another `eebt` that works on an instance may take to let go of it.
const OTHERS: Duration = Duration::from_secs(60);

/// Why an instance was not ended.
#[derive(Debug, thiserror::Error)]
pub enum LowerError {
    /// Its process.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// Its folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Its machine.
    #[error(transparent)]
    Machine(#[from] RaiseError),
    /// There is none of that name.
    #[error("no instance {0}")]
    Unknown(String),
    /// Another `eebt` has it and does not let go.
    #[error("another eebt has been at work on it for more than {} s", OTHERS.as_secs())]
    Busy,
    /// Not even SIGKILL ended it.
    #[error("its process does not end")]
    Immortal,
}

/// How an instance came to be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lowered {
    /// By us.
    Stopped,
    /// By another `eebt` that was at work on it.
    ByOther,
    /// It was over already.
    Already,
}

/// What came of one try to claim a row.
enum Taken {
    /// It is over already.
    Over,
    /// Another `eebt` is at work on it.
    Claimed,
    /// It was claimed or changed since we read it.
    Moved,
    /// Nobody else acts on it now.
    Ours(Box<Instance>),
}

impl Fleet {
    /// Ends one instance: SIGTERM, time for its streams to drain, SIGKILL. With `at_once` only the
    /// last. Its keys are removed.
    ///
    /// # Errors
    /// See [`LowerError`]. What was begun is finished by the next run of `eebt`.
    pub fn lower(&self, id: &str, at_once: bool) -> Result<Lowered, LowerError> {
        let start = Instant::now();
        let mut lowered = Lowered::Already;
        let row = loop {
            match self.take(id)? {
                Taken::Over => return Ok(lowered),
                Taken::Ours(row) => break row,
                Taken::Claimed => {
                    lowered = Lowered::ByOther;
                    self.ledger.request_stop(id)?;
                }
                Taken::Moved => {}
            }
            if start.elapsed() > OTHERS {
                return Err(LowerError::Busy);
            }
            sleep(Duration::from_millis(50));
        };

        let lowered = self.lower_claimed(&row, at_once);
        if lowered.is_err() {
            // Whoever looks next tries again.
            let _ = self.ledger.release(id, &self.claim.id);
        }
        lowered
    }

    /// Tries once to claim a row.
    fn take(&self, id: &str) -> Result<Taken, LowerError> {
        let row = self.ledger.get(id)?.ok_or_else(|| LowerError::Unknown(id.to_owned()))?;
        Ok(if row.state.is_final() {
            Taken::Over
        } else if self.is_claimed(&row)? {
            Taken::Claimed
        } else if self.ledger.claim(&row, &self.claim.id)? {
            Taken::Ours(Box::new(row))
        } else {
            Taken::Moved
        })
    }

    /// Ends machines of clouds, in as few calls as can be; `done` is told what became of each. Those that another `eebt`
    /// is at work on are left alone, and returned.
    ///
    /// # Errors
    /// See [`LowerError`]. What was begun is finished by the next run of `eebt`.
    pub fn lower_machines(
        &self,
        ids: &[String],
        mut done: impl FnMut(&str, Result<Lowered, LowerError>),
    ) -> Vec<String> {
        let (mut rows, mut busy) = (Vec::new(), Vec::new());
        for id in ids {
            match self.take(id) {
                Ok(Taken::Over) => done(id, Ok(Lowered::Already)),
                Ok(Taken::Claimed | Taken::Moved) => busy.push(id.clone()),
                Ok(Taken::Ours(row)) => {
                    let step = Step::to(State::Stopping);
                    match self.ledger.advance(id, &self.claim.id, &step, SystemTime::now()) {
                        Ok(_) => rows.push(*row),
                        Err(error) => {
                            let _ = self.ledger.release(id, &self.claim.id);
                            done(id, Err(error.into()));
                        }
                    }
                }
                Err(error) => done(id, Err(error)),
            }
        }
        if !rows.is_empty() {
            crash_point("stopping");
            self.finish_machines(&rows, done);
        }
        busy
    }

    /// The rest of it, for rows of ours that are stopping.
    fn finish_machines(&self, rows: &[Instance], mut done: impl FnMut(&str, Result<Lowered, LowerError>)) {
        // The machines are shut down in order: their streams have as long as their units let them drain.
        let ended = self.end_machines(&rows.iter().collect::<Vec<_>>());
        crash_point("gone");
        for (row, ended) in rows.iter().zip(ended) {
            let lowered = ended.map_err(LowerError::from).and_then(|()| {
                self.folder(&row.id).clear()?;
                crash_point("cleared");
                self.ledger.advance(&row.id, &self.claim.id, &Step::to(State::Ended), SystemTime::now())?;
                Ok(Lowered::Stopped)
            });
            if lowered.is_err() {
                // Whoever looks next tries again.
                let _ = self.ledger.release(&row.id, &self.claim.id);
            }
            done(&row.id, lowered);
        }
    }

    fn lower_claimed(&self, row: &Instance, at_once: bool) -> Result<Lowered, LowerError> {
        let id = row.id.as_str();
        let folder = self.folder(id);
        let patience = DRAIN + GRACE;
        let step = |step| self.ledger.advance(id, &self.claim.id, &step, SystemTime::now());
        step(Step::to(State::Stopping))?;
        crash_point("stopping");
        if row.purchase.is_some() {
            let mut lowered = Ok(Lowered::Stopped);
            self.finish_machines(std::slice::from_ref(row), |_, result| lowered = result);
            return lowered;
        }
        // One that was never finished has no streams to wait for.
        // One that was told before (by an `eebt` that then died) is not told again.
        if !at_once && row.state == State::Stopping && row.stop_by.is_some() {
            local::wait_gone(&folder, patience)?;
        } else if !at_once && !row.state.is_creating() {
            local::signal(&folder, row.pid, Signal::SIGTERM)?;
            crash_point("signalled");
            step(Step::to(State::Stopping).stop_by(SystemTime::now() + patience))?;
            crash_point("draining");
            local::wait_gone(&folder, patience)?;
        }
        local::signal(&folder, row.pid, Signal::SIGKILL)?;
        if !local::wait_gone(&folder, GRACE)? {
            return Err(LowerError::Immortal);
        }
        crash_point("gone");
        folder.clear()?;
        crash_point("cleared");
        step(Step::to(State::Ended))?;
        Ok(Lowered::Stopped)
    }
}
