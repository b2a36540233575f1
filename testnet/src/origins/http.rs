//! The paths that every http origin has, and the loop that serves them.
//!
//! | path | answer |
//! |---|---|
//! | any not below | a small page; from `blocking`, 403 and a block page for blocked addresses |
//! | `/peer` | the peer's address |
//! | `/bulk/BYTES` | that many bytes of `bulk`, with their checksum in `x-sha256` |
//! | `/sink` (PUT, POST) | reads everything: `{"bytes": .., "sha256": "..", "seconds": from the first bytes to the last}` |
//! | `/slow-sink?rate=BYTES_PER_SEC` | the same, slowly |
//! | `/status/CODE` | that status |
//! | `/visit?image=URL&..` | a page for browsers: loads these pictures, and says how that went by asking for `/report?..` (`visit.html`) |
//! | `/challenge` | a page; from `blocking`, for blocked addresses a challenge as Cloudflare's |
//! | `/login` (POST) | a cookie that is good at the address that it was given to |
//! | `/account` | 200 for who has one, else 403 |
//! | `/image` | a picture; from `blocking`, 403 and a block page for blocked addresses |
//! | `/socket` | a WebSocket that returns every message |
//! | `/protocol` | the version of HTTP |
//! | `/lines/A,B,C` | these texts, one a line |
//! | `/refuse/CODE` | a page; from `blocking`, for blocked addresses that status, with words that a refusal has |
//! | `/late-once/MILLISECONDS?ANY` | the peer's address: to who asks for this for the first time, so much later; to the next at once |
//! | `/late/MILLISECONDS` | the peer's address, so much later, 60 s at most |
//! | `/hits` | who came, as JSON, oldest first |

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, Version, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{any, get, post, put};
use axum::{Extension, Router};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use futures::{StreamExt, stream};
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ipnet::IpNet;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::hits::HitLog;
use super::{bulk, raw};

/// What one http origin knows.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) blocked: Vec<IpNet>,
    /// What they meet instead of the block page.
    pub(super) turn_away: Option<raw::Behaviour>,
    /// How late a TLS handshake begins, at most, when its ClientHello is seen for the first time.
    pub(super) late_hello: Option<Duration>,
    /// What was asked for that is late once, and the random bytes of ClientHellos.
    pub(super) asked: Mutex<HashSet<Vec<u8>>>,
    pub(super) hits: HitLog,
}

/// Where the random bytes of a ClientHello are, behind the heads of record and message and a version (RFC 8446,
/// section 4.1.2).
const HELLO_RANDOM: Range<usize> = 11..43;

impl Site {
    /// Waits before a handshake, where that should be late. The same ClientHello, said again, meets no delay.
    async fn be_late(&self, stream: &TcpStream) {
        let Some(longest) = self.late_hello else { return };
        let mut hello = [0; HELLO_RANDOM.end];
        while !matches!(stream.peek(&mut hello).await, Ok(0 | 43..) | Err(_)) {
            sleep(Duration::from_millis(5)).await;
        }
        let random = &hello[HELLO_RANDOM];
        if self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(random.to_vec()) {
            sleep(longest.mul_f64(f64::from(random[0]) / 256.0)).await;
        }
    }

    fn blocks(&self, ip: IpAddr) -> bool {
        self.blocked.iter().any(|net| net.contains(&ip))
    }
}

/// The peer of a connection, known to each of its requests.
#[derive(Debug, Clone, Copy)]
struct Peer(IpAddr);

/// Accepts until it is stopped.
pub(super) async fn serve(
    listener: TcpListener,
    site: Arc<Site>,
    tls: Option<TlsAcceptor>,
    small_buffers: bool,
    stop: CancellationToken,
) {
    let router = router(site.clone());
    let accepting = async {
        loop {
            let Ok((stream, peer)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await; // out of file descriptors, most likely
                continue;
            };
            let ip = peer.ip().to_canonical();
            if let Some(behaviour) = site.turn_away.filter(|_| site.blocks(ip)) {
                site.hits.add(ip, "CONNECT", "");
                let turned_away = async move {
                    let _ = raw::behave(stream, behaviour).await; // the peer has gone
                };
                tokio::spawn(stop.clone().run_until_cancelled_owned(turned_away));
                continue;
            }
            let router = router.clone().layer(Extension(Peer(ip)));
            let (site, tls) = (Arc::clone(&site), tls.clone());
            let connection = async move {
                if tls.is_some() {
                    site.be_late(&stream).await;
                }
                connection(stream, router, tls, small_buffers).await;
            };
            tokio::spawn(stop.clone().run_until_cancelled_owned(connection));
        }
    };
    stop.run_until_cancelled(accepting).await;
}

