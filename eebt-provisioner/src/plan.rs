//! What is going to be made: which address and which port each new instance gets.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use eebt_proto::special_use::special_use;
use ipnet::IpNet;

use crate::instance::Instance;
use crate::machine::Listening;

/// Most instances of one `eebt up`.
pub const MAX_COUNT: u16 = 100;

/// Ports that are drawn from: above the well-known ones, below the usual ephemeral end.
pub const PORTS: std::ops::RangeInclusive<u16> = 20_000..=59_999;

/// Most addresses of a range that are tried: a /64 has more than anyone can.
const MAX_TRIED: usize = 4096;

/// Most draws for a free port.
const MAX_DRAWS: usize = 200;

/// What the operator asks for, as far as addresses and ports go.
#[derive(Clone, Debug)]
pub struct Request {
    /// How many instances.
    pub count: u16,
    /// Addresses that may be used, in order; empty for the one that leads to the Internet.
    pub addresses: Vec<IpNet>,
    /// Where to listen when `addresses` is one public address that is not on this machine.
    pub listen_ip: Option<IpAddr>,
    /// The port; a random one if `None`.
    pub port: Option<u16>,
    /// On a private Tor network special-use addresses are fine.
    pub private_network: bool,
}

/// Where one new instance is going to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Where clients reach it.
    pub address: SocketAddr,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its status page.
    pub status: SocketAddr,
}

/// The machine, as far as planning looks at it.
pub struct Machine<'a> {
    /// The address that packets to the Internet would leave from.
    pub source: Option<IpAddr>,
    /// The addresses of its interfaces. It may have more: all of 127.0.0.0/8, or a routed prefix.
    pub interfaces: &'a [IpAddr],
    /// What happens to someone who listens there.
    pub try_listen: &'a dyn Fn(SocketAddr) -> Listening,
    /// Draws a port.
    pub draw_port: &'a dyn Fn() -> u16,
}

/// Why there is no plan. Each names the field at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No way to the Internet, and no address was given.
    #[error("--address: not given, and this machine has no route to the Internet to take one from")]
    NoAddress,
    /// The machine's address is of no use to others, and no address was given.
    #[error(
        "--address: not given, and this machine's own address {ip} can't be reached from the Internet ({kind})"
    )]
    BehindNat {
        /// The address.
        ip: IpAddr,
        /// What kind of address it is.
        kind: &'static str,
    },
    /// An address that no Tor relay can reach.
    #[error("--address: {ip} can't be reached from the Internet ({kind})")]
    Unreachable {
        /// The address.
        ip: IpAddr,
        /// What kind of address it is.
        kind: &'static str,
    },
    /// An address that is not on this machine.
    #[error("{field}: {ip} is not an address of this machine")]
    NotHere {
        /// The field.
        field: &'static str,
        /// The address.
        ip: IpAddr,
    },
    /// A range that this machine has no part in.
    #[error("--address: this machine has no address in {ranges}")]
    NoneHere {
        /// The ranges.
        ranges: String,
    },
    /// 1:1 NAT needs both halves.
    #[error("--listen-ip: needs --address with the one public address that leads to it")]
    OnePublicAddress,
    /// The port is in use.
    #[error("--port: {port} is taken on {ip}")]
    PortTaken {
        /// The port.
        port: u16,
        /// The address.
        ip: IpAddr,
    },
    /// The system does not let us listen.
    #[error("--port: not allowed to listen on port {port} of {ip}")]
    PortDenied {
        /// The port.
        port: u16,
        /// The address.
        ip: IpAddr,
    },
    /// Nothing is free.
    #[error("--address: no free port on {ip}")]
    NoPort {
        /// The address.
        ip: IpAddr,
    },
}

