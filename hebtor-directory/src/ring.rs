//! Which exit bridges a ticket is given: a keyed consistent-hash ring, and nothing else.
//!
//! Each exit bridge stands at several points of a ring of 2^64 places, more of them when it is fast; a
//! ticket stands at one. The exit bridges that follow it on the ring are its own. So asking again gives
//! the same ones; the end of one moves only those who had it; and without the key nobody can tell where
//! anything stands, or make a ticket that stands near a chosen exit bridge.
//!
//! Pure: no clock, no I/O. The enumeration simulation runs this very code.

use std::collections::{BTreeSet, HashMap};
use std::time::SystemTime;

use eebt_proto::directory::{ReachName, Speed, Wishes};
use eebt_proto::{BridgeLine, Country, TicketId};
use sha2::{Digest as _, Sha256};

/// Most points that are looked at for one answer. Wishes that hardly any exit bridge meets end there.
const MAX_STEPS: usize = 20_000;

/// The port that a client wants when it does not say.
const DEFAULT_PORT: u16 = 443;

/// The identity of an exit bridge.
pub type Identity = [u8; 32];

/// An exit bridge that can be handed out.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// How to reach it.
    pub line: BridgeLine,
    /// Where its egress address is.
    pub country: Option<Country>,
    /// How fast it is.
    pub speed: Speed,
    /// Until when the last test stands for it.
    pub live_until: SystemTime,
}

impl Member {
    fn fits(&self, wishes: &Wishes, now: SystemTime) -> bool {
        self.live_until > now
            && !self.line.is_expired(now)
            && self.line.ports.contains(wishes.port.unwrap_or(DEFAULT_PORT))
            && wishes.reach.is_none_or(|reach| reach == ReachName::from(&self.line.reach))
            && wishes.country.is_none_or(|country| Some(country) == self.country)
    }

    /// Points on the ring: its share of the clients.
    fn weight(&self) -> u32 {
        match self.speed {
            Speed::Slow => 4,
            Speed::Medium => 8,
            Speed::Fast => 16,
        }
    }
}

/// Places on the ring, and who stands there (an index into the members).
type Points = BTreeSet<(u64, u32)>;

/// The ring.
pub struct Ring {
    key: [u8; 32],
    members: HashMap<Identity, u32>,
    slots: Vec<Option<Member>>,
    free: Vec<u32>,
    /// All of them, and those of each country by themselves, so that a rare one is found.
    all: Points,
    countries: HashMap<Country, Points>,
}

impl Ring {
    /// An empty ring; replicas that give the same answers have the same key.
    pub fn new(key: [u8; 32]) -> Self {
        Self {
            key,
            members: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            all: Points::new(),
            countries: HashMap::new(),
        }
    }

    /// How many exit bridges stand on it.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Is nobody there?
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The exit bridges on it.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.slots.iter().flatten()
    }

    /// Puts an exit bridge on the ring, or takes over what is new of it.
    pub fn insert(&mut self, member: Member) {
        let identity = *member.line.reach.identity();
        if let Some(&slot) = self.members.get(&identity)
            && let Some(Some(old)) = self.slots.get_mut(slot as usize)
            && old.weight() == member.weight()
            && old.country == member.country
        {
            *old = member;
            return;
        }
        self.remove(&identity);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        for point in 0..member.weight() {
            let place = (self.place(b"exit bridge", &identity, point), slot);
            self.all.insert(place);
            if let Some(country) = member.country {
                self.countries.entry(country).or_default().insert(place);
            }
        }
        self.members.insert(identity, slot);
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(member);
        }
    }

    /// Takes an exit bridge off the ring.
    pub fn remove(&mut self, identity: &Identity) {
        let Some(slot) = self.members.remove(identity) else { return };
        let Some(member) = self.slots.get_mut(slot as usize).and_then(Option::take) else { return };
        self.free.push(slot);
        for point in 0..member.weight() {
            let place = (self.place(b"exit bridge", identity, point), slot);
            self.all.remove(&place);
            if let Some(country) = member.country
                && let Some(points) = self.countries.get_mut(&country)
            {
                points.remove(&place);
                if points.is_empty() {
                    self.countries.remove(&country);
                }
            }
        }
    }

    /// The first `n` exit bridges from the place of `ticket` on that meet `wishes` at `now`.
    pub fn choose(&self, ticket: &TicketId, wishes: &Wishes, n: usize, now: SystemTime) -> Vec<&Member> {
        let points = match wishes.country {
            None => &self.all,
            Some(country) => match self.countries.get(&country) {
                None => return Vec::new(),
                Some(points) => points,
            },
        };
        let start = (self.place(b"ticket", &ticket.0, 0), 0);
        let mut chosen: Vec<u32> = Vec::with_capacity(n);
        for &(_, slot) in points.range(start..).chain(points.range(..start)).take(MAX_STEPS) {
            if chosen.len() == n {
                break;
            }
            let fits = || self.member(slot).is_some_and(|member| member.fits(wishes, now));
            if !chosen.contains(&slot) && fits() {
                chosen.push(slot);
            }
        }
        chosen.into_iter().filter_map(|slot| self.member(slot)).collect()
    }

    fn member(&self, slot: u32) -> Option<&Member> {
        self.slots.get(slot as usize)?.as_ref()
    }

    /// Where something stands, to who knows the key.
    fn place(&self, what: &[u8], id: &[u8; 32], point: u32) -> u64 {
        keyed(&self.key, what, id, point)
    }
}

