//! The store in PostgreSQL: for several replicas that share one database.
//!
//! Each call is one transaction at READ COMMITTED. Rows and the unique index on egress addresses make
//! replicas agree; where those don't, an advisory lock does.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use deadpool_postgres::{GenericClient, Manager, ManagerConfig, PoolError, RecyclingMethod, Runtime};
use eebt_proto::limits::MAX_VALIDITY;
use eebt_proto::{BridgeDescriptor, BridgeLine};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSqlOwned, ToSql};
use tokio_postgres::{NoTls, Row};

use super::sql::{self, RawRecord, millis};
use super::{
    Counts, Cursor, LATE, Noted, Partition, Pool, Put, Record, Result, Store, StoreError, Test, Withdrawn,
};
use crate::ring::Identity;

/// Connections of one replica.
const CONNECTIONS: usize = 8;

/// Longest wait for one of them to be free, or to be made.
const CONNECT: Duration = Duration::from_secs(3);

/// Longest time for a connection that was not used for a while to show that it works.
const RECYCLE: Duration = Duration::from_secs(1);

/// Longest call. Replicas read what changed in the last ten seconds (`crate::index`), by the time at which
/// calls began: one that took longer would be missed.
const CALL: Duration = Duration::from_secs(6);

/// What every session of ours is like, whatever the server's defaults are: commits are on disk when they
/// return, nothing lasts longer than a call, and a replica that vanishes holds no lock for long.
const SESSION: &str = "-c synchronous_commit=on -c default_transaction_isolation=read\\ committed \
    -c default_transaction_read_only=off -c statement_timeout=4s -c idle_in_transaction_session_timeout=8s";

/// Where Debian's PostgreSQL has its socket.
const SOCKETS: &str = "/var/run/postgresql";

/// Keys of advisory locks: while tables are made, and while exit bridges go into pools or leave them.
const LOCK_TABLES: i64 = 0x4845_4254_0001;
const LOCK_POOLS: i64 = 0x4845_4254_0002;
const LOCK: &str = "SELECT pg_advisory_xact_lock($1)";

const HAS_TABLES: &str = "SELECT to_regclass('version') IS NOT NULL";

/// Which database. Whatever it shows of itself, there may be a password in it.
#[derive(Clone, PartialEq)]
pub struct PostgresUrl(tokio_postgres::Config);

/// Why a text names no PostgreSQL database of ours. Nothing of the text is in it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PostgresUrlError {
    /// It can't be read.
    #[error("is no PostgreSQL URL; in a password, special characters are written as %XX")]
    Malformed,
    /// It leads elsewhere than to a socket or to loopback.
    #[error("leads to another machine without encryption: TLS to PostgreSQL is not built in yet")]
    Remote,
    /// It asks for TLS.
    #[error("asks for TLS to PostgreSQL, which is not built in yet")]
    Tls,
}

impl FromStr for PostgresUrl {
    type Err = PostgresUrlError;

    fn from_str(text: &str) -> std::result::Result<Self, PostgresUrlError> {
        let mut config: tokio_postgres::Config = text.parse().map_err(|_| PostgresUrlError::Malformed)?;
        // What is asked of the name server may have any answer.
        match (config.get_hosts(), config.get_hostaddrs()) {
            ([], []) => {
                config.host_path(SOCKETS);
            }
            ([Host::Unix(_)], []) => {}
            ([Host::Tcp(name)], []) if name == "localhost" => {
                config.hostaddr(Ipv4Addr::LOCALHOST.into());
            }
            ([Host::Tcp(addr)], []) if addr.parse().is_ok_and(|addr: IpAddr| addr.is_loopback()) => {}
            _ => return Err(PostgresUrlError::Remote),
        }
        if config.get_ssl_mode() == SslMode::Require {
            return Err(PostgresUrlError::Tls);
        }
        let theirs = config.get_options().unwrap_or_default();
        config.options(format!("{theirs} {SESSION}"));
        if config.get_application_name().is_none() {
            config.application_name("hebtor-directory");
        }
        Ok(Self(config))
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgresql:[hidden]")
    }
}

/// The store in PostgreSQL.
pub struct Postgres {
    pool: deadpool_postgres::Pool,
}

