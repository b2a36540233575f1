//! What the exit-bridge directory remembers: one trait, two databases, one suite of tests for both.
//!
//! Nothing of clients is in it: no ticket, no address, no count. Of exit bridges there is what they
//! signed and what tests found out, their egress addresses included; those leave it for nowhere.

#[cfg(test)]
mod conformance;
pub mod postgres;
mod sql;
pub mod sqlite;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use eebt_proto::directory::{Speed, Standing};
use eebt_proto::{BridgeDescriptor, BridgeLine, Country};

use crate::ring::Identity;

/// Why the store did not do it. The text is the database's own and names no exit bridge.
#[derive(Debug, thiserror::Error)]
#[error("store: {doing}")]
pub struct StoreError {
    /// What was attempted.
    pub doing: &'static str,
    /// What the database said.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// What the store answers.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Who is given an exit bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partition {
    /// Clients that ask.
    Open,
    /// Nobody, for now.
    Reserve,
    /// Whom the operator gives it to, by pools.
    Private,
}

/// What the store knows of an exit bridge.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// How to reach it, as it signed it; whose identity it is.
    pub line: BridgeLine,
    /// When it signed that last.
    pub published: SystemTime,
    /// Until when that is valid.
    pub expires: SystemTime,
    /// Where it says that it is.
    pub claimed_country: Option<Country>,
    /// Who is given it.
    pub partition: Partition,
    /// It said that it does not want to be handed out any more.
    pub withdrawn: bool,
    /// What tests found out.
    pub test: Test,
}

impl Record {
    /// Whose it is.
    pub fn identity(&self) -> &Identity {
        self.line.reach.identity()
    }
}

/// What tests found out about an exit bridge.
#[derive(Clone, Debug, PartialEq)]
pub struct Test {
    /// The result, in one word.
    pub standing: Standing,
    /// Until when it may be handed out; the epoch when it may not.
    pub live_until: SystemTime,
    /// Its egress address, while it may be handed out. Nobody else may have it.
    pub egress: Option<IpAddr>,
    /// Where that address is; where it says that it is, if the address does not tell.
    pub country: Option<Country>,
    /// From the request to the first byte.
    pub latency: Option<Duration>,
    /// Its throughput.
    pub speed: Speed,
    /// Tests in a row that failed.
    pub failures: u32,
    /// When it is tested next.
    pub next: SystemTime,
}

/// What became of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is kept.
    Kept {
        /// Where the exit bridge stands.
        standing: Standing,
        /// Nothing of this identity was kept before.
        new: bool,
    },
    /// One that was signed at the same time or later is there already.
    Replayed,
}

/// What became of a withdrawal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// It is not handed out any more.
    Done,
    /// Something that was signed at the same time or later is there already.
    Replayed,
    /// There is no such exit bridge.
    Unknown,
}

/// What became of a test's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noted {
    /// It is kept.
    Kept,
    /// Another exit bridge that is being handed out has this egress address. Nothing was changed.
    EgressShared,
    /// The exit bridge is gone.
    Gone,
}

/// How many exit bridges there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Of which something is kept, those included that have expired or withdrew: they are kept for as long as what
    /// they signed could be replayed.
    pub kept: u64,
    /// Valid and not withdrawn.
    pub registered: u64,
    /// Of those registered: did not pass their last test, or had none.
    pub untested: u64,
    /// Of those registered: serve, and their next test should have begun [`LATE`] ago.
    pub overdue: u64,
}

/// How late a test may be and nobody is told.
pub const LATE: Duration = Duration::from_secs(60);

/// A pool of exit bridges that an operator hands out himself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// How many exit bridges should be in it.
    pub size: u32,
    /// How many are there and work.
    pub live: u32,
}

/// A point in the order of changes; see [`Store::changes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// When the last one that was read changed.
    pub at: SystemTime,
    /// Which one it was.
    pub identity: Identity,
}

impl Cursor {
    /// Before all that changed at `at` or later.
    pub fn before(at: SystemTime) -> Self {
        Self { at, identity: [0; 32] }
    }
}

/// The store. Each call is one transaction, and done for good when it returns.
#[async_trait]
pub trait Store: Send + Sync {
    /// A random secret that all replicas share, made at the first call.
    async fn secret(&self) -> Result<[u8; 32]>;

    /// Keeps a verified descriptor. A new exit bridge, or one whose line changed, or that had expired or withdrawn, is
    /// tested at `now`, or a minute after its last test if that is later, and is not handed out before.
    async fn put(&self, new: &BridgeDescriptor, partition: Partition, now: SystemTime) -> Result<Put>;

    /// Keeps a verified withdrawal. The exit bridge is due for no test any more.
    async fn withdraw(
        &self,
        identity: &Identity,
        published: SystemTime,
        now: SystemTime,
    ) -> Result<Withdrawn>;

    /// Up to `limit` exit bridges that are due for a test, which nobody else is given before `until`.
    async fn claim_due(&self, limit: u32, now: SystemTime, until: SystemTime) -> Result<Vec<Record>>;

    /// Has an exit bridge tested at `now`, if its last test began before `before`.
    async fn hurry(&self, identity: &Identity, before: SystemTime, now: SystemTime) -> Result<()>;

    /// Keeps the result of a test of one that was claimed. If its line has changed since, nothing is kept.
    async fn note(&self, identity: &Identity, test: &Test, now: SystemTime) -> Result<Noted>;

    /// Up to `limit` records that changed after `cursor`, in order, each with the cursor behind it.
    async fn changes(&self, cursor: Cursor, limit: u32) -> Result<Vec<(Cursor, Record)>>;

    /// Forgets what nobody needs: descriptors that have expired and can't be replayed either. Those that have expired
    /// and are kept are due for no test any more. How many were forgotten?
    async fn expire(&self, now: SystemTime) -> Result<u64>;

    /// What is kept of this identity, also if it has expired or withdrew.
    async fn find(&self, identity: &Identity) -> Result<Option<Record>>;

    /// How many exit bridges there are at `now`.
    async fn counts(&self, now: SystemTime) -> Result<Counts>;

    /// Makes a pool, or changes its size. One that shrinks keeps the exit bridges that it has: they were
    /// given to people. It gets no more before there is room.
    async fn set_pool(&self, name: &str, size: u32) -> Result<()>;

    /// Ends a pool; its exit bridges are free for others. Was it there?
    async fn remove_pool(&self, name: &str) -> Result<bool>;

    /// All pools, by name.
    async fn pools(&self, now: SystemTime) -> Result<Vec<Pool>>;

    /// Fills up a pool, where there is such a one, from the private exit bridges that work and are in none.
    /// Those in it that do not work now are not counted, and stay.
    async fn fill_pool(&self, name: &str, now: SystemTime) -> Result<()>;

    /// The bridge lines in a pool that work at `now`.
    async fn pool_lines(&self, name: &str, now: SystemTime) -> Result<Vec<BridgeLine>>;
}
