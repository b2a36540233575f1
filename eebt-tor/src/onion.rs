//! Circuits to onion services.

use std::sync::Arc;
use std::time::Duration;

use arti_client::{TorClient, TorClientConfig};
use async_trait::async_trait;
use eebt_proto::OnionReach;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tokio::time::timeout;
use tor_circmgr::ClientOnionServiceDataTunnel;
use tor_circmgr::build::onion_circparams_from_netparams;
use tor_circmgr::hspool::HsCircPool;
use tor_circmgr::isolation::{IsolationToken, StreamIsolationBuilder};
use tor_error::ErrorReport as _;
use tor_hsclient::{
    ConnError, DescriptorErrorDetail, FailedAttemptError, HsClientConnector, HsClientSecretKeysBuilder,
    RendCircConnector,
};
use tor_netdir::{NetDir, Relay, Timeliness};
use tor_relay_selection::{RelayExclusion, RelaySelectionConfig, RelayUsage};

use crate::circuit::{self, CircuitError};
use crate::{Circuit, PathKind, TorRuntime, hops};

/// How long one try to reach a service of our own may take, and the pause after one that failed.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
const PROBE_PAUSE: Duration = Duration::from_millis(250);

/// How often what is known of services is looked through for what is too old.
const HOUSEKEEPING: Duration = Duration::from_secs(600);

/// How long a way to a rendezvous point may take that is shorter than Arti's, which is tried next.
pub(crate) const SHORT_WAY_TIMEOUT: Duration = Duration::from_secs(4);

/// Makes circuits to onion services. Arti's own client opens no stream to a target that a service leads to,
/// so the circuits are needed themselves.
pub struct OnionConnector {
    tor: Arc<TorClient<TorRuntime>>,
    /// Goes to rendezvous points as [`PathKind::Standard`] says.
    standard: HsClientConnector<TorRuntime>,
    /// Goes there as [`PathKind::Vanguards`] says, which is Arti's own way.
    vanguards: HsClientConnector<TorRuntime>,
}

/// Why there is no circuit. Carries no onion address.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OnionError {
    /// There is no consensus, or no circuits of our own: not the service's fault.
    #[error("no way into the Tor network: {0}")]
    Tor(String),
    /// The service is not found, or does not answer.
    #[error("the onion service cannot be reached: {0}")]
    Service(String),
}

fn tor_error(error: impl std::error::Error + 'static) -> OnionError {
    OnionError::Tor(error.report().to_string())
}

impl From<ConnError> for OnionError {
    fn from(error: ConnError) -> Self {
        // Whose fault it is: the service's, unless no try came as far as to anything that the service has a say in.
        // It names its introduction points, so that those that can't be reached are no excuse for it.
        let ours = match &error {
            ConnError::NoHsDirs | ConnError::Spawn { .. } | ConnError::Bug(_) => true,
            ConnError::DescriptorDownload(tries) => tries.sources().all(|tried| not_asked(&tried.0.error)),
            ConnError::Failed(tries) => tries.sources().all(not_met),
            _ => false,
        };
        let said = error.report().to_string();
        if ours { Self::Tor(said) } else { Self::Service(said) }
    }
}

/// Did a try to fetch a descriptor end before any relay was asked for it?
fn not_asked(error: &DescriptorErrorDetail) -> bool {
    matches!(error, DescriptorErrorDetail::Circuit(_) | DescriptorErrorDetail::Bug(_))
}

/// Did a try to meet a service end before it could be told where?
fn not_met(error: &FailedAttemptError) -> bool {
    use FailedAttemptError::*;
    matches!(
        error,
        RendezvousCircuitObtain { .. }
            | RendezvousEstablish { .. }
            | RendezvousEstablishTimeout { .. }
            | Bug(_)
    )
}

impl OnionConnector {
    /// With the circuits of `tor`, which must have been bootstrapped.
    ///
    /// # Errors
    /// [`OnionError::Tor`].
    pub fn new(tor: Arc<TorClient<TorRuntime>>, config: &TorClientConfig) -> Result<Self, OnionError> {
        let pool = tor.hs_circ_pool().map_err(tor_error)?;
        let connector = || {
            let pool = Arc::clone(&pool);
            HsClientConnector::new(tor.runtime().clone(), pool, config, housekeeping()).map_err(tor_error)
        };
        let meeting = Meeting { tor: Arc::clone(&tor), pool: Arc::clone(&pool), rules: hops::rules(config) };
        let (standard, vanguards) = (connector()?.with_rend_circs(Arc::new(meeting)), connector()?);
        Ok(Self { tor, standard, vanguards })
    }