type Boxed = Box<dyn std::error::Error + Send + Sync>;
type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Waits for `call`, but not for long: then it is dropped, and rolled back where it can be.
async fn bounded<T>(
    doing: &'static str,
    call: impl Future<Output = std::result::Result<T, Boxed>> + Send,
) -> Result<T> {
    let done = tokio::time::timeout(CALL, call).await;
    done.unwrap_or_else(|_| Err("no answer in time".into()))
        .map_err(|error| StoreError { doing, source: discreet(error) })
}

/// What PostgreSQL said in one line, without the details, which quote whole rows.
fn discreet(error: Boxed) -> Boxed {
    let error = match error.downcast::<PoolError>().map(|error| *error) {
        Ok(PoolError::Backend(error)) => error.into(),
        Ok(error) => error.into(),
        Err(error) => error,
    };
    let said = error.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::as_db_error);
    match said {
        Some(said) => format!("{} ({})", said.message(), said.code().code()).into(),
        None => error,
    }
}

/// A statement in PostgreSQL's form.
fn statement(text: &str) -> String {
    let text = text.replace("{RECORD}", sql::RECORD).replace("{ANEW}", sql::ANEW);
    text.replace("{SKIP_LOCKED}", "FOR UPDATE SKIP LOCKED")
}

fn tables() -> String {
    sql::TABLES.replace("BLOB", "BYTEA").replace("TEXT", "TEXT COLLATE \"C\"")
}

// Statements are prepared once for each connection.

async fn execute(on: &impl GenericClient, text: &str, params: Params<'_>) -> std::result::Result<u64, Boxed> {
    let statement = on.prepare_cached(&statement(text)).await?;
    Ok(on.execute(&statement, params).await?)
}

async fn query(
    on: &impl GenericClient,
    text: &str,
    params: Params<'_>,
) -> std::result::Result<Vec<Row>, Boxed> {
    let statement = on.prepare_cached(&statement(text)).await?;
    Ok(on.query(&statement, params).await?)
}

/// The only column of the only row.
async fn value<T: FromSqlOwned>(
    on: &impl GenericClient,
    text: &str,
    params: Params<'_>,
) -> std::result::Result<T, Boxed> {
    let statement = on.prepare_cached(&statement(text)).await?;
    Ok(on.query_one(&statement, params).await?.try_get(0)?)
}

impl Postgres {
    /// Connects, and makes the tables where there are none.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn open(url: &PostgresUrl) -> Result<Self> {
        // Verified: a connection that the server has left meanwhile is replaced by a new one.
        let manager = ManagerConfig { recycling_method: RecyclingMethod::Verified };
        let pool = deadpool_postgres::Pool::builder(Manager::from_config(url.0.clone(), NoTls, manager))
            .max_size(CONNECTIONS)
            .wait_timeout(Some(CONNECT))
            .create_timeout(Some(CONNECT))
            .recycle_timeout(Some(RECYCLE))
            .runtime(Runtime::Tokio1)
            .build();
        bounded("cannot open the database", async {
            let pool = pool?;
            let mut client = pool.get().await?;
            let tx = client.transaction().await?;
            // One after another: CREATE is no help when two replicas start at once.
            execute(&tx, LOCK, &[&LOCK_TABLES]).await?;
            if !value(&tx, HAS_TABLES, &[]).await? {
                tx.batch_execute(&tables()).await?;
                execute(&tx, sql::SET_VERSION, &[&sql::VERSION]).await?;
            }
            sql::check_version(value(&tx, sql::GET_VERSION, &[]).await?)?;
            tx.commit().await?;
            drop(client);
            Ok(Self { pool })
        })
        .await
    }
}

fn raw(row: &Row) -> std::result::Result<RawRecord, tokio_postgres::Error> {
    Ok(RawRecord {
        line: row.try_get("line")?,
        published: row.try_get("published")?,
        expires: row.try_get("expires")?,
        claimed_country: row.try_get("claimed_country")?,
        part: row.try_get("part")?,
        withdrawn: row.try_get("withdrawn")?,
        standing: row.try_get("standing")?,
        live_until: row.try_get("live_until")?,
        egress: row.try_get("egress")?,
        country: row.try_get("country")?,
        latency: row.try_get("latency")?,
        speed: row.try_get("speed")?,
        failures: row.try_get("failures")?,
        next_test: row.try_get("next_test")?,
    })
}

/// A number that is no bigger than what was put in.
fn small(number: i64) -> u32 {
    u32::try_from(number).unwrap_or_default()
}

