//! Circuit ingress: an unlisted Tor relay that circuits are extended to.
//!
//! It is nobody's open proxy. A connection is taken only from an address that a relay of the current
//! consensus has; others are reset before a byte of TLS. A circuit gets streams only when the peer
//! of its channel proved the Ed25519 identity of such a relay, so the client behind it is at least
//! one relay away. No circuit is extended any further. BEGIN_DIR leads to our own server descriptor and to nothing else.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use eebt_proto::PortSet;
use eebt_tor::TorRuntime;
use futures::StreamExt as _;
use safelog::Sensitive;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tor_cell::relaycell::RelayCmd;
use tor_chanmgr::{ChanMgr, ChanMgrConfig, Dormancy};
use tor_error::ErrorReport as _;
use tor_linkspec::{HasRelayIds as _, OwnedChanTarget};
use tor_memquota::MemoryQuotaTracker;
use tor_netdir::{DirEvent, NetDirProvider, params::NetParameters};
use tor_proto::channel::Channel;
use tor_proto::relay::channel_provider::{ChannelProvider, OutboundChanSender};
use tor_proto::relay::{CircuitIncomingStreamReceiver, CreateRequestHandler};
use tor_proto::stream::{
    IncomingStreamRequestContext, IncomingStreamRequestDisposition, IncomingStreamRequestFilter,
};

use super::directory::OwnDirectory;
use super::{Incoming, IngressError, serve_circuit};
use crate::BridgeKeys;
use crate::consensus::Consensus;
use crate::egress::Egress;
use crate::ingress::net_params::circuit_params;
use crate::limits::Limits;

/// How often channels that nobody uses are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(180);

fn setup(source: impl std::error::Error + Send + Sync + 'static) -> IngressError {
    IngressError::Setup("relay", Box::new(source))
}

/// The relay side of an exit bridge.
pub struct CircuitIngress {
    chanmgr: Arc<ChanMgr<TorRuntime>>,
    handler: Arc<CreateRequestHandler>,
    circuits: CircuitIncomingStreamReceiver,
    consensus: Arc<Consensus>,
    directory: Option<Arc<OwnDirectory>>,
    /// Held here because the handler has a weak reference only.
    _no_extend: Arc<NoExtend>,
}

impl CircuitIngress {
    /// Builds the relay; nothing is listening yet.
    ///
    /// # Errors
    /// See [`IngressError`].
    pub fn new(
        runtime: &TorRuntime,
        keys: &Arc<BridgeKeys>,
        address: SocketAddr,
        ports: &PortSet,
        limits: &Limits,
        consensus: Arc<Consensus>,
        params: &NetParameters,
    ) -> Result<Self, IngressError> {
        let quota = tor_memquota::Config::builder()
            .max(usize::try_from(limits.memory_mib << 20).unwrap_or(usize::MAX))
            .build()
            .map_err(setup)?;
        let memquota = MemoryQuotaTracker::new(runtime, quota).map_err(setup)?;
        let config = ChanMgrConfig::new(tor_chanmgr::ChannelConfig::default())
            .with_my_addrs(vec![address])
            .with_auth_material(keys.channel_auth(std::time::SystemTime::now())?);
        let chanmgr = Arc::new(
            ChanMgr::new(runtime.clone(), config, Dormancy::Active, params, memquota).map_err(setup)?,
        );

        let no_extend = Arc::new(NoExtend);
        let filter_consensus = Arc::clone(&consensus);
        let filter = move |channel: &Channel| -> Box<dyn IncomingStreamRequestFilter> {
            Box::new(PeerFilter { peer_is_relay: peer_is_relay(channel, &filter_consensus) })
        };
        let (handler, circuits) = CreateRequestHandler::new(
            Arc::downgrade(&no_extend) as Weak<_>,
            circuit_params(params).map_err(setup)?,
            keys.ntor_keys(),
            Box::new(filter),
            &[RelayCmd::BEGIN, RelayCmd::RESOLVE, RelayCmd::BEGIN_DIR],
        );
        let handler = Arc::new(handler);
        chanmgr.set_create_request_handler(Arc::clone(&handler)).map_err(setup)?;
        let directory = OwnDirectory::new(Arc::clone(keys), address, ports.clone()).map(Arc::new);
        Ok(Self { chanmgr, handler, circuits, consensus, directory, _no_extend: no_extend })
    }

    /// The channels, for whoever needs one of its own.
    pub fn chanmgr(&self) -> &Arc<ChanMgr<TorRuntime>> {
        &self.chanmgr
    }

    /// Takes channels from `listener` and serves their circuits, until `shutdown` closes the
    /// listener; circuits that are open then go on for as long as this future is polled.
    pub async fn run(
        self,
        listener: TcpListener,
        provider: Arc<dyn NetDirProvider>,
        egress: Arc<Egress>,
        shutdown: CancellationToken,
    ) {
        let accepting = accept_channels(&self.chanmgr, listener, &self.consensus, &egress);
        let circuits = serve_circuits(self.circuits, Arc::clone(&egress), self.directory);
        let params = follow_params(&self.handler, provider);
        let housekeeping = async {
            loop {
                tokio::time::sleep(HOUSEKEEPING).await;
                self.chanmgr.expire_channels();
            }
        };
        let until_shutdown = async {
            tokio::select! { () = accepting => {}, () = shutdown.cancelled() => {} }
            // The listener is closed by now.
            std::future::pending::<()>().await;
        };
        tokio::join!(until_shutdown, circuits, params, housekeeping);
    }
}

