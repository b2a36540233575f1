//! A directory's word that it saw an exit bridge serve, and how an exit bridge asks for it.
//!
//! Both are signed documents, as descriptors are. An attestation is signed with the key of the directory's onion
//! service (KS_hs_id): who knows the directory's address can check it, at any time and with nobody's help.

use std::net::IpAddr;
use std::time::SystemTime;

use serde::{Deserialize, Deserializer, Serialize};

use crate::descriptor::{
    DescriptorError, SignedDocument, VERSION, bytes_of, check_published, check_signature, parse, sign_text,
};
use crate::limits::{MAX_ATTESTATION_GAP, MAX_VALIDITY};
use crate::reach::OnionReach;

/// What stands before an attestation in the bytes that are signed.
const ATTESTATION_DOMAIN: &[u8] = b"exit bridge attestation, version 1\n";

/// What stands before a request for one in the bytes that are signed.
const REQUEST_DOMAIN: &[u8] = b"exit bridge attestation request, version 1\n";

/// A directory's word that it saw this exit bridge serve: at both times, and at least once in
/// [`MAX_ATTESTATION_GAP`] between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation {
    /// The identity of the exit bridge.
    pub identity: [u8; 32],
    /// The address that it was seen to leave from; of an IPv6 address the network of 64 bits, by its first address.
    pub egress: IpAddr,
    /// When it was seen first, in whole milliseconds.
    pub from: SystemTime,
    /// When it was seen last.
    pub until: SystemTime,
    /// Whose word it is.
    pub directory: OnionReach,
}

/// What an exit bridge asks for an attestation with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttestationRequest {
    /// Whose.
    pub identity: [u8; 32],
    /// Whom it asks. Nobody else is told by this where the exit bridge leaves from.
    pub directory: OnionReach,
    /// When this was signed: after the last descriptor.
    pub published: SystemTime,
    /// An attestation that it has, for the new one to go on from.
    pub previous: Option<SignedDocument>,
}

/// An attestation as it is written.
#[derive(Serialize, Deserialize)]
struct AttestationText {
    version: u32,
    #[serde(with = "crate::wire::bytes")]
    identity: [u8; 32],
    egress: IpAddr,
    #[serde(with = "crate::wire::time")]
    from: SystemTime,
    #[serde(with = "crate::wire::time")]
    until: SystemTime,
    directory: OnionReach,
}

/// A request as it is written.
#[derive(Serialize, Deserialize)]
struct RequestText {
    version: u32,
    #[serde(with = "crate::wire::bytes")]
    identity: [u8; 32],
    directory: OnionReach,
    #[serde(with = "crate::wire::time")]
    published: SystemTime,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "object")]
    previous: Option<SignedDocument>,
}

fn object<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SignedDocument>, D::Error> {
    crate::wire::object(from).map(Some)
}

impl Attestation {
    /// Goes on from `previous`, if that is the same directory's word on the same exit bridge at the same address, and
    /// ended at most [`MAX_ATTESTATION_GAP`] before this one ends. Else it stays as it is.
    #[must_use]
    pub fn extending(mut self, previous: &SignedDocument) -> Self {
        let Ok(previous) = Self::verify(previous) else { return self };
        let same = previous.identity == self.identity
            && previous.egress == self.egress
            && previous.directory == self.directory;
        let gap = self.until.duration_since(previous.until);
        if same && gap.is_ok_and(|gap| gap <= MAX_ATTESTATION_GAP) {
            self.from = self.from.min(previous.from);
        }
        self
    }