#[async_trait]
impl Store for Postgres {
    async fn secret(&self) -> Result<[u8; 32]> {
        let fresh: [u8; 32] = rand::random();
        bounded("cannot read the secret", async {
            let client = self.pool.get().await?;
            execute(&client, sql::SET_SECRET, &[&fresh.as_slice()]).await?;
            let secret: Vec<u8> = value(&client, sql::GET_SECRET, &[]).await?;
            secret.try_into().map_err(|_| sql::Unreadable("value").into())
        })
        .await
    }

    async fn put(&self, new: &BridgeDescriptor, partition: Partition, now: SystemTime) -> Result<Put> {
        bounded("cannot keep a descriptor", async {
            let client = self.pool.get().await?;
            // Two who bring the same one at the same moment may both hear that it is new.
            let known = value(&client, sql::IS_KNOWN, &[&new.identity().as_slice()]).await?;
            let rows = query(
                &client,
                sql::PUT,
                &[
                    &new.identity().as_slice(),
                    &new.line.to_string(),
                    &millis(new.published),
                    &millis(new.expires),
                    &sql::text(new.country),
                    &i64::from(new.capacity),
                    &new.software,
                    &sql::part(partition),
                    &millis(now),
                ],
            )
            .await?;
            let standing = rows.first().map(|row| row.try_get::<_, &str>(0)).transpose()?;
            Ok(sql::put(standing, known)?)
        })
        .await
    }

    async fn withdraw(
        &self,
        identity: &Identity,
        published: SystemTime,
        now: SystemTime,
    ) -> Result<Withdrawn> {
        bounded("cannot keep a withdrawal", async {
            let identity = identity.as_slice();
            let mut client = self.pool.get().await?;
            let tx = client.transaction().await?;
            let params: Params<'_> = &[&identity, &millis(published), &millis(now)];
            let changed = execute(&tx, sql::WITHDRAW, params).await?;
            let known = value(&tx, sql::IS_KNOWN, &[&identity]).await?;
            tx.commit().await?;
            Ok(sql::withdrawn(changed, known))
        })
        .await
    }

    async fn claim_due(&self, limit: u32, now: SystemTime, until: SystemTime) -> Result<Vec<Record>> {
        bounded("cannot read who is due for a test", async {
            let client = self.pool.get().await?;
            let params: Params<'_> = &[&i64::from(limit), &millis(now), &millis(until)];
            let rows = query(&client, sql::CLAIM_DUE, params).await?;
            rows.iter().map(|row| Ok(raw(row)?.try_into()?)).collect()
        })
        .await
    }

    async fn hurry(&self, identity: &Identity, before: SystemTime, now: SystemTime) -> Result<()> {
        bounded("cannot bring a test forward", async {
            let client = self.pool.get().await?;
            let params: Params<'_> = &[&identity.as_slice(), &millis(before), &millis(now)];
            execute(&client, sql::HURRY, params).await.map(|_| ())
        })
        .await
    }

    async fn note(&self, identity: &Identity, test: &Test, now: SystemTime) -> Result<Noted> {
        bounded("cannot keep the result of a test", async {
            let identity = identity.as_slice();
            let egress = sql::text(test.egress);
            let mut client = self.pool.get().await?;
            let tx = client.transaction().await?;
            if egress.is_some() {
                execute(&tx, sql::FREE_EGRESS, &[&egress, &identity, &millis(now)]).await?;
            }
            let changed = execute(
                &tx,
                sql::NOTE,
                &[
                    &identity,
                    &sql::standing(test.standing),
                    &millis(test.live_until),
                    &egress,
                    &sql::text(test.country),
                    &sql::latency(test.latency),
                    &sql::speed(test.speed),
                    &i64::from(test.failures),
                    &millis(test.next),
                    &millis(now),
                ],
            )
            .await;
            let noted = match changed {
                Ok(0) => sql::not_noted(value(&tx, sql::IS_HERE, &[&identity]).await?),
                Ok(_) => {
                    tx.commit().await?;
                    return Ok(Noted::Kept);
                }
                // Two were given the same address at the same moment, and the other one came first.
                Err(error) if is_unique_violation(&error) => Noted::EgressShared,
                Err(error) => return Err(error),
            };
            tx.rollback().await?;
            Ok(noted)
        })
        .await
    }

