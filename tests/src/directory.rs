//! An exit-bridge directory under test.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use eebt_proto::directory::{Ask, EXIT_BRIDGES, HandOut, TICKET_TERMS, Wishes};
use eebt_proto::{BridgeLine, OnionReach, Ticket, TicketTerms};
use nix::sys::signal::Signal;
use tokio::process::Command;
use tokio::time::sleep;

use crate::lab::{BridgeBuilder, ClientBuilder, Lab, free_port};
use crate::process::{Running, binary};

/// How often exit bridges are tested, and how long a test may take.
const TEST_EVERY: Duration = Duration::from_secs(5);
const TEST_TIMEOUT: Duration = Duration::from_secs(10);

/// For how long nobody is told that an exit bridge died: the promise of docs/protocol.md.
pub const HANDED_OUT_FOR: Duration = Duration::from_secs(5 + 2 * 10 + 15);

/// An exit-bridge directory to be.
pub struct DirectoryBuilder<'a> {
    lab: &'a Lab,
    config: toml::Table,
    echo: SocketAddr,
    listen: SocketAddr,
    log: &'a str,
}

/// A running exit-bridge directory.
pub struct Directory {
    /// Its process.
    pub process: Running,
    /// Its onion address.
    pub address: OnionReach,
    /// The same, on loopback.
    pub api: SocketAddr,
    /// Its echo.
    pub echo: SocketAddr,
    /// Its configuration file; the store and the keys are beside it.
    pub config: PathBuf,
}

impl Lab {
    /// An exit-bridge directory that tests often and whose tickets are cheap.
    pub fn directory(&self) -> DirectoryBuilder<'_> {
        let ip = self.net.spare_ip();
        // Not on 127.0.0.1, whose ports relays take for their connections.
        let listen = SocketAddr::new(ip, free_port(ip));
        let echo = SocketAddr::new(ip, free_port(ip));
        let seconds = |time: Duration| toml::Value::from(format!("{}s", time.as_secs()));
        let table = |pairs: &[(&str, toml::Value)]| {
            toml::Value::Table(pairs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect())
        };
        let mut config = toml::Table::new();
        config.insert("network".into(), self.net.network_file().display().to_string().into());
        config.insert("listen".into(), listen.to_string().into());
        config.insert("echo".into(), table(&[("listen", echo.to_string().into())]));
        let loopback = toml::Value::from(vec!["127.0.0.0/8"]);
        let tests =
            [("every", seconds(TEST_EVERY)), ("timeout", seconds(TEST_TIMEOUT)), ("allow_egress", loopback)];
        config.insert("tests".into(), table(&tests));
        config.insert("hand_out".into(), table(&[("reserve", 0.into()), ("private", 0.into())]));
        config.insert("tickets".into(), table(&[("memory_kib", 64.into()), ("bits", 4.into())]));
        DirectoryBuilder { lab: self, config, echo, listen, log: crate::lab::LOG }
    }
}

impl<'a> DirectoryBuilder<'a> {
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

    /// No egress address of this machine is good enough, as on the real network.
    pub fn allow_no_private_egress(mut self) -> Self {
        if let Some(toml::Value::Table(tests)) = self.config.get_mut("tests") {
            tests.insert("allow_egress".into(), toml::Value::Array(Vec::new()));
        }
        self
    }

    /// Where it will listen on loopback.
    pub fn listens(&self) -> SocketAddr {
        self.listen
    }

    /// Makes it one of several behind the onion service of a C tor. Each of them tests, from an echo of its own.
    pub fn behind(self, service: &CTorService) -> Self {
        self.set("onion", false).set("address", service.address.to_string())
    }

    /// Makes it a replica without an onion service and without tests of its own.
    pub fn replica_of(mut self, service: &Directory) -> Self {
        self.config.remove("echo");
        self.set("onion", false).set("address", service.address.to_string())
    }

    /// Starts it and waits until clients can come.
    pub async fn run(mut self) -> anyhow::Result<Directory> {
        let dir = self.lab.folder("directory");
        for (key, name) in [("keys", "keys"), ("state_dir", "state")] {
            self.config.insert(key.into(), dir.join(name).display().to_string().into());
        }
        let store = format!("sqlite:{}", dir.join("directory.db").display());
        self.config.entry("store").or_insert(store.into());
        let config = dir.join("directory.toml");
        std::fs::write(&config, toml::to_string(&self.config)?)?;
        start(config, self.listen, self.echo, self.log).await
    }
}

async fn start(config: PathBuf, api: SocketAddr, echo: SocketAddr, log: &str) -> anyhow::Result<Directory> {
    let mut command = Command::new(binary("hebtor-directory"));
    command.arg("run").arg("--config").arg(&config).env("RUST_LOG", log);
    let mut process = Running::start(command, config.parent().context("a folder")?)?;
    // A replica prints the address that it was given.
    let address = process.wait_for("onion address", |out, _| {
        out.lines().next().filter(|_| out.ends_with('\n')).map(String::from)
    });
    let address = address.await?.parse()?;
    Ok(Directory { process, address, api, echo, config })
}

impl Directory {
    /// Kills it and starts it again.
    pub async fn start_again(self) -> anyhow::Result<Self> {
        let Self { mut process, api, echo, config, .. } = self;
        process.signal(Signal::SIGKILL);
        // Its ports are free once it is gone, not before.
        process.exit_code(Duration::from_secs(30)).await?;
        start(config, api, echo, crate::lab::LOG).await
    }

    /// POSTs `body` to its loopback address: status and answer.
    pub async fn post(&self, path: &str, body: &str) -> anyhow::Result<(u16, String)> {
        self.http(path, &["--data-binary", body]).await
    }

