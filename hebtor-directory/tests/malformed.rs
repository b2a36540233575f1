//! Bodies that are no registration, thousands of them, over a real connection: each is answered with a
//! code and the field that it is about, nothing is registered, nobody else is disturbed, and no memory is
//! left behind.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use common::{Answer, Client, Running, body, descriptor, document, key, say, sign_bytes, signed};
use data_encoding::{BASE64, BASE64URL_NOPAD};
use ed25519_dalek::Signer as _;
use eebt_proto::SignedDocument;
use eebt_proto::directory::{DESCRIPTORS, ErrorBody};
use eebt_proto::limits::MAX_DOCUMENT_LEN;
use futures::future::join_all;
use hebtor_directory::api::MAX_BODY;
use hebtor_directory::store::Store;
use hebtor_directory::store::sqlite::Sqlite;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

/// How long each test may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Rounds of all malformed registrations.
const ROUNDS: usize = 12;

/// By how much the process may grow from the second round to the last, in KiB: 30 bytes for each
/// malformed registration.
const GROWTH_KIB: u64 = 1024;

/// Connections at once that send a body byte by byte.
const DRIPS: usize = 64;

/// One at a time: they share a process, whose memory is measured.
static TURN: Mutex<()> = Mutex::const_new(());

/// A body, and what has to be said about it.
struct Case {
    name: String,
    body: Vec<u8>,
    /// One of these codes.
    codes: &'static [&'static str],
    /// A word of the message: the field, where there is one.
    names: String,
}

const MALFORMED: &[&str] = &["body_malformed"];
const DOCUMENT: &[&str] = &["document_malformed"];

fn case(
    name: impl Into<String>,
    body: impl Into<Vec<u8>>,
    codes: &'static [&'static str],
    names: &str,
) -> Case {
    Case { name: name.into(), body: body.into(), codes, names: names.into() }
}

/// A directory with a store of its own.
struct Place {
    store: Arc<dyn Store>,
    directory: Running,
    _folder: TempDir,
}

async fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Sqlite::open(&folder.path().join("directory.db")).unwrap());
    let directory = Running::start(Arc::clone(&store), |_| {}).await;
    Place { store, directory, _folder: folder }
}

impl Place {
    fn addr(&self) -> SocketAddr {
        self.directory.addr
    }

    async fn registered(&self) -> u64 {
        self.store.counts(SystemTime::now()).await.unwrap().registered
    }

