//! How an exit bridge is reached: the part of a bridge line that says so.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use data_encoding::{BASE32_NOPAD, BASE64_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};
use sha3::{Digest, Sha3_256};

use crate::limits::MAX_ADDRESSES;
use crate::line::{LineError, field};

/// How an exit bridge is reached.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Reach {
    /// A circuit is extended to it.
    Circuit(CircuitReach),
    /// It is an onion service.
    Onion(OnionReach),
}

/// An onion service, by its address: an exit bridge that takes streams to any target, or a directory.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OnionReach {
    /// The service's Ed25519 identity, KP_hs_id (rend-spec).
    pub service: [u8; 32],
}

/// All that a client needs to extend a circuit to an unlisted relay (tor-spec, "EXTEND and EXTENDED
/// cells").
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CircuitReach {
    /// OR ports, 1 to [`MAX_ADDRESSES`]; the middle relay picks one that it can reach.
    pub addresses: Vec<SocketAddr>,
    /// Ed25519 identity key.
    pub ed25519: [u8; 32],
    /// RSA identity: SHA-1 of the legacy identity key.
    pub rsa: [u8; 20],
    /// Curve25519 onion key for ntor and ntor-v3.
    pub ntor: [u8; 32],
    /// Subprotocol versions in the form of a descriptor's `proto` line (dir-spec), for the handshake.
    pub protocols: String,
}

/// Protocols that are assumed of a circuit exit bridge whose line names none.
pub const DEFAULT_PROTOCOLS: &str = "FlowCtrl=1-2 Relay=1-6";

impl Reach {
    /// The identity of the exit bridge: nobody else can answer to it.
    pub fn identity(&self) -> &[u8; 32] {
        match self {
            Self::Circuit(reach) => &reach.ed25519,
            Self::Onion(reach) => &reach.service,
        }
    }

    /// From the second word of a line and the values that came after it.
    ///
    /// # Errors
    /// Names the field.
    pub(crate) fn from_values(reach: &str, values: &BTreeMap<&str, &str>) -> Result<Self, LineError> {
        let get = |key: &'static str| values.get(key).copied().ok_or(LineError::Missing(key));
        match reach {
            "circuit" => Ok(Self::Circuit(CircuitReach {
                addresses: addresses(get("address")?)?,
                ed25519: key_32("ed25519", get("ed25519")?)?,
                rsa: rsa(get("rsa")?)?,
                ntor: key_32("ntor", get("ntor")?)?,
                protocols: values
                    .get("protocols")
                    .copied()
                    .map_or(Ok(DEFAULT_PROTOCOLS.into()), protocols)?,
            })),
            "onion" => Ok(Self::Onion(OnionReach { service: onion_address(get("address")?)? })),
            other => Err(LineError::Reach(other.to_owned())),
        }
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Circuit(reach) => {
                let addresses: Vec<String> = reach.addresses.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "circuit address={} ed25519={} rsa={} ntor={} protocols={}",
                    addresses.join(","),
                    BASE64_NOPAD.encode(&reach.ed25519),
                    HEXLOWER.encode(&reach.rsa),
                    BASE64_NOPAD.encode(&reach.ntor),
                    reach.protocols.replace(' ', ";"),
                )
            }
            Self::Onion(reach) => write!(f, "onion address={reach}"),
        }
    }
}

/// Version of the onion addresses that are in use.
const ONION_VERSION: u8 = 3;

/// The onion address (rend-spec, "Encoding onion addresses").
impl fmt::Display for OnionReach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = self.service.to_vec();
        bytes.extend(onion_checksum(&self.service));
        bytes.push(ONION_VERSION);
        write!(f, "{}.onion", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }
}

/// Whoever knows the address may use the service: it belongs in no log.
impl fmt::Debug for OnionReach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[onion address]")
    }
}

impl std::str::FromStr for OnionReach {
    type Err = LineError;

    /// Reads an onion address of version 3; small and large letters are the same.
    fn from_str(text: &str) -> Result<Self, LineError> {
        onion_address(text.trim()).map(|service| Self { service })
    }
}

impl TryFrom<String> for OnionReach {
    type Error = LineError;

    fn try_from(text: String) -> Result<Self, LineError> {
        text.parse()
    }
}

impl From<OnionReach> for String {
    fn from(reach: OnionReach) -> Self {
        reach.to_string()
    }
}

fn onion_checksum(service: &[u8; 32]) -> [u8; 2] {
    let hash = Sha3_256::new().chain_update(".onion checksum").chain_update(service);
    let hash = hash.chain_update([ONION_VERSION]).finalize();
    [hash[0], hash[1]]
}

fn onion_address(value: &str) -> Result<[u8; 32], LineError> {
    let value = value.to_ascii_uppercase();
    let wrong = |problem: &str| field("address", problem.to_owned());
    let bytes = value
        .strip_suffix(".ONION")
        .and_then(|name| BASE32_NOPAD.decode(name.as_bytes()).ok())
        .filter(|bytes| bytes.len() == 35)
        .ok_or_else(|| wrong("expected an onion address: 56 characters and .onion"))?;
    let mut service = [0; 32];
    service.copy_from_slice(&bytes[..32]);
    if bytes[34] != ONION_VERSION {
        return Err(wrong("an onion address of a version other than 3"));
    }
    if bytes[32..34] != onion_checksum(&service) {
        return Err(wrong("not an onion address: its checksum does not fit"));
    }
    Ok(service)
}

fn addresses(value: &str) -> Result<Vec<SocketAddr>, LineError> {
    let all = value
        .split(',')
        .map(|a| match a.parse::<SocketAddr>() {
            Ok(addr) if addr.port() != 0 && !addr.ip().is_unspecified() => Ok(addr),
            _ => Err(field("address", format!("{a:?} is not IP:PORT (an IPv6 address stands in [ ])"))),
        })
        .collect::<Result<Vec<_>, _>>()?;
    if all.len() > MAX_ADDRESSES {
        return Err(field("address", format!("more than {MAX_ADDRESSES}")));
    }
    Ok(all)
}

fn key_32(name: &'static str, value: &str) -> Result<[u8; 32], LineError> {
    BASE64_NOPAD
        .decode(value.trim_end_matches('=').as_bytes())
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| field(name, "expected 32 bytes in base64 (43 characters)"))
}

fn rsa(value: &str) -> Result<[u8; 20], LineError> {
    let hex = value.strip_prefix('$').unwrap_or(value).to_ascii_lowercase();
    HEXLOWER
        .decode(hex.as_bytes())
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| field("rsa", "expected 20 bytes in hexadecimal (40 characters)"))
}

/// `FlowCtrl=1-2;Relay=1-4,6` to the form with spaces.
fn protocols(value: &str) -> Result<String, LineError> {
    let entry_ok = |entry: &str| {
        entry.split_once('=').is_some_and(|(name, versions)| {
            !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && versions.bytes().all(|b| b.is_ascii_digit() || b == b'-' || b == b',')
        })
    };
    if value.split(';').all(entry_ok) {
        Ok(value.replace(';', " "))
    } else {
        Err(field(
            "protocols",
            "expected Name=versions entries with ; between, such as FlowCtrl=1-2;Relay=1-6",
        ))
    }
}
