//! The keys of an exit bridge, and the certificates that its channels show.
//!
//! Four keys are kept on disk, by Arti's own key store (OpenSSH format, permissions checked): for
//! circuits the Ed25519 and RSA identities and the ntor onion key, and the identity of an onion
//! service. They are what bridge lines name. The signing
//! and link keys (tor-spec, "Relay keys and identities") are born at each start and live in memory
//! only; they are valid for longer than any exit bridge lives, so nothing rotates.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use derive_deftly::Deftly;
use eebt_proto::limits::MAX_LIFETIME;
use eebt_proto::{CircuitReach, OnionReach};
use eebt_tor::{KeyFolder, KeyFolderError, onion_reach, service_key, sign_as_service};
use tor_basic_utils::rand_hostname::random_hostname;
use tor_cert::x509::TlsKeyAndCert;
use tor_hscrypto::pk::HsIdKeypair;
use tor_key_forge::{Keygen, ToEncodableCert, ToEncodableKey};
use tor_keymgr::{KeySpecifier, derive_deftly_template_KeySpecifier};
use tor_llcrypto::pk::ed25519::{Ed25519SigningKey as _, ExpandedKeypair};
use tor_llcrypto::rng::CautiousRng;
use tor_proto::RelayChannelAuthMaterial;
use tor_relay_crypto::pk::{
    RelayIdentityKeypair, RelayIdentityRsaKeypair, RelayLinkSigningKeypair, RelayNtorKeypair, RelayNtorKeys,
    RelaySigningKeypair,
};
use tor_relay_crypto::{gen_link_cert, gen_signing_cert, gen_tls_cert};

use crate::config::ReachKind;

/// Subprotocols that a circuit exit bridge speaks and its bridge line names: congestion control,
/// ntor-v3 and counter galois onion among them (tor-spec, "Subprotocol versioning").
pub(crate) const PROTOCOLS: &str = eebt_proto::reach::DEFAULT_PROTOCOLS;

/// Where the Ed25519 identity is kept.
#[derive(Deftly, PartialEq, Debug)]
#[derive_deftly(KeySpecifier)]
#[deftly(prefix = "exit_bridge")]
#[deftly(role = "KS_relayid_ed")]
#[deftly(summary = "Ed25519 identity of a circuit exit bridge")]
struct IdentitySpecifier;

/// Where the RSA identity is kept.
#[derive(Deftly, PartialEq, Debug)]
#[derive_deftly(KeySpecifier)]
#[deftly(prefix = "exit_bridge")]
#[deftly(role = "KS_relayid_rsa")]
#[deftly(summary = "Legacy RSA identity of a circuit exit bridge")]
struct RsaIdentitySpecifier;

/// Where the onion key is kept.
#[derive(Deftly, PartialEq, Debug)]
#[derive_deftly(KeySpecifier)]
#[deftly(prefix = "exit_bridge")]
#[deftly(role = "KS_ntor")]
#[deftly(summary = "Onion key of a circuit exit bridge")]
struct NtorSpecifier;

/// The lasting keys of one exit bridge.
pub struct BridgeKeys {
    identity: RelayIdentityKeypair,
    rsa_identity: RelayIdentityRsaKeypair,
    ntor: RelayNtorKeypair,
    service: HsIdKeypair,
}

