//! Watches the exit bridges of a fleet as their clients and origins see them: whether each serves, whether canary origins
//! let it in, whether its address is on a block list.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use eebt_proto::causes;

use crate::block_list::{BlockList, ListError, Source};
use crate::check::{CheckError, Checked, Checker, Question};
use crate::instance::{Instance, State};
use crate::keep::{Canaries, Silence};

/// How soon a checker that has ended is started again.
const START_AGAIN: Duration = Duration::from_secs(30);
/// How much sooner than usual one is looked at again that did not serve.
const SOONER: u32 = 5;
/// Most questions that are open at once.
const MAX_ASKED: usize = 32;
/// How often block lists are read again, and how soon after a failure.
const LISTS_EVERY: Duration = Duration::from_secs(3600);
const LISTS_AGAIN: Duration = Duration::from_secs(300);
/// How often it is looked whether to stop.
const TICK: Duration = Duration::from_millis(500);

/// What was seen.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// This one serves.
    Serves(String),
    /// This one is known for what it is, to this canary origin or block list.
    Burned(String, String),
    /// Nothing can be seen, for this reason.
    Blind(String),
}

/// Asks about each exit bridge at its time.
pub struct Watch<'a> {
    start: &'a dyn Fn() -> Result<Checker, CheckError>,
    every: Duration,
    checker: Option<Arc<Checker>>,
    start_at: Instant,
    asked: HashMap<String, Question>,
    due: HashMap<String, Instant>,
    silence: Silence,
    canaries: Canaries,
}

impl<'a> Watch<'a> {
    /// With a way to start a checker.
    pub fn new(start: &'a dyn Fn() -> Result<Checker, CheckError>, every: Duration) -> Self {
        let (asked, due) = (HashMap::new(), HashMap::new());
        let (silence, canaries) = (Silence::default(), Canaries::default());
        Self { start, every, checker: None, start_at: Instant::now(), asked, due, silence, canaries }
    }

    /// The checker that runs now.
    pub fn checker(&self) -> Option<Arc<Checker>> {
        self.checker.clone()
    }

    /// Those that did not serve several times in a row.
    pub fn silent(&self) -> BTreeSet<String> {
        self.silence.ids()
    }

    /// Takes answers in, and asks about those of the `live` ones whose time has come.
    pub fn look(&mut self, live: &[Instance], now: SystemTime) -> Vec<Seen> {
        self.silence.keep(live);
        self.canaries.keep(live);
        let is_live = |id: &String| live.iter().any(|row| row.id == *id);
        self.asked.retain(|id, _| is_live(id));
        self.due.retain(|id, _| is_live(id));
        let mut seen = Vec::new();
        match self.running() {
            Ok(None) => {}
            Ok(Some(checker)) => {
                if let Err(error) = self.ask(&checker, live, now, &mut seen) {
                    seen.push(Seen::Blind(self.stop(&error)));
                }
            }
            Err(error) => seen.push(Seen::Blind(self.stop(&error))),
        }
        seen
    }

    fn running(&mut self) -> Result<Option<Arc<Checker>>, CheckError> {
        if self.checker.is_none() && Instant::now() >= self.start_at {
            self.checker = Some(Arc::new((self.start)()?));
        }
        Ok(self.checker.clone())
    }

    fn stop(&mut self, error: &CheckError) -> String {
        (self.checker, self.start_at) = (None, Instant::now() + START_AGAIN);
        self.asked.clear();
        causes(error)
    }

    fn ask(
        &mut self,
        checker: &Checker,
        live: &[Instance],
        now: SystemTime,
        seen: &mut Vec<Seen>,
    ) -> Result<(), CheckError> {
        for row in live.iter().filter(|row| matches!(row.state, State::Starting | State::Running)) {
            let Some(line) = &row.line else { continue };
            match self.asked.get(&row.id).map(|question| checker.answer(question)).transpose()? {
                None if self.asked.len() < MAX_ASKED
                    && self.due.get(&row.id).is_none_or(|due| Instant::now() >= *due) =>
                {
                    self.asked.insert(row.id.clone(), checker.ask(line)?);
                }
                None | Some(None) => {}
                Some(Some(checked)) => {
                    self.asked.remove(&row.id);
                    let pause = if checked.serves { self.every } else { self.every / SOONER };
                    self.due.insert(row.id.clone(), Instant::now() + pause);
                    self.take(row, checked, now, seen);
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, row: &Instance, checked: Checked, now: SystemTime, seen: &mut Vec<Seen>) {
        if checked.no_tor {
            seen.push(Seen::Blind(checked.error.unwrap_or_default()));
            return;
        }
        self.silence.note(&row.id, checked.serves);
        if checked.serves {
            seen.push(Seen::Serves(row.id.clone()));
        }
        checked.visits.iter().for_each(|visit| self.canaries.note(&row.id, visit, now));
        if row.burned.is_none()
            && let Some(page) = self.canaries.burned(&row.id, now)
        {
            seen.push(Seen::Burned(row.id.clone(), page.to_owned()));
        }
    }
}

/// Block lists, as they were last read.
#[derive(Default)]
pub struct BlockLists(Mutex<Lists>);

#[derive(Default)]
struct Lists {
    by_name: BTreeMap<String, BlockList>,
    /// Exit bridges that are on none of them.
    clean: BTreeSet<String>,
}

impl BlockLists {
    /// Reads them again and again until told to stop. What can't be read stays as it was, and is told.
    pub fn keep_fresh(&self, sources: &[Source], interrupted: &AtomicBool, failed: impl Fn(&ListError)) {
        let is_over = || interrupted.load(Ordering::Relaxed);
        while !is_over() {
            let mut pause = LISTS_EVERY;
            for source in sources {
                match BlockList::get(source) {
                    Ok(list) => {
                        let mut lists = self.lock();
                        lists.by_name.insert(source.to_string(), list);
                        lists.clean.clear();
                    }
                    Err(error) => {
                        pause = LISTS_AGAIN;
                        failed(&error);
                    }
                }
            }
            let until = Instant::now() + pause;
            while Instant::now() < until && !is_over() {
                std::thread::sleep(TICK);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lists> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which of these exit bridges are on one, and on which.
    pub fn find(&self, live: &[Instance]) -> Vec<Seen> {
        let mut lists = self.lock();
        lists.clean.retain(|id| live.iter().any(|row| row.id == *id));
        let mut found = Vec::new();
        for row in live.iter().filter(|row| row.burned.is_none()) {
            let Some(ip) = row.address.map(|address| address.ip()) else { continue };
            if lists.clean.contains(&row.id) {
                continue;
            }
            match lists.by_name.iter().find(|(_, list)| list.contains(ip)) {
                Some((name, _)) => found.push(Seen::Burned(row.id.clone(), name.clone())),
                None => drop(lists.clean.insert(row.id.clone())),
            }
        }
        found
    }
}
