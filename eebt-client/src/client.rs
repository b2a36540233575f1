//! From configuration to a running client, and to its end.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arti_client::TorClient;
use eebt_proto::BridgeLine;
use eebt_proto::directory::Wishes;
use eebt_tor::{CircuitError, ConfigError, OnionConnector, OnionError, Paths, TorRuntime};
use futures::future::OptionFuture;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::blockers::Blockers;
use crate::bridges::Source;
use crate::choices::Choices;
use crate::circuits::Circuits;
use crate::config::{Config, parse_bridge_lines};
use crate::connect::Connector;
use crate::find::Finder;
use crate::listen;
use crate::page::Page;
use crate::probe;
use crate::route::Mode;
use eebt_tor::Https;

/// How often the bridge file is looked at.
const BRIDGE_FILE_EVERY: Duration = Duration::from_secs(1);

/// Most targets that wait to be probed.
const TO_PROBE: usize = 64;

/// A client that is not running yet.
pub struct Client {
    config: Config,
    tor_config: arti_client::TorClientConfig,
    from_file: Vec<BridgeLine>,
    choices_file: Option<PathBuf>,
}

/// A client that programs can use now.
pub struct Ready<'a> {
    /// Where programs connect.
    pub addresses: &'a [SocketAddr],
    /// The local page, if there is one.
    pub page: Option<&'a Page>,
    /// Arti's client, which knows the relays.
    pub(crate) tor: &'a Arc<TorClient<TorRuntime>>,
}

