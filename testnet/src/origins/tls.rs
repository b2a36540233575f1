//! Certificates for one run: an authority that nobody trusts yet, and one certificate for all TLS origins.

use std::net::IpAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

use super::OriginsError;

/// Names that every certificate holds.
const NAMES: [&str; 3] = ["localhost", "origin.test", "*.origin.test"];

pub(super) struct Certificates {
    /// The authority's certificate.
    pub(super) ca_pem: String,
    pub(super) acceptor: TlsAcceptor,
}

impl Certificates {
    pub(super) fn make(names: &[String], addresses: &[IpAddr]) -> Result<Self, OriginsError> {
        let mut all: Vec<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
        all.extend_from_slice(names);
        all.extend(addresses.iter().map(IpAddr::to_string));
        Self::sign(all).map_err(OriginsError::Certificate)
    }

    fn sign(names: Vec<String>) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, "testnet origins");
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca_key = KeyPair::generate()?;
        let ca_pem = ca.self_signed(&ca_key)?.pem();

        let mut leaf = CertificateParams::new(names)?;
        leaf.distinguished_name.push(DnType::CommonName, "origin.test");
        leaf.use_authority_key_identifier_extension = true;
        let leaf_key = KeyPair::generate()?;
        let leaf = leaf.signed_by(&leaf_key, &Issuer::new(ca, ca_key))?;

        let key = PrivateKeyDer::try_from(leaf_key.serialize_der())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)?;
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { ca_pem, acceptor: TlsAcceptor::from(Arc::new(server)) })
    }
}
