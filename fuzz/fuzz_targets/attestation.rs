#![no_main]
//! An attestation, or a request for one, of any content is refused with one of the codes, or it is whole: what is
//! verified is signed again to one that verifies to the same, and time goes on from it.

use std::time::{Duration, SystemTime};

use data_encoding::BASE64_NOPAD;
use ed25519_dalek::{Signer as _, SigningKey};
use eebt_proto::descriptor::to_millis;
use eebt_proto::{Attestation, AttestationRequest, DescriptorError, SignedDocument, from_json};
use libfuzzer_sys::fuzz_target;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_796_126_400) // 2026-12-01T12:00:00Z
}

fn known(error: &DescriptorError) {
    assert!(!error.code().is_empty() && error.to_string().contains(':'));
}

fuzz_target!(|bytes: &[u8]| {
    // As it came: envelope and all.
    if let Ok(signed) = from_json::<SignedDocument>(bytes) {
        let _ = Attestation::verify(&signed).map_err(|e| known(&e));
        let _ = AttestationRequest::verify(&signed, now()).map_err(|e| known(&e));
    }
    // As a document under a signature that is good: of the exit bridge and of the directory of the golden vectors.
    let sign = |n: u8| move |bytes: &[u8]| SigningKey::from_bytes(&[n; 32]).sign(bytes).to_bytes();
    let document = BASE64_NOPAD.encode(bytes);
    let with = |domain: &str, n| SignedDocument {
        document: document.clone(),
        signature: sign(n)(&[domain.as_bytes(), bytes].concat()),
    };
    match Attestation::verify(&with("exit bridge attestation, version 1\n", 2)) {
        Ok(mut attested) => {
            attested.from = to_millis(attested.from);
            attested.until = to_millis(attested.until);
            let again = attested.sign(sign(2));
            assert!(Attestation::verify(&again).unwrap() == attested);
            let now = Attestation { from: attested.until, ..attested.clone() };
            assert!(now.extending(&again) == attested);
        }
        Err(error) => known(&error),
    }
    match AttestationRequest::verify(&with("exit bridge attestation request, version 1\n", 1), now()) {
        Ok(asked) => {
            let again = AttestationRequest::verify(&asked.sign(sign(1)), now());
            // Fractions of a millisecond are cut off; with them, what was about to be stale may be.
            assert!(
                again.map_or(true, |again| again.previous == asked.previous
                    && again.identity == asked.identity)
            );
        }
        Err(error) => known(&error),
    }
});
