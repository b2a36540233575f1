//! The saga that makes an instance: planned, keys, config, launched, ready. One undo serves every
//! step, since it removes whatever it finds ([`local::undo`]).

use std::process::ExitStatus;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use crate::cloud::CloudError;
use crate::cloud::user_data::UserDataError;
use crate::crash_point;
use crate::fleet::Fleet;
use crate::folder::FolderError;
use crate::instance::{Instance, Provider, State};
use crate::ledger::{LedgerError, Step};
use crate::local::{self, LocalError, Settings};
use crate::machine;
use crate::plan::{self, Machine, PlanError, Request, Slot};

/// How often an instance is asked whether it is ready.
const POLL: Duration = Duration::from_millis(100);

/// How many of the last lines of a log explain a failure.
const TAIL: usize = 5;

/// Why nothing was planned.
#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    /// What was asked for can't be had.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Why one instance did not come up. It has been taken back.
#[derive(Debug, thiserror::Error)]
pub enum RaiseError {
    /// A step did not work.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// In the instance's folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Its process ended.
    #[error("ended by itself ({0}) before it was ready")]
    Ended(ExitStatus),
    /// It ran, but did not serve.
    #[error("not ready after {} s: {reason}", after.as_secs())]
    NotReady {
        /// How long it was given.
        after: Duration,
        /// What it last said.
        reason: String,
        /// What to try.
        hint: Option<String>,
    },
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// `eebt down` from elsewhere.
    #[error("taken down by another eebt while it started")]
    StopRequested,
    /// The cloud.
    #[error(transparent)]
    Cloud(#[from] CloudError),
    /// What the machine should be told at its first start.
    #[error(transparent)]
    UserData(#[from] UserDataError),
    /// The cloud took its machine back.
    #[error("its machine is gone: {0}")]
    Lost(String),
    /// The row is no longer ours, which only a hand in the ledger or in the claims can bring about.
    #[error("another eebt took it over")]
    Overtaken,
}

impl RaiseError {
    /// What to try.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Local(err) => err.hint(),
            Self::Cloud(err) => err.hint.clone(),
            Self::NotReady { hint, .. } => hint.clone(),
            Self::Ended(_) => Some("`eebt logs ID` shows the whole log".into()),
            _ => None,
        }
    }
}

/// An instance that did not come up.
#[derive(Debug)]
pub struct Failed {
    /// Which.
    pub id: String,
    /// Why.
    pub error: Box<RaiseError>,
    /// The last lines of its log.
    pub log: Vec<String>,
}

/// Chooses places on this machine for what is asked for.
///
/// # Errors
/// See [`PlanError`].
pub fn choose(request: &Request, live: &[Instance]) -> Result<Vec<Slot>, PlanError> {
    let machine = Machine {
        source: machine::source_address(),
        interfaces: &machine::interface_addresses(),
        try_listen: &machine::try_listen,
        draw_port: &|| rand::random_range(plan::PORTS),
    };
    plan::choose(request, live, &machine)
}

impl Fleet {
    /// Writes down what is going to be made. What is not then [raised](Fleet::raise) is unwound by
    /// the next run.
    ///
    /// # Errors
    /// See [`ReserveError`].
    pub fn reserve(
        &self,
        request: &Request,
        now: SystemTime,
        expires: impl Fn() -> SystemTime,
    ) -> Result<Vec<Instance>, ReserveError> {
        let planned = self.ledger.reserve(None, |live| {
            let row = |slot: Slot| {
                let (places, attempt) = ((slot.listen, slot.status), self.claim.id.clone());
                let life = now..expires();
                Instance {
                    address: Some(slot.address),
                    claim: Some(self.claim.id.clone()),
                    ..Instance::new(new_id(), attempt, Provider::Local, State::Planned, places, life)
                }
            };
            Ok::<_, ReserveError>(choose(request, live)?.into_iter().map(row).collect())
        })?;
        crash_point("planned");
        Ok(planned)
    }

