//! `docs/exit-bridge-directory.openapi.json` is held against the router: what the file says is answered,
//! and what is answered is in the file.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::broken::Broken;
use common::{
    Answer, Client, Running, body, cheap_terms, descriptor, identity, request, schema, signed, withdrawal,
};
use data_encoding::BASE64_NOPAD;
use ed25519_dalek::Signer as _;
use eebt_proto::descriptor::to_millis;
use eebt_proto::directory::{
    self as paths, Ask, ErrorBody, HandOut, ReachName, Registered, Report, Speed, Standing, Wishes,
};
use eebt_proto::{
    Attestation, AttestationRequest, BridgeDescriptor, CircuitReach, OnionReach, Reach, SignedDocument,
    Ticket, TicketTerms, UnverifiedDescriptor, Withdrawal,
};
use hebtor_directory::store::sqlite::Sqlite;
use hebtor_directory::store::{Cursor, Partition, Store, Test};
use regex_lite::Regex;
use serde_json::{Value, json};
use tempfile::TempDir;

const FILE: &str = include_str!("../../docs/exit-bridge-directory.openapi.json");

const MINUTE: Duration = Duration::from_secs(60);

/// One kind of answer: path, method, status, and the code of an error.
type Kind = (String, String, u16, Option<String>);

/// The file, and which of the answers in it were seen.
struct Spec {
    file: Value,
    seen: BTreeSet<Kind>,
}

impl Spec {
    fn new() -> Self {
        Self { file: serde_json::from_str(FILE).unwrap(), seen: BTreeSet::new() }
    }

    /// Every path with its methods.
    fn operations(&self) -> BTreeMap<(String, String), Value> {
        let paths = self.file["paths"].as_object().unwrap();
        let of_path = |(path, item): (&String, &Value)| {
            let path = path.clone();
            let methods = item.as_object().unwrap().clone().into_iter();
            methods.map(move |(method, operation)| ((path.clone(), method), operation)).collect::<Vec<_>>()
        };
        paths.iter().flat_map(of_path).collect()
    }

    /// Every kind of answer that the file foresees.
    fn kinds(&self) -> BTreeSet<Kind> {
        let mut kinds = BTreeSet::new();
        for ((path, method), operation) in self.operations() {
            for (status, response) in operation["responses"].as_object().unwrap() {
                let status = status.parse().unwrap();
                let kind = |code| (path.clone(), method.clone(), status, code);
                match codes(response) {
                    Some(codes) => kinds.extend(codes.into_iter().map(|code| kind(Some(code)))),
                    None => drop(kinds.insert(kind(None))),
                }
            }
        }
        kinds
    }

    fn check(&self, schema: &Value, value: &Value) {
        schema::check(&self.file, schema, value).unwrap_or_else(|e| panic!("{e}: in {value}"));
    }

    fn component(&self, name: &str) -> Value {
        self.file["components"]["schemas"][name].clone()
    }

    /// The answer to a request has to be foreseen, in every part of it.
    fn foresees(&mut self, method: &str, path: &str, answer: &Answer) {
        let operation = &self.file["paths"][path][method];
        let response = match (&operation["responses"][answer.status.to_string()], answer.status) {
            (Value::Null, 405) => &self.file["components"]["responses"]["MethodUnknown"],
            (Value::Null, 404) => &self.file["components"]["responses"]["PathUnknown"],
            (response, _) => response,
        };
        assert!(response.is_object(), "not in the file: {method} {path}: {answer:?}");
        match response["content"].as_object() {
            Some(content) => {
                assert_eq!(answer.header("content-type"), Some("application/json"), "{answer:?}");
                self.check(&content["application/json"]["schema"], &answer.json());
            }
            None => assert!(answer.body.is_empty(), "{answer:?}"),
        }
        let retry_after = answer.header("retry-after").map(|seconds| seconds.parse::<u64>().unwrap());
        match (&response["headers"]["Retry-After"], retry_after) {
            (Value::Null, None) => {}
            (Value::Null, Some(_)) => panic!("Retry-After is not in the file: {answer:?}"),
            (header, None) => assert_eq!(header["required"], false, "{answer:?}"),
            (header, Some(seconds)) => self.check(&header["schema"], &seconds.into()),
        }
        self.seen.insert((path.to_owned(), method.to_owned(), answer.status, answer.code()));
    }

    /// Sends a request; the answer has to be foreseen, and is returned.
    async fn send(&mut self, addr: SocketAddr, method: &str, path: &str, body: &[u8]) -> Answer {
        let answer = Client::new(addr).request(&method.to_uppercase(), path, body).await;
        self.foresees(method, path, &answer);
        answer
    }

