//! The statements, once for both databases, and what their columns mean.
//!
//! Parameters are written `$1` as PostgreSQL has them; SQLite says `?1`. Times are milliseconds since
//! 1970, 0 for never.

use std::fmt::Display;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use eebt_proto::BridgeLine;
use eebt_proto::directory::{Speed, Standing};

use super::{Counts, Noted, Partition, Put, Record, Test, Withdrawn};

/// Version of the tables. A database of another one is not touched.
pub const VERSION: i64 = 1;

/// Makes the tables, in a transaction, where there is no table `version`. In PostgreSQL `BLOB` is `BYTEA`,
/// and texts are compared byte by byte, as in SQLite, whatever the language of the database.
///
/// `pool` is meant while `part` is 'private', `egress` while `live_until` lasts. `tested` is when the last
/// test began, 0 for never; negative once the line has changed since.
pub const TABLES: &str = "
CREATE TABLE bridges (
    identity BLOB PRIMARY KEY,
    line TEXT NOT NULL,
    published BIGINT NOT NULL,
    expires BIGINT NOT NULL,
    claimed_country TEXT,
    capacity BIGINT NOT NULL,
    software TEXT NOT NULL,
    part TEXT NOT NULL,
    pool TEXT,
    withdrawn BIGINT NOT NULL DEFAULT 0,
    standing TEXT NOT NULL DEFAULT 'waiting',
    live_until BIGINT NOT NULL DEFAULT 0,
    egress TEXT,
    country TEXT,
    latency BIGINT,
    speed TEXT NOT NULL DEFAULT 'medium',
    failures BIGINT NOT NULL DEFAULT 0,
    tested BIGINT NOT NULL DEFAULT 0,
    next_test BIGINT NOT NULL,
    changed BIGINT NOT NULL
);
CREATE INDEX bridges_next_test ON bridges (next_test);
CREATE INDEX bridges_changed ON bridges (changed, identity);
CREATE INDEX bridges_published ON bridges (published);
CREATE INDEX bridges_pool ON bridges (part, pool);
CREATE UNIQUE INDEX bridges_egress ON bridges (egress) WHERE egress IS NOT NULL;
CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE pools (name TEXT PRIMARY KEY, size BIGINT NOT NULL);
CREATE TABLE version (only_row BIGINT PRIMARY KEY, version BIGINT NOT NULL);
";

pub const SET_VERSION: &str = "INSERT INTO version VALUES (1, $1)";
pub const GET_VERSION: &str = "SELECT version FROM version";

/// Refuses a database that another version of this program made.
pub fn check_version(found: i64) -> Result<(), String> {
    match found {
        VERSION => Ok(()),
        _ => Err(format!("it is of version {found}, this program of {VERSION}")),
    }
}

pub const SET_SECRET: &str = "INSERT INTO secrets VALUES ('ring', $1) ON CONFLICT DO NOTHING";
pub const GET_SECRET: &str = "SELECT value FROM secrets WHERE name = 'ring'";

/// identity, line, published, expires, claimed_country, capacity, software, part, now. No row: replayed.
/// One that is [`ANEW`] is as a new one, but is not tested sooner than a minute after its last test.
pub const PUT: &str = "
INSERT INTO bridges (identity, line, published, expires, claimed_country, capacity, software, part, next_test, changed)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)
ON CONFLICT (identity) DO UPDATE SET
    line = excluded.line, published = excluded.published, expires = excluded.expires,
    claimed_country = excluded.claimed_country, capacity = excluded.capacity,
    software = excluded.software, part = excluded.part, withdrawn = 0, changed = excluded.changed,
    standing = CASE WHEN {ANEW} THEN 'waiting' ELSE bridges.standing END,
    live_until = CASE WHEN {ANEW} THEN 0 ELSE bridges.live_until END,
    egress = CASE WHEN {ANEW} THEN NULL ELSE bridges.egress END,
    next_test = CASE WHEN NOT {ANEW} THEN bridges.next_test
        WHEN ABS(bridges.tested) + 60000 > excluded.next_test THEN ABS(bridges.tested) + 60000
        ELSE excluded.next_test END,
    tested = CASE WHEN {ANEW} THEN -ABS(bridges.tested) ELSE bridges.tested END,
    failures = CASE WHEN {ANEW} THEN 0 ELSE bridges.failures END
WHERE bridges.published < excluded.published
RETURNING standing";

/// Whether what tests found out does not hold for what is put: the line is another one, or the exit bridge was
/// gone meanwhile.
pub const ANEW: &str =
    "(bridges.line <> excluded.line OR bridges.withdrawn <> 0 OR bridges.expires <= excluded.changed)";

