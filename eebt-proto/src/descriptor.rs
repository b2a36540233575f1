//! What an exit bridge says of itself to an exit-bridge directory, under its own signature.
//!
//! The signature is over the bytes as sent: a domain, then the document. The document is JSON; keys
//! that are not known are ignored. It is signed with the identity that the bridge line names (the relay
//! identity KS_relayid_ed, or the service identity KS_hs_id), so that nobody can speak for another one.
//! In code a descriptor comes to be only by [`BridgeDescriptor::sign`]'s reverse,
//! [`UnverifiedDescriptor::verify`].

use std::fmt;
use std::time::{Duration, SystemTime};

use data_encoding::BASE64_NOPAD;
use ed25519_dalek::{Signature, VerifyingKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::country::Country;
use crate::limits::{MAX_CLOCK_SKEW, MAX_DOCUMENT_LEN, MAX_SOFTWARE_LEN, MAX_VALIDITY};
use crate::line::BridgeLine;
use crate::wire::{JsonError, from_json};

/// What stands before a descriptor in the bytes that are signed.
const DESCRIPTOR_DOMAIN: &[u8] = b"exit bridge descriptor, version 1\n";

/// What stands before a withdrawal in the bytes that are signed.
const WITHDRAWAL_DOMAIN: &[u8] = b"exit bridge withdrawal, version 1\n";

/// Version of all signed documents.
pub(crate) const VERSION: u32 = 1;

/// A document and its signature, as they travel.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedDocument {
    /// The document's bytes in base64 without padding.
    pub document: String,
    /// Ed25519 over the domain and the document's bytes (RFC 8032), in base64 without padding.
    #[serde(with = "crate::wire::bytes")]
    pub signature: [u8; 64],
}

impl fmt::Debug for SignedDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[signed document]")
    }
}

/// The signed, expiring statement behind a bridge line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeDescriptor {
    /// How it is reached, which ports it lets out, and when it ends.
    pub line: BridgeLine,
    /// When this was signed, in whole milliseconds. A later one replaces an earlier one.
    pub published: SystemTime,
    /// Until when it is valid: at most [`MAX_VALIDITY`] after `published`.
    pub expires: SystemTime,
    /// Where its egress address is, as it says.
    pub country: Option<Country>,
    /// Streams that it serves at once.
    pub capacity: u32,
    /// Program and version, printable ASCII, at most [`MAX_SOFTWARE_LEN`] bytes.
    pub software: String,
}

/// An exit bridge's word that it is not to be handed out any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withdrawal {
    /// Whose.
    pub identity: [u8; 32],
    /// When this was signed: it ends descriptors that were signed before.
    pub published: SystemTime,
}

/// Why a document is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// Longer than any is.
    #[error("document: longer than {MAX_DOCUMENT_LEN} bytes")]
    TooLong,
    /// It can't be read; the text names the field.
    #[error("document: {0}")]
    Malformed(String),
    /// A version that this program does not know.
    #[error("version: expected {VERSION}, found {0}")]
    Version(u32),
    /// The signature is not that of `identity` over these bytes.
    #[error("signature: is not the identity's over this document")]
    Signature,
    /// `identity` is not that of the bridge line.
    #[error("bridge_line: names another exit bridge than the identity that signed")]
    NotItsReach,
    /// It was valid once.
    #[error("expires: has passed")]
    Stale,
    /// It was signed in the future.
    #[error("published: is in the future")]
    Future,
    /// It is valid for too long, or never.
    #[error("expires: must be after published, and at most 3 hours")]
    Validity,
    /// The exit bridge itself has ended.
    #[error("bridge_line: the exit bridge has ended")]
    Ended,
    /// A value that can't be.
    #[error("{0}: {1}")]
    Field(&'static str, &'static str),
}

impl DescriptorError {
    /// A name for programs; part of the protocol.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLong => "document_too_long",
            Self::Malformed(_) | Self::Field(..) => "document_malformed",
            Self::Version(_) => "version_unknown",
            Self::Signature => "signature_bad",
            Self::NotItsReach => "reach_not_own",
            Self::Stale => "document_stale",
            Self::Future => "document_from_future",
            Self::Validity => "validity_too_long",
            Self::Ended => "exit_bridge_ended",
        }
    }

    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::TooLong | Self::Malformed(_) | Self::Field(..) => {
                "docs/protocol.md, section 8, describes the documents"
            }
            Self::Version(_) => "one side needs a newer version",
            Self::Signature => {
                "sign the document's bytes as they are sent, behind the domain, with the identity's key"
            }
            Self::NotItsReach => "an exit bridge registers a bridge line of its own, with its own key",
            Self::Stale | Self::Future => "is the exit bridge's clock right?",
            Self::Validity => "let it expire at most 3 hours after it was published, and renew it in time",
            Self::Ended => "start the exit bridge again, with a new lifetime",
        }
    }
}

