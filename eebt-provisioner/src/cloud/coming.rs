//! Machines on their way: bought, addressed, serving.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use eebt_proto::causes;

use super::reconcile::{Listed, NEW};
use super::saga::Wanted;
use super::{Condition, Machine};
use crate::check::{Checked, Checker, Question};
use crate::crash_point;
use crate::fleet::Fleet;
use crate::instance::{Instance, Provider, State};
use crate::ledger::Step;
use crate::local::{self, Settings};
use crate::raise::{Failed, RaiseError};

/// How often new machines are asked for their addresses, and then whether they still live.
const POLL: Duration = Duration::from_secs(2);
const SLOW_POLL: Duration = Duration::from_secs(15);
/// How often answers are looked for.
const TICK: Duration = Duration::from_millis(100);
/// How long one that does not serve yet is left alone: twice as long each time, up to this. Each question goes by
/// another relay, and a relay does not try an address again for a minute that did not answer it.
const ASK_AGAIN: Duration = Duration::from_secs(8);

/// An exit bridge that has come up.
#[derive(Debug)]
pub struct Come {
    /// Its bridge line.
    pub line: String,
    /// It serves, or why that is not known.
    pub serves: Result<(), String>,
}

/// A machine on its way.
struct Coming {
    row: Instance,
    since: Instant,
    line: Option<String>,
    /// Whether it serves.
    asked: Option<Question>,
    ask_at: Instant,
    pause: Duration,
    /// What is in its way, and what to try.
    said: Option<String>,
    hint: Option<String>,
}

impl Coming {
    fn new(row: Instance) -> Self {
        let now = Instant::now();
        Self {
            row,
            since: now,
            line: None,
            asked: None,
            ask_at: now,
            pause: Duration::from_secs(1),
            said: None,
            hint: None,
        }
    }
}

impl Fleet {
    /// Waits until the machines that come from `bought` serve, and calls `done` with what became of each; one that does
    /// not come up has been ended then. Without a `checker` it is enough that they have addresses.
    pub fn until_serving(
        &self,
        bought: &Receiver<Instance>,
        wanted: &Wanted,
        patience: Duration,
        checker: Option<&Checker>,
        interrupted: &AtomicBool,
        mut done: impl FnMut(&Instance, Result<Come, Failed>),
    ) {
        let (mut coming, mut more): (Vec<Coming>, _) = (Vec::new(), true);
        let (mut machines, mut look_at) = (Vec::new(), Instant::now());
        while more || !coming.is_empty() {
            loop {
                match bought.recv_timeout(if coming.is_empty() { POLL } else { Duration::ZERO }) {
                    Ok(row) => {
                        look_at = look_at.min(Instant::now() + POLL);
                        coming.push(Coming::new(row));
                    }
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => {
                        more = false;
                        break;
                    }
                }
            }
            let is_look = Instant::now() >= look_at;
            if is_look {
                machines = self.list_coming(&mut coming, wanted.provider);
                let some_lack_address = coming.iter().any(|one| one.line.is_none());
                look_at = Instant::now() + if some_lack_address { POLL } else { SLOW_POLL };
            }
            let listed = Listed::new(&machines);
            coming.retain_mut(|one| {
                let machine = listed.of(&one.row);
                let wanted_still = match is_look || interrupted.load(Ordering::Relaxed) {
                    true => self.check_wanted(&one.row, interrupted),
                    false => Ok(()),
                };
                let further = wanted_still.and_then(|()| self.further(one, machine, wanted, checker));
                let result = match further {
                    Ok(None) if one.since.elapsed() < patience => return true,
                    Ok(None) => Err(RaiseError::NotReady {
                        after: patience,
                        reason: one.said.take().unwrap_or_else(|| "it has no address".into()),
                        hint: one.hint.take().or_else(|| Some("it may need a longer --timeout".into())),
                    }),
                    Ok(Some(come)) => Ok(come),
                    Err(error) => Err(error),
                };
                done(&one.row, result.map_err(|error| self.give_up(&one.row, error)));
                false
            });
            if !coming.is_empty() {
                sleep(TICK);
            }
        }
    }

