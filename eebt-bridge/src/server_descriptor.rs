//! The server descriptor of a circuit exit bridge, for clients with C tor, which extends circuits to a router that its
//! controller has given it whole (control-spec, `POSTDESCRIPTOR`). It is published nowhere.
//!
//! Format: dir-spec, "Server descriptor format", as C tor 0.4.9 reads it.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use data_encoding::{BASE64, BASE64_NOPAD, HEXUPPER};
use digest::Digest as _;
use eebt_proto::PortSet;
use eebt_proto::limits::MAX_LIFETIME;
use tor_cert::{CertType, CertifiedKey, Ed25519Cert, EncodedCert as _};
use tor_key_forge::ToEncodableCert as _;
use tor_llcrypto::d::{Sha1, Sha256};
use tor_llcrypto::pk::ed25519::Ed25519SigningKey as _;
use tor_llcrypto::pk::keymanip::convert_curve25519_to_ed25519_private;
use tor_llcrypto::rng::CautiousRng;
use tor_relay_crypto::gen_signing_cert;
use tor_relay_crypto::pk::RelaySigningKeypair;

use crate::keys::{BridgeKeys, KeysError, PROTOCOLS, new_key};

/// What it claims to carry, in bytes a second: no consensus weighs it.
const BANDWIDTH: u64 = 10_000_000;
/// What bridge lines need not name: with less, C tor asks no relay for the Ed25519 identity that ntor-v3 takes.
const LINK: &str = "Link=4-5 LinkAuth=3";
/// All addresses, and not as `*`. Of a host name C tor can't know then whether it is let out, and where that is so it gives the
/// stream only to an exit that was asked for by name (`connection_ap_can_use_exit`): hosts that nobody chose stay away.
const HALVES: [&str; 2] = ["0.0.0.0/1", "128.0.0.0/1"];
/// What is signed with the medium-term key is this and the document so far.
const SIGNED: &[u8] = b"Tor router descriptor signature v1";

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum ServerDescriptorError {
    /// C tor wants an IPv4 address first.
    #[error("address: {0} is no IPv4 address, and a server descriptor must have one")]
    Address(IpAddr),
    /// A key or a certificate.
    #[error(transparent)]
    Keys(#[from] KeysError),
}

/// Makes the server descriptor of an exit bridge that relays reach at `address` and that lets out to `ports`. C tor
/// forgets it two days after `published`.
///
/// # Errors
/// See [`ServerDescriptorError`].
pub fn server_descriptor(
    keys: &BridgeKeys,
    address: SocketAddr,
    ports: &PortSet,
    published: SystemTime,
) -> Result<String, ServerDescriptorError> {
    fn certificate<E: std::error::Error + Send + Sync + 'static>(error: E) -> ServerDescriptorError {
        KeysError::Certificate(Box::new(error)).into()
    }
    let IpAddr::V4(ip) = address.ip() else { return Err(ServerDescriptorError::Address(address.ip())) };
    let valid_until = published + MAX_LIFETIME + Duration::from_secs(2 * 24 * 3600);
    let signing = new_key::<RelaySigningKeypair>(&mut CautiousRng).map_err(certificate)?;
    let signing_cert = gen_signing_cert(keys.identity(), &signing, valid_until).map_err(certificate)?;
    let identity = keys.identity().to_ed25519_id();

    // The onion key signs for the identity, by the Ed25519 key that it also is (dir-spec, "ntor-onion-key-crosscert").
    let (onion, sign_bit) = convert_curve25519_to_ed25519_private(keys.ntor().secret())
        .ok_or_else(|| certificate(std::io::Error::other("the onion key has no Ed25519 form")))?;
    let crosscert = Ed25519Cert::builder()
        .cert_type(CertType::NTOR_CC_IDENTITY)
        .expiration(valid_until)
        .cert_key(CertifiedKey::Ed25519(identity))
        .encode_and_sign(&onion)
        .map_err(certificate)?;

    let rsa = keys.rsa_identity();
    let fingerprint = HEXUPPER.encode(rsa.to_rsa_identity().as_bytes());
    let groups: Vec<&str> =
        (0..fingerprint.len()).step_by(4).filter_map(|at| fingerprint.get(at..at + 4)).collect();
    let published = humantime::format_rfc3339_seconds(published).to_string();
    let mut text = format!(
        "router Unnamed {ip} {port} 0 0\n\
         identity-ed25519\n{signing_cert}\
         master-key-ed25519 {master}\n\
         platform eebt-bridge {version}\n\
         proto {LINK} {PROTOCOLS}\n\
         published {published}\n\
         fingerprint {groups}\n\
         bandwidth {BANDWIDTH} {BANDWIDTH} {BANDWIDTH}\n\
         signing-key\n{signing_key}\
         ntor-onion-key-crosscert {sign_bit}\n{crosscert}\
         ntor-onion-key {ntor}\n",
        port = address.port(),
        signing_cert = pem("ED25519 CERT", signing_cert.to_encodable_cert().encoded()),
        master = BASE64_NOPAD.encode(identity.as_bytes()),
        version = env!("CARGO_PKG_VERSION"),
        published = published.trim_end_matches('Z').replace('T', " "),
        groups = groups.join(" "),
        signing_key = pem("RSA PUBLIC KEY", &rsa.keypair().to_public_key().to_der()),
        crosscert = pem("ED25519 CERT", crosscert.encoded()),
        ntor = BASE64_NOPAD.encode(keys.ntor().public().inner().as_bytes()),
    );
    for ports in ports.to_string().split(',') {
        for half in HALVES {
            let _ = writeln!(text, "accept {half}:{ports}");
        }
    }
    text.push_str("reject *:*\nrouter-sig-ed25519 ");
    let digest = Sha256::new().chain_update(SIGNED).chain_update(&text).finalize();
    let _ = writeln!(text, "{}", BASE64_NOPAD.encode(&signing.sign(&digest).to_bytes()));
    text.push_str("router-signature\n");
    let signature = rsa.keypair().sign(&Sha1::digest(&text)).map_err(certificate)?;
    Ok(text + &pem("SIGNATURE", &signature))
}

