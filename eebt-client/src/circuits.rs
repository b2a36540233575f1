//! Circuits to exit bridges: how they are built, and which one a stream may use.
//!
//! A circuit belongs to one isolation group and is used for new streams for ten minutes. For each
//! exit bridge in use one spare circuit is built ahead, so that the first stream of the next group
//! does not wait for one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arti_client::{TorClient, TorClientConfig};
use eebt_proto::{BridgeLine, CircuitReach, Reach};
use eebt_tor::{OnionConnector, OnionError, TorRuntime};
use tor_circmgr::CircMgrConfig as _;
use tor_circmgr::build::exit_circparams_from_netparams;
use tor_circmgr::isolation::StreamIsolation;
use tor_circmgr::path::TorPath;
use tor_circmgr::{ClientDataTunnel, ClientOnionServiceDataTunnel, TargetPort};
use tor_error::ErrorReport as _;
use tor_linkspec::OwnedCircTarget;
use tor_netdir::{NetDir, Relay, SubnetConfig};
use tor_proto::client::stream::{DataStream, StreamParameters};
use tor_relay_selection::{RelayExclusion, RelaySelectionConfig, RelaySelector, RelayUsage};
use tor_rtcompat::SpawnExt as _;

use crate::bridges::BridgeId;
use crate::config::PathKind;

/// How long a circuit takes new streams (C tor's `MaxCircuitDirtiness`).
const MAX_DIRTINESS: Duration = Duration::from_secs(600);

/// How long extending to the exit bridge may take; Arti has no limit of its own there.
const EXTEND_TIMEOUT: Duration = Duration::from_secs(10);

/// How many paths are tried to one exit bridge before it is called unreachable: any middle may be
/// down, or its address may not be the one that it publishes.
const MAX_PATHS: usize = 3;

/// A circuit that ends at an exit bridge.
#[derive(Clone)]
pub struct Circuit {
    tunnel: Arc<Tunnel>,
    since: Instant,
}

enum Tunnel {
    /// Extended by us, from a plain path.
    Standard(ClientDataTunnel),
    /// Extended by us, from a path with vanguards.
    Vanguards(ClientOnionServiceDataTunnel),
    /// To an onion service; Arti's connector holds it too.
    Onion(Arc<ClientOnionServiceDataTunnel>),
}

impl Tunnel {
    /// The two types that Arti has for it, with the same calls.
    fn kind(&self) -> Result<&ClientDataTunnel, &ClientOnionServiceDataTunnel> {
        match self {
            Self::Standard(tunnel) => Ok(tunnel),
            Self::Vanguards(tunnel) => Err(tunnel),
            Self::Onion(tunnel) => Err(tunnel),
        }
    }
}

/// Why there is no circuit. Carries no address of the exit bridge.
#[derive(Debug, thiserror::Error)]
pub enum CircuitError {
    /// There is no consensus, no guard or no middle: not the exit bridge's fault.
    #[error("no way into the Tor network: {0}")]
    Tor(String),
    /// The exit bridge did not answer, or not as it should.
    #[error("the exit bridge cannot be reached: {0}")]
    ExitBridge(String),
}

impl From<OnionError> for CircuitError {
    fn from(error: OnionError) -> Self {
        match error {
            OnionError::Tor(error) => Self::Tor(error),
            OnionError::Service(error) => Self::ExitBridge(error),
        }
    }
}

fn tor_error(error: impl std::error::Error + 'static) -> CircuitError {
    CircuitError::Tor(error.report().to_string())
}

/// The circuits of one client.
pub struct Circuits<G> {
    tor: Arc<TorClient<TorRuntime>>,
    onions: OnionConnector,
    path: PathKind,
    /// Which addresses are too near each other for one circuit.
    subnets: SubnetConfig,
    slots: Mutex<HashMap<(BridgeId, G), Slot>>,
    spares: Mutex<HashMap<BridgeId, Spare>>,
}

