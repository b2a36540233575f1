//! What the exit bridge knows of the world around it: who is a relay, and where; from where directories test.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use eebt_proto::Surroundings;
use eebt_proto::limits::MAX_ECHOES;
use eebt_proto::special_use::special_use;
use futures::StreamExt as _;
use ipnet::IpNet;
use tor_linkspec::HasAddrs as _;
use tor_llcrypto::pk::ed25519::Ed25519Identity;
use tor_netdir::{NetDirProvider, Timeliness};

/// The current consensus, kept current by [`Consensus::follow`].
pub struct Consensus {
    provider: Arc<dyn NetDirProvider>,
    view: RwLock<Arc<View>>,
    /// Source addresses that are let in without being a relay's.
    allow_ingress: Vec<IpNet>,
    /// Addresses that are ours and that no interface shows (1:1 NAT).
    advertised: Vec<IpAddr>,
    /// Addresses of this machine, looked up again and again.
    own: RwLock<HashSet<IpAddr>>,
    /// Of each directory, by its number: the address that it saw us leave from.
    seen: RwLock<HashMap<usize, IpAddr>>,
    /// Of each directory, by its number: where its tests go to.
    echoes: RwLock<HashMap<usize, Vec<SocketAddr>>>,
}

/// How often the machine's own addresses are looked up: it may have come to another network.
const LOOK: Duration = Duration::from_secs(30);

/// Bits of an IPv6 address that a home or a customer has in common; the smallest networks that providers give are of 64.
const SITE_BITS: u32 = 56;

/// Addresses, gathered once per consensus.
#[derive(Default)]
struct View {
    /// Of relays that are no exits.
    source_ips: HashSet<IpAddr>,
    or_ports: HashSet<SocketAddr>,
}

impl Consensus {
    /// Follows `provider`.
    pub fn new(
        provider: Arc<dyn NetDirProvider>,
        allow_ingress: Vec<IpNet>,
        advertised: Vec<IpAddr>,
    ) -> Self {
        let (view, own, seen, echoes) = Default::default();
        let consensus = Self { provider, view, allow_ingress, advertised, own, seen, echoes };
        consensus.refresh();
        consensus.look();
        consensus
    }

    /// Takes over each new consensus, and the machine's own addresses. Never returns while the provider lives.
    pub async fn follow(&self) {
        let mut events = self.provider.events();
        // After subscribing, so that none is missed.
        self.refresh();
        loop {
            match tokio::time::timeout(LOOK, events.next()).await {
                Ok(Some(_)) => self.refresh(),
                Ok(None) => return,
                Err(_) => {}
            }
            self.look();
        }
    }

    fn look(&self) {
        *self.own.write().unwrap_or_else(PoisonError::into_inner) = own_addresses();
    }

    fn refresh(&self) {
        let mut view = View::default();
        if let Ok(netdir) = self.provider.netdir(Timeliness::Unchecked) {
            for relay in netdir.relays() {
                // Everybody can come from an exit's address, through Tor. Clients whose circuits
                // end here choose no exit as their middle.
                let exit = relay.low_level_details().policies_allow_some_port();
                for addr in relay.addrs() {
                    if !exit {
                        view.source_ips.insert(addr.ip().to_canonical());
                    }
                    view.or_ports.insert(addr);
                }
            }
        }
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
    }

    fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Is this the identity of a relay in a consensus that is still valid?
    pub fn is_relay_identity(&self, id: &Ed25519Identity) -> bool {
        self.provider.timely_netdir().is_ok_and(|netdir| netdir.by_id(id).is_some())
    }

    /// May a connection from this address try to become a channel?
    pub fn may_be_relay(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.view().source_ips.contains(&ip) || self.allow_ingress.iter().any(|net| net.contains(&ip))
    }

    /// A directory saw us leave from this address.
    pub fn set_seen(&self, directory: usize, address: IpAddr) {
        self.seen.write().unwrap_or_else(PoisonError::into_inner).insert(directory, address.to_canonical());
    }

    /// Where the tests of a directory go to from now on.
    pub fn set_echoes(&self, directory: usize, echoes: Vec<SocketAddr>) {
        let plain = |echo: SocketAddr| SocketAddr::new(echo.ip().to_canonical(), echo.port());
        let echoes = echoes.into_iter().take(MAX_ECHOES).map(plain).collect();
        self.echoes.write().unwrap_or_else(PoisonError::into_inner).insert(directory, echoes);
    }

    /// Number of OR ports known.
    pub fn relays(&self) -> usize {
        self.view().or_ports.len()
    }
}

impl Surroundings for Consensus {
    fn is_own(&self, ip: IpAddr) -> bool {
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner);
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        own.iter().chain(seen.values()).chain(&self.advertised).any(|own| is_same_site(*own, ip))
    }

    fn is_relay(&self, addr: SocketAddr) -> bool {
        self.view().or_ports.contains(&addr)
    }

    fn is_echo(&self, addr: SocketAddr) -> bool {
        let echoes = self.echoes.read().unwrap_or_else(PoisonError::into_inner);
        echoes.values().flatten().any(|echo| *echo == addr)
    }
}

/// Is it the same address, or one of the same home? Behind a router each device has a public IPv6 address, and what comes from inside
/// passes no firewall.
fn is_same_site(own: IpAddr, ip: IpAddr) -> bool {
    match (own, ip) {
        (IpAddr::V6(own_v6), IpAddr::V6(v6)) if special_use(own).is_none() => {
            (own_v6.to_bits() ^ v6.to_bits()) >> (128 - SITE_BITS) == 0
        }
        _ => own == ip,
    }
}

/// Addresses of this machine's interfaces.
pub fn own_addresses() -> HashSet<IpAddr> {
    match if_addrs::get_if_addrs() {
        Ok(interfaces) => interfaces.iter().map(if_addrs::Interface::ip).collect(),
        Err(error) => {
            // Private ranges stay closed all the same; public ones of ours come from `advertised`.
            tracing::warn!(%error, "cannot list this machine's addresses");
            HashSet::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_over_ipv6_are_the_same_site_and_over_ipv4_they_are_not() {
        let same = |own: &str, ip: &str| is_same_site(own.parse().unwrap(), ip.parse().unwrap());
        assert!(same("2606:4700:1:2ff::5", "2606:4700:1:2ff::1"));
        assert!(same("2606:4700:1:2ff::5", "2606:4700:1:200::1"), "another network of the same home");
        assert!(!same("2606:4700:1:2ff::5", "2606:4700:1:3ff::1"));
        assert!(!same("1.1.1.1", "1.1.1.2") && same("1.1.1.1", "1.1.1.1"));
        assert!(!same("::1", "::2"), "what is special anyway stands for itself");
    }

    #[test]
    fn loopback_is_among_our_own_addresses() {
        assert!(own_addresses().contains(&std::net::Ipv4Addr::LOCALHOST.into()));
    }
}
