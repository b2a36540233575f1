//! Origins below HTTP: the rude, the silent, and the echo.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::TurnAway;
use super::hits::HitLog;

/// What a raw origin does with each connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum Behaviour {
    Echo,
    Reset,
    Stall,
    Close,
    Alert,
}

/// A fatal alert `access_denied` in a record of its own.
const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

impl From<TurnAway> for Behaviour {
    fn from(how: TurnAway) -> Self {
        match how {
            TurnAway::Reset => Self::Reset,
            TurnAway::Close => Self::Close,
            TurnAway::Stall => Self::Stall,
            TurnAway::Alert => Self::Alert,
        }
    }
}

/// Accepts until it is stopped.
pub(super) async fn serve(
    listener: TcpListener,
    behaviour: Behaviour,
    hits: HitLog,
    stop: CancellationToken,
) {
    let accepting = async {
        loop {
            let Ok((stream, peer)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await; // out of file descriptors, most likely
                continue;
            };
            hits.add(peer.ip(), "CONNECT", "");
            tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
                let _ = behave(stream, behaviour).await; // the peer has gone
            }));
        }
    };
    stop.run_until_cancelled(accepting).await;
}

/// Treats a connection so.
///
/// # Errors
/// The peer has gone.
pub(super) async fn behave(mut stream: TcpStream, behaviour: Behaviour) -> io::Result<()> {
    match behaviour {
        Behaviour::Echo => {
            stream.set_nodelay(true)?;
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await?;
        }
        Behaviour::Reset => {
            // At once, the reset could overtake the peer's own notice that it is connected.
            let _ = timeout(Duration::from_millis(100), stream.peek(&mut [0])).await; // readable() may say so too early
            stream.set_zero_linger()?; // then dropping it sends RST
        }
        Behaviour::Stall => std::future::pending().await,
        Behaviour::Close => {}
        Behaviour::Alert => {
            // All of it is read: closing with unread bytes would reset, and the alert might be lost.
            stream.read_buf(&mut Vec::with_capacity(16 << 10)).await?;
            stream.write_all(&ACCESS_DENIED).await?;
            stream.shutdown().await?;
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        }
    }
    Ok(())
}