    async fn changes(&self, cursor: Cursor, limit: u32) -> Result<Vec<(Cursor, Record)>> {
        bounded("cannot read what changed", async {
            let client = self.pool.get().await?;
            let params: Params<'_> = &[&millis(cursor.at), &cursor.identity.as_slice(), &i64::from(limit)];
            let rows = query(&client, sql::CHANGES, params).await?;
            let change = |row: &Row| {
                let record: Record = raw(row)?.try_into()?;
                Ok((Cursor { at: sql::time(row.try_get("changed")?), identity: *record.identity() }, record))
            };
            rows.iter().map(change).collect()
        })
        .await
    }

    async fn expire(&self, now: SystemTime) -> Result<u64> {
        bounded("cannot forget old descriptors", async {
            let mut client = self.pool.get().await?;
            let tx = client.transaction().await?;
            execute(&tx, sql::REST, &[&millis(now)]).await?;
            let forgotten = execute(&tx, sql::EXPIRE, &[&millis(now), &millis(now - MAX_VALIDITY)]).await?;
            tx.commit().await?;
            Ok(forgotten)
        })
        .await
    }

    async fn counts(&self, now: SystemTime) -> Result<Counts> {
        bounded("cannot count exit bridges", async {
            let client = self.pool.get().await?;
            let rows = query(&client, sql::COUNTS, &[&millis(now), &millis(now - LATE)]).await?;
            let row = rows.first().ok_or("no counts")?;
            Ok(sql::counts([row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?]))
        })
        .await
    }

    async fn find(&self, identity: &Identity) -> Result<Option<Record>> {
        bounded("cannot look for an exit bridge", async {
            let client = self.pool.get().await?;
            let rows = query(&client, sql::FIND, &[&identity.as_slice()]).await?;
            rows.first().map(|row| Ok(raw(row)?.try_into()?)).transpose()
        })
        .await
    }

    async fn set_pool(&self, name: &str, size: u32) -> Result<()> {
        bounded("cannot keep the pool", async {
            let client = self.pool.get().await?;
            execute(&client, sql::SET_POOL, &[&name, &i64::from(size)]).await.map(|_| ())
        })
        .await
    }

    async fn remove_pool(&self, name: &str) -> Result<bool> {
        bounded("cannot end the pool", async {
            let mut client = self.pool.get().await?;
            let tx = client.transaction().await?;
            execute(&tx, LOCK, &[&LOCK_POOLS]).await?;
            execute(&tx, sql::EMPTY_POOL, &[&name]).await?;
            let removed = execute(&tx, sql::REMOVE_POOL, &[&name]).await?;
            tx.commit().await?;
            Ok(removed > 0)
        })
        .await
    }

    async fn pools(&self, now: SystemTime) -> Result<Vec<Pool>> {
        bounded("cannot read the pools", async {
            let client = self.pool.get().await?;
            let rows = query(&client, sql::POOLS, &[&millis(now)]).await?;
            let pool = |row: &Row| {
                let (size, live) = (small(row.try_get(1)?), small(row.try_get(2)?));
                Ok(Pool { name: row.try_get(0)?, size, live })
            };
            rows.iter().map(pool).collect()
        })
        .await
    }

    async fn fill_pool(&self, name: &str, now: SystemTime) -> Result<()> {
        bounded("cannot fill the pool", async {
            let mut client = self.pool.get().await?;
            let tx = client.transaction().await?;
            // Or two fill two pools with the same exit bridges, or one that is being ended.
            execute(&tx, LOCK, &[&LOCK_POOLS]).await?;
            execute(&tx, sql::FILL_POOL, &[&name, &millis(now)]).await?;
            Ok(tx.commit().await?)
        })
        .await
    }

    async fn pool_lines(&self, name: &str, now: SystemTime) -> Result<Vec<BridgeLine>> {
        bounded("cannot read the pool", async {
            let client = self.pool.get().await?;
            let rows = query(&client, sql::POOL_LINES, &[&name, &millis(now)]).await?;
            let line =
                |row: &Row| Ok(row.try_get::<_, &str>(0)?.parse().map_err(|_| sql::Unreadable("line"))?);
            rows.iter().map(line).collect()
        })
        .await
    }
}

