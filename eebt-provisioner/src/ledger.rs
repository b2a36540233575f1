//! What should exist: a SQLite file that several `eebt` may use at once.
//!
//! `instances` has one row for each instance there ever was; `events` is only ever appended to.
//! Every change to a row names the claim under which it is made, and does nothing to a row that
//! someone else has claimed.

use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use crate::cloud::MicroUsd;
use crate::instance::{Instance, Purchase, State};

/// One entry for each version of the schema; `user_version` says how many have been applied.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE instances (
        id TEXT PRIMARY KEY,
        attempt TEXT NOT NULL,
        provider TEXT NOT NULL,
        state TEXT NOT NULL,
        address TEXT NOT NULL,
        listen TEXT NOT NULL,
        status TEXT NOT NULL,
        created INTEGER NOT NULL, -- this and the other times: seconds since 1970, UTC
        expires INTEGER NOT NULL,
        ended INTEGER,
        line TEXT,
        pid INTEGER,
        claim TEXT,
        stop_requested INTEGER NOT NULL DEFAULT 0,
        stop_by INTEGER,
        last_error TEXT
    ) STRICT;
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        at INTEGER NOT NULL,
        instance TEXT NOT NULL,
        state TEXT NOT NULL,
        detail TEXT
    ) STRICT;
    CREATE INDEX events_by_instance ON events (instance);
    CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
    CREATE TRIGGER events_remain BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
", "
    -- Machines in clouds: their addresses are known late.
    CREATE TABLE new_instances (
        id TEXT PRIMARY KEY,
        attempt TEXT NOT NULL,
        provider TEXT NOT NULL,
        state TEXT NOT NULL,
        address TEXT,
        listen TEXT NOT NULL,
        status TEXT NOT NULL,
        created INTEGER NOT NULL,
        expires INTEGER NOT NULL,
        ended INTEGER,
        line TEXT,
        pid INTEGER,
        claim TEXT,
        stop_requested INTEGER NOT NULL DEFAULT 0,
        stop_by INTEGER,
        last_error TEXT,
        region TEXT, -- null for local ones, and so are the next four
        kind TEXT,
        price INTEGER, -- millionths of a US dollar for an hour, at most
        token TEXT,
        machine TEXT
    ) STRICT;
    INSERT INTO new_instances SELECT *, NULL, NULL, NULL, NULL, NULL FROM instances;
    DROP TABLE instances;
    ALTER TABLE new_instances RENAME TO instances;
", "
    ALTER TABLE instances ADD COLUMN ready INTEGER; -- when it was first seen to serve
    ALTER TABLE instances ADD COLUMN burned TEXT; -- who knows it for what it is
    ALTER TABLE instances ADD COLUMN traffic INTEGER; -- millionths of a US dollar, for all that it may carry
"];

/// What is not over.
const LIVE: &str = "ended IS NULL";
/// What was not over at a time.
const SINCE: &str = "(ended IS NULL OR ended >= ?1)";

/// Why the ledger can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file can't be made.
    #[error("can't create the ledger {}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file can't be read as a ledger.
    #[error("can't open the ledger {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// A later version of this program has changed it.
    #[error("the ledger {} is of a newer eebt (schema {found}, this one knows {})", path.display(), MIGRATIONS.len())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: usize,
    },
    /// A statement failed.
    #[error("can't {what} the ledger")]
    Query {
        /// What was tried.
        what: &'static str,
        /// What SQLite says.
        source: rusqlite::Error,
    },
}

impl LedgerError {
    /// What to try.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Create { .. } => Some("choose a folder that you may write to with --state-dir".into()),
            Self::Open { path, .. } => Some(format!(
                "move {} away and run `eebt ls`: instances that still run are found again by their folders",
                path.display()
            )),
            Self::Newer { .. } => Some("use the newer eebt, or another --state-dir".into()),
            Self::Query { .. } => None,
        }
    }
}

fn query(what: &'static str) -> impl Fn(rusqlite::Error) -> LedgerError {
    move |source| LedgerError::Query { what, source }
}