    /// Exit bridge `n` registers, and is taken.
    async fn takes(&self, n: u32) {
        let registration = body(&signed(&descriptor(n, SystemTime::now()), n));
        let answer = Client::new(self.addr()).post(DESCRIPTORS, &registration).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// The error of an answer that has to be one of ours.
fn refused(name: &str, answer: &Answer) -> (String, String) {
    assert!((400..500).contains(&answer.status), "{name}: {answer:?}");
    let error = serde_json::from_slice::<ErrorBody>(&answer.body);
    let error = error.unwrap_or_else(|e| panic!("{name}: {e}: {answer:?}")).error;
    assert!(!error.hint.is_empty(), "{name}: no hint: {answer:?}");
    (error.code, error.message)
}

#[tokio::test]
async fn malformed_registrations_are_refused_and_leave_nothing_behind() {
    let _turn = TURN.lock().await;
    timeout(LIMIT, async {
        let place = place().await;
        let cases = cases();
        assert!(cases.len() > 2000, "{} cases", cases.len());
        let (lies, no_http) = (lies(), no_http());
        place.takes(1000).await;
        let mut kib = Vec::new();
        for round in 0..ROUNDS {
            let mut client = Client::new(place.addr());
            for case in &cases {
                let answer = client.post(DESCRIPTORS, &case.body).await;
                let (code, message) = refused(&case.name, &answer);
                assert!(case.codes.contains(&code.as_str()), "{}: {code}: {message}", case.name);
                assert!(message.contains(&case.names), "{}: {message}", case.name);
            }
            for case in &lies {
                let answer = say(place.addr(), &case.body).await.expect(&case.name);
                let (code, _) = refused(&case.name, &answer);
                assert!(case.codes.contains(&code.as_str()), "{}: {code}", case.name);
            }
            for (name, bytes) in &no_http {
                // Our code does not see it: it ends with a status, or with the connection.
                if let Some(answer) = say(place.addr(), bytes).await {
                    assert!(
                        (400..500).contains(&answer.status) && answer.body.is_empty(),
                        "{name}: {answer:?}"
                    );
                }
            }
            drips(place.addr(), Duration::from_millis(2)).await;
            assert_eq!(place.registered().await, 1, "only the one that is right");
            sleep(Duration::from_millis(100)).await; // the connections end
            kib.push(resident_kib());
            let sent = cases.len() + lies.len() + no_http.len() + DRIPS;
            eprintln!("round {round}: {sent} malformed registrations, {} KiB", kib[round]);
        }
        let growth = kib[ROUNDS - 1].saturating_sub(kib[1]); // the first is for what is made once
        assert!(growth <= GROWTH_KIB, "{growth} KiB more after {ROUNDS} rounds: {kib:?}");
        for n in 0..50 {
            place.takes(n).await;
        }
        assert_eq!(place.registered().await, 51);
    })
    .await
    .expect("in time");
}

/// What looks odd and is none the less right.
#[tokio::test]
async fn unusual_registrations_are_taken() {
    let _turn = TURN.lock().await;
    timeout(LIMIT, async {
        let place = place().await;
        let now = SystemTime::now();
        let registration = |n| String::from_utf8(body(&signed(&descriptor(n, now), n))).unwrap();
        let inner = |n| String::from_utf8(document(&signed(&descriptor(n, now), n))).unwrap();
        let deep = format!(",\"later\":{}{}}}", "[".repeat(3000), "]".repeat(3000));
        let with_end = |text: String, end: &str| format!("{}{end}", text.strip_suffix('}').unwrap());
        let escaped = registration(5).replace("document", "d\\u006fcument");
        let long = inner(6);
        let padding = " ".repeat(MAX_DOCUMENT_LEN - long.len());
        for (name, text) in [
            ("as it is", registration(1)),
            ("a key that is not known", with_end(registration(2), ",\"later\":{\"a\":[1,2.5,null]}}")),
            ("and a deep one", with_end(registration(3), &deep)),
            ("spaces up to the bound", format!("{:MAX_BODY$}", registration(4))),
            ("escapes", escaped),
            ("a document up to the bound", json(&sign_bytes(format!("{long}{padding}").as_bytes(), 6))),
            ("a key more in it", json(&sign_bytes(with_end(inner(7), ",\"later\":1e400}").as_bytes(), 7))),
            ("no country", json(&sign_bytes(inner(8).replace("\"DE\"", "null").as_bytes(), 8))),
        ] {
            let answer = Client::new(place.addr()).post(DESCRIPTORS, text.as_bytes()).await;
            assert_eq!(answer.status, 200, "{name}: {answer:?}");
        }
        let head = format!("POST {DESCRIPTORS} HTTP/1.1\r\nHost: x\r\n");
        let chunks: String = registration(9).chars().map(|c| format!("1;note=x\r\n{c}\r\n")).collect();
        let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\nTrailer: x\r\n\r\n");
        let slow = format!("{head}Content-Length: {}\r\n\r\n{}", registration(10).len(), registration(10));
        for (name, request, pause) in [
            ("in chunks of a byte", chunked, Duration::ZERO),
            ("a byte at a time", slow, Duration::from_millis(1)),
        ] {
            let mut stream = TcpStream::connect(place.addr()).await.unwrap();
            stream.set_nodelay(true).unwrap();
            for byte in request.bytes() {
                stream.write_all(&[byte]).await.unwrap();
                sleep(pause).await;
            }
            assert_eq!(common::read_answer(&mut stream).await.unwrap().status, 200, "{name}");
        }
        assert_eq!(place.registered().await, 10);
    })
    .await
    .expect("in time");
}

/// Whoever sends slowly, or not at all, keeps nobody else waiting.
#[tokio::test]
async fn slow_ones_do_not_hold_up_others() {
    let _turn = TURN.lock().await;
    timeout(LIMIT, async {
        let place = place().await;
        let drips = tokio::spawn(drips(place.addr(), Duration::from_millis(20)));
        sleep(Duration::from_millis(50)).await;
        let start = Instant::now();
        for n in 0..50 {
            place.takes(n).await;
        }
        let taken = start.elapsed();
        assert!(taken < Duration::from_secs(5), "{taken:?} for 50 registrations");
        drips.await.unwrap();
        assert_eq!(place.registered().await, 50);
    })
    .await
    .expect("in time");
}

/// Connections that send a body byte by byte, and break off in the middle of it: half of them with an
/// end, the others without.
async fn drips(addr: SocketAddr, pause: Duration) {
    let registration = body(&signed(&descriptor(1, SystemTime::now()), 1));
    let head =
        format!("POST {DESCRIPTORS} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", registration.len());
    let drip = async |n: usize| {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        for byte in &registration[..n] {
            stream.write_all(&[*byte]).await.unwrap();
            sleep(pause).await;
        }
        if n.is_multiple_of(2) {
            stream.shutdown().await.unwrap();
            if let Some(answer) = common::read_answer(&mut stream).await {
                assert_eq!(refused("cut off", &answer).0, "body_incomplete");
            }
        }
    };
    join_all((0..DRIPS).map(drip)).await;
}

fn json(signed: &SignedDocument) -> String {
    String::from_utf8(body(signed)).unwrap()
}

/// All bodies that are no registration.
fn cases() -> Vec<Case> {
    let good = signed(&descriptor(1, SystemTime::now()), 1);
    let mut cases = envelopes(&good);
    cases.extend(documents(&document(&good)));
    cases.extend(fields(&document(&good)));
    cases.extend(bridge_lines(&document(&good)));
    cases.extend(by_chance(&good));
    cases
}

/// Values of all types, none of which is right anywhere.
fn wrong_values() -> Vec<(&'static str, String)> {
    vec![
        ("null", "null".into()),
        ("true", "true".into()),
        ("false", "false".into()),
        ("minus one", "-1".into()),
        ("a fraction", "1.5".into()),
        ("an exponent", "1e3".into()),
        ("an infinite number", "1e400".into()),
        ("more than 32 bits", "4294967296".into()),
        ("more than 64 bits", "18446744073709551616".into()),
        ("a thousand digits", "9".repeat(1000)),
        ("an empty text", "\"\"".into()),
        ("an unknown text", "\"§\"".into()),
        ("a control character", "\"\\u0000\"".into()),
        ("half a surrogate pair", "\"\\ud800\"".into()),
        ("a long text", format!("\"{}\"", "x".repeat(2500))),
        ("an empty array", "[]".into()),
        ("an array", "[1,2]".into()),
        ("a deep array", format!("{}{}", "[".repeat(1000), "]".repeat(1000))),
        ("an empty object", "{}".into()),
        ("an object", "{\"a\":{\"b\":null}}".into()),
        ("a deep object", format!("{}1{}", "{\"a\":".repeat(400), "}".repeat(400))),
        ("nothing", String::new()),
        ("no JSON", "undefined".into()),
    ]
}

/// Whether a value breaks the JSON around it, so that no field can be named for sure.
fn breaks_json(value: &str) -> bool {
    value.is_empty() || value == "undefined"
}

/// What can be wrong around a document.
fn envelopes(good: &SignedDocument) -> Vec<Case> {
    let whole = json(good);
    let mut cases: Vec<Case> = (0..whole.len())
        .map(|n| case(format!("the first {n} bytes"), &whole[..n], MALFORMED, "body: "))
        .collect();
    let (document, signature) = (&good.document, json(good));
    let signature = signature.split('"').rev().nth(1).unwrap();
    let with =
        |document: &str, signature: &str| format!("{{\"document\":{document},\"signature\":{signature}}}");
    let quoted = |text: &str| format!("\"{text}\"");
    for (name, value) in wrong_values() {
        let names = |field| if breaks_json(&value) { "body: " } else { field };
        let as_document = with(&value, &quoted(signature));
        // A text may be a document, and then it is a bad one.
        let codes =
            if value.starts_with('"') { &["document_malformed", "body_malformed"] } else { MALFORMED };
        cases.push(case(format!("document is {name}"), as_document, codes, names("document")));
        let as_signature = with(&quoted(document), &value);
        cases.push(case(format!("signature is {name}"), as_signature, MALFORMED, names("signature")));
        cases.push(case(format!("all is {name}"), value, MALFORMED, "body: "));
    }
    let raw = BASE64.decode(format!("{signature}==").as_bytes()).unwrap();
    for (name, bad) in [
        ("padding", format!("{signature}==")),
        ("the other alphabet", BASE64URL_NOPAD.encode(&[0xff; 64])),
        ("a space in front", format!(" {signature}")),
        ("a line break behind", format!("{signature}\\n")),
        ("63 bytes", BASE64.encode(&raw[..63])),
        ("65 bytes", BASE64.encode(&[&raw[..], &[0]].concat()).replace('=', "")),
        ("bits behind the last byte", format!("{}B", &signature[..85])),
        ("hexadecimal", data_encoding::HEXLOWER.encode(&raw)),
        ("no text of ASCII", "ä".repeat(43)),
    ] {
        cases.push(case(
            format!("signature with {name}"),
            with(&quoted(document), &quoted(&bad)),
            MALFORMED,
            "signature",
        ));
    }
    for (name, bad) in [
        ("padding", format!("{document}===")),
        ("a space in front", format!(" {document}")),
        ("one character less", document[1..].to_owned()),
        ("another alphabet", format!("{}-_", &document[2..])),
        ("five characters", "AAAAA".to_owned()),
    ] {
        cases.push(case(
            format!("document with {name}"),
            with(&quoted(&bad), &quoted(signature)),
            DOCUMENT,
            "document",
        ));
    }
    let zeroes = "A".repeat(86);
    let not_theirs: &[&str] = &["signature_bad"];
    cases.push(case(
        "a signature of zeroes",
        with(&quoted(document), &quoted(&zeroes)),
        not_theirs,
        "signature",
    ));
    let too_long: &[&str] = &["document_too_long"];
    for n in [5463, 5464, 5465, 7000] {
        let long = with(&quoted(&"A".repeat(n)), &quoted(signature));
        cases.push(case(format!("a document of {n} characters"), long, too_long, "document: longer than"));
    }
    let body_too_long: &[&str] = &["body_too_long"];
    for n in [MAX_BODY + 1, MAX_BODY + 2, 2 * MAX_BODY, 60_000] {
        cases.push(case(format!("a right body in {n} bytes"), format!("{whole:n$}"), body_too_long, "8192"));
        cases.push(case(format!("{n} bytes of nothing"), vec![0; n], body_too_long, "8192"));
    }
    for n in [MAX_BODY - 1, MAX_BODY] {
        cases.push(case(format!("{n} bytes of nothing"), vec![0; n], MALFORMED, "body: "));
        cases.push(case(format!("{n} brackets"), "[".repeat(n), MALFORMED, "an object"));
        let nested = "{\"document\":".repeat(n / 12);
        cases.push(case(format!("{n} bytes of objects in objects"), nested, MALFORMED, "document"));
    }
    let (document, signature) = (quoted(document), quoted(signature));
    for (name, text, names) in [
        ("an array", format!("[{document},{signature}]"), "an object"),
        ("an array in an array", format!("[{whole}]"), "an object"),
        ("the document twice", whole.replacen('{', &format!("{{\"document\":{document},"), 1), "document"),
        (
            "the signature twice",
            whole.replacen('{', &format!("{{\"signature\":{signature},"), 1),
            "signature",
        ),
        ("no document", format!("{{\"signature\":{signature}}}"), "document"),
        ("no signature", format!("{{\"document\":{document}}}"), "signature"),
        ("keys in capitals", whole.replace("document", "Document"), "document"),
        ("two bodies", format!("{whole}{whole}"), "trailing"),
        ("a comma too many", whole.replace('}', ",}"), "trailing"),
        ("a comment", format!("/* */{whole}"), "body: "),
        ("a byte order mark", format!("\u{feff}{whole}"), "body: "),
        ("quotes of the other kind", whole.replace('"', "'"), "body: "),
        ("a text in a text", serde_json::to_string(&whole).unwrap(), "an object"),
        ("form data", "document=x&signature=y".into(), "body: "),
        ("XML", "<document/>".into(), "body: "),
        ("a line break in a text", whole.replacen("ey", "e\ny", 1), "document"),
        ("an escape that is none", whole.replacen("ey", "e\\x", 1), "document"),
    ] {
        cases.push(case(name, text, MALFORMED, names));
    }
    for at in [0, 1, 5, 20, whole.len() - 40, whole.len() - 1] {
        for bad in [&b"\xff"[..], b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\0"] {
            let bytes = [&whole.as_bytes()[..at], bad, &whole.as_bytes()[at..]].concat();
            cases.push(case(format!("{bad:?} at {at}"), bytes, MALFORMED, "body: "));
        }
    }
    cases
}

/// Documents that are broken in any place, under a signature that is good.
fn documents(good: &[u8]) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: String, bytes: &[u8], names: &str| {
        cases.push(case(name, json(&sign_bytes(bytes, 1)), DOCUMENT, names));
    };
    for n in 0..good.len() {
        add(format!("the first {n} bytes of the document"), &good[..n], "document: ");
        let mut bytes = good.to_vec();
        bytes[n] = 0xff;
        add(format!("byte {n} of the document is no UTF-8"), &bytes, "document: ");
    }
    add("a document twice".into(), &good.repeat(2), "trailing");
    add("a document in an array".into(), &[b"[", good, b"]"].concat(), "an object");
    add("brackets".into(), &b"[".repeat(MAX_DOCUMENT_LEN), "an object");
    add("zeroes".into(), &[0; MAX_DOCUMENT_LEN], "document: ");
    // And signatures of something else.
    let codes: &[&str] = &["signature_bad", "document_malformed", "version_unknown"];
    let signature = sign_bytes(good, 1).signature;
    for n in 0..good.len() {
        let mut bytes = good.to_vec();
        bytes[n] ^= 1;
        let changed = SignedDocument { signature, ..sign_bytes(&bytes, 1) };
        cases.push(case(format!("byte {n} of the document is another one"), json(&changed), codes, ""));
    }
    let withdrawal = key(1).sign(&[b"exit bridge withdrawal, version 1\n", good].concat()).to_bytes();
    let as_withdrawal = SignedDocument { signature: withdrawal, ..sign_bytes(good, 1) };
    cases.push(case("signed for another purpose", json(&as_withdrawal), &codes[..1], "signature"));
    let too_long: &[&str] = &["document_too_long"];
    let long = format!("{:1$}", String::from_utf8_lossy(good), MAX_DOCUMENT_LEN + 1);
    cases.push(case(
        "a document over the bound",
        json(&sign_bytes(long.as_bytes(), 1)),
        too_long,
        "document: longer",
    ));
    cases
}

/// Fields of a document that are missing, there twice, or have any value that is wrong.
fn fields(good: &[u8]) -> Vec<Case> {
    let fields: Map<String, Value> = serde_json::from_slice(good).unwrap();
    let mut cases = Vec::new();
    // The parts of the document, one of them replaced.
    let with = |name: &str, value: Option<&str>| {
        let parts = fields.iter().filter(|(n, _)| *n != name || value.is_some());
        let parts = parts.map(|(n, v)| match value {
            Some(value) if n == name => format!("\"{n}\":{value}"),
            _ => format!("\"{n}\":{v}"),
        });
        format!("{{{}}}", parts.collect::<Vec<_>>().join(","))
    };
    let any: &[&str] = &["document_malformed", "version_unknown", "document_too_long"];
    let mut add = |name: String, text: String, codes, names: &str| {
        cases.push(case(name, json(&sign_bytes(text.as_bytes(), 1)), codes, names));
    };
    for (field, value) in &fields {
        if field != "country" {
            add(format!("no {field}"), with(field, None), DOCUMENT, field);
        }
        let twice = with(field, Some(&format!("{value},\"{field}\":{value}")));
        add(format!("{field} twice"), twice, DOCUMENT, field);
        for (name, value) in wrong_values() {
            if field == "country" && value == "null" {
                continue;
            }
            let names = if breaks_json(&value) { "document: " } else { field };
            add(format!("{field} is {name}"), with(field, Some(&value)), any, names);
        }
    }
    for (field, values) in [
        ("version", vec![json!(0), json!(2), json!(u32::MAX)]),
        ("capacity", vec![json!(0), json!("256")]),
        ("software", vec![json!("x".repeat(65)), json!("ä"), json!("a\tb"), json!("a\u{7f}")]),
        ("country", vec![json!("D"), json!("DEU"), json!("D1"), json!("ÄÖ")]),
        (
            "identity",
            vec![json!("A".repeat(42)), json!("A".repeat(44)), json!("B".repeat(43)), json!("=".repeat(43))],
        ),
    ] {
        for value in values {
            add(format!("{field} is {value}"), with(field, Some(&value.to_string())), any, field);
        }
    }
    for field in ["published", "expires"] {
        for time in [
            "2026-12-01",
            "12:00:00",
            "2026-12-01T12:00:00",
            "2026-12-01T12:00:00+01:00",
            "2026-13-01T12:00:00Z",
            "2026-02-30T12:00:00Z",
            "2026-12-01T25:00:00Z",
            "2026-12-01t12:00:00z",
            "99999-12-01T12:00:00Z",
            "1969-12-31T23:59:59Z",
            "-001-01-01T00:00:00Z",
            "2026-12-01T12:00:00,5Z",
            "1796126400",
            "now",
        ] {
            add(format!("{field} is {time}"), with(field, Some(&format!("\"{time}\""))), DOCUMENT, field);
        }
    }
    let times: &[&str] = &["document_stale", "document_from_future", "validity_too_long"];
    for time in [
        "1970-01-01T00:00:00Z",
        "9999-12-31T23:59:59Z",
        "9999-12-31T23:59:59.999999999Z",
        "2000-02-29T00:00:00Z",
    ] {
        for (field, names) in [("published", ""), ("expires", "expires")] {
            add(format!("{field} is {time}"), with(field, Some(&format!("\"{time}\""))), times, names);
        }
    }
    let weak: &[&str] = &["signature_bad"];
    for (name, identity) in
        [("zeroes", [0; 32]), ("no point of the curve", [0xff; 32]), ("somebody else's", common::identity(2))]
    {
        let identity = format!("\"{}\"", data_encoding::BASE64_NOPAD.encode(&identity));
        add(format!("identity is {name}"), with("identity", Some(&identity)), weak, "signature");
    }
    cases
}

/// Bridge lines with a word that is missing, there twice, or wrong.
fn bridge_lines(good: &[u8]) -> Vec<Case> {
    let fields: Value = serde_json::from_slice(good).unwrap();
    let onion = fields["bridge_line"].as_str().unwrap();
    let base64 = fields["identity"].as_str().unwrap();
    let circuit = format!(
        "eebt1 circuit address=198.51.100.7:44321 ed25519={base64} rsa={} ntor={base64} ports=80,443",
        "02".repeat(20)
    );
    let mut cases = Vec::new();
    let mut add = |name: String, line: &str, names: &str| {
        let mut fields = fields.clone();
        fields["bridge_line"] = line.into();
        let document = json(&sign_bytes(fields.to_string().as_bytes(), 1));
        cases.push(case(name, document, DOCUMENT, "bridge_line"));
        cases.last_mut().unwrap().names = names.to_owned();
    };
    let onion = onion.split(" check=").next().unwrap();
    for line in [onion, &circuit] {
        let words: Vec<&str> = line.split(' ').collect();
        for (n, word) in words.iter().enumerate() {
            let key = word.split('=').next().unwrap();
            let replaced = |new: &str| {
                let mut words = words.clone();
                words[n] = new;
                words.join(" ")
            };
            let value_less = format!("{key}=");
            let junk = format!("{key}=junk");
            let twice = format!("{word} {word}");
            let whole = words[..n].join(" ");
            if !["ports", "expires"].contains(&key) {
                let missing = words.iter().filter(|w| *w != word).copied().collect::<Vec<_>>().join(" ");
                add(format!("no {key} in a line"), &missing, "bridge_line: ");
                add(format!("a line that ends before {key}"), &whole, "bridge_line: ");
            }
            add(format!("{key} without a value"), &replaced(&value_less), "bridge_line: ");
            add(format!("{key} is junk"), &replaced(&junk), "bridge_line: ");
            add(format!("{key} twice"), &replaced(&twice), "bridge_line: ");
        }
        add("a checksum that does not fit".into(), &format!("{line} check=00000000"), "check");
        add("a word behind the checksum".into(), &format!("{line} check=00000000 x=y"), "check");
        add("a word that is no pair".into(), &format!("{line} junk"), "bridge_line: ");
        add("two lines".into(), &format!("{line}\n{line}"), "bridge_line: ");
        add("a long line".into(), &format!("{line} {}=1", "x".repeat(2048)), "longer than");
    }
    cases
}

/// What chance makes: any bytes, any JSON, and the right body with some of it changed.
fn by_chance(good: &SignedDocument) -> Vec<Case> {
    let mut runner = TestRunner::deterministic();
    let mut cases = Vec::new();
    let whole = body(good);
    let any_bytes = prop::collection::vec(any::<u8>(), 0..3000);
    let any_json = any_json();
    let changes = prop::collection::vec((0..whole.len(), 1u8..), 1..4);
    let codes: &[&str] =
        &["body_malformed", "document_malformed", "document_too_long", "signature_bad", "version_unknown"];
    for n in 0..300 {
        let bytes = any_bytes.new_tree(&mut runner).unwrap().current();
        cases.push(case(format!("bytes by chance, {n}"), bytes, MALFORMED, "body: "));
        let json = any_json.new_tree(&mut runner).unwrap().current();
        cases.push(case(format!("JSON by chance, {json}"), json.to_string(), MALFORMED, "body: "));
        let inner = self::json(&sign_bytes(json.to_string().as_bytes(), 1));
        cases.push(case(format!("a document by chance, {json}"), inner, codes, "document: "));
        let mut changed = whole.clone();
        changes.new_tree(&mut runner).unwrap().current().into_iter().for_each(|(at, by)| changed[at] ^= by);
        if changed != whole {
            cases.push(case(format!("changes by chance, {n}"), changed, codes, ""));
        }
    }
    cases
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,40}".prop_map(Value::from),
        "[A-Za-z0-9+/]{86}".prop_map(Value::from),
    ];
    let name = prop_oneof![Just("document".to_owned()), Just("signature".to_owned()), "[a-z]{1,8}"];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(name.clone(), inner, 0..6).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

