//! Can anybody reach this home through it? The owner's own test, made as a client would: over Tor, to our own onion service.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use eebt_bridge::consensus::own_addresses;
use eebt_proto::special_use::special_use;
use eebt_tor::{Circuit, OnionConnector, PathKind};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tor_cell::relaycell::msg::EndReason;

use crate::router;

/// How long a way to ourselves, and one try, may take.
const WAY: Duration = Duration::from_secs(60);
const TRY: Duration = Duration::from_secs(15);

/// One place that must not be reached, and how the try ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// In words.
    pub place: String,
    /// Host and port as they were asked for.
    pub target: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Refused by policy, before anything was sent to the place.
    Refused,
    /// There was a connection.
    Reached,
    /// It ended otherwise, and proves nothing.
    Unclear,
}

/// Tries all of them. Empty when there is no way to ourselves now.
pub async fn try_all(connector: &OnionConnector, service: [u8; 32]) -> Vec<Tried> {
    let Ok(Ok(circuit)) = timeout(WAY, connector.exit_bridge(service, PathKind::Standard)).await else {
        return Vec::new();
    };
    let mut tried = Vec::new();
    for (place, host, port) in places(router::address(), own_addresses()) {
        let outcome = try_one(&circuit, &host, port).await;
        tried.push(Tried { place: place.to_owned(), target: format!("{host}:{port}"), outcome });
    }
    tried
}

async fn try_one(circuit: &Circuit, host: &str, port: u16) -> Outcome {
    use std::error::Error;
    match timeout(TRY, circuit.begin(host, port, false)).await {
        Ok(Ok(_stream)) => Outcome::Reached,
        Ok(Err(error)) => {
            let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
            while let Some(error) = cause {
                if let Some(tor_proto::Error::EndReceived(EndReason::EXITPOLICY)) = error.downcast_ref() {
                    return Outcome::Refused;
                }
                cause = error.source();
            }
            Outcome::Unclear
        }
        Err(_) => Outcome::Unclear,
    }
}

/// What must not be reached: place in words, host and port.
fn places(
    router: Option<Ipv4Addr>,
    own: impl IntoIterator<Item = IpAddr>,
) -> Vec<(&'static str, String, u16)> {
    let router = router.unwrap_or(Ipv4Addr::new(192, 168, 1, 1));
    let own: Vec<IpAddr> = own.into_iter().collect();
    let mine = own.iter().find(|ip| ip.is_ipv4() && !ip.is_loopback());
    let mine = mine.copied().unwrap_or(Ipv4Addr::new(192, 168, 1, 2).into());
    let [a, b, c, d] = router.octets();
    // Behind a router, each device has one of its own.
    let public = own.iter().find_map(|ip| match ip {
        IpAddr::V6(ip) if special_use((*ip).into()).is_none() => Some(Ipv6Addr::from_bits(ip.to_bits() ^ 9)),
        _ => None,
    });
    let encrypted = ("your router, encrypted", router.to_string(), 443);
    let public = public.map(|ip| ("a neighbour's public address, IPv6", ip.to_string(), 443));
    vec![
        ("your router", router.to_string(), 80),
        public.unwrap_or(encrypted),
        ("your router in IPv6's clothes", format!("::ffff:{router}"), 80),
        ("your router through a translator (NAT64)", format!("64:ff9b::{a:x}{b:02x}:{c:x}{d:02x}"), 80),
        ("a neighbour in your network", Ipv4Addr::new(a, b, c, d.wrapping_add(9)).to_string(), 80),
        ("this computer, from your network", mine.to_string(), 80),
        ("this computer itself", "127.0.0.1".into(), 80),
        ("this computer itself, IPv6", "::1".into(), 80),
        ("this computer by name", "localhost".into(), 80),
        ("a device by its name at home", "printer.local".into(), 80),
        ("devices without an address (link-local)", "169.254.1.1".into(), 80),
        ("devices without an address, IPv6", "fe80::1".into(), 80),
        ("what tells clouds their secrets", "169.254.169.254".into(), 80),
        ("your provider's inner network", "100.64.0.1".into(), 80),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use eebt_proto::{Host, Target};

    #[test]
    fn a_neighbour_has_a_public_address_where_this_computer_has_one() {
        let own = ["fe80::7", "2606:4700:1:200::7"].map(|ip| ip.parse().unwrap());
        let places = places(None, own);
        assert_eq!(places.len(), 14);
        assert_eq!(places[1].1, "2606:4700:1:200::e");
    }

    #[test]
    fn fourteen_places_none_of_which_is_a_public_one() {
        let places = places(Some("192.168.2.1".parse().unwrap()), ["192.168.2.7".parse().unwrap()]);
        assert_eq!(places.len(), 14);
        for (place, host, port) in places {
            match Target::new(&host, port) {
                Ok(Target { host: Host::Ip(ip), .. }) => {
                    assert!(special_use(ip).is_some(), "{place}: {host}")
                }
                Ok(_) => panic!("{place}: {host} is a name of public DNS"),
                Err(error) => assert_eq!(error, eebt_proto::TargetError::LocalName, "{place}"),
            }
        }
    }
}
