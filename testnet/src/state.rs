//! What `testnet up` leaves in `testnet.json`, for scripts and for tests that use a network already up.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::TestNetError;
use crate::lock;
use crate::network::{LOCK_FILE, TestNet};
use crate::origins::Origins;
use crate::torrc::RelayInfo;

/// The file's name, in the network's folder.
const FILE: &str = "testnet.json";

/// A network that is up, and its origins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The network's folder.
    pub dir: PathBuf,
    /// Arti configuration for this network.
    pub network_file: PathBuf,
    /// SOCKS port of a plain Tor client.
    pub socks: SocketAddr,
    /// What origins see when that client visits them.
    pub exit_egress_ip: IpAddr,
    /// Origins by name: see [`crate::origins`].
    pub origins: BTreeMap<String, OriginState>,
    /// The authority that signed the origins' certificate, in PEM.
    pub ca_file: PathBuf,
    /// The relays.
    pub relays: Vec<RelayInfo>,
    /// The process that keeps the network up.
    pub supervisor_pid: u32,
    /// The tor processes.
    pub pids: Vec<u32>,
    /// Seconds that the start took.
    pub startup_seconds: f64,
}

/// One origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginState {
    /// Such as `http://127.64.8.1:8080/`; `tcp://` for one that speaks no HTTP.
    pub url: String,
    /// Where it listens.
    pub addr: SocketAddr,
}

impl State {
    /// The state of a network that this process runs.
    pub fn of(net: &TestNet, origins: &Origins) -> Self {
        let origin =
            |o: &crate::Origin| (o.name().to_owned(), OriginState { url: o.url("/"), addr: o.addr() });
        Self {
            dir: net.dir().to_owned(),
            network_file: net.network_file().to_owned(),
            socks: net.socks_addr(),
            exit_egress_ip: net.exit_egress_ip(),
            origins: origins.all().iter().map(origin).collect(),
            ca_file: origins.ca_file().to_owned(),
            relays: net.relays().to_owned(),
            supervisor_pid: std::process::id(),
            pids: net.pids(),
            startup_seconds: net.startup().as_secs_f64(),
        }
    }

    /// Writes it to the network's folder, all at once.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self) -> Result<(), TestNetError> {
        let path = self.dir.join(FILE);
        let new = self.dir.join("testnet.json.new");
        let write = || {
            fs::write(&new, serde_json::to_string_pretty(self).map_err(io::Error::other)? + "\n")?;
            fs::rename(&new, &path)
        };
        write().map_err(TestNetError::file("write", &path))
    }

    /// Removes the file; a network that is no longer up has no state.
    pub fn remove(dir: &Path) {
        let _ = fs::remove_file(dir.join(FILE)); // it may not be there
    }

    /// The network in this folder, if it is up: the file is there and its supervisor lives.
    ///
    /// # Errors
    /// When the file or the lock beside it cannot be read or understood.
    pub fn load(dir: &Path) -> Result<Option<Self>, TestNetError> {
        let path = dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(TestNetError::file("read", path)(e)),
        };
        let state: Self = serde_json::from_str(&text)
            .map_err(io::Error::other)
            .map_err(TestNetError::file("understand", &path))?;
        let alive = Self::supervisor(dir)? == Some(state.supervisor_pid);
        Ok(alive.then_some(state))
    }

    /// The process that keeps a network up in this folder, or is about to.
    ///
    /// # Errors
    /// When the lock file cannot be read.
    pub fn supervisor(dir: &Path) -> Result<Option<u32>, TestNetError> {
        let path = dir.join(LOCK_FILE);
        lock::holder(&path).map_err(TestNetError::file("read", path))
    }
}