    /// A new circuit to the service with the identity `service`, shared with nobody. `path` is the way to the
    /// rendezvous point; the service's introduction points and its descriptor are reached with vanguards in each case.
    ///
    /// # Errors
    /// See [`OnionError`].
    pub async fn circuit(
        &self,
        service: [u8; 32],
        path: PathKind,
    ) -> Result<Arc<ClientOnionServiceDataTunnel>, OnionError> {
        let dirmgr = self.tor.dirmgr().map_err(tor_error)?;
        let netdir: Arc<NetDir> = dirmgr.netdir(Timeliness::Timely).map_err(tor_error)?;
        let mut isolation = StreamIsolationBuilder::new();
        isolation.owner_token(IsolationToken::new());
        let isolation = isolation.build().map_err(tor_error)?;
        let keys = HsClientSecretKeysBuilder::default().build().map_err(tor_error)?;
        let connector = match path {
            PathKind::Standard => &self.standard,
            PathKind::Vanguards => &self.vanguards,
        };
        let tunnel = connector.get_or_launch_tunnel(&netdir, service.into(), keys, isolation);
        Ok(tunnel.await?)
    }

    /// The same, as a circuit that ends at an exit bridge.
    ///
    /// # Errors
    /// See [`OnionError`].
    pub async fn exit_bridge(&self, service: [u8; 32], path: PathKind) -> Result<Circuit, OnionError> {
        Ok(Circuit::onion(self.circuit(service, path).await?))
    }

    /// Waits until a circuit to `service`, one of our own, could be made as a client makes it: Arti's
    /// own status does not say for sure that the descriptor can be fetched.
    pub async fn until_reachable(&self, service: &OnionReach) {
        loop {
            match timeout(PROBE_TIMEOUT, self.circuit(service.service, PathKind::Vanguards)).await {
                Ok(Ok(_circuit)) => return,
                Ok(Err(error)) => tracing::debug!(%error, "not reachable yet"),
                Err(_) => tracing::debug!("not reachable yet: no answer in time"),
            }
            tokio::time::sleep(PROBE_PAUSE).await;
        }
    }
}

/// When what is known of services that nobody asked for in a while is to be forgotten.
fn housekeeping() -> BoxStream<'static, ()> {
    stream::unfold((), async |()| Some((tokio::time::sleep(HOUSEKEEPING).await, ()))).boxed()
}

/// Ways to rendezvous points of our choice that are as long as those to circuit exit bridges: guard and rendezvous
/// point, which is for the service what the middle is for the exit bridge.
struct Meeting {
    tor: Arc<TorClient<TorRuntime>>,
    pool: Arc<HsCircPool<TorRuntime>>,
    rules: RelaySelectionConfig<'static>,
}

impl Meeting {
    /// `None` when the guard is a Tor bridge, or not to be known.
    async fn two_hops<'a>(
        &self,
        netdir: &'a NetDir,
    ) -> Result<Option<(ClientOnionServiceDataTunnel, Relay<'a>)>, CircuitError> {
        let Some(guard) = hops::guard(&self.tor, netdir).await? else { return Ok(None) };
        let not = RelayExclusion::no_relays_excluded();
        let point = hops::beside(&guard, netdir, &self.rules, RelayUsage::new_rend_point(), not)?;
        let params = onion_circparams_from_netparams(netdir.params()).map_err(circuit::tor_error)?;
        let tunnel = hops::build(&self.tor, vec![guard, point.clone()], &params).await?;
        Ok(Some((tunnel.into(), point)))
    }
}

#[async_trait]
impl RendCircConnector for Meeting {
    async fn get_or_launch_rend<'a>(
        &self,
        netdir: &'a NetDir,
    ) -> tor_circmgr::Result<(ClientOnionServiceDataTunnel, Relay<'a>)> {
        match timeout(SHORT_WAY_TIMEOUT, self.two_hops(netdir)).await {
            Ok(Ok(Some(found))) => return Ok(found),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "no short way to a rendezvous point"),
            Err(_) => tracing::debug!("no short way to a rendezvous point in time"),
        }
        // Let Arti choose a path, though it is longer.
        self.pool.get_or_launch_client_rend(netdir).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_blamed_for_what_it_has_a_say_in_only() {
        let timeout = || tor_circmgr::Error::CircTimeout(None);
        assert!(matches!(ConnError::NoHsDirs.into(), OnionError::Tor(_)));
        for service in [ConnError::NoUsableIntroPoints, ConnError::NoUsableHsDirs, ConnError::InvalidHsId] {
            assert!(matches!(service.into(), OnionError::Service(_)));
        }
        assert!(not_asked(&DescriptorErrorDetail::Circuit(timeout())));
        assert!(!not_asked(&DescriptorErrorDetail::Timeout), "a relay may have been asked");
        assert!(not_met(&FailedAttemptError::RendezvousCircuitObtain { error: timeout() }));
    }
}
