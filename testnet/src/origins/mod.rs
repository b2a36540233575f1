//! Web sites for a private network to visit: one that blocks Tor exits, and all the ways a site can behave.
//!
//! | origin | scheme | what it does |
//! |---|---|---|
//! | `blocking` | http, https | pages answer 403 with a block page to blocked addresses; tools answer everyone |
//! | `open` | http, https | the same, but blocks nobody |
//! | `slow` | http | as `open`, with socket buffers so small that a slow `/slow-sink` is felt at once |
//! | `echo` | tcp | returns every byte |
//! | `reset` | tcp | resets each connection at its first byte, or after 100 ms |
//! | `stall` | tcp | accepts and does nothing, for ever |
//! | `close` | tcp | closes each connection politely |
//!
//! The http origins share their paths; see `http.rs`. Origins run in the background, whatever becomes of the
//! caller's runtime, and stop when [`Origins`] is dropped.

pub mod bulk;
mod hits;
mod http;
mod raw;
mod tls;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::background;
use crate::network::TestNet;
pub use hits::Hit;
use hits::HitLog;

/// Which origins to start, and where.
#[derive(Debug, Clone)]
pub struct OriginsConfig {
    /// The address of `blocking`. The others take the next IPv4 addresses, so that each can have port 80.
    pub listen_ip: IpAddr,
    /// Whom `blocking` blocks: by default 127.0.0.1, where C tor exits on loopback arrive from.
    pub blocked: Vec<IpNet>,
    /// What those meet instead of a page, if anything.
    pub turn_away: Option<TurnAway>,
    /// How late TLS origins begin a handshake, at most: each some other time, and at once when the same ClientHello
    /// comes again.
    pub late_hello: Option<Duration>,
    /// Their ports.
    pub ports: Ports,
    /// Names in the TLS certificate, besides the addresses and the defaults.
    pub names: Vec<String>,
    /// Where `origin-ca.pem` is written; by default a temporary folder.
    pub ca_dir: Option<PathBuf>,
}

/// How a site treats the connections of those whom it blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnAway {
    /// It resets them at their first byte, or after 100 ms.
    Reset,
    /// It closes them.
    Close,
    /// It takes them and does nothing.
    Stall,
    /// It answers what they say first with the TLS alert `access_denied` (RFC 8446, section 6.2).
    Alert,
}

/// The ports of all origins; 0 takes any free one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// Of http origins.
    pub http: u16,
    /// Of https origins.
    pub https: u16,
    /// Of origins that speak no HTTP.
    pub raw: u16,
}

impl Ports {
    /// Any free ports.
    pub const EPHEMERAL: Self = Self { http: 0, https: 0, raw: 0 };
    /// 80 and 443, as exit policies like them; 80 for the raw origins. Needs the right to bind low ports.
    pub const WEB: Self = Self { http: 80, https: 443, raw: 80 };
}

impl Default for OriginsConfig {
    fn default() -> Self {
        Self {
            listen_ip: Ipv4Addr::LOCALHOST.into(),
            blocked: vec![IpAddr::from(Ipv4Addr::LOCALHOST).into()],
            turn_away: None,
            late_hello: None,
            ports: Ports::EPHEMERAL,
            names: Vec::new(),
            ca_dir: None,
        }
    }
}

impl OriginsConfig {
    /// Defaults for a network: its addresses, its exits blocked, the certificate in its folder.
    pub fn on_network(net: &TestNet) -> Self {
        Self {
            listen_ip: net.origin_ip(),
            blocked: vec![net.exit_egress_ip().into()],
            ca_dir: Some(net.dir().to_owned()),
            ..Self::default()
        }
    }
}