/// A change of one row.
#[derive(Clone, Debug)]
pub struct Step<'a> {
    state: State,
    line: Option<&'a str>,
    pid: Option<u32>,
    stop_by: Option<SystemTime>,
    error: Option<&'a str>,
    address: Option<SocketAddr>,
    order: Option<(&'a str, &'a str, MicroUsd)>,
    machine: Option<&'a str>,
}

impl<'a> Step<'a> {
    /// To this state. Any but a creating or stopping one gives the claim up. In [`State::Keys`] nothing is ordered:
    /// an earlier order that is known to have come to nothing is forgotten.
    pub fn to(state: State) -> Self {
        let (line, pid, stop_by, error) = (None, None, None, None);
        Self { state, line, pid, stop_by, error, address: None, order: None, machine: None }
    }
    /// Where it is reached is now known.
    #[must_use]
    pub fn address(self, address: SocketAddr) -> Self {
        Self { address: Some(address), ..self }
    }
    /// A machine of this kind and price is going to be ordered under this token.
    #[must_use]
    pub fn ordered(self, token: &'a str, kind: &'a str, price: MicroUsd) -> Self {
        Self { order: Some((token, kind, price)), ..self }
    }
    /// Its machine is now known.
    #[must_use]
    pub fn machine(self, name: &'a str) -> Self {
        Self { machine: Some(name), ..self }
    }
    /// Its bridge line is now known.
    #[must_use]
    pub fn line(self, line: &'a str) -> Self {
        Self { line: Some(line), ..self }
    }
    /// Its process is now known.
    #[must_use]
    pub fn pid(self, pid: u32) -> Self {
        Self { pid: Some(pid), ..self }
    }
    /// It is killed at this time.
    #[must_use]
    pub fn stop_by(self, at: SystemTime) -> Self {
        Self { stop_by: Some(at), ..self }
    }
    /// Why.
    #[must_use]
    pub fn error(self, error: &'a str) -> Self {
        Self { error: Some(error), ..self }
    }
}

/// The ledger. Shared by the threads of one `eebt`.
pub struct Ledger {
    conn: Mutex<Connection>,
}