/// A number that follows from the key and what is named, and from nothing else. The key has a fixed
/// length and comes first, and the hash is cut: nobody can extend it.
pub(crate) fn keyed(key: &[u8; 32], what: &[u8], id: &[u8; 32], point: u32) -> u64 {
    let hash = Sha256::new().chain_update(key).chain_update(what).chain_update(id);
    let hash: [u8; 32] = hash.chain_update(point.to_be_bytes()).finalize().into();
    hash.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use eebt_proto::{OnionReach, PortSet, Reach};
    use std::time::{Duration, UNIX_EPOCH};

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    fn member(n: u32) -> Member {
        let mut service = [0; 32];
        service[..4].copy_from_slice(&n.to_be_bytes());
        Member {
            line: BridgeLine {
                reach: Reach::Onion(OnionReach { service }),
                ports: PortSet::web(),
                expires: None,
            },
            country: None,
            speed: Speed::Medium,
            live_until: now() + Duration::from_secs(60),
        }
    }

    fn ring(n: u32) -> Ring {
        let mut ring = Ring::new([7; 32]);
        (0..n).for_each(|n| ring.insert(member(n)));
        ring
    }

    fn ticket(n: u32) -> TicketId {
        let mut id = [1; 32];
        id[..4].copy_from_slice(&n.to_be_bytes());
        TicketId(id)
    }

    fn ids(chosen: &[&Member]) -> Vec<Identity> {
        chosen.iter().map(|m| *m.line.reach.identity()).collect()
    }

    #[test]
    fn asking_again_gives_the_same_ones_and_others_get_others() {
        let ring = ring(1000);
        let wishes = Wishes::default();
        let mine = ids(&ring.choose(&ticket(1), &wishes, 3, now()));
        assert_eq!(mine.len(), 3);
        assert_eq!(ids(&ring.choose(&ticket(1), &wishes, 3, now())), mine);
        assert_ne!(ids(&ring.choose(&ticket(2), &wishes, 3, now())), mine);
        let mut other_key = Ring::new([8; 32]);
        (0..1000).for_each(|n| other_key.insert(member(n)));
        assert_ne!(ids(&other_key.choose(&ticket(1), &wishes, 3, now())), mine);
    }

    #[test]
    fn places_are_those_of_the_protocol() {
        // The vectors of docs/protocol.md, computed by an independent implementation.
        let hex = |text: &str| {
            <[u8; 32]>::try_from(data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap()).unwrap()
        };
        let ticket = hex("4ed9a6a27bc45ac635659de33af6d5d481f3d4ab0a1826c9df977cf101a38a4c");
        let exit_bridge = hex("8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c");
        let keyed = |what: &str, id, point| keyed(&[7; 32], what.as_bytes(), id, point);
        assert_eq!(keyed("ticket", &ticket, 0), 0xedbf_47c1_bb23_091b);
        assert_eq!(keyed("exit bridge", &exit_bridge, 0), 0xa071_1460_c4b4_1098);
        assert_eq!(keyed("exit bridge", &exit_bridge, 15), 0xf55e_b092_b909_d888);
        assert_eq!(keyed("partition", &exit_bridge, 0), 0xce20_66fa_81d0_7bcd);
    }

    #[test]
    fn the_order_of_arrival_does_not_matter() {
        let forwards = ring(200);
        let mut backwards = Ring::new([7; 32]);
        (0..300).rev().for_each(|n| backwards.insert(member(n)));
        (200..300).for_each(|n| backwards.remove(member(n).line.reach.identity()));
        for n in 0..50 {
            let choose = |ring: &Ring| ids(&ring.choose(&ticket(n), &Wishes::default(), 3, now()));
            assert_eq!(choose(&forwards), choose(&backwards));
        }
    }

    #[test]
    fn the_end_of_one_moves_only_those_who_had_it() {
        let mut ring = ring(300);
        let choose = |ring: &Ring, n| ids(&ring.choose(&ticket(n), &Wishes::default(), 3, now()));
        let before: Vec<_> = (0..500).map(|n| choose(&ring, n)).collect();
        let dead = before[0][0];
        ring.remove(&dead);
        for (n, before) in (0..500).zip(before) {
            let after = choose(&ring, n);
            if before.contains(&dead) {
                let kept: Vec<_> = before.iter().filter(|id| **id != dead).collect();
                assert_eq!(after.iter().take(2).collect::<Vec<_>>(), kept, "the other two stay");
            } else {
                assert_eq!(after, before);
            }
        }
    }

    #[test]
    fn clients_are_spread_by_speed() {
        let mut ring = Ring::new([7; 32]);
        for n in 0..200 {
            let speed = if n % 2 == 0 { Speed::Fast } else { Speed::Slow };
            ring.insert(Member { speed, ..member(n) });
        }
        let mut fast = 0;
        for n in 0..4000 {
            let first = ring.choose(&ticket(n), &Wishes::default(), 1, now());
            fast += u32::from(first[0].speed == Speed::Fast);
        }
        assert!((2900..3500).contains(&fast), "{fast} of 4000, where 3200 is their share");
    }

    #[test]
    fn wishes_are_met_or_nothing_is_given() {
        let mut ring = ring(100);
        let sweden = "SE".parse().unwrap();
        ring.insert(Member { country: Some(sweden), ..member(1000) });
        let mut web_only = member(1001);
        web_only.line.ports = "22".parse().unwrap();
        ring.insert(web_only);
        let choose = |ring: &Ring, wishes: Wishes| ids(&ring.choose(&ticket(5), &wishes, 3, now()));
        let in_sweden = Wishes { country: Some(sweden), ..Wishes::default() };
        assert_eq!(choose(&ring, in_sweden.clone()), [*member(1000).line.reach.identity()]);
        assert_eq!(choose(&ring, Wishes { port: Some(22), ..Wishes::default() }).len(), 1);
        assert_eq!(choose(&ring, Wishes { port: Some(25), ..Wishes::default() }).len(), 0);
        assert_eq!(choose(&ring, Wishes { reach: Some(ReachName::Circuit), ..Wishes::default() }).len(), 0);
        let norway = Wishes { country: Some("NO".parse().unwrap()), ..Wishes::default() };
        assert_eq!(choose(&ring, norway).len(), 0);
        // It moves: nothing of it stays behind.
        ring.insert(member(1000));
        assert_eq!(choose(&ring, in_sweden).len(), 0);
        assert!(ring.countries.is_empty());
    }

    #[test]
    fn those_whose_test_is_too_old_are_not_given() {
        let ring = ring(10);
        let later = now() + Duration::from_secs(60);
        assert!(ring.choose(&ticket(1), &Wishes::default(), 3, later).is_empty());
    }

    #[test]
    fn nothing_is_left_of_those_who_went() {
        let mut ring = ring(50);
        (0..50).for_each(|n| ring.remove(member(n).line.reach.identity()));
        assert!(ring.is_empty() && ring.all.is_empty());
        (0..50).for_each(|n| ring.insert(member(n)));
        assert_eq!((ring.len(), ring.slots.len()), (50, 50));
    }
}
