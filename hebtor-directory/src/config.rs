//! What the operator of an exit-bridge directory may choose.
//!
//! `deploy/hebtor-directory.example.toml` documents every key; a test holds it to the defaults here.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use eebt_proto::limits::MAX_ECHOES;
use eebt_proto::{OnionReach, TicketTerms};
use eebt_tor::ConfigError;
use ipnet::IpNet;
use serde::Deserialize;

use crate::store::postgres::{PostgresUrl, PostgresUrlError};

/// The longest durations that make sense: times are added to them, and a slip of the pen shall not be found out then.
const LONGEST_EVERY: Duration = Duration::from_secs(24 * 3600);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(600);
const LONGEST_LEASE: Duration = Duration::from_secs(24 * 3600);
const MOST_DAYS: u32 = 3650;

/// The configuration of an exit-bridge directory. Every field but `echo.address` has a default that works.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where descriptors are kept.
    pub store: StoreUrl,
    /// Folder of the onion service's key, made at the first start.
    pub keys: PathBuf,
    /// Whether this process is the onion service. A replica behind another one is not.
    pub onion: bool,
    /// The onion address that clients know, where this process is not the service itself.
    pub address: Option<OnionReach>,
    /// Loopback address that serves the same as the onion service: for tests, for a C tor of one's own,
    /// and for replicas. None without it.
    pub listen: Option<SocketAddr>,
    /// Loopback address of `/ready`, `/live` and `/metrics`; none without it.
    pub status: Option<SocketAddr>,
    /// Folder for guards, the cached consensus and the onion service's state.
    pub state_dir: PathBuf,
    /// A file of Arti settings that name another Tor network (a test network).
    pub network: Option<PathBuf>,
    /// File that holds the process id while the directory runs.
    pub pid_file: Option<PathBuf>,
    /// Most exit bridges that are registered at once.
    pub max_registered: u64,
    /// Most exit bridges that are registered and have not passed a test; whoever comes then is told to come
    /// later.
    pub max_untested: u64,
    /// The page that exit bridges are tested with.
    pub echo: EchoConfig,
    /// How exit bridges are tested.
    pub tests: Tests,
    /// What clients are given.
    pub hand_out: HandOutConfig,
    /// What a ticket costs.
    pub tickets: Tickets,
    /// Arti settings, passed through as they are.
    pub tor: toml::Table,
}

/// The page that exit bridges are tested with.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EchoConfig {
    /// Where it listens; nobody is tested or handed out by this process without it.
    pub listen: Option<SocketAddr>,
    /// Where exit bridges reach it, when it is another than `listen`: a public address, port 80 or 443.
    pub address: Option<SocketAddr>,
    /// Echoes of the other processes of this directory: exit bridges are told of all.
    pub others: Vec<SocketAddr>,
}

/// How exit bridges are tested.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tests {
    /// Longest time between two tests of an exit bridge; the shortest is half of it.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
    /// How long one test may take.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Tests at once.
    pub at_once: u32,
    /// Special-use ranges that egress addresses may be in. For test networks only.
    pub allow_egress: Vec<IpNet>,
}

impl Tests {
    /// How long after a test that it passed an exit bridge is handed out at most: until the next one has
    /// had its time to fail, twice. Nobody is given one that has been dead for longer than this.
    pub fn handed_out_for(&self) -> Duration {
        self.every + self.timeout * 2 + Duration::from_secs(15)
    }
}

/// What clients are given.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HandOutConfig {
    /// How long a client keeps what it was given before it asks again.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// Percentage of exit bridges that nobody is given, for the day when the others are burned.
    pub reserve: u8,
    /// Percentage of exit bridges for the pools that the operator gives out himself.
    pub private: u8,
}

/// What a ticket costs: 2^`bits` proofs on average, each of `memory_kib` KiB and `passes` passes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tickets {
    /// Memory, in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Zero bits.
    pub bits: u8,
    /// Days that a ticket lasts.
    pub days: u32,
}

