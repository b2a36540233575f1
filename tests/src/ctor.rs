//! C tor, as people have it: a client, a relay that is in no consensus, and who controls either.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use eebt_proto::{BridgeLine, CircuitReach, Reach};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testnet::Role;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::lab::{Way, circuit_reach, free_port};
use crate::{Dns, Lab, Running};

/// Options that each tor has for itself.
const OF_ITS_OWN: [&str; 12] = [
    "__OwningController",
    "Address",
    "ControlPort",
    "ControlSocket",
    "CookieAuth",
    "DataDirectory",
    "Log",
    "Nickname",
    "ORPort",
    "PidFile",
    "RunAsDaemon",
    "SocksPort",
];

/// Tor with the patches of tor-patches/c-tor, which `make test` builds and names.
pub fn patched_tor() -> Option<PathBuf> {
    std::env::var_os("EXIT_BRIDGE_TOR").map(PathBuf::from)
}

/// Tor's exits look names up at a name server of the test's, until this is dropped.
pub struct ExitsAsk(Vec<(PathBuf, String, Pid)>);

impl Drop for ExitsAsk {
    fn drop(&mut self) {
        for (torrc, text, pid) in &self.0 {
            let _ = std::fs::write(torrc, text);
            let _ = kill(*pid, Signal::SIGHUP);
        }
    }
}

/// A running tor.
pub struct CTor {
    /// Its process.
    pub process: Running,
    /// What its SOCKS port leads to.
    pub way: Way,
    /// Its control port.
    pub control: SocketAddr,
}

impl Lab {
    /// Starts a client with C tor and further lines for its torrc, and waits until it knows the network.
    pub async fn ctor(&self, program: &Path, torrc: &str) -> anyhow::Result<CTor> {
        let socks = SocketAddr::new([127, 0, 0, 1].into(), free_port([127, 0, 0, 1].into()));
        self.tor_like("client", program, socks, &format!("SocksPort {socks}\n{torrc}")).await
    }

    /// Has Tor's exits look names up at this name server.
    pub async fn exits_ask(&self, dns: &Dns) -> anyhow::Result<ExitsAsk> {
        let conf = self.folder("resolv").join("resolv.conf");
        std::fs::write(&conf, format!("nameserver {}\n", dns.addr()))?;
        let mut asks = ExitsAsk(Vec::new());
        for exit in self.net.relays().iter().filter(|relay| relay.role == Role::Exit) {
            let dir = self.net.dir().join("nodes").join(&exit.nickname);
            let (torrc, pid) = (dir.join("torrc"), self.net.pid(&exit.nickname).context("no exit")?);
            let reloads = || anyhow::Ok(std::fs::read_to_string(dir.join("log"))?.matches("(hup)").count());
            let (text, before) = (std::fs::read_to_string(&torrc)?, reloads()?);
            std::fs::write(&torrc, format!("{text}ServerDNSResolvConfFile {}\n", conf.display()))?;
            let pid = Pid::from_raw(pid.try_into()?);
            kill(pid, Signal::SIGHUP)?;
            asks.0.push((torrc, text, pid));
            let start = Instant::now();
            while reloads()? == before {
                ensure!(start.elapsed() < Duration::from_secs(20), "{} does not reload", exit.nickname);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(asks)
    }

    /// Starts an exit with C tor that is in no consensus. Also its bridge line.
    pub async fn unlisted_exit(&self) -> anyhow::Result<(CTor, BridgeLine)> {
        let ip = self.net.spare_ip();
        let at = SocketAddr::new(ip, free_port(ip));
        let torrc = format!(
            "Nickname unlisted\nAddress {ip}\nORPort {at} IPv4Only\nSocksPort 0\nPublishServerDescriptor 0\n"
        );
        let tor = self.tor_like("exit1", "tor".as_ref(), at, &torrc).await?;
        let line = tor.line(at)?;
        Ok((tor, line))
    }

    /// Starts a tor that is configured as one of the network, but for what is its own.
    async fn tor_like(
        &self,
        like: &str,
        program: &Path,
        at: SocketAddr,
        torrc: &str,
    ) -> anyhow::Result<CTor> {
        let dir = self.folder("tor");
        let known = std::fs::read_to_string(self.net.dir().join("nodes").join(like).join("torrc"))?;
        let control = SocketAddr::new([127, 0, 0, 1].into(), free_port([127, 0, 0, 1].into()));
        let mut text: String = known
            .lines()
            .filter(|line| !OF_ITS_OWN.iter().any(|key| line.starts_with(key)))
            .map(|line| format!("{line}\n"))
            .collect();
        text += &format!(
            "DataDirectory {}\nLog notice stdout\nControlPort {control}\nCookieAuthentication 1\n{torrc}",
            dir.join("data").display()
        );
        std::fs::write(dir.join("torrc"), text)?;
        let mut command = Command::new(program);
        command.arg("--defaults-torrc").arg("/dev/null").arg("-f").arg(dir.join("torrc"));
        let process = Running::start(command, &dir)?;
        let mut tor = CTor { process, way: Way { proxy: at, dir }, control };
        let start = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            ensure!(tor.process.is_alive(), "tor ended: {}", tor.process.stdout());
            ensure!(start.elapsed().as_secs() < 60, "C tor does not bootstrap: {}", tor.process.stdout());
            let Ok(mut control) = tor.control().await else { continue };
            if control.ask("GETINFO status/bootstrap-phase").await?.contains("PROGRESS=100") {
                return Ok(tor);
            }
        }
    }
}

impl CTor {
    /// How many circuits lead to this exit bridge, and are built.
    pub async fn circuits_to(&self, line: &BridgeLine) -> anyhow::Result<usize> {
        let fingerprint = data_encoding::HEXUPPER.encode(&circuit_reach(line)?.rsa);
        let status = self.control().await?.ask("GETINFO circuit-status").await?;
        let built = status.lines().filter(|line| line.contains(" BUILT ") && line.contains(&fingerprint));
        Ok(built.count())
    }

