//! An exit-bridge directory that listens on loopback, a client that says exactly what it is told to, and
//! exit bridges with keys that everybody knows.

#![allow(dead_code)] // each test uses a part of it

pub mod broken;
pub mod schema;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use data_encoding::BASE64_NOPAD;
use ed25519_dalek::{Signer as _, SigningKey};
use eebt_proto::descriptor::to_millis;
use eebt_proto::{
    AttestationRequest, BridgeDescriptor, BridgeLine, OnionReach, PortSet, Reach, SignedDocument,
    TicketTerms, Withdrawal,
};
use hebtor_directory::api::{self, Api, Seal};
use hebtor_directory::config::HandOutConfig;
use hebtor_directory::door::Door;
use hebtor_directory::index::Index;
use hebtor_directory::metrics::Metrics;
use hebtor_directory::serve;
use hebtor_directory::store::Store;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The secret of the directories here.
const SECRET: [u8; 32] = [7; 32];

/// Terms that cost next to nothing, and accept tickets of every day up to now.
pub fn cheap_terms() -> TicketTerms {
    TicketTerms {
        audience: [9; 32],
        day: 0,
        seed: [0; 16],
        memory_kib: 64,
        passes: 1,
        bits: 4,
        days: u32::MAX,
    }
}

/// The key of the directories here.
pub fn directory_key() -> SigningKey {
    SigningKey::from_bytes(&[2; 32])
}

/// Their onion address.
pub fn onion_address() -> OnionReach {
    OnionReach { service: directory_key().verifying_key().to_bytes() }
}

/// Who lets tickets in by these terms.
pub fn door(terms: TicketTerms) -> Door {
    Door::new(terms, SECRET)
}

/// What these terms are today.
pub fn today(terms: &TicketTerms) -> TicketTerms {
    door(terms.clone()).terms(SystemTime::now())
}

/// A directory that listens on loopback. It ends when this is dropped.
pub struct Running {
    pub addr: SocketAddr,
    pub index: Arc<Index>,
    task: JoinHandle<()>,
}

