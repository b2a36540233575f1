//! Tickets: what a client shows to an exit-bridge directory instead of who it is.
//!
//! A ticket is a random key of the client's own making. Which exit bridges it is given follows from it,
//! so asking again gives the same ones; a new one would give others, and therefore costs something:
//! memory and time, in a proof of work that is slow to make and quick to check. A ticket is made for one
//! exit-bridge directory (its onion identity), so that two of them can't tell a client again. It is made
//! with the directory's seed of the day and lasts for some weeks, so that nobody can make a hoard ahead,
//! and one that was made melts.
//!
//! The proof: `argon2id(password = key, nonce; salt = domain, audience, day, seed)` (RFC 9106, one lane)
//! begins with as many zero bits as the directory asks for.

use std::fmt;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What stands before the audience in the salt.
const DOMAIN: &[u8] = b"exit bridge ticket, version 1\n";

/// Most memory that a client spends because a directory says so, in KiB.
const MAX_MEMORY_KIB: u32 = 64 * 1024;

/// Most passes over the memory, likewise.
const MAX_PASSES: u32 = 4;

/// Most memory that is filled on average, over all proofs and passes, in KiB: about a minute's work.
const MAX_WORK_KIB: u64 = 1 << 26;

/// What an exit-bridge directory asks of a ticket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketTerms {
    /// Whom the ticket is for: the onion identity of the directory.
    #[serde(with = "crate::wire::bytes")]
    pub audience: [u8; 32],
    /// The day that it counts from, in days since 1970-01-01 (UTC): today.
    pub day: u32,
    /// What the directory drew for this day.
    #[serde(with = "crate::wire::bytes")]
    pub seed: [u8; 16],
    /// Memory, in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
    /// Zero bits that the proof begins with.
    pub bits: u8,
    /// Days that a ticket lasts from the day in it.
    pub days: u32,
}

/// A ticket, as a client keeps and shows it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// Which kind of ticket; others may come, anonymous credentials for one.
    pub kind: TicketKind,
    /// The random key.
    #[serde(with = "crate::wire::bytes")]
    pub key: [u8; 32],
    /// The day of the terms that it was made for.
    pub day: u32,
    /// What makes the proof come out.
    pub nonce: u64,
}

/// The kinds of tickets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TicketKind {
    /// A key with a proof of work.
    Argon2id,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[ticket]")
    }
}

/// What the hand-out knows of an admitted ticket, whatever its kind: the same ticket has always the
/// same one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TicketId(pub [u8; 32]);

impl fmt::Debug for TicketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[ticket]")
    }
}

/// Why a ticket is not good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Its days are over, or have not come.
    #[error("ticket: day: is over, or in the future")]
    Day,
    /// The proof does not come out.
    #[error("ticket: the proof of work does not hold for this directory's terms")]
    Proof,
    /// Terms that no client should accept.
    #[error("ticket terms: {0}: asks for more than any directory may")]
    Terms(&'static str),
}

impl TicketError {
    /// A name for programs; part of the protocol.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Day => "ticket_expired",
            Self::Proof | Self::Terms(_) => "ticket_bad",
        }
    }
}

impl TicketTerms {
    /// Can a client accept them?
    ///
    /// # Errors
    /// [`TicketError::Terms`].
    pub fn check(&self) -> Result<(), TicketError> {
        self.argon2().map(|_| ())
    }

    fn argon2(&self) -> Result<Argon2<'static>, TicketError> {
        if self.memory_kib > MAX_MEMORY_KIB {
            return Err(TicketError::Terms("memory_kib"));
        }
        if self.passes > MAX_PASSES {
            return Err(TicketError::Terms("passes"));
        }
        let each = u64::from(self.memory_kib) * u64::from(self.passes);
        if self.bits > 32 || each << self.bits > MAX_WORK_KIB {
            return Err(TicketError::Terms("bits"));
        }
        let params = Params::new(self.memory_kib, self.passes, 1, Some(8));
        let params = params.map_err(|_| TicketError::Terms("memory_kib, passes"))?;
        Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
    }
}

/// Makes the proofs of one ticket after the other, in memory that is taken once.
struct Prover<'a> {
    argon2: Argon2<'static>,
    memory: Vec<Block>,
    terms: &'a TicketTerms,
    salt: Vec<u8>,
}

impl<'a> Prover<'a> {
    fn new(terms: &'a TicketTerms) -> Result<Self, TicketError> {
        let argon2 = terms.argon2()?;
        let memory = vec![Block::default(); argon2.params().block_count()];
        let salt = [DOMAIN, &terms.audience, &terms.day.to_be_bytes(), &terms.seed].concat();
        Ok(Self { argon2, memory, terms, salt })
    }

    fn holds(&mut self, ticket: &Ticket) -> Result<bool, TicketError> {
        let mut password = ticket.key.to_vec();
        password.extend(ticket.nonce.to_be_bytes());
        let mut proof = [0; 8];
        self.argon2
            .hash_password_into_with_memory(&password, &self.salt, &mut proof, &mut self.memory)
            .map_err(|_| TicketError::Terms("memory_kib"))?;
        Ok(u64::from_be_bytes(proof).leading_zeros() >= u32::from(self.terms.bits))
    }
}

