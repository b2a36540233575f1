//! Browsers as people have them, with our client as their proxy and no window.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Command;

use crate::process::Running;

/// Which browser.
#[derive(Clone, Copy, Debug)]
pub enum Browser {
    /// Firefox ESR.
    Firefox,
    /// Chromium.
    Chromium,
}

/// A browser that runs; it ends, with all its processes, when this is dropped.
pub struct Visit {
    _browser: Running,
    group: Pid,
}

impl Drop for Visit {
    fn drop(&mut self) {
        let _has_ended = killpg(self.group, Signal::SIGKILL);
    }
}

impl Browser {
    /// Opens `url` with a new profile in `dir`. Everything goes to the proxy at `proxy`, names included; the authority in the file
    /// `authority` is trusted.
    pub async fn open(
        self,
        url: &str,
        proxy: SocketAddr,
        authority: &Path,
        dir: &Path,
    ) -> anyhow::Result<Visit> {
        let mut command = match self {
            Self::Firefox => firefox(proxy, authority, dir).await?,
            Self::Chromium => chromium(proxy, authority, dir).await?,
        };
        command.arg(url).env("HOME", dir).env_remove("DISPLAY").process_group(0);
        let browser = Running::start(command, dir)?;
        let group = browser.pid().and_then(|pid| i32::try_from(pid).ok()).context("it has ended")?;
        Ok(Visit { _browser: browser, group: Pid::from_raw(group) })
    }
}

/// The settings are those of docs/browsers.md; then what no page is asked for is switched off.
async fn firefox(proxy: SocketAddr, authority: &Path, dir: &Path) -> anyhow::Result<Command> {
    let texts =
        [("network.proxy.socks", proxy.ip().to_string()), ("network.proxy.no_proxies_on", String::new())];
    let numbers = [
        ("network.proxy.type", 1),
        ("network.proxy.socks_port", proxy.port().into()),
        ("network.proxy.socks_version", 5),
        ("network.trr.mode", 5),
        ("datareporting.policy.dataSubmissionPolicyBypassNotification", 1),
    ];
    let switches = [
        ("network.proxy.socks_remote_dns", true),
        ("media.peerconnection.enabled", false),
        // Origins of this network are on loopback, which browsers otherwise go to directly.
        ("network.proxy.allow_hijacking_localhost", true),
        ("browser.shell.checkDefaultBrowser", false),
        ("datareporting.policy.dataSubmissionEnabled", false),
        ("toolkit.telemetry.reportingpolicy.firstRun", false),
        ("network.captive-portal-service.enabled", false),
        ("network.connectivity-service.enabled", false),
        ("app.normandy.enabled", false),
        ("browser.safebrowsing.malware.enabled", false),
        ("browser.safebrowsing.phishing.enabled", false),
    ];
    let mut lines = String::new();
    for (name, value) in texts {
        lines.push_str(&format!("user_pref({name:?}, {value:?});\n"));
    }
    for (name, value) in numbers {
        lines.push_str(&format!("user_pref({name:?}, {value});\n"));
    }
    for (name, value) in switches {
        lines.push_str(&format!("user_pref({name:?}, {value});\n"));
    }
    std::fs::write(dir.join("user.js"), lines)?;
    trust(authority, dir).await?;
    let mut command = Command::new("firefox-esr");
    command.args(["--headless", "--no-remote", "--profile"]).arg(dir);
    Ok(command)
}

async fn chromium(proxy: SocketAddr, authority: &Path, dir: &Path) -> anyhow::Result<Command> {
    let store = dir.join(".pki/nssdb");
    std::fs::create_dir_all(&store)?;
    trust(authority, &store).await?;
    let mut command = Command::new("chromium");
    command
        .arg(format!("--proxy-server=socks5://{proxy}"))
        .arg(format!("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE {}", proxy.ip()))
        // As above: origins are on loopback.
        .arg("--proxy-bypass-list=<-loopback>")
        .arg(format!("--user-data-dir={}", dir.join("profile").display()))
        .arg("--force-webrtc-ip-handling-policy=disable_non_proxied_udp")
        .args(["--headless=new", "--no-first-run", "--disable-gpu", "--disable-background-networking"])
        // Its sandbox does not start as root.
        .arg("--no-sandbox");
    Ok(command)
}

/// Puts an authority into a store of certificates as Firefox and Chromium have them.
async fn trust(authority: &Path, store: &Path) -> anyhow::Result<()> {
    let store = format!("sql:{}", store.display());
    for args in [&["-N", "--empty-password"][..], &["-A", "-n", "origins", "-t", "C,,", "-i"][..]] {
        let mut certutil = Command::new("certutil");
        certutil.args(["-d", &store]).args(args);
        if args[0] == "-A" {
            certutil.arg(authority);
        }
        let out = certutil.output().await.context("certutil, of the package libnss3-tools")?;
        ensure!(out.status.success(), "certutil: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(())
}
