//! Arti's configuration, put together from our folders, a network file and a pass-through table.

use std::path::{Path, PathBuf};

use arti_client::TorClientConfig;
use tor_config::sources::MustRead::MustRead;
use tor_config::{ConfigurationSource, ConfigurationSources};

/// Why the Tor settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TorConfigError {
    /// The network file can't be read.
    #[error("network: cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Arti does not take the settings; its words name the key.
    #[error("the Tor settings ([tor], or the file named by network) are not valid: {0}")]
    Arti(String),
}

/// Arti's configuration, with its state and its cache below `state_dir`; over it the file `network`,
/// which names another Tor network; over that `tor`, what the user wrote for Arti.
///
/// # Errors
/// See [`TorConfigError`].
pub fn tor_client_config(
    state_dir: &Path,
    network: Option<&Path>,
    tor: &toml::Table,
) -> Result<TorClientConfig, TorConfigError> {
    config(state_dir, toml::Table::new(), network, tor)
}

/// The same for a program that opens no streams through Tor exits: no circuits are built for them ahead
/// of need.
///
/// # Errors
/// See [`TorConfigError`].
pub fn tor_server_config(
    state_dir: &Path,
    network: Option<&Path>,
    tor: &toml::Table,
) -> Result<TorClientConfig, TorConfigError> {
    let mut preemptive = toml::Table::new();
    preemptive.insert("initial_predicted_ports".into(), toml::Value::Array(Vec::new()));
    let mut base = toml::Table::new();
    base.insert("preemptive_circuits".into(), preemptive.into());
    config(state_dir, base, network, tor)
}

fn config(
    state_dir: &Path,
    mut base: toml::Table,
    network: Option<&Path>,
    tor: &toml::Table,
) -> Result<TorClientConfig, TorConfigError> {
    let mut storage = toml::Table::new();
    storage.insert("cache_dir".into(), state_dir.join("cache").display().to_string().into());
    storage.insert("state_dir".into(), state_dir.join("arti").display().to_string().into());
    base.insert("storage".into(), storage.into());

    let arti = |e: &dyn std::error::Error| {
        // Arti names the key in a cause, or in the cause of that.
        let causes = std::iter::successors(Some(e), |e| e.source());
        TorConfigError::Arti(causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
    };
    let mut sources = ConfigurationSources::new_empty();
    let text = |table: &toml::Table| toml::to_string(table).map_err(|e| arti(&e));
    sources.push_source(ConfigurationSource::from_verbatim(text(&base)?), MustRead);
    if let Some(path) = network {
        let network = std::fs::read_to_string(path)
            .map_err(|source| TorConfigError::Read { path: path.into(), source })?;
        sources.push_source(ConfigurationSource::from_verbatim(network), MustRead);
    }
    sources.push_source(ConfigurationSource::from_verbatim(text(tor)?), MustRead);
    let tree = sources.load().map_err(|e| arti(&e))?;
    tor_config::resolve(&tree).map_err(|e| arti(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(tor: &str) -> Result<TorClientConfig, TorConfigError> {
        tor_server_config(Path::new("/nowhere"), None, &tor.parse().unwrap())
    }

    #[test]
    fn settings_of_arti_pass_through() {
        assert!(load("[address_filter]\nallow_local_addrs = true").is_ok());
        assert!(load("").is_ok());
    }

    #[test]
    fn a_bad_value_is_named() {
        let error = load("[path_rules]\nipv4_subnet_family_prefix = \"x\"").unwrap_err().to_string();
        assert!(error.contains("ipv4_subnet_family_prefix"), "{error}");
    }

    #[test]
    fn a_missing_network_file_is_named() {
        let gone = Some(Path::new("/nowhere/network.toml"));
        let none = toml::Table::new();
        let error = tor_client_config(Path::new("/nowhere"), gone, &none).unwrap_err();
        assert!(error.to_string().contains("/nowhere/network.toml"));
    }
}
