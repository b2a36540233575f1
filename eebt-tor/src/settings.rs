//! Configuration files: TOML, with `key=value` settings over it, and errors that name the key.

use std::path::{Path, PathBuf};

use eebt_proto::LineError;
use serde::de::DeserializeOwned;

use crate::config::TorConfigError;

/// Why a configuration can't be used. Each message names the field.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that the configuration names can't be written.
    #[error("{field}: cannot write {path}")]
    Write {
        /// The key in the configuration.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be; the source names line and key.
    #[error("{path} is not a valid configuration")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Which line and key, and what was expected.
        source: Box<toml::de::Error>,
    },
    /// A bridge line is malformed.
    #[error("{origin}")]
    Line {
        /// Where it stood.
        origin: String,
        /// Which field of it is wrong.
        source: LineError,
    },
    /// A value that can't work.
    #[error("{field}: {problem}")]
    Field {
        /// The key in the file.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The Tor settings.
    #[error(transparent)]
    Tor(#[from] TorConfigError),
}

impl ConfigError {
    /// A [`ConfigError::Field`].
    pub fn field(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Field { field, problem: problem.into() }
    }
}

/// Reads `path` (all defaults when it is `None`) and puts `key=value` settings over it.
///
/// A value that is no TOML value is taken as a string, so that `listen=0.0.0.0:9001` needs no
/// quotes; a dot in a key leads into a table (`limits.streams=10`).
///
/// # Errors
/// See [`ConfigError`]. What the values mean is not checked.
pub fn load_config<T: DeserializeOwned>(path: Option<&Path>, settings: &[String]) -> Result<T, ConfigError> {
    let text = match path {
        Some(path) => {
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?
        }
        None => String::new(),
    };
    let parse = |source| ConfigError::Parse {
        path: path.unwrap_or(Path::new("--set")).into(),
        source: Box::new(source),
    };
    if settings.is_empty() {
        // Straight from the text, for errors that show the line.
        return toml::from_str(&text).map_err(parse);
    }
    let mut table: toml::Table = toml::from_str(&text).map_err(parse)?;
    for setting in settings {
        set(&mut table, setting)?;
    }
    table.try_into().map_err(parse)
}

/// Puts one `key=value` into `table`.
fn set(table: &mut toml::Table, setting: &str) -> Result<(), ConfigError> {
    let bad = || ConfigError::field("--set", format!("{setting:?} is not of the form key=value"));
    let (key, value) = setting.split_once('=').ok_or_else(bad)?;
    let value = format!("v = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| value.into());
    let mut place = table;
    let mut keys = key.split('.').peekable();
    while let Some(key) = keys.next() {
        if keys.peek().is_none() {
            place.insert(key.to_owned(), value);
            break;
        }
        let inner = place.entry(key).or_insert_with(|| toml::Table::new().into());
        place = inner.as_table_mut().ok_or_else(bad)?;
    }
    Ok(())
}
