//! What `eebt run` does about a fleet: pure functions of the ledger, the clock, and what checks said.
//!
//! It makes before it breaks: what is going to end is replaced so early that the next one serves by then, and what is
//! of no more use is ended when enough others serve. It never ends what works only because there are more than enough:
//! that ends by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Timelike, Utc};
use croner::Cron;

use eebt_proto::limits::MAX_LIFETIME;

use crate::check::{Visit, Visited};
use crate::instance::{self, Instance, State};

/// How long a start is taken to last before one was measured.
const START_UP: Duration = Duration::from_secs(180);

/// How long past two measured starts a replacement is given.
const MARGIN: Duration = Duration::from_secs(30);

/// How far back starts and losses are measured.
pub const MEASURED: Duration = Duration::from_secs(7 * 24 * 3600);

/// Most spares that are kept by measurement, for each place.
const MAX_SPARES: usize = 10;

/// How many checks in a row must fail before an exit bridge is replaced.
const MAX_SILENT: u32 = 3;

/// What is kept.
#[derive(Clone, Debug)]
pub struct Keep {
    /// Where: regions, or one empty name for a provider without any.
    pub places: Vec<String>,
    /// How many serve in each.
    pub count: usize,
    /// How many more; by measurement if `None`.
    pub spares: Option<usize>,
    /// How long each lives.
    pub lifetime: Duration,
    /// So much longer or shorter at most, by chance.
    pub jitter: Duration,
    /// When all that are older are replaced.
    pub rotate: Option<Rotation>,
    /// When nothing is ended or replaced by plan.
    pub quiet: Vec<Quiet>,
}

/// Why an exit bridge is ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Origins or block lists know it.
    Burned,
    /// Its time has come by the schedule.
    Rotated,
    /// It does not serve.
    Silent,
}

/// What is to be done now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// How many to start, by place.
    pub start: BTreeMap<String, usize>,
    /// What to end.
    pub end: Vec<(String, Why)>,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// From the plan until it serves: the 90th percentile.
    pub start_up: Duration,
    /// How often one is lost, of one exit bridge in one hour.
    pub losses: f64,
}

impl Measured {
    /// By what happened since [`MEASURED`] ago.
    pub fn new(rows: &[Instance], now: SystemTime) -> Self {
        let starts = rows.iter().filter_map(|row| row.ready?.duration_since(row.created).ok());
        let mut starts: Vec<Duration> = starts.collect();
        starts.sort_unstable();
        let start_up = starts.get(starts.len() * 9 / 10).copied().unwrap_or(START_UP);
        let served = |row: &Instance| row.ended.unwrap_or(now).duration_since(row.ready?).ok();
        let hours = rows.iter().filter_map(served).sum::<Duration>().as_secs_f64() / 3600.0;
        let lost = rows.iter().filter(|row| row.state == State::Died || row.burned.is_some()).count();
        // Not from one unlucky hour alone.
        let losses = if lost == 0 { 0.0 } else { count(lost) / hours.max(1.0) };
        Self { start_up, losses }
    }

    /// How many spares make it likely (99 %) that no fewer than `kept` serve, however many are lost while others start:
    /// losses come by chance (a Poisson process).
    pub fn spares(&self, kept: usize) -> usize {
        let mean = self.losses * count(kept) * self.start_up.as_secs_f64() / 3600.0;
        let mut term = (-mean).exp();
        let mut sum = term;
        let mut spares = 0;
        while sum < 0.99 && spares < MAX_SPARES {
            spares += 1;
            term *= mean / count(spares);
            sum += term;
        }
        spares
    }
}

#[allow(clippy::cast_precision_loss)] // of exit bridges there are not so many
fn count(n: usize) -> f64 {
    n as f64
}

impl Keep {
    /// When one ends that is started now; `chance` is from 0 to 1. Not in quiet hours, if its life can be shortened or
    /// lengthened to that end.
    pub fn expiry(&self, now: SystemTime, chance: f64) -> SystemTime {
        let jitter = self.jitter.min(self.lifetime / 2);
        let lifetime = self.lifetime - jitter + jitter.mul_f64(2.0 * chance.clamp(0.0, 1.0));
        let end = instance::expiry(now, lifetime);
        let Some(quiet) = self.quiet.iter().find(|quiet| quiet.contains(end)) else { return end };
        let (begins, ends) = quiet.around(end);
        if begins >= now + self.lifetime / 2 { begins } else { ends.min(instance::expiry(now, MAX_LIFETIME)) }
    }