/// Where the store is: `sqlite:FILE`, or `postgresql://...`. `Debug` hides what may be a password.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(from = "String")]
pub enum StoreUrl {
    /// A SQLite file.
    Sqlite(PathBuf),
    /// A PostgreSQL database.
    Postgres(Box<PostgresUrl>),
    /// Neither. [`Config::check`] refuses it, and not whatever reads the file: that quotes the line.
    Wrong(StoreUrlError),
}

/// Why a text names no store. Nothing of the text is in it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StoreUrlError {
    /// Of no kind that there is.
    #[error("expected sqlite:FILE or postgresql://USER@HOST/DATABASE")]
    Form,
    /// Of no use with PostgreSQL.
    #[error(transparent)]
    Postgres(#[from] PostgresUrlError),
}

impl From<String> for StoreUrl {
    fn from(text: String) -> Self {
        match text.split_once(':') {
            Some(("sqlite", file)) if !file.is_empty() => Self::Sqlite(file.into()),
            Some(("postgresql" | "postgres", rest)) if rest.starts_with("//") => match text.parse() {
                Ok(url) => Self::Postgres(Box::new(url)),
                Err(error) => Self::Wrong(StoreUrlError::Postgres(error)),
            },
            _ => Self::Wrong(StoreUrlError::Form),
        }
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(url) => url.fmt(f),
            Self::Wrong(error) => error.fmt(f),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            store: StoreUrl::Sqlite("directory.db".into()),
            keys: "keys".into(),
            onion: true,
            address: None,
            listen: None,
            status: None,
            state_dir: "state".into(),
            network: None,
            pid_file: None,
            max_registered: 200_000,
            max_untested: 5_000,
            echo: EchoConfig::default(),
            tests: Tests::default(),
            hand_out: HandOutConfig::default(),
            tickets: Tickets::default(),
            tor: toml::Table::new(),
        }
    }
}

impl Default for Tests {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(600),
            timeout: Duration::from_secs(60),
            at_once: 16,
            allow_egress: Vec::new(),
        }
    }
}

impl Default for HandOutConfig {
    fn default() -> Self {
        Self { lease: Duration::from_secs(3600), reserve: 10, private: 10 }
    }
}

impl Default for Tickets {
    fn default() -> Self {
        Self { memory_kib: 8192, passes: 1, bits: 9, days: 30 }
    }
}

