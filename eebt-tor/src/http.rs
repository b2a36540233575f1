//! HTTP to an onion service: one circuit of our own, a new stream for each request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use eebt_proto::OnionReach;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tor_circmgr::ClientOnionServiceDataTunnel;
use tor_error::ErrorReport as _;
use tor_proto::client::stream::{DataStream, StreamParameters};

use crate::{OnionConnector, OnionError, PathKind};

/// Longest answer that is read, in bytes.
const MAX_REPLY: usize = 256 * 1024;

/// How long the circuit to a service, and an answer on it, may take.
const CIRCUIT_TIMEOUT: Duration = Duration::from_secs(60);
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a circuit is used.
const MAX_AGE: Duration = Duration::from_secs(600);

/// Requests to one onion service, all on one circuit: whoever is there sees that they are from the
/// same one.
pub struct OnionHttp {
    connector: Arc<OnionConnector>,
    service: OnionReach,
    circuit: Mutex<Option<(Arc<ClientOnionServiceDataTunnel>, Instant)>>,
}

/// What a service answered.
pub struct Reply {
    /// HTTP status.
    pub status: StatusCode,
    /// The whole body.
    pub body: Bytes,
}

/// Why there is no answer. Carries no onion address.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// There is no circuit.
    #[error(transparent)]
    Onion(#[from] OnionError),
    /// The stream or the circuit broke.
    #[error("the stream failed: {0}")]
    Stream(String),
    /// What came back is no HTTP, or too long.
    #[error("the answer is not usable: {0}")]
    Answer(String),
    /// Nothing came in time.
    #[error("no answer in time")]
    Timeout,
}

impl Reply {
    /// The body as JSON.
    ///
    /// # Errors
    /// [`HttpError::Answer`].
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, HttpError> {
        // Where, not what: the text of the error would quote a stranger's words, or a bridge line.
        let place = |e: serde_json::Error| format!("not the expected JSON, column {}", e.column());
        serde_json::from_slice(&self.body).map_err(|e| HttpError::Answer(place(e)))
    }
}

impl OnionHttp {
    /// For the service `service`.
    pub fn new(connector: Arc<OnionConnector>, service: OnionReach) -> Self {
        Self { connector, service, circuit: Mutex::default() }
    }

    /// Whom requests go to.
    pub fn service(&self) -> &OnionReach {
        &self.service
    }

    /// GET.
    ///
    /// # Errors
    /// See [`HttpError`]; a status that is no success is an answer.
    pub async fn get(&self, path: &str) -> Result<Reply, HttpError> {
        self.request(Method::GET, path, Bytes::new(), REPLY_TIMEOUT).await
    }

    /// POST of `body` as JSON.
    ///
    /// # Errors
    /// See [`HttpError`]; a status that is no success is an answer.
    pub async fn post(&self, path: &str, body: &impl Serialize) -> Result<Reply, HttpError> {
        self.post_within(REPLY_TIMEOUT, path, body).await
    }

    /// POST of `body` as JSON, when the answer is not waited for longer than `limit` once there is a circuit.
    ///
    /// # Errors
    /// See [`HttpError`]; a status that is no success is an answer.
    pub async fn post_within(
        &self,
        limit: Duration,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Reply, HttpError> {
        let body = serde_json::to_vec(body).map_err(|e| HttpError::Answer(e.to_string()))?;
        self.request(Method::POST, path, body.into(), limit).await
    }

    /// One try; after a failure the next request takes a new circuit.
    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Reply, HttpError> {
        let circuit = self.circuit().await?;
        let asked = timeout(limit, self.ask(&circuit, method, path, body)).await;
        let reply = asked.unwrap_or(Err(HttpError::Timeout));
        if reply.is_err() {
            let mut kept = self.circuit.lock().await;
            if kept.as_ref().is_some_and(|(kept, _)| Arc::ptr_eq(kept, &circuit)) {
                *kept = None;
            }
        }
        reply
    }

    async fn circuit(&self) -> Result<Arc<ClientOnionServiceDataTunnel>, HttpError> {
        let mut kept = self.circuit.lock().await;
        if let Some((circuit, since)) = kept.as_ref()
            && !circuit.is_closed()
            && since.elapsed() < MAX_AGE
        {
            return Ok(Arc::clone(circuit));
        }
        let built =
            timeout(CIRCUIT_TIMEOUT, self.connector.circuit(self.service.service, PathKind::Vanguards)).await;
        let circuit = built.map_err(|_| HttpError::Timeout)??;
        *kept = Some((Arc::clone(&circuit), Instant::now()));
        Ok(circuit)
    }

    async fn ask(
        &self,
        circuit: &ClientOnionServiceDataTunnel,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Reply, HttpError> {
        let host = self.service.to_string();
        let mut params = StreamParameters::default();
        params.optimistic(true);
        let stream = circuit.begin_stream(&host, 80, Some(params)).await;
        let stream = stream.map_err(|e| HttpError::Stream(e.report().to_string()))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", host)
            .header("content-type", "application/json")
            .header("connection", "close")
            .body(Full::new(body))
            .map_err(|e| HttpError::Answer(e.to_string()))?;
        exchange(stream, request).await
    }
}

/// One request and its answer, on a stream of their own.
pub(crate) async fn exchange(stream: DataStream, request: Request<Full<Bytes>>) -> Result<Reply, HttpError> {
    let failed = |e: hyper::Error| HttpError::Stream(e.report().to_string());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let connection = tokio::spawn(connection);
    let reply = sender.send_request(request).await.map_err(failed)?;
    let status = reply.status();
    let body = Limited::new(reply.into_body(), MAX_REPLY).collect().await;
    connection.abort();
    Ok(Reply { status, body: body.map_err(|e| HttpError::Answer(e.to_string()))?.to_bytes() })
}