/// An object of a document (dir-spec, "Document meta-format").
fn pem(label: &str, bytes: &[u8]) -> String {
    let encoded = BASE64.encode(bytes);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in encoded.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(address: &str) -> Result<String, ServerDescriptorError> {
        let tmp = tempfile::tempdir().unwrap();
        let keys = BridgeKeys::generate(&tmp.path().join("keys")).unwrap();
        let published = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        server_descriptor(&keys, address.parse().unwrap(), &PortSet::web(), published)
    }

    #[test]
    fn it_says_what_c_tor_needs() {
        let text = descriptor("198.51.100.7:44321").unwrap();
        assert!(text.starts_with("router Unnamed 198.51.100.7 44321 0 0\nidentity-ed25519\n"), "{text}");
        assert!(text.ends_with("-----END SIGNATURE-----\n"), "{text}");
        for line in ["published 2027-01-15 08:00:00\n", "\nreject *:*\nrouter-sig-ed25519 "] {
            assert!(text.contains(line), "{line:?}: {text}");
        }
        assert!(text.lines().all(|line| line.len() <= 200), "{text}");
    }

    #[test]
    fn it_lets_out_to_all_addresses_and_is_sure_of_no_name() {
        let text = descriptor("198.51.100.7:44321").unwrap();
        let open: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("accept ")).collect();
        assert_eq!(open, ["0.0.0.0/1:80", "128.0.0.0/1:80", "0.0.0.0/1:443", "128.0.0.0/1:443"]);
    }

    #[test]
    fn an_address_of_ipv6_alone_is_refused() {
        let error = descriptor("[2001:db8::1]:443").unwrap_err();
        assert!(error.to_string().starts_with("address: "), "{error}");
    }
}
