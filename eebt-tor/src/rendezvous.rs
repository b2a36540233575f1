//! Circuits of an onion service to the rendezvous points that its clients choose.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use arti_client::TorClient;
use async_trait::async_trait;
use serde::Deserialize;
use tokio::time::timeout;
use tor_circmgr::ServiceOnionServiceDataTunnel;
use tor_circmgr::build::onion_circparams_from_netparams;
use tor_circmgr::hspool::HsCircPool;
use tor_hsservice::RendCircConnector;
use tor_linkspec::verbatim::VerbatimLinkSpecCircTarget;
use tor_linkspec::{HasAddrs, HasRelayIds as _, OwnedCircTarget};
use tor_netdir::{NetDir, Relay};

use crate::circuit::{CircuitError, tor_error};
use crate::onion::SHORT_WAY_TIMEOUT;
use crate::{TorRuntime, hops};

/// Who stands between an onion service and the rendezvous point of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum RendezvousPath {
    /// The guard: relays at which clients happen to meet the service do not learn its address.
    #[default]
    Guard,
    /// Nobody: the relay at the rendezvous point learns the address, and that a service is there.
    Direct,
    /// As many as for a service that hides from its clients.
    Anonymous,
}

/// Makes them.
pub struct Rendezvous {
    tor: Arc<TorClient<TorRuntime>>,
    pool: Arc<HsCircPool<TorRuntime>>,
    path: RendezvousPath,
}

impl Rendezvous {
    /// With the guards of `tor`, which must have been bootstrapped.
    ///
    /// # Errors
    /// [`CircuitError::Tor`].
    pub fn new(tor: Arc<TorClient<TorRuntime>>, path: RendezvousPath) -> Result<Self, CircuitError> {
        let pool = tor.hs_circ_pool().map_err(tor_error)?;
        Ok(Self { tor, pool, path })
    }

    /// A circuit that is shorter than Arti's own. `None` where there should be none: the rendezvous point is the
    /// guard, or not in the consensus with these addresses (a client could have us or the guard connect to anything),
    /// or there is no guard to be known.
    async fn short(
        &self,
        netdir: &NetDir,
        target: &VerbatimLinkSpecCircTarget<OwnedCircTarget>,
    ) -> Option<ServiceOnionServiceDataTunnel> {
        let listed = netdir.by_ids(target).filter(|listed| is_at_listed_addresses(target, listed))?;
        let first = match self.path {
            RendezvousPath::Anonymous => return None,
            RendezvousPath::Direct => listed.clone(),
            RendezvousPath::Guard => hops::guard(&self.tor, netdir)
                .await
                .ok()
                .flatten()
                .filter(|guard| !guard.same_relay_ids(&listed))?,
        };
        let build = self.build(netdir, first, target);
        build.await.inspect_err(|error| tracing::debug!(%error, "no short way to a rendezvous point")).ok()
    }

    /// First hop, and the target if that is another relay.
    async fn build(
        &self,
        netdir: &NetDir,
        first: Relay<'_>,
        target: &VerbatimLinkSpecCircTarget<OwnedCircTarget>,
    ) -> Result<ServiceOnionServiceDataTunnel, CircuitError> {
        let params = onion_circparams_from_netparams(netdir.params()).map_err(tor_error)?;
        let is_target = first.has_all_relay_ids_from(target);
        let tunnel = ServiceOnionServiceDataTunnel::from(hops::build(&self.tor, vec![first], &params).await?);
        if !is_target {
            tunnel.extend(target, params).await.map_err(tor_error)?;
        }
        Ok(tunnel)
    }
}

/// A client that names a relay, but has it reached where it listens itself, would learn who comes.
fn is_at_listed_addresses(target: &impl HasAddrs, listed: &impl HasAddrs) -> bool {
    target.addrs().all(|addr| listed.addrs().any(|known| known == addr))
}

#[async_trait]
impl RendCircConnector for Rendezvous {
    async fn get_or_launch_specific(
        &self,
        netdir: &NetDir,
        target: VerbatimLinkSpecCircTarget<OwnedCircTarget>,
    ) -> tor_circmgr::Result<ServiceOnionServiceDataTunnel> {
        match timeout(SHORT_WAY_TIMEOUT, self.short(netdir, &target)).await {
            Ok(Some(tunnel)) => Ok(tunnel),
            Ok(None) | Err(_) => self.pool.get_or_launch_svc_rend(netdir, target).await,
        }
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wallclock(&self) -> SystemTime {
        SystemTime::now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tor_linkspec::OwnedChanTarget;

    fn at(addrs: &[&str]) -> OwnedChanTarget {
        let addrs = addrs.iter().map(|addr| addr.parse().unwrap()).collect();
        OwnedChanTarget::builder().addrs(addrs).ed_identity([7; 32].into()).build().unwrap()
    }

    #[test]
    fn only_addresses_that_are_listed_are_gone_to() {
        let listed = at(&["192.0.2.1:443", "[2001:db8::1]:443"]);
        assert!(is_at_listed_addresses(&at(&["192.0.2.1:443"]), &listed));
        assert!(is_at_listed_addresses(&at(&["[2001:db8::1]:443", "192.0.2.1:443"]), &listed));
        assert!(!is_at_listed_addresses(&at(&["192.0.2.1:444"]), &listed));
        assert!(!is_at_listed_addresses(&at(&["192.0.2.1:443", "198.51.100.1:443"]), &listed));
    }
}
