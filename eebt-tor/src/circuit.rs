//! Circuits that end at an exit bridge.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arti_client::{TorClient, TorClientConfig};
use bytes::Bytes;
use eebt_proto::{CircuitReach, Reach};
use http_body_util::Full;
use hyper::{Request, StatusCode};
use serde::Deserialize;
use tor_circmgr::build::exit_circparams_from_netparams;
use tor_circmgr::{ClientDataTunnel, ClientOnionServiceDataTunnel};
use tor_error::ErrorReport as _;
use tor_linkspec::OwnedCircTarget;
use tor_netdir::{NetDir, Relay};
use tor_proto::client::stream::{DataStream, StreamParameters};
use tor_relay_selection::{RelayExclusion, RelaySelectionConfig, RelayUsage};

use crate::{OnionConnector, OnionError, TorRuntime, hops, http};

/// How long extending to the exit bridge may take; Arti has no limit of its own there.
const EXTEND_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a server descriptor may take.
const DESCRIPTOR_TIMEOUT: Duration = Duration::from_secs(30);

/// How many relays stand before a circuit exit bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum PathKind {
    /// Guard and middle, or rendezvous point: for exit bridges whose line came from someone trusted.
    #[default]
    Standard,
    /// Guard, layer-two vanguard and middle, or rendezvous point: whoever chooses the exit bridge can make us build many
    /// circuits to it, and must not find the guard by that (vanguards-spec).
    Vanguards,
}

/// A circuit that ends at an exit bridge. A clone is the same circuit.
#[derive(Clone)]
pub struct Circuit {
    tunnel: Arc<Tunnel>,
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

fn exit_bridge_error(error: &(impl std::error::Error + 'static)) -> CircuitError {
    CircuitError::ExitBridge(error.report().to_string())
}

/// What the exit bridge is asked for, if it comes in time.
async fn in_time<T, E: std::error::Error + 'static>(
    limit: Duration,
    asked: impl Future<Output = Result<T, E>>,
) -> Result<T, CircuitError> {
    let late = |_| CircuitError::ExitBridge("no answer in time".to_owned());
    tokio::time::timeout(limit, asked).await.map_err(late)?.map_err(|error| exit_bridge_error(&error))
}

pub(crate) fn tor_error(error: impl std::error::Error + 'static) -> CircuitError {
    CircuitError::Tor(error.report().to_string())
}

/// Builds circuits to exit bridges.
pub struct Paths {
    tor: Arc<TorClient<TorRuntime>>,
    onions: OnionConnector,
    rules: RelaySelectionConfig<'static>,
}

impl Paths {
    /// With the guards and relays of `tor`, which must have been bootstrapped.
    ///
    /// # Errors
    /// [`CircuitError::Tor`].
    pub fn new(tor: Arc<TorClient<TorRuntime>>, config: &TorClientConfig) -> Result<Self, CircuitError> {
        let onions = OnionConnector::new(Arc::clone(&tor), config)?;
        Ok(Self { tor, onions, rules: hops::rules(config) })
    }

    /// Builds one, shared with nobody. One try, by one path.
    ///
    /// # Errors
    /// See [`CircuitError`].
    pub async fn build(&self, reach: &Reach, path: PathKind) -> Result<Circuit, CircuitError> {
        match reach {
            Reach::Circuit(reach) => {
                let tunnel = self.extended(&circ_target(reach)?, path).await?;
                Ok(Circuit { tunnel: Arc::new(tunnel) })
            }
            Reach::Onion(reach) => Ok(self.onions.exit_bridge(reach.service, path).await?),
        }
    }

