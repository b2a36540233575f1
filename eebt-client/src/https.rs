//! HTTPS requests of the client's own, over streams that Tor or an exit bridge carries.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Makes TLS connections that trust what this machine trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` are heeded).
#[derive(Clone)]
pub(crate) struct Https(TlsConnector);

/// Why a page was not fetched. Carries no address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// TLS, or the stream below it.
    #[error("no connection: {0}")]
    Stream(#[from] io::Error),
    /// HTTP.
    #[error("the answer is not usable: {0}")]
    Http(#[from] hyper::Error),
    /// It is no page.
    #[error("the answer has status {0}")]
    Status(StatusCode),
    /// Longer than allowed, or cut.
    #[error("the answer's body is not usable: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
}

impl Https {
    /// With the certificates of this machine.
    ///
    /// # Errors
    /// There are none, or TLS cannot be set up.
    pub(crate) fn new() -> io::Result<Self> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        let (taken, _left_out) = roots.add_parsable_certificates(found.certs);
        if taken == 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "this machine trusts no authority"));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// TLS with `host`, a name or an address, over a stream to it.
    ///
    /// # Errors
    /// The stream broke, or the certificate is not for `host`.
    pub(crate) async fn connect<S>(&self, host: &str, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        self.0.connect(name, stream).await
    }
}

/// Whether the program that begins a TLS handshake so wants to speak HTTP (ALPN, RFC 7301): not mail, say.
pub(crate) fn offers_http(mut client_hello: &[u8]) -> bool {
    let mut acceptor = rustls::server::Acceptor::default();
    while !client_hello.is_empty() && acceptor.read_tls(&mut client_hello).is_ok_and(|read| read > 0) {
        if let Ok(Some(accepted)) = acceptor.accept() {
            let hello = accepted.client_hello();
            let mut offered = hello.alpn().into_iter().flatten();
            return offered.any(|protocol| protocol == b"h2" || protocol == b"http/1.1");
        }
    }
    false
}

/// GET on a stream that is ready for HTTP: the body, of at most `max` bytes.
///
/// # Errors
/// See [`FetchError`]; any status but 200 is one.
pub(crate) async fn fetch<S>(stream: S, uri: &Uri, max: usize) -> Result<Bytes, FetchError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header("host", uri.authority().map_or("", |authority| authority.as_str()))
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| FetchError::Body(e.into()))?;
    let reply = sender.send_request(request).await?;
    let status = reply.status();
    let body = Limited::new(reply.into_body(), max).collect().await;
    connection.abort();
    if status != StatusCode::OK {
        return Err(FetchError::Status(status));
    }
    Ok(body.map_err(FetchError::Body)?.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a program says first that offers these protocols.
    fn client_hello(protocols: &[&str]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = config.unwrap().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let name = ServerName::try_from("mail.example").unwrap();
        let mut hello = Vec::new();
        let mut tls = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        tls.write_tls(&mut hello).unwrap();
        hello
    }

    #[test]
    fn programs_that_want_no_http_are_known() {
        for (protocols, http) in [
            (&["h2", "http/1.1"][..], true),
            (&["http/1.1"], true),
            (&["imap"], false),
            (&["http/1.0"], false),
            (&[], false),
        ] {
            assert_eq!(offers_http(&client_hello(protocols)), http, "{protocols:?}");
        }
        let hello = client_hello(&["h2"]);
        for cut in [0, 1, 5, 60, hello.len() - 1] {
            assert!(!offers_http(&hello[..cut]), "{cut} bytes");
        }
        assert!(!offers_http(b"GET / HTTP/1.1\r\n\r\n"));
        assert!(!offers_http(&[22, 3, 1, 0xFF, 0xFF, 1, 0xFF, 0xFF, 0xFF]));
    }
}
