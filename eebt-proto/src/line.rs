//! The bridge line: one line of text that names one exit bridge and how to reach it.
//!
//! ```text
//! eebt1 circuit address=198.51.100.7:44321 ed25519=…43… rsa=…40… ntor=…43…
//!       protocols=FlowCtrl=1-2;Relay=1-6 ports=80,443 expires=2026-12-01T12:00:00Z check=89abcdef
//! eebt1 onion address=…56….onion ports=80,443 check=89abcdef
//! ```
//! (each on one line.) First the version, then the reach, then `key=value` words in any order. Unknown
//! keys are ignored, so that a newer line works in an older client. `check` is the first 32 bits of
//! the SHA-256 of all words before it joined by single spaces; it catches a slip of the keyboard or
//! a cut-off copy, not an enemy. Full grammar: `docs/protocol.md`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use crate::limits::MAX_LINE_LEN;
use crate::ports::PortSet;
use crate::reach::Reach;

/// First word of a bridge line of this version.
const VERSION: &str = "eebt1";

/// One exit bridge and how to reach it. `Debug` shows what `Display` does: whoever holds a line
/// may use the exit bridge, so neither belongs in a log.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BridgeLine {
    /// How to reach it.
    pub reach: Reach,
    /// Ports it lets out. A client does not ask it for others.
    pub ports: PortSet,
    /// When it ends, in whole seconds; `None` where it is not known.
    pub expires: Option<SystemTime>,
}

/// Why a text is no bridge line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Longer than any line is.
    #[error("bridge line: longer than {MAX_LINE_LEN} bytes")]
    TooLong,
    /// Nothing there.
    #[error("bridge line: empty")]
    Empty,
    /// First word is not ours.
    #[error("bridge line: version: expected \"{VERSION}\", found {0:?}")]
    Version(String),
    /// Second word is not ours.
    #[error("bridge line: reach: expected \"circuit\" or \"onion\", found {0:?}")]
    Reach(String),
    /// A word without `=`.
    #[error("bridge line: {0:?} is not of the form key=value")]
    NotKeyValue(String),
    /// A key given twice.
    #[error("bridge line: {0}: given twice")]
    Duplicate(String),
    /// A key that must be there is not.
    #[error("bridge line: {0}: missing")]
    Missing(&'static str),
    /// A value that is not what its key wants.
    #[error("bridge line: {field}: {problem}")]
    Field {
        /// The key.
        field: &'static str,
        /// What is wrong with its value.
        problem: String,
    },
    /// The checksum disagrees with the rest.
    #[error(
        "bridge line: check: does not fit the rest of the line; a character was lost or changed in copying"
    )]
    Check,
}

/// A [`LineError::Field`].
pub(crate) fn field(field: &'static str, problem: impl Into<String>) -> LineError {
    LineError::Field { field, problem: problem.into() }
}

impl LineError {
    /// Which part of the line is wrong, for a log: nothing of the line itself.
    pub fn field(&self) -> &str {
        match self {
            Self::TooLong | Self::Empty | Self::NotKeyValue(_) => "line",
            Self::Version(_) => "version",
            Self::Reach(_) => "reach",
            Self::Duplicate(_) => "a key given twice",
            Self::Missing(field) | Self::Field { field, .. } => field,
            Self::Check => "check",
        }
    }
}

impl BridgeLine {
    /// Has the exit bridge ended at `now`?
    pub fn is_expired(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }
}

impl FromStr for BridgeLine {
    type Err = LineError;

    /// Reads a line as people paste it: quotes or backticks around it, any white space between
    /// words and invisible characters (zero-width, byte-order mark) do no harm.
    fn from_str(text: &str) -> Result<Self, LineError> {
        if text.len() > MAX_LINE_LEN {
            return Err(LineError::TooLong);
        }
        let clean: String = text.chars().filter(|c| !is_invisible(*c)).collect();
        let clean = clean.trim_matches(|c: char| c.is_whitespace() || "'\"`‘’“”".contains(c));
        let words: Vec<&str> = clean.split_whitespace().collect();
        match words.first() {
            None => return Err(LineError::Empty),
            Some(&VERSION) => {}
            Some(other) => return Err(LineError::Version((*other).to_owned())),
        }
        let reach = words.get(1).copied().unwrap_or_default();
        let mut values = BTreeMap::new();
        for (i, word) in words.iter().enumerate().skip(2) {
            let (key, value) =
                word.split_once('=').ok_or_else(|| LineError::NotKeyValue((*word).to_owned()))?;
            if values.insert(key, value).is_some() {
                return Err(LineError::Duplicate(key.to_owned()));
            }
            if key == "check" {
                if i + 1 != words.len() {
                    return Err(field("check", "must be the last word"));
                }
                if !value.eq_ignore_ascii_case(&checksum(&words[..i].join(" "))) {
                    return Err(LineError::Check);
                }
            }
        }
        Ok(Self {
            reach: Reach::from_values(reach, &values)?,
            ports: values
                .get("ports")
                .map_or(Ok(PortSet::web()), |v| v.parse().map_err(|e| field("ports", format!("{e}"))))?,
            expires: values.get("expires").map(|v| expires(v)).transpose()?,
        })
    }
}