fn post(headers: &str, body: &str) -> Vec<u8> {
    format!("POST {DESCRIPTORS} HTTP/1.1\r\nHost: x\r\n{headers}\r\n{body}").into_bytes()
}

/// Requests that say something else of their body's length than is true.
fn lies() -> Vec<Case> {
    let whole = json(&signed(&descriptor(1, SystemTime::now()), 1));
    let length = whole.len();
    let incomplete: &[&str] = &["body_incomplete"];
    let too_long: &[&str] = &["body_too_long"];
    let mut cases = vec![case("no length", post("", &whole), MALFORMED, "")];
    for (lie, codes) in [
        (0, MALFORMED),
        (1, MALFORMED),
        (length - 1, MALFORMED),
        (length + 1, incomplete),
        (length + 1000, incomplete),
        (MAX_BODY + 1, incomplete),
        (1 << 40, incomplete),
    ] {
        cases.push(case(
            format!("length {lie}"),
            post(&format!("Content-Length: {lie}\r\n"), &whole),
            codes,
            "",
        ));
    }
    cases.push(case("no body", post(&format!("Content-Length: {length}\r\n"), ""), incomplete, ""));
    for (name, body, codes) in [
        ("no chunk", String::new(), incomplete),
        ("a chunk that is too short", format!("{length:x}\r\n{}", &whole[1..]), incomplete),
        ("a chunk that is too long", format!("{:x}\r\n{whole}\r\n0\r\n\r\n", length - 1), incomplete),
        ("no last chunk", format!("{length:x}\r\n{whole}\r\n"), incomplete),
        ("a size that is no number", format!("ZZ\r\n{whole}\r\n0\r\n\r\n"), incomplete),
        ("a size below zero", format!("-1\r\n{whole}\r\n0\r\n\r\n"), incomplete),
        ("a huge size", format!("FFFFFFFFFFFFFFFF\r\n{whole}\r\n0\r\n\r\n"), incomplete),
        ("a size that overflows", format!("1{}\r\n{whole}\r\n0\r\n\r\n", "0".repeat(40)), incomplete),
        ("an endless extension", format!("1;{}\r\nx\r\n0\r\n\r\n", "x".repeat(60_000)), incomplete),
        ("endless trailers", format!("1\r\nx\r\n0\r\n{}\r\n", "X: y\r\n".repeat(10_000)), incomplete),
        ("more than the bound", format!("2001\r\n{}\r\n0\r\n\r\n", " ".repeat(MAX_BODY + 1)), too_long),
        (
            "more than the bound, bit by bit",
            format!("{}0\r\n\r\n", "1\r\n \r\n".repeat(MAX_BODY + 1)),
            too_long,
        ),
        ("half a body", format!("{:x}\r\n{}\r\n0\r\n\r\n", length / 2, &whole[..length / 2]), MALFORMED),
    ] {
        cases.push(case(format!("chunks: {name}"), post("Transfer-Encoding: chunked\r\n", &body), codes, ""));
    }
    cases
}

