//! The exit bridges that the client knows, and which of them serves whom.
//!
//! An isolation group keeps its exit bridge for as long as that lives, so that a site sees one
//! address. A pure core: the caller says what time it is.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant, SystemTime};

use eebt_proto::directory::ReachName;
use eebt_proto::{BridgeLine, Country};
use rand::seq::IteratorRandom as _;

/// How long an exit bridge that failed once is left alone; doubled with each failure in a row.
const FIRST_PAUSE: Duration = Duration::from_secs(5);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// How many circuits in a row may end without one answer before that counts as a failure, and as a reason to show
/// the exit bridge no more relays that know our guard.
const MAX_UNANSWERED: u32 = 2;

/// Most groups that are remembered.
const MAX_GROUPS: usize = 10_000;

/// Which exit bridge: its Ed25519 identity, as a relay or as an onion service. Not for logs; see
/// [`Bridges::ordinal`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BridgeId([u8; 32]);

impl BridgeId {
    /// The identity.
    pub fn identity(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Where a bridge line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The person, who has it from someone trusted.
    Given,
    /// An exit-bridge directory.
    Found,
}

/// The exit bridges, and the groups that keep one.
pub struct Bridges<G> {
    known: Vec<Known>,
    /// How many there have been.
    numbered: usize,
    kept: HashMap<G, Kept>,
}

struct Known {
    id: BridgeId,
    number: usize,
    line: BridgeLine,
    source: Source,
    country: Option<Country>,
    works_since: Option<Instant>,
    failures: u32,
    /// Circuits in a row that ended before a stream on them had an answer.
    unanswered: u32,
    paused_until: Option<Instant>,
}

impl Known {
    /// Is it alive, and not left alone?
    fn works(&self, now: Now) -> bool {
        !self.line.is_expired(now.wall) && self.is_rested(now)
    }

    /// Does it take circuits only to end them?
    fn is_suspect(&self) -> bool {
        self.unanswered >= MAX_UNANSWERED
    }

    fn is_rested(&self, now: Now) -> bool {
        self.paused_until.is_none_or(|until| until <= now.instant)
    }
}

/// What a group has.
struct Kept {
    id: BridgeId,
    used: Instant,
    /// Those that the person did not want for it any more.
    left: Vec<BridgeId>,
}

/// How an exit bridge does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Nobody used it yet.
    Untried,
    /// It works.
    Works {
        /// Since when.
        since: Instant,
    },
    /// It failed so many times in a row, and is left alone until then.
    Failed {
        /// How often.
        times: u32,
        /// Until when.
        until: Instant,
    },
    /// Its time is over.
    Expired,
}

/// An exit bridge, as it is shown to the person.
#[derive(Clone)]
pub struct Shown {
    /// Which one.
    pub id: BridgeId,
    /// See [`Bridges::ordinal`].
    pub number: usize,
    /// How it is reached.
    pub reach: ReachName,
    /// Who named it.
    pub source: Source,
    /// Where it leaves from, by what a directory says.
    pub country: Option<Country>,
    /// When it ends.
    pub expires: Option<SystemTime>,
    /// How it does.
    pub health: Health,
}

/// What became of the wish for another exit bridge.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// The group has this one now, instead of that.
    From(BridgeId, BridgeId),
    /// There is none that works and that the group has not had. When asked once more, those are taken again.
    NoOther,
    /// The group has none.
    HasNone,
}

/// The moment, by both clocks.
#[derive(Clone, Copy)]
pub struct Now {
    /// For pauses.
    pub instant: Instant,
    /// For expiry.
    pub wall: SystemTime,
}

impl Now {
    /// By this machine's clocks.
    pub fn read() -> Self {
        Self { instant: Instant::now(), wall: SystemTime::now() }
    }
}

impl<G: Clone + Eq + Hash> Default for Bridges<G> {
    fn default() -> Self {
        Self { known: Vec::new(), numbered: 0, kept: HashMap::new() }
    }
}

