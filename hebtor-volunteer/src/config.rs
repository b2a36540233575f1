//! What is not the owner's everyday choice: where things are. `deploy/hebtor-volunteer.example.toml` documents every key.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use eebt_proto::OnionReach;
use eebt_tor::ConfigError;
use serde::Deserialize;

use crate::health::BlockList;

/// Where the page is, unless something else is said.
pub const DEFAULT_PAGE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9153);

/// The configuration. Every field has a default that works.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folder of keys, settings and history; the system's usual place without it.
    pub state_dir: Option<PathBuf>,
    /// Loopback address of the page.
    pub page: SocketAddr,
    /// Exit-bridge directories, by onion address: people find this home there.
    pub directories: Vec<OnionReach>,
    /// DNS block lists that the address is looked for in, once a day.
    pub block_lists: Vec<BlockList>,
    /// Pages of sites that turn bad addresses away, visited once a day: URLs. They must let programs in that are no browsers.
    pub canaries: Vec<String>,
    /// The file that was read, where one was named: what starts at log-in names it, too.
    #[serde(skip)]
    pub file: Option<PathBuf>,
    /// Settings of the exit bridge, as in `eebt-bridge.example.toml`. What the owner chose on the page comes first.
    pub bridge: toml::Table,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: None,
            page: DEFAULT_PAGE,
            directories: Vec::new(),
            block_lists: BlockList::usual(),
            canaries: Vec::new(),
            file: None,
            bridge: toml::Table::new(),
        }
    }
}

impl Config {
    /// Reads `path` (the usual place when it is `None`, and the defaults when there is no file), puts `key=value` settings over it, and checks.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load_with(path: Option<&Path>, settings: &[String]) -> Result<Self, ConfigError> {
        let usual = Self::usual_file().filter(|file| path.is_none() && file.exists());
        let mut config: Self = eebt_tor::load_config(path.or(usual.as_deref()), settings)?;
        config.file = path.map(|path| path.canonicalize().unwrap_or_else(|_| path.to_owned()));
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if !self.page.ip().is_loopback() {
            return Err(ConfigError::field("page", "must be a loopback address, such as 127.0.0.1:9153"));
        }
        let is_page = |page: &str| {
            let uri: Option<hyper::Uri> = page.parse().ok();
            uri.is_some_and(|uri| uri.host().is_some() && matches!(uri.scheme_str(), Some("http" | "https")))
        };
        if !self.canaries.iter().all(|page| is_page(page)) {
            return Err(ConfigError::field("canaries", "must be addresses such as https://example.com/"));
        }
        // So that a slip is told now, and not when it is idle for the first time.
        self.bridge.clone().try_into::<eebt_bridge::Config>().map_err(|error| {
            let what = error.message().lines().next().unwrap_or_default().to_owned();
            ConfigError::Field { field: "bridge", problem: what }
        })?;
        Ok(())
    }

    /// Where the configuration is looked for when no file is named: such as `~/.config/hebtor-volunteer/config.toml`.
    pub fn usual_file() -> Option<PathBuf> {
        Some(project()?.config_dir().join("config.toml"))
    }

    /// The folder of keys, settings and history.
    ///
    /// # Errors
    /// [`ConfigError::Field`].
    pub fn state_folder(&self) -> Result<PathBuf, ConfigError> {
        match &self.state_dir {
            Some(dir) => Ok(dir.clone()),
            None => project()
                .map(|dirs| dirs.state_dir().unwrap_or(dirs.data_local_dir()).to_owned())
                .ok_or_else(|| {
                    ConfigError::field("state_dir", "is not set, and there is no home folder to put it in")
                }),
        }
    }
}

/// The system's places for this program.
fn project() -> Option<directories::ProjectDirs> {
    directories::ProjectDirs::from("", "", "hebtor-volunteer")
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
        let text = include_str!("../../deploy/hebtor-volunteer.example.toml");
        assert_eq!(parse(text).unwrap(), Config::default());
        let all: String =
            text.lines().map(|l| l.strip_prefix("#: ").unwrap_or(l)).collect::<Vec<_>>().join("\n");
        parse(&all).unwrap();
    }

    #[test]
    fn errors_name_the_field() {
        for (text, named) in [
            ("colour = 1", "colour"),
            ("page = \"0.0.0.0:1\"", "page"),
            ("directories = [\"x.onion\"]", "directories"),
            ("canaries = [\"example\"]", "canaries"),
            ("block_lists = [{ zone = \"x\" }]", "block_lists"),
            ("[bridge]\ncolour = 1", "colour"),
            ("[bridge]\ndrain = \"soon\"", "bridge"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(named), "{text:?}: {error}");
        }
    }
}
