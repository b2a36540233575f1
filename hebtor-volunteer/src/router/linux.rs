//! As the kernel knows it (proc(5)).

use std::net::Ipv4Addr;

/// Its address.
pub fn address() -> Option<Ipv4Addr> {
    by_default(&read("/proc/net/route"))
}

/// Its hardware address, which tells one line from another: `02:00:00:00:00:05`.
pub fn hardware_address() -> Option<String> {
    at(&read("/proc/net/arp"), address()?)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// From the table of routes: columns by tabs, addresses in hexadecimal as they lie in memory.
fn by_default(table: &str) -> Option<Ipv4Addr> {
    table.lines().skip(1).find_map(|line| {
        let mut columns = line.split_ascii_whitespace().skip(1);
        let (to, by) = (columns.next()?, columns.next()?);
        (to == "00000000" && by != "00000000")
            .then(|| u32::from_str_radix(by, 16).ok())
            .flatten()
            .map(|bits| Ipv4Addr::from(bits.to_ne_bytes()))
    })
}

/// From the table of neighbours: address, kind, flags, hardware address.
fn at(table: &str, address: Ipv4Addr) -> Option<String> {
    table.lines().skip(1).find_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        let is_it = columns.next()?.parse() == Ok(address);
        // All zeros while it was not asked yet.
        let hardware =
            columns.nth(2).filter(|hardware| hardware.bytes().any(|c| !matches!(c, b'0' | b':')))?;
        is_it.then(|| hardware.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_router_is_that_of_the_default_route() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
                     eth0\t0002A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\n\
                     eth0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\n";
        assert_eq!(by_default(table), Some("192.168.2.1".parse().unwrap()));
        assert_eq!(by_default(""), None);
    }

    #[test]
    fn it_has_the_hardware_address_that_it_answered_from() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
                     192.168.2.7      0x1         0x2         02:00:00:00:00:07     *        eth0\n\
                     192.168.2.8      0x1         0x0         00:00:00:00:00:00     *        eth0\n\
                     192.168.2.1      0x1         0x2         02:00:00:00:00:05     *        eth0\n";
        let of = |address: &str| at(table, address.parse().unwrap());
        assert_eq!(of("192.168.2.1").as_deref(), Some("02:00:00:00:00:05"));
        assert_eq!((of("192.168.2.8"), of("192.168.2.9")), (None, None));
    }
}