impl<G: Clone + Eq + Hash> Bridges<G> {
    /// Takes over a new list from `source`; what is known of those that stay is kept, and so are all
    /// from another source. What the person was given counts more than what was found.
    pub fn replace(&mut self, source: Source, lines: impl IntoIterator<Item = BridgeLine>) {
        let (old, others) = self.known.drain(..).partition(|k| k.source == source);
        self.known = others;
        let mut old: HashMap<BridgeId, Known> = Vec::into_iter(old).map(|k| (k.id, k)).collect();
        for line in lines {
            let id = BridgeId(*line.reach.identity());
            match self.known.iter().position(|k| k.id == id) {
                Some(at) if source == Source::Given && self.known[at].source == Source::Found => {
                    self.known.remove(at);
                }
                Some(_) => continue,
                None => {}
            }
            let known = match old.remove(&id) {
                Some(known) if known.line == line => known,
                before => {
                    let number = before.map_or(self.numbered + 1, |known| known.number);
                    self.numbered = self.numbered.max(number);
                    Known {
                        id,
                        number,
                        line,
                        source,
                        country: None,
                        works_since: None,
                        failures: 0,
                        unanswered: 0,
                        paused_until: None,
                    }
                }
            };
            self.known.push(known);
        }
    }

    /// The line of an exit bridge, and where it came from.
    pub fn line(&self, id: BridgeId) -> Option<(&BridgeLine, Source)> {
        self.known.iter().find(|k| k.id == id).map(|k| (&k.line, k.source))
    }

    /// Whether it takes circuits only to end them, as far as the last ones show.
    pub fn is_suspect(&self, id: BridgeId) -> bool {
        self.known.iter().any(|k| k.id == id && k.is_suspect())
    }

    /// A number for the log and the page, from 1, that says nothing about the exit bridge. It keeps it while
    /// it is known, and no other one gets it. 0 for one that is not known.
    pub fn ordinal(&self, id: BridgeId) -> usize {
        self.known.iter().find(|k| k.id == id).map_or(0, |k| k.number)
    }

    /// A directory says where it leaves from.
    pub fn note_country(&mut self, identity: &[u8; 32], country: Option<Country>) {
        if let Some(known) = self.known.iter_mut().find(|k| k.id.0 == *identity && k.source == Source::Found)
        {
            known.country = country;
        }
    }

    /// All that are known, by their numbers.
    pub fn shown(&self, now: Now) -> Vec<Shown> {
        let health = |k: &Known| match (k.paused_until.filter(|until| *until > now.instant), k.works_since) {
            _ if k.line.is_expired(now.wall) => Health::Expired,
            (Some(until), _) => Health::Failed { times: k.failures, until },
            (None, Some(since)) => Health::Works { since },
            (None, None) => Health::Untried,
        };
        let mut all: Vec<Shown> = self
            .known
            .iter()
            .map(|k| Shown {
                id: k.id,
                number: k.number,
                reach: ReachName::from(&k.line.reach),
                source: k.source,
                country: k.country,
                expires: k.line.expires,
                health: health(k),
            })
            .collect();
        all.sort_by_key(|k| k.number);
        all
    }

    /// How many are known and not expired.
    pub fn alive(&self, now: Now) -> usize {
        self.known.iter().filter(|k| !k.line.is_expired(now.wall)).count()
    }

    /// Is there one that is alive and not left alone?
    pub fn any_works(&self, now: Now) -> bool {
        self.known.iter().any(|k| k.works(now))
    }

    /// Up to `n` that work, at random.
    pub fn some(&self, n: usize, now: Now) -> Vec<BridgeId> {
        self.known.iter().filter(|k| k.works(now)).map(|k| k.id).sample(&mut rand::rng(), n)
    }

    /// The exit bridge for a stream of `group` to `port`: the one that the group has, while it
    /// lives; else one at random among those that work; else the one whose pause ends first.
    /// Those in `not` were tried already. `None` when there is none left.
    ///
    /// The choice is kept at once, so that many first streams of a group get the same one. A choice
    /// that had to leave out the group's own (its port is closed there, or it was tried) is not kept.
    pub fn choose(&mut self, group: &G, port: u16, not: &[BridgeId], now: Now) -> Option<BridgeId> {
        let fits =
            |k: &&Known| !not.contains(&k.id) && !k.line.is_expired(now.wall) && k.line.ports.contains(port);
        let kept = self.kept.get(group).map(|kept| kept.id);
        let left = self.kept.get(group).map_or(&[][..], |kept| &kept.left);
        let own = kept.and_then(|id| self.known.iter().find(|k| k.id == id));
        let replace = own.is_none_or(|k| !k.works(now));
        let chosen = self
            .known
            .iter()
            .filter(fits)
            .find(|k| Some(k.id) == kept && k.is_rested(now))
            .or_else(|| {
                let rested = self.known.iter().filter(fits).filter(|k| k.is_rested(now));
                rested.filter(|k| !left.contains(&k.id)).choose(&mut rand::rng())
            })
            .or_else(|| self.known.iter().filter(fits).filter(|k| k.is_rested(now)).choose(&mut rand::rng()))
            .or_else(|| self.known.iter().filter(fits).min_by_key(|k| k.paused_until))?
            .id;
        if replace || kept == Some(chosen) {
            self.keep(group, chosen, now);
        }
        Some(chosen)
    }

