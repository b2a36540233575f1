//! `eebt` with real exit bridges on this machine.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tests::{Lab, binary};
use tokio::process::Command;

use crate::Suite;

/// `eebt` with a ledger of its own.
struct Operator<'a> {
    lab: &'a Lab,
    state: std::path::PathBuf,
}

impl Operator<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("eebt"));
        command.arg("--state-dir").arg(&self.state).args(args).kill_on_drop(true);
        command
    }

    async fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        let out = self.command(args).output().await?;
        let stderr = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "eebt {args:?}: {stderr}");
        Ok(String::from_utf8(out.stdout)?)
    }

    fn up(&self, count: &str, lifetime: &str) -> Command {
        let net = self.lab.net.network_file().display().to_string();
        let origin = format!("{}/32", self.lab.origins.blocking_tor_exits().addr().ip());
        // A /24 of this network's own slice of loopback.
        let std::net::IpAddr::V4(spare) = self.lab.net.spare_ip() else { unreachable!("loopback is IPv4") };
        let [a, b, ..] = spare.octets();
        let range = format!("{a}.{b}.200.0/24");
        let policy = self.lab.ports();
        self.command(&[
            "up",
            "--provider",
            "local",
            "--count",
            count,
            "--lifetime",
            lifetime,
            "--network",
            &net,
            "--address",
            &range,
            "--allow-egress",
            &origin,
            "--allow-ingress",
            "127.0.0.1/32",
            "--policy",
            &policy,
        ])
    }
}

pub fn cases(suite: &mut Suite) {
    suite.case("eebt up, ls, down: exit bridges that serve, and nothing left behind", async |lab| {
        let operator = Operator { lab, state: lab.folder("eebt") };
        let out = operator.up("3", "1h").output().await?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let stdout = String::from_utf8(out.stdout)?;
        let lines = stdout
            .lines()
            .map(|l| Ok(l.parse()?))
            .collect::<anyhow::Result<Vec<eebt_proto::BridgeLine>>>()?;
        ensure!(lines.len() == 3, "{stdout}");

        let client = lines.iter().fold(lab.client(), |c, line| c.via_line(line)).run().await?;
        ensure!(client.get(&lab.origins.blocking_tor_exits().url("/")).await?.status == 200);

        let ls: serde_json::Value = serde_json::from_str(&operator.run(&["ls", "--json"]).await?)?;
        ensure!(ls["instances"].as_array().context("instances")?.len() == 3, "{ls}");
        operator.run(&["down", "--all"]).await?;
        let ls: serde_json::Value = serde_json::from_str(&operator.run(&["ls", "--json"]).await?)?;
        ensure!(ls["instances"].as_array().context("instances")?.is_empty(), "{ls}");
        ensure!(client.get(&lab.origins.blocking_tor_exits().url("/")).await?.status == 0);
        Ok(())
    });

    suite.case("eebt killed at any moment: the next run shows the truth", async |lab| {
        let operator = Operator { lab, state: lab.folder("eebt") };
        for delay in [50, 150, 300, 500, 800, 1200] {
            let mut up = operator
                .up("2", "1h")
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()?;
            tokio::time::sleep(Duration::from_millis(delay)).await;
            up.kill().await?;
        }
        operator.run(&["ls"]).await?;
        operator.run(&["down", "--all", "--now"]).await?;
        let mine = operator.state.display().to_string();
        let left: Vec<String> = std::fs::read_dir("/proc")?
            .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .filter(|line| line.contains("eebt-bridge") && line.contains(&mine))
            .collect();
        ensure!(left.is_empty(), "still running: {left:?}");
        Ok(())
    });

    suite.case("an instance ends at its expiry though eebt is gone", async |lab| {
        let operator = Operator { lab, state: lab.folder("eebt") };
        let out = operator.up("1", "1m").output().await?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let mut left = 1;
        for _ in 0..80 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let ls: serde_json::Value = serde_json::from_str(&operator.run(&["ls", "--json"]).await?)?;
            left = ls["instances"].as_array().context("instances")?.len();
            if left == 0 {
                break;
            }
        }
        ensure!(left == 0, "it outlived its minute");
        let all = operator.run(&["ls", "--all", "--json"]).await?;
        ensure!(all.contains("expired"), "{all}");
        Ok(())
    });
}
