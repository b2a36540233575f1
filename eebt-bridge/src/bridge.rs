//! From configuration and keys to a running exit bridge, and to its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arti_client::TorClient;
use eebt_proto::special_use::special_use;
use eebt_proto::{BridgeLine, Reach};
use eebt_tor::{ConfigError, OnionConnector, OnionError, TorRuntime};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tor_netdir::{NetDirProvider, Timeliness};

use crate::config::{Config, ReachKind};
use crate::consensus::{Consensus, own_addresses};
use crate::egress::Egress;
use crate::ingress::IngressError;
use crate::ingress::circuit::CircuitIngress;
use crate::ingress::onion::OnionIngress;
use crate::keys::{BridgeKeys, KeysError};
use crate::limits::Throttle;
use crate::register::{Card, keep_registered};
use crate::resolve::{ResolveError, Resolver};
use crate::status::{self, Phase, Status, WayIn};

/// An exit bridge that is not running yet.
pub struct ExitBridge {
    config: Config,
    tor_config: arti_client::TorClientConfig,
    keys: Arc<BridgeKeys>,
    status: Arc<Status>,
    throttle: Arc<Throttle>,
}

/// Why an exit bridge can't start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The relay side, or the onion service.
    #[error(transparent)]
    Ingress(#[from] IngressError),
    /// Circuits to our own onion service.
    #[error(transparent)]
    Onion(#[from] OnionError),
    /// The resolver.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
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
    /// No consensus of the Tor network.
    #[error("cannot learn about the Tor network")]
    Tor(#[source] Box<arti_client::Error>),
    /// Its time was over before it could serve.
    #[error("expires: the end of this exit bridge's life has passed")]
    Expired,
}

impl ExitBridge {
    /// Reads keys and checks the Tor settings. Touches no network.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn new(config: Config) -> Result<Self, RunError> {
        config.check()?;
        let tor_config = config.tor_client_config()?;
        let keys = Arc::new(BridgeKeys::load_or_generate(&config.keys)?);
        let throttle = Arc::new(Throttle::new(config.limits.total_bytes, Instant::now()));
        Ok(Self { config, tor_config, keys, status: Arc::default(), throttle })
    }

    /// What it shows of itself while it runs.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }

    /// How fast its streams may be, which can be changed while it runs.
    pub fn throttle(&self) -> Arc<Throttle> {
        Arc::clone(&self.throttle)
    }

    /// Runs until `shutdown`, or the end of its life; then drains. `ready` is called once, when the exit bridge serves:
    /// with a bridge line for each way to reach it, and with what reaches onion services from here.
    ///
    /// Nobody is listened to before there is a consensus to tell relays from strangers.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn run(
        self,
        runtime: TorRuntime,
        shutdown: CancellationToken,
        ready: impl FnOnce(&[BridgeLine], &Arc<OnionConnector>),
    ) -> Result<(), RunError> {
        let Self { config, tor_config, keys, status, throttle } = self;
        let expires = config.end_of_life(SystemTime::now());
        let life = expires.duration_since(SystemTime::now()).map_err(|_| RunError::Expired)?;

        let _status_task = match config.status {
            Some(addr) => {
                Some(status::serve(addr, Arc::clone(&status)).await.map_err(|source| RunError::Listen {
                    field: "status",
                    addr,
                    source,
                })?)
            }
            None => None,
        };

        let tor = |e: arti_client::Error| RunError::Tor(Box::new(e));
        let client = TorClient::with_runtime(runtime.clone())
            .config(tor_config.clone())
            .create_unbootstrapped_async()
            .await
            .map_err(tor)?;
        tokio::select! {
            done = bootstrap(&client) => done.map_err(tor)?,
            () = watch_way_in(&client, &status) => {}
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(life) => return Err(RunError::Expired),
        }
        status.set_way_in(WayIn { percent: 100, blocked: None });
        let provider: Arc<dyn NetDirProvider> = client.dirmgr().map_err(tor)?;

        let listener = match config.reach.contains(&ReachKind::Circuit) {
            true => Some(listen(&config).await?),
            false => None,
        };
        let ours = listener.iter().map(|(_, addr)| addr.ip());
        let ours = ours.chain(config.egress_address).chain(config.own_addresses.iter().copied()).collect();
        let consensus = Arc::new(Consensus::new(Arc::clone(&provider), config.allow_ingress.clone(), ours));
        let egress = Arc::new(Egress::new(
            config.exit_policy(),
            Arc::clone(&consensus) as _,
            Resolver::new(&config.resolver)?,
            config.egress_address,
            config.limits.clone(),
            throttle,
            Arc::clone(&status),
        ));
        let close = CancellationToken::new();
        let mut reaches = Vec::new();
        let mut serving = FuturesUnordered::<BoxFuture<'_, ()>>::new();
        if let Some((listener, address)) = listener {
            let params = provider.params();
            let (consensus, params) = (Arc::clone(&consensus), params.as_ref().as_ref());
            let (ports, limits) = (&config.policy, &config.limits);
            let ingress = CircuitIngress::new(&runtime, &keys, address, ports, limits, consensus, params)?;
            reaches.push(Reach::Circuit(keys.circuit_reach(vec![address])));
            let (egress, close) = (Arc::clone(&egress), close.clone());
            serving.push(ingress.run(listener, Arc::clone(&provider), egress, close).boxed());
        }
        let connector = Arc::new(OnionConnector::new(Arc::clone(&client), &tor_config)?);
        if config.reach.contains(&ReachKind::Onion) {
            let ingress = OnionIngress::launch(&client, &keys, config.rendezvous)?;
            let reach = ingress.reach().clone();
            serving.push(ingress.run(Arc::clone(&egress), close.clone()).boxed());
            tokio::select! {
                () = connector.until_reachable(&reach) => reaches.push(Reach::Onion(reach)),
                () = serving.select_next_some() => {}
                () = shutdown.cancelled() => return Ok(()),
                () = sleep_until(expires) => return Err(RunError::Expired),
            }
        }

        status.set_phase(Phase::Serving);
        tracing::info!(relays = consensus.relays(), "serving");
        let line = |reach| BridgeLine { reach, ports: config.policy.clone(), expires: Some(expires) };
        let lines: Vec<BridgeLine> = reaches.into_iter().map(line).collect();
        ready(&lines, &connector);
        // Directories know an exit bridge by its egress address: they get one line, of the first reach.
        let first = lines.into_iter().find(|line| config.reach.first() == Some(&ReachKind::of(&line.reach)));
        let card = first.map(|line| Card::new(line, keys, &config));
        let registering = tokio::spawn({
            let (status, consensus, close) = (Arc::clone(&status), Arc::clone(&consensus), close.clone());
            let directories = config.directories.clone();
            async move {
                if let Some(card) = card {
                    keep_registered(card, directories, connector, status, consensus, close).await;
                }
            }
        });

        let stop = async {
            tokio::select! {
                () = shutdown.cancelled() => tracing::info!("told to stop"),
                () = sleep_until(expires) => tracing::info!("the end of this exit bridge's life has come"),
            }
            status.set_phase(Phase::Draining);
        };
        let ending = async {
            stop.await;
            close.cancel();
            let (_drained, _withdrawn) = tokio::join!(egress.drain(config.drain), registering);
        };
        tokio::select! {
            () = serving.select_next_some() => {}
            () = consensus.follow() => {}
            () = ending => {}
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// A listener for channels, and the address that relays reach it by.
async fn listen(config: &Config) -> Result<(TcpListener, SocketAddr), RunError> {
    let addr = config.listen;
    let failed = |source| RunError::Listen { field: "listen", addr, source };
    let listener = TcpListener::bind(addr).await.map_err(failed)?;
    let address = match config.address {
        Some(address) => address,
        None => reachable(listener.local_addr().map_err(failed)?)?,
    };
    Ok((listener, address))
}

/// Waits for a consensus that is valid now, with most of its relays.
async fn bootstrap(client: &TorClient<TorRuntime>) -> arti_client::Result<()> {
    client.bootstrap().await?;
    // Only fails when the client is shut down, which is in our hands.
    let _shut_down = client.dirmgr()?.wait_for_netdir(Timeliness::Timely).await;
    Ok(())
}

/// Shows how far the client is on its way into Tor. Never returns.
async fn watch_way_in(client: &TorClient<TorRuntime>, status: &Status) {
    let mut events = client.bootstrap_events();
    while let Some(now) = events.next().await {
        // From 0 to 100.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let percent = (now.as_frac() * 100.0) as u8;
        let blocked = now.blocked().map(|blockage| blockage.message().to_string());
        status.set_way_in(WayIn { percent, blocked });
    }
    std::future::pending().await
}

/// The address that relays reach us by when we listen on `bound`: for a wildcard, the one public
/// address of this machine.
fn reachable(bound: SocketAddr) -> Result<SocketAddr, ConfigError> {
    if !bound.ip().is_unspecified() {
        return Ok(bound);
    }
    let public = own_addresses().into_iter().filter(|ip| special_use(*ip).is_none());
    let mut public = public.filter(|ip| ip.is_ipv4() == bound.is_ipv4());
    match (public.next(), public.next()) {
        (Some(ip), None) => Ok(SocketAddr::new(ip, bound.port())),
        (found, _) => {
            let found = if found.is_some() { "several public addresses" } else { "no public address" };
            let problem = format!("is needed: this machine has {found} of the family that it listens on");
            Err(ConfigError::Field { field: "address", problem })
        }
    }
}

/// Sleeps until a time of the wall clock, also when the machine slept meanwhile.
async fn sleep_until(at: SystemTime) {
    while let Ok(left) = at.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(Duration::from_secs(30))).await;
    }
}
