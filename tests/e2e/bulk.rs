//! Many bytes, both ways, at once, slowly: every checksum right, under Vegas, with fixed windows, and
//! to an onion exit bridge.
//!
//! These cases fail with a tor-proto that lacks the patches of tor-patches/arti: a download that
//! hangs after the first window (0001), an upload to a slow origin that kills the circuit (0002), a
//! reused circuit that dies after a stream was cut (0003), parallel downloads that fail (0004).

use std::time::{Duration, Instant};

use anyhow::ensure;
use eebt_proto::{BridgeLine, Reach};
use testnet::Origin;
use testnet::origins::bulk::Verifier;
use tests::{Client, Lab};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio_socks::tcp::Socks5Stream;

use crate::Suite;

const MB: u64 = 1_000_000;

pub fn cases(suite: &mut Suite) {
    for name in ["Vegas", "fixed windows", "onion"] {
        let client = async move |lab: &Lab| -> anyhow::Result<(tests::Bridge, Client)> {
            let bridge = if name == "onion" { lab.bridge().onion() } else { lab.bridge() };
            let bridge = bridge.run().await?;
            let line = match name {
                "fixed windows" => with_protocols(&bridge.line, "Relay=1-4"),
                _ => bridge.line.clone(),
            };
            let client = lab.client().via_line(&line).run().await?;
            Ok((bridge, client))
        };
        suite.case(&format!("50 MB down and 20 MB up, {name}"), async move |lab| {
            let (_bridge, client) = client(lab).await?;
            let origin = lab.origins.blocking_tor_exits();
            client.get(&origin.url("/bulk/50000000")).await?.is_bulk(50 * MB)?;
            client.upload(origin, "/sink", 20 * MB).await?;
            Ok(())
        });
        suite.case(&format!("20 downloads at once, {name}"), async move |lab| {
            let (_bridge, client) = client(lab).await?;
            let url = lab.origins.open().url("/bulk/1000000");
            for page in all((0..20).map(|_| client.get(&url))).await? {
                page.is_bulk(MB)?;
            }
            Ok(())
        });
        suite.case(&format!("10 up and 10 down at once, {name}"), async move |lab| {
            let (_bridge, client) = client(lab).await?;
            let origin = lab.origins.open();
            let url = origin.url("/bulk/1000000");
            // Made first, since all uploads share the file.
            client.upload(origin, "/sink", MB).await?;
            let (up, down) = tokio::join!(
                all((0..10).map(|_| client.upload(origin, "/sink", MB))),
                all((0..10).map(|_| client.get(&url))),
            );
            up?;
            for page in down? {
                page.is_bulk(MB)?;
            }
            Ok(())
        });
        suite.case(&format!("200 short streams, {name}"), async move |lab| {
            let (_bridge, client) = client(lab).await?;
            let url = lab.origins.open().url("/bulk/1000");
            for _ in 0..20 {
                for page in all((0..10).map(|_| client.get(&url))).await? {
                    page.is_bulk(1000)?;
                }
            }
            Ok(())
        });
        suite.case(&format!("a reader and a sink at 50 kB/s, {name}"), async move |lab| {
            let (_bridge, client) = client(lab).await?;
            let quick = lab.origins.open().url("/bulk/1000000");
            let (slow, sink, quick) = tokio::join!(
                slow_reader(&client, lab.origins.open(), 1_500_000, 50_000),
                client.upload(lab.origins.slow(), "/slow-sink?rate=200000", 2 * MB),
                client.get(&quick),
            );
            slow?;
            ensure!(sink?.took.as_secs() >= 5, "the sink was not slow");
            quick?.is_bulk(MB)?;
            Ok(())
        });
        suite.case(&format!("a stream that is cut does not hurt its circuit, {name}"), async move |lab| {
            let (_bridge, client) = client(lab).await?;
            let url = lab.origins.open().url("/bulk/50000000");
            for _ in 0..5 {
                let cut = client.curl(&url, &["--max-time", "1.5"]).await?;
                ensure!(cut.exit_code == 28 && cut.size > 100_000, "cut too early or not at all: {cut:?}");
            }
            client.get(&lab.origins.open().url("/bulk/1000000")).await?.is_bulk(MB)?;
            let circuits = crate::privacy::circuits(&client.process.stderr());
            ensure!(circuits.len() == 1, "the circuit was lost: {circuits:?}");
            Ok(())
        });
    }
}

/// Reads `/bulk/SIZE` at so many bytes a second, into a socket that takes little at once, and checks
/// every byte.
pub async fn slow_reader(client: &Client, origin: &Origin, size: u64, rate: u64) -> anyhow::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(8192)?;
    let stream = socket.connect(client.proxy).await?;
    let mut stream = Socks5Stream::connect_with_socket(stream, origin.addr()).await?;
    let request = format!("GET /bulk/{size} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let start = Instant::now();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    ensure!(head.starts_with(b"HTTP/1.1 200"));
    let mut verifier = Verifier::new();
    let mut buffer = [0; 4096];
    while verifier.len() < size {
        let n = stream.read(&mut buffer).await?;
        ensure!(n > 0, "it ended after {} bytes", verifier.len());
        verifier.update(&buffer[..n]).map_err(|e| anyhow::anyhow!("wrong byte at {}", e.at))?;
        let due = Duration::from_secs_f64(verifier.len() as f64 / rate as f64);
        tokio::time::sleep(due.saturating_sub(start.elapsed())).await;
    }
    ensure!(start.elapsed().as_secs_f64() >= 0.95 * size as f64 / rate as f64, "not slow");
    Ok(())
}

/// The same exit bridge, spoken to in another way.
fn with_protocols(line: &BridgeLine, protocols: &str) -> BridgeLine {
    let mut line = line.clone();
    if let Reach::Circuit(reach) = &mut line.reach {
        reach.protocols = protocols.to_owned();
    }
    line
}

/// All at once; the first error, if there is one.
async fn all<T>(
    futures: impl Iterator<Item = impl Future<Output = anyhow::Result<T>>>,
) -> anyhow::Result<Vec<T>> {
    futures::future::join_all(futures).await.into_iter().collect()
}
