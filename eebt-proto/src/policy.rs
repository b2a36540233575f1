//! May this stream leave? A pure function of the policy, the address and what is around.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::hosts::HostRules;
use crate::ports::PortSet;
use crate::special_use::{reached, special_use};
use crate::target::{Host, Target};

/// What an exit bridge lets out. Closed by default: web ports, ordinary addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExitPolicy {
    /// Ports that are open.
    pub ports: PortSet,
    /// Special-use ranges that a test network opens. Empty everywhere else.
    pub lifted: Vec<IpNet>,
    /// Hosts that are open, and hosts that are not.
    pub hosts: HostRules,
}

/// What the policy has to know of the world: answered by the exit bridge, faked by tests.
pub trait Surroundings {
    /// Is this an address of the exit bridge itself, or of the machine it runs on?
    fn is_own(&self, ip: IpAddr) -> bool;
    /// Is this an OR port of a relay in the current consensus? A stream to one would re-enter Tor.
    fn is_relay(&self, addr: SocketAddr) -> bool;
    /// Does an exit-bridge directory test exit bridges by visits to this address?
    fn is_echo(&self, _addr: SocketAddr) -> bool {
        false
    }
}

/// Why a stream may not leave. Carries no address: it may be logged and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The port is outside the policy.
    #[error("port outside the exit policy")]
    Port,
    /// The host is.
    #[error("host outside the exit policy")]
    Host,
    /// A special-use address; the field says which kind.
    #[error("special-use address ({0})")]
    SpecialUse(&'static str),
    /// The exit bridge's own machine.
    #[error("the exit bridge's own address")]
    OwnAddress,
    /// A Tor relay's OR port.
    #[error("a Tor relay")]
    Relay,
}

impl ExitPolicy {
    fn check_port(&self, port: u16) -> Result<(), Refusal> {
        if self.ports.contains(port) { Ok(()) } else { Err(Refusal::Port) }
    }

    /// The part of the decision that comes before the address of a name is known, so that none is resolved in vain.
    ///
    /// # Errors
    /// [`Refusal::Port`], [`Refusal::Host`].
    pub fn check_target(
        &self,
        target: &Target,
        around: &(impl Surroundings + ?Sized),
    ) -> Result<(), Refusal> {
        self.check_port(target.port)?;
        self.check_host(&target.host)
            .or_else(|why| if self.is_test(target, around) { Ok(()) } else { Err(why) })
    }

    /// Is `target` open only because a directory tests exit bridges there?
    pub fn is_test(&self, target: &Target, around: &(impl Surroundings + ?Sized)) -> bool {
        let is_echo = |ip: IpAddr| around.is_echo(SocketAddr::new(ip.to_canonical(), target.port));
        self.check_host(&target.host).is_err() && matches!(target.host, Host::Ip(ip) if is_echo(ip))
    }

    /// Is `host` open whatever the port and the address?
    ///
    /// # Errors
    /// [`Refusal::Host`].
    pub fn check_host(&self, host: &Host) -> Result<(), Refusal> {
        if self.hosts.lets_out(host) { Ok(()) } else { Err(Refusal::Host) }
    }

    /// Is `ip` closed whatever the port? An address in a lifted range is still closed when it is
    /// our own.
    ///
    /// # Errors
    /// [`Refusal::OwnAddress`], [`Refusal::SpecialUse`].
    pub fn check_ip(&self, ip: IpAddr, around: &(impl Surroundings + ?Sized)) -> Result<(), Refusal> {
        if around.is_own(reached(ip)) {
            return Err(Refusal::OwnAddress);
        }
        let ip = ip.to_canonical();
        match special_use(ip) {
            Some(what) if !self.lifted.iter().any(|net| net.contains(&ip)) => Err(Refusal::SpecialUse(what)),
            _ => Ok(()),
        }
    }

