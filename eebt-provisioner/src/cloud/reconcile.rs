//! What the ledger and the clouds say together: what killed runs left is unwound or finished, what is due is ended, what
//! nobody knows of is taken in.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, SystemTime};

use super::saga::in_guest;
use super::{Cloud, Condition, Machine};
use crate::crash_point;
use crate::fleet::{Fleet, FleetError, News};
use crate::instance::{Instance, Provider, Purchase, State};
use crate::ledger::{LedgerError, Step};

/// How long a new machine may be missing where the cloud lists machines.
pub(super) const SETTLE: Duration = Duration::from_secs(15 * 60);
/// How long after its expiry a machine that should have ended by itself is ended.
pub(super) const LATE: Duration = Duration::from_secs(5 * 60);
/// How long a new machine may be off before it first starts.
pub(super) const NEW: Duration = Duration::from_secs(60);

impl Fleet {
    /// Ends what was ordered by a killed `eebt` whose ledger was lost.
    pub(crate) fn end_lost_orders(&self) -> Result<Vec<News>, FleetError> {
        let mut news = Vec::new();
        for id in self.dir.instance_ids()? {
            let folder = self.folder(&id);
            let Some(order) = folder.read_order() else { continue };
            if self.ledger.get(&id)?.is_some() {
                continue;
            }
            let ended = self.cloud(order.provider).and_then(|cloud| {
                let machine = cloud.find(&order)?;
                machine.map_or(Ok(()), |machine| cloud.terminate(&order.region, &[machine.name]))
            });
            let reason = match ended {
                Ok(()) => {
                    crash_point("order-ended");
                    folder.remove()?;
                    "was unknown to the ledger; found by its order, and ended".to_owned()
                }
                Err(error) => format!("is unknown to the ledger, and can't be ended yet: {error}"),
            };
            news.push(News { id, state: State::Failed, reason: Some(reason) });
        }
        Ok(news)
    }

    /// Holds the rows of machines against what their clouds say, in `more` regions as well; returns what is new.
    pub(crate) fn reconcile_clouds(
        &self,
        now: SystemTime,
        more: &[(Provider, String)],
    ) -> Result<Vec<News>, FleetError> {
        let mut rows: BTreeMap<(Provider, String), Vec<Instance>> =
            more.iter().map(|place| (place.clone(), Vec::new())).collect();
        for row in self.ledger.live()? {
            let Some(region) = row.region().map(str::to_owned) else { continue };
            rows.entry((row.provider, region)).or_default().push(row);
        }
        let mut news = Vec::new();
        for ((provider, region), rows) in rows {
            let machines = match self.cloud(provider).and_then(|cloud| cloud.list(&region)) {
                Ok(machines) => machines,
                Err(error) => {
                    let reason = Some(format!("can't be looked at: {error}"));
                    news.extend(rows.into_iter().map(|row| News {
                        id: row.id,
                        state: row.state,
                        reason: reason.clone(),
                    }));
                    continue;
                }
            };
            let listed = Listed::new(&machines);
            for row in &rows {
                news.extend(self.act_on_machine(row, listed.of(row), now)?);
            }
            news.extend(self.strays(provider, &region, &machines, now)?);
        }
        Ok(news)
    }

    fn act_on_machine(
        &self,
        row: &Instance,
        machine: Option<&Machine>,
        now: SystemTime,
    ) -> Result<Option<News>, FleetError> {
        let is_claimed = self.is_claimed(row)?;
        let mut verdict = verdict(row, machine, is_claimed, now);
        let mut is_gone = matches!(verdict, Verdict::Finish(_));
        let is_settled = now >= row.created + SETTLE;
        if let (None, Some(name), Some(region)) = (machine, row.machine(), row.region())
            && verdict != Verdict::Leave
            && is_settled
        {
            // A long list may miss one while others come and go, and one that ended long ago is in none: it is asked for by
            // itself.
            match self.cloud(row.provider).and_then(|cloud| cloud.describe(region, name)) {
                Ok(None) => is_gone = true,
                Ok(Some(found)) => {
                    verdict = self::verdict(row, Some(&found), is_claimed, now);
                    is_gone = matches!(verdict, Verdict::Finish(_));
                }
                Err(error) => {
                    let reason = Some(format!("can't be looked at: {error}"));
                    return Ok(Some(News { id: row.id.clone(), state: row.state, reason }));
                }
            }
        }
        if verdict == Verdict::Leave {
            if matches!(row.state, State::Starting | State::Running) && !is_claimed {
                self.folder(&row.id).clear()?; // where its `eebt up` was killed just before
            }
            return Ok(None);
        }
        if !self.ledger.claim(row, &self.claim.id)? {
            return Ok(None);
        }
        let said = machine.and_then(|machine| machine.reason.clone());
        let (state, reason) = match verdict {
            Verdict::Leave => return Ok(None),
            Verdict::Unwind => {
                (State::Failed, Some(format!("its `eebt up` was killed at step {}", row.state)))
            }
            Verdict::Finish(State::Died) => {
                let said = said.unwrap_or_else(|| "the cloud does not say why".into());
                (State::Died, Some(format!("its machine was gone before its expiry: {said}")))
            }
            Verdict::Finish(state) => (state, None),
            Verdict::End(State::Expired) if row.provider.frees_what_is_off() => {
                (State::Expired, Some("did not end by itself, and was ended".to_owned()))
            }
            Verdict::End(State::Died) => (
                State::Died,
                Some("its machine was switched off before its expiry, and was ended".to_owned()),
            ),
            Verdict::End(state) => (state, None),
        };
        if !is_gone && let Err(error) = self.end_machine(row) {
            self.ledger.release(&row.id, &self.claim.id)?;
            let reason = Some(format!("can't be ended yet: {error}"));
            return Ok(Some(News { id: row.id.clone(), state: row.state, reason }));
        }
        crash_point("unwound");
        let step = Step::to(state);
        let step = match &reason {
            Some(reason) => step.error(reason),
            None => step,
        };
        self.ledger.advance(&row.id, &self.claim.id, &step, now)?;
        self.folder(&row.id).clear()?;
        Ok(Some(News { id: row.id.clone(), state, reason }))
    }

