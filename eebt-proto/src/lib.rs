//! What the roles of the exit-bridge project say to each other.
//!
//! A few nouns and no I/O: a [`BridgeLine`] names one exit bridge and how to reach it, a [`Target`]
//! is what a client asks an exit bridge for, and an [`ExitPolicy`] decides, as a pure function,
//! whether a stream may leave for it. To be found, an exit bridge sends its [`BridgeDescriptor`] to an
//! exit-bridge directory, and a client shows a [`Ticket`] there; [`directory`] has the messages. A second implementation of any role could be written from
//! this crate alone; the prose is in `docs/protocol.md`.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod attestation;
mod causes;
pub mod country;
pub mod descriptor;
pub mod directory;
pub mod hosts;
pub mod limits;
pub mod line;
pub mod policy;
pub mod ports;
pub mod reach;
pub mod special_use;
pub mod target;
pub mod ticket;
mod wire;

pub use attestation::{Attestation, AttestationRequest};
pub use causes::causes;
pub use country::Country;
pub use descriptor::{BridgeDescriptor, DescriptorError, SignedDocument, UnverifiedDescriptor, Withdrawal};
pub use hosts::{HostRules, HostSet, HostSetError};
pub use line::{BridgeLine, LineError};
pub use policy::{ExitPolicy, Refusal, Surroundings};
pub use ports::{PortSet, PortSetError};
pub use reach::{CircuitReach, OnionReach, Reach};
pub use target::{Host, Target, TargetError};
pub use ticket::{Ticket, TicketError, TicketId, TicketTerms};
pub use wire::{JsonError, from_json};
