//! The store in a SQLite file: for one machine, and the default.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use eebt_proto::limits::MAX_VALIDITY;
use eebt_proto::{BridgeDescriptor, BridgeLine};
use rusqlite::{Connection, OptionalExtension as _, Params, Row, TransactionBehavior, params};

use super::sql::{self, RawRecord, millis};
use super::{
    Counts, Cursor, LATE, Noted, Partition, Pool, Put, Record, Result, Store, StoreError, Test, Withdrawn,
};
use crate::ring::Identity;

/// How long another process (`hebtor-directory pool`) may hold the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

const HAS_TABLES: &str = "SELECT COUNT(*) FROM sqlite_master WHERE name = 'version'";

/// The store in a SQLite file.
pub struct Sqlite {
    connection: Arc<Mutex<Connection>>,
}

type Boxed = Box<dyn std::error::Error + Send + Sync>;

/// A statement in SQLite's form.
fn statement(text: &str) -> String {
    let text = text.replace("{RECORD}", sql::RECORD).replace("{ANEW}", sql::ANEW);
    text.replace('$', "?").replace("{SKIP_LOCKED}", "")
}

/// Has a connection write ahead. SQLite does not wait for others that change the same at that moment, whatever its busy
/// timeout: it says at once that the file is busy.
fn write_ahead(connection: &Connection) -> rusqlite::Result<()> {
    let start = Instant::now();
    loop {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Err(error)
                if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
                    && start.elapsed() < BUSY_TIMEOUT =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            done => return done,
        }
    }
}

impl Sqlite {
    /// Opens the file, and makes it for its owner only where there is none.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e: Boxed| StoreError { doing: "cannot open the database", source: e };
        let open = || -> std::result::Result<Connection, Boxed> {
            use std::os::unix::fs::OpenOptionsExt as _;
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            // Made by us, so that nobody else may read it, not even for a moment.
            std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
            let mut connection = Connection::open(path)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            write_ahead(&connection)?;
            // Whatever was accepted survives a power cut as well.
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.set_prepared_statement_cache_capacity(64);
            // One after another, should two processes start at once.
            let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            if tx.query_row(HAS_TABLES, [], |row| row.get::<_, i64>(0))? == 0 {
                tx.execute_batch(sql::TABLES)?;
                tx.execute(&statement(sql::SET_VERSION), [sql::VERSION])?;
            }
            sql::check_version(tx.query_row(sql::GET_VERSION, [], |row| row.get(0))?)?;
            tx.commit()?;
            Ok(connection)
        };
        Ok(Self { connection: Arc::new(Mutex::new(open().map_err(failed)?)) })
    }

    /// Runs `call` where it may block.
    async fn with<T, F>(&self, doing: &'static str, call: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> std::result::Result<T, Boxed> + Send + 'static,
    {
        let connection = Arc::clone(&self.connection);
        let call = move || call(&mut connection.lock().unwrap_or_else(PoisonError::into_inner));
        let done = tokio::task::spawn_blocking(call).await.unwrap_or_else(|e| Err(e.into()));
        done.map_err(|source| StoreError { doing, source })
    }

    /// Runs one statement; how many rows it changed.
    async fn execute<P: Params + Send + 'static>(
        &self,
        doing: &'static str,
        text: &'static str,
        params: P,
    ) -> Result<usize> {
        self.with(doing, move |c| Ok(c.prepare_cached(&statement(text))?.execute(params)?)).await
    }
}

fn raw(row: &Row<'_>) -> rusqlite::Result<RawRecord> {
    Ok(RawRecord {
        line: row.get("line")?,
        published: row.get("published")?,
        expires: row.get("expires")?,
        claimed_country: row.get("claimed_country")?,
        part: row.get("part")?,
        withdrawn: row.get("withdrawn")?,
        standing: row.get("standing")?,
        live_until: row.get("live_until")?,
        egress: row.get("egress")?,
        country: row.get("country")?,
        latency: row.get("latency")?,
        speed: row.get("speed")?,
        failures: row.get("failures")?,
        next_test: row.get("next_test")?,
    })
}

