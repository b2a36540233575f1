//! How requests arrive: over the onion service, or from loopback. Both end in the same router.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use eebt_tor::OnionService;
use futures::StreamExt as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tor_cell::relaycell::msg::{Connected, End, EndReason};
use tor_error::ErrorReport as _;
use tor_hsservice::{RendRequest, StreamRequest};
use tor_proto::stream::IncomingStreamRequest;

/// The port of the onion service.
const ONION_PORT: u16 = 80;

/// Most connections at once, of each kind.
const CONNECTIONS: usize = 1024;

/// Most rendezvous circuits at once.
const CIRCUITS: usize = 1024;

/// How long a client may take to say what it wants, and in all.
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);

/// Serves whoever connects to `listener`. Handlers find the peer's address as a [`ConnectInfo`]. Never
/// returns.
pub async fn tcp(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // No more than can be served are accepted; the others wait in the kernel's queue.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let router = router.clone();
        tokio::spawn(async move {
            connection(stream, router, Some(peer)).await;
            drop(place);
        });
    }
}

/// Serves the clients of an onion service. Returns when the service ends.
pub async fn onion(mut service: OnionService, router: Router) {
    let circuits = Arc::new(Semaphore::new(CIRCUITS));
    let streams = Arc::new(Semaphore::new(CONNECTIONS));
    while let Some(request) = service.requests.next().await {
        let Ok(circuit) = Arc::clone(&circuits).try_acquire_owned() else {
            tracing::debug!("too many circuits: a client is not met");
            continue;
        };
        let (router, streams) = (router.clone(), Arc::clone(&streams));
        tokio::spawn(async move {
            rendezvous(request, router, streams).await;
            drop(circuit);
        });
    }
}

async fn rendezvous(request: RendRequest, router: Router, places: Arc<Semaphore>) {
    let mut streams = match timeout(HEAD_TIMEOUT, request.accept()).await {
        Ok(Ok(streams)) => streams,
        Ok(Err(error)) => return tracing::debug!(error = %error.report(), "a client was not met"),
        Err(_) => return tracing::debug!("a client was not met in time"),
    };
    while let Some(request) = streams.next().await {
        let place = Arc::clone(&places).try_acquire_owned();
        let router = router.clone();
        tokio::spawn(async move {
            if let Err(error) = stream(request, router, place.is_ok()).await {
                tracing::debug!(error = %error.report(), "a stream was not served");
            }
            drop(place);
        });
    }
}

async fn stream(
    request: StreamRequest,
    router: Router,
    room: bool,
) -> Result<(), tor_hsservice::ClientError> {
    let wanted = matches!(request.request(), IncomingStreamRequest::Begin(b) if b.port() == ONION_PORT);
    let refusal = match (wanted, room) {
        (false, _) => Some(EndReason::EXITPOLICY),
        (true, false) => Some(EndReason::RESOURCELIMIT),
        (true, true) => None,
    };
    if let Some(reason) = refusal {
        return request.reject(End::new_with_reason(reason)).await;
    }
    let stream = request.accept(Connected::new_empty()).await?;
    connection(stream, router, None).await;
    Ok(())
}

/// Speaks HTTP with one peer until it is done.
async fn connection<I>(io: I, router: Router, peer: Option<SocketAddr>)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let router = match peer {
        Some(peer) => router.layer(axum::Extension(ConnectInfo(peer))),
        None => router,
    };
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(16 * 1024);
    let serving = http.serve_connection(TokioIo::new(io), TowerToHyperService::new(router));
    // How it ended is the peer's own business.
    let _ended = timeout(CONNECTION_TIMEOUT, serving).await;
}
