//! The local side: programs connect, say what they want, and bytes are copied until one side is done.

mod http;
mod socks;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use eebt_tor::{PumpError, pump};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::io::InspectReader;

use crate::connect::{ConnectError, Connector, Group, Opened};
use crate::visits::Visit;

/// How long an optimistic stream may stay unconnected before its circuit is given up: well above the
/// time that an exit bridge gives a target to answer.
const UNCONNECTED: Duration = Duration::from_secs(45);

/// How long nothing moves on a stream before it counts as quiet.
const QUIET: Duration = Duration::from_secs(1);

/// What a program asks for.
pub(crate) enum Ask {
    /// A stream.
    Connect(String, u16),
    /// Addresses of a name (Tor's extension of SOCKS).
    Resolve(String),
    /// Names of an address (likewise).
    ResolvePtr(IpAddr),
}

/// Why a program's request can't be understood. Carries nothing of what it said.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// It is neither protocol, or breaks it.
    #[error("the request is malformed")]
    Malformed,
    /// It said too little in the time it had.
    #[error("no request in time")]
    Timeout,
    /// The connection broke.
    #[error("the connection to the program broke")]
    Io(#[source] std::io::Error),
    /// Understood, answered, and not for us.
    #[error("{0}")]
    Unsupported(&'static str),
}

/// Serves one port until the listener fails for good, which it does not.
pub(crate) async fn serve(
    listener: TcpListener,
    connector: Arc<Connector>,
    slots: Arc<Semaphore>,
    handshake_timeout: Duration,
) {
    loop {
        // Wait for a slot before taking a connection: programs then wait in the kernel's queue.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((tcp, peer)) => {
                let connector = Arc::clone(&connector);
                tokio::spawn(async move {
                    if let Err(error) = serve_program(tcp, peer, &connector, handshake_timeout).await {
                        tracing::debug!(%error, "a program's request failed");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// What takes long is boxed: its memory is gone once there is a stream, of which a browser holds hundreds.
async fn serve_program(
    mut tcp: TcpStream,
    peer: SocketAddr,
    connector: &Connector,
    handshake_timeout: Duration,
) -> Result<(), RequestError> {
    tcp.set_nodelay(true).map_err(RequestError::Io)?;
    let listener = tcp.local_addr().map_err(RequestError::Io)?;
    let group = |protocol, credentials| Group { listener, protocol, peer: peer.ip(), credentials };

    let handshake = async {
        let mut first = [0];
        tcp.peek(&mut first).await.map_err(RequestError::Io)?;
        match first[0] {
            4 | 5 => Ok(Talk::Socks(Box::new(socks::read_request(&mut tcp).await?))),
            b'A'..=b'Z' | b'a'..=b'z' => Ok(Talk::Http(http::read_request(&mut tcp).await?)),
            _ => Err(RequestError::Malformed),
        }
    };
    let talk = tokio::time::timeout(handshake_timeout, Box::pin(handshake))
        .await
        .map_err(|_| RequestError::Timeout)??;
    match talk {
        Talk::Socks(request) => {
            let group = group(request.protocol(), request.credentials());
            let ask = match request.ask() {
                Ok(ask) => ask,
                Err(error) => {
                    tcp.write_all(&request.decline()).await.map_err(RequestError::Io)?;
                    return Err(error);
                }
            };
            match ask {
                Ask::Connect(host, port) => {
                    let opened = Box::pin(connector.connect(&group, &host, port)).await;
                    let reply = request.reply(opened.as_ref().map(|_| None));
                    let target = (host.as_str(), port);
                    finish(tcp, &reply, request.early_data, opened, &group, target, connector).await
                }
                Ask::Resolve(host) => {
                    let found = Box::pin(connector.resolve(&group, &host)).await;
                    let reply = request.reply(found.as_ref().map(|ips| socks::first_address(ips)));
                    tcp.write_all(&reply).await.map_err(RequestError::Io)
                }
                Ask::ResolvePtr(ip) => {
                    let found = Box::pin(connector.resolve_ptr(&group, ip)).await;
                    let reply = request.reply(found.as_ref().map(|names| socks::first_name(names)));
                    tcp.write_all(&reply).await.map_err(RequestError::Io)
                }
            }
        }
        Talk::Http(request) => {
            let group = group(crate::connect::Protocol::HttpConnect, request.credentials);
            let opened = Box::pin(connector.connect(&group, &request.host, request.port)).await;
            let reply = http::reply(opened.as_ref().map(|_| ()));
            let target = (request.host.as_str(), request.port);
            finish(tcp, reply.as_bytes(), request.early_data, opened, &group, target, connector).await
        }
    }
}

enum Talk {
    Socks(Box<socks::Request>),
    Http(http::Request),
}

/// Answers the program, and copies if there is something to copy.
async fn finish(
    mut tcp: TcpStream,
    reply: &[u8],
    early_data: Vec<u8>,
    opened: Result<Opened, ConnectError>,
    group: &Group,
    (host, port): (&str, u16),
    connector: &Connector,
) -> Result<(), RequestError> {
    tcp.write_all(reply).await.map_err(RequestError::Io)?;
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => {
            tracing::info!(%error, "no stream");
            connector.visits().failed(group, host, error.to_string());
            return Ok(());
        }
    };
    let way = connector.way(host, opened.circuit.as_ref().map(|(id, _)| *id));
    let visit = connector.visits().begin(group, host, port, way);
    visit.up(early_data.len());
    let copied = if opened.undecided {
        settle_and_copy(tcp, early_data, opened, group, (host, port), connector, visit).await
    } else {
        copy(tcp, &early_data, opened, group, None, connector, &visit).await
    };
    copied.map_err(RequestError::Io)
}

/// Copies, once it is clear which way.
async fn settle_and_copy(
    mut tcp: TcpStream,
    early_data: Vec<u8>,
    opened: Opened,
    group: &Group,
    target: (&str, u16),
    connector: &Connector,
    mut visit: Visit,
) -> std::io::Result<()> {
    let settled = {
        let mut program = InspectReader::new(&mut tcp, |bytes| visit.up(bytes.len()));
        let settling = connector.settle(group, target.0, target.1, &mut program, opened, early_data);
        tokio::select! {
            settled = Box::pin(settling) => Some(settled?),
            () = visit.cut() => None,
        }
    };
    let Some(settled) = settled else {
        tcp.set_zero_linger()?;
        return Err(std::io::ErrorKind::ConnectionAborted.into());
    };
    if let Some((id, _)) = &settled.exit_bridge {
        visit.goes(connector.way(target.0, Some(*id)));
    }
    visit.down(settled.got.len());
    tcp.write_all(&settled.got).await?;
    if let Some(error) = settled.broke {
        tcp.set_zero_linger()?;
        return Err(error);
    }
    let stays = settled.exit_bridge.is_none().then_some(target);
    let opened = Opened { stream: settled.way, circuit: settled.exit_bridge, undecided: false };
    copy(tcp, &[], opened, group, stays, connector, &visit).await
}

/// Copies both ways. Tor has no half-closed streams: the end of either direction is the end of both.
/// A stream over Tor to a target `on_tor` ends once it is quiet, when that turns out to turn Tor away: programs keep
/// streams for their next request, which shall go to an exit bridge.
/// A stream that breaks is reset towards the program, so that half a download never looks whole.
async fn copy(
    mut tcp: TcpStream,
    early_data: &[u8],
    opened: Opened,
    group: &Group,
    on_tor: Option<(&str, u16)>,
    connector: &Connector,
    visit: &Visit,
) -> std::io::Result<()> {
    let Opened { stream, circuit, .. } = opened;
    let moved = AtomicBool::new(false);
    let ctrl = stream.client_stream_ctrl().cloned();
    let (mut tor_read, mut tor_write) = stream.split();
    let result = {
        let (mut program_read, mut program_write) = tcp.split();
        let up = async {
            let sent = async {
                let early = tokio::io::AsyncWriteExt::write_all(&mut tor_write, early_data).await;
                early.map_err(PumpError::Writer)?;
                let count = |bytes| {
                    visit.up(bytes);
                    moved.store(true, Ordering::Relaxed);
                    Duration::ZERO
                };
                pump(&mut program_read, &mut tor_write, count).await
            };
            // When the other end takes no more, what it said before that still has to come down.
            match sent.await {
                Err(PumpError::Writer(_)) => std::future::pending().await,
                done => Ok(done?),
            }
        };
        let answered = AtomicBool::new(false);
        let down = pump(&mut tor_read, &mut program_write, |bytes| {
            visit.down(bytes);
            moved.store(true, Ordering::Relaxed);
            if let (Some((id, _)), false) = (&circuit, answered.swap(true, Ordering::Relaxed)) {
                connector.note_answer(*id);
            }
            Duration::ZERO
        });
        let unconnected = async {
            tokio::time::sleep(UNCONNECTED).await;
            match (&circuit, &ctrl) {
                (Some((id, circuit)), Some(ctrl)) if !ctrl.is_connected() => {
                    connector.note_silence(group, *id, circuit).await;
                }
                _ => std::future::pending().await,
            }
        };
        let left = async {
            let Some((host, port)) = on_tor else { return std::future::pending().await };
            connector.verdicts().until_refused(host, port).await;
            while moved.swap(false, Ordering::Relaxed) {
                tokio::time::sleep(QUIET).await;
            }
        };
        tokio::select! {
            result = up => result,
            result = down => {
                let result = result.map_err(std::io::Error::from);
                if let (Err(error), Some((id, circuit))) = (&result, &circuit) {
                    let answered = answered.load(Ordering::Relaxed);
                    if connector.note_break(group, *id, circuit, error, answered).await {
                        visit.lost();
                    }
                }
                result
            }
            () = unconnected => Err(std::io::ErrorKind::TimedOut.into()),
            () = left => Ok(()),
            () = visit.cut() => Err(std::io::ErrorKind::ConnectionAborted.into()),
        }
    };
    if result.is_err() {
        tcp.set_zero_linger()?;
    }
    result
}
