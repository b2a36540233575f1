//! A receipt: an exit bridge's signed statement of when it served, countersigned by the directories that saw it. For
//! whoever asks later who was behind its address. It says nothing of people and of where they went.
//!
//! On paper it is for people. What can be checked is its file, one line of JSON: a [`SignedDocument`] whose document
//! has a version, the exit bridge's onion address, when it was made, and the intervals with their attestations as they
//! came. It is signed with the key in that address (KS_hs_id), over a domain and the document's bytes.

use std::fmt;
use std::net::IpAddr;

use data_encoding::BASE64_NOPAD;
use ed25519_dalek::{Signature, VerifyingKey};
use eebt_proto::{Attestation, DescriptorError, OnionReach, SignedDocument, from_json};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::pdf;
use crate::served::{Interval, timestamp};

/// What stands before the document in the bytes that are signed.
const DOMAIN: &[u8] = b"exit bridge receipt, version 1\n";

/// Version of the document.
const VERSION: u32 = 1;

/// Longest file that is read, in bytes.
pub const MAX_LEN: usize = 4 * 1024 * 1024;

/// Shorter gaps between what was countersigned are of no interest.
const SHORT: SignedDuration = SignedDuration::from_secs(1);

/// A receipt that nobody has checked.
pub struct Receipt(SignedDocument);

/// Its name where it is attached to a PDF.
const ATTACHED: &str = "receipt.json";

/// Of a PDF that some other program wrote.
const NOT_ATTACHED: &str =
    "this PDF has none as it was written here; save the file that is attached to it, and check that";

/// The receipt in a PDF that we wrote: a line of its own, as it is. Whatever else is taken for it has no signature.
fn attached(pdf: &[u8]) -> Option<&[u8]> {
    pdf.split(|byte| *byte == b'\n').find(|line| line.starts_with(b"{\"document\":"))
}

/// What documents of all versions have.
#[derive(Deserialize)]
struct VersionText {
    version: u32,
}

/// What is signed.
#[derive(Serialize, Deserialize)]
struct Text {
    version: u32,
    exit_bridge: OnionReach,
    made: Timestamp,
    intervals: Vec<Interval>,
}

/// What a receipt says that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Whose word it is: the key in this address signed it.
    pub exit_bridge: OnionReach,
    /// When it was made, as it says.
    pub made: Timestamp,
    /// When it served, as it says, and who saw it.
    pub intervals: Vec<VerifiedInterval>,
}

/// One time in which it served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedInterval {
    /// From when.
    pub from: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// What is countersigned of it.
    pub seen: Vec<Seen>,
    /// What is not: of these times there is the exit bridge's own word only.
    pub own_word: Vec<(Timestamp, Timestamp)>,
}

/// What one directory signed of an interval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which one. Who reads the receipt has to know whether it is to be believed.
    pub directory: OnionReach,
    /// The address that the exit bridge left from; of an IPv6 address the network of 64 bits.
    pub egress: IpAddr,
    /// From when, within the interval.
    pub from: Timestamp,
    /// Until when.
    pub until: Timestamp,
}

/// Why a receipt is refused. Intervals and attestations are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// Longer than any is.
    #[error("the receipt is longer than {MAX_LEN} bytes")]
    TooLong,
    /// It is none.
    #[error("this is no receipt: {0}")]
    Malformed(String),
    /// A version that this program does not know.
    #[error("version: expected {VERSION}, found {0}")]
    Version(u32),
    /// It is not what the exit bridge signed.
    #[error("signature: is not that of the exit bridge; it is forged, or was changed")]
    Signature,
    /// An interval that can't be.
    #[error("interval {interval}: ends before it begins")]
    Backwards {
        /// Which one.
        interval: usize,
    },
    /// An attestation that no directory signed as it is.
    #[error("interval {interval}, attestation {attestation}: is not what its directory signed")]
    Attestation {
        /// Of which interval.
        interval: usize,
        /// Which one.
        attestation: usize,
        /// What is wrong with it.
        source: DescriptorError,
    },
    /// An attestation that is about something else.
    #[error("interval {interval}, attestation {attestation}: {problem}")]
    OtherMatter {
        /// Of which interval.
        interval: usize,
        /// Which one.
        attestation: usize,
        /// In words.
        problem: &'static str,
    },
}