    /// How long before its end one is replaced: never more than half of the shortest life.
    pub fn lead(&self, measured: &Measured) -> Duration {
        let shortest = self.lifetime - self.jitter.min(self.lifetime / 2);
        (measured.start_up * 2 + MARGIN).min(shortest / 2)
    }

    /// How many are kept in each place.
    pub fn kept(&self, measured: &Measured) -> usize {
        self.count + self.spares.unwrap_or_else(|| measured.spares(self.count))
    }

    /// Everything that was started before this moment is to be replaced.
    fn rotated(&self, now: SystemTime) -> Option<SystemTime> {
        let at = self.rotate.as_ref()?.last(now)?;
        (!self.quiet.iter().any(|quiet| quiet.contains(now))).then_some(at)
    }

    /// What is to be done about the `live` rows, of which some are `silent`.
    pub fn plan(
        &self,
        live: &[Instance],
        silent: &BTreeSet<String>,
        measured: &Measured,
        now: SystemTime,
    ) -> Plan {
        let (lead, kept, rotated) = (self.lead(measured), self.kept(measured), self.rotated(now));
        let mut plan = Plan::default();
        for place in &self.places {
            let here = live.iter().filter(|row| row.region().unwrap_or_default() == place);
            let here: Vec<&Instance> =
                here.filter(|row| !row.state.is_final() && row.state != State::Stopping).collect();
            let trouble = |row: &Instance| {
                if row.burned.is_some() {
                    Some(Why::Burned)
                } else if silent.contains(&row.id) {
                    Some(Why::Silent)
                } else {
                    rotated.filter(|at| row.created < *at).map(|_| Why::Rotated)
                }
            };
            let good = || here.iter().filter(|row| trouble(row).is_none());
            // What became of an order is not known yet, and nobody is at work on it: nothing is to be hoped for.
            let is_stuck = |row: &Instance| row.state.is_creating() && row.claim.is_none();
            let lasting = good().filter(|row| row.expires > now + lead && !is_stuck(row)).count();
            let missing = kept.saturating_sub(lasting);
            if missing > 0 {
                plan.start.insert(place.clone(), missing);
            }
            // Known ones, and those whose time has come, serve until others do in their place.
            let is_silent = |row: &Instance| silent.contains(&row.id);
            let serving = here.iter().filter(|row| row.state == State::Running && !is_silent(row)).count();
            let mut more = serving.saturating_sub(self.count);
            for row in here.iter().filter(|row| !row.state.is_creating()) {
                let Some(why) = trouble(row) else { continue };
                // One that alone is silent is of no use to anybody. If all are, it may be our sight that is not.
                let is_useless = is_silent(row) && serving > 0;
                if is_useless || more > 0 {
                    more -= usize::from(!is_silent(row));
                    plan.end.push((row.id.clone(), why));
                }
            }
        }
        plan
    }
}

/// A schedule of rotations: a cron expression, in UTC.
#[derive(Clone, Debug)]
pub struct Rotation(Cron);

impl FromStr for Rotation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            |error: croner::errors::CronError| format!("{error} (write it like \"0 4 * * *\": at 04:00 UTC)");
        text.parse().map(Self).map_err(wrong)
    }
}

impl Rotation {
    /// The last moment that is not after `now`.
    fn last(&self, now: SystemTime) -> Option<SystemTime> {
        self.0.find_previous_occurrence(&DateTime::<Utc>::from(now), true).ok().map(SystemTime::from)
    }

    /// The next moment after `now`.
    pub fn next(&self, now: SystemTime) -> Option<SystemTime> {
        self.0.find_next_occurrence(&DateTime::<Utc>::from(now), false).ok().map(SystemTime::from)
    }
}

/// Hours of each day, in UTC; over midnight if they begin later than they end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiet {
    /// Minutes of the day.
    begins: u32,
    ends: u32,
}

/// Minutes of a day.
const DAY: u32 = 24 * 60;

impl FromStr for Quiet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a time of the day such as 22:00-06:00");
        let minutes = |text: &str| -> Option<u32> {
            let (hours, minutes) = text.trim().split_once(':')?;
            let (hours, minutes) = (hours.parse::<u32>().ok()?, minutes.parse::<u32>().ok()?);
            (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
        };
        let (begins, ends) = text.split_once('-').ok_or_else(wrong)?;
        let quiet =
            Self { begins: minutes(begins).ok_or_else(wrong)?, ends: minutes(ends).ok_or_else(wrong)? };
        if quiet.begins == quiet.ends { Err(wrong()) } else { Ok(quiet) }
    }
}