fn is_unique_violation(error: &Boxed) -> bool {
    let error = error.downcast_ref::<tokio_postgres::Error>();
    error.and_then(tokio_postgres::Error::code) == Some(&SqlState::UNIQUE_VIOLATION)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::time::{Instant, UNIX_EPOCH};

    use super::*;

    fn server() -> testnet::Postgres {
        testnet::Postgres::start().unwrap_or_else(|e| panic!("{e}"))
    }

    async fn open(url: &str) -> Postgres {
        Postgres::open(&url.parse().unwrap()).await.unwrap()
    }

    async fn run(store: &Postgres, text: &str) -> std::result::Result<Vec<Row>, Boxed> {
        Ok(store.pool.get().await?.query(text, &[]).await?)
    }

    #[tokio::test]
    async fn a_server_that_crashes_has_lost_nothing_and_is_used_again() {
        let mut server = server();
        let url = server.database().unwrap();
        let (store, other) = (open(&url).await, open(&url).await);
        store.set_pool("press", 3).await.unwrap();
        other.set_pool("friends", 3).await.unwrap();
        // A call that is under way fails, and nothing else does.
        let call = bounded("cannot sleep", async { run(&store, "SELECT pg_sleep(3)").await });
        let restart = tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(200));
            server.restart().unwrap();
            server
        });
        let (slept, server) = tokio::join!(call, restart);
        assert_eq!(slept.unwrap_err().to_string(), "store: cannot sleep");
        for store in [&store, &other] {
            assert_eq!(store.pools(UNIX_EPOCH).await.unwrap().len(), 2);
        }
        drop(server.unwrap());
        let start = Instant::now();
        store.pools(UNIX_EPOCH).await.unwrap_err();
        assert!(start.elapsed() < CALL);
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_is_an_error_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let _silent = UnixListener::bind(dir.path().join(".s.PGSQL.5432")).unwrap();
        let url = format!("postgresql:///x?user=x&host={}", dir.path().display());
        let start = Instant::now();
        let error = Postgres::open(&url.parse().unwrap()).await.err().unwrap();
        assert_eq!(error.to_string(), "store: cannot open the database");
        assert!(start.elapsed() < CALL + Duration::from_secs(1));
    }

    #[tokio::test]
    async fn sessions_are_what_they_must_be_whatever_the_database_says() {
        let server = server();
        let url = server.database().unwrap();
        let store = open(&url).await;
        let name: String = run(&store, "SELECT current_database()").await.unwrap()[0].get(0);
        for setting in [
            "synchronous_commit = off",
            "default_transaction_isolation = 'serializable'",
            "default_transaction_read_only = on",
            "statement_timeout = 0",
        ] {
            run(&store, &format!("ALTER DATABASE {name} SET {setting}")).await.unwrap();
        }
        let store = open(&url).await;
        for (setting, expected) in [
            ("synchronous_commit", "on"),
            ("default_transaction_isolation", "read committed"),
            ("default_transaction_read_only", "off"),
            ("statement_timeout", "4s"),
        ] {
            let rows = run(&store, &format!("SHOW {setting}")).await.unwrap();
            assert_eq!(rows[0].get::<_, &str>(0), expected, "{setting}");
        }
    }

    #[tokio::test]
    async fn errors_are_one_line_and_quote_no_row() {
        let server = server();
        let store = open(&server.database().unwrap()).await;
        let insert = "INSERT INTO secrets VALUES ('203.0.113.1', '')";
        run(&store, insert).await.unwrap();
        let error = bounded("cannot insert", async { run(&store, insert).await }).await.unwrap_err();
        let text = eebt_proto::causes(&error);
        assert!(text.starts_with("store: cannot insert: duplicate key value violates"), "{text}");
        assert!(!text.contains("203.0.113.1") && !text.contains('\n'), "{text}");
    }

    #[tokio::test]
    async fn a_database_of_another_version_is_not_touched() {
        let server = server();
        let url = server.database().unwrap();
        let other = url.parse::<PostgresUrl>().unwrap().0.connect(NoTls).await.unwrap();
        let (client, connection) = other;
        tokio::spawn(connection);
        let tables =
            "CREATE TABLE version (only_row BIGINT, version BIGINT); INSERT INTO version VALUES (1, 99)";
        client.batch_execute(tables).await.unwrap();
        let error = Postgres::open(&url.parse().unwrap()).await.err().unwrap();
        let text = eebt_proto::causes(&error);
        assert!(text.ends_with("it is of version 99, this program of 1"), "{text}");
        let bridges = client.query_one("SELECT to_regclass('bridges') IS NULL", &[]).await.unwrap();
        assert!(bridges.get::<_, bool>(0));
    }
}
