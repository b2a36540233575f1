//! `eebt` with real exit bridges on this machine.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::Suite;

pub fn cases(suite: &mut Suite) {
    suite.case("eebt up, ls, down: exit bridges that serve, and nothing left behind", async |lab| {
        let operator = lab.operator();
        let lines = operator.lines("3", "1h").await?;
        ensure!(lines.len() == 3, "{} lines", lines.len());

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
        let operator = lab.operator();
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

    suite.case(
        "eebt run: an exit bridge that a site has come to know is replaced by one that it lets in",
        async |lab| {
            let canary = Canary::start(lab.origins.blocking_tor_exits().addr().ip())?;
            let operator = lab.operator();
            let lines = operator.state.with_extension("lines");
            let mut run = operator.make("run", &format!("{},{}", lab.ports(), canary.addr.port()));
            run.args(["--count", "2", "--spares", "0", "--interval", "1s", "--check-every", "2s"]);
            run.args(["--canary", &format!("http://{}/", canary.addr), "--lines-file"]).arg(&lines);
            let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
            let serving = async || -> anyhow::Result<Vec<serde_json::Value>> {
                let ls: serde_json::Value = serde_json::from_str(&operator.run(&["ls", "--json"]).await?)?;
                let rows = ls["instances"].as_array().context("instances")?.clone();
                Ok(rows.into_iter().filter(|row| row["state"] == "running").collect())
            };
            let until = async |what: &str, enough: &dyn Fn(&[serde_json::Value]) -> bool| {
                for _ in 0..120 {
                    let rows = serving().await?;
                    if enough(&rows) {
                        return Ok(rows);
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                anyhow::bail!("never: {what}")
            };
            let ip = |row: &serde_json::Value| -> anyhow::Result<IpAddr> {
                Ok(row["address"].as_str().context("address")?.parse::<SocketAddr>()?.ip())
            };
            let rows = until("two serve", &|rows| rows.len() == 2).await?;
            let both = (ip(&rows[0])?, ip(&rows[1])?);
            for _ in 0..60 {
                if canary.visitors().is_superset(&[both.0, both.1].into()) {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            ensure!(
                canary.visitors() == [both.0, both.1].into(),
                "it is visited through both: {:?}",
                canary.visitors()
            );

            canary.turn_away(both.0);
            let rows = until("another one", &|rows| {
                rows.len() == 2 && rows.iter().all(|row| ip(row).ok() != Some(both.0))
            })
            .await;
            let rows = rows.with_context(|| format!("{:?}", canary.visitors()))?;
            ensure!(rows.iter().any(|row| ip(row).ok() == Some(both.1)), "the other one stays: {rows:?}");
            let known = operator.run(&["history", "--json"]).await?;
            ensure!(known.contains(&format!("http://{}/", canary.addr)), "{known}");

            // Whoever runs it may stop it: what serves goes on, and the file has its lines.
            let lines = std::fs::read_to_string(&lines)?;
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(run.id().context("pid")?.try_into()?),
                nix::sys::signal::SIGTERM,
            )?;
            ensure!(run.wait().await?.success());
            ensure!(lines.lines().count() == 2, "{} lines", lines.lines().count());
            let client = lines
                .lines()
                .try_fold(lab.client(), |client, line| anyhow::Ok(client.via_line(&line.parse()?)))?;
            let client = client.run().await?;
            ensure!(client.get(&lab.origins.blocking_tor_exits().url("/")).await?.status == 200);
            operator.run(&["down", "--all", "--now"]).await?;
            Ok(())
        },
    );

    suite.case("an instance ends at its expiry though eebt is gone", async |lab| {
        let operator = lab.operator();
        operator.lines("1", "1m").await?;
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

/// A site that turns away whom it knows.
struct Canary {
    addr: SocketAddr,
    known: Arc<Mutex<(BTreeSet<IpAddr>, BTreeSet<IpAddr>)>>,
}

impl Canary {
    /// Goes on until the process ends.
    fn start(ip: IpAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((ip, 0))?;
        let (addr, known) =
            (listener.local_addr()?, Arc::<Mutex<(BTreeSet<IpAddr>, BTreeSet<IpAddr>)>>::default());
        let shared = Arc::clone(&known);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let Ok(peer) = stream.peer_addr() else { continue };
                let is_known = {
                    let mut known = shared.lock().expect("lock");
                    known.0.insert(peer.ip());
                    known.1.contains(&peer.ip())
                };
                let _ = stream.read(&mut [0; 4096]);
                let status = if is_known { "429 Too Many Requests" } else { "200 OK" };
                let _ =
                    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 3\r\nConnection: close\r\n\r\nhi\n");
            }
        });
        Ok(Self { addr, known })
    }

    fn visitors(&self) -> BTreeSet<IpAddr> {
        self.known.lock().expect("lock").0.clone()
    }

    fn turn_away(&self, ip: IpAddr) {
        self.known.lock().expect("lock").1.insert(ip);
    }
}
