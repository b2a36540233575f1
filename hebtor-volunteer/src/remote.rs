//! What the command line says to the app that runs: the same forms as the page's.

use std::path::Path;

use eebt_page::PlaceError;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::page::{self, Status};

/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// Why the app that runs can't be told.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// None runs.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// It did nothing, and said why.
    #[error("{0}")]
    Refused(String),
    /// It does not answer, or not as it should.
    #[error("the app that runs does not answer as it should")]
    Answer(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn answer(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> RemoteError {
    RemoteError::Answer(error.into())
}

/// Sends a form of the page.
///
/// # Errors
/// See [`RemoteError`].
pub async fn send(state_dir: &Path, form: &str, fields: &str) -> Result<(), RemoteError> {
    let (status, body) = ask(state_dir, form, Some(fields)).await?;
    match status {
        StatusCode::NO_CONTENT => Ok(()),
        StatusCode::CONFLICT => Err(RemoteError::Refused(String::from_utf8_lossy(&body).into_owned())),
        other => Err(answer(format!("HTTP {other}"))),
    }
}

/// What it does now.
///
/// # Errors
/// See [`RemoteError`].
pub async fn status(state_dir: &Path) -> Result<Status, RemoteError> {
    let (_status, body) = ask(state_dir, "status.json", None).await?;
    serde_json::from_slice(&body).map_err(answer)
}

async fn ask(state_dir: &Path, what: &str, fields: Option<&str>) -> Result<(StatusCode, Bytes), RemoteError> {
    let url = page::find(state_dir)?;
    let address = url.strip_prefix("http://").and_then(|rest| rest.split('/').next());
    let address = address.ok_or_else(|| answer("its address makes no sense"))?;
    let stream = TcpStream::connect(address).await.map_err(answer)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(answer)?;
    let connection = tokio::spawn(connection);
    let path = url.strip_prefix("http://").and_then(|rest| rest.strip_prefix(address)).unwrap_or("/");
    let mut request = Request::builder().uri(format!("{path}{what}")).header("host", address);
    if fields.is_some() {
        request = request
            .method("POST")
            .header("origin", format!("http://{address}"))
            .header("accept", "text/plain")
            .header("content-type", "application/x-www-form-urlencoded");
    }
    let request =
        request.body(Full::new(Bytes::from(fields.unwrap_or_default().to_owned()))).map_err(answer)?;
    let response = sender.send_request(request).await.map_err(answer)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(answer)?.to_bytes();
    connection.abort();
    Ok((status, body))
}