    /// Machines of this fleet that the ledger does not count among the living: those that it thinks over are ended,
    /// those that it never heard of are taken in.
    fn strays(
        &self,
        provider: Provider,
        region: &str,
        machines: &[Machine],
        now: SystemTime,
    ) -> Result<Vec<News>, FleetError> {
        let fleet = self.dir.fleet()?;
        let mut news = Vec::new();
        for machine in machines.iter().filter(|m| m.tags.fleet == fleet && m.condition != Condition::Gone) {
            match self.ledger.get(&machine.tags.id)? {
                // A list that lags behind, a machine that we lost sight of, or a second one for one instance: the same
                // call serves all.
                Some(row)
                    if row.state.is_final() || row.machine().is_some_and(|known| known != machine.name) =>
                {
                    if let Err(error) = self
                        .cloud(provider)
                        .and_then(|cloud| cloud.terminate(region, std::slice::from_ref(&machine.name)))
                    {
                        let reason = Some(format!("still has a machine: {error}"));
                        news.push(News { id: row.id, state: row.state, reason });
                    }
                }
                Some(_) => {}
                None => {
                    let row = adopted(provider, region, machine, now);
                    // Another `eebt` may have found it at the same moment.
                    let is_new = |rows: &[Instance]| !rows.iter().any(|known| known.id == row.id);
                    self.ledger.reserve(None, |rows| {
                        Ok::<_, LedgerError>(if is_new(rows) { vec![row.clone()] } else { Vec::new() })
                    })?;
                    crash_point("adopted");
                    let reason = Some("was unknown to the ledger; found by its tags".into());
                    news.push(News { id: machine.tags.id.clone(), state: State::Running, reason });
                }
            }
        }
        Ok(news)
    }

    /// Looks through all regions of a cloud for machines of this fleet, and removes what else it left there.
    ///
    /// # Errors
    /// See [`BuyError`].
    pub fn sweep(&self, provider: Provider, now: SystemTime) -> Result<Vec<News>, FleetError> {
        let cloud = self.cloud(provider)?;
        let regions = cloud.regions()?;
        let places: Vec<_> = regions.iter().map(|region| (provider, region.clone())).collect();
        let news = self.reconcile_clouds(now, &places)?;
        for region in &regions {
            self.tidy_region(cloud, region)?;
        }
        Ok(news)
    }

    fn tidy_region(&self, cloud: &dyn Cloud, region: &str) -> Result<(), FleetError> {
        let attempts = || {
            let mut attempts: HashSet<String> =
                self.ledger.live()?.into_iter().map(|row| row.attempt).collect();
            // Of a ledger that was lost orders are left.
            let orders = self.dir.instance_ids()?.into_iter().filter_map(|id| self.folder(&id).read_order());
            attempts.extend(orders.map(|order| order.tags.attempt));
            Ok(attempts)
        };
        cloud.tidy(region, &self.dir.fleet()?, &attempts)
    }
}

/// What a row and its machine say together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is as the ledger says, or someone is at work on it.
    Leave,
    /// Its `eebt up` is gone: end what it began.
    Unwind,
    /// Its machine is gone: record this state.
    Finish(State),
    /// It should be gone: end it and record this state.
    End(State),
}

fn verdict(row: &Instance, machine: Option<&Machine>, is_claimed: bool, now: SystemTime) -> Verdict {
    let is_past = |at: SystemTime| now >= at;
    let is_gone = match machine {
        Some(machine) => machine.condition == Condition::Gone,
        None => is_past(row.created + SETTLE),
    };
    let is_off = machine.is_some_and(|machine| {
        machine.condition == Condition::Off && is_past(machine.bought.unwrap_or(row.created) + NEW)
    });
    // Where it goes on to cost money after its own timer, nobody waits for that.
    let late = if row.provider.frees_what_is_off() { LATE } else { Duration::ZERO };
    match row.state {
        state if state.is_final() || is_claimed => Verdict::Leave,
        state if state.is_creating() => Verdict::Unwind,
        State::Stopping if is_gone => Verdict::Finish(State::Ended),
        State::Stopping => Verdict::End(State::Ended),
        _ if is_gone && is_past(row.expires) => Verdict::Finish(State::Expired),
        _ if is_gone => Verdict::Finish(State::Died),
        _ if is_past(row.expires + late) => Verdict::End(State::Expired),
        _ if is_off => Verdict::End(State::Died),
        _ => Verdict::Leave,
    }
}