#[async_trait]
impl Store for Sqlite {
    async fn secret(&self) -> Result<[u8; 32]> {
        let fresh: [u8; 32] = rand::random();
        self.with("cannot read the secret", move |c| {
            c.execute(&statement(sql::SET_SECRET), [fresh])?;
            Ok(c.query_row(sql::GET_SECRET, [], |row| row.get(0))?)
        })
        .await
    }

    async fn put(&self, new: &BridgeDescriptor, partition: Partition, now: SystemTime) -> Result<Put> {
        let new = new.clone();
        self.with("cannot keep a descriptor", move |c| {
            let known: i64 = c
                .prepare_cached(&statement(sql::IS_KNOWN))?
                .query_row(params![new.identity()], |row| row.get(0))?;
            let standing: Option<String> = c
                .prepare_cached(&statement(sql::PUT))?
                .query_row(
                    params![
                        new.identity(),
                        new.line.to_string(),
                        millis(new.published),
                        millis(new.expires),
                        sql::text(new.country),
                        i64::from(new.capacity),
                        new.software,
                        sql::part(partition),
                        millis(now),
                    ],
                    |row| row.get(0),
                )
                .optional()?;
            sql::put(standing.as_deref(), known).map_err(Into::into)
        })
        .await
    }

    async fn withdraw(
        &self,
        identity: &Identity,
        published: SystemTime,
        now: SystemTime,
    ) -> Result<Withdrawn> {
        let identity = *identity;
        self.with("cannot keep a withdrawal", move |c| {
            let tx = c.transaction()?;
            let changed =
                tx.execute(&statement(sql::WITHDRAW), params![identity, millis(published), millis(now)])?;
            let known: i64 = tx.query_row(&statement(sql::IS_KNOWN), [identity], |row| row.get(0))?;
            tx.commit()?;
            Ok(sql::withdrawn(changed as u64, known))
        })
        .await
    }

    async fn claim_due(&self, limit: u32, now: SystemTime, until: SystemTime) -> Result<Vec<Record>> {
        self.with("cannot read who is due for a test", move |c| {
            let mut claim = c.prepare_cached(&statement(sql::CLAIM_DUE))?;
            let rows = claim.query_map(params![limit, millis(now), millis(until)], raw)?;
            rows.map(|row| Ok(row?.try_into()?)).collect()
        })
        .await
    }

    async fn hurry(&self, identity: &Identity, before: SystemTime, now: SystemTime) -> Result<()> {
        let params = (*identity, millis(before), millis(now));
        self.execute("cannot bring a test forward", sql::HURRY, params).await.map(|_| ())
    }

    async fn note(&self, identity: &Identity, test: &Test, now: SystemTime) -> Result<Noted> {
        let (identity, test) = (*identity, test.clone());
        self.with("cannot keep the result of a test", move |c| {
            let tx = c.transaction()?;
            let egress = sql::text(test.egress);
            tx.execute(&statement(sql::FREE_EGRESS), params![egress, identity, millis(now)])?;
            let changed = tx.execute(
                &statement(sql::NOTE),
                params![
                    identity,
                    sql::standing(test.standing),
                    millis(test.live_until),
                    egress,
                    sql::text(test.country),
                    sql::latency(test.latency),
                    sql::speed(test.speed),
                    test.failures,
                    millis(test.next),
                    millis(now),
                ],
            )?;
            if changed == 0 {
                let here: i64 = tx.query_row(&statement(sql::IS_HERE), [identity], |row| row.get(0))?;
                return Ok(sql::not_noted(here)); // Nothing is committed.
            }
            tx.commit()?;
            Ok(Noted::Kept)
        })
        .await
    }

