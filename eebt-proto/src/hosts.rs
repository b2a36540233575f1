//! Which hosts an exit bridge lets out to, where its owner chose some.

use std::collections::BTreeSet;
use std::str::FromStr;

use crate::target::Host;

/// Domains, each with all names below it. Sensitive where a person chose them, so `Debug` hides them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct HostSet(BTreeSet<String>);

/// Why a list of domains can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: no domain such as example.com")]
pub struct HostSetError {
    /// Which line of it, from 1.
    pub line: usize,
}

impl FromStr for HostSet {
    type Err = HostSetError;

    /// One domain a line, with `*.` or a dot in front or without; `#` begins a comment. Lines of a hosts file, with an
    /// address before the name, are taken, too.
    fn from_str(text: &str) -> Result<Self, HostSetError> {
        let mut domains = BTreeSet::new();
        for (index, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
            let name = match words[..] {
                [] => continue,
                [name] => name,
                // What hosts files say of the machine itself is no domain to block.
                [address, name] if is_nowhere(address) => match name.parse() {
                    Ok(Host::Name(name)) => {
                        domains.insert(name);
                        continue;
                    }
                    _ => continue,
                },
                _ => return Err(HostSetError { line: index + 1 }),
            };
            let name = name.strip_prefix("*.").or_else(|| name.strip_prefix('.')).unwrap_or(name);
            match name.parse() {
                Ok(Host::Name(name)) => domains.insert(name),
                _ => return Err(HostSetError { line: index + 1 }),
            };
        }
        Ok(Self(domains))
    }
}

/// Is this what block lists in the form of a hosts file lead names to?
fn is_nowhere(address: &str) -> bool {
    ["0.0.0.0", "127.0.0.1", "::", "::1"].contains(&address)
}

impl std::fmt::Debug for HostSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{} domains]", self.0.len())
    }
}

impl HostSet {
    /// Is this name one of them, or below one?
    pub fn contains(&self, name: &str) -> bool {
        let mut rest = Some(name);
        while let Some(domain) = rest {
            if self.0.contains(domain) {
                return true;
            }
            rest = domain.split_once('.').map(|(_, above)| above);
        }
        false
    }

    /// How many domains.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes those of another one in.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

/// Hosts that are open. As long as there is any rule, targets must be names: an address could be any host's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostRules {
    /// Only these; all, where it is `None`.
    pub allowed: Option<HostSet>,
    /// Never these.
    pub blocked: HostSet,
}

impl HostRules {
    /// May a stream leave for this host?
    pub fn lets_out(&self, host: &Host) -> bool {
        match host {
            Host::Ip(_) => self.allowed.is_none() && self.blocked.is_empty(),
            Host::Name(name) => {
                self.allowed.as_ref().is_none_or(|allowed| allowed.contains(name))
                    && !self.blocked.contains(name)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Host {
        text.parse().unwrap()
    }

    #[test]
    fn a_domain_has_all_names_below_it_and_no_lookalikes() {
        let set: HostSet = "# mine\nexample.com\n*.a.example # and below\n.b.example\n".parse().unwrap();
        for name in
            ["example.com", "www.example.com", "a.b.example.com", "a.example", "x.a.example", "x.b.example"]
        {
            assert!(set.contains(name), "{name}");
        }
        for name in ["notexample.com", "example.com.evil.example", "com", "b.b", ""] {
            assert!(!set.contains(name), "{name}");
        }
        assert_eq!(format!("{set:?}"), "[3 domains]");
    }

    #[test]
    fn hosts_files_are_lists_and_slips_name_their_line() {
        let set: HostSet = "127.0.0.1 localhost\n0.0.0.0 ads.example\n::1 ip6-localhost\n".parse().unwrap();
        assert!(set.contains("ads.example") && set.len() == 1);
        for (text, line) in
            [("a.example\nb c d", 2), ("http://x.example/", 1), ("10.0.0.1 x.example", 1), ("192.0.2.1", 1)]
        {
            assert_eq!(text.parse::<HostSet>(), Err(HostSetError { line }), "{text}");
        }
    }

    #[test]
    fn rules_are_for_names_and_an_address_cannot_get_round_them() {
        let all = HostRules::default();
        assert!(all.lets_out(&host("a.example")) && all.lets_out(&host("1.1.1.1")));
        let set = |text: &str| text.parse::<HostSet>().unwrap();
        let some = HostRules { allowed: Some(set("a.example")), blocked: set("x.a.example") };
        assert!(some.lets_out(&host("a.example")) && some.lets_out(&host("B.A.example.")));
        for closed in ["b.example", "x.a.example", "y.x.a.example", "1.1.1.1", "2606:4700::1111"] {
            assert!(!some.lets_out(&host(closed)), "{closed}");
        }
        let blocking = HostRules { allowed: None, blocked: set("x.example") };
        assert!(blocking.lets_out(&host("a.example")) && !blocking.lets_out(&host("1.1.1.1")));
    }
}