impl Ledger {
    /// Opens the file, made if need be, and brings its schema up to date.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let open = |source| LedgerError::Open { path: path.to_owned(), source };
        // SQLite would create it readable for all, and gives its side files the same mode.
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| LedgerError::Create { path: path.to_owned(), source })?;
        let mut conn = Connection::open(path).map_err(open)?;
        conn.busy_timeout(Duration::from_secs(20)).map_err(open)?;
        conn.pragma_update(None, "journal_mode", "WAL").map_err(open)?;
        conn.pragma_update(None, "synchronous", "FULL").map_err(open)?;
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(open)?;
        let found: u32 = tx.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(open)?;
        let found = usize::try_from(found).unwrap_or(usize::MAX);
        if found > MIGRATIONS.len() {
            return Err(LedgerError::Newer { path: path.to_owned(), found });
        }
        for migration in &MIGRATIONS[found..] {
            tx.execute_batch(migration).map_err(open)?;
        }
        tx.pragma_update(None, "user_version", MIGRATIONS.len().to_string()).map_err(open)?;
        tx.commit().map_err(open)?;
        Ok(Self { conn: Mutex::new(conn) })
    }

    fn conn(&self) -> MutexGuard<'_, Connection> {
        self.conn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down what is intended: `plan` sees all instances that are not over, and with `since` those that were not
    /// at that time; it says which are to come, and nobody else can plan meanwhile.
    ///
    /// # Errors
    /// Those of `plan`, and [`LedgerError`].
    pub fn reserve<E: From<LedgerError>>(
        &self,
        since: Option<SystemTime>,
        plan: impl FnOnce(&[Instance]) -> Result<Vec<Instance>, E>,
    ) -> Result<Vec<Instance>, E> {
        let write = query("write to");
        let mut conn = self.conn();
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&write)?;
        let rows = match since {
            Some(since) => select(&tx, SINCE, &[&seconds(since)])?,
            None => select(&tx, LIVE, &[])?,
        };
        let planned = plan(&rows)?;
        for row in &planned {
            insert(&tx, row).map_err(&write)?;
        }
        tx.commit().map_err(&write)?;
        Ok(planned)
    }

    /// All instances that are not over, oldest first.
    ///
    /// # Errors
    /// [`LedgerError::Query`].
    pub fn live(&self) -> Result<Vec<Instance>, LedgerError> {
        select(&self.conn(), LIVE, &[])
    }

    /// All instances that are not over or were not at `since`, oldest first.
    ///
    /// # Errors
    /// [`LedgerError::Query`].
    pub fn since(&self, since: SystemTime) -> Result<Vec<Instance>, LedgerError> {
        select(&self.conn(), SINCE, &[&seconds(since)])
    }

    /// One instance.
    ///
    /// # Errors
    /// [`LedgerError::Query`].
    pub fn get(&self, id: &str) -> Result<Option<Instance>, LedgerError> {
        Ok(select(&self.conn(), "id = ?1", &[&id])?.pop())
    }

    /// Claims a row, if it still has the state and the claim that the caller saw.
    ///
    /// # Errors
    /// [`LedgerError::Query`].
    pub fn claim(&self, seen: &Instance, claim: &str) -> Result<bool, LedgerError> {
        let sql = "UPDATE instances SET claim = ?1 WHERE id = ?2 AND state = ?3 AND claim IS ?4";
        let changed = self.conn().execute(sql, params![claim, seen.id, seen.state.as_str(), seen.claim]);
        Ok(changed.map_err(query("write to"))? == 1)
    }

    /// Gives a row up as it is, for others to take.
    ///
    /// # Errors
    /// [`LedgerError::Query`].
    pub fn release(&self, id: &str, claim: &str) -> Result<(), LedgerError> {
        let sql = "UPDATE instances SET claim = NULL WHERE id = ?1 AND claim = ?2";
        self.conn().execute(sql, [id, claim]).map(|_| ()).map_err(query("write to"))
    }

    /// Takes one step with a row that is claimed by `claim`; false if it isn't.
    ///
    /// # Errors
    /// [`LedgerError::Query`].
    pub fn advance(
        &self,
        id: &str,
        claim: &str,
        step: &Step<'_>,
        now: SystemTime,
    ) -> Result<bool, LedgerError> {
        let write = query("write to");
        let ended = step.state.is_final().then(|| seconds(now));
        let keep_claim = step.state.is_creating() || step.state == State::Stopping;
        let mut conn = self.conn();
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&write)?;
        let changed = tx
            .execute(
                "UPDATE instances SET
                    state = ?3,
                    ended = ?4,
                    line = CASE WHEN ?4 IS NULL THEN coalesce(?5, line) END,
                    pid = CASE WHEN ?4 IS NULL THEN coalesce(?6, pid) END,
                    stop_by = coalesce(?7, stop_by),
                    last_error = coalesce(?8, last_error),
                    claim = CASE WHEN ?9 THEN claim END,
                    address = coalesce(?10, address),
                    token = CASE WHEN ?3 = 'keys' THEN NULL ELSE coalesce(?11, token) END,
                    kind = coalesce(?12, kind),
                    price = coalesce(?13, price),
                    machine = coalesce(?14, machine),
                    ready = CASE WHEN ?3 = 'running' THEN coalesce(ready, ?15) ELSE ready END
                WHERE id = ?1 AND claim = ?2",
                params![
                    id,
                    claim,
                    step.state.as_str(),
                    ended,
                    step.line,
                    step.pid,
                    step.stop_by.map(seconds),
                    step.error,
                    keep_claim,
                    step.address.map(|address| address.to_string()),
                    step.order.map(|(token, _, _)| token),
                    step.order.map(|(_, kind, _)| kind),
                    step.order.map(|(_, _, price)| whole(price)),
                    step.machine,
                    seconds(now),
                ],
            )
            .map_err(&write)?;
        if changed == 1 {
            event(&tx, id, step.state, step.error, now).map_err(&write)?;
        }
        tx.commit().map_err(&write)?;
        Ok(changed == 1)
    }

    /// Writes down who knows an instance for what it is; the first one counts.
    ///
    /// # Errors
    /// [`LedgerError::Query`].
    pub fn burn(&self, id: &str, by: &str, now: SystemTime) -> Result<bool, LedgerError> {
        let write = query("write to");
        let mut conn = self.conn();
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&write)?;
        let sql = "UPDATE instances SET burned = ?2 WHERE id = ?1 AND burned IS NULL AND ended IS NULL RETURNING state";
        let state = tx.query_row(sql, [id, by], |row| parsed::<State>(row, "state")).optional();
        if let Some(state) = state.map_err(&write)? {
            event(&tx, id, state, Some(&format!("burned: {by}")), now).map_err(&write)?;
            tx.commit().map_err(&write)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Asks whoever has claimed a row to take the instance down.
    ///
    /// # Errors
    /// [`LedgerError::Query`].
    pub fn request_stop(&self, id: &str) -> Result<(), LedgerError> {
        let sql = "UPDATE instances SET stop_requested = 1 WHERE id = ?1 AND stop_requested = 0";
        self.conn().execute(sql, [id]).map(|_| ()).map_err(query("write to"))
    }
}