impl Config {
    /// Reads `path` (the defaults when it is `None`), puts `key=value` settings over it, and checks.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load_with(path: Option<&Path>, settings: &[String]) -> Result<Self, ConfigError> {
        let config: Self = eebt_tor::load_config(path, settings)?;
        config.check()?;
        Ok(config)
    }

    /// Refuses values that can't work together, so that nothing fails after the start.
    ///
    /// # Errors
    /// [`ConfigError::Field`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let bad = |field, problem: &str| Err(ConfigError::field(field, problem));
        if let StoreUrl::Wrong(error) = &self.store {
            return bad("store", &error.to_string());
        }
        let remote = |addr: &Option<SocketAddr>| addr.is_some_and(|a| !a.ip().is_loopback());
        if remote(&self.listen) {
            return bad("listen", "must be a loopback address: clients come over the onion service");
        }
        if remote(&self.status) {
            return bad("status", "must be a loopback address, such as 127.0.0.1:9200");
        }
        if !self.onion && self.listen.is_none() {
            return bad("listen", "must be set where onion is false, or nobody can come");
        }
        if !self.onion && self.address.is_none() {
            return bad("address", "must be set where onion is false: tickets are made for it");
        }
        if self.onion && self.address.is_some() {
            return bad("address", "is for replicas (onion = false); this process has an address of its own");
        }
        if self.echo.address.is_some_and(|a| a.port() == 0 || a.ip().is_unspecified()) {
            return bad("echo.address", "must be an address that exit bridges can reach, with its port");
        }
        if self.echo.address.is_some() && self.echo.listen.is_none() {
            return bad("echo.listen", "must be set where echo.address is");
        }
        if let (Some(listen), None) = (self.echo.listen, self.echo.address)
            && (listen.ip().is_unspecified() || listen.port() == 0)
        {
            return bad("echo.address", "must be set where echo.listen does not say which address it is");
        }
        if self.echoes().len() > MAX_ECHOES {
            return bad("echo.others", "must be 15 at most");
        }
        let second = Duration::from_secs(1);
        if !(second..=LONGEST_EVERY).contains(&self.tests.every) {
            return bad("tests.every", "must be from 1s to 1day");
        }
        if !(second..=LONGEST_TIMEOUT).contains(&self.tests.timeout) {
            return bad("tests.timeout", "must be from 1s to 10m");
        }
        if self.tests.at_once == 0 || self.tests.at_once > 1000 {
            return bad("tests.at_once", "must be from 1 to 1000");
        }
        if u32::from(self.hand_out.reserve) + u32::from(self.hand_out.private) > 100 {
            return bad("hand_out.reserve, hand_out.private", "must not be more than 100 together");
        }
        if !(second..=LONGEST_LEASE).contains(&self.hand_out.lease) {
            return bad("hand_out.lease", "must be from 1s to 1day");
        }
        if self.max_registered == 0 || self.max_untested == 0 {
            return bad("max_registered, max_untested", "must be more than 0");
        }
        if !(1..=MOST_DAYS).contains(&self.tickets.days) {
            return bad("tickets.days", "must be from 1 to 3650");
        }
        let terms = self.terms([0; 32]);
        terms.check().map_err(|e| ConfigError::field("tickets", e.to_string()))
    }

    /// What a ticket for the directory `audience` costs, but for day and seed.
    pub fn terms(&self, audience: [u8; 32]) -> TicketTerms {
        let Tickets { memory_kib, passes, bits, days } = self.tickets;
        TicketTerms { audience, day: 0, seed: [0; 16], memory_kib, passes, bits, days }
    }

    /// Where exit bridges reach the echo.
    pub fn echo_address(&self) -> Option<SocketAddr> {
        self.echo.address.or(self.echo.listen)
    }

    /// Where the tests of all processes go to.
    pub fn echoes(&self) -> Vec<SocketAddr> {
        self.echo_address().into_iter().chain(self.echo.others.iter().copied()).collect()
    }

    /// Arti's configuration.
    ///
    /// # Errors
    /// [`ConfigError::Tor`].
    pub fn tor_client_config(&self) -> Result<arti_client::TorClientConfig, ConfigError> {
        Ok(eebt_tor::tor_server_config(&self.state_dir, self.network.as_deref(), &self.tor)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|e| e.to_string())?;
        config.check().map_err(|e| e.to_string())?;
        Ok(config)
    }

    #[test]
    fn the_example_file_says_the_defaults() {
        let text = include_str!("../../deploy/hebtor-directory.example.toml");
        assert_eq!(parse(text).unwrap(), Config::default());
        let all: String =
            text.lines().map(|l| l.strip_prefix("#: ").unwrap_or(l)).collect::<Vec<_>>().join("\n");
        toml::from_str::<Config>(&all).unwrap();
    }

    #[test]
    fn errors_name_the_field() {
        for (text, named) in [
            ("colour = 1", "colour"),
            ("store = \"mysql:x\"", "store: expected sqlite:FILE or postgresql://"),
            ("store = \"sqlite:\"", "store: expected"),
            ("store = \"postgresql:x\"", "store: expected"),
            ("listen = \"0.0.0.0:80\"", "listen"),
            ("status = \"192.0.2.1:80\"", "status"),
            ("onion = false", "listen"),
            ("address = \"x.onion\"", "address"),
            ("[echo]\nlisten = \"0.0.0.0:80\"", "echo.address"),
            ("[echo]\naddress = \"192.0.2.1:80\"", "echo.listen"),
            ("[tests]\nevery = \"0s\"", "tests.every"),
            ("[tests]\nevery = \"25h\"", "tests.every"),
            ("[tests]\nevery = \"500000000000years\"", "tests.every"),
            ("[tests]\nevery = \"soon\"", "every"),
            ("[tests]\ntimeout = \"0s\"", "tests.timeout"),
            ("[tests]\ntimeout = \"11m\"", "tests.timeout"),
            ("[tests]\ntimeout = \"500000000000years\"", "tests.timeout"),
            ("[hand_out]\nlease = \"0s\"", "hand_out.lease"),
            ("[hand_out]\nlease = \"500000000000years\"", "hand_out.lease"),
            ("[tests]\nat_once = 0", "tests.at_once"),
            ("[hand_out]\nreserve = 60\nprivate = 41", "hand_out.reserve"),
            ("[tickets]\nbits = 40", "tickets"),
            ("[tickets]\ndays = 0", "tickets.days"),
            ("[tickets]\ndays = 4294967295", "tickets.days"),
            ("max_registered = 0", "max_registered"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(named), "{text:?}: {error}");
        }
    }

    #[test]
    fn postgresql_is_spoken_to_on_this_machine_only() {
        for here in [
            "postgresql:///hebtor",
            "postgres:///hebtor?host=/run/postgresql&user=hebtor",
            "postgresql://hebtor:secret@localhost/hebtor",
            "postgresql://hebtor:secret@127.0.0.1:6432/hebtor",
            "postgresql://hebtor:secret@[::1]/hebtor",
            "postgresql://hebtor@%2Frun%2Fpostgresql/hebtor?sslmode=disable",
        ] {
            let config = parse(&format!("store = {here:?}")).unwrap();
            assert!(matches!(config.store, StoreUrl::Postgres(_)), "{here}");
        }
        for elsewhere in [
            "postgresql://hebtor:secret@192.0.2.1/hebtor",
            "postgresql://hebtor:secret@db.example.com/hebtor?sslmode=disable",
            "postgresql://hebtor:secret@localhost.example.com/hebtor",
            "postgresql://hebtor:secret@127.0.0.1,192.0.2.1/hebtor",
            "postgresql://hebtor:secret@127.0.0.1/hebtor?hostaddr=192.0.2.1",
            "postgresql://hebtor:secret@localhost/hebtor?host=192.0.2.1",
            "postgresql:///hebtor?hostaddr=192.0.2.1",
            "postgresql://hebtor:secret@0.0.0.0/hebtor",
            "postgresql://hebtor:secret@localhost/hebtor?sslmode=require",
        ] {
            let error = parse(&format!("store = {elsewhere:?}")).unwrap_err();
            assert!(error.starts_with("store: ") && error.contains("TLS"), "{elsewhere}: {error}");
        }
    }

    #[test]
    fn a_password_is_shown_nowhere() {
        let good = parse("store = \"postgresql://name:secret@localhost/base\"").unwrap();
        for hidden in ["name", "secret", "base"] {
            assert!(!format!("{good:?}").replace("keys", "").contains(hidden), "{good:?}");
        }
        for wrong in [
            "postgresql://name:secret@192.0.2.1/base",
            "postgresql://name@localhost/base?secret=secret",
            "postgresql://name:p@secret@localhost/base",
            "postgresql://name:p@localhost:secret/base",
            "postgres:name:secret@localhost/base",
            "postgresql//name:secret@localhost/base",
            "mysql://name:secret@localhost/base",
        ] {
            let error = parse(&format!("store = {wrong:?}")).unwrap_err();
            assert!(error.starts_with("store: ") && !error.contains("secret"), "{wrong}: {error}");
        }
    }
}
