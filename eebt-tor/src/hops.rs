//! The first hops of circuits that we lay ourselves, not Arti's pools.

use std::collections::HashSet;
use std::sync::LazyLock;

use arti_client::{TorClient, TorClientConfig};
use tor_chanmgr::ChannelUsage;
use tor_circmgr::isolation::StreamIsolation;
use tor_circmgr::path::TorPath;
use tor_circmgr::{CircMgrConfig as _, TargetPort};
use tor_error::ErrorReport as _;
use tor_netdir::{NetDir, Relay};
use tor_proto::ClientTunnel;
use tor_proto::client::circuit::CircParameters;
use tor_relay_selection::{RelayExclusion, RelaySelectionConfig, RelaySelector, RelayUsage};

use crate::TorRuntime;
use crate::circuit::{CircuitError, tor_error};

/// The guard that Arti's own circuits use. `None` when it is a Tor bridge, which no public path names, or there are
/// no Tor exits to learn it from.
pub(crate) async fn guard<'a>(
    tor: &TorClient<TorRuntime>,
    netdir: &'a NetDir,
) -> Result<Option<Relay<'a>>, CircuitError> {
    let circmgr = tor.circmgr().map_err(tor_error)?;
    let (ports, isolation) = ([TargetPort::ipv4(443)], StreamIsolation::no_isolation());
    match circmgr.get_or_launch_exit(netdir.into(), &ports, isolation).await {
        Ok(tunnel) => Ok(netdir.by_ids(&tunnel.as_ref().first_hop().map_err(tor_error)?)),
        Err(error) => {
            tracing::debug!(error = %error.report(), "no plain circuit to learn the guard from");
            Ok(None)
        }
    }
}

/// What is too near each other for one circuit.
pub(crate) fn rules(config: &TorClientConfig) -> RelaySelectionConfig<'static> {
    static NONE: LazyLock<HashSet<u16>> = LazyLock::new(HashSet::new);
    RelaySelectionConfig { long_lived_ports: &NONE, subnet_config: config.path_rules().subnet_config() }
}

/// A relay for `usage`, chosen as for any circuit: away from the guard, and none of `not`.
pub(crate) fn beside<'a>(
    guard: &Relay<'a>,
    netdir: &'a NetDir,
    rules: &RelaySelectionConfig<'a>,
    usage: RelayUsage,
    mut not: RelayExclusion<'a>,
) -> Result<Relay<'a>, CircuitError> {
    let family = netdir.params().into();
    not.extend(&RelayExclusion::exclude_relays_in_same_family(rules, vec![guard.clone()], family));
    let (relay, _info) = RelaySelector::new(usage, not).select_relay(&mut rand::rng(), netdir);
    relay.ok_or_else(|| CircuitError::Tor("no relay can stand beside the guard".to_owned()))
}

/// A circuit of these relays.
pub(crate) async fn build(
    tor: &TorClient<TorRuntime>,
    relays: Vec<Relay<'_>>,
    params: &CircParameters,
) -> Result<ClientTunnel, CircuitError> {
    let path = TorPath::new_multihop(relays);
    let circmgr = tor.circmgr().map_err(tor_error)?;
    circmgr.builder().build(&path, params, ChannelUsage::UserTraffic).await.map_err(tor_error)
}
