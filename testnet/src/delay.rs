//! A TCP link with a one-way delay in each direction, for path lengths that can be felt.
//!
//! It delays and never throttles: what was read waits in a queue of its own until its time has come, and the
//! queue is far larger than bandwidth times delay on loopback.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::background;
use crate::error::TestNetError;

/// Bytes under way in one direction of one connection, at most: 400 MB/s at 40 ms.
const WINDOW: usize = 16 << 20;
/// The most that is read at once.
const CHUNK: usize = 64 << 10;

/// A listener whose connections are forwarded with a delay. Dropping it closes it and them.
#[derive(Debug)]
pub struct DelayLink {
    listen: SocketAddr,
    to: SocketAddr,
    one_way: Duration,
    _stop: DropGuard,
}

impl DelayLink {
    /// Where to connect; with the real port when port 0 was asked for.
    pub fn listen_addr(&self) -> SocketAddr {
        self.listen
    }

    /// Where connections are forwarded to.
    pub fn target_addr(&self) -> SocketAddr {
        self.to
    }

    /// How long each byte is under way.
    pub fn one_way(&self) -> Duration {
        self.one_way
    }
}

/// Opens a link from `listen` to `to` on which each byte is under way for `one_way`, in each direction.
///
/// The link runs in the background until it is dropped, whatever becomes of the caller's runtime.
///
/// # Errors
/// When `listen` cannot be bound. A target that refuses shows as a closed connection.
pub async fn delay_link(
    listen: SocketAddr,
    to: SocketAddr,
    one_way: Duration,
) -> Result<DelayLink, TestNetError> {
    let runtime = background::runtime().map_err(TestNetError::Background)?;
    let failed = |source| TestNetError::Listen { addr: listen, source };
    let listener = {
        let _inside = runtime.enter(); // the listener belongs to the runtime it is made in
        std::net::TcpListener::bind(listen)
            .and_then(|listener| {
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener)
            })
            .map_err(failed)?
    };
    let listen = listener.local_addr().map_err(failed)?;
    let stop = CancellationToken::new();
    runtime.spawn(stop.clone().run_until_cancelled_owned(accept(listener, to, one_way, stop.clone())));
    Ok(DelayLink { listen, to, one_way, _stop: stop.drop_guard() })
}

async fn accept(listener: TcpListener, to: SocketAddr, one_way: Duration, stop: CancellationToken) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
                    let _ = carry(client, to, one_way).await; // an error is a closed link: both ends see it
                }));
            }
            // Out of file descriptors, most likely: wait for some to be closed.
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn carry(client: TcpStream, to: SocketAddr, one_way: Duration) -> io::Result<()> {
    client.set_nodelay(true)?;
    // The kernel has shaken hands already; a long link would have taken a round trip for that.
    sleep(2 * one_way).await;
    let target = TcpStream::connect(to).await?;
    target.set_nodelay(true)?;
    let (client_read, client_write) = client.into_split();
    let (target_read, target_write) = target.into_split();
    tokio::try_join!(pump(client_read, target_write, one_way), pump(target_read, client_write, one_way),)?;
    Ok(())
}

/// Bytes on their way, when they arrive, and their share of the window.
struct Parcel(Instant, Bytes, Option<OwnedSemaphorePermit>);

async fn pump(read: OwnedReadHalf, write: OwnedWriteHalf, one_way: Duration) -> io::Result<()> {
    let (depart, arrive) = mpsc::unbounded_channel(); // bounded in bytes, by the window
    tokio::try_join!(departures(read, depart, one_way), arrivals(write, arrive))?;
    Ok(())
}

async fn departures(
    mut read: OwnedReadHalf,
    depart: mpsc::UnboundedSender<Parcel>,
    one_way: Duration,
) -> io::Result<()> {
    let window = Arc::new(Semaphore::new(WINDOW));
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        let n = (&mut read).take(CHUNK as u64).read_buf(&mut buffer).await?;
        let arrival = Instant::now() + one_way;
        let share = u32::try_from(n).unwrap_or(u32::MAX);
        let share = window.clone().acquire_many_owned(share).await.ok();
        let end = n == 0; // travels as an empty parcel
        if depart.send(Parcel(arrival, buffer.split().freeze(), share)).is_err() || end {
            return Ok(());
        }
    }
}

async fn arrivals(mut write: OwnedWriteHalf, mut arrive: mpsc::UnboundedReceiver<Parcel>) -> io::Result<()> {
    while let Some(Parcel(when, bytes, share)) = arrive.recv().await {
        sleep_until(when).await;
        write.write_all(&bytes).await?;
        drop(share);
    }
    write.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origins::{Origins, OriginsConfig};

    const DELAY: Duration = Duration::from_millis(40);

    async fn echo_link(one_way: Duration) -> (Origins, DelayLink) {
        let origins = Origins::start(OriginsConfig::default()).await.unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let link = delay_link(any, origins.echo().addr(), one_way).await.unwrap();
        (origins, link)
    }

    #[tokio::test]
    async fn round_trip_takes_two_delays() {
        let (_origins, link) = echo_link(DELAY).await;
        let mut stream = TcpStream::connect(link.listen_addr()).await.unwrap();
        let mut reply = [0; 4];
        stream.write_all(b"warm").await.unwrap();
        stream.read_exact(&mut reply).await.unwrap();

        let start = Instant::now();
        stream.write_all(b"ping").await.unwrap();
        stream.read_exact(&mut reply).await.unwrap();
        let took = start.elapsed();
        assert_eq!(&reply, b"ping");
        assert!(took >= 2 * DELAY, "{took:?}");
        assert!(took < 2 * DELAY + Duration::from_millis(60), "{took:?}");
    }

    #[tokio::test]
    async fn bulk_keeps_its_order_and_is_not_throttled() {
        const SIZE: usize = 64 << 20;
        let (_origins, link) = echo_link(DELAY).await;
        let (mut read, mut write) = TcpStream::connect(link.listen_addr()).await.unwrap().into_split();
        let start = Instant::now();
        let upload = tokio::spawn(async move {
            let mut block = vec![0; 1 << 20];
            for at in (0..SIZE).step_by(block.len()) {
                crate::origins::bulk::fill(at as u64, &mut block);
                write.write_all(&block).await.unwrap();
            }
            write.shutdown().await.unwrap();
        });
        let mut verifier = crate::origins::bulk::Verifier::new();
        let mut block = vec![0; 1 << 20];
        loop {
            let n = read.read(&mut block).await.unwrap();
            if n == 0 {
                break;
            }
            verifier.update(&block[..n]).unwrap();
        }
        upload.await.unwrap();
        assert_eq!(verifier.len(), SIZE as u64); // the end of stream travelled through both directions
        let took = start.elapsed();
        // A link that sent one 64 kB chunk per delay would take 40 s.
        assert!(took < Duration::from_secs(10), "{took:?}");
    }

    #[tokio::test]
    async fn dropped_link_closes_its_connections() {
        let (_origins, link) = echo_link(Duration::ZERO).await;
        let addr = link.listen_addr();
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        drop(link);
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0])).await.unwrap();
        assert!(matches!(ended, Ok(0) | Err(_)));
        sleep(Duration::from_millis(100)).await;
        assert!(TcpStream::connect(addr).await.is_err());
    }
}