/// Why keys can't be made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// `keygen` does not replace keys.
    #[error("{0} already holds the keys of an exit bridge")]
    Exist(PathBuf),
    /// There are none.
    #[error("{0} holds no keys of an exit bridge")]
    Missing(PathBuf),
    /// The folder of the keys.
    #[error(transparent)]
    Folder(#[from] KeyFolderError),
    /// A certificate can't be made.
    #[error("cannot make the certificates of a relay")]
    Certificate(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl BridgeKeys {
    /// Makes new keys in `dir`, which is made with mode 0700.
    ///
    /// # Errors
    /// [`KeysError::Exist`] when there are keys already.
    pub fn generate(dir: &Path) -> Result<Self, KeysError> {
        if Self::exist(dir)? {
            return Err(KeysError::Exist(dir.into()));
        }
        Self::load_or_generate(dir)
    }

    /// The keys in `dir`.
    ///
    /// # Errors
    /// [`KeysError::Missing`] when there are none.
    pub fn load(dir: &Path) -> Result<Self, KeysError> {
        if !dir.exists() || !Self::exist(dir)? {
            return Err(KeysError::Missing(dir.into()));
        }
        Self::load_or_generate(dir)
    }

    /// The keys in `dir`, made first where there are none.
    ///
    /// # Errors
    /// See [`KeysError`].
    pub fn load_or_generate(dir: &Path) -> Result<Self, KeysError> {
        let folder = KeyFolder::open(dir)?;
        Ok(Self {
            identity: folder.get_or_generate(&IdentitySpecifier)?,
            rsa_identity: folder.get_or_generate(&RsaIdentitySpecifier)?,
            ntor: folder.get_or_generate(&NtorSpecifier)?,
            service: service_key(&folder)?,
        })
    }

    fn exist(dir: &Path) -> Result<bool, KeysError> {
        Ok(KeyFolder::open(dir)?.get::<RelayIdentityKeypair>(&IdentitySpecifier)?.is_some())
    }

    /// How circuits are extended to an exit bridge with these keys.
    pub fn circuit_reach(&self, addresses: Vec<SocketAddr>) -> CircuitReach {
        CircuitReach {
            addresses,
            ed25519: bytes(self.identity.to_ed25519_id().as_bytes()),
            rsa: bytes(self.rsa_identity.to_rsa_identity().as_bytes()),
            ntor: *self.ntor.public().inner().as_bytes(),
            protocols: PROTOCOLS.to_owned(),
        }
    }

    /// How the onion service of an exit bridge with these keys is found.
    pub fn onion_reach(&self) -> OnionReach {
        onion_reach(&self.service)
    }

    /// Ed25519 over `message` with the identity that the bridge line of this reach names.
    pub fn sign(&self, reach: ReachKind, message: &[u8]) -> [u8; 64] {
        match reach {
            ReachKind::Circuit => self.identity.sign(message).to_bytes(),
            ReachKind::Onion => sign_as_service(&self.service, message),
        }
    }

    /// The identity of its onion service, for Arti, which wants one of its own.
    pub(crate) fn service(&self) -> Option<HsIdKeypair> {
        let key: &ExpandedKeypair = self.service.as_ref();
        ExpandedKeypair::from_secret_key_bytes(key.to_secret_key_bytes()).map(HsIdKeypair::from)
    }

    /// The Ed25519 identity of a relay.
    pub(crate) fn identity(&self) -> &RelayIdentityKeypair {
        &self.identity
    }

    /// Its RSA identity.
    pub(crate) fn rsa_identity(&self) -> &RelayIdentityRsaKeypair {
        &self.rsa_identity
    }

    /// Its onion key.
    pub(crate) fn ntor(&self) -> &RelayNtorKeypair {
        &self.ntor
    }

    /// The keys for circuit handshakes.
    pub(crate) fn ntor_keys(&self) -> RelayNtorKeys {
        RelayNtorKeys::new(self.ntor.clone())
    }

    /// New signing and link keys with their certificates, all that a channel's responder shows
    /// (tor-spec, "CERTS cells").
    ///
    /// # Errors
    /// [`KeysError::Certificate`].
    pub fn channel_auth(&self, now: SystemTime) -> Result<Arc<RelayChannelAuthMaterial>, KeysError> {
        fn certificate<E: std::error::Error + Send + Sync + 'static>(e: E) -> KeysError {
            KeysError::Certificate(Box::new(e))
        }
        let mut rng = CautiousRng;
        let valid_until = now + MAX_LIFETIME + Duration::from_secs(2 * 24 * 3600);
        let signing = new_key::<RelaySigningKeypair>(&mut rng).map_err(certificate)?;
        let link = new_key::<RelayLinkSigningKeypair>(&mut rng).map_err(certificate)?;
        let rsa = self.rsa_identity.keypair();
        let ed25519 = self.identity.to_ed25519_id();

        // Names at random, as C tor shows them.
        let (issuer, subject) = (random_hostname(&mut rng), random_hostname(&mut rng));
        let tls = TlsKeyAndCert::create(&mut rng, now, &issuer, &subject).map_err(certificate)?;
        let signing_cert = gen_signing_cert(&self.identity, &signing, valid_until).map_err(certificate)?;
        let tls_cert = gen_tls_cert(&signing, *tls.link_cert_sha256(), valid_until).map_err(certificate)?;
        let link_cert = gen_link_cert(&signing, &link, valid_until).map_err(certificate)?;
        let rsa_cert =
            tor_cert::x509::create_legacy_rsa_id_cert(&mut rng, now, &issuer, rsa).map_err(certificate)?;
        let rsa_crosscert = tor_cert::rsa::EncodedRsaCrosscert::encode_and_sign(rsa, &ed25519, valid_until)
            .map_err(certificate)?;

        Ok(Arc::new(RelayChannelAuthMaterial::new(
            &self.rsa_identity.public().into(),
            ed25519,
            link,
            signing_cert.to_encodable_cert(),
            tls_cert,
            link_cert.to_encodable_cert(),
            rsa_cert,
            rsa_crosscert,
            tls,
        )))
    }
}

/// A key that is kept nowhere.
pub(crate) fn new_key<K>(rng: &mut CautiousRng) -> Result<K, tor_key_forge::Error>
where
    K: ToEncodableKey,
    K::Key: Keygen,
{
    Ok(K::from_encodable_key(K::Key::generate(rng)?))
}

/// The bytes of an identity, whose length is in its type.
fn bytes<const N: usize>(from: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| from.get(i).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once_and_read_again() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("keys");
        assert!(matches!(BridgeKeys::load(&dir), Err(KeysError::Missing(_))));
        let reach = |keys: BridgeKeys| {
            (keys.circuit_reach(vec!["198.51.100.7:443".parse().unwrap()]), keys.onion_reach())
        };
        let made = reach(BridgeKeys::generate(&dir).unwrap());
        assert!(matches!(BridgeKeys::generate(&dir), Err(KeysError::Exist(_))));
        assert!(reach(BridgeKeys::load(&dir).unwrap()) == made);
    }

    #[test]
    fn what_is_signed_holds_for_the_identity_in_the_line() {
        use eebt_proto::{BridgeDescriptor, BridgeLine, PortSet, Reach, UnverifiedDescriptor};
        let tmp = tempfile::tempdir().unwrap();
        let keys = BridgeKeys::generate(&tmp.path().join("keys")).unwrap();
        let circuit = keys.circuit_reach(vec!["198.51.100.7:443".parse().unwrap()]);
        let now = SystemTime::now();
        for (kind, reach) in [
            (ReachKind::Circuit, Reach::Circuit(circuit)),
            (ReachKind::Onion, Reach::Onion(keys.onion_reach())),
        ] {
            let descriptor = BridgeDescriptor {
                line: BridgeLine { reach, ports: PortSet::web(), expires: None },
                published: now,
                expires: now + Duration::from_secs(60),
                country: None,
                capacity: 1,
                software: "x".into(),
            };
            let signed = descriptor.sign(|message| keys.sign(kind, message));
            UnverifiedDescriptor::parse(&signed).unwrap().verify(now).unwrap();
        }
    }

    #[cfg(unix)]
    #[test]
    fn key_files_are_for_the_owner_only() {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("keys");
        BridgeKeys::generate(&dir).unwrap();
        assert_eq!(dir.metadata().unwrap().mode() & 0o777, 0o700);
        let key = dir.join("exit_bridge/ks_ntor.x25519_private");
        assert_eq!(key.metadata().unwrap().mode() & 0o077, 0);
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(BridgeKeys::load(&dir), Err(KeysError::Folder(_))), "open folders are refused");
    }

    #[test]
    fn channel_certificates_are_made() {
        let tmp = tempfile::tempdir().unwrap();
        let keys = BridgeKeys::generate(&tmp.path().join("keys")).unwrap();
        keys.channel_auth(SystemTime::now()).unwrap();
    }
}