/// identity, published, now. No row: replayed or unknown. What is gone is due for no test before the year 10000,
/// or whoever looks for those that are due had to look through it each time.
pub const WITHDRAW: &str = "
UPDATE bridges SET withdrawn = 1, published = $2, live_until = 0, egress = NULL, standing = 'waiting',
    next_test = 253402300800000, changed = $3
WHERE identity = $1 AND published < $2";
pub const IS_KNOWN: &str = "SELECT COUNT(*) FROM bridges WHERE identity = $1";
pub const FIND: &str = "SELECT {RECORD} FROM bridges WHERE identity = $1";

/// limit, now, until. Those who passed before come first: a flood of new ones can't keep them from being
/// tested in time. Materialized, or PostgreSQL may look more than once and take more than the limit.
pub const CLAIM_DUE: &str = "
WITH due AS MATERIALIZED (
    SELECT identity FROM bridges WHERE next_test <= $2 AND withdrawn = 0 AND expires > $2
    ORDER BY CASE WHEN standing = 'serving' THEN 0 ELSE 1 END, next_test LIMIT $1 {SKIP_LOCKED})
UPDATE bridges SET next_test = $3, tested = $2 WHERE identity IN (SELECT identity FROM due)
RETURNING {RECORD}";

/// identity, before, now.
pub const HURRY: &str = "
UPDATE bridges SET next_test = $3
WHERE identity = $1 AND tested < $2 AND next_test > $3 AND withdrawn = 0 AND expires > $3";

/// egress, identity, now: whoever has the address and is not handed out any more gives it up.
pub const FREE_EGRESS: &str = "
UPDATE bridges SET egress = NULL, live_until = 0, changed = $3
WHERE egress = $1 AND identity <> $2 AND (live_until <= $3 OR expires <= $3)";

/// identity, standing, live_until, egress, country, latency, speed, failures, next_test, now. No row:
/// somebody else has the address, or the exit bridge is gone or has another line than was tested.
pub const NOTE: &str = "
UPDATE bridges SET standing = $2, live_until = $3, egress = $4, country = $5, latency = $6, speed = $7,
    failures = $8, next_test = $9, changed = $10
WHERE identity = $1 AND withdrawn = 0 AND tested >= 0 AND NOT EXISTS (
    SELECT 1 FROM bridges AS other WHERE other.egress = $4 AND other.identity <> $1)";
pub const IS_HERE: &str =
    "SELECT COUNT(*) FROM bridges WHERE identity = $1 AND withdrawn = 0 AND tested >= 0";

/// at, identity, limit.
pub const CHANGES: &str = "
SELECT {RECORD}, changed FROM bridges WHERE (changed, identity) > ($1, $2)
ORDER BY changed, identity LIMIT $3";

/// Now, and the time before which whatever was signed has expired.
pub const EXPIRE: &str = "DELETE FROM bridges WHERE expires <= $1 AND published <= $2";
/// now: those that have expired are due for no test any more, as those that withdrew.
pub const REST: &str = "
UPDATE bridges SET next_test = 253402300800000 WHERE next_test <= $1 AND (expires <= $1 OR withdrawn <> 0)";

/// now, and the time by which tests should have begun. The columns are those of [`counts`].
pub const COUNTS: &str = "
SELECT COUNT(*),
    COUNT(CASE WHEN expires > $1 AND withdrawn = 0 THEN 1 END),
    COUNT(CASE WHEN expires > $1 AND withdrawn = 0 AND standing <> 'serving' THEN 1 END),
    COUNT(CASE WHEN expires > $1 AND withdrawn = 0 AND standing = 'serving' AND next_test <= $2 THEN 1 END)
FROM bridges";

pub const SET_POOL: &str =
    "INSERT INTO pools VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET size = excluded.size";
pub const REMOVE_POOL: &str = "DELETE FROM pools WHERE name = $1";
pub const EMPTY_POOL: &str = "UPDATE bridges SET pool = NULL WHERE pool = $1";
pub const POOLS: &str = "
SELECT name, size, (SELECT COUNT(*) FROM bridges
    WHERE part = 'private' AND pool = name AND live_until > $1 AND expires > $1) FROM pools ORDER BY name";

/// name, now.
pub const FILL_POOL: &str = "
UPDATE bridges SET pool = $1 WHERE identity IN (
    SELECT identity FROM bridges WHERE part = 'private' AND pool IS NULL AND live_until > $2 AND expires > $2
    ORDER BY identity LIMIT COALESCE((SELECT CASE WHEN size > filled THEN size - filled ELSE 0 END FROM (
        SELECT size, (SELECT COUNT(*) FROM bridges
            WHERE part = 'private' AND pool = $1 AND live_until > $2 AND expires > $2) AS filled
        FROM pools WHERE name = $1) AS found), 0))";