impl Ticket {
    /// Makes a ticket from a random `key`: on average 2^bits proofs, each of some milliseconds. `None`
    /// when `go_on` said no before one came out; it is asked before each.
    ///
    /// # Errors
    /// [`TicketError::Terms`] when the directory asks for too much.
    pub fn make(
        terms: &TicketTerms,
        key: [u8; 32],
        mut go_on: impl FnMut() -> bool,
    ) -> Result<Option<Self>, TicketError> {
        let mut prover = Prover::new(terms)?;
        let mut ticket = Self { kind: TicketKind::Argon2id, key, day: terms.day, nonce: 0 };
        while go_on() {
            if prover.holds(&ticket)? {
                return Ok(Some(ticket));
            }
            ticket.nonce += 1;
        }
        Ok(None)
    }

    /// Is `today` among the `days` that it lasts?
    pub fn is_current(&self, days: u32, today: u32) -> bool {
        self.day <= today && today <= self.day.saturating_add(days)
    }

    /// What it is known by, if it was made for `terms`, those of its day. Takes as long as one proof.
    ///
    /// # Errors
    /// See [`TicketError`].
    pub fn verify(&self, terms: &TicketTerms) -> Result<TicketId, TicketError> {
        if self.day != terms.day {
            return Err(TicketError::Day);
        }
        if !Prover::new(terms)?.holds(self)? {
            return Err(TicketError::Proof);
        }
        Ok(self.id())
    }

    /// What a directory knows it by; nothing is checked.
    pub fn id(&self) -> TicketId {
        let hash = Sha256::new().chain_update(DOMAIN).chain_update(self.key);
        let hash = hash.chain_update(self.day.to_be_bytes()).chain_update(self.nonce.to_be_bytes());
        TicketId(hash.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms() -> TicketTerms {
        TicketTerms {
            audience: [9; 32],
            day: 20_000,
            seed: [8; 16],
            memory_kib: 64,
            passes: 1,
            bits: 4,
            days: 30,
        }
    }

    fn ticket() -> Ticket {
        Ticket::make(&terms(), [1; 32], || true).unwrap().unwrap()
    }

    #[test]
    fn a_ticket_is_good_for_its_directory_and_its_days() {
        let ticket = ticket();
        assert_eq!(ticket.verify(&terms()), Ok(ticket.id()));
        assert!(ticket.is_current(30, 20_000) && ticket.is_current(30, 20_030));
        assert!(!ticket.is_current(30, 19_999) && !ticket.is_current(30, 20_031));
        let tomorrow = TicketTerms { day: 20_001, ..terms() };
        assert_eq!(ticket.verify(&tomorrow), Err(TicketError::Day));
        // One of 16 holds by chance.
        let refused = [
            Ticket { key: [2; 32], ..ticket.clone() }.verify(&terms()),
            Ticket { nonce: ticket.nonce + 1, ..ticket.clone() }.verify(&terms()),
            ticket.verify(&TicketTerms { audience: [8; 32], ..terms() }),
            ticket.verify(&TicketTerms { seed: [9; 16], ..terms() }),
            Ticket { day: 20_001, ..ticket.clone() }.verify(&tomorrow),
        ];
        let refused = refused.iter().filter(|result| **result == Err(TicketError::Proof)).count();
        assert!(refused >= 4, "{refused} of 5");
    }

    #[test]
    fn the_golden_ticket_comes_out() {
        // The vector of docs/protocol.md.
        let json = serde_json::to_string(&ticket()).unwrap();
        let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE";
        assert_eq!(json, format!("{{\"kind\":\"argon2id\",\"key\":\"{key}\",\"day\":20000,\"nonce\":18}}"));
        let name = "4ed9a6a27bc45ac635659de33af6d5d481f3d4ab0a1826c9df977cf101a38a4c";
        assert_eq!(data_encoding::HEXLOWER.encode(&ticket().id().0), name);
    }

    #[test]
    fn a_directory_cannot_ask_for_too_much() {
        for terms in [
            TicketTerms { memory_kib: 1 << 30, ..terms() },
            TicketTerms { passes: 1000, ..terms() },
            TicketTerms { bits: 60, ..terms() },
            TicketTerms { memory_kib: 65_536, passes: 4, bits: 10, ..terms() },
            TicketTerms { memory_kib: 0, ..terms() },
        ] {
            let made = Ticket::make(&terms, [1; 32], || true);
            assert!(matches!(made, Err(TicketError::Terms(_))), "{terms:?}");
        }
    }

    #[test]
    fn making_one_can_be_given_up() {
        let hard = TicketTerms { bits: 16, ..terms() };
        let mut left = 3;
        let made = Ticket::make(&hard, [1; 32], || {
            left -= 1;
            left > 0
        });
        assert_eq!(made, Ok(None));
    }
}
