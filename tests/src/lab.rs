//! The lab: one private Tor network with its origins, and what runs on it.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use eebt_proto::{BridgeLine, CircuitReach, Reach};
use tempfile::{NamedTempFile, TempDir};
use testnet::{DelayLink, Origin, Origins, OriginsConfig, TestNet, delay_link};
use tokio::process::Command;

use crate::process::{Running, binary};

/// What programs under test log, where a case says nothing else.
pub(crate) const LOG: &str = "debug,tor_=info,tor_proto=debug,tor_netdir=error";

/// A private Tor network and origins, shared by all cases.
pub struct Lab {
    /// The network.
    pub net: TestNet,
    /// The origins.
    pub origins: Origins,
    dir: TempDir,
    next: AtomicU16,
}

impl Lab {
    /// Brings all of it up.
    pub async fn start() -> anyhow::Result<Self> {
        Self::on(TestNet::builder().start().await?).await
    }

    /// Brings up the rest on a network.
    pub async fn on(net: TestNet) -> anyhow::Result<Self> {
        let origins = Origins::start(OriginsConfig::on_network(&net)).await?;
        Ok(Self { net, origins, dir: tempfile::tempdir()?, next: AtomicU16::new(0) })
    }

    /// A fresh folder for one program.
    pub fn folder(&self, name: &str) -> PathBuf {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let dir = self.dir.path().join(format!("{n}-{name}"));
        std::fs::create_dir(&dir).expect("folder");
        dir
    }

    /// An exit bridge that lets out to the origins and nowhere else, from an address of its own.
    pub fn bridge(&self) -> BridgeBuilder<'_> {
        let ip = self.net.spare_ip();
        let mut config = toml::Table::new();
        let net = self.net.network_file().display().to_string();
        config.insert("network".into(), net.into());
        config.insert("listen".into(), format!("{ip}:{}", free_port(ip)).into());
        config.insert("egress_address".into(), ip.to_string().into());
        config.insert("status".into(), format!("{ip}:{}", free_port(ip)).into());
        config.insert("policy".into(), self.ports().into());
        let origins: Vec<toml::Value> =
            self.origins.all().iter().map(|o| format!("{}/32", o.addr().ip()).into()).collect();
        config.insert("allow_egress".into(), origins.into());
        // C tor relays on loopback connect from 127.0.0.1, whatever address they publish.
        config.insert("allow_ingress".into(), vec![toml::Value::from("127.0.0.1/32")].into());
        BridgeBuilder { lab: self, ip, config, log: LOG, link: None }
    }

    /// A client that sends everything through its exit bridges.
    pub fn client(&self) -> ClientBuilder<'_> {
        let mut config = toml::Table::new();
        config.insert("mode".into(), "always".into());
        config.insert("network".into(), self.net.network_file().display().to_string().into());
        config.insert("listen".into(), vec![toml::Value::from("127.0.0.1:0")].into());
        config.insert("page".into(), "127.0.0.1:0".into());
        ClientBuilder { lab: self, config, log: LOG, trusted: None }
    }

    /// The ports of all origins, and 80 and 443, as a policy.
    pub fn ports(&self) -> String {
        let mut ports = vec![80, 443];
        ports.extend(self.origins.all().iter().map(|o| o.addr().port()));
        ports.sort_unstable();
        ports.dedup();
        ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// Takes all of it down. The logs of all programs are kept when they are wanted: the path.
    pub async fn shutdown(self, keep_logs: bool) -> anyhow::Result<Option<PathBuf>> {
        self.net.shutdown().await?;
        Ok(keep_logs.then(|| self.dir.keep()))
    }
}

/// A port that is free now.
pub(crate) fn free_port(ip: IpAddr) -> u16 {
    std::net::TcpListener::bind((ip, 0)).and_then(|l| l.local_addr()).expect("a free port").port()
}

/// An exit bridge to be.
pub struct BridgeBuilder<'a> {
    lab: &'a Lab,
    ip: IpAddr,
    config: toml::Table,
    log: &'a str,
    link: Option<DelayLink>,
}