/// What documents of all versions have.
#[derive(Deserialize)]
struct VersionText {
    version: u32,
}

/// A descriptor as it is written.
#[derive(Serialize, Deserialize)]
struct DescriptorText {
    version: u32,
    #[serde(with = "crate::wire::bytes")]
    identity: [u8; 32],
    #[serde(with = "crate::wire::text")]
    bridge_line: BridgeLine,
    #[serde(with = "crate::wire::time")]
    published: SystemTime,
    #[serde(with = "crate::wire::time")]
    expires: SystemTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    country: Option<Country>,
    capacity: u32,
    software: String,
}

/// A withdrawal as it is written.
#[derive(Serialize, Deserialize)]
struct WithdrawalText {
    version: u32,
    #[serde(with = "crate::wire::bytes")]
    identity: [u8; 32],
    #[serde(with = "crate::wire::time")]
    published: SystemTime,
}

impl BridgeDescriptor {
    /// Writes and signs it: `sign` is given the bytes and returns Ed25519 with the identity's key.
    pub fn sign(&self, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> SignedDocument {
        let text = DescriptorText {
            version: VERSION,
            identity: *self.line.reach.identity(),
            bridge_line: self.line.clone(),
            published: self.published,
            expires: self.expires,
            country: self.country,
            capacity: self.capacity,
            software: self.software.clone(),
        };
        sign_text(DESCRIPTOR_DOMAIN, &text, sign)
    }

    /// Whose it is.
    pub fn identity(&self) -> &[u8; 32] {
        self.line.reach.identity()
    }
}

impl Withdrawal {
    /// Writes and signs it, as [`BridgeDescriptor::sign`] does.
    pub fn sign(&self, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> SignedDocument {
        let text = WithdrawalText { version: VERSION, identity: self.identity, published: self.published };
        sign_text(WITHDRAWAL_DOMAIN, &text, sign)
    }

    /// Reads one and checks everything that can be checked by itself.
    ///
    /// # Errors
    /// See [`DescriptorError`].
    pub fn verify(signed: &SignedDocument, now: SystemTime) -> Result<Self, DescriptorError> {
        let bytes = bytes_of(signed)?;
        let text: WithdrawalText = parse(&bytes)?;
        check_signature(WITHDRAWAL_DOMAIN, &bytes, &text.identity, &signed.signature)?;
        check_published(text.published, now)?;
        if text.published + MAX_VALIDITY <= now {
            return Err(DescriptorError::Stale);
        }
        Ok(Self { identity: text.identity, published: text.published })
    }
}

/// A descriptor that nobody has checked yet.
pub struct UnverifiedDescriptor {
    bytes: Vec<u8>,
    signature: [u8; 64],
    text: DescriptorText,
}

impl UnverifiedDescriptor {
    /// Reads one. Nothing in it is to be believed yet.
    ///
    /// # Errors
    /// [`DescriptorError::TooLong`], [`DescriptorError::Malformed`], [`DescriptorError::Version`].
    pub fn parse(signed: &SignedDocument) -> Result<Self, DescriptorError> {
        let bytes = bytes_of(signed)?;
        let text: DescriptorText = parse(&bytes)?;
        Ok(Self { bytes, signature: signed.signature, text })
    }