fn expires(value: &str) -> Result<SystemTime, LineError> {
    humantime::parse_rfc3339(value)
        .map_err(|_| field("expires", "expected a UTC time such as 2026-12-01T12:00:00Z (RFC 3339)"))
}

/// First 32 bits of SHA-256, in hexadecimal.
fn checksum(words: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(words.as_bytes())[..4])
}

fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' | '\u{00ad}' | '\0')
}

impl fmt::Display for BridgeLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = format!("{VERSION} {} ports={}", self.reach, self.ports);
        if let Some(at) = self.expires {
            line.push_str(&format!(" expires={}", humantime::format_rfc3339_seconds(at)));
        }
        write!(f, "{line} check={}", checksum(&line))
    }
}

impl fmt::Debug for BridgeLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[bridge line]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reach::{CircuitReach, DEFAULT_PROTOCOLS, OnionReach};
    use proptest::prelude::*;
    use std::time::{Duration, UNIX_EPOCH};

    /// The vectors of docs/protocol.md: line, then what is in it.
    const GOLDEN: &str = "eebt1 circuit address=198.51.100.7:44321,[2001:db8::7]:44321 \
        ed25519=AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE rsa=0202020202020202020202020202020202020202 \
        ntor=AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM protocols=FlowCtrl=1-2;Relay=1-6 ports=80,443 \
        expires=2026-12-01T12:00:00Z check=";

    fn golden() -> BridgeLine {
        BridgeLine {
            reach: Reach::Circuit(CircuitReach {
                addresses: vec![
                    "198.51.100.7:44321".parse().unwrap(),
                    "[2001:db8::7]:44321".parse().unwrap(),
                ],
                ed25519: [1; 32],
                rsa: [2; 20],
                ntor: [3; 32],
                protocols: DEFAULT_PROTOCOLS.into(),
            }),
            ports: PortSet::web(),
            expires: Some(UNIX_EPOCH + Duration::from_secs(1_796_126_400)),
        }
    }

    #[test]
    fn golden_line_is_written_and_read() {
        let line = golden().to_string();
        assert_eq!(line, format!("{GOLDEN}2c021da1"));
        assert!(line.parse::<BridgeLine>().unwrap() == golden());
    }

    #[test]
    fn golden_onion_line_is_written_and_read() {
        // The example address of rend-spec, "Encoding onion addresses".
        let address = "pg6mmjiyjmcrsslvykfwnntlaru7p5svn6y2ymmju6nubxndf4pscryd.onion";
        let text = format!("eebt1 onion address={address} ports=80,443 check=ae547a95");
        let line: BridgeLine = text.parse().unwrap();
        let Reach::Onion(reach) = &line.reach else { panic!("not an onion line") };
        assert_eq!(reach.to_string(), address);
        assert_eq!(line.to_string(), text);
        assert!(
            format!("eebt1 onion address={}", address.to_uppercase()).parse::<BridgeLine>().unwrap() == line
        );
    }

    #[test]
    fn a_line_survives_copy_and_paste() {
        let line = golden().to_string();
        for pasted in [
            format!("'{line}'"),
            format!("  \u{feff}“{line}”\r\n"),
            format!("`{}`", line.replace(' ', "\n   ")),
            line.replace("ed25519=", "\u{200b}ed25519="),
            line.replace(' ', "\u{a0}"),
            line.split(" check=").next().unwrap().to_owned(),
        ] {
            assert!(pasted.parse::<BridgeLine>().unwrap() == golden(), "{pasted:?}");
        }
    }

    #[test]
    fn unknown_keys_are_ignored_and_optional_ones_have_defaults() {
        let line = golden().to_string();
        let bare = line.split(" protocols=").next().unwrap();
        let read: BridgeLine = format!("{bare} colour=blue").parse().unwrap();
        assert!(read == BridgeLine { expires: None, ..golden() });
    }

    #[test]
    fn every_error_names_its_field() {
        let good = golden().to_string();
        let good = good.split(" check=").next().unwrap();
        let with =
            |key: &str, value: &str| {
                good.split(' ')
                    .map(|w| {
                        if w.starts_with(&format!("{key}=")) {
                            format!("{key}={value}")
                        } else {
                            w.to_owned()
                        }
                    })
                    .collect::<Vec<_>>()
                    .join(" ")
            };
        let without = |key: &str| {
            good.split(' ').filter(|w| !w.starts_with(&format!("{key}="))).collect::<Vec<_>>().join(" ")
        };
        let cases = [
            (String::new(), "empty"),
            ("x".repeat(MAX_LINE_LEN + 1), "longer"),
            ("obfs4 198.51.100.7:1 x".into(), "version"),
            ("eebt2 circuit".into(), "version"),
            ("eebt1".into(), "reach"),
            ("eebt1 tunnel".into(), "reach"),
            (format!("{good} junk"), "junk"),
            (format!("{good} ports=80"), "ports"),
            (without("address"), "address"),
            (without("ed25519"), "ed25519"),
            (without("rsa"), "rsa"),
            (without("ntor"), "ntor"),
            ("eebt1 onion".into(), "address"),
            ("eebt1 onion address=short.onion".into(), "address"),
            (format!("eebt1 onion address={}", "a".repeat(56)), "address"),
            (format!("eebt1 onion address={}.onion", "a".repeat(56)), "address"),
            (with("address", "198.51.100.7"), "address"),
            (with("address", "198.51.100.7:0"), "address"),
            (with("address", "0.0.0.0:80"), "address"),
            (with("address", "1.1.1.1:1,1.1.1.1:2,1.1.1.1:3,1.1.1.1:4,1.1.1.1:5"), "address"),
            (with("ed25519", "AQEB"), "ed25519"),
            (with("ntor", &"*".repeat(43)), "ntor"),
            (with("rsa", "02"), "rsa"),
            (with("protocols", "FlowCtrl"), "protocols"),
            (with("ports", "0"), "ports"),
            (with("expires", "tomorrow"), "expires"),
            (format!("{good} check=00000000"), "check"),
            (format!("{good} check=00000000 x=y"), "check"),
        ];
        for (line, named) in cases {
            let error = line.parse::<BridgeLine>().unwrap_err().to_string();
            assert!(error.starts_with("bridge line: ") && error.contains(named), "{line:?}: {error}");
        }
    }

    #[test]
    fn a_changed_character_is_noticed() {
        let line = golden().to_string();
        for (i, c) in line.char_indices().filter(|(_, c)| c.is_ascii_digit()) {
            let mut changed = line.clone();
            changed.replace_range(i..=i, if c == '1' { "2" } else { "1" });
            assert!(changed.parse::<BridgeLine>().is_err(), "{changed}");
        }
    }

    #[test]
    fn expiry_is_judged_by_the_given_time() {
        let at = golden().expires.unwrap();
        assert!(!golden().is_expired(at - Duration::from_secs(1)));
        assert!(golden().is_expired(at));
    }

    proptest! {
        #[test]
        fn line_and_value_round_trip(
            v4: [u8; 4], port in 1u16.., ed25519: [u8; 32], rsa: [u8; 20], ntor: [u8; 32],
            secs in prop::option::of(0u64..4_000_000_000),
        ) {
            prop_assume!(v4 != [0; 4]);
            let line = BridgeLine {
                reach: Reach::Circuit(CircuitReach {
                    addresses: vec![(v4, port).into()], ed25519, rsa, ntor,
                    protocols: "Relay=1-4,6".into(),
                }),
                ports: PortSet::reduced(),
                expires: secs.map(|s| UNIX_EPOCH + Duration::from_secs(s)),
            };
            prop_assert!(line.to_string().parse::<BridgeLine>().unwrap() == line);
        }

        #[test]
        fn onion_line_and_value_round_trip(service: [u8; 32]) {
            let reach = Reach::Onion(OnionReach { service });
            let line = BridgeLine { reach, ports: PortSet::web(), expires: None };
            prop_assert!(line.to_string().parse::<BridgeLine>().unwrap() == line);
        }

        #[test]
        fn no_text_panics(text in "(eebt1 (circuit|onion) )?(\\PC|[a-z]{1,8}=|[ =;,:0-9]){0,200}") {
            let _ = text.parse::<BridgeLine>();
        }
    }
}