    /// Writes and signs it: `sign` is given the bytes and returns Ed25519 with the key in the directory's address.
    pub fn sign(&self, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> SignedDocument {
        let text = AttestationText {
            version: VERSION,
            identity: self.identity,
            egress: self.egress,
            from: self.from,
            until: self.until,
            directory: self.directory.clone(),
        };
        sign_text(ATTESTATION_DOMAIN, &text, sign)
    }

    /// Reads one and checks that the directory that it names signed it. Whether that one is to be believed, the
    /// caller has to know.
    ///
    /// # Errors
    /// See [`DescriptorError`].
    pub fn verify(signed: &SignedDocument) -> Result<Self, DescriptorError> {
        let bytes = bytes_of(signed)?;
        let text: AttestationText = parse(&bytes)?;
        check_signature(ATTESTATION_DOMAIN, &bytes, &text.directory.service, &signed.signature)?;
        if text.from > text.until {
            return Err(DescriptorError::Field("until", "is before from"));
        }
        let AttestationText { identity, egress, from, until, directory, .. } = text;
        Ok(Self { identity, egress, from, until, directory })
    }
}

impl AttestationRequest {
    /// Writes and signs it: `sign` is given the bytes and returns Ed25519 with the exit bridge's identity.
    pub fn sign(&self, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> SignedDocument {
        let text = RequestText {
            version: VERSION,
            identity: self.identity,
            directory: self.directory.clone(),
            published: self.published,
            previous: self.previous.clone(),
        };
        sign_text(REQUEST_DOMAIN, &text, sign)
    }

    /// Reads one and checks what can be checked by itself. `previous` is not looked at.
    ///
    /// # Errors
    /// See [`DescriptorError`].
    pub fn verify(signed: &SignedDocument, now: SystemTime) -> Result<Self, DescriptorError> {
        let bytes = bytes_of(signed)?;
        let text: RequestText = parse(&bytes)?;
        check_signature(REQUEST_DOMAIN, &bytes, &text.identity, &signed.signature)?;
        check_published(text.published, now)?;
        if text.published + MAX_VALIDITY <= now {
            return Err(DescriptorError::Stale);
        }
        let RequestText { identity, directory, published, previous, .. } = text;
        Ok(Self { identity, directory, published, previous })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::Withdrawal;
    use data_encoding::BASE64_NOPAD;
    use ed25519_dalek::{Signer as _, SigningKey};
    use proptest::prelude::*;
    use std::time::{Duration, UNIX_EPOCH};

    /// The exit bridge is key 1, the directory key 2.
    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    fn id(n: u8) -> [u8; 32] {
        key(n).verifying_key().to_bytes()
    }

    fn sign(n: u8) -> impl Fn(&[u8]) -> [u8; 64] {
        move |bytes| key(n).sign(bytes).to_bytes()
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_796_126_400) // 2026-12-01T12:00:00Z
    }

    fn hours(n: u64) -> Duration {
        Duration::from_secs(n * 3600)
    }

    fn attestation() -> Attestation {
        Attestation {
            identity: id(1),
            egress: "203.0.113.7".parse().unwrap(),
            from: now(),
            until: now() + Duration::from_millis(5_400_250),
            directory: OnionReach { service: id(2) },
        }
    }

    fn request() -> AttestationRequest {
        AttestationRequest {
            identity: id(1),
            directory: OnionReach { service: id(2) },
            published: now() + hours(2),
            previous: Some(attestation().sign(sign(2))),
        }
    }

    fn document(signed: &SignedDocument) -> String {
        String::from_utf8(BASE64_NOPAD.decode(signed.document.as_bytes()).unwrap()).unwrap()
    }

    /// Bytes under a signature that is good.
    fn signed(domain: &[u8], document: &str, n: u8) -> SignedDocument {
        let signature = sign(n)(&[domain, document.as_bytes()].concat());
        SignedDocument { document: BASE64_NOPAD.encode(document.as_bytes()), signature }
    }

    /// The vectors of docs/protocol.md.
    #[test]
    fn golden_attestation_and_request_are_written_and_read() {
        let attested = attestation().sign(sign(2));
        assert_eq!(
            document(&attested),
            "{\"version\":1,\"identity\":\"iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w\",\
             \"egress\":\"203.0.113.7\",\"from\":\"2026-12-01T12:00:00.000Z\",\
             \"until\":\"2026-12-01T13:30:00.250Z\",\
             \"directory\":\"qe4xodvipulv6vvdkrtmgtd6ztfy3curwtxdpis56yhvxd6jwokbr4qd.onion\"}"
        );
        // Computed by an independent implementation, as the other one.
        let signature =
            "BLMPrmeUFsotl+jx24AMG5fxWc7XXsSr+QcHfeflLETyX+BJX3Lt3D4Jb8wQzxTj3vVoMtRpxMhCqPk+MgbTAA";
        assert_eq!(BASE64_NOPAD.encode(&attested.signature), signature);
        assert_eq!(Attestation::verify(&attested).unwrap(), attestation());

        let asked = request().sign(sign(1));
        assert_eq!(
            document(&asked),
            format!(
                "{{\"version\":1,\"identity\":\"iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w\",\
                 \"directory\":\"qe4xodvipulv6vvdkrtmgtd6ztfy3curwtxdpis56yhvxd6jwokbr4qd.onion\",\
                 \"published\":\"2026-12-01T14:00:00.000Z\",\
                 \"previous\":{{\"document\":\"{}\",\"signature\":\"{signature}\"}}}}",
                attested.document
            )
        );
        let signature =
            "V1tFgokSO1ybOMTWvw+G1QGtBDWTrRjZdBt/7eKFTEIylZkejCSztm5htFUfNmNEG+VE/FhMQGp551C61ZpCCw";
        assert_eq!(BASE64_NOPAD.encode(&asked.signature), signature);
        assert_eq!(AttestationRequest::verify(&asked, now() + hours(2)).unwrap(), request());
        let first = AttestationRequest { previous: None, ..request() };
        assert!(!document(&first.sign(sign(1))).contains("previous"));
        assert_eq!(AttestationRequest::verify(&first.sign(sign(1)), now() + hours(2)).unwrap(), first);
    }

    #[test]
    fn only_the_directory_that_is_named_can_have_said_it() {
        let code = |signed: &SignedDocument| Attestation::verify(signed).unwrap_err().code();
        assert_eq!(code(&attestation().sign(sign(1))), "signature_bad");
        assert_eq!(code(&attestation().sign(sign(3))), "signature_bad");
        let backwards = Attestation { until: now() - hours(1), ..attestation() };
        assert_eq!(code(&backwards.sign(sign(2))), "document_malformed");
        let text = document(&attestation().sign(sign(2)));
        for (from, to, expected) in [
            ("\"version\":1", "\"version\":2", "version_unknown"),
            ("203.0.113.7", "203.0.113.700", "document_malformed"),
            (".onion", "", "document_malformed"),
        ] {
            assert_eq!(code(&signed(ATTESTATION_DOMAIN, &text.replace(from, to), 2)), expected, "{to}");
        }
    }

    #[test]
    fn a_request_is_the_exit_bridges_own_and_of_now() {
        let code = |request: &AttestationRequest, n, now| {
            AttestationRequest::verify(&request.sign(sign(n)), now).unwrap_err().code()
        };
        assert_eq!(code(&request(), 2, now() + hours(2)), "signature_bad");
        assert_eq!(code(&request(), 1, now() + hours(1)), "document_from_future");
        assert_eq!(code(&request(), 1, now() + hours(5)), "document_stale");
        let text = document(&request().sign(sign(1)));
        let (front, _) = text.split_once("{\"document\"").unwrap();
        for previous in ["null", "5", "[\"AAAA\",\"A\"]", "{}"] {
            let other = signed(REQUEST_DOMAIN, &format!("{front}{previous}}}"), 1);
            let error = AttestationRequest::verify(&other, now() + hours(2)).unwrap_err();
            assert!(error.to_string().contains("previous"), "{previous}: {error}");
        }
    }

    #[test]
    fn each_document_was_signed_for_one_purpose() {
        // A request has all the fields of a withdrawal.
        let asked = request().sign(sign(1));
        assert_eq!(Withdrawal::verify(&asked, now() + hours(2)).unwrap_err().code(), "signature_bad");
        let both = format!("{}x", document(&attestation().sign(sign(2))));
        let both = both.replace("}x", ",\"published\":\"2026-12-01T12:00:00Z\"}");
        let wrong = signed(REQUEST_DOMAIN, &both, 2);
        assert_eq!(Attestation::verify(&wrong).unwrap_err().code(), "signature_bad");
        let wrong = signed(ATTESTATION_DOMAIN, &both, 1);
        assert_eq!(AttestationRequest::verify(&wrong, now()).unwrap_err().code(), "signature_bad");
    }

    #[test]
    fn time_goes_on_from_the_same_word_and_from_no_other() {
        let until = attestation().until;
        let at = |until| Attestation { from: until, until, ..attestation() };
        let from = |new: Attestation, previous: &SignedDocument| new.extending(previous).from;
        let good = attestation().sign(sign(2));
        for later in [Duration::ZERO, Duration::from_millis(1), MAX_ATTESTATION_GAP] {
            let extended = at(until + later).extending(&good);
            assert_eq!((extended.from, extended.until), (now(), until + later));
        }
        let late = until + MAX_ATTESTATION_GAP + Duration::from_millis(1);
        assert_eq!(from(at(late), &good), late);
        let early = until - Duration::from_millis(1);
        assert_eq!(from(at(early), &good), early, "a clock that went back");
        let new = || at(until + hours(1));
        for other in [
            Attestation { identity: id(3), ..attestation() }.sign(sign(2)),
            Attestation { egress: "203.0.113.8".parse().unwrap(), ..attestation() }.sign(sign(2)),
            Attestation { directory: OnionReach { service: id(3) }, ..attestation() }.sign(sign(3)),
            attestation().sign(sign(1)),
            SignedDocument { document: "*".into(), signature: [0; 64] },
        ] {
            assert_eq!(from(new(), &other), new().from);
        }
    }

    proptest! {
        #[test]
        fn whatever_is_signed_is_read_as_it_was(
            egress: IpAddr, from in 0u64..4_000_000_000_000, longer in 0u64..10_000_000_000,
            with_previous: bool,
        ) {
            let at = |ms| UNIX_EPOCH + Duration::from_millis(ms);
            let attested = Attestation { egress, from: at(from), until: at(from + longer), ..attestation() };
            let signed = attested.sign(sign(2));
            prop_assert_eq!(Attestation::verify(&signed).unwrap(), attested);
            let previous = with_previous.then_some(signed);
            let asked = AttestationRequest { published: at(from), previous, ..request() };
            prop_assert_eq!(AttestationRequest::verify(&asked.sign(sign(1)), at(from)).unwrap(), asked);
        }

        #[test]
        fn a_changed_byte_is_noticed(at in 0usize..1000, to: u8) {
            for (signed, _) in [(attestation().sign(sign(2)), 2), (request().sign(sign(1)), 1)] {
                let mut bytes = BASE64_NOPAD.decode(signed.document.as_bytes()).unwrap();
                let at = at % bytes.len();
                prop_assume!(bytes[at] != to);
                bytes[at] = to;
                let changed = SignedDocument { document: BASE64_NOPAD.encode(&bytes), ..signed };
                prop_assert!(Attestation::verify(&changed).is_err());
                prop_assert!(AttestationRequest::verify(&changed, now() + hours(2)).is_err());
            }
        }

        #[test]
        fn no_document_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let signed = SignedDocument { document: BASE64_NOPAD.encode(&bytes), signature: [7; 64] };
            prop_assert!(Attestation::verify(&signed).is_err());
            prop_assert!(AttestationRequest::verify(&signed, now()).is_err());
        }
    }
}