/// What is no HTTP, or not enough of it.
fn no_http() -> Vec<(&'static str, Vec<u8>)> {
    let length = |lie: &str| post(&format!("Content-Length: {lie}\r\n"), "12345");
    vec![
        ("nothing", Vec::new()),
        ("a line break", b"\r\n".to_vec()),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("zeroes", vec![0; 100_000]),
        ("a line without an end", vec![b'A'; 100_000]),
        ("HTTP/0.9", format!("POST {DESCRIPTORS}\r\n\r\n").into_bytes()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        (
            "a head that breaks off",
            format!("POST {DESCRIPTORS} HTTP/1.1\r\nHost: x\r\nContent-Le").into_bytes(),
        ),
        ("a long header", post(&format!("X: {}\r\n", "x".repeat(100_000)), "")),
        ("many headers", post(&"X: y\r\n".repeat(5000), "")),
        ("a length below zero", length("-5")),
        ("a length that is a word", length("five")),
        ("a length that is nothing", length("")),
        ("a length with an exponent", length("5e0")),
        ("a hexadecimal length", length("0x5")),
        ("a length of 64 bits", length("18446744073709551615")),
        ("a length of more bits", length("99999999999999999999999")),
        ("two lengths", length("5, 6")),
        ("two lengths in two headers", length("5\r\nContent-Length: 6")),
    ]
}

/// Memory of this process.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
