//! The volunteer's app under test: on a machine whose facts a case writes into a file, or on a desktop with an X server, where the
//! package was installed.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
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
    /// Where it is, if it is on one.
    pub desktop: Option<Desktop>,
}

/// A virtual display, and a machine with nothing on it but our package.
pub struct Desktop {
    _server: Running,
    display: String,
    root: PathBuf,
}

impl Desktop {
    /// With this package installed.
    pub async fn start(lab: &Lab, package: &Path) -> anyhow::Result<Self> {
        let dir = lab.folder("desktop");
        let mut command = Command::new("Xvfb");
        command.args(["-displayfd", "1", "-noreset", "-nolisten", "tcp"]);
        let mut server = Running::start(command, &dir)?;
        let display = server.wait_for("a display", |out, _| out.strip_suffix('\n').map(String::from)).await?;
        let root = dir.join("root");
        for folder in ["info", "updates", "triggers"] {
            std::fs::create_dir_all(root.join("var/lib/dpkg").join(folder))?;
        }
        for file in ["status", "available"] {
            std::fs::write(root.join("var/lib/dpkg").join(file), "")?;
        }
        let desktop = Self { _server: server, display: format!(":{display}"), root };
        // What it depends on is on the machine around it.
        desktop.dpkg(&["--force-depends", "--install", package.to_str().context("path")?]).await?;
        Ok(desktop)
    }

    /// Runs the package manager.
    pub async fn dpkg(&self, args: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new("dpkg");
        command.arg(format!("--root={}", self.root.display())).arg("--log=/dev/null").args(args);
        let out = command.kill_on_drop(true).output().await?;
        ensure!(out.status.success(), "{out:?}");
        Ok(())
    }

    /// All files on it that are not the package manager's own.
    pub fn files(&self) -> Vec<PathBuf> {
        let own = self.root.join("var/lib/dpkg");
        walk(&self.root).into_iter().filter(|path| !path.starts_with(&own)).collect()
    }

    /// Somebody moves the pointer.
    pub async fn move_pointer(&self) -> anyhow::Result<()> {
        let mut command = Command::new("xdotool");
        command.args(["mousemove", "300", "300", "mousemove", "400", "400"]).env("DISPLAY", &self.display);
        ensure!(command.status().await?.success(), "xdotool");
        Ok(())
    }
}

/// All files below a folder.
pub fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

impl Lab {
    /// A home machine that found these directories, where the app was just installed; nobody has used it for an hour.
    pub async fn volunteer(&self, directory: Option<&Directory>) -> anyhow::Result<Volunteer> {
        self.volunteer_with(directory, |_| {}, None).await
    }

    /// The same, with another configuration, and on a desktop.
    pub async fn volunteer_with(
        &self,
        directory: Option<&Directory>,
        change: impl FnOnce(&mut Value),
        desktop: Option<Desktop>,
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
        let process = start(&dir, desktop.as_ref()).await?;
        let volunteer = Volunteer { process, ip, dir, desktop };
        volunteer.machine(json!({ "idle": 3600 }))?;
        Ok(volunteer)
    }
}

/// Its program, for a home of its own: what starts at log-in is written there.
fn program(dir: &Path, desktop: Option<&Desktop>) -> Command {
    let mut command = match desktop {
        None => Command::new(binary("hebtor-volunteer")),
        Some(desktop) => {
            let mut command = Command::new(desktop.root.join("usr/bin/hebtor-volunteer"));
            command.env("DISPLAY", &desktop.display);
            command
        }
    };
    command.env("HOME", dir.join("home")).env("XDG_CONFIG_HOME", dir.join("home/.config"));
    command.arg("--config").arg(dir.join("volunteer.toml"));
    command
}

async fn start(dir: &Path, desktop: Option<&Desktop>) -> anyhow::Result<Running> {
    let mut command = program(dir, desktop);
    match desktop {
        None => command.arg("--headless").arg("--facts").arg(dir.join("facts.json")),
        Some(_) => command.arg("--hidden"),
    };
    command.env("RUST_LOG", LOG);
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
        let Self { process, ip, dir, desktop } = self;
        drop(process);
        Ok(Self { process: start(&dir, desktop.as_ref()).await?, ip, dir, desktop })
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
        let mut command = program(&self.dir, self.desktop.as_ref());
        // No browser: nobody looks.
        command.args(args).env("PATH", "/nowhere");
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