impl<'a> BridgeBuilder<'a> {
    /// Puts it behind a delayed link, as every relay of a network with latency is.
    pub async fn behind(mut self, one_way: Duration) -> anyhow::Result<Self> {
        let listen = self.config.get("listen").and_then(|s| s.as_str()).context("listen")?.parse()?;
        let link = delay_link((self.ip, 0).into(), listen, one_way).await?;
        self.config.insert("address".into(), link.listen_addr().to_string().into());
        self.link = Some(link);
        Ok(self)
    }

    /// Sets a key of its configuration.
    pub fn set(mut self, key: &str, value: impl Into<toml::Value>) -> Self {
        self.config.insert(key.into(), value.into());
        self
    }

    /// Makes it an onion exit bridge, with no port that anybody could reach.
    pub fn onion(self) -> Self {
        self.set("reach", vec![toml::Value::from("onion")])
    }

    /// Lets it out to one more place.
    pub fn opens(mut self, place: SocketAddr) -> Self {
        if let Some(toml::Value::Array(open)) = self.config.get_mut("allow_egress") {
            open.push(format!("{}/32", place.ip()).into());
        }
        if let Some(toml::Value::String(ports)) = self.config.get_mut("policy") {
            ports.push_str(&format!(",{}", place.port()));
        }
        self
    }

    /// What it logs.
    pub fn log(mut self, filter: &'a str) -> Self {
        self.log = filter;
        self
    }

    /// Starts it and waits until it serves.
    pub async fn run(self) -> anyhow::Result<Bridge> {
        let dir = self.lab.folder("bridge");
        let mut config = self.config;
        config.insert("keys".into(), dir.join("keys").display().to_string().into());
        config.insert("state_dir".into(), dir.join("state").display().to_string().into());
        let path = dir.join("bridge.toml");
        std::fs::write(&path, toml::to_string(&config)?)?;
        let (process, line) = start_bridge(&path, &dir, self.log).await?;
        let status = config.get("status").and_then(|s| s.as_str()).context("status")?.parse()?;
        Ok(Bridge { process, line, ip: self.ip, status, config: path, _link: self.link })
    }
}

/// Starts an exit bridge and waits for its first bridge line.
async fn start_bridge(config: &Path, dir: &Path, log: &str) -> anyhow::Result<(Running, BridgeLine)> {
    let mut command = Command::new(binary("eebt-bridge"));
    command.arg("run").arg("--config").arg(config).env("RUST_LOG", log);
    let mut process = Running::start(command, dir)?;
    let line = process
        .wait_for("bridge line", |out, _| {
            out.lines().next().filter(|_| out.ends_with('\n')).map(String::from)
        })
        .await?;
    Ok((process, line.parse()?))
}

/// A running exit bridge.
pub struct Bridge {
    /// Its process.
    pub process: Running,
    /// Its bridge line.
    pub line: BridgeLine,
    /// The address that origins see.
    pub ip: IpAddr,
    /// Its status endpoint.
    pub status: SocketAddr,
    /// Its configuration file.
    pub config: PathBuf,
    _link: Option<DelayLink>,
}

impl Bridge {
    /// Ends it and starts it again with what it had.
    pub async fn restart(self) -> anyhow::Result<Self> {
        let dir = self.config.parent().context("a folder")?.to_owned();
        let Self { process, ip, status, config, _link, .. } = self;
        drop(process);
        let (process, line) = start_bridge(&config, &dir, LOG).await?;
        Ok(Self { process, line, ip, status, config, _link })
    }

