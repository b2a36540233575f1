//! Tickets: what a client shows to an exit-bridge directory instead of who it is.
//!
//! A ticket is a random key of the client's own making. Which exit bridges it is given follows from it,
//! so asking again gives the same ones; a new one would give others, and therefore costs something:
//! memory and time, in a proof of work that is slow to make and quick to check. A ticket is made for one
//! exit-bridge directory (its onion identity), so that two of them can't tell a client again, and it
//! lasts for some weeks, so that a hoard of them melts.
//!
//! The proof: `argon2id(password = key, day, nonce; salt = domain, audience)` (RFC 9106, one lane) begins
//! with as many zero bits as the directory asks for.

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

/// Most zero bits, likewise.
const MAX_BITS: u8 = 16;

/// What an exit-bridge directory asks of a ticket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketTerms {
    /// Whom the ticket is for: the onion identity of the directory.
    #[serde(with = "crate::wire::bytes")]
    pub audience: [u8; 32],
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
    /// The day it was made, in days since 1970-01-01 (UTC).
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
        if self.bits > MAX_BITS {
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
        Ok(Self { argon2, memory, terms, salt: [DOMAIN, &terms.audience].concat() })
    }

    fn holds(&mut self, ticket: &Ticket) -> Result<bool, TicketError> {
        let mut password = ticket.key.to_vec();
        password.extend(ticket.day.to_be_bytes());
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
        today: u32,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<Option<Self>, TicketError> {
        let mut prover = Prover::new(terms)?;
        let mut ticket = Self { kind: TicketKind::Argon2id, key, day: today, nonce: 0 };
        while go_on() {
            if prover.holds(&ticket)? {
                return Ok(Some(ticket));
            }
            ticket.nonce += 1;
        }
        Ok(None)
    }

    /// Is `today` among its days? A day of grace on either side, for clocks.
    pub fn is_current(&self, terms: &TicketTerms, today: u32) -> bool {
        self.day <= today.saturating_add(1) && today <= self.day.saturating_add(terms.days)
    }

    /// What it is known by, if its day and its proof are right. Takes as long as one proof.
    ///
    /// # Errors
    /// See [`TicketError`].
    pub fn verify(&self, terms: &TicketTerms, today: u32) -> Result<TicketId, TicketError> {
        if !self.is_current(terms, today) {
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
        TicketTerms { audience: [9; 32], memory_kib: 64, passes: 1, bits: 4, days: 30 }
    }

    fn ticket() -> Ticket {
        Ticket::make(&terms(), [1; 32], 20_000, || true).unwrap().unwrap()
    }

    #[test]
    fn a_ticket_is_good_for_its_directory_and_its_days() {
        let ticket = ticket();
        assert_eq!(ticket.verify(&terms(), 20_000), Ok(ticket.id()));
        assert!(ticket.verify(&terms(), 19_999).is_ok() && ticket.verify(&terms(), 20_030).is_ok());
        assert_eq!(ticket.verify(&terms(), 20_031), Err(TicketError::Day));
        assert_eq!(ticket.verify(&terms(), 19_998), Err(TicketError::Day));
        // One of 16 would hold by chance: ask for a day, a key and an audience.
        let others = [
            Ticket { day: 20_001, ..ticket.clone() },
            Ticket { key: [2; 32], ..ticket.clone() },
            Ticket { nonce: ticket.nonce + 1, ..ticket.clone() },
        ];
        let elsewhere = TicketTerms { audience: [8; 32], ..terms() };
        let refused = others.iter().filter(|t| t.verify(&terms(), 20_000).is_err()).count()
            + usize::from(ticket.verify(&elsewhere, 20_000).is_err());
        assert!(refused >= 3, "{refused} of 4");
    }

    #[test]
    fn the_golden_ticket_comes_out() {
        // The vector of docs/protocol.md.
        let json = serde_json::to_string(&ticket()).unwrap();
        let expected = format!(
            "{{\"kind\":\"argon2id\",\"key\":\"{}\",\"day\":20000,\"nonce\":{}}}",
            "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE",
            ticket().nonce
        );
        assert_eq!(json, expected);
        assert_eq!(ticket().nonce, GOLDEN_NONCE);
    }

    /// Of the vector in docs/protocol.md.
    const GOLDEN_NONCE: u64 = 21;

    #[test]
    fn a_directory_cannot_ask_for_too_much() {
        for terms in [
            TicketTerms { memory_kib: 1 << 30, ..terms() },
            TicketTerms { passes: 1000, ..terms() },
            TicketTerms { bits: 60, ..terms() },
            TicketTerms { memory_kib: 0, ..terms() },
        ] {
            let made = Ticket::make(&terms, [1; 32], 1, || true);
            assert!(matches!(made, Err(TicketError::Terms(_))), "{terms:?}");
        }
    }

    #[test]
    fn making_one_can_be_given_up() {
        let hard = TicketTerms { bits: 16, ..terms() };
        let mut left = 3;
        let made = Ticket::make(&hard, [1; 32], 1, || {
            left -= 1;
            left > 0
        });
        assert_eq!(made, Ok(None));
    }
}
