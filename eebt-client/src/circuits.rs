//! Circuits to exit bridges: how they are built, and which one a stream may use.
//!
//! A circuit belongs to one isolation group and is used for new streams for ten minutes. For each
//! exit bridge in use, and for a few at the start, one spare circuit is built ahead, so that the first
//! stream of the next group does not wait for one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use eebt_proto::BridgeLine;
use eebt_tor::{Circuit as Built, CircuitError, PathKind, Paths};

use crate::bridges::BridgeId;

/// How long a circuit takes new streams (C tor's `MaxCircuitDirtiness`).
const MAX_DIRTINESS: Duration = Duration::from_secs(600);

/// How long a circuit may wait for its first stream.
const MAX_SPARE: Duration = Duration::from_secs(3600);

/// How many paths are tried to one exit bridge before it is called unreachable: any middle may be
/// down, or its address may not be the one that it publishes.
const MAX_PATHS: usize = 3;

/// A circuit that ends at an exit bridge.
#[derive(Clone)]
pub struct Circuit {
    built: Built,
    since: Instant,
    /// A stream on it had an answer.
    answered: Arc<AtomicBool>,
}

impl std::ops::Deref for Circuit {
    type Target = Built;

    fn deref(&self) -> &Built {
        &self.built
    }
}

impl Circuit {
    /// Does it take new streams?
    fn is_usable(&self) -> bool {
        !self.is_closed() && self.since.elapsed() < MAX_DIRTINESS
    }

    /// A stream on it had an answer.
    pub fn note_answer(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Had a stream on it an answer?
    pub fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// May its first stream still come?
    fn is_good_spare(&self) -> bool {
        !self.is_closed() && self.since.elapsed() < MAX_SPARE
    }
}

/// The circuits of one client.
pub struct Circuits<G> {
    paths: Arc<Paths>,
    slots: Mutex<HashMap<(BridgeId, G), Slot>>,
    spares: Mutex<HashMap<BridgeId, Spare>>,
}

/// A circuit that is ready for whichever group comes next, or about to be.
enum Spare {
    Building,
    Ready(Circuit),
}

/// The circuit of one group to one exit bridge; locked while it is built, so that many streams at
/// once build one.
type Slot = Arc<tokio::sync::Mutex<Option<Circuit>>>;

impl<G: Clone + Eq + Hash + Send + Sync + 'static> Circuits<G> {
    /// None yet.
    pub fn new(paths: Arc<Paths>) -> Self {
        Self { paths, slots: Mutex::default(), spares: Mutex::default() }
    }

    /// The circuit of `group` to an exit bridge, built where there is none.
    ///
    /// # Errors
    /// See [`CircuitError`].
    pub async fn get(
        self: &Arc<Self>,
        id: BridgeId,
        line: &BridgeLine,
        path: PathKind,
        group: &G,
    ) -> Result<Circuit, CircuitError> {
        let slot = Arc::clone(lock(&self.slots).entry((id, group.clone())).or_default());
        let mut slot = slot.lock().await;
        if let Some(circuit) = slot.as_ref().filter(|c| c.is_usable()) {
            return Ok(circuit.clone());
        }
        self.forget_unusable();
        let circuit = match self.take_spare(id) {
            // Its ten minutes begin with its first use.
            Some(spare) => Circuit { since: Instant::now(), ..spare },
            None => self.build(line, path).await?,
        };
        *slot = Some(circuit.clone());
        self.build_spare(id, line.clone(), path);
        Ok(circuit)
    }

    fn take_spare(&self, id: BridgeId) -> Option<Circuit> {
        let mut spares = lock(&self.spares);
        match spares.remove(&id)? {
            Spare::Ready(circuit) => Some(circuit).filter(Circuit::is_good_spare),
            building @ Spare::Building => {
                spares.insert(id, building);
                None
            }
        }
    }

    /// Builds a circuit for whichever group needs one next, if there is none and none is being built.
    pub fn build_spare(self: &Arc<Self>, id: BridgeId, line: BridgeLine, path: PathKind) {
        match lock(&self.spares).entry(id) {
            Entry::Occupied(_) => return,
            Entry::Vacant(vacant) => vacant.insert(Spare::Building),
        };
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let built = this.try_path(&line, path).await;
            let mut spares = lock(&this.spares);
            match built {
                Ok(circuit) => {
                    spares.insert(id, Spare::Ready(circuit));
                }
                Err(error) => {
                    spares.remove(&id);
                    tracing::debug!(%error, "no spare circuit");
                }
            }
        });
    }

    /// Drops circuits that are closed or too old, and their slots. Streams on them go on. A slot that
    /// somebody else holds is in use, whatever is in it.
    fn forget_unusable(&self) {
        lock(&self.slots).retain(|_, slot| {
            Arc::strong_count(slot) > 1
                || slot.try_lock().is_ok_and(|c| c.as_ref().is_some_and(Circuit::is_usable))
        });
        lock(&self.spares).retain(|_, spare| match spare {
            Spare::Building => true,
            Spare::Ready(circuit) => circuit.is_good_spare(),
        });
    }

    /// No new stream uses this circuit from now on. Whether one could have until now: of many streams that tell,
    /// only the first is news.
    pub async fn retire(&self, id: BridgeId, group: &G, circuit: &Circuit) -> bool {
        self.take_spare(id);
        let slot = lock(&self.slots).get(&(id, group.clone())).cloned();
        let Some(slot) = slot else { return false };
        let taken = slot.lock().await.take_if(|c| c.is(circuit));
        taken.is_some()
    }

    /// New streams of `group` to this exit bridge take a new circuit.
    pub fn leave(&self, id: BridgeId, group: &G) {
        lock(&self.slots).remove(&(id, group.clone()));
    }

    /// How many circuits to an exit bridge take new streams.
    pub fn usable(&self, id: BridgeId) -> usize {
        let slots = lock(&self.slots);
        let is_usable =
            |slot: &Slot| slot.try_lock().is_ok_and(|c| c.as_ref().is_some_and(Circuit::is_usable));
        slots.iter().filter(|((to, _), slot)| *to == id && is_usable(slot)).count()
    }

    /// A circuit by one path or another.
    async fn build(&self, line: &BridgeLine, path: PathKind) -> Result<Circuit, CircuitError> {
        let mut tried = 1;
        loop {
            match self.try_path(line, path).await {
                Err(error) if tried < MAX_PATHS => {
                    tracing::debug!(%error, "no circuit by this path; another one is tried");
                    tried += 1;
                }
                result => return result,
            }
        }
    }

    async fn try_path(&self, line: &BridgeLine, path: PathKind) -> Result<Circuit, CircuitError> {
        let built = self.paths.build(&line.reach, path).await?;
        Ok(Circuit { built, since: Instant::now(), answered: Arc::default() })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
