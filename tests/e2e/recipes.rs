//! The lines of docs/recipes.md, as a person would paste them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use eebt_proto::directory::TICKET_TERMS;
use tests::{Bridge, Dns, Lab, Running};
use tokio::process::Command;

use crate::Suite;

const RECIPES: &str = include_str!("../../docs/recipes.md");

/// How long one of them may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Each is run in both: through an exit bridge alone, and as the client decides by itself.
const MODES: [&str; 2] = ["always", "auto"];

pub fn cases(suite: &mut Suite) {
    for mode in MODES {
        suite.case(
            &format!("recipes, mode {mode}: curl, by its option and by the environment"),
            async move |lab| curl(lab, mode).await,
        );
        suite.case(&format!("recipes, mode {mode}: git clones"), async move |lab| git(lab, mode).await);
        suite.case(&format!("recipes, mode {mode}: ssh by a command for a proxy"), async move |lab| {
            ssh(lab, mode).await
        });
        suite.case(
            &format!("recipes, mode {mode}: torsocks, for names and for onion services"),
            async move |lab| torsocks(lab, mode).await,
        );
    }
}

/// The address that a site sees which lets Tor in.
fn expected(lab: &Lab, bridge: &Bridge, mode: &str) -> String {
    let ip = if mode == "auto" { lab.net.exit_egress_ip() } else { bridge.ip };
    ip.to_string()
}

async fn curl(lab: &Lab, mode: &str) -> anyhow::Result<()> {
    let bridge = lab.bridge().run().await?;
    let client = lab.client().via(&bridge).set("mode", mode).run().await?;
    let dir = lab.folder("curl");
    for beginning in ["curl ", "ALL_PROXY="] {
        let url = lab.origins.open().url("/peer");
        let said = run(beginning, client.proxy, ("http://example.com/", &url), &dir).await?;
        ensure!(said == expected(lab, &bridge, mode), "{said}");
        // And one that does not.
        let url = lab.origins.blocking_tor_exits().url("/");
        let said = run(beginning, client.proxy, ("http://example.com/", &url), &dir).await?;
        ensure!(said.contains(&format!("Your address: {}", bridge.ip)), "{said}");
    }
    Ok(())
}

async fn git(lab: &Lab, mode: &str) -> anyhow::Result<()> {
    let served = lab.folder("git");
    let made = "git init -q --bare project.git && git clone -q project.git work 2>&1 && cd work && echo hello >file \
        && git add file && git -c user.name=x -c user.email=x@example.com commit -q -m x && git push -q \
        && cd ../project.git && git update-server-info";
    shell(made, &served).await?;
    let addr = SocketAddr::new(lab.net.spare_ip(), 8000);
    let (ip, port) = (addr.ip().to_string(), addr.port().to_string());
    let mut server = Command::new("python3");
    server.args(["-u", "-m", "http.server", "--bind", &ip, &port, "--directory"]).arg(&served);
    let mut server = Running::start(server, &lab.folder("git-server"))?;
    server.wait_for("its address", |out, _| out.contains("Serving").then_some(())).await?;

    let bridge = lab.bridge().opens(addr).run().await?;
    let client = lab.client().via(&bridge).set("mode", mode).run().await?;
    let dir = lab.folder("clone");
    let url = format!("http://{addr}/project.git");
    run("git ", client.proxy, ("http://example.com/project.git", &url), &dir).await?;
    ensure!(std::fs::read_to_string(dir.join("project/file"))? == "hello\n");
    let (asked, visitor) = (server.stderr(), expected(lab, &bridge, mode));
    ensure!(asked.lines().filter(|l| l.contains("GET")).all(|l| l.starts_with(&visitor)), "{asked}");
    Ok(())
}