    async fn changes(&self, cursor: Cursor, limit: u32) -> Result<Vec<(Cursor, Record)>> {
        self.with("cannot read what changed", move |c| {
            let mut changes = c.prepare_cached(&statement(sql::CHANGES))?;
            changes
                .query_map(params![millis(cursor.at), cursor.identity, limit], |row| {
                    Ok((row.get::<_, i64>("changed")?, raw(row)?))
                })?
                .map(|row| {
                    let (at, raw) = row?;
                    let record: Record = raw.try_into()?;
                    Ok((Cursor { at: sql::time(at), identity: *record.identity() }, record))
                })
                .collect()
        })
        .await
    }

    async fn expire(&self, now: SystemTime) -> Result<u64> {
        self.with("cannot forget old descriptors", move |c| {
            let tx = c.transaction_with_behavior(TransactionBehavior::Immediate)?;
            tx.execute(&statement(sql::REST), [millis(now)])?;
            let forgotten =
                tx.execute(&statement(sql::EXPIRE), params![millis(now), millis(now - MAX_VALIDITY)])?;
            tx.commit()?;
            Ok(forgotten as u64)
        })
        .await
    }

    async fn counts(&self, now: SystemTime) -> Result<Counts> {
        self.with("cannot count exit bridges", move |c| {
            let mut counts = c.prepare_cached(&statement(sql::COUNTS))?;
            let columns = counts.query_row(params![millis(now), millis(now - LATE)], |row| {
                Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?])
            })?;
            Ok(sql::counts(columns))
        })
        .await
    }

    async fn find(&self, identity: &Identity) -> Result<Option<Record>> {
        let identity = *identity;
        self.with("cannot look for an exit bridge", move |c| {
            let found = c.prepare_cached(&statement(sql::FIND))?.query_row([identity], raw).optional()?;
            Ok(found.map(Record::try_from).transpose()?)
        })
        .await
    }

    async fn set_pool(&self, name: &str, size: u32) -> Result<()> {
        let params = (name.to_owned(), size);
        self.execute("cannot keep the pool", sql::SET_POOL, params).await.map(|_| ())
    }

    async fn remove_pool(&self, name: &str) -> Result<bool> {
        let name = name.to_owned();
        self.with("cannot end the pool", move |c| {
            let tx = c.transaction()?;
            tx.execute(&statement(sql::EMPTY_POOL), [&name])?;
            let removed = tx.execute(&statement(sql::REMOVE_POOL), [&name])?;
            tx.commit()?;
            Ok(removed > 0)
        })
        .await
    }

    async fn pools(&self, now: SystemTime) -> Result<Vec<Pool>> {
        self.with("cannot read the pools", move |c| {
            let mut pools = c.prepare_cached(&statement(sql::POOLS))?;
            let rows = pools.query_map([millis(now)], |row| {
                Ok(Pool { name: row.get(0)?, size: row.get(1)?, live: row.get(2)? })
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    async fn fill_pool(&self, name: &str, now: SystemTime) -> Result<()> {
        let params = (name.to_owned(), millis(now));
        self.execute("cannot fill the pool", sql::FILL_POOL, params).await.map(|_| ())
    }

    async fn pool_lines(&self, name: &str, now: SystemTime) -> Result<Vec<BridgeLine>> {
        let params = (name.to_owned(), millis(now));
        self.with("cannot read the pool", move |c| {
            let mut lines = c.prepare_cached(&statement(sql::POOL_LINES))?;
            let lines = lines.query_map(params, |row| row.get::<_, String>(0))?;
            lines.map(|line| line?.parse().map_err(|_| sql::Unreadable("line").into())).collect()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_of_another_version_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("directory.db");
        let other = Connection::open(&path).unwrap();
        let tables =
            "CREATE TABLE version (only_row BIGINT, version BIGINT); INSERT INTO version VALUES (1, 99)";
        other.execute_batch(tables).unwrap();
        let error = Sqlite::open(&path).err().unwrap();
        let text = eebt_proto::causes(&error);
        assert!(text.ends_with("it is of version 99, this program of 1"), "{text}");
        let count = "SELECT COUNT(*) FROM sqlite_master";
        assert_eq!(other.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap(), 1);
    }
}
