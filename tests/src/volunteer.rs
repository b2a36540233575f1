//! The volunteer's app under test, on a machine whose facts a case writes into a file.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::Lab;
use crate::directory::Directory;
use crate::lab::LOG;
use crate::process::{Running, binary};

/// The app.
pub struct Volunteer {
    /// Its process.
    pub process: Running,
    /// The address that origins see.
    pub ip: IpAddr,
    /// Its folder: configuration, facts, and in `state` all else.
    pub dir: PathBuf,
}

impl Lab {
    /// A home machine that found these directories, where the app was just installed; nobody has used it for an hour.
    pub async fn volunteer(&self, directory: Option<&Directory>) -> anyhow::Result<Volunteer> {
        self.volunteer_with(directory, |_| {}).await
    }

    /// The same, with another configuration.
    pub async fn volunteer_with(
        &self,
        directory: Option<&Directory>,
        change: impl FnOnce(&mut Value),
    ) -> anyhow::Result<Volunteer> {
        let (ip, dir) = (self.net.spare_ip(), self.folder("volunteer"));
        let opens: Vec<_> = self.origins.all().iter().map(|o| format!("{}/32", o.addr().ip())).collect();
        let echo = directory.map(|directory| format!("{}/32", directory.echo.ip()));
        let ports = directory.map(|directory| format!(",{}", directory.echo.port())).unwrap_or_default();
        let opens: Vec<_> = opens.into_iter().chain(echo).collect();
        let directories: Vec<_> = directory.iter().map(|directory| directory.address.to_string()).collect();
        let mut config = json!({
            "state_dir": dir.join("state"),
            "page": "127.0.0.1:0",
            "directories": directories,
            "block_lists": [],
            "bridge": {
                "network": self.net.network_file(),
                "egress_address": ip,
                "policy": self.ports() + &ports,
                "allow_egress": opens,
            },
        });
        change(&mut config);
        std::fs::write(dir.join("volunteer.toml"), toml::to_string(&config)?)?;
        let process = start(&dir).await?;
        let volunteer = Volunteer { process, ip, dir };
        volunteer.machine(json!({ "idle": 3600 }))?;
        Ok(volunteer)
    }
}

async fn start(dir: &std::path::Path) -> anyhow::Result<Running> {
    let mut command = Command::new(binary("hebtor-volunteer"));
    command.arg("--headless").arg("--config").arg(dir.join("volunteer.toml"));
    command.arg("--facts").arg(dir.join("facts.json")).env("RUST_LOG", LOG);
    command.env("HOME", dir.join("home")).env("XDG_CONFIG_HOME", dir.join("home/.config"));
    let mut process = Running::start(command, dir)?;
    process
        .wait_for("ready line", |_, err| err.lines().any(|l| l.starts_with("ready: ")).then_some(()))
        .await?;
    Ok(process)
}

impl Volunteer {
    /// What is true of the machine from now on.
    pub fn machine(&self, facts: Value) -> anyhow::Result<()> {
        let new = self.dir.join("facts.new");
        std::fs::write(&new, facts.to_string())?;
        Ok(std::fs::rename(new, self.dir.join("facts.json"))?)
    }

    /// Starts it again, after it ended.
    pub async fn restart(self) -> anyhow::Result<Self> {
        let Self { process, ip, dir } = self;
        drop(process);
        Ok(Self { process: start(&dir).await?, ip, dir })
    }

    /// Ends it in order, and starts it again.
    pub async fn end_and_restart(mut self) -> anyhow::Result<Self> {
        self.process.signal(nix::sys::signal::Signal::SIGTERM);
        ensure!(
            self.process.exit_code(Duration::from_secs(60)).await? == Some(0),
            "{}",
            self.process.stderr()
        );
        self.restart().await
    }

    /// Runs its program with further arguments; what it printed.
    pub async fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(binary("hebtor-volunteer"));
        command.args(args).arg("--config").arg(self.dir.join("volunteer.toml"));
        // A home of its own: what starts at log-in is written there. No browser: nobody looks.
        let home = self.dir.join("home");
        command.env("HOME", &home).env("XDG_CONFIG_HOME", home.join(".config")).env("PATH", "/nowhere");
        let out = command.output().await?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8(out.stdout)?.trim().to_owned())
    }

    /// The address of its page.
    pub async fn url(&self) -> anyhow::Result<String> {
        self.run(&["open", "--print"]).await
    }

    /// Sends a form of the page.
    pub async fn form(&self, form: &str, fields: &str) -> anyhow::Result<()> {
        let url = self.url().await?;
        let host = url.split('/').nth(2).context("host")?;
        let mut curl = Command::new("curl");
        curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*", "--max-time", "20"]);
        curl.args(["-H", &format!("Origin: http://{host}"), "--data", fields]).arg(format!("{url}{form}"));
        let status = String::from_utf8(curl.output().await?.stdout)?;
        ensure!(status == "303", "{form}: {status}");
        Ok(())
    }

    /// What it tells programs.
    pub async fn status(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.run(&["status", "--json"]).await?)?)
    }

    /// Waits until a field of the status has this value; how long that took.
    pub async fn until(
        &self,
        field: &str,
        value: impl Into<Value>,
        limit: Duration,
    ) -> anyhow::Result<Duration> {
        let (start, value) = (Instant::now(), value.into());
        loop {
            let status = self.status().await?;
            if status[field] == value {
                return Ok(start.elapsed());
            }
            ensure!(
                start.elapsed() < limit,
                "{field} does not become {value}: {status}\n{}",
                self.process.stderr()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The process of the exit bridge, if there is one.
    pub fn engine(&self) -> Option<u32> {
        let pid = self.process.pid()?;
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }
}
