//! From configuration to a running exit-bridge directory, and to its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arti_client::TorClient;
use eebt_proto::{OnionReach, causes};
use eebt_tor::{
    ConfigError, KeyFolder, KeyFolderError, OnionConnector, OnionService, Paths, TorRuntime, onion_reach,
    service_key, sign_as_service,
};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tor_geoip::GeoipDb;
use tor_netdir::Timeliness;

use crate::api::{self, Api, Seal};
use crate::config::{Config, StoreUrl};
use crate::door::Door;
use crate::echo::Echo;
use crate::index::Index;
use crate::metrics::{self, Metrics};
use crate::serve;
use crate::store::postgres::Postgres;
use crate::store::sqlite::Sqlite;
use crate::store::{Cursor, Store, StoreError};
use crate::tester::Tester;

/// How often what nobody needs is forgotten, and exit bridges are counted.
const TIDY_EVERY: Duration = Duration::from_secs(30);

/// An exit-bridge directory that is not running yet.
pub struct Directory {
    config: Config,
    tor_config: arti_client::TorClientConfig,
}

/// Why a directory can't start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The folder of the key.
    #[error(transparent)]
    Keys(#[from] KeyFolderError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An address can't be listened on.
    #[error("cannot listen on {addr} ({field})")]
    Listen {
        /// The key in the configuration.
        field: &'static str,
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The Tor network can't be reached.
    #[error("cannot reach the Tor network")]
    Tor(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A part of it that never ends did.
    #[error("a part of the directory stopped; the log says why")]
    Stopped,
}

fn tor_error(error: impl std::error::Error + Send + Sync + 'static) -> RunError {
    RunError::Tor(Box::new(error))
}

/// Opens the store that the configuration names.
///
/// # Errors
/// The store's.
pub async fn open_store(url: &StoreUrl) -> Result<Arc<dyn Store>, StoreError> {
    match url {
        StoreUrl::Sqlite(path) => Ok(Arc::new(Sqlite::open(path)?)),
        StoreUrl::Postgres(url) => Ok(Arc::new(Postgres::open(url).await?)),
        StoreUrl::Wrong(error) => {
            Err(StoreError { doing: "cannot open the database", source: error.clone().into() })
        }
    }
}

impl Directory {
    /// Checks everything that can be checked without touching the network.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn new(config: Config) -> Result<Self, RunError> {
        config.check()?;
        let tor_config = config.tor_client_config()?;
        Ok(Self { config, tor_config })
    }

    /// Runs until `shutdown`. `ready` is called once, with the onion address, when clients can come.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn run(
        self,
        runtime: TorRuntime,
        shutdown: CancellationToken,
        ready: impl FnOnce(&OnionReach),
    ) -> Result<(), RunError> {
        // Whatever runs is ended when this is dropped.
        let mut tasks = JoinSet::new();
        let metrics = Arc::new(Metrics::default());
        let address = tokio::select! {
            started = self.start(runtime, &metrics, &mut tasks) => started?,
            () = shutdown.cancelled() => return Ok(()),
        };
        metrics.set_ready();
        tracing::info!("serving");
        ready(&address);
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            _ = tasks.join_next() => Err(RunError::Stopped),
        }
    }

    /// Starts everything, and waits until clients can come.
    async fn start(
        self,
        runtime: TorRuntime,
        metrics: &Arc<Metrics>,
        tasks: &mut JoinSet<()>,
    ) -> Result<OnionReach, RunError> {
        let Self { config, tor_config } = self;
        let listen = bind("listen", config.listen).await?;
        let status = bind("status", config.status).await?;
        let echo = bind("echo.listen", config.echo.listen).await?;
        if let Some(status) = status {
            tasks.spawn(serve::tcp(status, metrics::router(Arc::clone(metrics)), serve::CLIENTS));
        }

        let store = open_store(&config.store).await?;
        let secret = store.secret().await?;
        let index = Arc::new(Index::new(secret));
        let seen = index.catch_up(store.as_ref(), Cursor::before(SystemTime::UNIX_EPOCH)).await?;
        let now = SystemTime::now();
        metrics.set_counts(store.counts(now).await?);
        tasks.spawn(tidy(Arc::clone(&store), Arc::clone(metrics)));
        tasks.spawn({
            let (index, store, metrics) = (Arc::clone(&index), Arc::clone(&store), Arc::clone(metrics));
            async move { index.follow(store.as_ref(), seen, &metrics).await }
        });

        let keys = config.onion.then(|| KeyFolder::open(&config.keys)).transpose()?;
        let key = keys.as_ref().map(service_key).transpose()?;
        // One more of the same: the onion service takes the other one with it.
        let seal = keys.as_ref().map(service_key).transpose()?.map(|key| Seal {
            directory: onion_reach(&key),
            sign: Box::new(move |message| sign_as_service(&key, message)),
        });
        let address = key.as_ref().map(onion_reach).or(config.address.clone());
        let address =
            address.ok_or_else(|| ConfigError::field("address", "must be set where onion is false"))?;
        let router = api::router(Arc::new(Api {
            store: Arc::clone(&store),
            index,
            door: Door::new(config.terms(address.service), secret),
            secret,
            hand_out: config.hand_out.clone(),
            max_registered: config.max_registered,
            max_untested: config.max_untested,
            allow: config.tests.allow_egress.clone(),
            echoes: config.echoes(),
            metrics: Arc::clone(metrics),
            seal,
        }));
        if let Some(listen) = listen {
            tasks.spawn(serve::tcp(listen, router.clone(), serve::CLIENTS));
        }
        if key.is_none() && echo.is_none() {
            return Ok(address); // Nothing else here needs Tor.
        }

        let tor = TorClient::with_runtime(runtime).config(tor_config.clone());
        let tor = tor.create_unbootstrapped_async().await.map_err(tor_error)?;
        tor.bootstrap().await.map_err(tor_error)?;
        let netdir = tor.dirmgr().map_err(tor_error)?;
        // Only fails when the client is shut down, which is in our hands.
        let _shut_down = netdir.wait_for_netdir(Timeliness::Timely).await;
        match (echo, config.echo_address()) {
            (Some(listener), Some(echo_address)) => {
                let tester = Tester {
                    store,
                    paths: Paths::new(Arc::clone(&tor), &tor_config).map_err(tor_error)?,
                    netdir,
                    echo: Echo::default(),
                    echo_address,
                    config: config.tests,
                    geoip: GeoipDb::new_embedded(),
                    lately: Default::default(),
                };
                tasks.spawn(serve::tcp(listener, tester.echo.router(), serve::VISITORS));
                tasks.spawn(tester.run());
            }
            _ => tracing::warn!("echo.listen is not set: exit bridges are not tested by this process"),
        }
        if let Some(key) = key {
            let service = OnionService::launch(&tor, key).map_err(tor_error)?;
            let reach = service.reach.clone();
            tasks.spawn(serve::onion(service, router));
            OnionConnector::new(tor, &tor_config).map_err(tor_error)?.until_reachable(&reach).await;
        }
        Ok(address)
    }
}

