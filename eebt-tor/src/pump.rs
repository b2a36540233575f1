//! One direction of a stream.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

/// Bytes moved at once: whole relay cells of 498 bytes, about as much as a TLS record.
const CHUNK: usize = 32 * 498;

thread_local! {
    /// What is read into. A stream that waits has no buffer: most streams wait most of the time, and
    /// copying a chunk once more costs little beside encrypting it.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

/// Which end of a pump broke. When the reader did, nothing more will come; when the writer did, the
/// other direction may still have something to say.
#[derive(Debug)]
pub enum PumpError {
    /// It could not be read from.
    Reader(io::Error),
    /// It could not be written to.
    Writer(io::Error),
}

impl From<PumpError> for io::Error {
    fn from(error: PumpError) -> Self {
        match error {
            PumpError::Reader(error) | PumpError::Writer(error) => error,
        }
    }
}

/// Moves bytes until the reader ends, then ends the writer. `moved` is told of each chunk, and says
/// how long to wait before it goes out.
///
/// # Errors
/// See [`PumpError`].
pub async fn pump(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    moved: impl Fn(usize) -> Duration,
) -> Result<(), PumpError> {
    loop {
        // Flush only when nothing more is there to go along: fewer and fuller cells.
        let chunk = match poll_fn(|cx| Poll::Ready(poll_chunk(reader, cx))).await {
            Poll::Ready(chunk) => chunk,
            Poll::Pending => {
                writer.flush().await.map_err(PumpError::Writer)?;
                poll_fn(|cx| poll_chunk(reader, cx)).await
            }
        };
        if !chunk.bytes.is_empty() {
            let wait = moved(chunk.bytes.len());
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            writer.write_all(&chunk.bytes).await.map_err(PumpError::Writer)?;
        }
        match chunk.end {
            None => {}
            Some(Ok(())) => return writer.shutdown().await.map_err(PumpError::Writer),
            Some(Err(error)) => return Err(PumpError::Reader(error)),
        }
    }
}

/// Bytes, and what came behind them if that was the end.
struct Chunk {
    bytes: Vec<u8>,
    end: Option<io::Result<()>>,
}

/// All that the reader has now, up to a full buffer: a Tor stream gives one cell at a time.
fn poll_chunk(reader: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>) -> Poll<Chunk> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut buffer = ReadBuf::new(scratch);
        let mut end = None;
        while buffer.remaining() > 0 && end.is_none() {
            let before = buffer.filled().len();
            match Pin::new(&mut *reader).poll_read(cx, &mut buffer) {
                Poll::Pending if before == 0 => return Poll::Pending,
                Poll::Pending => break,
                Poll::Ready(Err(error)) => end = Some(Err(error)),
                Poll::Ready(Ok(())) if buffer.filled().len() == before => end = Some(Ok(())),
                Poll::Ready(Ok(())) => {}
            }
        }
        Poll::Ready(Chunk { bytes: buffer.filled().to_vec(), end })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use tokio::io::AsyncReadExt as _;

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

    /// Gives a few bytes at a time, then fails once, and after that says that it has ended.
    struct Breaks(u8);

    impl AsyncRead for Breaks {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.0 += 1;
            match self.0 {
                1..4 => buffer.put_slice(b"abc"),
                4 => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                _ => {}
            }
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn bytes_before_an_error_arrive_and_the_error_is_not_taken_for_an_end() {
        let mut got = io::Cursor::new(Vec::new());
        let error = pump(&mut Breaks(0), &mut got, |_| Duration::ZERO).await.unwrap_err();
        assert!(matches!(&error, PumpError::Reader(e) if e.kind() == io::ErrorKind::ConnectionReset));
        assert_eq!(got.into_inner(), b"abcabcabc");
    }

    #[tokio::test]
    async fn a_writer_that_breaks_is_told_from_a_reader() {
        let (mut near, far) = tokio::io::duplex(10);
        drop(far);
        let error = pump(&mut &b"hello"[..], &mut near, |_| Duration::ZERO).await.unwrap_err();
        assert!(matches!(error, PumpError::Writer(_)));
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