async fn ssh(lab: &Lab, mode: &str) -> anyhow::Result<()> {
    let dir = lab.folder("ssh");
    let addr = SocketAddr::new(lab.net.spare_ip(), 2222);
    shell("ssh-keygen -q -t ed25519 -N '' -f host && ssh-keygen -q -t ed25519 -N '' -f person", &dir).await?;
    std::fs::create_dir_all("/run/sshd")
        .or_else(|e| if Path::new("/run/sshd").exists() { Ok(()) } else { Err(e) })?;
    let at = |name: &str| dir.join(name).display().to_string();
    let config = format!(
        "ListenAddress {addr}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\nStrictModes no\n\
         PasswordAuthentication no\nLogLevel VERBOSE\n",
        at("host"),
        at("person.pub"),
    );
    std::fs::write(dir.join("sshd_config"), config)?;
    let mut server = Command::new("/usr/sbin/sshd");
    server.args(["-D", "-e", "-f", &at("sshd_config")]);
    let mut server = Running::start(server, &dir)?;
    server.wait_for("its address", |_, err| err.contains("Server listening").then_some(())).await?;

    let bridge = lab.bridge().opens(addr).run().await?;
    let client = lab.client().via(&bridge).set("mode", mode).run().await?;
    // What belongs to this server, not to the recipe.
    let host = format!(
        "-p {} -i {} -o IdentitiesOnly=yes -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -o LogLevel=ERROR {} echo hello",
        addr.port(),
        at("person"),
        addr.ip(),
    );
    let said = run("ssh ", client.proxy, ("user@example.com", &host), &dir).await?;
    ensure!(said == "hello", "{said}");
    let log = server.stderr();
    ensure!(log.contains(&format!("Connection from {}", expected(lab, &bridge, mode))), "{log}");
    Ok(())
}

async fn torsocks(lab: &Lab, mode: &str) -> anyhow::Result<()> {
    let dns = Dns::start(lab.net.spare_ip()).await?;
    let site = lab.origins.open().addr().ip().to_string();
    dns.set("site.example.net", &[&site]);
    let bridge = lab.bridge().set("resolver", vec![dns.addr().to_string()]).run().await?;
    let client = lab.client().via(&bridge).set("mode", mode).run().await?;
    let dir = lab.folder("torsocks");
    let (getent, wget) = (
        "torsocks --address 127.0.0.1 --port 9150 getent ",
        "torsocks --address 127.0.0.1 --port 9150 wget ",
    );
    // In mode auto names are looked up at a Tor exit, and those of this network have no name server.
    if mode == "always" {
        let said = run(getent, client.proxy, ("example.com", "site.example.net"), &dir).await?;
        ensure!(said.starts_with(&site), "{said}");
        ensure!(dns.asked("site.example.net") >= 1, "it was looked up at the exit bridge");
    }

    let directory = lab.directory().run().await?;
    let onion = directory.address.to_string();
    let target = ("example.onion/", format!("{onion}{TICKET_TERMS}"));
    // Its descriptor may take a moment to be found.
    let mut tries = 20;
    let said = loop {
        tries -= 1;
        match run(wget, client.proxy, (target.0, &target.1), &dir).await {
            Err(_) if tries > 0 => tokio::time::sleep(Duration::from_secs(1)).await,
            said => break said?,
        }
    };
    ensure!(said.contains('{'), "{said}");
    Ok(())
}

/// Runs the recipe that begins so, with the proxy and the target that there are. What it wrote to stdout.
async fn run(beginning: &str, proxy: SocketAddr, target: (&str, &str), dir: &Path) -> anyhow::Result<String> {
    let mut recipes =
        RECIPES.lines().filter_map(|line| line.strip_prefix("    ")).filter(|l| l.starts_with(beginning));
    let recipe = recipes.next().with_context(|| format!("no recipe begins with {beginning:?}"))?;
    ensure!(recipe.contains(target.0) && recipe.contains("9150"), "{recipe}");
    let line = recipe
        .replace("127.0.0.1:9150", &proxy.to_string())
        .replace("--port 9150", &format!("--port {}", proxy.port()))
        .replace(target.0, target.1);
    shell(&line, dir).await
}

async fn shell(line: &str, dir: &Path) -> anyhow::Result<String> {
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(dir).env("HOME", dir).kill_on_drop(true);
    let out = tokio::time::timeout(LIMIT, command.output()).await.context("it takes too long")??;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{line}: {}\n{said}", out.status);
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}