    /// Waits until a line of its log holds both texts.
    pub async fn said(&self, what: &str, more: &str, limit: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        while !self.process.stderr().lines().any(|line| line.contains(what) && line.contains(more)) {
            ensure!(start.elapsed() < limit, "it did not say {what:?} {more:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Where relays reach it.
    pub fn or_port(&self) -> anyhow::Result<SocketAddr> {
        circuit_reach(&self.line)?.addresses.first().copied().context("no address")
    }
}

/// How circuits are extended to the exit bridge that a line names.
pub fn circuit_reach(line: &BridgeLine) -> anyhow::Result<&CircuitReach> {
    match &line.reach {
        Reach::Circuit(reach) => Ok(reach),
        Reach::Onion(_) => anyhow::bail!("not a line of a circuit exit bridge"),
    }
}

/// A client to be.
pub struct ClientBuilder<'a> {
    lab: &'a Lab,
    config: toml::Table,
    log: &'a str,
    trusted: Option<&'a Path>,
}

impl<'a> ClientBuilder<'a> {
    /// Adds an exit bridge.
    pub fn via(self, bridge: &Bridge) -> Self {
        self.via_line(&bridge.line)
    }

    /// Adds an exit bridge by its line.
    pub fn via_line(self, line: &BridgeLine) -> Self {
        self.add("bridges", line.to_string())
    }

    /// Adds to a key of its configuration that is a list.
    pub(crate) fn add(mut self, key: &str, value: String) -> Self {
        let list = self.config.entry(key).or_insert_with(|| toml::Value::Array(Vec::new()));
        list.as_array_mut().expect("a list").push(value.into());
        self
    }

    /// Sets a key of its configuration.
    pub fn set(mut self, key: &str, value: impl Into<toml::Value>) -> Self {
        self.config.insert(key.into(), value.into());
        self
    }

    /// What it logs.
    pub fn log(mut self, filter: &'a str) -> Self {
        self.log = filter;
        self
    }

    /// The authorities that it trusts, in PEM, in place of the machine's.
    pub fn trusts(mut self, authorities: &'a Path) -> Self {
        self.trusted = Some(authorities);
        self
    }

    /// Starts it and waits until programs may use it.
    pub async fn run(self) -> anyhow::Result<Client> {
        let dir = self.lab.folder("client");
        let mut config = self.config;
        let state = || dir.join("state").display().to_string().into();
        config.entry("state_dir").or_insert_with(state);
        let path = dir.join("client.toml");
        std::fs::write(&path, toml::to_string(&config)?)?;
        let mut command = Command::new(binary("eebt-client"));
        command.arg("--config").arg(&path).env("RUST_LOG", self.log);
        command.envs(self.trusted.map(|authorities| ("SSL_CERT_FILE", authorities)));
        let mut process = Running::start(command, &dir)?;
        let ready = |_: &str, err: &str| {
            err.lines()
                .find(|l| l.starts_with("ready: "))
                .and_then(|l| l.rsplit(' ').next())
                .map(String::from)
        };
        let proxy = process.wait_for("ready line", ready).await?.parse()?;
        Ok(Client { process, way: Way { proxy, dir } })
    }
}

/// A running client.
pub struct Client {
    /// Its process.
    pub process: Running,
    way: Way,
}

impl std::ops::Deref for Client {
    type Target = Way;

    fn deref(&self) -> &Way {
        &self.way
    }
}

/// A way into Tor that programs are given.
#[derive(Clone, Debug)]
pub struct Way {
    /// A SOCKS port.
    pub proxy: SocketAddr,
    /// The folder of the program behind it.
    pub dir: PathBuf,
}

impl Client {
    /// The address of its local page, as it says it to the person.
    pub async fn page(&self) -> anyhow::Result<String> {
        let mut command = Command::new(binary("eebt-client"));
        let out =
            command.arg("--config").arg(self.dir.join("client.toml")).arg("--print-page").output().await?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8(out.stdout)?.trim().to_owned())
    }
}

/// What curl got.
#[derive(Debug)]
pub struct Fetched {
    /// HTTP status, 0 when there was none.
    pub status: u16,
    /// SHA-256 of the body, in hexadecimal.
    pub sha256: String,
    /// Bytes of the body.
    pub size: u64,
    /// The body, when it is short and a text.
    pub text: String,
    /// curl's exit code: 0 for a complete transfer.
    pub exit_code: i32,
    /// From start to end.
    pub took: Duration,
    /// From start to the answer's first byte.
    pub began: Duration,
}

impl Fetched {
    /// Is this the whole of `/bulk/SIZE`?
    pub fn is_bulk(&self, size: u64) -> anyhow::Result<()> {
        ensure!(self.exit_code == 0 && self.status == 200, "not fetched: {self:?}");
        ensure!(
            self.size == size && self.sha256 == testnet::origins::bulk::sha256(size),
            "wrong bytes: {self:?}"
        );
        Ok(())
    }
}

impl Way {
    /// Fetches a page over SOCKS5, the host name unresolved.
    pub async fn get(&self, url: &str) -> anyhow::Result<Fetched> {
        curl(&format!("socks5h://{}", self.proxy), url, &[], &self.dir).await
    }