    async fn http(&self, path: &str, args: &[&str]) -> anyhow::Result<(u16, String)> {
        http(&format!("http://{}{path}", self.api), args).await
    }

    /// The number of one of its metrics, in round figures; it needs the key `status`.
    pub async fn metric(&self, status: SocketAddr, name: &str) -> anyhow::Result<u64> {
        let (_, text) = http(&format!("http://{status}/metrics"), &[]).await?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)).context("no such metric")?;
        Ok(value.trim().parse()?)
    }

    /// Runs another command with its configuration: what that prints.
    pub async fn command(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(binary("hebtor-directory"));
        let out = command.args(args).arg("--config").arg(&self.config).kill_on_drop(true).output().await?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8(out.stdout)?)
    }

    /// A new ticket.
    pub async fn ticket(&self) -> anyhow::Result<Ticket> {
        let (status, body) = self.http(TICKET_TERMS, &[]).await?;
        ensure!(status == 200, "{status}: {body}");
        let terms: TicketTerms = serde_json::from_str(&body)?;
        Ticket::make(&terms, rand::random(), || true)?.context("no ticket")
    }

    /// What a client with `ticket` is given.
    pub async fn ask(&self, ticket: &Ticket, wishes: Wishes) -> anyhow::Result<HandOut> {
        let ask = serde_json::to_string(&Ask { ticket: ticket.clone(), wishes })?;
        let (status, body) = self.post(EXIT_BRIDGES, &ask).await?;
        ensure!(status == 200, "{status}: {body}");
        Ok(serde_json::from_str(&body)?)
    }

    /// Does somebody get this exit bridge? Asks as many clients, where there are at most three in all.
    pub async fn hands_out(&self, line: &BridgeLine) -> anyhow::Result<bool> {
        let given = self.ask(&self.ticket().await?, Wishes::default()).await?;
        Ok(given.exit_bridges.iter().any(|given| given.bridge_line.reach == line.reach))
    }

    /// Waits until this exit bridge is handed out, or not any more.
    pub async fn until_handed_out(&self, line: &BridgeLine, is: bool, limit: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        while self.hands_out(line).await? != is {
            ensure!(
                start.elapsed() < limit,
                "after {limit:?} it is still {}",
                if is { "not handed out" } else { "handed out" }
            );
            sleep(Duration::from_millis(250)).await;
        }
        Ok(())
    }
}

/// An onion service of a C tor, as README.md of the directory shows it.
pub struct CTorService {
    /// Its process.
    pub process: Running,
    /// Its onion address.
    pub address: OnionReach,
}

impl Lab {
    /// A C tor whose onion service leads to any of these, on this network.
    pub async fn c_tor_service(&self, targets: &[SocketAddr]) -> anyhow::Result<CTorService> {
        let dir = self.folder("c-tor");
        // What a tor needs to know of this network, as its plain client has it.
        let client = std::fs::read_to_string(self.net.dir().join("nodes/client/torrc"))?;
        let of_network = ["TestingTorNetwork", "DirAuthority", "GeoIP", "Schedulers", "KISTSched"];
        let mut torrc: String = client
            .lines()
            .filter(|line| of_network.iter().any(|key| line.starts_with(key)))
            .map(|line| format!("{line}\n"))
            .collect();
        let service = dir.join("service");
        torrc += &format!(
            "DataDirectory {}\nSocksPort 0\nLog notice stdout\n__OwningControllerProcess {}\nHiddenServiceDir {}\n",
            dir.join("data").display(),
            std::process::id(),
            service.display()
        );
        for target in targets {
            torrc += &format!("HiddenServicePort 80 {target}\n");
        }
        let path = dir.join("torrc");
        std::fs::write(&path, torrc)?;
        std::fs::write(dir.join("no-defaults"), "")?;
        let mut command = Command::new("tor");
        command.arg("--defaults-torrc").arg(dir.join("no-defaults")).arg("-f").arg(&path);
        let mut process = Running::start(command, &dir)?;
        let up = process
            .wait_for("the end of its start", |out, _| out.contains("Bootstrapped 100%").then_some(()));
        up.await?;
        let address = std::fs::read_to_string(service.join("hostname"))?.trim().parse()?;
        Ok(CTorService { process, address })
    }

    /// POSTs `body` to an onion service by way of the C tor client: status and answer.
    pub async fn post_to_onion(
        &self,
        to: &OnionReach,
        path: &str,
        body: &str,
    ) -> anyhow::Result<(u16, String)> {
        let proxy = format!("socks5h://{}", self.net.socks_addr());
        http(&format!("http://{to}{path}"), &["--data-binary", body, "--proxy", &proxy]).await
    }
}

/// Has curl ask: status and answer.
async fn http(url: &str, args: &[&str]) -> anyhow::Result<(u16, String)> {
    let out = Command::new("curl")
        .args(["-sS", "--max-time", "30", "-w", "\n%{http_code}"])
        .args(args)
        .arg(url)
        .kill_on_drop(true)
        .output()
        .await
        .context("curl")?;
    let out = String::from_utf8(out.stdout)?;
    let (body, status) = out.rsplit_once('\n').context("no status")?;
    Ok((status.parse()?, body.to_owned()))
}

impl BridgeBuilder<'_> {
    /// Registers it with a directory, whose echo it can reach.
    pub fn registers_with(self, directory: &Directory) -> Self {
        let echo = directory.echo;
        self.opens(echo).set("directories", vec![directory.address.to_string()])
    }
}

impl ClientBuilder<'_> {
    /// Lets it ask a directory.
    pub fn asks(self, directory: &Directory) -> Self {
        self.add("directories", directory.address.to_string())
    }
}
