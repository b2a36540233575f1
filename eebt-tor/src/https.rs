//! HTTPS requests of a program's own, over streams that Tor, an exit bridge or nobody carries.

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
pub struct Https(TlsConnector);

/// Why a page was not fetched. Carries no address.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
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
    pub fn new() -> io::Result<Self> {
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
    pub async fn connect<S>(&self, host: &str, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        self.0.connect(name, stream).await
    }
}

/// GET on a stream that is ready for HTTP: the body, of at most `max` bytes.
///
/// # Errors
/// See [`FetchError`]; any status but 200 is one.
pub async fn fetch<S>(stream: S, uri: &Uri, max: usize) -> Result<Bytes, FetchError>
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