    fn keep(&mut self, group: &G, id: BridgeId, now: Now) {
        if self.kept.len() >= MAX_GROUPS && !self.kept.contains_key(group) {
            let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.used).map(|(g, _)| g.clone());
            oldest.map(|g| self.kept.remove(&g));
        }
        let left = self.kept.remove(group).map(|kept| kept.left).unwrap_or_default();
        self.kept.insert(group.clone(), Kept { id, used: now.instant, left });
    }

    /// Gives a group another exit bridge, one that works and lets `port` out, for the person does not want
    /// the one that it has. It does not come back to that before it has had all others.
    pub fn another(&mut self, group: &G, port: u16, now: Now) -> Moved {
        let Some(kept) = self.kept.get_mut(group) else { return Moved::HasNone };
        let from = kept.id;
        let fits = |k: &&Known| {
            let rested = k.paused_until.is_none_or(|until| until <= now.instant);
            let alive = !k.line.is_expired(now.wall) && k.line.ports.contains(port);
            k.id != from && rested && alive && !kept.left.contains(&k.id)
        };
        match self.known.iter().filter(fits).choose(&mut rand::rng()) {
            Some(other) => {
                kept.left.push(from);
                kept.id = other.id;
                kept.used = now.instant;
                Moved::From(from, other.id)
            }
            None => {
                kept.left.clear();
                Moved::NoOther
            }
        }
    }

    /// There is a circuit to it. That is as good as an answer, but for one that ends its circuits.
    pub fn note_circuit(&mut self, id: BridgeId, now: Now) {
        if let Some(known) = self.known.iter_mut().find(|k| k.id == id && !k.is_suspect()) {
            known.failures = 0;
            known.paused_until = None;
            known.works_since.get_or_insert(now.instant);
        }
    }

    /// A stream had an answer by it.
    pub fn note_answer(&mut self, id: BridgeId, now: Now) {
        if let Some(known) = self.known.iter_mut().find(|k| k.id == id) {
            known.unanswered = 0;
        }
        self.note_circuit(id, now);
    }

    /// A circuit to it ended, and no stream on it had an answer. Whether that is a failure: once may be anybody's
    /// fault.
    pub fn note_unanswered(&mut self, id: BridgeId) -> bool {
        let known = self.known.iter_mut().find(|k| k.id == id);
        known.is_some_and(|known| {
            known.unanswered = known.unanswered.saturating_add(1);
            known.is_suspect()
        })
    }

    /// It does not: it is left alone for a while.
    pub fn note_failure(&mut self, id: BridgeId, now: Now) {
        if let Some(known) = self.known.iter_mut().find(|k| k.id == id) {
            let pause = FIRST_PAUSE.saturating_mul(1 << known.failures.min(10)).min(LONGEST_PAUSE);
            known.failures = known.failures.saturating_add(1);
            known.paused_until = Some(now.instant + pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use eebt_proto::{CircuitReach, PortSet, Reach};

    fn line(n: u8, ports: &str, expires: Option<SystemTime>) -> BridgeLine {
        let reach = CircuitReach {
            addresses: vec![([198, 51, 100, n], 443).into()],
            ed25519: [n; 32],
            rsa: [n; 20],
            ntor: [n; 32],
            protocols: String::new(),
        };
        BridgeLine { reach: Reach::Circuit(reach), ports: ports.parse::<PortSet>().unwrap(), expires }
    }

    fn bridges(n: u8) -> (Bridges<&'static str>, Now) {
        let mut bridges = Bridges::default();
        bridges.replace(Source::Given, (1..=n).map(|i| line(i, "web", None)));
        (bridges, Now::read())
    }

    fn later(now: Now, secs: u64) -> Now {
        let by = Duration::from_secs(secs);
        Now { instant: now.instant + by, wall: now.wall + by }
    }

    #[test]
    fn a_group_keeps_its_exit_bridge_while_it_lives() {
        let (mut bridges, now) = bridges(10);
        let first = bridges.choose(&"a", 443, &[], now).unwrap();
        for _ in 0..50 {
            assert!(bridges.choose(&"a", 443, &[], now) == Some(first));
        }
        bridges.note_failure(first, now);
        let second = bridges.choose(&"a", 443, &[], now).unwrap();
        assert!(second != first);
    }

    #[test]
    fn groups_are_spread() {
        let mut bridges = Bridges::<u32>::default();
        bridges.replace(Source::Given, (1..=5).map(|i| line(i, "web", None)));
        let now = Now::read();
        let seen: std::collections::HashSet<_> =
            (0..200).filter_map(|group| bridges.choose(&group, 443, &[], now)).collect();
        assert_eq!(seen.len(), 5);
    }

    #[test]
    fn another_port_does_not_move_a_group() {
        let now = Now::read();
        let mut bridges = Bridges::<&str>::default();
        bridges.replace(Source::Given, [line(1, "443", None), line(2, "22", None)]);
        let own = bridges.choose(&"a", 443, &[], now).unwrap();
        assert!(bridges.choose(&"a", 22, &[], now).unwrap() != own);
        assert!(bridges.choose(&"a", 443, &[own], now).is_none());
        assert!(bridges.choose(&"a", 443, &[], now) == Some(own));
    }

    #[test]
    fn pauses_grow_and_end() {
        let (mut bridges, now) = bridges(1);
        let only = bridges.choose(&"a", 443, &[], now).unwrap();
        bridges.note_failure(only, now);
        assert!(bridges.choose(&"a", 443, &[], now) == Some(only), "the only one is tried all the same");
        assert!(bridges.choose(&"a", 443, &[only], now).is_none(), "but not twice for one stream");
        bridges.note_failure(only, now);
        assert_eq!(bridges.known[0].paused_until, Some(now.instant + Duration::from_secs(10)));
        (0..20).for_each(|_| bridges.note_failure(only, now));
        assert_eq!(bridges.known[0].paused_until, Some(now.instant + LONGEST_PAUSE));
        bridges.note_answer(only, now);
        assert_eq!(bridges.known[0].paused_until, None);
    }

    #[test]
    fn one_that_only_ends_its_circuits_is_paused_until_it_answers() {
        let (mut bridges, now) = bridges(1);
        let only = bridges.choose(&"a", 443, &[], now).unwrap();
        bridges.note_circuit(only, now);
        assert!(!bridges.note_unanswered(only), "once may be anybody's fault");
        bridges.note_answer(only, now);
        assert!(!bridges.note_unanswered(only) && !bridges.is_suspect(only));
        bridges.note_circuit(only, now);
        assert!(bridges.note_unanswered(only) && bridges.is_suspect(only));
        bridges.note_failure(only, now);
        bridges.note_circuit(only, now);
        assert!(bridges.note_unanswered(only), "and again");
        bridges.note_failure(only, now);
        assert_eq!(
            bridges.known[0].paused_until,
            Some(now.instant + FIRST_PAUSE * 2),
            "circuits are no excuse"
        );
        bridges.note_answer(only, now);
        assert!(!bridges.is_suspect(only) && bridges.known[0].works(now));
    }

    #[test]
    fn the_person_has_a_group_go_round_all_that_work() {
        let (mut bridges, now) = bridges(4);
        assert!(bridges.another(&"a", 443, now) == Moved::HasNone);
        let first = bridges.choose(&"a", 443, &[], now).unwrap();
        let dead = bridges.known.iter().map(|k| k.id).find(|id| *id != first).unwrap();
        bridges.note_failure(dead, now);
        let mut had = vec![first];
        for _ in 0..2 {
            let Moved::From(from, to) = bridges.another(&"a", 443, now) else { panic!() };
            assert!(had.last() == Some(&from) && !had.contains(&to) && to != dead);
            assert!(bridges.choose(&"a", 443, &[], now) == Some(to), "new streams take it");
            had.push(to);
        }
        assert!(bridges.another(&"a", 443, now) == Moved::NoOther);
        assert!(bridges.choose(&"a", 443, &[], now) == had.last().copied(), "it keeps what it has");
        let round = bridges.another(&"a", 443, now);
        assert!(matches!(round, Moved::From(_, to) if had.contains(&to)), "and round again");
        assert!(bridges.another(&"a", 22, now) == Moved::NoOther, "the port is closed at all");
    }

    #[test]
    fn one_that_the_person_left_is_the_last_choice() {
        let (mut bridges, now) = bridges(3);
        let first = bridges.choose(&"a", 443, &[], now).unwrap();
        let Moved::From(_, second) = bridges.another(&"a", 443, now) else { panic!() };
        bridges.note_failure(second, now);
        let third = bridges.choose(&"a", 443, &[], now).unwrap();
        assert!(third != first && third != second);
        bridges.note_failure(third, now);
        assert!(bridges.choose(&"a", 443, &[], now) == Some(first), "better than none");
    }

    #[test]
    fn a_number_stays_with_its_exit_bridge() {
        let (mut bridges, now) = bridges(2);
        bridges.replace(Source::Given, [line(3, "web", None), line(2, "80", None)]);
        let numbers =
            |bridges: &Bridges<&str>| bridges.shown(now).iter().map(|s| (s.number, s.id)).collect::<Vec<_>>();
        assert!(numbers(&bridges) == [(2, BridgeId([2; 32])), (3, BridgeId([3; 32]))]);
        assert_eq!((bridges.ordinal(BridgeId([1; 32])), bridges.ordinal(BridgeId([3; 32]))), (0, 3));
    }

    #[test]
    fn health_is_shown_as_it_is() {
        let now = Now::read();
        let mut bridges = Bridges::<&str>::default();
        let soon = Some(now.wall + Duration::from_secs(10));
        bridges.replace(Source::Found, [line(1, "web", None), line(2, "web", None), line(3, "web", soon)]);
        bridges.note_answer(BridgeId([1; 32]), now);
        bridges.note_answer(BridgeId([2; 32]), now);
        bridges.note_failure(BridgeId([2; 32]), now);
        bridges.note_country(&[1; 32], "SE".parse().ok());
        let until = now.instant + FIRST_PAUSE;
        let works = Health::Works { since: now.instant };
        let health = |now| bridges.shown(now).iter().map(|s| s.health).collect::<Vec<_>>();
        assert_eq!(health(now), [works, Health::Failed { times: 1, until }, Health::Untried]);
        assert_eq!(health(later(now, 10)), [works, works, Health::Expired]);
        assert_eq!(bridges.shown(now)[0].country, "SE".parse().ok());
    }

    #[test]
    fn expiry_and_ports_are_minded() {
        let now = Now::read();
        let mut bridges = Bridges::<&str>::default();
        bridges.replace(
            Source::Given,
            [
                line(1, "80", None),
                line(2, "443", Some(now.wall + Duration::from_secs(10))),
                line(2, "443", None),
            ],
        );
        assert_eq!(bridges.alive(now), 2, "the same one twice counts once");
        assert!(bridges.choose(&"a", 443, &[], now) == Some(BridgeId([2; 32])));
        assert!(bridges.choose(&"a", 22, &[], now).is_none());
        assert!(bridges.choose(&"a", 443, &[], later(now, 10)).is_none());
    }

    #[test]
    fn a_directory_cannot_take_a_given_line_away() {
        let mut bridges = Bridges::<&str>::default();
        let ended = Some(SystemTime::UNIX_EPOCH);
        bridges.replace(Source::Given, [line(1, "web", None)]);
        bridges.replace(Source::Found, [line(1, "80", ended), line(2, "web", None)]);
        let given = |bridges: &Bridges<&str>| {
            bridges.line(BridgeId([1; 32])).map(|(line, source)| (line.ports.to_string(), source))
        };
        assert_eq!(given(&bridges), Some(("80,443".into(), Source::Given)));
        bridges.replace(Source::Given, []);
        bridges.replace(Source::Found, [line(1, "80", ended), line(2, "web", None)]);
        assert_eq!(given(&bridges), Some(("80".into(), Source::Found)));
        bridges.replace(Source::Given, [line(1, "web", None)]);
        assert_eq!(given(&bridges), Some(("80,443".into(), Source::Given)));
        assert_eq!(bridges.alive(Now::read()), 2);
    }

    #[test]
    fn a_new_list_keeps_what_is_known() {
        let (mut bridges, now) = bridges(2);
        bridges.note_failure(BridgeId([1; 32]), now);
        bridges.replace(Source::Given, [line(1, "web", None), line(3, "web", None)]);
        for _ in 0..20 {
            assert!(bridges.choose(&"a", 443, &[], now) == Some(BridgeId([3; 32])));
        }
        assert!(bridges.line(BridgeId([2; 32])).is_none());
    }
}