impl PlanError {
    /// What to try.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoAddress => "give an address of this machine with --address IP".into(),
            Self::BehindNat { ip, .. } => format!(
                "behind a 1:1 NAT, as in many clouds: --address PUBLIC_IP --listen-ip {ip}; on a private Tor \
                 network: --network FILE --address IP"
            ),
            Self::Unreachable { .. } => "on a private Tor network add --network FILE".into(),
            Self::NotHere { field: "--address", .. } => {
                "if a 1:1 NAT leads to this machine, add --listen-ip with the address it has here".into()
            }
            Self::NotHere { .. } | Self::NoneHere { .. } => {
                "`ip addr` lists the addresses of this machine".into()
            }
            Self::OnePublicAddress => "--address PUBLIC_IP --listen-ip LOCAL_IP".into(),
            Self::PortTaken { .. } => "leave --port out for a random free one, or give more addresses".into(),
            Self::PortDenied { port, .. } if *port < 1024 => "ports below 1024 need privileges".into(),
            Self::PortDenied { .. } | Self::NoPort { .. } => return None,
        })
    }
}

/// Chooses a place for each new instance, next to the `live` ones.
///
/// Addresses are taken in turn: first those that no instance uses, then the least used.
///
/// # Errors
/// See [`PlanError`].
pub fn choose(request: &Request, live: &[Instance], machine: &Machine<'_>) -> Result<Vec<Slot>, PlanError> {
    let ips = choose_ips(request, live, machine)?;
    let mut taken: Vec<SocketAddr> = live.iter().flat_map(|row| [row.listen, row.status]).collect();
    let mut slots = Vec::new();
    for (public, here) in ips {
        let listen = choose_port(here, request.port, &taken, machine)?;
        taken.push(listen);
        let status = choose_port(Ipv4Addr::LOCALHOST.into(), None, &taken, machine)?;
        taken.push(status);
        slots.push(Slot { address: SocketAddr::new(public, listen.port()), listen, status });
    }
    Ok(slots)
}

/// For each new instance: the address that clients use, and the one to listen on.
fn choose_ips(
    request: &Request,
    live: &[Instance],
    machine: &Machine<'_>,
) -> Result<Vec<(IpAddr, IpAddr)>, PlanError> {
    let count = usize::from(request.count);
    let reachable = |ip: IpAddr| match special_use(ip) {
        Some(kind) if !request.private_network => Err(PlanError::Unreachable { ip, kind }),
        _ => Ok(ip),
    };
    if let Some(here) = request.listen_ip {
        let [net] = request.addresses[..] else { return Err(PlanError::OnePublicAddress) };
        if net.prefix_len() != net.max_prefix_len() {
            return Err(PlanError::OnePublicAddress);
        }
        if (machine.try_listen)(SocketAddr::new(here, 0)) == Listening::NotHere {
            return Err(PlanError::NotHere { field: "--listen-ip", ip: here });
        }
        return Ok(vec![(reachable(net.addr())?, here); count]);
    }
    if request.addresses.is_empty() {
        let ip = machine.source.ok_or(PlanError::NoAddress)?;
        reachable(ip).map_err(|err| match err {
            PlanError::Unreachable { ip, kind } => PlanError::BehindNat { ip, kind },
            other => other,
        })?;
        return Ok(vec![(ip, ip); count]);
    }

    let mut uses: HashMap<IpAddr, usize> = HashMap::new();
    for row in live {
        *uses.entry(row.listen.ip()).or_default() += 1;
    }
    let mut usable: Vec<IpAddr> = Vec::new();
    let mut fresh = 0;
    let in_range = |ip: &&IpAddr| request.addresses.iter().any(|net| net.contains(*ip));
    let of_interfaces = machine.interfaces.iter().filter(in_range).copied();
    for ip in request.addresses.iter().flat_map(ips_of).take(MAX_TRIED).chain(of_interfaces) {
        if fresh == count {
            break;
        }
        if usable.contains(&ip) || (machine.try_listen)(SocketAddr::new(ip, 0)) != Listening::Works {
            continue;
        }
        usable.push(reachable(ip)?);
        fresh += usize::from(!uses.contains_key(&ip));
    }
    let mut chosen = Vec::new();
    for _ in 0..count {
        let least = usable.iter().min_by_key(|ip| uses.get(ip).copied().unwrap_or_default());
        let ip = *least.ok_or_else(|| match &request.addresses[..] {
            [net] if net.prefix_len() == net.max_prefix_len() => {
                PlanError::NotHere { field: "--address", ip: net.addr() }
            }
            nets => PlanError::NoneHere {
                ranges: nets.iter().map(IpNet::to_string).collect::<Vec<_>>().join(", "),
            },
        })?;
        *uses.entry(ip).or_default() += 1;
        chosen.push((ip, ip));
    }
    Ok(chosen)
}