async fn connection(stream: TcpStream, router: Router, tls: Option<TlsAcceptor>, small_buffers: bool) {
    let _ = stream.set_nodelay(true);
    match tls {
        None => requests(stream, router, small_buffers).await,
        Some(tls) => {
            if let Ok(Ok(stream)) = timeout(Duration::from_secs(30), tls.accept(stream)).await {
                if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                    let http = http2::Builder::new(TokioExecutor::new());
                    let service = TowerToHyperService::new(router);
                    let _ = http.serve_connection(TokioIo::new(stream), service).await; // as below
                } else {
                    requests(stream, router, small_buffers).await;
                }
            }
        }
    }
}

async fn requests<S>(stream: S, router: Router, small_buffers: bool)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).half_close(true);
    if small_buffers {
        http.max_buf_size(8 << 10);
    }
    // An error here is a client that went away.
    let _ =
        http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).with_upgrades().await;
}

fn router(site: Arc<Site>) -> Router {
    Router::new()
        .route("/peer", get(async |Extension(Peer(ip)): Extension<Peer>| ip.to_string()))
        .route("/bulk/{bytes}", get(bulk_body))
        .route("/sink", put(sink).post(sink).options(may_sink))
        .route("/slow-sink", put(slow_sink).post(slow_sink))
        .route("/visit", get(async || Html(include_str!("visit.html"))))
        .route("/challenge", get(challenge))
        .route("/login", post(login))
        .route("/account", get(account))
        .route("/image", get(image))
        .route("/socket", any(async |upgrade: WebSocketUpgrade| upgrade.on_upgrade(return_messages)))
        .route("/protocol", get(async |version: Version| (ANY_ORIGIN, format!("{version:?}"))))
        .route("/lines/{texts}", get(async |Path(texts): Path<String>| texts.replace(',', "\n")))
        .route("/late/{milliseconds}", get(late))
        .route("/late-once/{milliseconds}", get(late_once))
        .route("/refuse/{code}", get(refuse))
        .route("/status/{code}", get(status).put(status).post(status))
        .fallback(page)
        .layer(middleware::from_fn_with_state(site.clone(), remember))
        .route("/hits", get(hits))
        .with_state(site)
}

async fn remember(
    State(site): State<Arc<Site>>,
    Extension(Peer(ip)): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    site.hits.add(ip, request.method().as_str(), path);
    next.run(request).await
}

/// Lets pages of other origins read an answer.
const ANY_ORIGIN: [(HeaderName, &str); 1] = [(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")];

async fn image(site: State<Arc<Site>>, peer: Extension<Peer>) -> Response {
    if site.blocks(peer.0.0) {
        return page(site, peer).await;
    }
    let picture = r#"<svg xmlns="http://www.w3.org/2000/svg" width="16" height="16"><rect width="16" height="16"/></svg>"#;
    ([(header::CONTENT_TYPE, "image/svg+xml")], picture).into_response()
}

async fn challenge(site: State<Arc<Site>>, peer: Extension<Peer>) -> Response {
    if !site.blocks(peer.0.0) {
        return page(site, peer).await;
    }
    let head = [("server", "cloudflare"), ("cf-mitigated", "challenge")];
    (StatusCode::FORBIDDEN, head, Html("<title>Just a moment...</title>\n")).into_response()
}

async fn login(site: State<Arc<Site>>, peer: Extension<Peer>) -> Response {
    let refused = site.blocks(peer.0.0);
    let mut response = page(site, peer).await;
    if !refused && let Ok(cookie) = HeaderValue::from_str(&format!("session={}", peer.0.0)) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

async fn account(headers: HeaderMap, Extension(Peer(ip)): Extension<Peer>) -> Response {
    match headers.get(header::COOKIE) {
        Some(cookie) if *cookie == format!("session={ip}") => "your account\n".into_response(),
        _ => (StatusCode::FORBIDDEN, "log in first, or again: your address has changed\n").into_response(),
    }
}

async fn return_messages(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if matches!(message, Message::Text(_) | Message::Binary(_)) && socket.send(message).await.is_err() {
            return;
        }
    }
}

async fn page(State(site): State<Arc<Site>>, Extension(Peer(ip)): Extension<Peer>) -> Response {
    let (status, title, text) = if site.blocks(ip) {
        (StatusCode::FORBIDDEN, "Access denied", "Your address is on a list of Tor exit relays.")
    } else {
        (StatusCode::OK, "Welcome", "This site is happy to see you.")
    };
    let html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><title>{title}</title></head>\n\
         <body><h1>{title}</h1><p>{text}</p><p>Your address: {ip}</p></body></html>\n"
    );
    (status, Html(html)).into_response()
}

async fn bulk_body(Path(len): Path<u64>) -> Response {
    let Ok(sum) = tokio::task::spawn_blocking(move || bulk::sha256(len)).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let pieces = stream::unfold(0, move |at: u64| async move {
        let n = usize::try_from((len - at).min(64 << 10)).unwrap_or_default();
        let mut piece = vec![0; n];
        bulk::fill(at, &mut piece);
        let piece: Result<Bytes, std::io::Error> = Ok(piece.into());
        (n > 0).then_some((piece, at + n as u64))
    });
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, len.into());
    if let Ok(sum) = HeaderValue::from_str(&sum) {
        headers.insert("x-sha256", sum);
    }
    (headers, Body::from_stream(pieces)).into_response()
}

