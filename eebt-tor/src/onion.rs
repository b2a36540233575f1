//! Circuits to onion services.

use std::sync::Arc;
use std::time::Duration;

use arti_client::{TorClient, TorClientConfig};
use eebt_proto::OnionReach;
use tokio::time::timeout;
use tor_circmgr::ClientOnionServiceDataTunnel;
use tor_circmgr::isolation::{IsolationToken, StreamIsolationBuilder};
use tor_error::ErrorReport as _;
use tor_hsclient::{HsClientConnector, HsClientSecretKeysBuilder};
use tor_netdir::{NetDir, Timeliness};

use crate::TorRuntime;

/// How long one try to reach a service of our own may take, and the pause after one that failed.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
const PROBE_PAUSE: Duration = Duration::from_millis(250);

/// Makes circuits to onion services. Arti's own client opens no stream to a target that a service leads to,
/// so the circuits are needed themselves.
pub struct OnionConnector {
    tor: Arc<TorClient<TorRuntime>>,
    connector: HsClientConnector<TorRuntime>,
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

impl OnionConnector {
    /// With the circuits of `tor`, which must have been bootstrapped.
    ///
    /// # Errors
    /// [`OnionError::Tor`].
    pub fn new(tor: Arc<TorClient<TorRuntime>>, config: &TorClientConfig) -> Result<Self, OnionError> {
        let pool = tor.hs_circ_pool().map_err(tor_error)?;
        let never = Box::pin(futures::stream::pending());
        let connector =
            HsClientConnector::new(tor.runtime().clone(), pool, config, never).map_err(tor_error)?;
        Ok(Self { tor, connector })
    }

    /// A new circuit to the service with the identity `service`, shared with nobody.
    ///
    /// # Errors
    /// See [`OnionError`].
    pub async fn circuit(&self, service: [u8; 32]) -> Result<Arc<ClientOnionServiceDataTunnel>, OnionError> {
        let dirmgr = self.tor.dirmgr().map_err(tor_error)?;
        let netdir: Arc<NetDir> = dirmgr.netdir(Timeliness::Timely).map_err(tor_error)?;
        let mut isolation = StreamIsolationBuilder::new();
        isolation.owner_token(IsolationToken::new());
        let isolation = isolation.build().map_err(tor_error)?;
        let keys = HsClientSecretKeysBuilder::default().build().map_err(tor_error)?;
        let tunnel = self.connector.get_or_launch_tunnel(&netdir, service.into(), keys, isolation);
        tunnel.await.map_err(|e| OnionError::Service(e.report().to_string()))
    }

    /// Waits until a circuit to `service`, one of our own, could be made as a client makes it: Arti's
    /// own status does not say for sure that the descriptor can be fetched.
    pub async fn until_reachable(&self, service: &OnionReach) {
        loop {
            match timeout(PROBE_TIMEOUT, self.circuit(service.service)).await {
                Ok(Ok(_circuit)) => return,
                Ok(Err(error)) => tracing::debug!(%error, "not reachable yet"),
                Err(_) => tracing::debug!("not reachable yet: no answer in time"),
            }
            tokio::time::sleep(PROBE_PAUSE).await;
        }
    }
}