/// name, now.
pub const POOL_LINES: &str = "
SELECT line FROM bridges WHERE part = 'private' AND pool = $1 AND live_until > $2 AND expires > $2
ORDER BY identity";

/// The columns of a [`RawRecord`].
pub const RECORD: &str = "identity, line, published, expires, claimed_country, part, withdrawn, standing, \
    live_until, egress, country, latency, speed, failures, next_test";

/// The columns of a record as the databases have them.
pub struct RawRecord {
    pub line: String,
    pub published: i64,
    pub expires: i64,
    pub claimed_country: Option<String>,
    pub part: String,
    pub withdrawn: i64,
    pub standing: String,
    pub live_until: i64,
    pub egress: Option<String>,
    pub country: Option<String>,
    pub latency: Option<i64>,
    pub speed: String,
    pub failures: i64,
    pub next_test: i64,
}

/// A value in the database that no version of this program writes.
#[derive(Debug, thiserror::Error)]
#[error("column {0} holds a value that is not understood")]
pub struct Unreadable(pub &'static str);

impl TryFrom<RawRecord> for Record {
    type Error = Unreadable;

    fn try_from(raw: RawRecord) -> Result<Self, Unreadable> {
        fn read<T: FromStr>(text: Option<String>, column: &'static str) -> Result<Option<T>, Unreadable> {
            text.map(|text| text.parse().map_err(|_| Unreadable(column))).transpose()
        }
        let line: BridgeLine = raw.line.parse().map_err(|_| Unreadable("line"))?;
        Ok(Self {
            line,
            published: time(raw.published),
            expires: time(raw.expires),
            claimed_country: read(raw.claimed_country, "claimed_country")?,
            partition: match raw.part.as_str() {
                "open" => Partition::Open,
                "reserve" => Partition::Reserve,
                "private" => Partition::Private,
                _ => return Err(Unreadable("part")),
            },
            withdrawn: raw.withdrawn != 0,
            test: Test {
                standing: from_name(&raw.standing).ok_or(Unreadable("standing"))?,
                live_until: time(raw.live_until),
                egress: read(raw.egress, "egress")?,
                country: read(raw.country, "country")?,
                latency: raw.latency.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or_default())),
                speed: from_name(&raw.speed).ok_or(Unreadable("speed"))?,
                failures: u32::try_from(raw.failures).unwrap_or_default(),
                next: time(raw.next_test),
            },
        })
    }
}

/// How a partition is written.
pub fn part(partition: Partition) -> &'static str {
    match partition {
        Partition::Open => "open",
        Partition::Reserve => "reserve",
        Partition::Private => "private",
    }
}

/// How a standing is written: as in the protocol.
pub fn standing(standing: Standing) -> String {
    name(&standing)
}

/// How a speed is written: as in the protocol.
pub fn speed(speed: Speed) -> String {
    name(&speed)
}

fn name(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

fn from_name<T: serde::de::DeserializeOwned>(name: &str) -> Option<T> {
    serde_json::from_value(name.into()).ok()
}

/// The text of a value that may be missing.
pub fn text(value: Option<impl Display>) -> Option<String> {
    value.map(|value| value.to_string())
}

/// A time as a column has it.
pub fn millis(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A column as a time.
pub fn time(millis: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or_default())
}

/// A latency as a column has it.
pub fn latency(latency: Option<Duration>) -> Option<i64> {
    latency.map(|latency| i64::try_from(latency.as_millis()).unwrap_or(i64::MAX))
}

/// What [`PUT`] returned, and [`IS_KNOWN`] counted before.
pub fn put(standing: Option<&str>, known: i64) -> Result<Put, Unreadable> {
    let Some(name) = standing else { return Ok(Put::Replayed) };
    let standing = from_name(name).ok_or(Unreadable("standing"))?;
    Ok(Put::Kept { standing, new: known == 0 })
}

/// What [`COUNTS`] counted.
pub fn counts([kept, registered, untested, overdue]: [i64; 4]) -> Counts {
    let count = |n| u64::try_from(n).unwrap_or_default();
    Counts {
        kept: count(kept),
        registered: count(registered),
        untested: count(untested),
        overdue: count(overdue),
    }
}

/// What became of a test's result that changed no row, by what [`IS_HERE`] counted.
pub fn not_noted(here: i64) -> Noted {
    match here {
        0 => Noted::Gone,
        _ => Noted::EgressShared,
    }
}

/// What [`WITHDRAW`] changed, and [`IS_KNOWN`] counted.
pub fn withdrawn(changed: u64, known: i64) -> Withdrawn {
    match (changed, known) {
        (1.., _) => Withdrawn::Done,
        (0, 0) => Withdrawn::Unknown,
        (0, _) => Withdrawn::Replayed,
    }
}
