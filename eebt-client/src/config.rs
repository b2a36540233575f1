//! What the person may choose: flags over environment over a TOML file over defaults.
//!
//! `deploy/eebt-client.example.toml` documents every key; a test holds it to the defaults here.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use eebt_proto::{BridgeLine, Country, OnionReach};
use eebt_tor::{ConfigError, PathKind};
use serde::{Deserialize, Deserializer};

use crate::blockers::ListSource;
use crate::route::{Mode, Rule};

/// Where the local page is, unless the person says otherwise.
pub const DEFAULT_PAGE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9152);

/// The configuration of a client. Every field has a default that works.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where programs speak SOCKS4a, SOCKS5 or HTTP CONNECT to us; each port understands all.
    pub listen: Vec<SocketAddr>,
    /// Where the local page is served, on loopback; `None` for nowhere.
    #[serde(deserialize_with = "page_address")]
    pub page: Option<SocketAddr>,
    /// Whether `listen` may hold an address that other machines reach.
    pub allow_remote: bool,
    /// Which targets leave through an exit bridge.
    pub mode: Mode,
    /// For modes `auto` and `rules`: `PATTERN=exit-bridge`, `PATTERN=tor` or `PATTERN=auto`; the first that
    /// matches wins.
    pub rules: Vec<Rule>,
    /// In mode `auto`: whether HTTPS sites are asked for their first page, to see what TLS hides.
    pub probe: bool,
    /// In mode `auto`: whether the list of known blockers that comes with the program is heeded.
    pub known_blockers: bool,
    /// In mode `auto`: another such list, a file or a URL.
    pub blocker_list: Option<ListSource>,
    /// How long it is remembered that a target turned Tor away; the first time for 10 minutes at most.
    #[serde(with = "humantime_serde")]
    pub verdict_lifetime: Duration,
    /// Where that is kept when the program ends, of streams without credentials; only in memory when not set.
    pub verdict_file: Option<PathBuf>,
    /// How long a target may be silent before an exit bridge is asked beside Tor.
    #[serde(with = "humantime_serde")]
    pub patience: Duration,
    /// Bridge lines.
    #[serde(deserialize_with = "bridge_lines")]
    pub bridges: Vec<BridgeLine>,
    /// A file of bridge lines, one a line; read again when it changes.
    pub bridge_file: Option<PathBuf>,
    /// Exit-bridge directories, by onion address: exit bridges are asked for there.
    pub directories: Vec<OnionReach>,
    /// Country that exit bridges from directories should be in, as two letters.
    pub country: Option<Country>,
    /// How circuits to exit bridges of yours are built; to those from directories always with vanguards.
    pub path: PathKind,
    /// Whether a program is told that it is connected before the exit bridge says so. Saves a round
    /// trip; a target that refuses then shows as a closed connection.
    pub optimistic: bool,
    /// Folder for guards and the cached consensus; a folder of the user's when not set.
    pub state_dir: Option<PathBuf>,
    /// A file of Arti settings that name another Tor network (a test network).
    pub network: Option<PathBuf>,
    /// Time that getting a stream may take, over all tries.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Time that a program may take to say what it wants.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// Connections from programs at once.
    pub connections: u32,
    /// Threads that move bytes. One has the least work to do; more are for links faster than it is.
    pub threads: usize,
    /// Arti settings, passed through as they are.
    pub tor: toml::Table,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![(Ipv4Addr::LOCALHOST, 9150).into()],
            page: Some(DEFAULT_PAGE),
            allow_remote: false,
            mode: Mode::default(),
            rules: Vec::new(),
            probe: false,
            known_blockers: true,
            blocker_list: None,
            verdict_lifetime: Duration::from_secs(6 * 3600),
            verdict_file: None,
            patience: Duration::from_secs(10),
            bridges: Vec::new(),
            bridge_file: None,
            directories: Vec::new(),
            country: None,
            path: PathKind::default(),
            optimistic: true,
            state_dir: None,
            network: None,
            connect_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(30),
            connections: 2048,
            threads: 1,
            tor: toml::Table::new(),
        }
    }
}