async fn sink(body: Body) -> Response {
    (ANY_ORIGIN, swallow(body, None).await).into_response()
}

/// What a browser asks before it sends something from a page of another origin.
async fn may_sink() -> Response {
    (ANY_ORIGIN, [(header::ACCESS_CONTROL_ALLOW_METHODS, "PUT, POST")], StatusCode::NO_CONTENT)
        .into_response()
}

async fn refuse(site: State<Arc<Site>>, peer: Extension<Peer>, Path(code): Path<u16>) -> Response {
    let status =
        StatusCode::from_u16(code).ok().filter(|status| status.is_client_error() || status.is_server_error());
    match status {
        None => (StatusCode::BAD_REQUEST, "a status code from 400 to 599\n").into_response(),
        Some(status) if site.blocks(peer.0.0) => (status, page(site, peer).await.into_body()).into_response(),
        Some(_) => page(site, peer).await,
    }
}

async fn slow_sink(uri: Uri, body: Body) -> Response {
    let query = uri.query().unwrap_or_default();
    let rate = query.split('&').find_map(|pair| pair.strip_prefix("rate="));
    match rate.unwrap_or("50000").parse() {
        Ok(rate @ 1..) => swallow(body, Some(rate)).await,
        _ => (StatusCode::BAD_REQUEST, "rate: bytes per second, a whole number above 0\n").into_response(),
    }
}

/// Reads a body to its end, no faster than `rate` bytes per second.
async fn swallow(body: Body, rate: Option<u64>) -> Response {
    let (mut bytes, mut hash) = (0u64, Sha256::new());
    let mut pieces = body.into_data_stream().peekable();
    std::pin::Pin::new(&mut pieces).peek().await;
    let start = Instant::now();
    while let Some(piece) = pieces.next().await {
        let Ok(piece) = piece else {
            return StatusCode::BAD_REQUEST.into_response(); // it broke off; most likely nobody reads this
        };
        bytes += piece.len() as u64;
        hash.update(&piece);
        if let Some(rate) = rate {
            sleep_until(start + Duration::from_micros(bytes.saturating_mul(1_000_000) / rate)).await;
        }
    }
    let sum = HEXLOWER.encode(&hash.finalize());
    let seconds = start.elapsed().as_secs_f64();
    json(&serde_json::json!({ "bytes": bytes, "sha256": sum, "seconds": seconds }))
}

async fn status(Path(code): Path<u16>) -> Response {
    match StatusCode::from_u16(code) {
        // 1xx is no final answer, and hyper refuses to send it as one.
        Ok(status) if code >= 200 => status.into_response(),
        _ => (StatusCode::BAD_REQUEST, "a status code from 200 to 999\n").into_response(),
    }
}

async fn late(Path(milliseconds): Path<u64>, Extension(Peer(ip)): Extension<Peer>) -> String {
    sleep(Duration::from_millis(milliseconds.min(60_000))).await;
    ip.to_string()
}

async fn late_once(
    State(site): State<Arc<Site>>,
    Path(milliseconds): Path<u64>,
    uri: Uri,
    peer: Extension<Peer>,
) -> String {
    let asked = uri.path_and_query().map_or_else(String::new, ToString::to_string);
    let is_first = site.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(asked.into_bytes());
    late(Path(if is_first { milliseconds } else { 0 }), peer).await
}

async fn hits(State(site): State<Arc<Site>>) -> Response {
    let hits = site.hits.all();
    let hits: Vec<_> = hits
        .iter()
        .map(|hit| {
            let at = hit.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            serde_json::json!({ "peer_ip": hit.peer_ip, "method": hit.method, "path": hit.path, "at": at })
        })
        .collect();
    json(&hits.into())
}

fn json(value: &serde_json::Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], format!("{value}\n")).into_response()
}
