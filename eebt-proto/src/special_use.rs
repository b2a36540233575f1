//! Addresses that no stream ever leaves for: the special-use ranges (RFC 6890 and the IANA
//! registries it set up), IPv6 forms that embed an IPv4 address, and cloud metadata services.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One range that is closed, and what it is for.
struct Range4(Ipv4Addr, u8, &'static str);
struct Range6(Ipv6Addr, u8, &'static str);

const fn v4(a: u8, b: u8, c: u8, d: u8, len: u8, what: &'static str) -> Range4 {
    Range4(Ipv4Addr::new(a, b, c, d), len, what)
}

const CLOSED_V4: &[Range4] = &[
    v4(0, 0, 0, 0, 8, "this network"),
    v4(10, 0, 0, 0, 8, "private"),
    v4(100, 64, 0, 0, 10, "carrier-grade NAT"),
    v4(127, 0, 0, 0, 8, "loopback"),
    v4(168, 63, 129, 16, 32, "cloud metadata"),
    v4(169, 254, 0, 0, 16, "link-local"),
    v4(172, 16, 0, 0, 12, "private"),
    v4(192, 0, 0, 0, 24, "IETF protocol assignments"),
    v4(192, 0, 2, 0, 24, "documentation"),
    v4(192, 88, 99, 0, 24, "6to4 relay anycast"),
    v4(192, 168, 0, 0, 16, "private"),
    v4(198, 18, 0, 0, 15, "benchmarking"),
    v4(198, 51, 100, 0, 24, "documentation"),
    v4(203, 0, 113, 0, 24, "documentation"),
    v4(224, 0, 0, 0, 4, "multicast"),
    v4(240, 0, 0, 0, 4, "reserved"),
];

/// Closed parts of 2000::/3, the only global unicast space; all outside of it is closed anyway.
const CLOSED_GLOBAL_V6: &[Range6] = &[
    Range6(Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, "IETF protocol assignments and Teredo"),
    Range6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, "documentation"),
    Range6(Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, "6to4"),
    Range6(Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "documentation"),
];

/// Why `ip` is closed to every stream: the name of its range, or `None` for an ordinary address.
///
/// IPv4-mapped addresses (`::ffff:0:0/96`) and NAT64's well-known prefix (`64:ff9b::/96`,
/// RFC 6052) are judged by the IPv4 address inside. 6to4, Teredo, IPv4-compatible and local NAT64
/// (`64:ff9b:1::/48`, RFC 8215) forms are closed whatever they embed.
pub fn special_use(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(ip) => special_use_v4(ip),
        IpAddr::V6(ip) => special_use_v6(ip),
    }
}

fn special_use_v4(ip: Ipv4Addr) -> Option<&'static str> {
    CLOSED_V4
        .iter()
        .find(|Range4(net, len, _)| (u32::from(*net) ^ u32::from(ip)) >> (32 - len) == 0)
        .map(|range| range.2)
}

fn special_use_v6(ip: Ipv6Addr) -> Option<&'static str> {
    if let Some(inner) = embedded_v4(ip) {
        return special_use_v4(inner);
    }
    if ip.segments()[0] & 0xe000 != 0x2000 {
        return Some("not global unicast");
    }
    CLOSED_GLOBAL_V6
        .iter()
        .find(|Range6(net, len, _)| (u128::from(*net) ^ u128::from(ip)) >> (128 - len) == 0)
        .map(|range| range.2)
}

/// The address that a connection to `ip` really reaches: the IPv4 address inside a v4-mapped or NAT64
/// address, `ip` itself otherwise.
pub fn reached(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => embedded_v4(v6).map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    }
}

/// The IPv4 address that a v4-mapped or NAT64 address stands for.
fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = u128::from(ip);
    let prefix = bits >> 32;
    let nat64 = u128::from(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0)) >> 32;
    // The lower 32 bits of the 128.
    #[allow(clippy::cast_possible_truncation)]
    (prefix == 0xffff || prefix == nat64).then(|| Ipv4Addr::from(bits as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_use_addresses_are_closed() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "168.63.129.16",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::10.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::8.8.8.8",
            "100::1",
            "2001::1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:808:808::1",
            "3fff::1",
            "3fff:fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "4000::1",
            "1000::1",
        ] {
            assert!(special_use(text.parse().unwrap()).is_some(), "{text} must be closed");
        }
    }

    #[test]
    fn ordinary_addresses_are_open() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.1",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "168.63.129.15",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2a00:1450::1",
            "3ffe::1",
        ] {
            assert_eq!(special_use(text.parse().unwrap()), None, "{text} must be open");
        }
    }
}