    /// May a stream leave for `addr`? Asked of every address, right before connecting to it.
    ///
    /// # Errors
    /// The first reason found, see [`Refusal`].
    pub fn check(&self, addr: SocketAddr, around: &(impl Surroundings + ?Sized)) -> Result<(), Refusal> {
        self.check_port(addr.port())?;
        self.check_ip(addr.ip(), around)?;
        if around.is_relay(SocketAddr::new(reached(addr.ip()), addr.port())) {
            return Err(Refusal::Relay);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct World;
    impl Surroundings for World {
        fn is_own(&self, ip: IpAddr) -> bool {
            ip == IpAddr::from([8, 8, 4, 4]) || ip == IpAddr::from([127, 9, 0, 1])
        }
        fn is_relay(&self, addr: SocketAddr) -> bool {
            addr == SocketAddr::from(([9, 9, 9, 9], 443))
        }
        fn is_echo(&self, addr: SocketAddr) -> bool {
            addr == SocketAddr::from(([5, 5, 5, 5], 80))
        }
    }

    fn check(policy: &ExitPolicy, addr: &str) -> Result<(), Refusal> {
        policy.check(addr.parse().unwrap(), &World)
    }

    #[test]
    fn the_default_lets_web_out_and_nothing_else() {
        let policy = ExitPolicy::default();
        assert_eq!(check(&policy, "1.1.1.1:443"), Ok(()));
        assert_eq!(check(&policy, "[2606:4700::1111]:80"), Ok(()));
        assert_eq!(check(&policy, "1.1.1.1:22"), Err(Refusal::Port));
        assert_eq!(check(&policy, "192.168.1.1:80"), Err(Refusal::SpecialUse("private")));
        assert_eq!(check(&policy, "[::ffff:169.254.169.254]:80"), Err(Refusal::SpecialUse("link-local")));
        assert_eq!(check(&policy, "8.8.4.4:443"), Err(Refusal::OwnAddress));
        assert_eq!(check(&policy, "[::ffff:8.8.4.4]:443"), Err(Refusal::OwnAddress));
        assert_eq!(check(&policy, "[64:ff9b::8.8.4.4]:443"), Err(Refusal::OwnAddress));
        assert_eq!(check(&policy, "[64:ff9b::9.9.9.9]:443"), Err(Refusal::Relay));
        assert_eq!(check(&policy, "9.9.9.9:443"), Err(Refusal::Relay));
        assert_eq!(check(&policy, "9.9.9.9:80"), Ok(()));
    }

    #[test]
    fn a_lifted_range_opens_just_that_range() {
        let policy = ExitPolicy { lifted: vec!["127.0.0.0/8".parse().unwrap()], ..Default::default() };
        assert_eq!(check(&policy, "127.1.2.3:80"), Ok(()));
        assert_eq!(check(&policy, "[::ffff:127.1.2.3]:80"), Ok(()));
        assert_eq!(check(&policy, "127.9.0.1:80"), Err(Refusal::OwnAddress));
        assert_eq!(check(&policy, "127.1.2.3:81"), Err(Refusal::Port));
        assert!(check(&policy, "10.0.0.1:80").is_err());
    }

    #[test]
    fn where_hosts_were_chosen_addresses_are_closed_but_for_a_directorys_tests() {
        let hosts = HostRules { allowed: "a.example".parse().ok(), ..HostRules::default() };
        let policy = ExitPolicy { hosts, ..ExitPolicy::default() };
        let check = |host: &str, port| policy.check_target(&Target::new(host, port).unwrap(), &World);
        assert_eq!(check("a.example", 443), Ok(()));
        assert_eq!(check("b.example", 443), Err(Refusal::Host));
        assert_eq!(check("5.5.5.5", 80), Ok(()));
        assert_eq!(check("::ffff:5.5.5.5", 80), Ok(()));
        assert_eq!(check("5.5.5.5", 443), Err(Refusal::Host));
        assert_eq!(check("5.5.5.6", 80), Err(Refusal::Host));
    }

    proptest! {
        #[test]
        fn every_form_of_a_v4_address_is_judged_alike(bits: u32, port in prop::sample::select(vec![80u16, 443])) {
            let v4 = std::net::Ipv4Addr::from(bits);
            let policy = ExitPolicy::default();
            let plain = policy.check((v4, port).into(), &World);
            let mapped = policy.check((v4.to_ipv6_mapped(), port).into(), &World);
            prop_assert_eq!(plain, mapped);
            if plain.is_err() {
                // 6to4, IPv4-compatible: closed at least when the address inside is.
                let [a, b, c, d] = v4.octets().map(u16::from);
                let six = std::net::Ipv6Addr::new(0x2002, a << 8 | b, c << 8 | d, 0, 0, 0, 0, 1);
                prop_assert!(policy.check((six, port).into(), &World).is_err());
                let compat = std::net::Ipv6Addr::new(0, 0, 0, 0, 0, 0, a << 8 | b, c << 8 | d);
                prop_assert!(policy.check((compat, port).into(), &World).is_err());
            }
        }
    }
}