/// The addresses of a range that a machine may have: without the network's and the broadcast
/// address, and without the subnet-router anycast address (RFC 4291, section 2.6.1).
fn ips_of(net: &IpNet) -> impl Iterator<Item = IpAddr> + use<> {
    let anycast = match net {
        IpNet::V6(net) if net.prefix_len() < 127 => Some(IpAddr::from(net.network())),
        _ => None,
    };
    net.hosts().filter(move |ip| Some(*ip) != anycast)
}

fn choose_port(
    ip: IpAddr,
    wanted: Option<u16>,
    taken: &[SocketAddr],
    machine: &Machine<'_>,
) -> Result<SocketAddr, PlanError> {
    if let Some(port) = wanted {
        let addr = SocketAddr::new(ip, port);
        return match (machine.try_listen)(addr) {
            Listening::Works if !taken.contains(&addr) => Ok(addr),
            Listening::Denied => Err(PlanError::PortDenied { port, ip }),
            _ => Err(PlanError::PortTaken { port, ip }),
        };
    }
    (0..MAX_DRAWS)
        .map(|_| SocketAddr::new(ip, (machine.draw_port)()))
        .find(|addr| !taken.contains(addr) && (machine.try_listen)(*addr) == Listening::Works)
        .ok_or(PlanError::NoPort { ip })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::State;
    use crate::instance::tests::row;
    use std::cell::Cell;

    fn request(count: u16, addresses: &[&str]) -> Request {
        Request {
            count,
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            listen_ip: None,
            port: None,
            private_network: true,
        }
    }

    /// A machine with 127.45.0.0/24, 1.2.3.4 and 10.0.0.5, where ports below 20003 are in use.
    fn plan(request: &Request, live: &[Instance]) -> Result<Vec<Slot>, PlanError> {
        let next = Cell::new(20_000);
        let try_listen = |addr: SocketAddr| match addr.ip().to_string() {
            ip if !(ip.starts_with("127.")
                || ["1.2.3.4", "10.0.0.5", "2a00::7", "2a00::ffff:7"].contains(&&*ip)) =>
            {
                Listening::NotHere
            }
            _ if addr.port() == 443 => Listening::Denied,
            _ if addr.port() != 0 && addr.port() < 20_003 => Listening::Taken,
            _ => Listening::Works,
        };
        let machine = Machine {
            source: Some("1.2.3.4".parse().unwrap()),
            interfaces: &["2a00::ffff:7".parse().unwrap(), "1.2.3.4".parse().unwrap()],
            try_listen: &try_listen,
            draw_port: &|| next.replace(next.get() + 1),
        };
        choose(request, live, &machine)
    }

    fn ips(request: &Request, live: &[Instance]) -> Vec<String> {
        plan(request, live).unwrap().iter().map(|slot| slot.listen.ip().to_string()).collect()
    }

    #[test]
    fn addresses_are_taken_in_turn_and_free_ones_first() {
        assert_eq!(ips(&request(2, &["127.45.0.0/24"]), &[]), ["127.45.0.1", "127.45.0.2"]);
        let live = [row("x", State::Running)];
        assert_eq!(ips(&request(2, &["127.45.0.0/24"]), &live), ["127.45.0.2", "127.45.0.3"]);
        let few = request(3, &["127.45.0.1/32", "127.45.0.9/32"]);
        assert_eq!(ips(&few, &live), ["127.45.0.9", "127.45.0.1", "127.45.0.9"]);
    }

    #[test]
    fn a_huge_range_is_not_walked_to_its_end() {
        assert_eq!(ips(&request(1, &["2a00::/64"]), &[]), ["2a00::7"]);
        assert_eq!(ips(&request(2, &["2a00::/64"]), &[]), ["2a00::7", "2a00::ffff:7"]);
        let err = plan(&request(1, &["2a01::/64"]), &[]).unwrap_err();
        assert_eq!(err.to_string(), "--address: this machine has no address in 2a01::/64");
    }

    #[test]
    fn no_two_instances_share_a_port() {
        let slots = plan(&request(5, &["127.45.0.1/32"]), &[]).unwrap();
        let mut ports: Vec<u16> =
            slots.iter().flat_map(|slot| [slot.listen.port(), slot.status.port()]).collect();
        assert!(ports.iter().all(|port| *port >= 20_003), "{ports:?}");
        ports.dedup();
        assert_eq!(ports.len(), 10);
    }

    #[test]
    fn without_an_address_the_way_to_the_internet_is_taken() {
        let public = Request { private_network: false, ..request(1, &[]) };
        assert_eq!(ips(&public, &[]), ["1.2.3.4"]);
        let try_listen = |_| Listening::Works;
        let machine = |source: Option<&str>| Machine {
            source: source.map(|ip| ip.parse().unwrap()),
            interfaces: &[],
            try_listen: &try_listen,
            draw_port: &|| 30_000,
        };
        let err = choose(&public, &[], &machine(Some("192.168.1.7"))).unwrap_err();
        assert!(err.to_string().contains("192.168.1.7") && err.hint().unwrap().contains("NAT"), "{err}");
        assert_eq!(choose(&public, &[], &machine(None)), Err(PlanError::NoAddress));
    }

    #[test]
    fn behind_a_one_to_one_nat_line_and_listener_differ() {
        let here = Some("10.0.0.5".parse().unwrap());
        let nat = Request { private_network: false, listen_ip: here, ..request(1, &["5.6.7.8/32"]) };
        let slot = plan(&nat, &[]).unwrap()[0];
        assert_eq!(slot.address.ip().to_string(), "5.6.7.8");
        assert_eq!(slot.listen.ip().to_string(), "10.0.0.5");
        assert_eq!(slot.address.port(), slot.listen.port());
        let wrong = Request { addresses: vec!["5.6.7.0/24".parse().unwrap()], ..nat.clone() };
        assert_eq!(plan(&wrong, &[]), Err(PlanError::OnePublicAddress));
        let elsewhere = Request { listen_ip: Some("10.0.0.6".parse().unwrap()), ..nat };
        assert!(matches!(plan(&elsewhere, &[]), Err(PlanError::NotHere { field: "--listen-ip", .. })));
    }

    #[test]
    fn addresses_of_no_use_are_refused_by_name() {
        let public = Request { private_network: false, ..request(1, &["127.45.0.1/32"]) };
        assert!(matches!(plan(&public, &[]), Err(PlanError::Unreachable { kind: "loopback", .. })));
        let err = plan(&request(1, &["9.9.9.9/32"]), &[]).unwrap_err();
        assert_eq!(err.to_string(), "--address: 9.9.9.9 is not an address of this machine");
    }

    #[test]
    fn a_wanted_port_is_had_once_per_address() {
        let wanted = |count, port| Request { port: Some(port), ..request(count, &["127.45.0.1/32"]) };
        assert_eq!(plan(&wanted(1, 30_000), &[]).unwrap()[0].listen.port(), 30_000);
        assert!(matches!(plan(&wanted(2, 30_000), &[]), Err(PlanError::PortTaken { .. })));
        assert!(matches!(plan(&wanted(1, 443), &[]), Err(PlanError::PortDenied { .. })));
    }
}