    /// Sends a request that is answered with an error.
    async fn provoke(
        &mut self,
        addr: SocketAddr,
        path: &str,
        body: &[u8],
        status: u16,
        code: &str,
    ) -> Answer {
        let answer = self.send(addr, "post", path, body).await;
        assert_eq!((answer.status, answer.code().as_deref()), (status, Some(code)), "{answer:?}");
        answer
    }
}

/// The codes of a response that is an error.
fn codes(response: &Value) -> Option<Vec<String>> {
    let schema = &response["content"]["application/json"]["schema"];
    let codes = schema.pointer("/allOf/1/properties/error/properties/code/enum")?;
    Some(serde_json::from_value(codes.clone()).unwrap())
}

/// A SQLite store, and the folder that it is in.
fn store() -> (Arc<dyn Store>, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (Arc::new(Sqlite::open(&folder.path().join("directory.db")).unwrap()), folder)
}

fn ticket(terms: &TicketTerms, n: u8) -> Ticket {
    Ticket::make(&common::today(terms), [n; 32], || true).unwrap().unwrap()
}

fn ask(ticket: &Ticket, wishes: Wishes) -> Vec<u8> {
    body(&Ask { ticket: ticket.clone(), wishes })
}

fn port(port: u16) -> Wishes {
    Wishes { port: Some(port), ..Wishes::default() }
}