/// Accepts connections from relays and makes channels of them.
async fn accept_channels(
    chanmgr: &Arc<ChanMgr<TorRuntime>>,
    listener: TcpListener,
    consensus: &Arc<Consensus>,
    egress: &Egress,
) {
    let limits = egress.limits();
    let handshakes = Arc::new(Semaphore::new(limits.handshakes as usize));
    let by_address = PerAddress::default();
    let channels = Arc::new(Semaphore::new(limits.channels as usize));
    loop {
        let (tcp, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: wait for some to come back.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if !consensus.may_be_relay(peer.ip()) {
            egress.status().count_refused_channel();
            reset(tcp);
            continue;
        }
        let permits = (
            Arc::clone(&handshakes).try_acquire_owned(),
            Arc::clone(&channels).try_acquire_owned(),
            by_address.enter(peer.ip(), limits.handshakes_per_address),
        );
        let (Ok(handshake), Ok(channel), Some(from_there)) = permits else {
            tracing::debug!("too many channels or handshakes: connection dropped");
            reset(tcp);
            continue;
        };
        let (chanmgr, consensus) = (Arc::clone(chanmgr), Arc::clone(consensus));
        let deadline = limits.handshake_timeout;
        tokio::spawn(async move {
            serve_channel(&chanmgr, tcp, peer, &consensus, deadline, (handshake, from_there)).await;
            drop(channel);
        });
    }
}

/// One channel, from its handshake to its end.
async fn serve_channel(
    chanmgr: &ChanMgr<TorRuntime>,
    tcp: TcpStream,
    peer: SocketAddr,
    consensus: &Consensus,
    deadline: Duration,
    handshake: (OwnedSemaphorePermit, Entered),
) {
    // Cells are small and urgent: without this each waits for the acknowledgement of the last.
    if tcp.set_nodelay(true).is_err() {
        return;
    }
    let done = timeout(deadline, chanmgr.handle_incoming(Sensitive::new(peer), tcp.into())).await;
    drop(handshake);
    let channel = match done {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return tracing::debug!(error = %error.report(), "channel handshake failed"),
        Err(_) => return tracing::debug!("channel handshake took too long"),
    };
    if !peer_is_relay(&channel, consensus) {
        tracing::debug!("channel closed: its peer is no relay of the current consensus");
        channel.terminate();
    }
    // Our own handle must not keep it open: the channel manager closes channels that nobody uses.
    let closed = channel.wait_for_close();
    drop(channel);
    let _why = closed.await;
}

/// Handshakes that are going on, by address: one address can't take all places.
#[derive(Clone, Default)]
struct PerAddress(Arc<Mutex<HashMap<IpAddr, u32>>>);

/// A place in [`PerAddress`], given back when dropped.
struct Entered(PerAddress, IpAddr);

impl PerAddress {
    fn enter(&self, ip: IpAddr, most: u32) -> Option<Entered> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(ip).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Entered(self.clone(), ip))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut counts = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

/// Did the peer prove the identity of a relay in the current consensus?
fn peer_is_relay(channel: &Channel, consensus: &Consensus) -> bool {
    channel.ed_identity().is_some_and(|id| consensus.is_relay_identity(id))
}

/// Closes with a reset, which is what a closed port looks like soonest.
fn reset(tcp: TcpStream) {
    let _best_effort = tcp.set_zero_linger();
}

/// Gives each circuit its own task.
async fn serve_circuits(
    mut circuits: CircuitIncomingStreamReceiver,
    egress: Arc<Egress>,
    directory: Option<Arc<OwnDirectory>>,
) {
    while let Some(streams) = circuits.next().await {
        tokio::spawn(serve_circuit(streams.map(Incoming::Circuit), Arc::clone(&egress), directory.clone()));
    }
}

/// Hands the parameters of each new consensus to the circuits that come after it.
async fn follow_params(handler: &CreateRequestHandler, provider: Arc<dyn NetDirProvider>) {
    let mut events = provider.events();
    loop {
        match circuit_params(provider.params().as_ref().as_ref()) {
            Ok(params) => handler.update_params(params),
            Err(error) => tracing::warn!(%error, "the consensus has unusable circuit parameters"),
        }
        loop {
            match events.next().await {
                Some(DirEvent::NewConsensus) => break,
                Some(_) => {}
                None => return,
            }
        }
    }
}

/// Lets streams through on circuits whose channel leads to a known relay, and closes other circuits
/// that ask for one.
struct PeerFilter {
    peer_is_relay: bool,
}

impl IncomingStreamRequestFilter for PeerFilter {
    fn disposition(
        &mut self,
        _request: &IncomingStreamRequestContext<'_>,
        _circuit: &tor_proto::circuit::CircHopSyncView<'_>,
    ) -> tor_proto::Result<IncomingStreamRequestDisposition> {
        Ok(if self.peer_is_relay {
            IncomingStreamRequestDisposition::Accept
        } else {
            IncomingStreamRequestDisposition::CloseCircuit
        })
    }
}

/// An exit bridge is always the last hop: it opens no channel for a circuit.
struct NoExtend;

impl ChannelProvider for NoExtend {
    type BuildSpec = OwnedChanTarget;

    fn get_or_launch(
        self: Arc<Self>,
        _circuit: tor_proto::circuit::UniqId,
        _target: OwnedChanTarget,
        _answer: OutboundChanSender,
    ) -> tor_proto::Result<()> {
        Err(tor_proto::Error::CircProto("an exit bridge does not extend circuits".to_owned()))
    }
}
