//! As Windows and macOS tell.

use std::net::Ipv4Addr;

use netdev::MacAddr;

/// Its address.
pub fn address() -> Option<Ipv4Addr> {
    netdev::get_default_gateway().ok()?.ipv4.first().copied()
}

/// Its hardware address: `02:00:00:00:00:05`.
pub fn hardware_address() -> Option<String> {
    let hardware = netdev::get_default_gateway().ok()?.mac_addr;
    (hardware != MacAddr::zero()).then(|| hardware.to_string())
}
