//! What a program would ask of the proxy: SOCKS5 (RFC 1928), with Tor's RESOLVE (socks-extensions).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longest time for one question.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// Longest time until the proxy, which is near, greets back.
const GREETING: Duration = Duration::from_secs(10);

/// What came of a question.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The target said something.
    Heard(Vec<u8>),
    /// The proxy said no, with a status of RFC 1928.
    Declined(u8),
    /// The stream ended, and nothing had come.
    Ended,
    /// Neither, in the time that there was.
    Silent,
}

/// Does it speak SOCKS5?
///
/// # Errors
/// It does not, or cannot be connected to in ten seconds.
pub(super) async fn greet(proxy: SocketAddr) -> std::io::Result<TcpStream> {
    let greeting = async {
        let mut tcp = TcpStream::connect(proxy).await?;
        tcp.write_all(&[5, 1, 0]).await?;
        let mut reply = [0; 2];
        tcp.read_exact(&mut reply).await?;
        match reply {
            [5, 0] => Ok(tcp),
            _ => Err(std::io::Error::other("it does not speak SOCKS5")),
        }
    };
    tokio::time::timeout(GREETING, greeting).await.unwrap_or(Err(std::io::ErrorKind::TimedOut.into()))
}

/// Asks for `host:port`, says an HTTP request, and listens for the first bytes.
///
/// # Errors
/// The proxy does not speak SOCKS5.
pub(super) async fn page(proxy: SocketAddr, host: &str, port: u16) -> std::io::Result<Answer> {
    let talk = async {
        let mut tcp = request(proxy, 1, host, port).await?;
        if let Some(declined) = declined(&mut tcp).await? {
            return Ok(declined);
        }
        let ask = format!("HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let mut got = vec![0; 64];
        let heard = match tcp.write_all(ask.as_bytes()).await {
            Ok(()) => tcp.read(&mut got).await.unwrap_or(0),
            Err(_) => 0,
        };
        got.truncate(heard);
        Ok(if got.is_empty() { Answer::Ended } else { Answer::Heard(got) })
    };
    tokio::time::timeout(LIMIT, talk).await.unwrap_or(Ok(Answer::Silent))
}

/// Asks for an address of `name`.
///
/// # Errors
/// The proxy does not speak SOCKS5.
pub(super) async fn address(proxy: SocketAddr, name: &str) -> std::io::Result<Answer> {
    let talk = async {
        let mut tcp = request(proxy, 0xF0, name, 0).await?;
        Ok(declined(&mut tcp).await?.unwrap_or(Answer::Heard(Vec::new())))
    };
    tokio::time::timeout(LIMIT, talk).await.unwrap_or(Ok(Answer::Silent))
}

async fn request(proxy: SocketAddr, command: u8, host: &str, port: u16) -> std::io::Result<TcpStream> {
    let mut tcp = greet(proxy).await?;
    let mut request = vec![5, command, 0];
    match host.parse() {
        Ok(IpAddr::V4(ip)) => request.extend([&[1][..], &ip.octets()].concat()),
        Ok(IpAddr::V6(ip)) => request.extend([&[4][..], &ip.octets()].concat()),
        Err(_) => {
            let length = u8::try_from(host.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
            request.extend([&[3, length], host.as_bytes()].concat());
        }
    }
    request.extend(port.to_be_bytes());
    tcp.write_all(&request).await?;
    Ok(tcp)
}

/// Reads the reply; `None` when the proxy said yes.
async fn declined(tcp: &mut TcpStream) -> std::io::Result<Option<Answer>> {
    let mut head = [0; 4];
    if tcp.read_exact(&mut head).await.is_err() {
        return Ok(Some(Answer::Ended));
    }
    let address = match head {
        [5, 0, _, 1] => 4,
        [5, 0, _, 4] => 16,
        [5, 0, _, 3] => usize::from(tcp.read_u8().await?),
        [5, status, ..] => return Ok(Some(Answer::Declined(status))),
        _ => return Err(std::io::Error::other("it does not speak SOCKS5")),
    };
    let mut rest = vec![0; address + 2];
    tcp.read_exact(&mut rest).await?;
    Ok(None)
}