    /// A controller of it.
    pub async fn control(&self) -> anyhow::Result<Control> {
        let cookie = std::fs::read(self.way.dir.join("data/control_auth_cookie"))?;
        let stream = TcpStream::connect(self.control).await?;
        let mut control = Control { stream: BufReader::new(stream) };
        control.ask(&format!("AUTHENTICATE {}", data_encoding::HEXLOWER.encode(&cookie))).await?;
        Ok(control)
    }

    /// As an exit bridge, reached at this address.
    fn line(&self, at: SocketAddr) -> anyhow::Result<BridgeLine> {
        let data = self.way.dir.join("data");
        let identity = |file: &str| {
            let text = std::fs::read_to_string(data.join(file))?;
            Ok::<_, anyhow::Error>(text.trim().rsplit(' ').next().unwrap_or_default().to_owned())
        };
        let ntor = std::fs::read(data.join("keys/secret_onion_key_ntor"))?;
        let ntor = ntor.last_chunk().context("no ntor key")?;
        relay_line(at, &identity("fingerprint")?, &identity("fingerprint-ed25519")?, *ntor)
    }
}

/// A C tor relay as an exit bridge, by its identities as its data folder has them.
pub fn relay_line(
    at: SocketAddr,
    rsa_identity: &str,
    ed_identity: &str,
    ntor: [u8; 32],
) -> anyhow::Result<BridgeLine> {
    let ed25519 = data_encoding::BASE64_NOPAD.decode(ed_identity.as_bytes())?;
    let rsa = data_encoding::HEXUPPER.decode(rsa_identity.as_bytes())?;
    let wrong = |_| anyhow::anyhow!("the relay's identities have the wrong length");
    let reach = CircuitReach {
        addresses: vec![at],
        ed25519: ed25519.try_into().map_err(wrong)?,
        rsa: rsa.try_into().map_err(wrong)?,
        ntor,
        protocols: "FlowCtrl=1-2 Relay=1-4".into(),
    };
    Ok(BridgeLine { reach: Reach::Circuit(reach), ports: "1-65535".parse()?, expires: None })
}

/// A connection to its control port (control-spec).
pub struct Control {
    stream: BufReader<TcpStream>,
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
    pub async fn ask(&mut self, command: &str) -> anyhow::Result<String> {
        self.stream.write_all(format!("{command}\r\n").as_bytes()).await?;
        let mut answer = String::new();
        loop {
            let line = self.line().await?;
            ensure!(line.starts_with("250"), "{line}");
            answer = answer + &line + "\n";
            if line.starts_with("250+") {
                while !answer.ends_with("\n.\n") {
                    answer = answer + &self.line().await? + "\n";
                }
                continue;
            }
            if line.starts_with("250 ") {
                return Ok(answer);
            }
        }
    }
}