    /// Asks a circuit exit bridge, or any relay that is in no consensus, for its server descriptor (dir-spec, "Server
    /// descriptor format"). The text is as it came: its signatures are not looked at.
    ///
    /// # Errors
    /// See [`CircuitError`].
    pub async fn server_descriptor(&self, reach: &CircuitReach) -> Result<String, CircuitError> {
        let target = circ_target(reach)?;
        let netdir = self.tor.dirmgr().map_err(tor_error)?.timely_netdir().map_err(tor_error)?;
        let params = exit_circparams_from_netparams(netdir.params()).map_err(tor_error)?;
        let no_path = || CircuitError::Tor("no guard is known; is the way into Tor a Tor bridge?".to_owned());
        let relays = self.two_hops(&netdir, &target).await?.ok_or_else(no_path)?;
        let tunnel = Arc::new(hops::build(&self.tor, relays, &params).await?);
        let circuit = tunnel.as_single_circ().map_err(tor_error)?;
        in_time(EXTEND_TIMEOUT, circuit.extend(&target, params)).await?;
        let stream = in_time(EXTEND_TIMEOUT, tunnel.begin_dir_stream()).await?;
        let request = Request::get("/tor/server/authority").header("host", "exit-bridge");
        let request = request.body(Full::new(Bytes::new())).map_err(|e| exit_bridge_error(&e))?;
        let reply = in_time(DESCRIPTOR_TIMEOUT, http::exchange(stream, request)).await?;
        match reply.status {
            StatusCode::OK => String::from_utf8(reply.body.to_vec()).map_err(|e| exit_bridge_error(&e)),
            status => Err(CircuitError::ExitBridge(format!("it has no server descriptor: HTTP {status}"))),
        }
    }

    /// A path through Tor, extended to a circuit exit bridge.
    async fn extended(&self, target: &OwnedCircTarget, path: PathKind) -> Result<Tunnel, CircuitError> {
        let netdir = self.tor.dirmgr().map_err(tor_error)?.timely_netdir().map_err(tor_error)?;
        let params = exit_circparams_from_netparams(netdir.params()).map_err(tor_error)?;
        let tunnel = match path {
            PathKind::Standard => match self.two_hops(&netdir, target).await? {
                Some(relays) => Tunnel::Standard(hops::build(&self.tor, relays, &params).await?.into()),
                // Let Arti choose a path, though it is one relay longer.
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
        in_time(EXTEND_TIMEOUT, extend).await.map(|()| tunnel)
    }

    /// Guard, layer-two vanguard and a third relay, as for onion services.
    async fn stem(&self, netdir: &NetDir) -> Result<Tunnel, CircuitError> {
        let pool = self.tor.hs_circ_pool().map_err(tor_error)?;
        let (tunnel, _last) = pool.get_or_launch_client_rend(netdir).await.map_err(tor_error)?;
        Ok(Tunnel::Vanguards(tunnel))
    }

    /// Guard and middle. The middle is chosen away from the exit bridge, too.
    async fn two_hops<'a>(
        &self,
        netdir: &'a NetDir,
        target: &OwnedCircTarget,
    ) -> Result<Option<Vec<Relay<'a>>>, CircuitError> {
        let Some(guard) = hops::guard(&self.tor, netdir).await? else { return Ok(None) };
        let mut not = RelayExclusion::exclude_channel_target_family(&self.rules, target, netdir);
        // No exit: anybody can come from an exit's address, so exit bridges do not listen to them.
        let exits = netdir.relays().filter(|r| r.low_level_details().policies_allow_some_port());
        let exits = exits.map(|r| (*r.rsa_id()).into());
        not.extend(&RelayExclusion::exclude_identities(exits.collect()));
        let middle = hops::beside(&guard, netdir, &self.rules, RelayUsage::middle_relay(None), not)?;
        Ok(Some(vec![guard, middle]))
    }
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
    pub(crate) fn onion(tunnel: Arc<ClientOnionServiceDataTunnel>) -> Self {
        Self { tunnel: Arc::new(Tunnel::Onion(tunnel)) }
    }

    /// Is it the same circuit as `other`?
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.tunnel, &other.tunnel)
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
