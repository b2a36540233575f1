//! Clients with C tor, as distributions ship it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use testnet::Role;
use tests::{Lab, Running, binary, curl};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::Suite;

pub fn cases(suite: &mut Suite) {
    suite.case(
        "an unmodified C tor extends a circuit to an exit bridge by its server descriptor",
        async |lab| {
            let origin = lab.origins.blocking_tor_exits();
            let bridge = lab.bridge().run().await?;
            let described = Command::new(binary("eebt-bridge"))
                .args(["descriptor", "--config"])
                .arg(&bridge.config)
                .output()
                .await?;
            ensure!(described.status.success(), "{described:?}");
            let descriptor = String::from_utf8(described.stdout)?;

            let tor = CTor::start(lab).await?;
            let mut control = tor.control().await?;
            // Circuits are built and streams attached by hand here.
            control.ask("SETCONF __LeaveStreamsUnattached=1").await?;
            control.ask("SETEVENTS STREAM CIRC").await?;
            let posted = format!(
                "+POSTDESCRIPTOR purpose=controller cache=no\r\n{}\r\n.",
                descriptor.replace('\n', "\r\n")
            );
            control.ask(&posted).await?;
            let fingerprint =
                descriptor.lines().find_map(|line| line.strip_prefix("fingerprint ")).context("none")?;
            let fingerprint = fingerprint.replace(' ', "");
            ensure!(
                control
                    .ask(&format!("GETINFO desc/id/{fingerprint}"))
                    .await?
                    .contains("platform eebt-bridge")
            );

            let relay = |role: Role| {
                let mut relays = lab.net.relays().iter();
                relays
                    .find(|relay| relay.role == role)
                    .map(|relay| relay.rsa_identity.clone())
                    .context("no relay")
            };
            // Two that are no exits: an exit bridge lets no others in.
            let (first, second) = (relay(Role::Middle)?, relay(Role::Authority)?);
            let extended = control.ask(&format!("EXTENDCIRCUIT 0 {first},{second},{fingerprint}")).await?;
            let circuit = extended.split_whitespace().last().context("no circuit")?.to_owned();
            control.event(&format!("CIRC {circuit} BUILT")).await?;

            let (proxy, dir) = (format!("socks5h://{}", tor.socks), lab.folder("fetch"));
            let url = origin.url("/");
            let fetch = tokio::spawn(async move { curl(&proxy, &url, &[], &dir).await });
            let new = control.event(" NEW ").await?;
            let stream = new.split_whitespace().nth(2).context("no stream")?;
            control.ask(&format!("ATTACHSTREAM {stream} {circuit}")).await?;
            let page = fetch.await??;
            ensure!(page.status == 200, "{page:?}");
            ensure!(origin.last_peer_ip() == Some(bridge.ip), "the origin saw {:?}", origin.last_peer_ip());
            Ok(())
        },
    );
}

/// A client of its own, with whole descriptors and not microdescriptors, for an unlisted relay has none of these.
struct CTor {
    _process: Running,
    socks: SocketAddr,
    control: SocketAddr,
    cookie: std::path::PathBuf,
}

impl CTor {
    async fn start(lab: &Lab) -> anyhow::Result<Self> {
        let dir = lab.folder("tor");
        let free = || std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let (socks, control) = (free()?, free()?);
        let known = std::fs::read_to_string(lab.net.dir().join("nodes/client/torrc"))?;
        let ours = ["DataDirectory", "SocksPort", "ControlPort", "__OwningController"];
        let mut torrc: String = known
            .lines()
            .filter(|line| !ours.iter().any(|key| line.starts_with(key)))
            .map(|line| format!("{line}\n"))
            .collect();
        torrc += &format!(
            "DataDirectory {}\nSocksPort {socks}\nControlPort {control}\n",
            dir.join("data").display()
        );
        torrc += "UseMicrodescriptors 0\n";
        std::fs::write(dir.join("torrc"), torrc)?;
        let mut command = Command::new("tor");
        command.arg("--quiet").arg("-f").arg(dir.join("torrc"));
        let tor = Self {
            _process: Running::start(command, &dir)?,
            socks,
            control,
            cookie: dir.join("data/control_auth_cookie"),
        };
        for _ in 0..120 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let Ok(mut control) = tor.control().await else { continue };
            if control.ask("GETINFO status/bootstrap-phase").await?.contains("PROGRESS=100") {
                return Ok(tor);
            }
        }
        bail!("C tor does not bootstrap")
    }

    async fn control(&self) -> anyhow::Result<Control> {
        let cookie = data_encoding::HEXLOWER.encode(&std::fs::read(&self.cookie)?);
        let stream = TcpStream::connect(self.control).await?;
        let mut control = Control { stream: BufReader::new(stream), events: Vec::new() };
        control.ask(&format!("AUTHENTICATE {cookie}")).await?;
        Ok(control)
    }
}

/// A connection to its control port (control-spec).
struct Control {
    stream: BufReader<TcpStream>,
    events: Vec<String>,
}

impl Control {
    async fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        let read = timeout(Duration::from_secs(30), self.stream.read_line(&mut line))
            .await
            .context("no answer")??;
        ensure!(read > 0, "the control port closed");
        Ok(line.trim_end().to_owned())
    }

    /// Gives a command; its whole answer, which must be a good one.
    async fn ask(&mut self, command: &str) -> anyhow::Result<String> {
        self.stream.write_all(format!("{command}\r\n").as_bytes()).await?;
        let mut answer = String::new();
        loop {
            let line = self.line().await?;
            if line.starts_with("650") {
                self.events.push(line);
                continue;
            }
            if line.starts_with("250+") {
                while !answer.ends_with("\n.\n") {
                    answer = answer + &self.line().await? + "\n";
                }
                continue;
            }
            ensure!(line.starts_with("250"), "{line}");
            answer = answer + &line + "\n";
            if line.starts_with("250 ") {
                return Ok(answer);
            }
        }
    }

    /// The next event with this text in it.
    async fn event(&mut self, text: &str) -> anyhow::Result<String> {
        loop {
            if let Some(at) = self.events.iter().position(|event| event.contains(text)) {
                return Ok(self.events.remove(at));
            }
            let line = self.line().await?;
            ensure!(!line.contains(" FAILED ") && !line.contains(" CLOSED "), "{line}");
            self.events.push(line);
        }
    }
}
