//! Hosts that leave through exit bridges, as tor maps them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use eebt_proto::Host;
use sha2::{Digest as _, Sha256};

use super::ExitBridge;

/// A host that leaves through exit bridges: `example.com`, `198.51.100.7`, or `*.example.com` for that domain and all
/// below it, as in Tor's `MapAddress`. Sensitive.
#[derive(Clone, PartialEq, Eq)]
pub struct Chosen(pub(super) String);

impl FromStr for Chosen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: &dyn fmt::Display| {
            Err(format!("{text:?} is no host, no IPv4 address and no *.domain: {why}"))
        };
        let (below, bare) = text.strip_prefix("*.").map_or(("", text), |domain| ("*.", domain));
        if bare == "*" || bare == "." {
            return bad(&"tor can't send everything to exit bridges; eebt-client can");
        }
        match (below, bare.parse()) {
            (_, Ok(Host::Name(name))) => Ok(Self(format!("{below}{name}"))),
            ("", Ok(Host::Ip(IpAddr::V4(ip)))) => Ok(Self(ip.to_string())),
            (_, Ok(Host::Ip(_))) => bad(&"tor maps no IPv6 addresses, and none below an address"),
            (_, Err(error)) => bad(&error),
        }
    }
}

impl fmt::Debug for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[host]")
    }
}

impl Chosen {
    /// What is mapped to what, so that it goes to an exit bridge. To tor a name with a dot at its end is another one.
    pub(super) fn mapped(&self, fingerprint: &str) -> Vec<(String, String)> {
        let to = format!("{}.{fingerprint}.exit", self.0);
        let mut mapped = vec![(self.0.clone(), to.clone())];
        if self.0.parse::<IpAddr>().is_err() {
            mapped.push((format!("{}.", self.0), to));
        }
        mapped
    }

    /// Is this target, as tor names those of streams, one of its hosts, and not sent to an exit bridge?
    pub(super) fn is_passed_by(&self, target: &str) -> bool {
        let host = target.rsplit_once(':').map_or(target, |(host, _)| host).to_ascii_lowercase();
        Self(host.trim_end_matches('.').to_owned()).is_within(self)
    }

    /// Are all its hosts among those of the other one? Tor keeps one entry for a domain, with what is below it or without.
    pub fn is_within(&self, other: &Self) -> bool {
        let Some(domain) = other.0.strip_prefix("*.") else { return self.0 == other.0 };
        let name = self.0.strip_prefix("*.").unwrap_or(&self.0);
        name == domain || name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
    }

    /// The exit bridge of those that serve which this host has: each host one, all hosts of one that dies another one,
    /// and no other host a different one (rendezvous hashing).
    pub(super) fn place(&self, exit_bridges: &[ExitBridge]) -> Option<usize> {
        let weight =
            |of: &ExitBridge| Sha256::new().chain_update(&self.0).chain_update(&of.fingerprint).finalize();
        let serving = exit_bridges.iter().enumerate().filter(|(_, of)| of.serves());
        serving.max_by_key(|(_, of)| weight(of)).map(|(index, _)| index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_written_as_tor_reads_them() {
        let mapped = |text: &str| text.parse::<Chosen>().unwrap().mapped("F");
        let to = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        let name = "example.com.F.exit";
        assert_eq!(mapped("Example.COM."), [to("example.com", name), to("example.com.", name)]);
        let below = "*.example.com.F.exit";
        assert_eq!(mapped("*.example.com"), [to("*.example.com", below), to("*.example.com.", below)]);
        assert_eq!(mapped("198.51.100.7"), [to("198.51.100.7", "198.51.100.7.F.exit")]);
        for bad in [
            "",
            "*",
            ".",
            "*.*",
            "*.198.51.100.7",
            "2001:db8::1",
            "a b.example",
            "x.onion",
            "a\nb.example",
            "localhost",
        ] {
            assert!(bad.parse::<Chosen>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_stream_that_began_before_its_host_was_chosen_is_known() {
        let passed = |target: &str| Chosen("*.a.example".into()).is_passed_by(target);
        assert!(passed("a.example:443") && passed("B.A.example.:80"));
        assert!(!passed("b.example:443") && !passed("b.a.example.F.exit:443"));
        assert!(Chosen("198.51.100.7".into()).is_passed_by("198.51.100.7:443"));
    }

    #[test]
    fn a_domain_has_the_hosts_below_it() {
        let within = |one: &str, other: &str| Chosen(one.into()).is_within(&Chosen(other.into()));
        for one in ["a.example", "b.a.example", "*.a.example", "*.b.a.example"] {
            assert!(within(one, "*.a.example"), "{one}");
        }
        assert!(within("a.example", "a.example") && !within("b.a.example", "a.example"));
        assert!(!within("ba.example", "*.a.example") && !within("*.a.example", "a.example"));
    }
}