    /// The descriptor, if its signature is good and it is valid at `now`.
    ///
    /// # Errors
    /// See [`DescriptorError`].
    pub fn verify(self, now: SystemTime) -> Result<BridgeDescriptor, DescriptorError> {
        let Self { bytes, signature, text } = self;
        check_signature(DESCRIPTOR_DOMAIN, &bytes, &text.identity, &signature)?;
        if text.bridge_line.reach.identity() != &text.identity {
            return Err(DescriptorError::NotItsReach);
        }
        check_published(text.published, now)?;
        if text.expires <= now {
            return Err(DescriptorError::Stale);
        }
        if text.expires.duration_since(text.published).map_or(true, |valid| valid > MAX_VALIDITY) {
            return Err(DescriptorError::Validity);
        }
        if text.bridge_line.is_expired(now) {
            return Err(DescriptorError::Ended);
        }
        if text.capacity == 0 {
            return Err(DescriptorError::Field("capacity", "must be more than 0"));
        }
        let printable = text.software.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
        if text.software.is_empty() || text.software.len() > MAX_SOFTWARE_LEN || !printable {
            return Err(DescriptorError::Field("software", "expected 1 to 64 printable ASCII characters"));
        }
        Ok(BridgeDescriptor {
            line: text.bridge_line,
            published: text.published,
            expires: text.expires,
            country: text.country,
            capacity: text.capacity,
            software: text.software,
        })
    }
}

/// The time as a document can say it: whole milliseconds.
pub fn to_millis(at: SystemTime) -> SystemTime {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

pub(crate) fn sign_text(
    domain: &[u8],
    text: &impl Serialize,
    sign: impl FnOnce(&[u8]) -> [u8; 64],
) -> SignedDocument {
    // A struct of strings and numbers always has a JSON form.
    let document = serde_json::to_vec(text).unwrap_or_default();
    let signature = sign(&[domain, &document].concat());
    SignedDocument { document: BASE64_NOPAD.encode(&document), signature }
}

pub(crate) fn bytes_of(signed: &SignedDocument) -> Result<Vec<u8>, DescriptorError> {
    if signed.document.len() > MAX_DOCUMENT_LEN.div_ceil(3) * 4 {
        return Err(DescriptorError::TooLong);
    }
    let malformed = |_| DescriptorError::Malformed("expected base64 without padding".into());
    let bytes = BASE64_NOPAD.decode(signed.document.as_bytes()).map_err(malformed)?;
    if bytes.len() > MAX_DOCUMENT_LEN { Err(DescriptorError::TooLong) } else { Ok(bytes) }
}

/// Reads the document, if it is of our version. What else another version has in it is not looked at.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DescriptorError> {
    let malformed = |e: JsonError| DescriptorError::Malformed(e.to_string());
    let VersionText { version } = from_json(bytes).map_err(malformed)?;
    if version != VERSION {
        return Err(DescriptorError::Version(version));
    }
    from_json(bytes).map_err(malformed)
}

pub(crate) fn check_published(published: SystemTime, now: SystemTime) -> Result<(), DescriptorError> {
    if published > now + MAX_CLOCK_SKEW { Err(DescriptorError::Future) } else { Ok(()) }
}

pub(crate) fn check_signature(
    domain: &[u8],
    bytes: &[u8],
    identity: &[u8; 32],
    signature: &[u8; 64],
) -> Result<(), DescriptorError> {
    let key = VerifyingKey::from_bytes(identity).map_err(|_| DescriptorError::Signature)?;
    key.verify_strict(&[domain, bytes].concat(), &Signature::from_bytes(signature))
        .map_err(|_| DescriptorError::Signature)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::PortSet;
    use crate::reach::{OnionReach, Reach};
    use ed25519_dalek::{Signer as _, SigningKey};
    use proptest::prelude::*;
    use std::time::UNIX_EPOCH;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_796_126_400) // 2026-12-01T12:00:00Z
    }

    fn descriptor(n: u8) -> BridgeDescriptor {
        let reach = Reach::Onion(OnionReach { service: key(n).verifying_key().to_bytes() });
        BridgeDescriptor {
            line: BridgeLine {
                reach,
                ports: PortSet::web(),
                expires: Some(now() + Duration::from_secs(86_400)),
            },
            published: now(),
            expires: now() + Duration::from_secs(3600),
            country: Some("DE".parse().unwrap()),
            capacity: 256,
            software: "eebt-bridge 0.1.0".into(),
        }
    }

    fn signed(descriptor: &BridgeDescriptor, n: u8) -> SignedDocument {
        descriptor.sign(|bytes| key(n).sign(bytes).to_bytes())
    }

    fn verify(signed: &SignedDocument, now: SystemTime) -> Result<BridgeDescriptor, DescriptorError> {
        UnverifiedDescriptor::parse(signed)?.verify(now)
    }

    /// The vector of docs/protocol.md.
    #[test]
    fn golden_descriptor_is_written_and_read() {
        let signed = signed(&descriptor(1), 1);
        let document = String::from_utf8(BASE64_NOPAD.decode(signed.document.as_bytes()).unwrap()).unwrap();
        assert_eq!(
            document,
            "{\"version\":1,\"identity\":\"iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w\",\
             \"bridge_line\":\"eebt1 onion address=rkeohxlubhyzl7ks3mwtzos5olfgocn7dwkbeg7toseadnapn5optfad.onion \
             ports=80,443 expires=2026-12-02T12:00:00Z check=1423be21\",\
             \"published\":\"2026-12-01T12:00:00.000Z\",\"expires\":\"2026-12-01T13:00:00.000Z\",\
             \"country\":\"DE\",\"capacity\":256,\"software\":\"eebt-bridge 0.1.0\"}"
        );
        // Computed by an independent implementation.
        let signature =
            "MS4mkF9UaUWwgb9hxvWPBTtz7I6oBHWCKkTtSQDoLlz17+oCE2nhHpkWo/RPi/abgx1zutlZuDkaXVEkRhdiBg";
        assert_eq!(BASE64_NOPAD.encode(&signed.signature), signature);
        assert_eq!(verify(&signed, now()).unwrap(), descriptor(1));
        let json = serde_json::to_string(&signed).unwrap();
        assert_eq!(serde_json::from_str::<SignedDocument>(&json).unwrap(), signed);
    }

