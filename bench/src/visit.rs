//! HTTP/1.1 as a measuring browser speaks it, over whatever stream a path gives.

use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Duration, timeout};

/// Both directions to a target.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A stream to a target.
pub type Stream = Box<dyn Duplex>;

/// Longest wait for anything to move. C tor's client takes an upload long before it has got through, so the answer
/// comes late where links are slow.
const PATIENCE: Duration = Duration::from_secs(180);

/// The head of an answer and how much of the body came with it.
struct Head {
    length: u64,
    body_so_far: u64,
}

/// Asks for `path`.
pub async fn send_get(stream: &mut Stream, host: &str, path: &str) -> anyhow::Result<()> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    Ok(())
}

/// Reads until the first byte of the body is there.
async fn read_head(stream: &mut Stream) -> anyhow::Result<Head> {
    let mut got = Vec::new();
    let mut buffer = vec![0; 4096];
    loop {
        if let Some(end) = got.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4)
            && got.len() > end
        {
            let head = String::from_utf8_lossy(&got[..end]).to_ascii_lowercase();
            ensure!(head.starts_with("http/1.1 200"), "the origin said {:?}", head.lines().next());
            let length = head.lines().find_map(|l| l.strip_prefix("content-length:"));
            let length = length.and_then(|l| l.trim().parse().ok()).context("content-length")?;
            return Ok(Head { length, body_so_far: (got.len() - end) as u64 });
        }
        let n = timeout(PATIENCE, stream.read(&mut buffer)).await.context("no answer")??;
        ensure!(n > 0, "the stream ended in the head of the answer");
        ensure!(got.len() < 1 << 16, "the head of the answer does not end");
        got.extend_from_slice(&buffer[..n]);
    }
}

/// Reads the rest of a body, for as long as `limit`. Returns the bytes of the body that came.
async fn read_body(stream: &mut Stream, head: &Head, limit: Duration) -> anyhow::Result<u64> {
    let (mut got, start) = (head.body_so_far, Instant::now());
    let mut buffer = vec![0; 1 << 16];
    while got < head.length && start.elapsed() < limit {
        let n = timeout(PATIENCE, stream.read(&mut buffer)).await.context("the body stalled")??;
        if n == 0 {
            bail!("the stream ended {} bytes before the body did", head.length - got);
        }
        got += n as u64;
    }
    Ok(got)
}

/// Fetches all of `path`. Returns the bytes of the body.
pub async fn get(stream: &mut Stream, host: &str, path: &str) -> anyhow::Result<u64> {
    send_get(stream, host, path).await?;
    let head = read_head(stream).await?;
    read_body(stream, &head, Duration::MAX).await
}

/// Fetches `path`, and says when the first byte of the body was there.
pub async fn first_byte(stream: &mut Stream, host: &str, path: &str) -> anyhow::Result<Instant> {
    send_get(stream, host, path).await?;
    let head = read_head(stream).await?;
    let at = Instant::now();
    read_body(stream, &head, Duration::MAX).await?;
    Ok(at)
}

/// Fetches as much of `size` bytes as comes in `limit`. Returns bytes per second, from the request on.
pub async fn download(stream: &mut Stream, host: &str, size: u64, limit: Duration) -> anyhow::Result<f64> {
    let start = Instant::now();
    send_get(stream, host, &format!("/bulk/{size}")).await?;
    let head = read_head(stream).await?;
    let got = read_body(stream, &head, limit).await?;
    Ok(rate(got, start))
}

/// Sends as much of `size` bytes as goes in `limit`. Returns bytes per second, until the origin says that
/// it has them, or else until the last one was written.
pub async fn upload(stream: &mut Stream, host: &str, size: u64, limit: Duration) -> anyhow::Result<f64> {
    let start = Instant::now();
    let request = format!("PUT /sink HTTP/1.1\r\nHost: {host}\r\nContent-Length: {size}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let piece = vec![0x5a; 1 << 14];
    let mut sent = 0;
    while sent < size && start.elapsed() < limit {
        let n = piece.len().min(usize::try_from(size - sent)?);
        timeout(PATIENCE, stream.write_all(&piece[..n])).await.context("the upload stalled")??;
        sent += n as u64;
    }
    if sent == size {
        stream.flush().await?;
        read_head(stream).await?;
    }
    Ok(rate(sent, start))
}

/// Bytes per second since `start`.
#[allow(clippy::cast_precision_loss)] // far below 2^52
pub fn rate(bytes: u64, start: Instant) -> f64 {
    bytes as f64 / start.elapsed().as_secs_f64()
}
