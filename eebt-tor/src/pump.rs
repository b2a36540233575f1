//! One direction of a stream.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Bytes moved at once: whole relay cells of 498 bytes, about as much as a TLS record.
const CHUNK: usize = 32 * 498;

/// Moves bytes until the reader ends, then ends the writer. `moved` is told of each chunk, and says
/// how long to wait before it goes out.
///
/// # Errors
/// The reader's or the writer's.
pub async fn pump(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    moved: impl Fn(usize) -> Duration,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = {
            let mut read = pin!(reader.read(&mut buffer));
            // Flush only when nothing more is there to go along: fewer and fuller cells.
            match poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx))).await {
                Poll::Ready(n) => n?,
                Poll::Pending => {
                    writer.flush().await?;
                    read.await?
                }
            }
        };
        if n == 0 {
            return writer.shutdown().await;
        }
        let wait = moved(n);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        writer.write_all(&buffer[..n]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn everything_arrives_and_is_counted() {
        let sent: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        let (mut near, mut far) = tokio::io::duplex(1000);
        let counted = Cell::new(0);
        let count = |n| {
            counted.set(counted.get() + n);
            Duration::ZERO
        };
        let mut got = Vec::new();
        let mut from = &sent[..];
        let (pumped, read) = tokio::join!(pump(&mut from, &mut near, count), far.read_to_end(&mut got));
        pumped.unwrap();
        read.unwrap();
        assert_eq!((got, counted.get()), (sent, 100_000));
    }

    #[tokio::test]
    async fn a_small_write_is_not_held_back() {
        let (mut near, mut near_in) = tokio::io::duplex(1000);
        let (far, mut far_out) = tokio::io::duplex(1000);
        let mut far = tokio::io::BufWriter::new(far);
        let pumping = pump(&mut near, &mut far, |_| Duration::ZERO);
        let talk = async {
            near_in.write_all(b"hello").await.unwrap();
            let mut got = [0; 5];
            far_out.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"hello");
        };
        tokio::select! { _ = pumping => panic!("ended early"), () = talk => {} }
    }
}
