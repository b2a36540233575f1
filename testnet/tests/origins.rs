//! Origins, visited without Tor.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::ErrorKind;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use testnet::origins::bulk;
use testnet::{Origins, OriginsConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(10);

async fn start() -> Origins {
    Origins::start(OriginsConfig::default()).await.unwrap()
}

/// What curl prints; it must succeed.
fn curl(args: &[&str]) -> Vec<u8> {
    let out = Command::new("curl").args(["-sS", "-m", "30"]).args(args).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

fn curl_text(args: &[&str]) -> String {
    String::from_utf8(curl(args)).unwrap()
}

#[tokio::test]
async fn blocking_origin_refuses_blocked_addresses_only() {
    let origins = start().await;
    let url = origins.blocking_tor_exits().url("/any/page?q");
    let blocked = curl_text(&["-w", " %{http_code}", &url]);
    assert!(blocked.contains("Access denied") && blocked.ends_with(" 403"), "{blocked}");
    let welcome = curl_text(&["-w", " %{http_code}", "--interface", "127.9.9.9", &url]);
    assert!(welcome.contains("127.9.9.9") && welcome.ends_with(" 200"), "{welcome}");

    let elsewhere: IpAddr = "127.9.9.9".parse().unwrap();
    let hits = origins.blocking_tor_exits().hits();
    assert_eq!(hits.len(), 2);
    assert_eq!(
        (hits[1].peer_ip, hits[1].path.as_str(), hits[1].method.as_str()),
        (elsewhere, "/any/page?q", "GET")
    );
    assert_eq!(origins.blocking_tor_exits().last_peer_ip(), Some(elsewhere));
    assert_eq!(origins.open().last_peer_ip(), None);
}

#[tokio::test]
async fn tls_origins_are_trusted_with_their_authority() {
    let origins = start().await;
    let ca = origins.ca_file().to_str().unwrap().to_owned();
    assert_eq!(curl_text(&["--cacert", &ca, &origins.open_tls().url("/peer")]), "127.0.0.1");
    let addr = origins.blocking_tor_exits_tls().addr();
    let by_name = format!("https://origin.test:{}/peer", addr.port());
    let to = format!("origin.test:{}:{}", addr.port(), addr.ip());
    assert_eq!(curl_text(&["--cacert", &ca, "--resolve", &to, &by_name]), "127.0.0.1");
}

#[tokio::test]
async fn bulk_and_sink_agree_on_checksums() {
    let origins = start().await;
    let body = curl(&["-D", "/dev/stderr", &origins.open().url("/bulk/3000001")]);
    assert_eq!(body.len(), 3_000_001);
    bulk::verify(&body).unwrap();
    let head = curl_text(&["-I", &origins.open().url("/bulk/3000001")]);
    assert!(head.contains(&format!("x-sha256: {}", bulk::sha256(3_000_001))), "{head}");
    assert!(head.contains("content-length: 3000001"), "{head}");

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &body).unwrap();
    let path = file.path().to_str().unwrap();
    for url in [origins.open().url("/sink"), origins.slow().url("/slow-sink?rate=10000000")] {
        let reply: serde_json::Value = serde_json::from_slice(&curl(&["-T", path, &url])).unwrap();
        assert_eq!((&reply["bytes"], &reply["sha256"]), (&3_000_001.into(), &bulk::sha256(3_000_001).into()));
        assert!(reply["seconds"].as_f64().is_some_and(|s| (0.0..60.0).contains(&s)), "{reply}");
    }
}

#[tokio::test]
async fn slow_sink_pushes_back() {
    let origins = start().await;
    let mut stream = TcpStream::connect(origins.slow().addr()).await.unwrap();
    let head = "PUT /slow-sink?rate=50000 HTTP/1.1\r\nhost: o\r\ncontent-length: 100000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let (block, mut sent, start) = (vec![0; 4096], 0, Instant::now());
    while start.elapsed() < Duration::from_secs(1) {
        if let Ok(n) = timeout(Duration::from_millis(100), stream.write(&block)).await {
            sent += n.unwrap();
        }
    }
    // What is beyond 50 kB waits in this end's send buffer (up to 4 MB), not in the origin.
    assert!(sent < 6_000_000, "{sent}");
}

#[tokio::test]
async fn status_hits_and_keep_alive() {
    let origins = start().await;
    let open = origins.open();
    let out = curl_text(&[
        "-w",
        "%{http_code} %{num_connects}\n",
        &open.url("/status/418"),
        &open.url("/status/204"),
    ]);
    assert_eq!(out, "418 1\n204 0\n");
    for bad in ["/status/100", "/status/0"] {
        assert_eq!(curl_text(&["-o", "/dev/null", "-w", "%{http_code}", &open.url(bad)]), "400");
    }
    let hits: serde_json::Value = serde_json::from_str(&curl_text(&[&open.url("/hits")])).unwrap();
    assert_eq!(hits.as_array().unwrap().len(), 4);
    assert_eq!((&hits[0]["path"], &hits[0]["peer_ip"]), (&"/status/418".into(), &"127.0.0.1".into()));
}

#[tokio::test]
async fn raw_origins_behave() {
    let origins = start().await;
    let mut byte = [0];

    let mut echo = TcpStream::connect(origins.echo().addr()).await.unwrap();
    echo.write_all(b"hello").await.unwrap();
    echo.shutdown().await.unwrap();
    let mut back = String::new();
    timeout(SOON, echo.read_to_string(&mut back)).await.unwrap().unwrap();
    assert_eq!(back, "hello");

    let mut reset = TcpStream::connect(origins.reset().addr()).await.unwrap();
    let error = timeout(SOON, reset.read(&mut byte)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);

    let mut close = TcpStream::connect(origins.close().addr()).await.unwrap();
    assert_eq!(timeout(SOON, close.read(&mut byte)).await.unwrap().unwrap(), 0);

    let mut stall = TcpStream::connect(origins.stall().addr()).await.unwrap();
    assert!(timeout(Duration::from_millis(300), stall.read(&mut byte)).await.is_err());
    assert_eq!(origins.stall().hits().len(), 1);

    let addr = origins.stall().addr();
    drop(origins);
    assert!(timeout(SOON, stall.read(&mut byte)).await.is_ok());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(TcpStream::connect(addr).await.is_err());
}