impl Config {
    /// Refuses what can't work, so that nothing fails after the start.
    ///
    /// # Errors
    /// [`ConfigError::Field`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let bad = |field, problem: &str| Err(ConfigError::Field { field, problem: problem.to_owned() });
        if self.listen.is_empty() {
            return bad("listen", "needs at least one address");
        }
        if !self.allow_remote && self.listen.iter().any(|a| !a.ip().is_loopback()) {
            return bad(
                "listen",
                "is reachable from other machines, who could then use your Tor; set allow_remote if you mean it",
            );
        }
        // Whatever `allow_remote` says: the page shows where the person goes.
        if self.page.is_some_and(|addr| !addr.ip().is_loopback()) {
            return bad("page", "must be on loopback, such as 127.0.0.1:9152, or \"off\"");
        }
        let needs_bridges = self.mode != Mode::Never;
        let none = self.bridges.is_empty() && self.bridge_file.is_none() && self.directories.is_empty();
        if needs_bridges && none {
            return bad(
                "bridges",
                "no exit bridge is known: give --bridge, --bridge-file, --directory, or --mode never",
            );
        }
        if self.connections == 0 {
            return bad("connections", "must be more than 0");
        }
        if self.threads == 0 {
            return bad("threads", "must be at least 1");
        }
        if self.patience < Duration::from_secs(1) {
            return bad("patience", "must be at least 1s");
        }
        if self.connect_timeout.is_zero() || self.handshake_timeout.is_zero() {
            return bad("connect_timeout, handshake_timeout", "must be more than 0");
        }
        Ok(())
    }

    /// Arti's configuration.
    ///
    /// # Errors
    /// [`ConfigError::Tor`]; see [`Self::state_folder`].
    pub fn tor_client_config(&self) -> Result<arti_client::TorClientConfig, ConfigError> {
        let state_dir = self.state_folder()?;
        Ok(eebt_tor::tor_client_config(&state_dir, self.network.as_deref(), &self.tor)?)
    }

    /// Where state is kept.
    ///
    /// # Errors
    /// [`ConfigError::Field`] when none is set and there is no home folder.
    pub fn state_folder(&self) -> Result<PathBuf, ConfigError> {
        match &self.state_dir {
            Some(dir) => Ok(dir.clone()),
            None => directories::ProjectDirs::from("", "", "eebt-client")
                .map(|dirs| dirs.state_dir().unwrap_or(dirs.data_local_dir()).to_owned())
                .ok_or_else(|| ConfigError::Field {
                    field: "state_dir",
                    problem: "is not set, and there is no home folder to put it in".into(),
                }),
        }
    }
}

/// The bridge lines in `text`, one a line; empty lines and those that begin with `#` don't count.
/// A bad line is an error that names its number; `origin` is where the text came from.
pub fn parse_bridge_lines(text: &str, origin: &str) -> Vec<Result<BridgeLine, ConfigError>> {
    text.lines()
        .enumerate()
        .map(|(i, line)| (i + 1, line.trim()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| {
            line.parse()
                .map_err(|source| ConfigError::Line { origin: format!("{origin}, line {number}"), source })
        })
        .collect()
}

/// Reads where the page is: an address, or `off` or nothing for no page.
///
/// # Errors
/// What was expected.
pub fn parse_page(text: &str) -> Result<Option<SocketAddr>, String> {
    match text {
        "" | "off" => Ok(None),
        _ => text.parse().map(Some).map_err(|_| "expected ADDR:PORT or off".to_owned()),
    }
}

fn page_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    parse_page(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

fn bridge_lines<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<BridgeLine>, D::Error> {
    Vec::<String>::deserialize(deserializer)?
        .iter()
        .map(|line| line.parse().map_err(serde::de::Error::custom))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_file_says_the_defaults() {
        let text = include_str!("../../deploy/eebt-client.example.toml");
        assert_eq!(toml::from_str::<Config>(text).unwrap(), Config::default());
        let all: String =
            text.lines().map(|l| l.strip_prefix("#: ").unwrap_or(l)).collect::<Vec<_>>().join("\n");
        toml::from_str::<Config>(&all).unwrap();
    }

    #[test]
    fn errors_name_the_field() {
        for (text, named) in [
            ("colour = 1", "colour"),
            ("listen = [\"nowhere\"]", "listen"),
            ("listen = []", "listen"),
            ("listen = [\"0.0.0.0:9150\"]", "allow_remote"),
            ("page = \"0.0.0.0:9152\"", "page"),
            ("page = \"192.0.2.1:9152\"\nallow_remote = true", "page"),
            ("page = \"9152\"", "page"),
            ("mode = \"sometimes\"", "mode"),
            ("rules = [\"example.com\"]", "rules"),
            ("bridges = [\"eebt1 circuit address=1.2.3.4\"]", "address"),
            ("path = \"short\"", "path"),
            ("connections = 0\nmode = \"never\"", "connections"),
            ("threads = 0\nmode = \"never\"", "threads"),
            ("", "bridge"),
        ] {
            let error = match toml::from_str::<Config>(text) {
                Ok(config) => config.check().unwrap_err().to_string(),
                Err(error) => error.to_string(),
            };
            assert!(error.contains(named), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_page_can_be_off() {
        for (text, page) in [
            ("", Some(DEFAULT_PAGE)),
            ("page = \"\"", None),
            ("page = \"off\"", None),
            ("page = \"[::1]:0\"", Some((std::net::Ipv6Addr::LOCALHOST, 0).into())),
        ] {
            let config: Config = toml::from_str(&format!("mode = \"never\"\n{text}")).unwrap();
            assert_eq!(config.page, page);
            config.check().unwrap();
        }
    }

    #[test]
    fn a_bad_line_in_a_file_is_named_by_its_number() {
        let found = parse_bridge_lines("# mine\n\neebt9 circuit\n", "bridges.txt");
        let error = found[0].as_ref().unwrap_err();
        assert_eq!(error.to_string(), "bridges.txt, line 3");
        assert!(std::error::Error::source(error).unwrap().to_string().contains("version"));
    }
}