fn insert(tx: &Transaction<'_>, row: &Instance) -> rusqlite::Result<()> {
    tx.execute(
        "INSERT INTO instances
            (id, attempt, provider, state, address, listen, status, created, expires, line, claim,
             region, kind, price, token, machine, traffic)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
        params![
            row.id,
            row.attempt,
            row.provider.to_string(),
            row.state.as_str(),
            row.address.map(|address| address.to_string()),
            row.listen.to_string(),
            row.status.to_string(),
            seconds(row.created),
            seconds(row.expires),
            row.line,
            row.claim,
            row.region(),
            row.purchase.as_ref().map(|purchase| &purchase.kind),
            row.purchase.as_ref().map(|purchase| whole(purchase.price)),
            row.purchase.as_ref().map(|purchase| &purchase.token),
            row.purchase.as_ref().map(|purchase| &purchase.machine),
            row.purchase.as_ref().map(|purchase| whole(purchase.traffic)),
        ],
    )?;
    event(tx, &row.id, row.state, None, row.created)
}

fn event(
    tx: &Transaction<'_>,
    id: &str,
    state: State,
    detail: Option<&str>,
    at: SystemTime,
) -> rusqlite::Result<()> {
    let sql = "INSERT INTO events (at, instance, state, detail) VALUES (?1, ?2, ?3, ?4)";
    tx.execute(sql, params![seconds(at), id, state.as_str(), detail]).map(|_| ())
}

fn select(
    conn: &Connection,
    which: &str,
    args: &[&dyn rusqlite::ToSql],
) -> Result<Vec<Instance>, LedgerError> {
    let read = || -> rusqlite::Result<Vec<Instance>> {
        let sql = format!("SELECT * FROM instances WHERE {which} ORDER BY created, rowid");
        conn.prepare(&sql)?.query_map(args, instance)?.collect()
    };
    read().map_err(query("read"))
}

fn instance(row: &Row<'_>) -> rusqlite::Result<Instance> {
    Ok(Instance {
        id: row.get("id")?,
        attempt: row.get("attempt")?,
        provider: parsed(row, "provider")?,
        state: parsed(row, "state")?,
        address: match row.get::<_, Option<String>>("address")? {
            Some(_) => Some(parsed(row, "address")?),
            None => None,
        },
        listen: parsed(row, "listen")?,
        status: parsed(row, "status")?,
        created: time(row.get("created")?),
        expires: time(row.get("expires")?),
        ended: row.get::<_, Option<i64>>("ended")?.map(time),
        line: row.get("line")?,
        pid: row.get("pid")?,
        claim: row.get("claim")?,
        stop_requested: row.get("stop_requested")?,
        stop_by: row.get::<_, Option<i64>>("stop_by")?.map(time),
        last_error: row.get("last_error")?,
        ready: row.get::<_, Option<i64>>("ready")?.map(time),
        burned: row.get("burned")?,
        purchase: match row.get::<_, Option<String>>("region")? {
            Some(region) => Some(Purchase {
                region,
                kind: row.get("kind")?,
                price: money(row, "price")?,
                traffic: money(row, "traffic")?,
                token: row.get("token")?,
                machine: row.get("machine")?,
            }),
            None => None,
        },
    })
}