impl Receipt {
    /// Writes and signs one: `sign` is given the bytes and returns Ed25519 with the key in the onion address.
    pub fn sign(
        exit_bridge: OnionReach,
        intervals: Vec<Interval>,
        now: Timestamp,
        sign: impl FnOnce(&[u8]) -> [u8; 64],
    ) -> Self {
        let text = Text { version: VERSION, exit_bridge, made: now, intervals };
        // A struct of strings and numbers always has a JSON form.
        let document = serde_json::to_vec(&text).unwrap_or_default();
        let signature = sign(&[DOMAIN, &document].concat());
        Self(SignedDocument { document: BASE64_NOPAD.encode(&document), signature })
    }

    /// Reads a file, or a PDF that it is attached to. Nothing in it is to be believed yet.
    ///
    /// # Errors
    /// [`ReceiptError::TooLong`], [`ReceiptError::Malformed`].
    pub fn parse(file: &[u8]) -> Result<Self, ReceiptError> {
        let file = match file.starts_with(b"%PDF") {
            true => attached(file).ok_or_else(|| ReceiptError::Malformed(NOT_ATTACHED.into()))?,
            false => file,
        };
        if file.len() > MAX_LEN {
            return Err(ReceiptError::TooLong);
        }
        from_json(file).map(Self).map_err(|error| ReceiptError::Malformed(error.to_string()))
    }

    /// The same to print, once it is checked: a PDF, A4, that the file is attached to.
    ///
    /// # Errors
    /// See [`Receipt::verify`].
    pub fn to_pdf(&self) -> Result<Vec<u8>, ReceiptError> {
        Ok(pdf::write(&self.verify()?.lines(), (ATTACHED, self.to_json().as_bytes())))
    }

    /// The file: one line of JSON.
    pub fn to_json(&self) -> String {
        // As above.
        serde_json::to_string(&self.0).unwrap_or_default() + "\n"
    }

    /// Checks all that can be checked without asking anybody, and says what is left.
    ///
    /// # Errors
    /// See [`ReceiptError`]: the first thing that is wrong.
    pub fn verify(&self) -> Result<Verified, ReceiptError> {
        let malformed = |error: &dyn fmt::Display| ReceiptError::Malformed(format!("document: {error}"));
        let document = BASE64_NOPAD.decode(self.0.document.as_bytes());
        let document = document.map_err(|_| malformed(&"expected base64 without padding"))?;
        let VersionText { version } = from_json(&document).map_err(|e| malformed(&e))?;
        if version != VERSION {
            return Err(ReceiptError::Version(version));
        }
        let text: Text = from_json(&document).map_err(|e| malformed(&e))?;
        let key = VerifyingKey::from_bytes(&text.exit_bridge.service).map_err(|_| ReceiptError::Signature)?;
        key.verify_strict(&[DOMAIN, &document].concat(), &Signature::from_bytes(&self.0.signature))
            .map_err(|_| ReceiptError::Signature)?;
        let intervals = text.intervals.iter().zip(1..);
        let intervals = intervals.map(|(interval, n)| verify(&text.exit_bridge, interval, n));
        let intervals = intervals.collect::<Result<_, _>>()?;
        Ok(Verified { exit_bridge: text.exit_bridge, made: text.made, intervals })
    }
}

/// Checks one interval, the `n`-th.
fn verify(exit_bridge: &OnionReach, interval: &Interval, n: usize) -> Result<VerifiedInterval, ReceiptError> {
    let (from, until) = (interval.from, interval.until);
    if until < from {
        return Err(ReceiptError::Backwards { interval: n });
    }
    let mut seen = Vec::new();
    for (signed, attestation) in interval.attestations.iter().zip(1..) {
        let other = |problem| ReceiptError::OtherMatter { interval: n, attestation, problem };
        let said = Attestation::verify(signed).map_err(|source| ReceiptError::Attestation {
            interval: n,
            attestation,
            source,
        })?;
        if said.identity != exit_bridge.service {
            return Err(other("is about another exit bridge"));
        }
        if !interval.touches(&said) {
            return Err(other("is about another time"));
        }
        let (Some(first), Some(last)) = (timestamp(said.from), timestamp(said.until)) else {
            return Err(other("is about another time"));
        };
        // What it says of other times belongs to other intervals.
        let (first, last) = (first.max(from), last.min(until));
        if first <= last {
            seen.push(Seen { directory: said.directory, egress: said.egress, from: first, until: last });
        }
    }
    seen.sort_by_key(|seen| (seen.from, seen.until));
    let own_word = uncovered(from, until, &seen);
    Ok(VerifiedInterval { from, until, seen, own_word })
}

