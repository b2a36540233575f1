//! What a client asks an exit bridge for: a host and a port.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::limits::{MAX_HOST_LEN, MAX_LABEL_LEN};

/// Host and port that a client asks for. Sensitive: it has no `Display`, and its `Debug` hides it,
/// so that it gets into no log by accident.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Name or address.
    pub host: Host,
    /// TCP port, never 0.
    pub port: u16,
}

/// The host part of a [`Target`]. Sensitive, as the target is.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A DNS name, in lower case, without the final dot; checked to be one that public DNS may know.
    Name(String),
    /// A literal address; an IPv4-mapped IPv6 address has become the IPv4 address.
    Ip(IpAddr),
}

/// Why a text is no target. Carries nothing of the text: it may be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Port 0 or none.
    #[error("the port must be from 1 to 65535")]
    Port,
    /// Empty, too long, or with a byte or label that no host name has.
    #[error("the host is neither an IP address nor a DNS name")]
    Syntax,
    /// A name that only this machine or its network knows (RFC 6761, RFC 6762, RFC 7686, RFC 8375,
    /// RFC 9476), a name of one label, or `.onion`.
    #[error("the host name is not one of public DNS")]
    LocalName,
}

/// Last labels that public DNS does not serve, or that mean "here".
const LOCAL_SUFFIXES: &[&str] = &[
    "localhost",
    "localdomain",
    "local",
    "internal",
    "intranet",
    "lan",
    "home",
    "corp",
    "private",
    "onion",
    "alt",
    "invalid",
    "home.arpa",
];

impl Target {
    /// A target from the host and the port of a BEGIN cell, a SOCKS request or a CONNECT line.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub fn new(host: &str, port: u16) -> Result<Self, TargetError> {
        if port == 0 {
            return Err(TargetError::Port);
        }
        Ok(Self { host: host.parse()?, port })
    }
}

impl FromStr for Host {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(Self::Ip(ip.to_canonical()));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if name.is_empty() || name.len() > MAX_HOST_LEN || !name.split('.').all(is_label) {
            return Err(TargetError::Syntax);
        }
        // "127.1" and "0x7f.1": some resolvers read an address there, DNS knows no such name.
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(TargetError::Syntax);
        }
        let local = LOCAL_SUFFIXES.iter().any(|suffix| {
            name.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        });
        if local || !name.contains('.') {
            return Err(TargetError::LocalName);
        }
        Ok(Self::Name(name))
    }
}

/// Letters, digits, hyphens and underscores (real names carry them), 1 to 63.
fn is_label(label: &str) -> bool {
    (1..=MAX_LABEL_LEN).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[target]")
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[host]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_addresses_are_told_apart() {
        assert_eq!("Example.COM.".parse(), Ok(Host::Name("example.com".into())));
        assert_eq!("[2001:db8::1]".parse(), Ok(Host::Ip("2001:db8::1".parse().unwrap())));
        assert_eq!("::ffff:10.0.0.1".parse(), Ok(Host::Ip("10.0.0.1".parse().unwrap())));
        assert_eq!("xn--bcher-kva.example".parse(), Ok(Host::Name("xn--bcher-kva.example".into())));
    }

    #[test]
    fn odd_spellings_of_addresses_are_refused() {
        for odd in ["127.1", "0x7f.0.0.1", "0177.0.0.1", "2130706433", "0x7f000001", "1.2.3.4.5", "a.0x1"] {
            assert_eq!(odd.parse::<Host>(), Err(TargetError::Syntax), "{odd}");
        }
    }

    #[test]
    fn names_of_here_are_refused() {
        for local in [
            "localhost",
            "a.localhost",
            "printer.local",
            "metadata.google.internal",
            "router",
            "nas.home.arpa",
            "abc.onion",
            "LOCALHOST.",
        ] {
            assert_eq!(local.parse::<Host>(), Err(TargetError::LocalName), "{local}");
        }
        assert!("notlocal.example.com".parse::<Host>().is_ok());
        assert!("thelocal.se".parse::<Host>().is_ok());
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in [
            "", ".", "a..b", "a b.com", "a.com/x", "a.com:80", "a@b.com", "a\0.com", "ü.de", "..",
            "[1.2.3.4", "-.*",
        ] {
            assert_eq!(bad.parse::<Host>(), Err(TargetError::Syntax), "{bad:?}");
        }
        assert!(format!("{}.com", "a".repeat(64)).parse::<Host>().is_err());
        assert!("a.".repeat(127).parse::<Host>().is_ok());
        assert!("a.".repeat(128).parse::<Host>().is_err());
        assert_eq!(Target::new("example.com", 0), Err(TargetError::Port));
    }

    #[test]
    fn debug_output_hides_the_target() {
        let shown = format!("{:?}", Target::new("planted.example", 443).unwrap());
        assert!(!shown.contains("planted"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,300}", port: u16) {
            let _ = Target::new(&text, port);
        }
    }
}
