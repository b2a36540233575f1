//! NetworkManager: is the line paid by the byte, behind a log-in page, or a tunnel?

use std::time::Duration;

use super::bus::{Address, Bus, Object, Properties};
use super::reopen::{Broken, Open, Reopened};
use crate::sources::{Facts, Source};

const MANAGER: Object<'_> = Object {
    service: "org.freedesktop.NetworkManager",
    path: "/org/freedesktop/NetworkManager",
    interface: "org.freedesktop.NetworkManager",
};

/// Asks the NetworkManager on this bus.
pub fn source(bus: Address) -> impl Source {
    Reopened::new("NetworkManager", Duration::from_secs(5), move || Bus::open(&bus).map(NetworkManager))
}

struct NetworkManager(Bus);

impl Open for NetworkManager {
    fn facts(&mut self) -> Result<Facts, Broken> {
        Ok(facts(self.0.properties(MANAGER)?))
    }
}

fn facts(mut told: Properties) -> Facts {
    // It says "full" when it was told not to check.
    let checks: bool = told.take("ConnectivityCheckEnabled").unwrap_or(true);
    let connection: Option<String> = told.take("PrimaryConnectionType");
    Facts {
        metered: told.take("Metered").and_then(metered),
        captive_portal: told.take("Connectivity").filter(|_| checks).and_then(captive_portal),
        vpn: connection.as_deref().and_then(vpn),
        ..Facts::default()
    }
}

/// NMMetered: yes, no, and a guess at either.
fn metered(code: u32) -> Option<bool> {
    match code {
        1 | 3 => Some(true),
        2 | 4 => Some(false),
        _ => None,
    }
}

/// NMConnectivityState.
fn captive_portal(code: u32) -> Option<bool> {
    const UNKNOWN: u32 = 0;
    const PORTAL: u32 = 2;
    (code != UNKNOWN).then_some(code == PORTAL)
}

/// The type of the connection that has the default route; empty without one.
fn vpn(connection: &str) -> Option<bool> {
    (!connection.is_empty()).then(|| ["vpn", "wireguard", "tun", "ip-tunnel"].contains(&connection))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guess_that_the_line_is_metered_counts() {
        assert_eq!(
            [0, 1, 2, 3, 4, 9].map(metered),
            [None, Some(true), Some(false), Some(true), Some(false), None]
        );
    }

    #[test]
    fn only_a_portal_is_a_portal() {
        assert_eq!(
            [0, 1, 2, 3, 4].map(captive_portal),
            [None, Some(false), Some(true), Some(false), Some(false)]
        );
    }

    #[test]
    fn tunnels_are_vpns() {
        assert_eq!(
            ["vpn", "wireguard", "tun", "802-3-ethernet", ""].map(vpn),
            [Some(true), Some(true), Some(true), Some(false), None]
        );
    }
}