/// Why origins did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OriginsError {
    /// An address or port is taken or not allowed.
    #[error("the origin `{name}` cannot listen on {addr}")]
    Listen {
        /// Which origin.
        name: &'static str,
        /// Where.
        addr: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The certificates could not be made.
    #[error("cannot make certificates for the TLS origins")]
    Certificate(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The authority's certificate could not be written.
    #[error("cannot write {}", path.display())]
    CaFile {
        /// Where to.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The runtime that carries origins could not start.
    #[error("cannot start background threads")]
    Background(#[source] io::Error),
}

impl OriginsError {
    /// True when the port was the problem: it needs more rights than this process has, or is taken.
    pub fn is_port_refused(&self) -> bool {
        let Self::Listen { source, .. } = self else {
            return false;
        };
        matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::AddrInUse)
    }
}

/// One origin: where it is and who came.
#[derive(Debug)]
pub struct Origin {
    name: &'static str,
    scheme: &'static str,
    addr: SocketAddr,
    hits: HitLog,
}

impl Origin {
    /// Its name in the table above, with `-tls` for https.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The URL of a path, which begins with a slash.
    pub fn url(&self, path: &str) -> String {
        match (self.scheme, self.addr.port()) {
            ("http", 80) | ("https", 443) => {
                let host = match self.addr.ip() {
                    IpAddr::V4(ip) => ip.to_string(),
                    IpAddr::V6(ip) => format!("[{ip}]"),
                };
                format!("{}://{host}{path}", self.scheme)
            }
            _ => format!("{}://{}{path}", self.scheme, self.addr),
        }
    }

    /// Requests so far (connections, for raw origins), oldest first.
    pub fn hits(&self) -> Vec<Hit> {
        self.hits.all()
    }

    /// Who came last.
    pub fn last_peer_ip(&self) -> Option<IpAddr> {
        self.hits.last().map(|hit| hit.peer_ip)
    }

    /// Forgets all hits.
    pub fn clear_hits(&self) {
        self.hits.clear();
    }
}

/// All origins. They stop when this is dropped.
#[derive(Debug)]
pub struct Origins {
    all: [Origin; 9],
    ca_file: PathBuf,
    _temporary: Option<TempDir>,
    _stop: DropGuard,
}

/// What one origin does with its connections.
enum Kind {
    Http { blocks: bool, tls: bool, small_buffers: bool },
    Raw(raw::Behaviour),
}

/// Name, what it does, and how many addresses after `listen_ip`. The order is that of `Origins::all`.
const ORIGINS: [(&str, Kind, u8); 9] = [
    ("blocking", Kind::Http { blocks: true, tls: false, small_buffers: false }, 0),
    ("blocking-tls", Kind::Http { blocks: true, tls: true, small_buffers: false }, 0),
    ("open", Kind::Http { blocks: false, tls: false, small_buffers: false }, 1),
    ("open-tls", Kind::Http { blocks: false, tls: true, small_buffers: false }, 1),
    ("slow", Kind::Http { blocks: false, tls: false, small_buffers: true }, 2),
    ("echo", Kind::Raw(raw::Behaviour::Echo), 3),
    ("reset", Kind::Raw(raw::Behaviour::Reset), 4),
    ("stall", Kind::Raw(raw::Behaviour::Stall), 5),
    ("close", Kind::Raw(raw::Behaviour::Close), 6),
];

impl Origins {
    /// Starts all origins.
    ///
    /// # Errors
    /// When one cannot listen, or certificates cannot be made or written.
    pub async fn start(config: OriginsConfig) -> Result<Self, OriginsError> {
        let runtime = background::runtime().map_err(OriginsError::Background)?;
        let addresses: Vec<IpAddr> = (0..=6).map(|n| nth_ip(config.listen_ip, n)).collect();
        let certificates = tls::Certificates::make(&config.names, &addresses)?;
        let (ca_file, temporary) = write_ca(config.ca_dir.as_deref(), &certificates.ca_pem)?;
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard(); // on an early return, what has started ends

        let mut all = Vec::new();
        let _inside = runtime.enter(); // listeners belong to the runtime they are made in
        for (name, kind, offset) in ORIGINS {
            let (scheme, port) = match kind {
                Kind::Http { tls: false, .. } => ("http", config.ports.http),
                Kind::Http { tls: true, .. } => ("https", config.ports.https),
                Kind::Raw(_) => ("tcp", config.ports.raw),
            };
            let wanted = SocketAddr::new(nth_ip(config.listen_ip, offset), port);
            let small = matches!(kind, Kind::Http { small_buffers: true, .. });
            let (listener, addr) = listen(wanted, small).map_err(|source| OriginsError::Listen {
                name,
                addr: wanted,
                source,
            })?;
            let hits = HitLog::default();
            match kind {
                Kind::Http { blocks, tls, small_buffers } => {
                    let site = http::Site {
                        blocked: if blocks { config.blocked.clone() } else { Vec::new() },
                        turn_away: config.turn_away.map(raw::Behaviour::from),
                        late_hello: config.late_hello,
                        asked: std::sync::Mutex::default(),
                        hits: hits.clone(),
                    };
                    let tls = tls.then(|| certificates.acceptor.clone());
                    runtime.spawn(http::serve(listener, Arc::new(site), tls, small_buffers, stop.clone()));
                }
                Kind::Raw(behaviour) => {
                    runtime.spawn(raw::serve(listener, behaviour, hits.clone(), stop.clone()));
                }
            }
            all.push(Origin { name, scheme, addr, hits });
        }
        let all = all.try_into().map_err(|_| OriginsError::Background(io::ErrorKind::Other.into()))?;
        Ok(Self { all, ca_file, _temporary: temporary, _stop: guard })
    }

    /// Every origin.
    pub fn all(&self) -> &[Origin] {
        &self.all
    }

    /// The http origin that refuses Tor's exits.
    pub fn blocking_tor_exits(&self) -> &Origin {
        &self.all[0]
    }

    /// The same over TLS.
    pub fn blocking_tor_exits_tls(&self) -> &Origin {
        &self.all[1]
    }

    /// The http origin that refuses nobody.
    pub fn open(&self) -> &Origin {
        &self.all[2]
    }

    /// The same over TLS.
    pub fn open_tls(&self) -> &Origin {
        &self.all[3]
    }

    /// An http origin with tiny socket buffers, for `/slow-sink`.
    pub fn slow(&self) -> &Origin {
        &self.all[4]
    }

    /// Returns every byte.
    pub fn echo(&self) -> &Origin {
        &self.all[5]
    }

    /// Resets each connection at its first byte, or after 100 ms.
    pub fn reset(&self) -> &Origin {
        &self.all[6]
    }

    /// Accepts and does nothing.
    pub fn stall(&self) -> &Origin {
        &self.all[7]
    }

    /// Closes each connection.
    pub fn close(&self) -> &Origin {
        &self.all[8]
    }

    /// The authority that signed the TLS origins' certificate, in PEM: for `curl --cacert`.
    pub fn ca_file(&self) -> &Path {
        &self.ca_file
    }
}

/// The n-th address after this one; IPv6 origins share one address.
fn nth_ip(ip: IpAddr, n: u8) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits().wrapping_add(n.into())).into(),
        IpAddr::V6(_) => ip,
    }
}

/// What the kernel holds back for a slow reader, at least: twice this.
const SMALL_BUFFER: u32 = 8 << 10;

fn listen(addr: SocketAddr, small_buffers: bool) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = match addr {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    if small_buffers {
        socket.set_recv_buffer_size(SMALL_BUFFER)?; // accepted connections inherit it
    }
    socket.bind(addr)?;
    let listener = socket.listen(1024)?;
    let addr = listener.local_addr()?;
    Ok((listener, addr))
}

fn write_ca(dir: Option<&Path>, pem: &str) -> Result<(PathBuf, Option<TempDir>), OriginsError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| OriginsError::CaFile { path, source }
    };
    let (dir, temporary) = match dir {
        Some(dir) => (dir.to_owned(), None),
        None => {
            let made = tempfile::Builder::new().prefix("eebt-origins-").tempdir();
            let made = made.map_err(failed(&std::env::temp_dir()))?;
            (made.path().to_owned(), Some(made))
        }
    };
    let path = dir.join("origin-ca.pem");
    std::fs::write(&path, pem).map_err(failed(&path))?;
    Ok((path, temporary))
}