/// What nobody saw, where `seen` begins with what was seen first.
fn uncovered(from: Timestamp, until: Timestamp, seen: &[Seen]) -> Vec<(Timestamp, Timestamp)> {
    let mut gaps = Vec::new();
    let mut at = from;
    for (first, last) in seen.iter().map(|seen| (seen.from, seen.until)).chain([(until, until)]) {
        if first.duration_since(at) >= SHORT {
            gaps.push((at, first));
        }
        at = at.max(last);
    }
    if seen.is_empty() { vec![(from, until)] } else { gaps }
}

impl Verified {
    /// What it says, for people; the first line is a title.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            "Receipt of an exit bridge".to_owned(),
            String::new(),
            format!("Exit bridge: {}", self.exit_bridge),
            format!("Made {} UTC, and signed with the key in that onion address.", written(self.made)),
            String::new(),
            "An exit bridge passes on traffic of people who use Tor, as a Tor exit does. It does not learn who they are, \
             and keeps no record of where they go. What came from its address while it served may have come from any \
             of them."
                .to_owned(),
            String::new(),
        ];
        if self.intervals.is_empty() {
            lines.push("It served at no time that this receipt is about.".to_owned());
        } else {
            lines.push("It served (all times are UTC):".to_owned());
        }
        let times = |from, until| format!("{} to {}", written(from), written(until));
        for (interval, n) in self.intervals.iter().zip(1..) {
            lines.push(String::new());
            lines.push(format!("{n}. {}", times(interval.from, interval.until)));
            for seen in &interval.seen {
                let (egress, times) = (network(seen.egress), times(seen.from, seen.until));
                lines.push(format!("    From {egress}: {times}, countersigned by"));
                lines.push(format!("        {}", seen.directory));
            }
            match interval.seen.is_empty() {
                true => lines.push("    By its own word only; nobody countersigned.".to_owned()),
                false => {
                    let own = |(from, until): &(_, _)| {
                        format!("    By its own word only: {}", times(*from, *until))
                    };
                    lines.extend(interval.own_word.iter().map(own));
                }
            }
        }
        lines.extend([
            String::new(),
            "Countersigned: the directory had reached itself through the exit bridge, from the address that is named, \
             shortly before the beginning and the end of that time and at least every 2 hours between, and signed that \
             with the key in its own onion address. Whether it is to be believed, the reader has to know."
                .to_owned(),
            String::new(),
            "This text proves nothing by itself. The file that it was made from does, which is attached to a PDF of it: \
             `hebtor-volunteer verify-receipt FILE` checks either. Who has the onion address of the exit bridge can use it while it serves."
                .to_owned(),
        ]);
        lines
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines().iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// A time, to the second.
fn written(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// What a directory tells apart of addresses.
fn network(egress: IpAddr) -> String {
    match egress {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("{v6}/64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::served::tests::{at, attestation, attested, key, onion};
    use ed25519_dalek::Signer as _;
    use std::net::Ipv6Addr;

    fn interval(from: &str, until: &str, attestations: Vec<SignedDocument>) -> Interval {
        Interval { from: at(from), until: at(until), attestations }
    }

    fn signed(intervals: Vec<Interval>) -> Receipt {
        Receipt::sign(onion(1), intervals, at("20:00:00"), |bytes| key(1).sign(bytes).to_bytes())
    }

    fn good() -> Receipt {
        signed(vec![
            interval(
                "10:00:00",
                "14:00:00",
                vec![
                    attested(3, "10:30:00", "11:30:00"),
                    attested(2, "10:01:00", "11:00:00"),
                    attested(2, "12:00:00", "13:59:59.750"),
                ],
            ),
            interval("15:00:00", "16:00:00", vec![]),
        ])
    }

    fn refused(receipt: &Receipt) -> String {
        let error = Receipt::parse(receipt.to_json().as_bytes()).unwrap().verify().unwrap_err();
        error.to_string()
    }

    /// Signs what was changed anew, as the exit bridge could.
    fn changed(receipt: &Receipt, from: &str, to: &str) -> Receipt {
        let document =
            String::from_utf8(BASE64_NOPAD.decode(receipt.0.document.as_bytes()).unwrap()).unwrap();
        assert!(document.contains(from), "{from} is not in {document}");
        let document = document.replace(from, to);
        let signature = key(1).sign(&[DOMAIN, document.as_bytes()].concat()).to_bytes();
        Receipt(SignedDocument { document: BASE64_NOPAD.encode(document.as_bytes()), signature })
    }

    #[test]
    fn a_good_receipt_says_who_saw_what_and_what_is_its_own_word() {
        let file = good().to_json();
        assert_eq!(file.lines().count(), 1);
        let verified = Receipt::parse(file.as_bytes()).unwrap().verify().unwrap();
        assert_eq!((&verified.exit_bridge, verified.made), (&onion(1), at("20:00:00")));
        let [one, two] = &verified.intervals[..] else { panic!("{verified:?}") };
        let who: Vec<_> = one.seen.iter().map(|s| (s.directory.clone(), s.from, s.until)).collect();
        assert_eq!(
            who,
            [
                (onion(2), at("10:01:00"), at("11:00:00")),
                (onion(3), at("10:30:00"), at("11:30:00")),
                (onion(2), at("12:00:00"), at("13:59:59.750")),
            ]
        );
        assert!(one.seen.iter().all(|seen| seen.egress.to_string() == "203.0.113.7"));
        // Less than a second is of no interest.
        assert_eq!(one.own_word, [(at("10:00:00"), at("10:01:00")), (at("11:30:00"), at("12:00:00"))]);
        assert_eq!((two.seen.len(), &two.own_word[..]), (0, &[(at("15:00:00"), at("16:00:00"))][..]));
    }

    #[test]
    fn it_can_be_read_by_people() {
        let text = good().verify().unwrap().to_string();
        assert!(text.starts_with("Receipt of an exit bridge\n\nExit bridge: "), "{text}");
        for line in [
            "Made 2026-12-01 20:00:00 UTC, and signed with the key in that onion address.".to_owned(),
            "1. 2026-12-01 10:00:00 to 2026-12-01 14:00:00".to_owned(),
            "    From 203.0.113.7: 2026-12-01 10:01:00 to 2026-12-01 11:00:00, countersigned by".to_owned(),
            format!("        {}", onion(2)),
            "    By its own word only: 2026-12-01 11:30:00 to 2026-12-01 12:00:00".to_owned(),
            "2. 2026-12-01 15:00:00 to 2026-12-01 16:00:00\n    By its own word only; nobody countersigned."
                .to_owned(),
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line:?} is not in\n{text}");
        }
        assert!(signed(Vec::new()).verify().unwrap().to_string().contains("served at no time"));
        let home = Attestation {
            egress: "2001:db8:1:2::".parse::<Ipv6Addr>().unwrap().into(),
            ..attestation(2, at("10:00:00"), at("10:00:00"))
        };
        let home = home.sign(|bytes| key(2).sign(bytes).to_bytes());
        let text = signed(vec![interval("10:00:00", "11:00:00", vec![home])]).verify().unwrap().to_string();
        assert!(text.contains("From 2001:db8:1:2::/64: "), "{text}");
    }

    #[test]
    fn it_can_be_printed() {
        let many = (0..60).map(|n| interval(&format!("10:{n:02}:00"), &format!("10:{n:02}:30"), Vec::new()));
        let receipt = signed(many.collect());
        let pdf = receipt.to_pdf().unwrap();
        let holds = |text: &str| pdf.windows(text.len()).any(|at| at == text.as_bytes());
        assert!(
            holds("(Receipt of an exit bridge)") && holds("(60. 2026-12-01 10:59:00 to 2026-12-01 10:59:30)")
        );
        assert!(holds(&format!("(Exit bridge: {})", onion(1))) && holds("page 4 of 4"));
        assert_eq!(Receipt::parse(&pdf).unwrap().verify(), receipt.verify(), "and checked");
        assert!(matches!(Receipt::parse(b"%PDF-1.7\nnothing"), Err(ReceiptError::Malformed(_))));
    }

    #[test]
    fn what_others_forge_or_change_is_refused() {
        let by_another = Receipt::sign(onion(1), Vec::new(), at("20:00:00"), |b| key(2).sign(b).to_bytes());
        assert!(refused(&by_another).starts_with("signature: "));
        // Any other byte, and any part of another receipt.
        let Receipt(SignedDocument { document, signature }) = good();
        for at in (0..document.len()).step_by(7) {
            let mut bytes = document.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let document = String::from_utf8(bytes).unwrap();
            assert!(Receipt(SignedDocument { document, signature }).verify().is_err(), "{at}");
        }
        let other = Receipt(SignedDocument { document: signed(Vec::new()).0.document, signature });
        assert!(refused(&other).starts_with("signature: "));
    }

    #[test]
    fn what_the_owner_invents_is_refused_and_named() {
        let with = |attestation: SignedDocument| {
            let real = attested(2, "10:01:00", "11:00:00");
            let first = interval("08:00:00", "09:00:00", Vec::new());
            refused(&signed(vec![first, interval("10:00:00", "14:00:00", vec![real, attestation])]))
        };
        let invented = attestation(2, at("10:00:00"), at("14:00:00")).sign(|b| key(1).sign(b).to_bytes());
        assert_eq!(with(invented), "interval 2, attestation 2: is not what its directory signed");
        let mut longer = attested(2, "10:01:00", "11:00:00");
        let text = String::from_utf8(BASE64_NOPAD.decode(longer.document.as_bytes()).unwrap()).unwrap();
        longer.document = BASE64_NOPAD.encode(text.replace("11:00:00", "13:00:00").as_bytes());
        assert_eq!(with(longer), "interval 2, attestation 2: is not what its directory signed");
        let neighbours = Attestation { identity: [7; 32], ..attestation(2, at("10:01:00"), at("11:00:00")) };
        let neighbours = neighbours.sign(|bytes| key(2).sign(bytes).to_bytes());
        assert_eq!(with(neighbours), "interval 2, attestation 2: is about another exit bridge");
        let yesterdays = attested(2, "05:00:00", "06:00:00");
        assert_eq!(with(yesterdays), "interval 2, attestation 2: is about another time");
        assert_eq!(
            refused(&signed(vec![interval("10:00:00", "09:59:59", Vec::new())])),
            "interval 1: ends before it begins"
        );
    }

    #[test]
    fn an_interval_that_is_made_longer_is_its_own_word_only() {
        let longer =
            changed(&good(), "\"from\":\"2026-12-01T10:00:00Z\"", "\"from\":\"2026-12-01T02:00:00Z\"");
        let verified = longer.verify().unwrap();
        assert_eq!(verified.intervals[0].own_word[0], (at("02:00:00"), at("10:01:00")));
        // And one that is made shorter is countersigned no longer than it is.
        let shorter = changed(&good(), "T14:00:00Z", "T13:00:00Z").verify().unwrap();
        assert_eq!(shorter.intervals[0].seen[2].until, at("13:00:00"));
    }

    #[test]
    fn clocks_may_differ_a_little() {
        let near = vec![attested(2, "09:56:00", "09:58:00"), attested(3, "11:01:00", "11:04:00")];
        let verified = signed(vec![interval("10:00:00", "11:00:00", near)]).verify().unwrap();
        assert!(verified.intervals[0].seen.is_empty(), "what is near is not in it");
        assert_eq!(verified.intervals[0].own_word, [(at("10:00:00"), at("11:00:00"))]);
    }

    #[test]
    fn what_is_no_receipt_is_refused() {
        let parse =
            |text: &str| Receipt::parse(text.as_bytes()).and_then(|r| r.verify().map(drop)).unwrap_err();
        for text in ["", "{}", "[]", "x", "{\"document\":\"*\"}"] {
            assert!(parse(text).to_string().starts_with("this is no receipt: "), "{text}");
        }
        assert_eq!(parse(&" ".repeat(MAX_LEN + 1)), ReceiptError::TooLong);
        let with = |document: &str| {
            let document = BASE64_NOPAD.encode(document.as_bytes());
            Receipt(SignedDocument { document, signature: [0; 64] }).verify().unwrap_err()
        };
        assert_eq!(with("{\"version\":2,\"new\":[]}"), ReceiptError::Version(2));
        assert!(with("{\"version\":1}").to_string().contains("exit_bridge"));
        // A descriptor's signature or an attestation's is for something else.
        let other = attested(1, "10:00:00", "11:00:00");
        assert!(Receipt(other).verify().is_err());
    }
}
