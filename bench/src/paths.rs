//! Every way to a target that is measured, all of them on one network.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use eebt_proto::BridgeLine;
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use testnet::{DelayLink, Scheduler, TestNet, UnlistedRelay, delay_link};
use tests::{Bridge, Client, Lab, Running, relay_line};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_rustls::TlsConnector;
use tokio_socks::tcp::Socks5Stream;

use crate::visit::Stream;

/// A network, the ways to a target on it, and the programs that make them.
pub struct Paths {
    /// Network and origins.
    pub lab: Lab,
    /// One-way delay on each link to a relay or a proxy.
    pub latency: Duration,
    /// The ways.
    pub all: Vec<Path>,
    _running: Programs,
}

/// What the ways consist of; all of it ends when this is dropped.
struct Programs {
    _clients: Vec<Client>,
    _bridges: Vec<Bridge>,
    _proxies: Vec<Running>,
    _link: DelayLink,
    _folder: TempDir,
}

/// One way to a target.
pub struct Path {
    /// What it is called in the results.
    pub name: &'static str,
    /// Its own processes, relays of the network left out: name and id.
    pub processes: Vec<(&'static str, u32)>,
    route: Route,
}

enum Route {
    /// A local SOCKS proxy says it all.
    Socks(SocketAddr),
    /// Through one SOCKS proxy to another, with TLS between or without.
    SocksInSocks { outer: SocketAddr, inner: (String, u16), tls: Option<(TlsConnector, ServerName<'static>)> },
}

/// What the programs log: why something failed, and nothing for each stream.
pub const LOG: &str = "info,tor_=warn,tor_netdir=error,arti_client=warn";

/// Plain Tor: C tor client, exit.
pub const PLAIN: &str = "plain exit, C tor client";
/// Plain Tor with Arti as the client.
pub const PLAIN_ARTI: &str = "plain exit, Arti client";
/// Plain Tor, by a client that decides by itself and knows of nobody who turns Tor away.
pub const AUTO: &str = "mode auto";
/// The same, which remembers who did.
pub const AUTO_AGAIN: &str = "mode auto, again";
/// Ours: guard, middle, exit bridge.
pub const CIRCUIT: &str = "circuit exit bridge";
/// Ours with vanguards: one hop more.
pub const CIRCUIT_VANGUARDS: &str = "circuit exit bridge, vanguards";
/// Ours from behind a NAT: an onion service.
pub const ONION: &str = "onion exit bridge";
/// The same, without its guard between it and the rendezvous point.
pub const ONION_DIRECT: &str = "onion exit bridge, direct";
/// The same, with as many relays there as a hidden service has.
pub const ONION_ANONYMOUS: &str = "onion exit bridge, anonymous";
/// A C tor exit in no consensus instead of the exit bridge.
pub const UNLISTED: &str = "unlisted C tor exit";
/// What EEBT's prototype did: a Tor exit, then TLS to a SOCKS proxy.
pub const EEBT_PROTOTYPE: &str = "exit + TLS + SOCKS proxy";
/// What HebTor's prototype did: an onion service of C tor, and a SOCKS proxy behind it.
pub const HEBTOR_PROTOTYPE: &str = "C tor onion service + SOCKS proxy";

impl Paths {
    /// Brings everything up; of the ways only those whose names contain one of `wanted`.
    pub async fn start(latency: Duration, scheduler: Scheduler, wanted: &[String]) -> anyhow::Result<Self> {
        let progress = |step: &str| eprintln!("   {step}");
        let builder = TestNet::builder().name("bench").latency(latency).scheduler(scheduler);
        let mut net = builder.progress(progress).start().await?;
        let unlisted = net.add_unlisted_exit("unlisted").await?;

        let mut running = Vec::new();
        let folder = tempfile::tempdir()?;
        let work = folder.path();
        let home_socks = microsocks(work, "home", net.spare_ip(), &mut running).await?;
        let onion = net.add_onion_service("home", 1080, home_socks).await?;
        let cloud_socks = microsocks(work, "cloud", net.spare_ip(), &mut running).await?;
        let (tls_server, connector) = stunnel(work, net.spare_ip(), cloud_socks, &mut running).await?;
        // The proxy is a machine of its own somewhere, like the exit bridge.
        let link = delay_link((net.spare_ip(), 0).into(), tls_server, latency).await?;
        let tls_front = link.listen_addr();

        let lab = Lab::on(net).await?;
        let bridge = lab.bridge().set("limits", no_limits()).log(LOG).behind(latency).await?.run().await?;
        let onion_bridge = async |rendezvous: &str| {
            let bridge = lab.bridge().onion().set("rendezvous", rendezvous).set("limits", no_limits());
            bridge.log(LOG).run().await
        };
        let onion_bridge_guard = onion_bridge("guard").await?;
        let onion_bridge_direct = onion_bridge("direct").await?;
        let onion_bridge_anonymous = onion_bridge("anonymous").await?;
        let client = async |path: &str, bridge: &Bridge| {
            lab.client().set("path", path).set("connections", 4096).log(LOG).via(bridge).run().await
        };
        let standard = client("standard", &bridge).await?;
        let vanguards = client("vanguards", &bridge).await?;
        let to_onion = client("standard", &onion_bridge_guard).await?;
        let to_direct = client("standard", &onion_bridge_direct).await?;
        let to_anonymous = client("standard", &onion_bridge_anonymous).await?;
        let arti = lab.client().set("mode", "never").log(LOG).run().await?;
        let auto = || lab.client().set("mode", "auto").log(LOG).via(&bridge);
        let forgets = auto().set("verdict_lifetime", "1ms").run().await?;
        let remembers = auto().run().await?;
        let to_unlisted = lab.client().log(LOG).via_line(&line_of(&unlisted)?).run().await?;

        let plain = lab.net.socks_addr();
        let tor = |name: &str| lab.net.pid(name).context("a tor has ended");
        let client_tor = ("tor client", tor("client")?);
        let pid = |process: &Running| process.pid().context("a process has ended");
        let ours = |client: &Client, bridge: &Bridge| -> anyhow::Result<_> {
            Ok(vec![("eebt-client", pid(&client.process)?), ("eebt-bridge", pid(&bridge.process)?)])
        };
        let tls_name = ServerName::from(tls_server.ip());
        let all = vec![
            Path { name: PLAIN, processes: vec![client_tor], route: Route::Socks(plain) },
            Path {
                name: PLAIN_ARTI,
                processes: vec![("eebt-client", pid(&arti.process)?)],
                route: Route::Socks(arti.proxy),
            },
            Path { name: AUTO, processes: ours(&forgets, &bridge)?, route: Route::Socks(forgets.proxy) },
            Path {
                name: AUTO_AGAIN,
                processes: ours(&remembers, &bridge)?,
                route: Route::Socks(remembers.proxy),
            },
            Path { name: CIRCUIT, processes: ours(&standard, &bridge)?, route: Route::Socks(standard.proxy) },
            Path {
                name: CIRCUIT_VANGUARDS,
                processes: ours(&vanguards, &bridge)?,
                route: Route::Socks(vanguards.proxy),
            },
            Path {
                name: ONION,
                processes: ours(&to_onion, &onion_bridge_guard)?,
                route: Route::Socks(to_onion.proxy),
            },
            Path {
                name: ONION_DIRECT,
                processes: ours(&to_direct, &onion_bridge_direct)?,
                route: Route::Socks(to_direct.proxy),
            },
            Path {
                name: ONION_ANONYMOUS,
                processes: ours(&to_anonymous, &onion_bridge_anonymous)?,
                route: Route::Socks(to_anonymous.proxy),
            },
            Path {
                name: UNLISTED,
                processes: vec![
                    ("eebt-client", pid(&to_unlisted.process)?),
                    ("unlisted tor", tor("unlisted")?),
                ],
                route: Route::Socks(to_unlisted.proxy),
            },
            Path {
                name: EEBT_PROTOTYPE,
                processes: vec![
                    client_tor,
                    ("stunnel", pid(&running[2])?),
                    ("microsocks", pid(&running[1])?),
                ],
                route: Route::SocksInSocks {
                    outer: plain,
                    inner: (tls_front.ip().to_string(), tls_front.port()),
                    tls: Some((connector, tls_name)),
                },
            },
            Path {
                name: HEBTOR_PROTOTYPE,
                processes: vec![client_tor, ("onion tor", tor("home")?), ("microsocks", pid(&running[0])?)],
                route: Route::SocksInSocks { outer: plain, inner: (onion, 1080), tls: None },
            },
        ];
        let all: Vec<Path> = all
            .into_iter()
            .filter(|p| wanted.is_empty() || wanted.iter().any(|w| p.name.contains(w)))
            .collect();
        ensure!(!all.is_empty(), "no path is called like that");
        let running = Programs {
            _clients: vec![
                standard,
                vanguards,
                to_onion,
                to_direct,
                to_anonymous,
                arti,
                to_unlisted,
                forgets,
                remembers,
            ],
            _bridges: vec![bridge, onion_bridge_guard, onion_bridge_direct, onion_bridge_anonymous],
            _proxies: running,
            _link: link,
            _folder: folder,
        };
        let paths = Self { lab, latency, all, _running: running };
        paths.warm_up().await?;
        Ok(paths)
    }

    /// Where the measured pages are.
    pub fn origin(&self) -> SocketAddr {
        self.lab.origins.open().addr()
    }

    /// A page that is refused to Tor's exits.
    pub fn blocking(&self) -> SocketAddr {
        self.lab.origins.blocking_tor_exits().addr()
    }

    /// The processes of the network itself: relays, and what else is a tor.
    pub fn tors(&self) -> Vec<u32> {
        self.lab.net.pids()
    }

    /// Uses each way once. An onion service is not found before its descriptor is published.
    async fn warm_up(&self) -> anyhow::Result<()> {
        for path in &self.all {
            let mut tries = 0;
            while let Err(error) = path.connect("warm", self.origin()).await {
                tries += 1;
                ensure!(tries < 30, "{}: {error:#}", path.name);
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
        Ok(())
    }

    /// Takes everything down.
    pub async fn shutdown(self) -> anyhow::Result<()> {
        let Self { lab, _running, .. } = self;
        drop(_running);
        lab.shutdown(false).await?;
        Ok(())
    }
}

impl Path {
    /// Through one local SOCKS proxy whose processes are not looked at.
    pub fn socks(name: &'static str, proxy: SocketAddr) -> Self {
        Self { name, processes: Vec::new(), route: Route::Socks(proxy) }
    }

    /// A stream to `target`. Those of one `group` may share a circuit, those of two may not.
    pub async fn connect(&self, group: &str, target: SocketAddr) -> anyhow::Result<Stream> {
        match &self.route {
            Route::Socks(proxy) => {
                let target = (target.ip().to_string(), target.port());
                Ok(Box::new(socks(*proxy, group, target).await?))
            }
            Route::SocksInSocks { outer, inner, tls } => {
                let to_inner = socks(*outer, group, inner.clone()).await?;
                match tls {
                    None => Ok(Box::new(Socks5Stream::connect_with_socket(to_inner, target).await?)),
                    Some((connector, name)) => {
                        let tls = connector.connect(name.clone(), to_inner).await?;
                        Ok(Box::new(Socks5Stream::connect_with_socket(tls, target).await?))
                    }
                }
            }
        }
    }
}

async fn socks(
    proxy: SocketAddr,
    group: &str,
    target: (String, u16),
) -> anyhow::Result<Socks5Stream<TcpStream>> {
    let tcp = TcpStream::connect(proxy).await?;
    tcp.set_nodelay(true)?;
    let target = (target.0.as_str(), target.1);
    Ok(Socks5Stream::connect_with_password_and_socket(tcp, target, group, "x").await?)
}

/// What is measured is the way, not the fences beside it.
fn no_limits() -> toml::Table {
    let rate = |per_second: f64| {
        toml::Table::from_iter([
            ("per_second".into(), per_second.into()),
            ("burst".into(), per_second.into()),
        ])
    };
    let mut limits = toml::Table::new();
    for key in ["new_streams", "new_targets", "failed_connects"] {
        limits.insert(key.into(), rate(1e6).into());
    }
    for key in ["bytes", "total_bytes"] {
        limits.insert(key.into(), rate(1e12).into());
    }
    limits.insert("streams_per_circuit".into(), 8192.into());
    limits
}

/// A C tor relay as a bridge line.
fn line_of(unlisted: &UnlistedRelay) -> anyhow::Result<BridgeLine> {
    let relay = &unlisted.relay;
    relay_line(relay.or_addr(), &relay.rsa_identity, &relay.ed_identity, unlisted.ntor)
}

/// Starts a program that listens, and waits until it does.
async fn server(
    command: Command,
    work: &std::path::Path,
    name: &str,
    addr: SocketAddr,
    running: &mut Vec<Running>,
) -> anyhow::Result<()> {
    let dir = work.join(name);
    std::fs::create_dir_all(&dir)?;
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    running
        .push(Running::start(command, &dir).with_context(|| format!("{program}: try ./deploy/setup bench"))?);
    for _ in 0..200 {
        if TcpStream::connect(addr).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    anyhow::bail!("{program} does not listen on {addr}; its output is in {}", dir.display())
}

/// A SOCKS proxy on `ip`, which is also where it connects from.
async fn microsocks(
    work: &std::path::Path,
    name: &str,
    ip: IpAddr,
    running: &mut Vec<Running>,
) -> anyhow::Result<SocketAddr> {
    let addr = SocketAddr::new(ip, 1080);
    let mut command = Command::new("microsocks");
    command.args(["-i", &ip.to_string(), "-p", "1080", "-b", &ip.to_string()]);
    server(command, work, &format!("microsocks-{name}"), addr, running).await?;
    Ok(addr)
}

/// TLS before `target`, and a client that trusts it.
async fn stunnel(
    work: &std::path::Path,
    ip: IpAddr,
    target: SocketAddr,
    running: &mut Vec<Running>,
) -> anyhow::Result<(SocketAddr, TlsConnector)> {
    let key = rcgen::generate_simple_self_signed(vec![ip.to_string()])?;
    let dir = work.join("stunnel");
    std::fs::create_dir_all(&dir)?;
    let (pem, conf) = (dir.join("server.pem"), dir.join("stunnel.conf"));
    let private = key.signing_key.serialize_pem();
    std::fs::write(&pem, format!("{}{private}", key.cert.pem()))?;
    let addr = SocketAddr::new(ip, 8443);
    let text = format!(
        "foreground = yes\npid =\nsyslog = no\n[socks]\naccept = {addr}\nconnect = {target}\ncert = {}\n\
         socket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n",
        pem.display()
    );
    std::fs::write(&conf, text)?;
    let mut command = Command::new("stunnel4");
    command.arg(&conf);
    server(command, work, "stunnel", addr, running).await?;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(key.cert.der().clone())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok((addr, TlsConnector::from(Arc::new(config))))
}