#[tokio::test]
async fn the_paths_are_those_of_the_protocol() {
    let spec = Spec::new();
    let expected = [
        (paths::ATTESTATIONS, "post"),
        (paths::DESCRIPTORS, "post"),
        (paths::EXIT_BRIDGES, "post"),
        (paths::REPORTS, "post"),
        (paths::TICKET_TERMS, "get"),
        (paths::WITHDRAWALS, "post"),
    ];
    let expected: Vec<_> = expected.map(|(path, method)| (path.to_owned(), method.to_owned())).into();
    assert_eq!(spec.operations().into_keys().collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn every_answer_is_in_the_file_and_every_answer_of_the_file_is_given() {
    let mut spec = Spec::new();
    exit_bridges_register(&mut spec).await;
    descriptors_are_refused(&mut spec).await;
    withdrawals(&mut spec).await;
    attestations(&mut spec).await;
    clients_ask(&mut spec).await;
    tickets_are_refused(&mut spec).await;
    bodies_are_refused(&mut spec).await;
    too_many_come_at_once(&mut spec).await;
    the_store_is_broken(&mut spec).await;
    let foreseen = spec.kinds();
    let never_given: Vec<_> = foreseen.difference(&spec.seen).collect();
    let not_foreseen: Vec<_> = spec.seen.difference(&foreseen).collect();
    assert!(never_given.is_empty() && not_foreseen.is_empty(), "{never_given:?}\n{not_foreseen:?}");
}

async fn exit_bridges_register(spec: &mut Spec) {
    let (store, _folder) = store();
    let directory = Running::start(Arc::clone(&store), |_| {}).await;
    let (addr, now) = (directory.addr, SystemTime::now());
    let mut new = descriptor(1, now);
    let first = body(&signed(&new, 1));
    let answer = spec.send(addr, "post", paths::DESCRIPTORS, &first).await;
    let registered: Registered = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(registered.standing, Standing::Waiting);
    assert_eq!(registered.echoes, ["198.51.100.80:80".parse().unwrap()]);
    // The same again, and one that was signed before.
    spec.provoke(addr, paths::DESCRIPTORS, &first, 409, "descriptor_replayed").await;
    new.published -= MINUTE;
    spec.provoke(addr, paths::DESCRIPTORS, &body(&signed(&new, 1)), 409, "descriptor_replayed").await;
    for standing in [
        Standing::Serving,
        Standing::Unreachable,
        Standing::EgressIsTorRelay,
        Standing::EgressIsSpecial,
        Standing::EgressIsShared,
    ] {
        store.note(&identity(1), &tested(standing, now), now).await.unwrap();
        new.published = to_millis(new.published + MINUTE + Duration::from_millis(1));
        let answer = spec.send(addr, "post", paths::DESCRIPTORS, &body(&signed(&new, 1))).await;
        let registered: Registered = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(registered.standing, standing);
        new.published -= MINUTE;
    }
    let full = Running::start(store, |api| api.max_registered = 0).await;
    spec.provoke(full.addr, paths::DESCRIPTORS, &body(&signed(&descriptor(2, now), 2)), 503, "full").await;
}

fn tested(standing: Standing, now: SystemTime) -> Test {
    Test {
        standing,
        live_until: now + MINUTE * 10,
        egress: None,
        country: Some("SE".parse().unwrap()),
        latency: Some(Duration::from_millis(100)),
        speed: Speed::Fast,
        failures: 0,
        next: now + MINUTE * 10,
    }
}

async fn descriptors_are_refused(spec: &mut Spec) {
    let (store, _folder) = store();
    let directory = Running::start(Arc::clone(&store), |_| {}).await;
    let now = SystemTime::now();
    let good = descriptor(1, now);
    let text = String::from_utf8(common::document(&signed(&good, 1))).unwrap();
    let resigned = |text: &str| common::sign_bytes(text.as_bytes(), 1);
    let hour = MINUTE * 60;
    let mut ended = good.clone();
    ended.line.expires = Some(to_millis(now - MINUTE));
    let mut private = good.clone();
    private.line.reach = Reach::Circuit(CircuitReach {
        addresses: vec!["10.0.0.1:443".parse().unwrap()],
        ed25519: identity(1),
        rsa: [2; 20],
        ntor: [3; 32],
        protocols: "Relay=1-6".into(),
    });
    let others_key = BASE64_NOPAD.encode(&identity(2));
    let mut others_line = text.replace(&BASE64_NOPAD.encode(&identity(1)), &others_key);
    others_line = others_line.replacen("\"identity\"", "\"identity\" ", 1);
    let reach_not_own = {
        let signature =
            common::key(2).sign(&[b"exit bridge descriptor, version 1\n", others_line.as_bytes()].concat());
        SignedDocument { signature: signature.to_bytes(), ..resigned(&others_line) }
    };
    for (status, code, document) in [
        (400, "document_malformed", resigned(&text.replace("256", "0"))),
        (400, "version_unknown", resigned(&text.replace("\"version\":1", "\"version\":2"))),
        (403, "signature_bad", signed(&good, 2)),
        (403, "reach_not_own", reach_not_own),
        (400, "document_stale", signed(&descriptor(1, now - hour * 2), 1)),
        (400, "document_from_future", signed(&descriptor(1, now + hour), 1)),
        (
            400,
            "validity_too_long",
            signed(&BridgeDescriptor { expires: good.expires + hour * 3, ..good.clone() }, 1),
        ),
        (400, "exit_bridge_ended", signed(&ended, 1)),
        (400, "address_special", signed(&private, 1)),
        (413, "document_too_long", resigned(&format!("{text}{}", " ".repeat(4096)))),
    ] {
        spec.provoke(directory.addr, paths::DESCRIPTORS, &body(&document), status, code).await;
    }
    assert_eq!(store.counts(now).await.unwrap().registered, 0);
}

async fn withdrawals(spec: &mut Spec) {
    let (store, _folder) = store();
    let directory = Running::start(Arc::clone(&store), |_| {}).await;
    let (addr, now) = (directory.addr, SystemTime::now());
    let registered = body(&signed(&descriptor(1, now), 1));
    assert_eq!(spec.send(addr, "post", paths::DESCRIPTORS, &registered).await.status, 200);
    let long = SignedDocument { document: "A".repeat(6000), ..withdrawal(1, now) };
    let malformed = SignedDocument { document: BASE64_NOPAD.encode(b"{}"), ..withdrawal(1, now) };
    let newer = SignedDocument { document: BASE64_NOPAD.encode(br#"{"version":2}"#), ..withdrawal(1, now) };
    let others = SignedDocument { signature: withdrawal(2, now).signature, ..withdrawal(1, now) };
    for (status, code, document) in [
        (400, "document_malformed", malformed),
        (400, "version_unknown", newer),
        (400, "document_stale", withdrawal(1, now - MINUTE * 200)),
        (400, "document_from_future", withdrawal(1, now + MINUTE * 60)),
        (403, "signature_bad", others),
        (404, "exit_bridge_unknown", withdrawal(3, now)),
        (409, "descriptor_replayed", withdrawal(1, now - MINUTE)),
        (413, "document_too_long", long),
    ] {
        spec.provoke(addr, paths::WITHDRAWALS, &body(&document), status, code).await;
    }
    assert_eq!(store.counts(now).await.unwrap().registered, 1);
    let later = now + Duration::from_secs(1);
    let answer = spec.send(addr, "post", paths::WITHDRAWALS, &body(&withdrawal(1, later))).await;
    assert_eq!((answer.status, store.counts(now).await.unwrap().registered), (204, 0));
}

async fn attestations(spec: &mut Spec) {
    let (store, _folder) = store();
    let directory = Running::start(Arc::clone(&store), |_| {}).await;
    let (addr, now) = (directory.addr, SystemTime::now());
    let second = Duration::from_secs(1);
    store.put(&descriptor(1, now - MINUTE), Partition::Open, now - MINUTE).await.unwrap();
    let long = SignedDocument { document: "A".repeat(6000), ..request(1, now, None) };
    let malformed = SignedDocument { document: BASE64_NOPAD.encode(b"{}"), ..request(1, now, None) };
    let newer = SignedDocument { document: BASE64_NOPAD.encode(br#"{"version":2}"#), ..malformed.clone() };
    let others = SignedDocument { signature: request(2, now, None).signature, ..request(1, now, None) };
    let elsewhere = AttestationRequest {
        identity: identity(1),
        directory: OnionReach { service: identity(9) },
        published: to_millis(now),
        previous: None,
    };
    let elsewhere = elsewhere.sign(|bytes| common::key(1).sign(bytes).to_bytes());
    for (status, code, document) in [
        (400, "document_malformed", malformed),
        (400, "version_unknown", newer),
        (400, "document_stale", request(1, now - MINUTE * 200, None)),
        (400, "document_from_future", request(1, now + MINUTE * 60, None)),
        (403, "signature_bad", others),
        (400, "document_malformed", withdrawal(1, now)),
        (403, "directory_other", elsewhere),
        (404, "exit_bridge_unknown", request(3, now, None)),
        (409, "descriptor_replayed", request(1, now - MINUTE, None)),
        (409, "not_serving", request(1, now, None)),
        (413, "document_too_long", long),
    ] {
        spec.provoke(addr, paths::ATTESTATIONS, &body(&document), status, code).await;
    }
    let elsewhere = Running::start(Arc::clone(&store), |api| api.seal = None).await;
    let asked = body(&request(1, now, None));
    spec.provoke(elsewhere.addr, paths::ATTESTATIONS, &asked, 404, "not_offered").await;

    let egress = "203.0.113.7".parse().unwrap();
    let passed = Test { egress: Some(egress), ..tested(Standing::Serving, now) };
    let no_more = [
        Test { live_until: now - second, ..passed.clone() },
        Test { egress: None, ..passed.clone() },
        Test { standing: Standing::EgressIsShared, ..passed.clone() },
    ];
    for test in no_more {
        store.note(&identity(1), &test, now).await.unwrap();
        spec.provoke(addr, paths::ATTESTATIONS, &asked, 409, "not_serving").await;
    }
    store.note(&identity(1), &passed, now).await.unwrap();
    let mut previous = None;
    let mut from = None;
    for published in [now, now + second] {
        let asked = body(&request(1, published, previous));
        let answer = spec.send(addr, "post", paths::ATTESTATIONS, &asked).await;
        let signed: SignedDocument = serde_json::from_slice(&answer.body).unwrap();
        spec.check(&spec.component("Attestation"), &inner(&signed));
        let seen = Attestation::verify(&signed).unwrap();
        assert_eq!(
            (seen.identity, seen.egress, &seen.directory),
            (identity(1), egress, &common::onion_address())
        );
        assert!(seen.until >= to_millis(now) && seen.until <= SystemTime::now());
        assert_eq!(seen.from, *from.get_or_insert(seen.until), "the second one goes on from the first");
        tokio::time::sleep(Duration::from_millis(5)).await;
        previous = Some(signed);
    }
    // What another one signed, or what was said of another exit bridge, is no beginning.
    let long_ago = Attestation {
        identity: identity(1),
        egress,
        from: to_millis(now - MINUTE * 6000),
        until: to_millis(now - MINUTE),
        directory: common::onion_address(),
    };
    let forged = long_ago.sign(|bytes| common::key(1).sign(bytes).to_bytes());
    let answer = spec.send(addr, "post", paths::ATTESTATIONS, &body(&request(1, now, Some(forged)))).await;
    let seen = Attestation::verify(&serde_json::from_slice(&answer.body).unwrap()).unwrap();
    assert_eq!(seen.from, seen.until);
    let answer = spec.send(addr, "post", paths::WITHDRAWALS, &body(&withdrawal(1, now))).await;
    assert_eq!(answer.status, 204);
    let asked = body(&request(1, now + second, None));
    spec.provoke(addr, paths::ATTESTATIONS, &asked, 409, "not_serving").await;
}

/// What is signed, as JSON.
fn inner(signed: &SignedDocument) -> Value {
    serde_json::from_slice(&common::document(signed)).unwrap()
}

async fn clients_ask(spec: &mut Spec) {
    let (store, _folder) = store();
    let now = SystemTime::now();
    for n in 0..5 {
        let mut new = descriptor(n, now);
        if n == 4 {
            new.line.reach = Reach::Circuit(CircuitReach {
                addresses: vec!["198.51.100.7:44321".parse().unwrap()],
                ed25519: identity(n),
                rsa: [2; 20],
                ntor: [3; 32],
                protocols: "Relay=1-6".into(),
            });
        }
        store.put(&new, Partition::Open, now).await.unwrap();
        let country = (n % 2 == 0).then(|| "SE".parse().unwrap());
        let test = Test { country, ..tested(Standing::Serving, now) };
        store.note(&identity(n), &test, now).await.unwrap();
    }
    let directory = Running::start(Arc::clone(&store), |_| {}).await;
    let addr = directory.addr;
    directory.index.catch_up(store.as_ref(), Cursor::before(SystemTime::UNIX_EPOCH)).await.unwrap();

    let answer = spec.send(addr, "get", paths::TICKET_TERMS, b"").await;
    let terms: TicketTerms = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(terms, common::today(&cheap_terms()));
    let first = ticket(&terms, 1);
    let answer = spec.send(addr, "post", paths::EXIT_BRIDGES, &ask(&first, Wishes::default())).await;
    let given: HandOut = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(given.exit_bridges.len(), 3);
    let circuit = Wishes { reach: Some(ReachName::Circuit), ..Wishes::default() };
    for (n, wishes, expected) in [(1, port(80), 3), (3, port(22), 0), (3, circuit, 1)] {
        let answer = spec.send(addr, "post", paths::EXIT_BRIDGES, &ask(&ticket(&terms, n), wishes)).await;
        let given: HandOut = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(given.exit_bridges.len(), expected);
    }
    let a_third = ask(&first, port(25));
    spec.provoke(addr, paths::EXIT_BRIDGES, &a_third, 429, "too_many_wishes").await;
    let second = ticket(&terms, 2);
    for _ in 0..8 {
        let answer = spec.send(addr, "post", paths::EXIT_BRIDGES, &ask(&second, Wishes::default())).await;
        assert_eq!(answer.status, 200);
    }
    let ninth =
        spec.provoke(addr, paths::EXIT_BRIDGES, &ask(&second, Wishes::default()), 429, "too_often").await;
    assert!((55..=61).contains(&ninth.header("retry-after").unwrap().parse::<u64>().unwrap()));
    let of_its_own = *given.exit_bridges[0].bridge_line.reach.identity();
    let reports = [of_its_own, [0; 32], of_its_own, of_its_own, of_its_own, of_its_own];
    for identity in reports {
        let report = body(&Report { ticket: first.clone(), identity });
        assert_eq!(spec.send(addr, "post", paths::REPORTS, &report).await.status, 204);
    }
    let report = body(&Report { ticket: first.clone(), identity: of_its_own });
    spec.provoke(addr, paths::REPORTS, &report, 429, "too_often").await;
}

async fn tickets_are_refused(spec: &mut Spec) {
    let (store, _folder) = store();
    let terms = TicketTerms { days: 30, bits: 16, ..cheap_terms() };
    let directory = Running::start(store, |api| api.door = common::door(terms.clone())).await;
    // One of 65,536 would hold by chance; not this one.
    let mut bad = Ticket { nonce: 0, ..ticket(&TicketTerms { bits: 0, ..terms.clone() }, 1) };
    while bad.verify(&common::today(&terms)).is_ok() {
        bad.nonce += 1;
    }
    let old = Ticket { day: bad.day - 31, ..bad.clone() };
    for (code, ticket) in [("ticket_bad", bad), ("ticket_expired", old)] {
        let report = Report { ticket: ticket.clone(), identity: [0; 32] };
        spec.provoke(directory.addr, paths::EXIT_BRIDGES, &ask(&ticket, Wishes::default()), 403, code).await;
        spec.provoke(directory.addr, paths::REPORTS, &body(&report), 403, code).await;
    }
}

async fn bodies_are_refused(spec: &mut Spec) {
    let (store, _folder) = store();
    let directory = Running::start(store, |_| {}).await;
    for ((path, method), _) in spec.operations() {
        let other = if method == "get" { "POST" } else { "GET" };
        let answer = Client::new(directory.addr).request(other, &path, b"").await;
        assert_eq!((answer.status, answer.code().as_deref()), (405, Some("method_unknown")), "{path}");
        spec.check(
            &spec.file["components"]["responses"]["MethodUnknown"]["content"]["application/json"]["schema"],
            &answer.json(),
        );
        if method == "get" {
            continue;
        }
        spec.provoke(directory.addr, &path, b"{", 400, "body_malformed").await;
        spec.provoke(directory.addr, &path, &[b' '; 8193], 413, "body_too_long").await;
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n");
        let answer = common::say(directory.addr, head.as_bytes()).await.unwrap();
        assert_eq!((answer.status, answer.code().as_deref()), (400, Some("body_incomplete")));
        spec.foresees("post", &path, &answer);
    }
}

/// Proofs that take long: while two are checked and 64 wait, whoever comes is told to come again.
async fn too_many_come_at_once(spec: &mut Spec) {
    let (store, _folder) = store();
    let slow = TicketTerms { memory_kib: 16 * 1024, bits: 12, ..cheap_terms() };
    let directory = Running::start(store, |api| api.door = common::door(slow)).await;
    for path in [paths::EXIT_BRIDGES, paths::REPORTS] {
        let requests: Vec<_> = (0..100)
            .map(|n| {
                let ticket = ticket(&TicketTerms { bits: 0, ..cheap_terms() }, n);
                let body = match path {
                    paths::REPORTS => body(&Report { ticket, identity: [0; 32] }),
                    _ => ask(&ticket, Wishes::default()),
                };
                let addr = directory.addr;
                tokio::spawn(async move { Client::new(addr).post(path, &body).await })
            })
            .collect();
        let mut busy = 0;
        for request in requests {
            let answer = request.await.unwrap();
            spec.foresees("post", path, &answer);
            busy += u32::from(answer.code().as_deref() == Some("busy"));
        }
        assert!((1..=34).contains(&busy), "{busy} of 100 were sent away");
    }
}

async fn the_store_is_broken(spec: &mut Spec) {
    let (store, _folder) = store();
    let now = SystemTime::now();
    let new = descriptor(1, now);
    let line = new.line.clone();
    store.put(&new, Partition::Open, now).await.unwrap();
    store.note(&identity(1), &tested(Standing::Serving, now), now).await.unwrap();
    let directory = Running::start(Arc::new(Broken), |_| {}).await;
    let addr = directory.addr;
    directory.index.catch_up(store.as_ref(), Cursor::before(SystemTime::UNIX_EPOCH)).await.unwrap();
    let ticket = ticket(&cheap_terms(), 1);
    // What is known is handed out all the same.
    let answer = spec.send(addr, "post", paths::EXIT_BRIDGES, &ask(&ticket, Wishes::default())).await;
    let given: HandOut = serde_json::from_slice(&answer.body).unwrap();
    assert!(given.exit_bridges[0].bridge_line == line);
    let report = body(&Report { ticket, identity: identity(1) });
    for (path, body) in [
        (paths::DESCRIPTORS, body(&signed(&new, 1))),
        (paths::WITHDRAWALS, body(&withdrawal(1, now))),
        (paths::ATTESTATIONS, body(&request(1, now, None))),
        (paths::REPORTS, report),
    ] {
        let answer = spec.provoke(addr, path, &body, 503, "store_unavailable").await;
        assert!(!answer.message().contains("out of order"), "the database's own words are for the log");
    }
}

#[tokio::test]
async fn what_is_nowhere_is_answered_as_errors_are() {
    let spec = Spec::new();
    let (store, _folder) = store();
    let directory = Running::start(store, |_| {}).await;
    let unknown =
        &spec.file["components"]["responses"]["PathUnknown"]["content"]["application/json"]["schema"];
    for path in [
        "/",
        "/v1",
        "/v1/",
        "/v1/descriptors/",
        "/v2/descriptors",
        "/v1/descriptors/x",
        "//",
        "/%00",
        "/v1/Reports",
    ] {
        for method in ["GET", "POST", "PUT"] {
            let answer = Client::new(directory.addr).request(method, path, b"").await;
            assert_eq!((answer.status, answer.code().as_deref()), (404, Some("path_unknown")), "{path}");
            spec.check(unknown, &answer.json());
        }
    }
    let wrong =
        &spec.file["components"]["responses"]["MethodUnknown"]["content"]["application/json"]["schema"];
    for ((path, allowed), _) in spec.operations() {
        for method in ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"] {
            if method.to_lowercase() != allowed {
                let answer = Client::new(directory.addr).request(method, &path, b"").await;
                assert_eq!(
                    (answer.status, answer.code().as_deref()),
                    (405, Some("method_unknown")),
                    "{path}"
                );
                let allow = answer.header("allow").unwrap().to_lowercase();
                assert!(allow.split(',').any(|method| method == allowed), "{allow}");
                spec.check(wrong, &answer.json());
            }
        }
    }
}

#[test]
fn every_code_of_the_code_is_in_the_file() {
    // Up to the tests: there, codes are compared, not made.
    let code_of = |text: &'static str| text.split("#[cfg(test)]").next().unwrap();
    let api = code_of(include_str!("../src/api.rs"));
    let proto =
        [include_str!("../../eebt-proto/src/descriptor.rs"), include_str!("../../eebt-proto/src/ticket.rs")];
    let literal = Regex::new(r#"StatusCode::[A-Z_]+,\s*"([a-z_]+)""#).unwrap();
    let mut made: BTreeSet<&str> = literal.captures_iter(api).map(|c| c.get(1).unwrap().as_str()).collect();
    assert_eq!(
        api.matches("Self::new(").count() + api.matches("ApiError::new(").count(),
        literal.captures_iter(api).count() + api.matches(".code()").count(),
        "a code that is made in another way"
    );
    let arm = Regex::new(r#"=> "([a-z_]+)""#).unwrap();
    for text in proto {
        let function = code_of(text).split("pub fn code(").nth(1).unwrap().split("\n    }").next().unwrap();
        made.extend(arm.captures_iter(function).map(|c| c.get(1).unwrap().as_str()));
    }
    let spec = Spec::new();
    let listed: Vec<String> = serde_json::from_value(
        spec.component("ErrorBody")["properties"]["error"]["properties"]["code"]["enum"].clone(),
    )
    .unwrap();
    assert_eq!(listed.iter().map(String::as_str).collect::<BTreeSet<_>>(), made);
    // Each stands with the answers that have it.
    let mut used: BTreeSet<String> = spec.kinds().into_iter().filter_map(|(.., code)| code).collect();
    let everywhere = spec.file["components"]["responses"].as_object().unwrap().values();
    used.extend(everywhere.flat_map(|response| codes(response).unwrap()));
    assert_eq!(used, listed.into_iter().collect());
}

#[tokio::test]
async fn the_examples_are_real() {
    let spec = Spec::new();
    let example = |path: &str, method: &str, name: &str| {
        let content = &spec.file["paths"][path][method]["requestBody"]["content"]["application/json"];
        let example = content["examples"][name]["value"].clone();
        spec.check(&content["schema"], &example);
        example
    };
    // All of them fit their schemas.
    for ((path, method), operation) in spec.operations() {
        let request = operation["requestBody"]["content"]["application/json"]["examples"].as_object();
        request
            .into_iter()
            .flat_map(|examples| examples.keys())
            .for_each(|name| drop(example(&path, &method, name)));
        let responses = operation["responses"].as_object().unwrap();
        let all =
            responses.values().chain(spec.file["components"]["responses"].as_object().unwrap().values());
        for content in all.map(|response| &response["content"]["application/json"]) {
            for example in content["examples"].as_object().into_iter().flat_map(|examples| examples.values())
            {
                spec.check(&content["schema"], &example["value"]);
            }
        }
    }

    // Documents: good at the time that they name. Their bytes fit the schemas of what is in them.
    let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(1_796_126_400); // 2026-12-01T12:00:00Z
    let registration: SignedDocument =
        serde_json::from_value(example(paths::DESCRIPTORS, "post", "golden")).unwrap();
    spec.check(&spec.component("Descriptor"), &inner(&registration));
    let said = UnverifiedDescriptor::parse(&registration).unwrap().verify(noon).unwrap();
    assert_eq!(*said.identity(), ed25519_dalek::SigningKey::from_bytes(&[1; 32]).verifying_key().to_bytes());
    let withdrawn: SignedDocument =
        serde_json::from_value(example(paths::WITHDRAWALS, "post", "golden")).unwrap();
    spec.check(&spec.component("Withdrawal"), &inner(&withdrawn));
    assert_eq!(Withdrawal::verify(&withdrawn, noon + MINUTE * 30).unwrap().identity, *said.identity());

    let asked: SignedDocument =
        serde_json::from_value(example(paths::ATTESTATIONS, "post", "golden")).unwrap();
    spec.check(&spec.component("AttestationRequest"), &inner(&asked));
    let two_hours_later = noon + MINUTE * 120;
    let request = AttestationRequest::verify(&asked, two_hours_later).unwrap();
    assert_eq!((request.identity, request.directory), (*said.identity(), common::onion_address()));
    let answers = &spec.file["paths"][paths::ATTESTATIONS]["post"]["responses"]["200"]["content"];
    let answer = answers["application/json"]["examples"]["golden"]["value"].clone();
    let answer: SignedDocument = serde_json::from_value(answer).unwrap();
    spec.check(&spec.component("Attestation"), &inner(&answer));
    let seen = Attestation::verify(&answer).unwrap();
    assert_eq!((seen.identity, seen.until), (*said.identity(), two_hours_later));
    let alone = Attestation { from: seen.until, ..seen.clone() };
    assert_eq!(alone.extending(&request.previous.unwrap()), seen);

    // Tickets: accepted by a directory with the terms of the example.
    let terms = &spec.file["paths"][paths::TICKET_TERMS]["get"]["responses"]["200"]["content"];
    let terms = terms["application/json"]["examples"]["cheap"]["value"].clone();
    let terms: TicketTerms = serde_json::from_value(terms).unwrap();
    assert!(terms.check().is_ok());
    let (store, _folder) = store();
    let directory = Running::start(store, |api| {
        // Its days are over; the proof is not.
        api.door = common::door(TicketTerms { days: u32::MAX, ..terms.clone() });
    })
    .await;
    let mut client = Client::new(directory.addr);
    for name in ["plain", "wishes"] {
        let ask = example(paths::EXIT_BRIDGES, "post", name);
        assert_eq!(client.post(paths::EXIT_BRIDGES, &body(&ask)).await.status, 200, "{name}");
        let ask: Ask = serde_json::from_value(ask).unwrap();
        assert!(ask.ticket.verify(&terms).is_ok());
    }
    let report = example(paths::REPORTS, "post", "golden");
    assert_eq!(client.post(paths::REPORTS, &body(&report)).await.status, 204);
    // The clock says something else than the documents, and nothing else is wrong with them.
    for (path, document) in
        [(paths::DESCRIPTORS, registration), (paths::WITHDRAWALS, withdrawn), (paths::ATTESTATIONS, asked)]
    {
        let code = client.post(path, &body(&document)).await.code().unwrap_or_default();
        assert!(
            ["document_stale", "document_from_future", "exit_bridge_unknown", "not_serving", ""]
                .contains(&code.as_str()),
            "{code}"
        );
    }
    // The bridge line and the error in the answers are real as well.
    let responses = &spec.file["paths"][paths::EXIT_BRIDGES]["post"]["responses"];
    let given = &responses["200"]["content"]["application/json"]["examples"]["one"]["value"];
    let given: HandOut = serde_json::from_value(given.clone()).unwrap();
    assert!(given.exit_bridges[0].bridge_line == said.line);
    let slip = &responses["400"]["content"]["application/json"]["examples"]["slip"]["value"];
    let mut ask = example(paths::EXIT_BRIDGES, "post", "plain");
    ask["wishes"] = json!({ "contry": "SE" });
    let answer = client.post(paths::EXIT_BRIDGES, &body(&ask)).await;
    assert_eq!(
        serde_json::from_value::<ErrorBody>(slip.clone()).unwrap(),
        serde_json::from_slice(&answer.body).unwrap()
    );
}

/// What the schemas of requests refuse is refused, and what is at their edges is not.
#[tokio::test]
async fn schemas_of_requests_are_as_strict_as_the_directory() {
    let spec = Spec::new();
    let (store, _folder) = store();
    let directory = Running::start(store, |api| {
        api.door = common::door(TicketTerms { bits: 0, ..cheap_terms() });
    })
    .await;
    let mut client = Client::new(directory.addr);
    let base = json!({ "ticket": ticket(&cheap_terms(), 1), "wishes": {} });
    let long = "A".repeat(43);
    let mut cases = 0;
    for (pointer, values) in [
        ("", vec![json!({}), json!([]), json!(null), json!("x")]),
        ("/ticket", vec![json!(null), json!([]), json!("x"), json!({})]),
        ("/ticket/kind", vec![json!("argon2id"), json!("Argon2id"), json!("x"), json!(null)]),
        (
            "/ticket/key",
            vec![
                json!(long),
                json!(long.replace('A', "+")),
                json!("A".repeat(42)),
                json!("A".repeat(44)),
                json!("B".repeat(43)),
                json!("A".repeat(42) + "="),
                json!(1),
            ],
        ),
        ("/ticket/day", vec![json!(0), json!(-1), json!("1"), json!(1.5), json!(4_294_967_296_u64)]),
        ("/ticket/nonce", vec![json!(0), json!(u64::MAX), json!(-1), json!("0"), json!(null)]),
        ("/ticket/other", vec![json!(1)]),
        ("/other", vec![json!(1)]),
        ("/wishes", vec![json!({}), json!(null), json!([]), json!({ "other": 1 })]),
        ("/wishes/port", vec![json!(null), json!(0), json!(65535), json!(65536), json!(-1), json!("80")]),
        (
            "/wishes/country",
            vec![json!(null), json!("de"), json!("DE"), json!("D"), json!("DEU"), json!("D1"), json!(1)],
        ),
        (
            "/wishes/reach",
            vec![json!(null), json!("onion"), json!("circuit"), json!("Onion"), json!("both"), json!(1)],
        ),
    ] {
        for value in values {
            let mut ask = base.clone();
            match (pointer.rsplit_once('/'), value) {
                (None, value) => ask = value,
                (Some((parent, name)), value) => ask.pointer_mut(parent).unwrap()[name] = value,
            }
            let schema = schema::check(&spec.file, &spec.component("Ask"), &ask);
            let answer = client.post(paths::EXIT_BRIDGES, &body(&ask)).await;
            let read = answer.code().as_deref() != Some("body_malformed");
            assert_eq!(schema.is_ok(), read, "{pointer}: {schema:?}: {answer:?}");
            cases += 1;
        }
    }
    assert!(cases > 50);
}