    #[test]
    fn each_mistake_has_its_own_code() {
        let good = descriptor(1);
        let hours = |n: u64| Duration::from_secs(n * 3600);
        let code = |descriptor: &BridgeDescriptor, signer: u8, at| {
            verify(&signed(descriptor, signer), at).unwrap_err().code()
        };
        assert_eq!(code(&good, 2, now()), "signature_bad");
        assert_eq!(code(&good, 1, now() + hours(1)), "document_stale");
        assert_eq!(code(&good, 1, now() - hours(1)), "document_from_future");
        let long = BridgeDescriptor { expires: now() + hours(4), ..good.clone() };
        assert_eq!(code(&long, 1, now()), "validity_too_long");
        let never = BridgeDescriptor {
            published: now() + Duration::from_secs(200),
            expires: now() + Duration::from_secs(100),
            ..good.clone()
        };
        assert_eq!(code(&never, 1, now()), "validity_too_long");
        let mut ended = good.clone();
        ended.line.expires = Some(now());
        assert_eq!(code(&ended, 1, now()), "exit_bridge_ended");
        assert_eq!(code(&BridgeDescriptor { capacity: 0, ..good.clone() }, 1, now()), "document_malformed");
        assert_eq!(
            code(&BridgeDescriptor { software: "\n".into(), ..good.clone() }, 1, now()),
            "document_malformed"
        );
    }

    #[test]
    fn nobody_can_register_anothers_reach() {
        // Signed by 2 under its own identity, with the bridge line of 1.
        let text = DescriptorText {
            version: 1,
            identity: key(2).verifying_key().to_bytes(),
            bridge_line: descriptor(1).line,
            published: now(),
            expires: now() + Duration::from_secs(60),
            country: None,
            capacity: 1,
            software: "x".into(),
        };
        let signed = sign_text(DESCRIPTOR_DOMAIN, &text, |b| key(2).sign(b).to_bytes());
        assert_eq!(verify(&signed, now()).unwrap_err().code(), "reach_not_own");
    }

    #[test]
    fn malformed_documents_are_refused() {
        let code = |document: String| {
            let signed = SignedDocument { document, signature: [0; 64] };
            verify(&signed, now()).unwrap_err().code()
        };
        assert_eq!(code("*".into()), "document_malformed");
        assert_eq!(code(String::new()), "document_malformed");
        assert_eq!(code(BASE64_NOPAD.encode(b"{}")), "document_malformed");
        assert_eq!(code("A".repeat(6000)), "document_too_long");
        let mut document = BASE64_NOPAD.decode(signed(&descriptor(1), 1).document.as_bytes()).unwrap();
        document[11] = b'9';
        assert_eq!(code(BASE64_NOPAD.encode(&document)), "version_unknown");
        assert_eq!(code(BASE64_NOPAD.encode(br#"{"version":2,"other":[]}"#)), "version_unknown");
    }

    #[test]
    fn a_withdrawal_is_no_descriptor_and_the_other_way_round() {
        let withdrawal = Withdrawal { identity: key(1).verifying_key().to_bytes(), published: now() };
        let document = withdrawal.sign(|b| key(1).sign(b).to_bytes());
        // Computed by an independent implementation.
        let signature =
            "y03Kh6iofTa6gPyM5W+1N26D/QJOOyVLtdjf0Sl4CDfEdOFnbLjovSwwcd3NXTW7glURNli2wY4uWlZcJUdmBw";
        assert_eq!(BASE64_NOPAD.encode(&document.signature), signature);
        assert_eq!(Withdrawal::verify(&document, now()).unwrap(), withdrawal);
        assert_eq!(verify(&document, now()).unwrap_err().code(), "document_malformed");
        // A descriptor has all the fields of a withdrawal, but was signed for another purpose.
        let descriptor = signed(&descriptor(1), 1);
        assert_eq!(Withdrawal::verify(&descriptor, now()).unwrap_err().code(), "signature_bad");
        assert_eq!(Withdrawal::verify(&document, now() + MAX_VALIDITY).unwrap_err().code(), "document_stale");
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_noticed(at in 0usize..400, to: u8) {
            let mut signed = signed(&descriptor(1), 1);
            let mut bytes = BASE64_NOPAD.decode(signed.document.as_bytes()).unwrap();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            signed.document = BASE64_NOPAD.encode(&bytes);
            prop_assert!(verify(&signed, now()).is_err());
        }

        #[test]
        fn no_document_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let signed = SignedDocument { document: BASE64_NOPAD.encode(&bytes), signature: [7; 64] };
            prop_assert!(verify(&signed, now()).is_err());
            prop_assert!(Withdrawal::verify(&signed, now()).is_err());
        }
    }
}
