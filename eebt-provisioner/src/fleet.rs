//! All instances of one operator, and what is made of the remains of an `eebt` that was killed.

use std::path::Path;
use std::process::Child;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;

use crate::cloud::{CloudError, Clouds};
use crate::folder::{Folder, FolderError, StateDir};
use crate::instance::{DRAIN, GRACE, Instance, KEPT, Provider, State, Verdict, verdict};
use crate::ledger::{Ledger, LedgerError, Step};
use crate::local::{self, BridgeConfig, LocalError};
use crate::locks::{self, Claim, LockError};
use crate::machine;

/// How long another `eebt` may look at the fleet before we give up on it.
const DOOR_PATIENCE: Duration = Duration::from_secs(60);

/// The fleet, open for work: what earlier runs left has been seen to.
pub struct Fleet {
    pub(crate) dir: StateDir,
    pub(crate) ledger: Ledger,
    pub(crate) claim: Claim,
    /// Processes that we started and left to themselves: they are waited for when they have ended.
    pub(crate) children: Mutex<Vec<Child>>,
    pub(crate) clouds: Clouds,
}

/// Why the fleet can't be looked at.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// Its folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Its ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// One of its locks.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A cloud.
    #[error(transparent)]
    Cloud(#[from] CloudError),
}

impl FleetError {
    /// What to try.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Folder(_) => Some("choose a folder that you may write to with --state-dir".into()),
            Self::Ledger(err) => err.hint(),
            Self::Lock(LockError::Held { .. }) => Some("another eebt hangs; `fuser FILE` shows which".into()),
            Self::Lock(_) => None,
            Self::Cloud(err) => err.hint.clone(),
        }
    }
}

/// Something that the ledger did not know yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Which instance.
    pub id: String,
    /// What it is now.
    pub state: State,
    /// Why, if there is more to say.
    pub reason: Option<String>,
}

impl Fleet {
    /// Opens the fleet that is remembered in `dir`, made if need be. Finishes or unwinds what
    /// killed runs left, and notices what has ended; returns what is new.
    ///
    /// # Errors
    /// See [`FleetError`].
    pub fn open(dir: &Path, now: SystemTime) -> Result<(Self, Vec<News>), FleetError> {
        let dir = StateDir::open(dir)?;
        // One at a time through the door: migration, reconciling, and the birth of our claim.
        let door = locks::lock(&dir.door(), DOOR_PATIENCE)?;
        let ledger = Ledger::open(&dir.ledger())?;
        let claim = Claim::new(&dir.claims())?;
        let fleet = Self { dir, ledger, claim, children: Mutex::default(), clouds: Clouds::default() };
        let mut news = fleet.reconcile(now)?;
        Claim::sweep(&fleet.dir.claims());
        // Clouds take their time. Claims are enough to keep others off.
        drop(door);
        news.extend(fleet.end_lost_orders()?);
        news.extend(fleet.reconcile_clouds(now, &[])?);
        Ok((fleet, news))
    }

    /// Looks again at what has ended, or was left by others, also in these `places` of clouds; returns what is new.
    ///
    /// # Errors
    /// See [`FleetError`].
    pub fn look(&self, now: SystemTime, places: &[(Provider, String)]) -> Result<Vec<News>, FleetError> {
        self.children
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let door = locks::lock(&self.dir.door(), DOOR_PATIENCE)?;
        let mut news = self.reconcile(now)?;
        drop(door);
        news.extend(self.reconcile_clouds(now, places)?);
        Ok(news)
    }

