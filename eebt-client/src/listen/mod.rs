//! The local side: programs connect, say what they want, and bytes are copied until one side is done.

mod copying;
mod http;
mod socks;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use self::copying::Copying;
use crate::connect::{ConnectError, Connector, Group, Opened};

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
                    // Boxed: its memory is gone once there is a stream, of which a browser holds hundreds.
                    let served = match Box::pin(open(tcp, peer, &connector, handshake_timeout)).await {
                        Ok(Some(copying)) => copying.run(&connector).await.map_err(RequestError::Io),
                        other => other.map(|_| ()),
                    };
                    if let Err(error) = served {
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

/// Reads what a program wants and answers it. Returns what is left to copy, if it is a stream and there is one.
async fn open(
    mut tcp: TcpStream,
    peer: SocketAddr,
    connector: &Connector,
    handshake_timeout: Duration,
) -> Result<Option<Box<Copying>>, RequestError> {
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
    let talk =
        tokio::time::timeout(handshake_timeout, handshake).await.map_err(|_| RequestError::Timeout)??;
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
                    let opened = connector.connect(&group, &host, port).await;
                    let reply = request.reply(opened.as_ref().map(|_| None));
                    answer(tcp, &reply, request.early_data, opened, group, (host, port), connector).await
                }
                Ask::Resolve(host) => {
                    let found = connector.resolve(&group, &host).await;
                    let reply = request.reply(found.as_ref().map(|ips| socks::first_address(ips)));
                    tcp.write_all(&reply).await.map_err(RequestError::Io)?;
                    Ok(None)
                }
                Ask::ResolvePtr(ip) => {
                    let found = connector.resolve_ptr(&group, ip).await;
                    let reply = request.reply(found.as_ref().map(|names| socks::first_name(names)));
                    tcp.write_all(&reply).await.map_err(RequestError::Io)?;
                    Ok(None)
                }
            }
        }
        Talk::Http(request) => {
            let group = group(crate::connect::Protocol::HttpConnect, request.credentials);
            let opened = connector.connect(&group, &request.host, request.port).await;
            let reply = http::reply(opened.as_ref().map(|_| ()));
            let target = (request.host, request.port);
            answer(tcp, reply.as_bytes(), request.early_data, opened, group, target, connector).await
        }
    }
}

enum Talk {
    Socks(Box<socks::Request>),
    Http(http::Request),
}

/// Answers the program.
async fn answer(
    mut tcp: TcpStream,
    reply: &[u8],
    early_data: Vec<u8>,
    opened: Result<Opened, ConnectError>,
    group: Group,
    target: (String, u16),
    connector: &Connector,
) -> Result<Option<Box<Copying>>, RequestError> {
    tcp.write_all(reply).await.map_err(RequestError::Io)?;
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => {
            tracing::info!(%error, "no stream");
            connector.visits().failed(&group, &target.0, error.to_string());
            return Ok(None);
        }
    };
    let way = connector.way(&target.0, opened.circuit.as_ref().map(|(id, _)| *id));
    let visit = connector.visits().begin(&group, &target.0, target.1, way);
    visit.up(early_data.len());
    let undecided = opened.undecided;
    let copying = Box::new(Copying { tcp, early_data, opened, group, on_tor: None, visit });
    if !undecided {
        return Ok(Some(copying));
    }
    copying.settle(target, connector).await.map(Some).map_err(RequestError::Io)
}
