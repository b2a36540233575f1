//! What the operator may choose: as written in TOML ([`Config`]), and checked as it is read.
//!
//! `deploy/eebt-bridge.example.toml` documents every key; a test holds it to the defaults here.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use eebt_proto::limits::MAX_LIFETIME;
use eebt_proto::{Country, ExitPolicy, HostRules, OnionReach, PortSet, Reach};
use eebt_tor::{ConfigError, RendezvousPath};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

use crate::limits::Limits;

/// Life of an exit bridge whose operator said nothing.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The configuration of one exit bridge. Every field has a default that works.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folder of the keys, made by `eebt-bridge keygen` or at the first start.
    pub keys: PathBuf,
    /// How clients reach it: one bridge line for each.
    pub reach: Vec<ReachKind>,
    /// Where channels from relays arrive, for reach `circuit`. Port 0: a random one.
    pub listen: SocketAddr,
    /// Address in the bridge line, when it is another than `listen`.
    pub address: Option<SocketAddr>,
    /// For reach `onion`: who stands between it and the relay at which a client meets it.
    pub rendezvous: RendezvousPath,
    /// Local address of connections to targets; with it, only targets of its family are reached.
    pub egress_address: Option<IpAddr>,
    /// Folder for the cached consensus.
    pub state_dir: PathBuf,
    /// A file of Arti settings that name another Tor network (a test network).
    pub network: Option<PathBuf>,
    /// Loopback address of `/ready`, `/live` and `/metrics`; none without it.
    pub status: Option<SocketAddr>,
    /// File that holds the process id while the exit bridge runs.
    pub pid_file: Option<PathBuf>,
    /// Exit-bridge directories to register with, by onion address: clients find it there.
    pub directories: Vec<OnionReach>,
    /// Whether directories are asked for signed statements of when this exit bridge served.
    pub attest: bool,
    /// Country of the egress address, as two letters; for directories that can't tell by themselves.
    pub country: Option<Country>,
    /// How long the exit bridge lives, from its start; a day where `expires` says nothing either.
    #[serde(with = "humantime_serde")]
    pub lifetime: Option<Duration>,
    /// When the exit bridge ends; with `lifetime`, whichever comes first.
    #[serde(deserialize_with = "rfc3339")]
    pub expires: Option<SystemTime>,
    /// How long streams may go on after the exit bridge was told to stop.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
    /// Ports that are open: `web`, `reduced`, `tor-default`, or a list such as `80,443,8000-8100`.
    #[serde(deserialize_with = "port_set")]
    pub policy: PortSet,
    /// Special-use ranges that are opened all the same. For test networks only.
    pub allow_egress: Vec<IpNet>,
    /// Addresses of this machine that it does not see itself, such as the public one of a NAT: never targets.
    pub own_addresses: Vec<IpAddr>,
    /// Hosts that are open, for programs that embed an exit bridge.
    #[serde(skip)]
    pub hosts: HostRules,
    /// Source addresses that may open channels though no relay in the consensus has them.
    pub allow_ingress: Vec<IpNet>,
    /// Name servers; the system's when empty.
    pub resolver: Vec<SocketAddr>,
    /// Bounds for each circuit and for all of them.
    pub limits: Limits,
    /// Threads that move bytes. One has the least work to do; more are for links faster than it is.
    pub threads: usize,
    /// Arti settings, passed through as they are.
    pub tor: toml::Table,
}

/// A way for clients to reach an exit bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReachKind {
    /// Circuits are extended to it: it needs an address and an open port.
    Circuit,
    /// As an onion service: from behind any NAT.
    Onion,
}

impl ReachKind {
    /// Of a bridge line.
    pub fn of(reach: &Reach) -> Self {
        match reach {
            Reach::Circuit(_) => Self::Circuit,
            Reach::Onion(_) => Self::Onion,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            keys: "keys".into(),
            reach: vec![ReachKind::Circuit],
            rendezvous: RendezvousPath::Guard,
            listen: (Ipv4Addr::UNSPECIFIED, 0).into(),
            address: None,
            egress_address: None,
            state_dir: "state".into(),
            network: None,
            status: None,
            pid_file: None,
            directories: Vec::new(),
            attest: false,
            country: None,
            lifetime: None,
            expires: None,
            drain: Duration::from_secs(30),
            policy: PortSet::web(),
            allow_egress: Vec::new(),
            own_addresses: Vec::new(),
            hosts: HostRules::default(),
            allow_ingress: Vec::new(),
            resolver: Vec::new(),
            limits: Limits::default(),
            threads: 1,
            tor: toml::Table::new(),
        }
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
        let bad = |field, problem: &str| Err(ConfigError::Field { field, problem: problem.to_owned() });
        if self.reach.is_empty() {
            return bad("reach", "must be \"circuit\", \"onion\" or both");
        }
        if self.lifetime.is_some_and(|l| l.is_zero() || l > MAX_LIFETIME) {
            return bad("lifetime", "must be more than 0 and at most 7 days");
        }
        if self.status.is_some_and(|s| !s.ip().is_loopback()) {
            return bad("status", "must be a loopback address, such as 127.0.0.1:9100");
        }
        if self.address.is_some_and(|a| a.port() == 0 || a.ip().is_unspecified()) {
            return bad("address", "must be an address that relays can reach, with its port");
        }
        if self.threads == 0 {
            return bad("threads", "must be at least 1");
        }
        if self.egress_address.is_some_and(|a| a.is_unspecified()) {
            return bad("egress_address", "must be an address of this machine");
        }
        self.limits.check()
    }