fn parsed<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<T>
where
    T: std::str::FromStr<Err: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    let index = row.as_ref().column_index(column)?;
    let text: String = row.get(index)?;
    text.parse()
        .map_err(|err: T::Err| rusqlite::Error::FromSqlConversionFailure(index, Type::Text, err.into()))
}

fn seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn money(row: &Row<'_>, column: &str) -> rusqlite::Result<MicroUsd> {
    let sum: Option<i64> = row.get(column)?;
    Ok(MicroUsd(sum.unwrap_or_default().try_into().unwrap_or_default()))
}

fn whole(price: MicroUsd) -> i64 {
    i64::try_from(price.0).unwrap_or(i64::MAX)
}

fn time(secs: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(secs).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::tests::{at, row};

    fn ledger() -> (tempfile::TempDir, Ledger) {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("ledger.sqlite")).unwrap();
        (dir, ledger)
    }

    fn reserve(ledger: &Ledger, claim: &str) {
        let planned = Instance { claim: Some(claim.into()), ..row("x", State::Planned) };
        ledger.reserve(None, |_| Ok::<_, LedgerError>(vec![planned])).unwrap();
    }

    #[test]
    fn steps_are_taken_by_the_holder_of_the_claim_only() {
        let (_dir, ledger) = ledger();
        reserve(&ledger, "me");
        assert!(!ledger.advance("x", "you", &Step::to(State::Keys), at(1)).unwrap());
        assert!(ledger.advance("x", "me", &Step::to(State::Config).line("eebt1 l"), at(1)).unwrap());
        assert!(ledger.advance("x", "me", &Step::to(State::Launched).pid(7), at(2)).unwrap());
        assert!(ledger.advance("x", "me", &Step::to(State::Running), at(3)).unwrap());
        let seen = ledger.get("x").unwrap().unwrap();
        assert_eq!((seen.claim.as_deref(), seen.pid, seen.line.as_deref()), (None, Some(7), Some("eebt1 l")));
        assert!(!ledger.advance("x", "me", &Step::to(State::Stopping), at(4)).unwrap());

        assert!(ledger.claim(&seen, "you").unwrap());
        assert!(!ledger.claim(&seen, "me").unwrap(), "another one was faster");
        assert!(ledger.advance("x", "you", &Step::to(State::Ended), at(5)).unwrap());
        let seen = ledger.get("x").unwrap().unwrap();
        assert_eq!((seen.ended, seen.line, seen.claim), (Some(at(5)), None, None));
        assert!(ledger.live().unwrap().is_empty());
        assert_eq!(ledger.since(at(5)).unwrap().len(), 1);
        assert_eq!(ledger.since(at(6)).unwrap().len(), 0);
    }

    #[test]
    fn every_step_is_an_event_and_events_stay() {
        let (_dir, ledger) = ledger();
        reserve(&ledger, "me");
        ledger.advance("x", "me", &Step::to(State::Failed).error("why"), at(1)).unwrap();
        let conn = ledger.conn();
        let states: Vec<String> = conn
            .prepare("SELECT state FROM events ORDER BY seq")
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(states, ["planned", "failed"]);
        assert!(conn.execute("DELETE FROM events", []).is_err());
        assert!(conn.execute("UPDATE events SET state = 'x'", []).is_err());
    }

    #[test]
    fn a_ledger_of_a_newer_version_is_left_alone() {
        let (dir, ledger) = ledger();
        ledger.conn().pragma_update(None, "user_version", 7).unwrap();
        drop(ledger);
        let again = Ledger::open(&dir.path().join("ledger.sqlite"));
        assert!(matches!(again, Err(LedgerError::Newer { found: 7, .. })));
    }

    #[test]
    fn a_file_that_is_no_ledger_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        std::fs::write(&path, "not a database ".repeat(100)).unwrap();
        assert!(matches!(Ledger::open(&path), Err(LedgerError::Open { .. })));
    }
}
