//! Admission: whose ticket is good, and how often it may be used.
//!
//! The rest of the directory knows a client by its [`TicketId`] alone and does not care how it was
//! earned: another kind of ticket gets another arm in [`Door::admit`].

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use eebt_proto::directory::Wishes;
use eebt_proto::ticket::TicketKind;
use eebt_proto::{Ticket, TicketError, TicketId, TicketTerms};
use tokio::sync::Semaphore;

use crate::ring::keyed;

/// Proofs that are checked at once. Each costs milliseconds of a core and the memory of the terms.
const CHECKS_AT_ONCE: usize = 2;

/// Proofs that may wait for their turn; whoever comes then is told to come again.
const CHECKS_WAITING: usize = 64;

/// Guests that are remembered in one generation; there are two.
const GUESTS: usize = 100_000;

/// Different wishes that one ticket may have: with each it can learn of other exit bridges.
pub const MAX_WISHES: usize = 2;

/// How many times at once, and how often over time, a ticket may ask.
pub const ASKS: Rate = Rate { burst: 8, every: Duration::from_secs(60) };

/// How many times at once, and how often over time, a ticket may report.
const REPORTS: Rate = Rate { burst: 6, every: Duration::from_secs(120) };

/// Lets tickets in.
pub struct Door {
    /// Of no day in particular.
    terms: TicketTerms,
    secret: [u8; 32],
    guests: Mutex<Guests>,
    queue: Semaphore,
    checks: Semaphore,
}

/// Why a ticket is not let in.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// The ticket.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// Too many new tickets at once.
    #[error("too many new tickets at once")]
    Busy,
}

/// A ticket is used too often.
#[derive(Debug, thiserror::Error)]
pub enum Excess {
    /// Too many requests.
    #[error("this ticket was used too often")]
    Rate {
        /// When it may be used again.
        retry_after: Duration,
    },
    /// Too many different wishes.
    #[error("wishes: this ticket has had {MAX_WISHES} different ones")]
    Wishes,
}

/// A bound on how often something happens.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Times at once.
    pub burst: u32,
    /// One more after this time.
    pub every: Duration,
}

/// How much of a [`Rate`] is used up, as the time by which all of it is there again (the generic cell
/// rate algorithm, ITU-T I.371).
#[derive(Clone, Copy, Default)]
struct Used(Option<Instant>);

impl Used {
    fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Excess> {
        let full_at = self.0.unwrap_or(now).max(now);
        let ahead = full_at - now;
        let room = rate.every * (rate.burst - 1);
        if ahead > room {
            return Err(Excess::Rate { retry_after: ahead - room });
        }
        self.0 = Some(full_at + rate.every);
        Ok(())
    }
}

/// What is remembered of a ticket, in memory only.
#[derive(Clone, Default)]
struct Guest {
    asks: Used,
    reports: Used,
    wishes: Vec<Wishes>,
}

/// Guests by ticket: the current generation, and the one before. A guest who comes again moves to the
/// current one; the older one is dropped when that is full. So memory is bounded, and whoever wants to
/// be forgotten has to pay for as many tickets.
#[derive(Default)]
struct Guests {
    current: HashMap<TicketId, Guest>,
    before: HashMap<TicketId, Guest>,
}

impl Guests {
    fn known(&self, id: &TicketId) -> bool {
        self.current.contains_key(id) || self.before.contains_key(id)
    }

    fn guest(&mut self, id: TicketId) -> &mut Guest {
        if !self.current.contains_key(&id) {
            let guest = self.before.remove(&id).unwrap_or_default();
            if self.current.len() >= GUESTS {
                self.before = std::mem::take(&mut self.current);
            }
            self.current.insert(id, guest);
        }
        self.current.entry(id).or_default()
    }
}

impl Door {
    /// With these terms, less day and seed, which follow from the secret that replicas share.
    pub fn new(terms: TicketTerms, secret: [u8; 32]) -> Self {
        Self {
            terms,
            secret,
            guests: Mutex::default(),
            queue: Semaphore::new(CHECKS_AT_ONCE + CHECKS_WAITING),
            checks: Semaphore::new(CHECKS_AT_ONCE),
        }
    }

    /// What a ticket costs here that is made now.
    pub fn terms(&self, now: SystemTime) -> TicketTerms {
        self.terms_of(day(now))
    }

    fn terms_of(&self, day: u32) -> TicketTerms {
        let mut seed = [0; 16];
        for (half, n) in seed.chunks_mut(8).zip(0..) {
            half.copy_from_slice(&keyed(&self.secret, b"ticket seed", &[n; 32], day).to_be_bytes());
        }
        TicketTerms { day, seed, ..self.terms.clone() }
    }

    /// Lets a ticket in. A new one has its proof checked, which takes a while.
    ///
    /// # Errors
    /// See [`AdmitError`].
    pub async fn admit(&self, ticket: &Ticket, now: SystemTime) -> Result<TicketId, AdmitError> {
        match ticket.kind {
            TicketKind::Argon2id => self.admit_proof(ticket, now).await,
        }
    }

    async fn admit_proof(&self, ticket: &Ticket, now: SystemTime) -> Result<TicketId, AdmitError> {
        let id = ticket.id();
        if !ticket.is_current(self.terms.days, day(now)) {
            return Err(TicketError::Day.into());
        }
        if self.guests().known(&id) {
            return Ok(id);
        }
        let _place = self.queue.try_acquire().map_err(|_| AdmitError::Busy)?;
        let _turn = self.checks.acquire().await.map_err(|_| AdmitError::Busy)?;
        let (ticket, terms) = (ticket.clone(), self.terms_of(ticket.day));
        let checked = tokio::task::spawn_blocking(move || ticket.verify(&terms)).await;
        let id = checked.map_err(|_| AdmitError::Busy)??;
        self.guests().guest(id);
        Ok(id)
    }