/// What a cloud lists, by our names.
pub(super) struct Listed<'a>(HashMap<&'a str, Vec<&'a Machine>>);

impl<'a> Listed<'a> {
    pub(super) fn new(machines: &'a [Machine]) -> Self {
        let mut by_id: HashMap<&str, Vec<&Machine>> = HashMap::new();
        for machine in machines {
            by_id.entry(machine.tags.id.as_str()).or_default().push(machine);
        }
        Self(by_id)
    }

    /// The machine of a row: of several the one that the ledger knows.
    pub(super) fn of(&self, row: &Instance) -> Option<&'a Machine> {
        let machines = self.0.get(row.id.as_str())?;
        let known = machines.iter().find(|machine| row.machine() == Some(machine.name.as_str()));
        known.or(machines.first()).copied()
    }
}

/// The row of a machine that is ours by its tags, and in no ledger. Its bridge line is not to be had.
fn adopted(provider: Provider, region: &str, machine: &Machine, now: SystemTime) -> Instance {
    let Machine { tags, bought, .. } = machine;
    let (id, attempt, life) = (tags.id.clone(), tags.attempt.clone(), bought.unwrap_or(now)..tags.expires);
    Instance {
        purchase: Some(Purchase {
            region: region.to_owned(),
            kind: machine.kind.clone(),
            price: tags.cost.hour,
            traffic: tags.cost.traffic,
            token: None,
            machine: Some(machine.name.clone()),
        }),
        ..Instance::new(id, attempt, provider, State::Running, in_guest(0), life)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cost, Tags};
    use super::*;
    use crate::instance::tests::{at, row};

    fn machine(condition: Condition) -> Machine {
        Machine {
            name: "i-1".into(),
            condition,
            address: None,
            tags: Tags {
                fleet: "f".into(),
                id: "x".into(),
                attempt: "a".into(),
                expires: at(1000),
                cost: Cost::default(),
            },
            bought: None,
            kind: "t3.nano".into(),
            reason: None,
        }
    }

    #[test]
    fn a_row_and_its_machine_decide_together() {
        let (alive, gone) = (machine(Condition::Alive), machine(Condition::Gone));
        let settled = SETTLE.as_secs();
        let late = 1000 + LATE.as_secs();
        for (state, machine, claimed, now, expected) in [
            (State::Config, Some(&alive), true, 1, Verdict::Leave),
            (State::Config, None, false, 1, Verdict::Unwind),
            (State::Launched, Some(&alive), false, 1, Verdict::Unwind),
            (State::Running, Some(&alive), false, 999, Verdict::Leave),
            // A list that does not know it yet.
            (State::Running, None, false, settled - 1, Verdict::Leave),
            (State::Running, None, false, settled, Verdict::Finish(State::Died)),
            (State::Running, Some(&gone), false, 1, Verdict::Finish(State::Died)),
            (State::Running, Some(&gone), false, 1000, Verdict::Finish(State::Expired)),
            // It has a timer of its own.
            (State::Running, Some(&alive), false, late - 1, Verdict::Leave),
            (State::Running, Some(&alive), false, late, Verdict::End(State::Expired)),
            (State::Stopping, Some(&alive), false, 1, Verdict::End(State::Ended)),
            (State::Stopping, Some(&gone), false, 1, Verdict::Finish(State::Ended)),
            (State::Ended, Some(&alive), false, 1, Verdict::Leave),
        ] {
            // Expires at 1000.
            let row = Instance { provider: Provider::Aws, ..row("x", state) };
            assert_eq!(verdict(&row, machine, claimed, at(now)), expected, "{state} at {now}");
        }
    }

    #[test]
    fn what_is_switched_off_is_ended() {
        let (alive, off) = (machine(Condition::Alive), machine(Condition::Off));
        for (provider, state, machine, now, expected) in [
            (Provider::Hetzner, State::Running, &off, 59, Verdict::Leave),
            (Provider::Aws, State::Running, &off, 60, Verdict::End(State::Died)),
            (Provider::Hetzner, State::Running, &off, 60, Verdict::End(State::Died)),
            (Provider::Hetzner, State::Running, &off, 1000, Verdict::End(State::Expired)),
            // Its own timer would only switch it off.
            (Provider::Hetzner, State::Running, &alive, 1000, Verdict::End(State::Expired)),
            (Provider::DigitalOcean, State::Starting, &alive, 999, Verdict::Leave),
            (Provider::Aws, State::Running, &alive, 1000, Verdict::Leave),
        ] {
            let row = Instance { provider, ..row("x", state) };
            assert_eq!(verdict(&row, Some(machine), false, at(now)), expected, "{provider} at {now}");
        }
    }
}