impl Quiet {
    /// Seconds since it began that day, and until it ends.
    fn parts(self, at: SystemTime) -> (u32, u32) {
        let at = DateTime::<Utc>::from(at).num_seconds_from_midnight();
        let since = |from: u32| (at + (DAY - from) * 60) % (DAY * 60);
        let length = (self.ends + DAY - self.begins) % DAY * 60;
        (since(self.begins), length)
    }

    fn contains(self, at: SystemTime) -> bool {
        let (since, length) = self.parts(at);
        since < length
    }

    /// When the quiet hours that `at` is in begin and end.
    fn around(self, at: SystemTime) -> (SystemTime, SystemTime) {
        let (since, length) = self.parts(at);
        let begins = at - Duration::from_secs(since.into());
        (begins, begins + Duration::from_secs(length.into()))
    }
}

/// Which exit bridges do not serve any more, by checks.
#[derive(Debug, Default)]
pub struct Silence(BTreeMap<String, u32>);

impl Silence {
    /// Takes a check in.
    pub fn note(&mut self, id: &str, serves: bool) {
        if serves {
            self.0.remove(id);
        } else {
            *self.0.entry(id.to_owned()).or_default() += 1;
        }
    }

    /// Those that did not serve several times in a row.
    pub fn ids(&self) -> BTreeSet<String> {
        self.0.iter().filter(|(_, times)| **times >= MAX_SILENT).map(|(id, _)| id.clone()).collect()
    }

    /// Forgets those that are no more.
    pub fn keep(&mut self, live: &[Instance]) {
        self.0.retain(|id, _| live.iter().any(|row| row.id == *id));
    }
}

/// How often in a row a canary origin must turn an exit bridge away.
const MAX_REFUSED: u32 = 2;

/// How long a canary origin's word counts after it last let an exit bridge in.
const TELLING: Duration = Duration::from_secs(24 * 3600);

/// What canary origins say of exit bridges. One that lets nobody in, or has not for a day, says nothing of any single one:
/// replacing them all would not help.
#[derive(Debug, Default)]
pub struct Canaries {
    /// When each last let one in.
    open: BTreeMap<String, SystemTime>,
    /// How often in a row an exit bridge was turned away, by its id and the page.
    refused: BTreeMap<(String, String), u32>,
}

impl Canaries {
    /// Takes a visit in.
    pub fn note(&mut self, id: &str, visit: &Visit, now: SystemTime) {
        let key = (id.to_owned(), visit.page.clone());
        match visit.result {
            Visited::Open => {
                self.open.insert(visit.page.clone(), now);
                self.refused.remove(&key);
            }
            Visited::Blocked => *self.refused.entry(key).or_default() += 1,
            Visited::NoAnswer => {}
        }
    }

    /// The page that knows this exit bridge for what it is.
    pub fn burned(&self, id: &str, now: SystemTime) -> Option<&str> {
        let tells = |page: &String| {
            self.open.get(page).is_some_and(|at| now.duration_since(*at).unwrap_or_default() < TELLING)
        };
        let mut refused = self.refused.iter().filter(|((of, _), times)| of == id && **times >= MAX_REFUSED);
        refused.find(|((_, page), _)| tells(page)).map(|((_, page), _)| page.as_str())
    }

    /// Forgets those that are no more.
    pub fn keep(&mut self, live: &[Instance]) {
        self.refused.retain(|(id, _), _| live.iter().any(|row| row.id == *id));
    }
}

/// How long nothing is bought where it failed: longer with each failure in a row.
#[derive(Debug, Default)]
pub struct Pauses(BTreeMap<String, (u32, SystemTime)>);

/// The first pause, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(900));

impl Pauses {
    /// It failed there.
    pub fn failed(&mut self, place: &str, now: SystemTime) {
        let times = self.0.get(place).map_or(0, |(times, _)| *times);
        let pause = (PAUSE.0 * 2_u32.saturating_pow(times.min(10))).min(PAUSE.1);
        self.0.insert(place.to_owned(), (times + 1, now + pause));
    }

    /// It worked there.
    pub fn worked(&mut self, place: &str) {
        self.0.remove(place);
    }