impl Running {
    /// Starts one; `change` may alter what it works with.
    pub async fn start(store: Arc<dyn Store>, change: impl FnOnce(&mut Api)) -> Self {
        let index = Arc::new(Index::new(SECRET));
        let mut api = Api {
            store,
            index: Arc::clone(&index),
            door: door(cheap_terms()),
            secret: SECRET,
            hand_out: HandOutConfig::default(),
            max_registered: 1000,
            max_untested: 1000,
            allow: Vec::new(),
            echoes: vec!["198.51.100.80:80".parse().unwrap()],
            metrics: Arc::new(Metrics::default()),
            seal: Some(Seal {
                directory: onion_address(),
                sign: Box::new(|bytes| directory_key().sign(bytes).to_bytes()),
            }),
        };
        change(&mut api);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let task = tokio::spawn(serve::tcp(listener, api::router(Arc::new(api)), serve::CLIENTS));
        Self { addr, index, task }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a directory answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header; `name` in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The code of an error; nothing where it is none of ours. Whatever has a code says what to try.
    pub fn code(&self) -> Option<String> {
        let body: Value = serde_json::from_slice(&self.body).ok()?;
        let code = body["error"]["code"].as_str().map(str::to_owned)?;
        assert!(body["error"]["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "no hint: {self:?}");
        Some(code)
    }

    pub fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap().to_owned()
    }
}

/// A connection that is kept while the directory keeps it.
pub struct Client {
    addr: SocketAddr,
    stream: Option<TcpStream>,
}

impl Client {
    pub fn new(addr: SocketAddr) -> Self {
        Self { addr, stream: None }
    }

    pub async fn post(&mut self, path: &str, body: &[u8]) -> Answer {
        self.request("POST", path, body).await
    }

    /// Sends a request that is right as far as HTTP goes.
    pub async fn request(&mut self, method: &str, path: &str, body: &[u8]) -> Answer {
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: directory\r\nContent-Length: {}\r\n\r\n", body.len());
        let bytes = [head.as_bytes(), body].concat();
        // One that was kept may have been closed meanwhile; a new one may not.
        if let Some(stream) = self.stream.take()
            && let Some(answer) = self.exchange(stream, &bytes).await
        {
            return answer;
        }
        let stream = TcpStream::connect(self.addr).await.unwrap();
        self.exchange(stream, &bytes).await.unwrap_or_else(|| panic!("no answer to {method} {path}"))
    }

    async fn exchange(&mut self, mut stream: TcpStream, bytes: &[u8]) -> Option<Answer> {
        // An answer may come before all was sent: what can't be written is not wanted any more.
        let _ = stream.write_all(bytes).await;
        let answer = read_answer(&mut stream).await?;
        if answer.header("connection") != Some("close") {
            self.stream = Some(stream);
        }
        Some(answer)
    }
}

/// Sends bytes as they are on a connection of their own, then says that there are no more. `None`: the
/// connection was closed without an answer.
pub async fn say(addr: SocketAddr, bytes: &[u8]) -> Option<Answer> {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    read_answer(&mut stream).await
}

/// Reads one answer.
pub async fn read_answer(stream: &mut TcpStream) -> Option<Answer> {
    timeout(PATIENCE, async {
        let mut bytes = Vec::new();
        let mut piece = [0; 4096];
        loop {
            if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = std::str::from_utf8(&bytes[..end]).unwrap();
                let mut lines = head.split("\r\n");
                let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
                let headers: Vec<(String, String)> = lines
                    .map(|line| line.split_once(':').unwrap())
                    .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                    .collect();
                let mut answer = Answer { status, headers, body: bytes.split_off(end + 4) };
                let length = answer.header("content-length").map_or(0, |n| n.parse().unwrap());
                while answer.body.len() < length {
                    let n = stream.read(&mut piece).await.ok().filter(|n| *n > 0)?;
                    answer.body.extend_from_slice(&piece[..n]);
                }
                answer.body.truncate(length); // behind it is the answer to something else
                return Some(answer);
            }
            let n = stream.read(&mut piece).await.ok().filter(|n| *n > 0)?;
            bytes.extend_from_slice(&piece[..n]);
        }
    })
    .await
    .expect("an answer in time")
}

/// The key of exit bridge `n`.
pub fn key(n: u32) -> SigningKey {
    let mut seed = [1; 32];
    seed[..4].copy_from_slice(&n.to_be_bytes());
    SigningKey::from_bytes(&seed)
}

/// Identity of exit bridge `n`.
pub fn identity(n: u32) -> [u8; 32] {
    key(n).verifying_key().to_bytes()
}

/// What exit bridge `n` says of itself: good for an hour.
pub fn descriptor(n: u32, now: SystemTime) -> BridgeDescriptor {
    let hours = |n: u64| Duration::from_secs(n * 3600);
    let ends = now.duration_since(SystemTime::UNIX_EPOCH).unwrap() + hours(24);
    BridgeDescriptor {
        line: BridgeLine {
            reach: Reach::Onion(OnionReach { service: identity(n) }),
            ports: PortSet::web(),
            expires: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(ends.as_secs())),
        },
        published: to_millis(now),
        expires: to_millis(now + hours(1)),
        country: Some("DE".parse().unwrap()),
        capacity: 256,
        software: "eebt-bridge 0.1.0".into(),
    }
}

/// The document of a descriptor, signed by exit bridge `n`.
pub fn signed(descriptor: &BridgeDescriptor, n: u32) -> SignedDocument {
    descriptor.sign(|bytes| key(n).sign(bytes).to_bytes())
}

/// A withdrawal, signed by exit bridge `n`.
pub fn withdrawal(n: u32, published: SystemTime) -> SignedDocument {
    let withdrawal = Withdrawal { identity: identity(n), published: to_millis(published) };
    withdrawal.sign(|bytes| key(n).sign(bytes).to_bytes())
}

/// A request for an attestation of the directories here, signed by exit bridge `n`.
pub fn request(n: u32, published: SystemTime, previous: Option<SignedDocument>) -> SignedDocument {
    let published = to_millis(published);
    let request =
        AttestationRequest { identity: identity(n), directory: onion_address(), published, previous };
    request.sign(|bytes| key(n).sign(bytes).to_bytes())
}

/// Any bytes as a descriptor's document, with a signature of exit bridge `n` that is good.
pub fn sign_bytes(document: &[u8], n: u32) -> SignedDocument {
    let signature = key(n).sign(&[b"exit bridge descriptor, version 1\n", document].concat());
    SignedDocument { document: BASE64_NOPAD.encode(document), signature: signature.to_bytes() }
}

/// The bytes that were signed.
pub fn document(signed: &SignedDocument) -> Vec<u8> {
    BASE64_NOPAD.decode(signed.document.as_bytes()).unwrap()
}

/// As it goes into a request.
pub fn body(message: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(message).unwrap()
}