/// A circuit that is ready for whichever group comes next, or about to be.
enum Spare {
    Building,
    Ready(Circuit),
}

/// The circuit of one group to one exit bridge; locked while it is built, so that many streams at
/// once build one.
type Slot = Arc<tokio::sync::Mutex<Option<Circuit>>>;

impl<G: Clone + Eq + Hash + Send + Sync + 'static> Circuits<G> {
    /// None yet.
    ///
    /// # Errors
    /// [`CircuitError::Tor`] when `tor` was not bootstrapped.
    pub fn new(
        tor: Arc<TorClient<TorRuntime>>,
        path: PathKind,
        config: &TorClientConfig,
    ) -> Result<Self, CircuitError> {
        let onions = OnionConnector::new(Arc::clone(&tor), config)?;
        let subnets = config.path_rules().subnet_config();
        Ok(Self { tor, onions, path, subnets, slots: Mutex::default(), spares: Mutex::default() })
    }

    /// The circuit of `group` to an exit bridge, built where there is none.
    ///
    /// # Errors
    /// See [`CircuitError`].
    pub async fn get(
        self: &Arc<Self>,
        id: BridgeId,
        line: &BridgeLine,
        group: &G,
    ) -> Result<Circuit, CircuitError> {
        let slot = Arc::clone(lock(&self.slots).entry((id, group.clone())).or_default());
        let mut slot = slot.lock().await;
        if let Some(circuit) = slot.as_ref().filter(|c| c.is_usable()) {
            return Ok(circuit.clone());
        }
        self.forget_unusable();
        let circuit = match self.take_spare(id) {
            // Its ten minutes begin with its first use.
            Some(spare) => Circuit { since: Instant::now(), ..spare },
            None => self.build(line).await?,
        };
        *slot = Some(circuit.clone());
        self.build_spare(id, line.clone());
        Ok(circuit)
    }

    fn take_spare(&self, id: BridgeId) -> Option<Circuit> {
        let mut spares = lock(&self.spares);
        match spares.remove(&id)? {
            Spare::Ready(circuit) => Some(circuit).filter(Circuit::is_usable),
            building @ Spare::Building => {
                spares.insert(id, building);
                None
            }
        }
    }

    /// Builds a circuit for whichever group needs one next, if there is none and none is being built.
    fn build_spare(self: &Arc<Self>, id: BridgeId, line: BridgeLine) {
        match lock(&self.spares).entry(id) {
            Entry::Occupied(_) => return,
            Entry::Vacant(vacant) => vacant.insert(Spare::Building),
        };
        let this = Arc::clone(self);
        let build = async move {
            let built = this.try_path(&line).await;
            let mut spares = lock(&this.spares);
            match built {
                Ok(circuit) => {
                    spares.insert(id, Spare::Ready(circuit));
                }
                Err(error) => {
                    spares.remove(&id);
                    tracing::debug!(%error, "no spare circuit");
                }
            }
        };
        // Without a spare the next group waits, no more.
        if self.tor.runtime().spawn(build).is_err() {
            lock(&self.spares).remove(&id);
        }
    }

    /// Drops circuits that are closed or too old, and their slots. Streams on them go on. A slot that
    /// somebody else holds is in use, whatever is in it.
    fn forget_unusable(&self) {
        lock(&self.slots).retain(|_, slot| {
            Arc::strong_count(slot) > 1
                || slot.try_lock().is_ok_and(|c| c.as_ref().is_some_and(Circuit::is_usable))
        });
        lock(&self.spares).retain(|_, spare| match spare {
            Spare::Building => true,
            Spare::Ready(circuit) => circuit.is_usable(),
        });
    }

    /// No new stream uses this circuit from now on.
    pub async fn retire(&self, id: BridgeId, group: &G, circuit: &Circuit) {
        let slot = lock(&self.slots).get(&(id, group.clone())).cloned();
        if let Some(slot) = slot {
            let mut slot = slot.lock().await;
            if slot.as_ref().is_some_and(|c| Arc::ptr_eq(&c.tunnel, &circuit.tunnel)) {
                *slot = None;
            }
        }
        self.take_spare(id);
    }

    /// A circuit by one path or another.
    async fn build(&self, line: &BridgeLine) -> Result<Circuit, CircuitError> {
        let mut tried = 1;
        loop {
            match self.try_path(line).await {
                Err(error) if tried < MAX_PATHS => {
                    tracing::debug!(%error, "no circuit by this path; another one is tried");
                    tried += 1;
                }
                result => return result,
            }
        }
    }

    async fn try_path(&self, line: &BridgeLine) -> Result<Circuit, CircuitError> {
        let tunnel = match &line.reach {
            Reach::Circuit(reach) => self.extended(&circ_target(reach)?).await?,
            Reach::Onion(reach) => Tunnel::Onion(self.onions.circuit(reach.service).await?),
        };
        Ok(Circuit { tunnel: Arc::new(tunnel), since: Instant::now() })
    }

    /// A path through Tor, extended to a circuit exit bridge.
    async fn extended(&self, target: &OwnedCircTarget) -> Result<Tunnel, CircuitError> {
        let netdir = self.tor.dirmgr().map_err(tor_error)?.timely_netdir().map_err(tor_error)?;
        let params = exit_circparams_from_netparams(netdir.params()).map_err(tor_error)?;
        let tunnel = match self.path {
            PathKind::Standard => match self.two_hops(&netdir, target).await? {
                Some(path) => {
                    let circmgr = self.tor.circmgr().map_err(tor_error)?;
                    let usage = tor_chanmgr::ChannelUsage::UserTraffic;
                    let tunnel = circmgr.builder().build(&path, &params, usage).await.map_err(tor_error)?;
                    Tunnel::Standard(ClientDataTunnel::from(tunnel))
                }
                // The guard is a Tor bridge, which no public path names, or there are no Tor exits to
                // learn it from: let Arti choose a path, though it is one relay longer.
                None => self.stem(&netdir).await?,
            },
            PathKind::Vanguards => self.stem(&netdir).await?,
        };
        let extend = async {
            match tunnel.kind() {
                Ok(t) => t.extend(target, params).await,
                Err(t) => t.extend(target, params).await,
            }
        };
        match tokio::time::timeout(EXTEND_TIMEOUT, extend).await {
            Ok(Ok(())) => Ok(tunnel),
            Ok(Err(error)) => Err(CircuitError::ExitBridge(error.report().to_string())),
            Err(_) => Err(CircuitError::ExitBridge("no answer in time".to_owned())),
        }
    }

    /// Guard, layer-two vanguard and a third relay, as for onion services.
    async fn stem(&self, netdir: &NetDir) -> Result<Tunnel, CircuitError> {
        let pool = self.tor.hs_circ_pool().map_err(tor_error)?;
        let (tunnel, _last) = pool.get_or_launch_client_rend(netdir).await.map_err(tor_error)?;
        Ok(Tunnel::Vanguards(tunnel))
    }

    /// Guard and middle. The guard is the one that Arti's own circuits use; the middle is chosen as
    /// for any circuit, away from the guard and from the exit bridge.
    async fn two_hops<'a>(
        &self,
        netdir: &'a NetDir,
        target: &OwnedCircTarget,
    ) -> Result<Option<TorPath<'a>>, CircuitError> {
        let circmgr = self.tor.circmgr().map_err(tor_error)?;
        let any_exit = circmgr
            .get_or_launch_exit(netdir.into(), &[TargetPort::ipv4(443)], StreamIsolation::no_isolation())
            .await;
        let any_exit = match any_exit {
            Ok(tunnel) => tunnel,
            Err(error) => {
                tracing::debug!(error = %error.report(), "no plain circuit to learn the guard from");
                return Ok(None);
            }
        };
        let guard = any_exit.as_ref().first_hop().map_err(tor_error)?;
        let Some(guard) = netdir.by_ids(&guard) else { return Ok(None) };
        let middle = self.middle(netdir, &guard, target)?;
        Ok(Some(TorPath::new_multihop([guard, middle])))
    }

    fn middle<'a>(
        &self,
        netdir: &'a NetDir,
        guard: &Relay<'a>,
        target: &OwnedCircTarget,
    ) -> Result<Relay<'a>, CircuitError> {
        let no_ports = std::collections::HashSet::new();
        let config = RelaySelectionConfig { long_lived_ports: &no_ports, subnet_config: self.subnets };
        let mut not = RelayExclusion::exclude_relays_in_same_family(
            &config,
            vec![guard.clone()],
            netdir.params().into(),
        );
        not.extend(&RelayExclusion::exclude_channel_target_family(&config, target, netdir));
        // No exit: anybody can come from an exit's address, so exit bridges do not listen to them.
        let exits = netdir
            .relays()
            .filter(|r| r.low_level_details().policies_allow_some_port())
            .map(|r| (*r.rsa_id()).into());
        not.extend(&RelayExclusion::exclude_identities(exits.collect()));
        let selector = RelaySelector::new(RelayUsage::middle_relay(None), not);
        let (middle, _info) = selector.select_relay(&mut rand::rng(), netdir);
        middle.ok_or_else(|| CircuitError::Tor("no relay can be the middle".to_owned()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A bridge line in Arti's terms.
fn circ_target(reach: &CircuitReach) -> Result<OwnedCircTarget, CircuitError> {
    let bad = |field: &str| CircuitError::ExitBridge(format!("its bridge line is unusable: {field}"));
    let mut builder = OwnedCircTarget::builder();
    builder
        .chan_target()
        .addrs(reach.addresses.clone())
        .ed_identity(reach.ed25519.into())
        .rsa_identity(reach.rsa.into());
    builder
        .ntor_onion_key(reach.ntor.into())
        .protocols(reach.protocols.parse().map_err(|_| bad("protocols"))?)
        .build()
        .map_err(|_| bad("keys"))
}

impl Circuit {
    /// Does it take new streams?
    fn is_usable(&self) -> bool {
        !self.is_closed() && self.since.elapsed() < MAX_DIRTINESS
    }

    /// Is it gone?
    pub fn is_closed(&self) -> bool {
        match self.tunnel.kind() {
            Ok(t) => t.is_closed(),
            Err(t) => t.is_closed(),
        }
    }

    /// A name for the log that is worth nothing outside of this process.
    pub fn log_name(&self) -> String {
        match self.tunnel.kind() {
            Ok(t) => t.unique_id().to_string(),
            Err(t) => t.unique_id().to_string(),
        }
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// Arti's.
    pub async fn begin(&self, host: &str, port: u16, optimistic: bool) -> tor_circmgr::Result<DataStream> {
        let mut params = StreamParameters::default();
        params.optimistic(optimistic);
        match self.tunnel.kind() {
            Ok(t) => t.begin_stream(host, port, Some(params)).await,
            Err(t) => t.begin_stream(host, port, Some(params)).await,
        }
    }

    /// Asks the exit bridge for the addresses of a name. `None`: Arti can't ask on such a circuit.
    ///
    /// # Errors
    /// Arti's.
    pub async fn resolve(&self, host: &str) -> tor_circmgr::Result<Option<Vec<IpAddr>>> {
        match self.tunnel.kind() {
            Ok(t) => t.resolve(host).await.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Asks the exit bridge for the names of an address. `None`: Arti can't ask on such a circuit.
    ///
    /// # Errors
    /// Arti's.
    pub async fn resolve_ptr(&self, ip: IpAddr) -> tor_circmgr::Result<Option<Vec<String>>> {
        match self.tunnel.kind() {
            Ok(t) => t.resolve_ptr(ip).await.map(Some),
            Err(_) => Ok(None),
        }
    }
}