    /// Notes that an exit bridge serves which was left to itself before that was known. Returns whether that is new.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub fn note_serving(&self, row: &Instance, now: SystemTime) -> Result<bool, LedgerError> {
        let is_new = row.state == State::Starting && self.ledger.claim(row, &self.claim.id)?;
        if is_new {
            self.ledger.advance(&row.id, &self.claim.id, &Step::to(State::Running), now)?;
        }
        Ok(is_new)
    }

    /// The ledger, to read from.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Where all of it lies.
    pub fn dir(&self) -> &StateDir {
        &self.dir
    }

    /// The folder of an instance.
    pub fn folder(&self, id: &str) -> Folder {
        self.dir.instance(id)
    }

    /// Does the `eebt` that has claimed this row still live?
    pub(crate) fn is_claimed(&self, row: &Instance) -> Result<bool, LockError> {
        row.claim.as_deref().map_or(Ok(false), |id| Claim::is_live(&self.dir.claims(), id))
    }

    fn reconcile(&self, now: SystemTime) -> Result<Vec<News>, FleetError> {
        let mut news = self.tidy_folders(now)?;
        for row in self.ledger.live()?.into_iter().filter(|row| row.purchase.is_none()) {
            let process = local::is_alive(&self.folder(&row.id))?;
            let claimed = self.is_claimed(&row)?;
            match self.act(&row, verdict(&row, process, claimed, now), now) {
                Ok(new) => news.extend(new),
                Err(ActError::Ledger(err)) => return Err(err.into()),
                // Of no use to give up on the others: the row stays as it is, for the next run.
                Err(ActError::Local(err)) => news.push(News {
                    id: row.id,
                    state: row.state,
                    reason: Some(format!("can't be cleaned up yet: {err}")),
                }),
            }
        }
        Ok(news)
    }

    fn act(&self, row: &Instance, verdict: Verdict, now: SystemTime) -> Result<Option<News>, ActError> {
        match verdict {
            Verdict::Leave => return Ok(None),
            Verdict::Probe if machine::ready(row.status).is_err() => return Ok(None),
            _ => {}
        }
        // Someone may have taken it, or come further with it, since we read the row.
        if !self.ledger.claim(row, &self.claim.id)? {
            return Ok(None);
        }
        let result = self.act_on_claimed(row, verdict, now);
        if !matches!(&result, Ok(Some(_))) {
            // We may live for long yet: others shall not wait for us.
            self.ledger.release(&row.id, &self.claim.id)?;
        }
        result
    }

    fn act_on_claimed(
        &self,
        row: &Instance,
        verdict: Verdict,
        now: SystemTime,
    ) -> Result<Option<News>, ActError> {
        let folder = self.folder(&row.id);
        let (state, reason) = match verdict {
            Verdict::Leave => return Ok(None),
            Verdict::Terminate => {
                local::signal(&folder, row.pid, Signal::SIGTERM)?;
                let step = Step::to(State::Stopping).stop_by(now + DRAIN + GRACE);
                self.ledger.advance(&row.id, &self.claim.id, &step, now)?;
                return Ok(None);
            }
            Verdict::Probe => (State::Running, None),
            Verdict::Finish(State::Died) => {
                let last = folder.log_tail(1).pop();
                let last =
                    last.map_or("its log is empty".into(), |line| format!("the last in its log: {line}"));
                (State::Died, Some(format!("its process was gone before its expiry; {last}")))
            }
            Verdict::Finish(state) => (state, None),
            Verdict::Kill(state) => (state, Some("did not stop in time and was killed".to_owned())),
            Verdict::Unwind => {
                (State::Failed, Some(format!("its `eebt up` was killed at step {}", row.state)))
            }
        };
        if state != State::Running {
            local::undo(&folder, row.pid)?;
        }
        let step = Step::to(state);
        let step = match &reason {
            Some(reason) => step.error(reason),
            None => step,
        };
        self.ledger.advance(&row.id, &self.claim.id, &step, now)?;
        Ok(Some(News { id: row.id.clone(), state, reason }))
    }

    /// Removes the folders of instances that ended long ago or that the ledger never heard of, and
    /// takes those of unknown ones that still run back into the ledger, for it was lost.
    fn tidy_folders(&self, now: SystemTime) -> Result<Vec<News>, FleetError> {
        let mut news = Vec::new();
        for id in self.dir.instance_ids()? {
            let folder = self.folder(&id);
            match self.ledger.get(&id)? {
                Some(row) => {
                    let age = row.ended.and_then(|ended| now.duration_since(ended).ok());
                    if age.is_some_and(|age| age > KEPT) && !local::is_alive(&folder)? {
                        folder.remove()?;
                    }
                }
                None if local::is_alive(&folder)? => match adopt(&id, &folder) {
                    Some(row) => {
                        self.ledger.reserve(None, |_| Ok::<_, LedgerError>(vec![row]))?;
                        let reason = Some("was unknown to the ledger; found by its folder".into());
                        news.push(News { id, state: State::Starting, reason });
                    }
                    None => news.push(News {
                        reason: Some(format!(
                            "a process uses {}, which is no instance's",
                            folder.path().display()
                        )),
                        id,
                        state: State::Died,
                    }),
                },
                // Something was ordered for it, and the ledger was lost: see `end_lost_orders`.
                None if folder.read_order().is_some() => {}
                None if folder.is_instance() => folder.remove()?,
                None => {}
            }
        }
        Ok(news)
    }
}

/// The row of an instance that runs but is not in the ledger, from what lies in its folder.
fn adopt(id: &str, folder: &Folder) -> Option<Instance> {
    let config: BridgeConfig = toml::from_str(&std::fs::read_to_string(folder.config()).ok()?).ok()?;
    let life = folder.config().metadata().ok()?.modified().ok()?..config.expires()?;
    let (places, attempt) = ((config.listen, config.status), "adopted".to_owned());
    Some(Instance {
        address: config.address,
        line: std::fs::read_to_string(folder.line()).ok(),
        ..Instance::new(id.to_owned(), attempt, Provider::Local, State::Starting, places, life)
    })
}

/// Why one instance can't be seen to.
#[derive(Debug, thiserror::Error)]
enum ActError {
    #[error(transparent)]
    Local(#[from] LocalError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}
