#![no_main]
//! A signed document of any content is refused with one of the codes, or it is whole: what is verified is
//! signed again to one that verifies to the same.

use std::time::{Duration, SystemTime};

use data_encoding::BASE64_NOPAD;
use ed25519_dalek::{Signer as _, SigningKey};
use eebt_proto::{
    BridgeDescriptor, DescriptorError, SignedDocument, UnverifiedDescriptor, Withdrawal, from_json,
};
use libfuzzer_sys::fuzz_target;

/// The key of the golden vector in docs/protocol.md; its descriptor is a good first input.
const KEY: [u8; 32] = [1; 32];

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_796_126_400) // 2026-12-01T12:00:00Z
}

fn verify(signed: &SignedDocument) -> Result<BridgeDescriptor, DescriptorError> {
    UnverifiedDescriptor::parse(signed)?.verify(now())
}

fn known(error: &DescriptorError) {
    assert!(!error.code().is_empty() && error.to_string().contains(':'));
}

fuzz_target!(|bytes: &[u8]| {
    // As it came: envelope and all.
    if let Ok(signed) = from_json::<SignedDocument>(bytes) {
        let again = serde_json::to_vec(&signed).unwrap();
        assert!(from_json::<SignedDocument>(&again).unwrap() == signed);
        let _ = verify(&signed).map_err(|e| known(&e));
        let _ = Withdrawal::verify(&signed, now()).map_err(|e| known(&e));
    }
    // As a document under a signature that is good, so that what is behind it is reached.
    let key = SigningKey::from_bytes(&KEY);
    let sign = |bytes: &[u8]| key.sign(bytes).to_bytes();
    let document = BASE64_NOPAD.encode(bytes);
    let with_domain = |domain: &str| SignedDocument {
        document: document.clone(),
        signature: sign(&[domain.as_bytes(), bytes].concat()),
    };
    match verify(&with_domain("exit bridge descriptor, version 1\n")) {
        Ok(descriptor) => {
            assert!(*descriptor.identity() == key.verifying_key().to_bytes());
            let mut written = descriptor.clone();
            written.published = eebt_proto::descriptor::to_millis(descriptor.published);
            written.expires = eebt_proto::descriptor::to_millis(descriptor.expires);
            // Fractions of a millisecond are cut off; with them, what was about to expire may be gone.
            if let Ok(again) = verify(&descriptor.sign(sign)) {
                assert!(again.line.reach == written.line.reach && again.line.ports == written.line.ports);
                assert!(again.published == written.published && again.expires == written.expires);
                assert!(again.software == written.software && again.capacity == written.capacity);
            }
        }
        Err(error) => known(&error),
    }
    match Withdrawal::verify(&with_domain("exit bridge withdrawal, version 1\n"), now()) {
        Ok(withdrawal) => {
            let again = Withdrawal::verify(&withdrawal.sign(sign), now()).unwrap();
            assert!(again.identity == withdrawal.identity);
        }
        Err(error) => known(&error),
    }
});
