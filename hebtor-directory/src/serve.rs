//! How requests arrive: over the onion service, or from loopback. Both end in the same router.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
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

/// What one connection may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Until it has said what it wants.
    pub head: Duration,
    /// In all.
    pub connection: Duration,
    /// How many of them one address may have at once; any number without it.
    pub per_address: Option<usize>,
}

/// Of those who come over Tor or from this machine: one address says nothing of them.
pub const CLIENTS: Bounds =
    Bounds { head: Duration::from_secs(20), connection: Duration::from_secs(120), per_address: None };

/// Of those who come to the echo, from anywhere: exit bridges that are tested, one visit each.
pub const VISITORS: Bounds =
    Bounds { head: Duration::from_secs(5), connection: Duration::from_secs(30), per_address: Some(16) };

/// Connections by whom they are from.
#[derive(Clone, Default)]
struct Peers(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A place that one connection has.
struct PeersPlace {
    peers: Peers,
    who: IpAddr,
}

impl Peers {
    /// A place for one more from this address, if it has fewer than `most`.
    fn place(&self, from: IpAddr, most: usize) -> Option<PeersPlace> {
        let who = neighbourhood(from);
        let mut counts = self.counts();
        let count = counts.entry(who).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(PeersPlace { peers: self.clone(), who })
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PeersPlace {
    fn drop(&mut self) {
        let mut counts = self.peers.counts();
        if let Some(count) = counts.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.who);
            }
        }
    }
}

/// What one person has of addresses: an IPv4 address, or an IPv6 network of 64 bits.
pub(crate) fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => std::net::Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

/// Serves whoever connects to `listener`. Handlers find the peer's address as a [`ConnectInfo`]. Never
/// returns.
pub async fn tcp(listener: TcpListener, router: Router, bounds: Bounds) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let peers = Peers::default();
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
        let of_peer = match bounds.per_address.map(|most| peers.place(peer.ip(), most)) {
            Some(None) => continue, // The connection ends.
            Some(place) => place,
            None => None,
        };
        let router = router.clone();
        tokio::spawn(async move {
            connection(stream, router, Some(peer), bounds).await;
            drop((place, of_peer));
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
    let mut streams = match timeout(CLIENTS.head, request.accept()).await {
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
    connection(stream, router, None, CLIENTS).await;
    Ok(())
}

/// Speaks HTTP with one peer until it is done.
async fn connection<I>(io: I, router: Router, peer: Option<SocketAddr>, bounds: Bounds)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let router = match peer {
        Some(peer) => router.layer(axum::Extension(ConnectInfo(peer))),
        None => router,
    };
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(bounds.head).max_buf_size(16 * 1024);
    let serving = http.serve_connection(TokioIo::new(io), TowerToHyperService::new(router));
    // How it ended is the peer's own business.
    let _ended = timeout(bounds.connection, serving).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::echo::{Echo, PAGE_LEN};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpSocket, TcpStream};

    async fn connect(from: [u8; 4], to: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        socket.connect(to).await.unwrap()
    }

    async fn visit(from: [u8; 4], to: SocketAddr, path: &str) -> usize {
        let mut stream = connect(from, to).await;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut page = Vec::new();
        let _broken_off = stream.read_to_end(&mut page).await;
        page.len()
    }

    #[tokio::test]
    async fn who_takes_all_places_of_the_echo_keeps_nobody_else_out() {
        eebt_tor::raise_file_limit();
        let (echo, listener) = (Echo::default(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let addr = listener.local_addr().unwrap();
        let serving = tokio::spawn(tcp(listener, echo.router(), VISITORS));
        let mut idle = Vec::new();
        for _ in 0..1100 {
            idle.push(connect([127, 0, 0, 9], addr).await);
        }
        let visited = async {
            let expected = echo.expect();
            assert!(visit([127, 0, 0, 8], addr, &expected.path).await > PAGE_LEN);
            // While those who are idle have all places that they can have.
            let expected = echo.expect();
            assert_eq!(visit([127, 0, 0, 9], addr, &expected.path).await, 0);
        };
        timeout(Duration::from_secs(4), visited).await.expect("at once");
        // And they don't have them for long.
        tokio::time::sleep(VISITORS.head + Duration::from_secs(1)).await;
        let expected = echo.expect();
        assert!(visit([127, 0, 0, 9], addr, &expected.path).await > PAGE_LEN);
        serving.abort();
    }

    #[test]
    fn a_place_is_free_again_and_the_next_house_has_its_own() {
        let peers = Peers::default();
        let take = |from: &str| peers.place(from.parse().unwrap(), 2);
        let (one, two) = (take("203.0.113.1"), take("::ffff:203.0.113.1"));
        assert!(one.is_some() && two.is_some() && take("203.0.113.1").is_none());
        assert!(take("203.0.113.2").is_some());
        drop(one);
        assert!(take("203.0.113.1").is_some());
        let home = [take("2001:db8::1"), take("2001:db8::2")];
        assert!(take("2001:db8::3:0:0:0").is_none() && take("2001:db8:0:1::1").is_some());
        drop(two);
        drop(home);
        assert!(peers.counts().is_empty(), "nothing is left of those who went");
    }
}
