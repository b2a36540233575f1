//! `eebt` with a ledger of its own.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::ensure;
use eebt_proto::BridgeLine;
use tokio::process::Command;

use crate::{CTor, Lab, Running, binary};

/// Runs `eebt` on a network, with a ledger that nobody else has.
pub struct Operator<'a> {
    lab: &'a Lab,
    /// Where the ledger is.
    pub state: PathBuf,
}

impl Lab {
    /// An operator who has no exit bridges yet.
    pub fn operator(&self) -> Operator<'_> {
        Operator { lab: self, state: self.folder("eebt") }
    }
}

impl Operator<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("eebt"));
        command.arg("--state-dir").arg(&self.state).args(args).kill_on_drop(true);
        command
    }

    /// Runs `eebt` with these arguments. Returns what it printed.
    pub async fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        output(self.command(args)).await
    }

    /// `eebt up` with exit bridges on this machine, which may fetch the pages that turn Tor away.
    pub fn up(&self, count: &str, lifetime: &str) -> Command {
        let mut command = self.make("up", &self.lab.ports());
        command.args(["--count", count, "--lifetime", lifetime]);
        command
    }

    /// `eebt up` or `eebt run`; exit bridges reach the address of the origins that turn Tor away, at these ports.
    pub fn make(&self, verb: &str, ports: &str) -> Command {
        let net = self.lab.net.network_file().display().to_string();
        let origin = format!("{}/32", self.lab.origins.blocking_tor_exits().addr().ip());
        // A /24 of this network's own slice of loopback.
        let IpAddr::V4(spare) = self.lab.net.spare_ip() else { unreachable!("loopback is IPv4") };
        let [a, b, ..] = spare.octets();
        let range = format!("{a}.{b}.200.0/24");
        let mut command = self.command(&[verb, "--provider", "local", "--allow-ingress", "127.0.0.1/32"]);
        command.args(["--network", &net, "--address", &range, "--allow-egress", &origin, "--policy", ports]);
        command
    }

    /// `eebt attach` to a tor, for these hosts, with further arguments; waits until it is.
    pub async fn attach(
        &self,
        tor: &CTor,
        lines: &[&BridgeLine],
        hosts: &[String],
        more: &[&str],
    ) -> anyhow::Result<Running> {
        let mut attached = self.attach_until(None, tor, lines, hosts, more)?;
        attached.wait_for("attached", |_, err| err.contains("ready: ").then_some(())).await?;
        Ok(attached)
    }

    /// The same, not waited for. It dies where it is told to.
    pub fn attach_until(
        &self,
        crash_at: Option<&str>,
        tor: &CTor,
        lines: &[&BridgeLine],
        hosts: &[String],
        more: &[&str],
    ) -> anyhow::Result<Running> {
        let mut command = self.command(&["attach", "--json", "--control", &tor.control.to_string()]);
        let dir = self.lab.folder("attach");
        let file = dir.join("lines");
        std::fs::write(&file, lines.iter().map(|line| format!("{line}\n")).collect::<String>())?;
        command.arg("--bridge-file").arg(file).arg("--network").arg(self.lab.net.network_file()).args(more);
        for host in hosts {
            command.args(["--for", host]);
        }
        command.envs(crash_at.map(|point| ("EEBT_CRASH_AT", point)));
        Running::start(command, &dir)
    }

    /// `eebt up`, waited for: the bridge lines that it printed.
    pub async fn lines(&self, count: &str, lifetime: &str) -> anyhow::Result<Vec<BridgeLine>> {
        output(self.up(count, lifetime)).await?.lines().map(|line| Ok(line.parse()?)).collect()
    }
}

async fn output(mut command: Command) -> anyhow::Result<String> {
    let out = command.output().await?;
    ensure!(out.status.success(), "eebt: {}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8(out.stdout)?)
}