    /// The machines of all regions where some are on their way.
    fn list_coming(&self, coming: &mut [Coming], provider: Provider) -> Vec<Machine> {
        let regions: BTreeSet<String> =
            coming.iter().filter_map(|one| one.row.region().map(str::to_owned)).collect();
        let mut machines = Vec::new();
        for region in regions {
            match self.cloud(provider).and_then(|cloud| cloud.list(&region)) {
                Ok(some) => machines.extend(some),
                Err(error) => {
                    let here = coming.iter_mut().filter(|one| one.row.region() == Some(&region));
                    for one in here.filter(|one| one.line.is_none()) {
                        (one.said, one.hint) = (Some(error.to_string()), error.hint.clone());
                    }
                }
            }
        }
        machines
    }

    /// Sees how far a machine has come.
    fn further(
        &self,
        one: &mut Coming,
        machine: Option<&Machine>,
        wanted: &Wanted,
        checker: Option<&Checker>,
    ) -> Result<Option<Come>, RaiseError> {
        let address = match machine {
            Some(Machine { condition, reason, .. })
                if *condition == Condition::Gone
                    || (*condition == Condition::Off && one.since.elapsed() > NEW) =>
            {
                return Err(RaiseError::Lost(reason.clone().unwrap_or_else(|| "no reason is given".into())));
            }
            Some(machine) => machine.address,
            None => None,
        };
        let line = match (&one.line, address) {
            (Some(line), _) => line.clone(),
            (None, None) => return Ok(None),
            (None, Some(ip)) => {
                let address = SocketAddr::new(ip, one.row.listen.port());
                let line = self.addressed(&one.row, address, &wanted.settings)?;
                crash_point("addressed");
                (one.said, one.hint) = (Some("it takes no circuits yet".into()), None);
                one.line.insert(line).clone()
            }
        };
        let Some(checker) = checker else { return self.come(one, line, Err("it was not checked".into())) };
        let checked = match one.asked.take() {
            Some(question) => match checker.answer(&question) {
                Ok(None) => {
                    one.asked = Some(question);
                    return Ok(None);
                }
                answer => answer,
            },
            None if Instant::now() < one.ask_at => return Ok(None),
            None => checker.ask(&line).map(|question| {
                one.asked = Some(question);
                None
            }),
        };
        match checked {
            Ok(None) => Ok(None),
            Ok(Some(checked)) if checked.serves => self.come(one, line, Ok(())),
            // It may serve or not: that our side is cut off is no reason to end it.
            Ok(Some(Checked { no_tor: true, error, .. })) => {
                self.come(one, line, Err(error.unwrap_or_default()))
            }
            Ok(Some(checked)) => {
                one.said = checked.error;
                one.ask_at = Instant::now() + one.pause;
                one.pause = (one.pause * 2).min(ASK_AGAIN);
                Ok(None)
            }
            Err(error) => self.come(one, line, Err(causes(&error))),
        }
    }

    /// It is out of our hands.
    fn come(
        &self,
        one: &Coming,
        line: String,
        serves: Result<(), String>,
    ) -> Result<Option<Come>, RaiseError> {
        let state = if serves.is_ok() { State::Running } else { State::Starting };
        self.record(&one.row, &Step::to(state))?;
        crash_point("ready");
        self.folder(&one.row.id).clear()?;
        Ok(Some(Come { line, serves }))
    }

    /// Now that its address is known, so is its bridge line.
    fn addressed(
        &self,
        row: &Instance,
        address: SocketAddr,
        settings: &Settings,
    ) -> Result<String, RaiseError> {
        let folder = self.folder(&row.id);
        local::write_config(&Instance { address: Some(address), ..row.clone() }, &folder, settings)?;
        let line = local::bridge_line(&folder, settings, &self.claim)?;
        self.record(row, &Step::to(State::Launched).line(&line).address(address))?;
        Ok(line)
    }
}