/// Why a client can't start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A port is taken.
    #[error("listen: cannot listen on {addr}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// HTTPS sites cannot be asked.
    #[error("probe: no TLS connections can be made")]
    Probe(#[source] std::io::Error),
    /// The page's port is taken.
    #[error("page: cannot listen on {addr}")]
    Page {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// No circuits of our own.
    #[error(transparent)]
    Circuits(#[from] CircuitError),
    /// No circuits to onion services.
    #[error(transparent)]
    Onion(#[from] OnionError),
    /// The Tor network can't be reached.
    #[error("cannot reach the Tor network")]
    Tor(#[source] Box<arti_client::Error>),
}

impl Client {
    /// Checks everything that can be checked without touching the network.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn new(config: Config) -> Result<Self, RunError> {
        config.check()?;
        let tor_config = config.tor_client_config()?;
        let from_file = match &config.bridge_file {
            // At the start every bad line is an error; later on it is a warning.
            Some(path) => parse_bridge_lines(&read(path)?, &path.display().to_string())
                .into_iter()
                .collect::<Result<Vec<_>, _>>()?,
            None => Vec::new(),
        };
        let choices_file = Some(config.state_folder()?.join("choices.json"));
        Ok(Self { config, tor_config, from_file, choices_file })
    }

    /// Heeds no choices that the person made for single sites, and keeps none.
    pub(crate) fn without_choices(self) -> Self {
        Self { choices_file: None, ..self }
    }

    /// Runs until `shutdown`. `ready` is called once.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn run(
        self,
        runtime: TorRuntime,
        shutdown: CancellationToken,
        ready: impl FnOnce(Ready<'_>),
    ) -> Result<(), RunError> {
        let Self { config, tor_config, from_file, choices_file } = self;
        let https = config.probe.then(Https::new).transpose().map_err(RunError::Probe)?;
        // First of all, so that a taken port is known at once; connections wait in the queue.
        let mut listeners = Vec::new();
        for addr in &config.listen {
            let listen = |source| RunError::Listen { addr: *addr, source };
            listeners.push(TcpListener::bind(addr).await.map_err(listen)?);
        }
        let mut page = match config.page {
            Some(addr) => Some(Page::bind(addr).await.map_err(|source| RunError::Page { addr, source })?),
            None => None,
        };

        let tor_failed = |e: arti_client::Error| RunError::Tor(Box::new(e));
        let tor = TorClient::with_runtime(runtime)
            .config(tor_config.clone())
            .create_unbootstrapped_async()
            .await
            .map_err(tor_failed)?;
        tokio::select! {
            done = tor.bootstrap() => done.map_err(tor_failed)?,
            () = shutdown.cancelled() => return Ok(()),
        }

        let circuits = Arc::new(Circuits::new(Arc::new(Paths::new(Arc::clone(&tor), &tor_config)?)));
        let onions = Arc::new(OnionConnector::new(Arc::clone(&tor), &tor_config)?);
        let directories = if config.mode == Mode::Never { &[][..] } else { &config.directories };
        let state_dir = config.state_folder()?;
        let choices = Choices::open(choices_file);
        let asking = watch::Sender::new(directories.len());
        let blockers = Arc::new(Blockers::new(config.known_blockers));
        let (seen, to_probe) = mpsc::channel(TO_PROBE);
        let seen = config.probe.then_some(seen);
        let asked = asking.subscribe();
        let connector = Arc::new(Connector::new(
            Arc::clone(&tor),
            circuits,
            &config,
            choices,
            asked,
            Arc::clone(&blockers),
            seen,
        ));
        let exit_bridges =
            connector.replace_bridges(Source::Given, [config.bridges.clone(), from_file].concat());
        tracing::info!(exit_bridges, "connected to the Tor network");
        let probing = https.map(|https| probe::run(Arc::clone(&connector), https, to_probe));
        let wishes = Wishes { country: config.country, ..Wishes::default() };
        let finder = Finder::new(Arc::clone(&connector), onions, wishes, &state_dir, asking);

        let slots = Arc::new(Semaphore::new(config.connections as usize));
        let addresses: Vec<SocketAddr> = listeners.iter().filter_map(|l| l.local_addr().ok()).collect();
        let serving = futures::future::join_all(listeners.into_iter().map(|listener| {
            listen::serve(listener, Arc::clone(&connector), Arc::clone(&slots), config.handshake_timeout)
        }));
        if let Some(page) = &mut page {
            page.keep(&state_dir);
        }
        ready(Ready { addresses: &addresses, page: page.as_ref(), tor: &tor });
        let page = async {
            match page {
                Some(page) => page.run(Arc::clone(&connector), &config, addresses).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = serving => {}
            () = page => {}
            () = follow_bridge_file(&config, &connector) => {}
            () = finder.run(directories) => {}
            () = blockers.follow(config.blocker_list.as_ref(), &connector) => {}
            Some(()) = OptionFuture::from(probing) => {}
            () = shutdown.cancelled() => tracing::info!("told to stop"),
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })
}

/// Takes over the bridge file whenever it changes. Never returns.
async fn follow_bridge_file(config: &Config, connector: &Connector) {
    let Some(path) = config.bridge_file.clone() else { return std::future::pending().await };
    let mut seen = stamp(&path);
    loop {
        tokio::time::sleep(BRIDGE_FILE_EVERY).await;
        let now = stamp(&path);
        // A file that is gone for now changes nothing: it may be in the middle of being replaced.
        if now == seen || now.is_none() {
            continue;
        }
        seen = now;
        let text = match read(&path) {
            Ok(text) => text,
            Err(error) => {
                tracing::warn!(%error, "bridge_file cannot be read; the lines of before stay");
                continue;
            }
        };
        let mut lines = config.bridges.clone();
        for line in parse_bridge_lines(&text, &path.display().to_string()) {
            match line {
                Ok(line) => lines.push(line),
                Err(ConfigError::Line { origin, source }) => {
                    tracing::warn!(wrong = source.field(), "{origin}: not a bridge line; left out");
                }
                Err(error) => tracing::warn!(%error, "a line is left out"),
            }
        }
        let exit_bridges = connector.replace_bridges(Source::Given, lines);
        tracing::info!(exit_bridges, "bridge_file read again");
    }
}

/// What tells one version of a file from the next.
fn stamp(path: &PathBuf) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}
