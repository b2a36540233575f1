//! HTTP CONNECT (RFC 9110, section 9.3.6), heads parsed by httparse.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::RequestError;
use crate::connect::{ConnectError, TargetFailure};

/// Longest head that is read, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// Most header fields that are read.
const MAX_FIELDS: usize = 64;

/// A CONNECT request, and what the program sent right behind it.
pub(super) struct Request {
    pub(super) host: String,
    pub(super) port: u16,
    /// What isolates: the value of Proxy-Authorization, and of Tor's X-Tor-Stream-Isolation.
    pub(super) credentials: Vec<u8>,
    pub(super) early_data: Vec<u8>,
}

/// What a head says.
#[derive(Debug, PartialEq, Eq)]
enum Head {
    /// More bytes are needed.
    Partial,
    /// CONNECT to host and port; the head is so many bytes long.
    Connect { host: String, port: u16, credentials: Vec<u8>, length: usize },
    /// Another method, for a whole URL: a program that takes us for another kind of proxy.
    OtherMethod,
    /// Another method, for a path: somebody takes us for a web server.
    NotForProxies,
    /// No head.
    Malformed,
}

/// Reads a head, and answers the ones that are not for us.
pub(super) async fn read_request(tcp: &mut TcpStream) -> Result<Request, RequestError> {
    let mut bytes = Vec::new();
    loop {
        match parse(&bytes) {
            Head::Connect { host, port, credentials, length } => {
                return Ok(Request { host, port, credentials, early_data: bytes.split_off(length) });
            }
            Head::Partial if bytes.len() < MAX_HEAD => {
                let mut chunk = [0; 2048];
                let n = tcp.read(&mut chunk).await.map_err(RequestError::Io)?;
                if n == 0 {
                    return Err(RequestError::Malformed);
                }
                bytes.extend_from_slice(&chunk[..n]);
            }
            Head::OtherMethod => {
                let text = "this is a proxy for SOCKS and for HTTP CONNECT\n\
                    hint: for http:// addresses use it as a SOCKS5 proxy (curl: --proxy socks5h://…)\n";
                answer(tcp, "405 Method Not Allowed", "Allow: CONNECT\r\n", text).await?;
                return Err(RequestError::Unsupported("HTTP method that is not CONNECT"));
            }
            // A web page that looks at the ports of this machine, say, or whose name points to it. It gets no answer: it is
            // not told what listens here.
            Head::NotForProxies => {
                return Err(RequestError::Unsupported("HTTP request that is not for a proxy"));
            }
            Head::Partial | Head::Malformed if !bytes.starts_with(b"CONNECT ") => {
                return Err(RequestError::Malformed);
            }
            Head::Partial | Head::Malformed => {
                answer(tcp, "400 Bad Request", "", "not a request that a proxy understands\n").await?;
                return Err(RequestError::Malformed);
            }
        }
    }
}

async fn answer(tcp: &mut TcpStream, status: &str, fields: &str, text: &str) -> Result<(), RequestError> {
    let length = text.len();
    let reply = format!(
        "HTTP/1.1 {status}\r\n{fields}Content-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
    );
    tcp.write_all(reply.as_bytes()).await.map_err(RequestError::Io)
}

fn parse(bytes: &[u8]) -> Head {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Head::Partial,
        Err(_) => return Head::Malformed,
    };
    if request.method != Some("CONNECT") {
        let whole_url = request.path.is_some_and(|path| path.contains("://") && !path.starts_with('/'));
        return if whole_url { Head::OtherMethod } else { Head::NotForProxies };
    }
    let Some((host, port)) = request.path.and_then(|p| p.rsplit_once(':')) else { return Head::Malformed };
    let Ok(port) = port.parse::<u16>() else { return Head::Malformed };
    if host.is_empty() || port == 0 {
        return Head::Malformed;
    }
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let mut credentials = Vec::new();
    for name in ["proxy-authorization", "x-tor-stream-isolation"] {
        for field in request.headers.iter().filter(|f| f.name.eq_ignore_ascii_case(name)) {
            credentials.extend_from_slice(name.as_bytes());
            credentials.push(0);
            credentials.extend_from_slice(field.value);
            credentials.push(0);
        }
    }
    Head::Connect { host: host.to_owned(), port, credentials, length }
}

/// The reply to CONNECT. A failure says why, in words of ours that name no target.
pub(super) fn reply(outcome: Result<(), &ConnectError>) -> String {
    let Err(error) = outcome else { return "HTTP/1.1 200 Connection established\r\n\r\n".to_owned() };
    let status = match error {
        ConnectError::Target(TargetFailure::Forbidden) | ConnectError::BadTarget => "403 Forbidden",
        ConnectError::Target(TargetFailure::TimedOut) | ConnectError::Timeout => "504 Gateway Timeout",
        ConnectError::Target(_) => "502 Bad Gateway",
        ConnectError::NoExitBridge
        | ConnectError::ExitBridges(_)
        | ConnectError::Tor(_)
        | ConnectError::NoLookUp => "503 Service Unavailable",
    };
    let text = format!("{error}\n");
    let length = text.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_is_read_with_what_follows() {
        let bytes = b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\nEARLY";
        let Head::Connect { host, port, credentials, length } = parse(bytes) else { panic!() };
        assert_eq!((host.as_str(), port, &bytes[length..]), ("example.com", 443, &b"EARLY"[..]));
        assert!(credentials.is_empty());
        let Head::Connect { host, .. } = parse(b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\n\r\n") else {
            panic!()
        };
        assert_eq!(host, "2001:db8::1");
    }

    #[test]
    fn credentials_isolate() {
        let with = |field: &str| {
            let head = format!("CONNECT a.example:443 HTTP/1.1\r\n{field}\r\n\r\n");
            let Head::Connect { credentials, .. } = parse(head.as_bytes()) else { panic!() };
            credentials
        };
        let all = [
            with("Host: a"),
            with("Proxy-Authorization: Basic YTpi"),
            with("proxy-authorization: Basic YTpj"),
            with("X-Tor-Stream-Isolation: Basic YTpi"),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all.iter().skip(i + 1).all(|b| a != b));
        }
    }

    #[test]
    fn what_is_no_connect_is_told_apart() {
        assert_eq!(parse(b"CONNECT exam"), Head::Partial);
        assert_eq!(parse(b"GET http://example.com/ HTTP/1.1\r\n\r\n"), Head::OtherMethod);
        for of_a_page in ["GET / HTTP/1.1", "POST /?x=http://a/ HTTP/1.1", "OPTIONS * HTTP/1.1"] {
            let head = format!("{of_a_page}\r\nHost: attacker.example\r\n\r\n");
            assert_eq!(parse(head.as_bytes()), Head::NotForProxies, "{of_a_page}");
        }
        for bad in [
            "CONNECT example.com HTTP/1.1\r\n\r\n",
            "CONNECT :443 HTTP/1.1\r\n\r\n",
            "CONNECT a:0 HTTP/1.1\r\n\r\n",
            "CONNECT a:99999 HTTP/1.1\r\n\r\n",
            "\u{1}\r\n\r\n",
        ] {
            assert_eq!(parse(bad.as_bytes()), Head::Malformed, "{bad:?}");
        }
    }
}
