//! Onion ingress: an onion service whose streams name real targets.
//!
//! It works from behind any NAT, since all its circuits go out. BEGIN on a rendezvous circuit carries
//! the host and port that the client wants, as on a circuit to a Tor exit, so no proxy protocol runs
//! inside. The service hides where it is from nobody who uses it: they can ask it to visit them.

use std::sync::Arc;

use arti_client::TorClient;
use eebt_proto::OnionReach;
use eebt_tor::{OnionService, Rendezvous, RendezvousPath, TorRuntime};
use futures::StreamExt as _;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tor_error::ErrorReport as _;
use tor_hsservice::RendRequest;

use super::{Incoming, IngressError, serve_circuit};
use crate::egress::Egress;
use crate::keys::BridgeKeys;

/// The onion service of an exit bridge.
pub struct OnionIngress {
    service: OnionService,
    rendezvous: Arc<Rendezvous>,
}

impl OnionIngress {
    /// Launches the service. It takes some seconds more until it can be found; see
    /// [`eebt_tor::OnionConnector::until_reachable`].
    ///
    /// # Errors
    /// See [`IngressError`].
    pub fn launch(
        tor: &Arc<TorClient<TorRuntime>>,
        keys: &BridgeKeys,
        path: RendezvousPath,
    ) -> Result<Self, IngressError> {
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| IngressError::Setup("onion service", e);
        let key = keys.service().ok_or_else(|| failed("its key is unusable".into()))?;
        let service = OnionService::launch(tor, key).map_err(|e| failed(Box::new(e)))?;
        let rendezvous = Rendezvous::new(Arc::clone(tor), path).map_err(|e| failed(Box::new(e)))?;
        Ok(Self { service, rendezvous: Arc::new(rendezvous) })
    }

    /// How clients find it.
    pub fn reach(&self) -> &OnionReach {
        &self.service.reach
    }

    /// Serves clients until `shutdown`; circuits that are open then go on for as long as this future
    /// is polled.
    pub async fn run(mut self, egress: Arc<Egress>, shutdown: CancellationToken) {
        let circuits = Arc::new(Semaphore::new(egress.limits().rendezvous_circuits as usize));
        let serving = async {
            while let Some(request) = self.service.requests.next().await {
                let Ok(place) = Arc::clone(&circuits).try_acquire_owned() else {
                    tracing::debug!("too many circuits: a client is not met");
                    continue;
                };
                let (egress, rendezvous) = (Arc::clone(&egress), Arc::clone(&self.rendezvous));
                tokio::spawn(async move {
                    serve_client(request, rendezvous, egress).await;
                    drop(place);
                });
            }
        };
        tokio::select! { () = serving => {}, () = shutdown.cancelled() => {} }
        drop(self.service);
        std::future::pending::<()>().await;
    }
}

/// Meets one client at the rendezvous point that it chose, and serves its streams.
async fn serve_client(request: RendRequest, rendezvous: Arc<Rendezvous>, egress: Arc<Egress>) {
    match timeout(egress.limits().handshake_timeout, request.accept_by(rendezvous)).await {
        Ok(Ok(streams)) => {
            let _here = egress.status().met_client();
            serve_circuit(streams.map(Incoming::Onion), egress, None).await;
        }
        Ok(Err(error)) => tracing::debug!(error = %error.report(), "a client was not met"),
        Err(_) => tracing::debug!("a client was not met in time"),
    }
}