    /// The exit policy.
    pub fn exit_policy(&self) -> ExitPolicy {
        ExitPolicy {
            ports: self.policy.clone(),
            lifted: self.allow_egress.clone(),
            hosts: self.hosts.clone(),
        }
    }

    /// When an exit bridge that starts `now` ends, in whole seconds (so that the bridge line says
    /// exactly this), and never later than the longest life allows.
    pub fn end_of_life(&self, now: SystemTime) -> SystemTime {
        let lifetime = match (self.lifetime, self.expires) {
            (Some(lifetime), _) => lifetime,
            (None, Some(_)) => MAX_LIFETIME,
            (None, None) => DEFAULT_LIFETIME,
        };
        let end = self.expires.unwrap_or(now + lifetime).min(now + lifetime);
        let secs = end.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
    }

    /// Arti's configuration.
    ///
    /// # Errors
    /// [`ConfigError::Tor`].
    pub fn tor_client_config(&self) -> Result<arti_client::TorClientConfig, ConfigError> {
        Ok(eebt_tor::tor_server_config(&self.state_dir, self.network.as_deref(), &self.tor)?)
    }
}

fn port_set<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PortSet, D::Error> {
    /// `443` alone is a number in TOML.
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Text(String),
        Port(u16),
    }
    let text = match Written::deserialize(deserializer)? {
        Written::Text(text) => text,
        Written::Port(port) => port.to_string(),
    };
    text.parse().map_err(serde::de::Error::custom)
}

fn rfc3339<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SystemTime>, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_rfc3339(&text)
        .map(Some)
        .map_err(|_| serde::de::Error::custom("expected a UTC time such as \"2026-12-01T12:00:00Z\""))
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
        let text = include_str!("../../deploy/eebt-bridge.example.toml");
        assert_eq!(parse(text).unwrap(), Config::default());
        // With every comment taken off, each key is known and takes the value shown.
        let all: String =
            text.lines().map(|l| l.strip_prefix("#: ").unwrap_or(l)).collect::<Vec<_>>().join("\n");
        parse(&all).unwrap();
    }

    #[test]
    fn errors_name_the_field() {
        for (text, named) in [
            ("colour = 1", "colour"),
            ("listen = \"nowhere\"", "listen"),
            ("threads = 0", "threads"),
            ("reach = []", "reach"),
            ("reach = [\"tunnel\"]", "reach"),
            ("directories = [\"x.onion\"]", "directories"),
            ("country = \"Sweden\"", "country"),
            ("policy = \"http\"", "policy"),
            ("lifetime = \"9 days\"", "lifetime"),
            ("lifetime = \"0s\"", "lifetime"),
            ("expires = \"soon\"", "expires"),
            ("status = \"0.0.0.0:1\"", "status"),
            ("address = \"0.0.0.0:1\"", "address"),
            ("allow_egress = [\"10.0.0.0/99\"]", "allow_egress"),
            ("[limits]\nstreams = 0", "limits.streams"),
            ("[limits]\nspeed = 1", "speed"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(named), "{text:?}: {error}");
        }
    }

    #[test]
    fn settings_go_over_the_file() {
        let settings =
            ["listen=127.0.0.1:9", "limits.streams=7", "policy=443", "allow_egress=[\"10.0.0.0/8\"]"];
        let config = Config::load_with(None, &settings.map(String::from)).unwrap();
        assert_eq!(config.listen, "127.0.0.1:9".parse().unwrap());
        assert_eq!(config.limits.streams, 7);
        assert_eq!(config.policy.to_string(), "443");
        assert_eq!(config.allow_egress.len(), 1);
        for bad in ["listen", "colour=1", "listen.x=1", "limits.streams=x"] {
            assert!(Config::load_with(None, &[bad.to_owned()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn life_ends_at_the_earlier_of_both() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_500);
        let mut config = Config { lifetime: Some(Duration::from_secs(60)), ..Config::default() };
        assert_eq!(config.end_of_life(now), SystemTime::UNIX_EPOCH + Duration::from_secs(1060));
        config.expires = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1030));
        assert_eq!(config.end_of_life(now), SystemTime::UNIX_EPOCH + Duration::from_secs(1030));
        config.lifetime = None;
        config.expires = Some(SystemTime::UNIX_EPOCH + 3 * DEFAULT_LIFETIME);
        assert_eq!(config.end_of_life(now), SystemTime::UNIX_EPOCH + 3 * DEFAULT_LIFETIME);
        config.expires = Some(SystemTime::UNIX_EPOCH + 30 * DEFAULT_LIFETIME);
        assert_eq!(config.end_of_life(SystemTime::UNIX_EPOCH), SystemTime::UNIX_EPOCH + MAX_LIFETIME);
    }
}