/// Forgets what nobody needs, fills the operator's pools, and counts. Never returns.
async fn tidy(store: Arc<dyn Store>, metrics: Arc<Metrics>) {
    let mut late = false;
    loop {
        tokio::time::sleep(TIDY_EVERY).await;
        let now = SystemTime::now();
        let tidied = async {
            store.expire(now).await?;
            for pool in store.pools(now).await? {
                store.fill_pool(&pool.name, now).await?;
            }
            store.counts(now).await
        };
        match tidied.await {
            Ok(counts) => {
                metrics.set_counts(counts);
                // Once, until they are on time again.
                if counts.overdue > 0 && !late {
                    tracing::warn!(
                        "tests of exit bridges that serve are late: more processes with an echo, or a larger \
                         tests.at_once, could keep up; those that are not tested in time are not handed out"
                    );
                }
                late = counts.overdue > 0;
            }
            Err(error) => tracing::warn!(error = %causes(&error), "cannot tidy up"),
        }
    }
}

async fn bind(field: &'static str, addr: Option<SocketAddr>) -> Result<Option<TcpListener>, RunError> {
    let Some(addr) = addr else { return Ok(None) };
    let listener = TcpListener::bind(addr).await;
    listener.map(Some).map_err(|source| RunError::Listen { field, addr, source })
}