    /// Makes one instance and returns its bridge line once it serves, or at once without `patience`.
    ///
    /// # Errors
    /// See [`RaiseError`]. Its process, keys and configuration are gone then; its log stays.
    pub fn raise(
        &self,
        row: &Instance,
        settings: &Settings,
        patience: Option<Duration>,
        interrupted: &AtomicBool,
    ) -> Result<String, Failed> {
        self.try_raise(row, settings, patience, interrupted).map_err(|error| {
            let folder = self.folder(&row.id);
            let log = folder.log_tail(TAIL);
            // Steps may have been taken that are not in `row`, such as a pid; undo looks for itself.
            match local::undo(&folder, None) {
                Ok(()) => {
                    let state = match &error {
                        RaiseError::StopRequested | RaiseError::Interrupted => State::Ended,
                        _ => State::Failed,
                    };
                    let reason = error.to_string();
                    let step = Step::to(state).error(&reason);
                    // If this fails too, the next run unwinds it.
                    let _ = self.ledger.advance(&row.id, &self.claim.id, &step, SystemTime::now());
                    Failed { id: row.id.clone(), error: Box::new(error), log }
                }
                // Whoever looks next tries again.
                Err(undo) => {
                    let _ = self.ledger.release(&row.id, &self.claim.id);
                    Failed { id: row.id.clone(), error: Box::new(undo.into()), log }
                }
            }
        })
    }

    fn try_raise(
        &self,
        row: &Instance,
        settings: &Settings,
        patience: Option<Duration>,
        interrupted: &AtomicBool,
    ) -> Result<String, RaiseError> {
        let folder = self.folder(&row.id);
        let record = |step: Step<'_>| -> Result<(), RaiseError> {
            let ours = self.ledger.advance(&row.id, &self.claim.id, &step, SystemTime::now())?;
            if ours { Ok(()) } else { Err(RaiseError::Overtaken) }
        };
        let step = |step| record(step).and_then(|()| self.check_wanted(row, interrupted));

        folder.create()?;
        crash_point("folder");
        local::make_keys(&folder, settings, &self.claim)?;
        crash_point("keys-made");
        step(Step::to(State::Keys))?;
        crash_point("keys");

        local::write_config(row, &folder, settings)?;
        crash_point("config-written");
        let line = local::bridge_line(&folder, settings, &self.claim)?;
        step(Step::to(State::Config).line(&line))?;
        crash_point("config");

        let mut child = local::launch(&folder, settings)?;
        crash_point("spawned");
        let mut serve = || {
            step(Step::to(State::Launched).pid(child.id()))?;
            crash_point("launched");
            let Some(patience) = patience else {
                // The last step gives the claim up: nothing may fail after it.
                return record(Step::to(State::Starting));
            };
            let start = Instant::now();
            loop {
                if let Some(status) = child.try_wait().map_err(LocalError::Wait)? {
                    return Err(RaiseError::Ended(status));
                }
                let Err(reason) = machine::ready(row.status) else {
                    record(Step::to(State::Running))?;
                    crash_point("ready");
                    return Ok(());
                };
                if start.elapsed() >= patience {
                    let hint =
                        "a slow network may need a longer --timeout; `eebt logs ID` shows the whole log";
                    return Err(RaiseError::NotReady { after: patience, reason, hint: Some(hint.into()) });
                }
                self.check_wanted(row, interrupted)?;
                sleep(POLL);
            }
        };
        match serve() {
            Ok(()) => {
                self.children.lock().unwrap_or_else(PoisonError::into_inner).push(child);
                Ok(line)
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Does anyone want it to go?
    pub(crate) fn check_wanted(&self, row: &Instance, interrupted: &AtomicBool) -> Result<(), RaiseError> {
        if interrupted.load(Ordering::Relaxed) {
            return Err(RaiseError::Interrupted);
        }
        match self.ledger.get(&row.id)? {
            Some(row) if row.stop_requested => Err(RaiseError::StopRequested),
            _ => Ok(()),
        }
    }
}

/// Eight letters and digits that are told apart easily, the first one a letter.
pub(crate) fn new_id() -> String {
    const LETTERS: &[u8] = b"abcdefghjkmnpqrstuvwxyz";
    const ALL: &[u8] = b"abcdefghjkmnpqrstuvwxyz23456789";
    let draw = |from: &[u8]| char::from(from[rand::random_range(0..from.len())]);
    std::iter::once(draw(LETTERS)).chain((0..7).map(|_| draw(ALL))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_short_and_differ() {
        let ids: std::collections::HashSet<String> = (0..1000).map(|_| new_id()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == 8 && id.starts_with(|c: char| c.is_ascii_lowercase())));
    }
}