    /// Counts a request for exit bridges.
    ///
    /// # Errors
    /// See [`Excess`].
    pub fn count_ask(&self, id: TicketId, wishes: &Wishes) -> Result<(), Excess> {
        let mut guests = self.guests();
        let guest = guests.guest(id);
        if !guest.wishes.contains(wishes) {
            if guest.wishes.len() >= MAX_WISHES {
                return Err(Excess::Wishes);
            }
            guest.asks.take(ASKS, Instant::now())?;
            guest.wishes.push(wishes.clone());
            return Ok(());
        }
        guest.asks.take(ASKS, Instant::now())
    }

    /// Counts a report. Returns the wishes that the ticket has had: only what it was given can it report.
    ///
    /// # Errors
    /// See [`Excess`].
    pub fn count_report(&self, id: TicketId) -> Result<Vec<Wishes>, Excess> {
        let mut guests = self.guests();
        let guest = guests.guest(id);
        guest.reports.take(REPORTS, Instant::now())?;
        Ok(guest.wishes.clone())
    }

    fn guests(&self) -> std::sync::MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Days since 1970-01-01 (UTC).
pub fn day(at: SystemTime) -> u32 {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    u32::try_from(seconds / 86_400).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door() -> Door {
        let terms = TicketTerms {
            audience: [1; 32],
            day: 0,
            seed: [0; 16],
            memory_kib: 64,
            passes: 1,
            bits: 3,
            days: 30,
        };
        Door::new(terms, [5; 32])
    }

    fn ticket(door: &Door, n: u8, now: SystemTime) -> Ticket {
        Ticket::make(&door.terms(now), [n; 32], || true).unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_good_ticket_is_let_in_and_a_bad_one_is_not() {
        let (door, now) = (door(), SystemTime::now());
        let good = ticket(&door, 1, now);
        assert_eq!(door.admit(&good, now).await.unwrap(), good.id());
        // Nonces before the one that came out do not hold.
        let mut refused = 0;
        for n in 0..20 {
            let made = ticket(&door, n, now);
            if made.nonce > 0 {
                let bad = Ticket { nonce: made.nonce - 1, ..made };
                assert!(matches!(door.admit(&bad, now).await, Err(AdmitError::Ticket(TicketError::Proof))));
                refused += 1;
            }
        }
        assert!(refused > 5);
        let tomorrow = now + Duration::from_secs(86_400);
        assert_ne!(door.terms(tomorrow).seed, door.terms(now).seed);
        door.admit(&good, tomorrow).await.unwrap();
        let ahead = ticket(&door, 1, tomorrow);
        assert!(matches!(door.admit(&ahead, now).await, Err(AdmitError::Ticket(TicketError::Day))));
        let later = now + Duration::from_secs(40 * 86_400);
        assert!(matches!(door.admit(&good, later).await, Err(AdmitError::Ticket(TicketError::Day))));
    }

    #[test]
    fn a_ticket_that_asks_too_often_is_told_when_to_come_again() {
        let door = door();
        let (me, other) = (TicketId([1; 32]), TicketId([2; 32]));
        for _ in 0..ASKS.burst {
            door.count_ask(me, &Wishes::default()).unwrap();
        }
        let Err(Excess::Rate { retry_after }) = door.count_ask(me, &Wishes::default()) else { panic!() };
        assert!(retry_after <= ASKS.every && retry_after > ASKS.every / 2);
        door.count_ask(other, &Wishes::default()).unwrap();
        door.count_report(me).unwrap();
    }

    #[test]
    fn wishes_are_no_way_to_see_more() {
        let door = door();
        let me = TicketId([1; 32]);
        let wishes = |port| Wishes { port: Some(port), ..Wishes::default() };
        (0..2).for_each(|n| door.count_ask(me, &wishes(n)).unwrap());
        assert!(matches!(door.count_ask(me, &wishes(2)), Err(Excess::Wishes)));
        door.count_ask(me, &wishes(0)).unwrap();
        assert_eq!(door.count_report(me).unwrap().len(), 2);
    }

    #[test]
    fn use_comes_back_with_time() {
        let rate = Rate { burst: 2, every: Duration::from_secs(10) };
        let (mut used, start) = (Used::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(used.take(rate, at(0)).is_ok() && used.take(rate, at(0)).is_ok());
        assert!(used.take(rate, at(9)).is_err());
        assert!(used.take(rate, at(10)).is_ok());
        assert!(used.take(rate, at(11)).is_err());
        assert!(used.take(rate, at(60)).is_ok() && used.take(rate, at(60)).is_ok());
        assert!(used.take(rate, at(60)).is_err());
    }

    #[test]
    fn guests_are_forgotten_in_the_end_and_not_while_they_come() {
        let mut guests = Guests::default();
        let id = |n: u32| {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&n.to_be_bytes());
            TicketId(id)
        };
        guests.guest(id(0)).wishes.push(Wishes::default());
        for n in 1..=3 * u32::try_from(GUESTS).unwrap() {
            guests.guest(id(n));
            if n % 50_000 == 0 {
                assert_eq!(guests.guest(id(0)).wishes.len(), 1);
            }
        }
        assert!(!guests.known(&id(1)));
        assert!(guests.current.len() + guests.before.len() <= 2 * GUESTS);
    }
}