    /// Until when nothing is tried there.
    pub fn until(&self, place: &str, now: SystemTime) -> Option<SystemTime> {
        self.0.get(place).map(|(_, until)| *until).filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::tests::{at, row};

    fn keep(count: usize) -> Keep {
        Keep {
            places: vec![String::new()],
            count,
            spares: Some(0),
            lifetime: Duration::from_secs(10_000),
            jitter: Duration::ZERO,
            rotate: None,
            quiet: Vec::new(),
        }
    }

    fn rows(expiries: &[u64]) -> Vec<Instance> {
        let named = |(n, expires): (usize, &u64)| Instance {
            id: format!("x{n}"),
            expires: at(*expires),
            ..row("x", State::Running)
        };
        expiries.iter().enumerate().map(named).collect()
    }

    const FAST: Measured = Measured { start_up: Duration::from_secs(10), losses: 0.0 };

    fn plan(keep: &Keep, live: &[Instance], silent: &[&str], now: u64) -> (usize, Vec<(String, Why)>) {
        let silent = silent.iter().map(|id| (*id).to_owned()).collect();
        let plan = keep.plan(live, &silent, &FAST, at(now));
        (plan.start.values().sum(), plan.end)
    }

    #[test]
    fn what_is_missing_is_started() {
        assert_eq!(plan(&keep(3), &[], &[], 1), (3, vec![]));
        let mut live = rows(&[9000, 9000]);
        live[1].state = State::Launched;
        assert_eq!(plan(&keep(3), &live, &[], 1), (2, vec![]), "nobody is at work on it");
        live[1].claim = Some("c".into());
        assert_eq!(plan(&keep(3), &live, &[], 1), (1, vec![]), "what is on its way counts");
        live[0].state = State::Stopping;
        assert_eq!(plan(&keep(3), &live, &[], 1), (2, vec![]));
        assert_eq!(
            plan(&keep(1), &rows(&[9000, 9000]), &[], 1),
            (0, vec![]),
            "more than enough is left alone"
        );
    }

    #[test]
    fn what_ends_soon_is_replaced_before() {
        let live = rows(&[1000, 9000]);
        // Twice the time of a start, and half a minute.
        assert_eq!(plan(&keep(2), &live, &[], 949).0, 0);
        assert_eq!(plan(&keep(2), &live, &[], 950), (1, vec![]), "it ends by itself");
    }

    #[test]
    fn what_is_of_no_use_is_ended_when_others_serve() {
        let mut live = rows(&[9000, 9000]);
        live[0].burned = Some("canary".into());
        assert_eq!(plan(&keep(2), &live, &[], 1), (1, vec![]), "first another one");
        live.push(Instance {
            id: "x2".into(),
            state: State::Launched,
            claim: Some("c".into()),
            expires: at(9000),
            ..row("x", State::Running)
        });
        assert_eq!(plan(&keep(2), &live, &[], 1), (0, vec![]), "which is not there yet");
        live[2].state = State::Running;
        assert_eq!(plan(&keep(2), &live, &[], 1), (0, vec![("x0".into(), Why::Burned)]));
        live[0].burned = None;
        assert_eq!(plan(&keep(2), &live, &["x1"], 1), (0, vec![("x1".into(), Why::Silent)]));
        let live = rows(&[9000, 9000]);
        assert_eq!(
            plan(&keep(2), &live, &["x1"], 1),
            (1, vec![("x1".into(), Why::Silent)]),
            "it serves nobody"
        );
        assert_eq!(plan(&keep(2), &live, &["x0", "x1"], 1), (2, vec![]), "do we see well?");
    }

    #[test]
    fn where_there_is_room_for_few_they_are_replaced_one_by_one() {
        let mut live = rows(&[9000; 5]);
        live[..4].iter_mut().for_each(|row| row.burned = Some("canary".into()));
        let (start, end) = plan(&keep(4), &live, &[], 1);
        assert_eq!((start, end.len()), (3, 1));
    }

    #[test]
    fn a_schedule_replaces_all_that_are_older() {
        // 1970-01-01 was a day like any other.
        let keep = Keep { rotate: Some("0 4 * * *".parse().unwrap()), ..keep(2) };
        let four = 4 * 3600;
        let mut live = rows(&[90_000, 90_000]);
        live[1].created = at(four + 60);
        assert_eq!(plan(&keep, &live, &[], four - 1), (0, vec![]));
        assert_eq!(plan(&keep, &live, &[], four), (1, vec![]));
        live.extend(rows(&[90_000]));
        live[2].id = "x2".into();
        live[2].created = at(four + 60);
        assert_eq!(plan(&keep, &live, &[], four + 100), (0, vec![("x0".into(), Why::Rotated)]));
        let quiet = Keep { quiet: vec!["03:30-05:00".parse().unwrap()], ..keep };
        assert_eq!(plan(&quiet, &live, &[], four + 100), (0, vec![]), "not now");
        assert_eq!(plan(&quiet, &live, &[], four + 3600).1.len(), 1, "but then");
    }

    #[test]
    fn lives_end_by_chance_and_not_in_quiet_hours() {
        let hours = |n: u64| Duration::from_secs(n * 3600);
        let mut keep = Keep { lifetime: hours(4), jitter: hours(1), ..keep(1) };
        let ends = |keep: &Keep, from: u64, chance: f64| {
            keep.expiry(at(from * 3600), chance).duration_since(at(0)).unwrap().as_secs() / 3600
        };
        assert_eq!([0.0, 0.5, 1.0].map(|chance| ends(&keep, 0, chance)), [3, 4, 5]);
        keep.quiet = vec!["22:00-06:00".parse().unwrap()];
        assert_eq!(ends(&keep, 12, 0.5), 16);
        assert_eq!(ends(&keep, 19, 0.5), 22, "sooner");
        assert_eq!(ends(&keep, 21, 0.5), 30, "or later");
        assert_eq!(ends(&keep, 25, 0.5), 30);
        for bad in ["", "22:00", "24:00-01:00", "1:60-2:00", "5:00-5:00", "a-b"] {
            assert!(bad.parse::<Quiet>().is_err(), "{bad}");
        }
        assert!("61 * * * *".parse::<Rotation>().unwrap_err().contains("0 4 * * *"));
    }

    #[test]
    fn spares_grow_with_losses_and_with_the_time_of_a_start() {
        let spares =
            |losses, start_up| Measured { losses, start_up: Duration::from_secs(start_up) }.spares(10);
        assert_eq!(spares(0.0, 180), 0);
        assert_eq!(spares(0.01, 180), 0, "of ten, one in ten hours");
        assert_eq!(spares(0.1, 180), 1, "of ten, one in an hour");
        assert!(spares(1.0, 180) > spares(0.1, 180));
        assert!(spares(1.0, 600) > spares(1.0, 180));
        assert_eq!(spares(100.0, 3600), MAX_SPARES);
        assert_eq!(Measured::new(&[], at(0)), Measured { start_up: START_UP, losses: 0.0 });
        let died = Instance { ready: Some(at(20)), ended: Some(at(7220)), ..row("x", State::Died) };
        let measured = Measured::new(&[died], at(9000));
        assert_eq!(measured, Measured { start_up: Duration::from_secs(20), losses: 0.5 });
    }

    #[test]
    fn a_canary_counts_that_lets_others_in() {
        let mut canaries = Canaries::default();
        let visit = |result| Visit { page: "https://c.example/".into(), result };
        (0..5).for_each(|_| canaries.note("x", &visit(Visited::Blocked), at(10)));
        assert_eq!(canaries.burned("x", at(10)), None, "it may let nobody in");
        canaries.note("y", &visit(Visited::Open), at(20));
        assert_eq!(canaries.burned("x", at(20)), Some("https://c.example/"));
        assert_eq!(canaries.burned("y", at(20)), None);
        canaries.note("y", &visit(Visited::Blocked), at(21));
        canaries.note("y", &visit(Visited::NoAnswer), at(22));
        assert_eq!(canaries.burned("y", at(22)), None, "once may be chance");
        canaries.note("y", &visit(Visited::Blocked), at(23));
        assert!(canaries.burned("y", at(23)).is_some());
        assert_eq!(canaries.burned("x", at(20 + TELLING.as_secs())), None);
        canaries.note("x", &visit(Visited::Open), at(24));
        assert_eq!(canaries.burned("x", at(24)), None);
        canaries.keep(&[]);
        assert_eq!(canaries.burned("y", at(24)), None);
    }

    #[test]
    fn silence_and_failures_are_counted_in_a_row() {
        let mut silence = Silence::default();
        for serves in [false, false, true, false, false] {
            silence.note("x", serves);
        }
        assert!(silence.ids().is_empty());
        silence.note("x", false);
        assert_eq!(silence.ids(), ["x".to_owned()].into());
        silence.keep(&[]);
        assert!(silence.ids().is_empty());

        let mut pauses = Pauses::default();
        pauses.failed("r", at(0));
        assert_eq!(pauses.until("r", at(0)), Some(at(10)));
        pauses.failed("r", at(10));
        assert_eq!((pauses.until("r", at(11)), pauses.until("r", at(30))), (Some(at(30)), None));
        (0..20).for_each(|_| pauses.failed("r", at(100)));
        assert_eq!(pauses.until("r", at(100)), Some(at(1000)));
        pauses.worked("r");
        assert_eq!(pauses.until("r", at(100)), None);
    }
}