    /// The same as somebody with these credentials.
    pub async fn get_as(&self, user: &str, url: &str) -> anyhow::Result<Fetched> {
        curl(&format!("socks5h://{user}:x@{}", self.proxy), url, &[], &self.dir).await
    }

    /// Fetches with further arguments for curl.
    pub async fn curl(&self, url: &str, args: &[&str]) -> anyhow::Result<Fetched> {
        curl(&format!("socks5h://{}", self.proxy), url, args, &self.dir).await
    }

    /// The same, as somebody with these credentials.
    pub async fn curl_as(&self, user: &str, url: &str, args: &[&str]) -> anyhow::Result<Fetched> {
        curl(&format!("socks5h://{user}:x@{}", self.proxy), url, args, &self.dir).await
    }

    /// The same as [`curl`](Self::curl), with something that is done as soon as a part of the page is there.
    pub async fn curl_meanwhile<T>(
        &self,
        url: &str,
        args: &[&str],
        then: impl Future<Output = T>,
    ) -> anyhow::Result<(Fetched, T)> {
        let body = NamedTempFile::new_in(&self.dir)?;
        let begun = async {
            while body.path().metadata()?.len() == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            anyhow::Ok(())
        };
        let then = async {
            tokio::time::timeout(Duration::from_secs(60), begun).await.context("nothing came")??;
            anyhow::Ok(then.await)
        };
        let proxy = format!("socks5h://{}", self.proxy);
        tokio::try_join!(curl_to(&body, &proxy, url, args), then)
    }

    /// Sends `size` bytes to the sink of `origin`, and checks what arrived.
    pub async fn upload(&self, origin: &Origin, path: &str, size: u64) -> anyhow::Result<Fetched> {
        let file = self.dir.join(format!("upload-{size}"));
        if !file.exists() {
            let mut bytes = vec![0; usize::try_from(size)?];
            testnet::origins::bulk::fill(0, &mut bytes);
            std::fs::write(&file, bytes)?;
        }
        let file = file.display().to_string();
        let fetched = self.curl(&origin.url(path), &["-T", &file, "-H", "Expect:"]).await?;
        ensure!(fetched.exit_code == 0 && fetched.status == 200, "not sent: {fetched:?}");
        let got: serde_json::Value = serde_json::from_str(&fetched.text)?;
        ensure!(got["sha256"] == testnet::origins::bulk::sha256(size), "wrong bytes: {got}");
        Ok(fetched)
    }
}

/// Runs curl through a proxy. Redirects are not followed, times are bounded.
pub async fn curl(proxy: &str, url: &str, args: &[&str], dir: &Path) -> anyhow::Result<Fetched> {
    curl_to(&NamedTempFile::new_in(dir)?, proxy, url, args).await
}

async fn curl_to(body: &NamedTempFile, proxy: &str, url: &str, args: &[&str]) -> anyhow::Result<Fetched> {
    let start = Instant::now();
    let out = Command::new("curl")
        .args([
            "-sS",
            "--max-time",
            "120",
            "-w",
            "%{http_code} %{time_starttransfer}",
            "--proxy",
            proxy,
            "-o",
        ])
        .arg(body.path())
        .args(args)
        .arg(url)
        .kill_on_drop(true)
        .output()
        .await
        .context("curl")?;
    let took = start.elapsed();
    let bytes = std::fs::read(body.path())?;
    let said = String::from_utf8_lossy(&out.stdout);
    let (status, began) = said.split_once(' ').unwrap_or_default();
    Ok(Fetched {
        status: status.parse().unwrap_or_default(),
        sha256: sha256(&bytes),
        size: bytes.len() as u64,
        text: if bytes.len() < 2000 { String::from_utf8(bytes).unwrap_or_default() } else { String::new() },
        exit_code: out.status.code().unwrap_or(-1),
        took,
        began: Duration::from_secs_f64(began.parse().unwrap_or_default()),
    })
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(bytes))
}

impl Lab {
    /// Fetches a page through plain Tor: the C tor client and a Tor exit.
    pub async fn get_plain(&self, url: &str) -> anyhow::Result<Fetched> {
        curl(&format!("socks5h://{}", self.net.socks_addr()), url, &[], self.dir.path()).await
    }
}
