//! No packet leaves but to a guard, whatever happens: watched by the kernel, in a network of its own.
//!
//! The case runs itself again in a new network namespace, with a private Tor network and all routes in it. Client and programs run as
//! users of their own there, and nftables counts what they send elsewhere than they may.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;
use testnet::Role;
use tests::{Dns, Lab, Running, binary};
use tokio::process::Command;

use crate::{Suite, auto, selftest};

/// Says that this process is the one inside, and what it is for.
pub const INSIDE: &str = "EXIT_BRIDGE_INSIDE";

/// It is for this file's case.
const LEAK: &str = "leak";

/// Users that nobody else is here.
const CLIENT: u32 = 54_001;
const PROGRAM: u32 = 54_002;

/// Addresses of nobody (RFC 5737, RFC 3849), for what would go directly.
const ELSEWHERE: [&str; 2] = ["http://192.0.2.99/", "http://[2001:db8::99]/"];

pub fn cases(suite: &mut Suite) {
    suite.case_if(
        can_watch(),
        "no packet leaves but to a guard, whatever happens (needs root)",
        async |lab| {
            let said = in_own_network(lab, LEAK).await?;
            for (situation, _) in SITUATIONS {
                ensure!(said.contains(&format!("quiet: {situation}")), "{situation} was not tried:\n{said}");
            }
            Ok(())
        },
    );
}

/// Runs this program again in a network of its own, which is for this; what it said.
pub async fn in_own_network(lab: &Lab, what: &str) -> anyhow::Result<String> {
    let mut inside = Command::new("unshare");
    inside.args(["--net", "--"]).arg(std::env::current_exe()?).env(INSIDE, what).kill_on_drop(true);
    let out = inside.current_dir(lab.folder("inside")).output().await?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(out.status.success(), "{said}");
    Ok(said)
}

/// Can this process have a network of its own, and rules in it?
pub fn can_watch() -> bool {
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let mut probe = std::process::Command::new("unshare");
    probe.args(["--net", "--", "nft", "add", "table", "inet", "probe"]);
    root && probe.output().is_ok_and(|out| out.status.success())
}

/// What may happen to a person, and what is watched then.
type Situation =
    (&'static str, for<'a> fn(&'a mut Inside<'_>) -> futures::future::BoxFuture<'a, anyhow::Result<()>>);
const SITUATIONS: [Situation; 9] = [
    ("pages over Tor and through an exit bridge", |i| Box::pin(i.pages())),
    ("an exit bridge that lies about names", |i| Box::pin(i.lies())),
    ("names that do not resolve, addresses that are private, onion services that are not there", |i| {
        Box::pin(i.nowhere())
    }),
    ("the exit bridge is killed", |i| Box::pin(i.exit_bridge_dies())),
    ("the configuration is broken while it runs", |i| Box::pin(i.broken_files())),
    ("the client is killed, and started again", |i| Box::pin(i.client_dies())),
    ("it tests itself", |i| Box::pin(i.self_test())),
    ("the guards are killed", |i| Box::pin(i.guards_die())),
    ("the client is started again with nothing that answers", |i| Box::pin(i.nobody_answers())),
];

/// In the first so many of them the relays reached are held against the client's guards, by its state. Later it was seen to
/// reach others that can be guards, too, within a minute. Why is not known: a consensus of this network lasts for half
/// a minute, so it may be for the next one.
const GUARDS_ALONE: usize = 1;

/// How many guards a client has (guard-spec, `guard-n-primary-guards`).
const GUARDS: usize = 3;

/// The inner process: brings everything up.
pub async fn inside(what: &str) -> anyhow::Result<()> {
    run("ip", &["link", "set", "lo", "up"]).await?;
    // Everywhere is reachable: what would leak is sent, and seen.
    run("ip", &["addr", "add", "192.0.2.2/32", "dev", "lo"]).await?;
    run("ip", &["-6", "addr", "add", "2001:db8::2/128", "dev", "lo", "nodad"]).await?;
    run("ip", &["route", "add", "default", "dev", "lo", "src", "192.0.2.2"]).await?;
    run("ip", &["-6", "route", "add", "default", "dev", "lo", "src", "2001:db8::2"]).await?;

    let lab = Lab::start().await?;
    let result = match what {
        LEAK => all_situations(&lab).await,
        auto::REFUSED => auto::refused(&lab).await,
        other => bail!("{other} is not known"),
    };
    lab.shutdown(false).await?;
    result
}

async fn all_situations(lab: &Lab) -> anyhow::Result<()> {
    let mut inside = Inside::start(lab).await?;
    inside.watch_sees().await?;
    // The first consensus came from any of the relays that are known for that.
    inside.reached().await?;
    run("nft", &["flush", "set", "inet", "watch", "reached"]).await?;
    for (n, (situation, happens)) in SITUATIONS.into_iter().enumerate() {
        happens(&mut inside).await.context(situation)?;
        let (packets, to) = inside.leaked().await?;
        ensure!(packets == 0, "{situation}: {packets} packets elsewhere: {to}");
        if n < GUARDS_ALONE {
            inside.only_its_guards().await.context(situation)?;
        }
        eprintln!("quiet: {situation}");
    }
    Ok(())
}

struct Inside<'a> {
    lab: &'a Lab,
    dns: Dns,
    bridge: Option<tests::Bridge>,
    client: Option<Running>,
    /// A folder of the client's user, with its program and all it needs.
    dir: PathBuf,
    proxy: SocketAddr,
    _home: tempfile::TempDir,
}

impl<'a> Inside<'a> {
    async fn start(lab: &'a Lab) -> anyhow::Result<Self> {
        let dns = Dns::start(lab.net.spare_ip()).await?;
        let bridge = lab.bridge().set("resolver", vec![dns.addr().to_string()]).run().await?;
        let home = tempfile::tempdir()?;
        let dir = home.path().to_owned();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700))?;
        std::fs::copy(binary("eebt-client"), dir.join("eebt-client"))?;
        std::fs::copy(lab.net.network_file(), dir.join("network.toml"))?;
        std::fs::write(dir.join("bridges.txt"), bridge.line.to_string())?;
        std::fs::copy(lab.origins.ca_file(), dir.join("ca.pem"))?;
        let proxy = SocketAddr::new(lab.net.spare_ip(), 9150);
        let config = format!(
            "network = \"network.toml\"\nlisten = [\"{proxy}\"]\nbridge_file = \"bridges.txt\"\nstate_dir = {:?}\nprobe = true\n\
             mode = \"auto\"\nrules = [\"lies.example=exit-bridge\"]\npatience = \"2s\"\n",
            dir.join("state").display().to_string(),
        );
        std::fs::write(dir.join("client.toml"), config)?;
        run("chown", &["-R", &format!("{CLIENT}:{CLIENT}"), &dir.display().to_string()]).await?;
        watch(lab, proxy).await?;
        let mut inside = Self { lab, dns, bridge: Some(bridge), client: None, dir, proxy, _home: home };
        inside.start_client().await?;
        Ok(inside)
    }

    fn program(&self) -> Command {
        let mut command = Command::new(self.dir.join("eebt-client"));
        command.current_dir(&self.dir).env("HOME", &self.dir);
        command.env("SSL_CERT_FILE", self.dir.join("ca.pem")).uid(CLIENT).gid(CLIENT);
        command
    }

    fn command(&self) -> Command {
        let mut command = self.program();
        command.args(["--config", "client.toml"]);
        command
    }

    async fn start_client(&mut self) -> anyhow::Result<()> {
        self.client = None; // its port
        let mut client = Running::start(self.command(), &self.lab.folder("watched"))?;
        client.wait_for("ready line", |_, err| err.contains("ready: ").then_some(())).await?;
        self.client = Some(client);
        Ok(())
    }

    /// A fetch by a program that uses the client: the status, 0 without one.
    async fn fetch(&self, url: &str) -> anyhow::Result<u16> {
        let proxy = format!("socks5h://{}", self.proxy);
        let args =
            ["-sSgk", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}", "--proxy", &proxy, url];
        let out = Command::new("curl").args(args).uid(PROGRAM).gid(PROGRAM).current_dir("/").output().await?;
        Ok(String::from_utf8_lossy(&out.stdout).trim().parse()?)
    }

    /// Packets that went elsewhere since it was last asked, and where to.
    async fn leaked(&self) -> anyhow::Result<(u64, String)> {
        let counter = run("nft", &["reset", "counter", "inet", "watch", "elsewhere"]).await?;
        let packets =
            counter.split_whitespace().skip_while(|word| *word != "packets").nth(1).context("packets")?;
        Ok((packets.parse()?, run("nft", &["list", "table", "inet", "watch"]).await?))
    }

    /// Relays that the client reached since it had its first consensus.
    async fn reached(&self) -> anyhow::Result<BTreeSet<SocketAddr>> {
        let set = run("nft", &["list", "set", "inet", "watch", "reached"]).await?;
        let elements = set.split("elements = {").nth(1).and_then(|rest| rest.split('}').next());
        let read = |element: &str| Ok(element.trim().replace(" . ", ":").parse()?);
        elements.unwrap_or_default().split(',').filter(|e| !e.trim().is_empty()).map(read).collect()
    }

    /// The client reached those relays alone that its state says are its guards, though it knows all.
    async fn only_its_guards(&self) -> anyhow::Result<()> {
        let reached = self.reached().await?;
        // Arti writes them down once a minute.
        let start = Instant::now();
        let guards = loop {
            match guards(&self.dir)? {
                none if none.is_empty() && start.elapsed() < Duration::from_secs(100) => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                some => break some,
            }
        };
        ensure!(!reached.is_empty(), "the watch sees nothing");
        ensure!(reached.is_subset(&guards), "it has the guards {guards:?}, and reached {reached:?}");
        ensure!(guards.len() < self.lab.net.relays().iter().filter(|r| r.role != Role::Exit).count());
        Ok(())
    }

    /// The watch itself: what goes directly is seen, by IPv4, IPv6, and as a question for a name; of both users.
    async fn watch_sees(&self) -> anyhow::Result<()> {
        self.leaked().await?;
        for user in [CLIENT, PROGRAM] {
            for url in ELSEWHERE {
                let direct = Command::new("curl")
                    .args(["-sg", "--max-time", "1", url])
                    .uid(user)
                    .gid(user)
                    .current_dir("/")
                    .output();
                ensure!(!direct.await?.status.success());
                ensure!(self.leaked().await?.0 > 0, "{url} by {user} was not seen");
            }
            let name = Command::new("timeout")
                .args(["2", "getent", "ahosts", "leak.example"])
                .uid(user)
                .gid(user)
                .current_dir("/")
                .output();
            ensure!(!name.await?.status.success());
            ensure!(self.leaked().await?.0 > 0, "a look-up by {user} was not seen");
        }
        Ok(())
    }

    async fn pages(&mut self) -> anyhow::Result<()> {
        let origins = &self.lab.origins;
        ensure!(self.fetch(&origins.open().url("/")).await? == 200);
        ensure!(self.fetch(&origins.blocking_tor_exits().url("/")).await? == 200);
        ensure!(self.fetch(&origins.blocking_tor_exits_tls().url("/")).await? == 403, "a probe follows");
        ensure!(self.fetch(&origins.reset().url("/").replace("tcp:", "http:")).await? == 0);
        tokio::time::sleep(Duration::from_secs(3)).await;
        Ok(())
    }

    async fn nowhere(&mut self) -> anyhow::Result<()> {
        for url in [
            "http://no.such.name.example/",
            "http://127.0.0.1:1/",
            "http://10.0.0.1/",
            "http://169.254.169.254/",
            "http://[::1]/",
            "http://[2001:db8::5]/",
            "http://2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion/",
        ] {
            ensure!(self.fetch(url).await? == 0, "{url}");
        }
        Ok(())
    }

    async fn lies(&mut self) -> anyhow::Result<()> {
        self.dns.set("lies.example", &["10.0.0.1", "192.0.2.99"]);
        let mut ask = Command::new("tor-resolve");
        ask.args(["lies.example", &self.proxy.to_string()]).uid(PROGRAM).gid(PROGRAM).current_dir("/");
        let said = String::from_utf8(ask.output().await?.stdout)?;
        ensure!(self.dns.asked("lies.example") > 0, "the exit bridge was not asked");
        // A program that believes it.
        for url in ["http://lies.example/".to_owned(), format!("http://{}/", said.trim())] {
            ensure!(self.fetch(&url).await? == 0, "{url}");
        }
        Ok(())
    }

    async fn exit_bridge_dies(&mut self) -> anyhow::Result<()> {
        let blocking = self.lab.origins.blocking_tor_exits().url("/");
        self.bridge.as_ref().context("a bridge")?.process.signal(Signal::SIGKILL);
        for _ in 0..3 {
            let status = self.fetch(&blocking).await?;
            ensure!(status == 0 || status == 403, "{status}");
        }
        Ok(())
    }

    async fn broken_files(&mut self) -> anyhow::Result<()> {
        std::fs::write(self.dir.join("bridges.txt"), "eebt1 nonsense\n\u{1}\n")?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        ensure!(self.fetch(&self.lab.origins.open().url("/")).await? == 200, "it goes on over Tor");
        // A person breaks the configuration, and starts it once more.
        let good = std::fs::read_to_string(self.dir.join("client.toml"))?;
        std::fs::write(self.dir.join("client.toml"), good.replace("mode", "mdoe"))?;
        let mut again = Running::start(self.command(), &self.lab.folder("broken"))?;
        ensure!(again.exit_code(Duration::from_secs(10)).await? == Some(1));
        std::fs::write(self.dir.join("client.toml"), good)?;
        let bridge = self.lab.bridge().run().await?;
        std::fs::write(self.dir.join("bridges.txt"), bridge.line.to_string())?;
        self.bridge = Some(bridge);
        tokio::time::sleep(Duration::from_secs(2)).await;
        ensure!(self.fetch(&self.lab.origins.blocking_tor_exits().url("/")).await? == 200);
        Ok(())
    }

    async fn client_dies(&mut self) -> anyhow::Result<()> {
        let bulk = self.lab.origins.open().url("/bulk/200000000");
        let (status, ()) = tokio::join!(self.fetch(&bulk), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.client.as_ref().expect("a client").signal(Signal::SIGKILL);
        });
        let _cut = status?;
        ensure!(
            self.fetch(&self.lab.origins.open().url("/")).await? == 0,
            "a program without its proxy gets nothing"
        );
        self.start_client().await?;
        ensure!(self.fetch(&self.lab.origins.open().url("/")).await? == 200);
        Ok(())
    }

    /// What the self test says is true here, where the kernel watches it.
    async fn self_test(&mut self) -> anyhow::Result<()> {
        let (site, proxy) = (self.lab.origins.open().addr().to_string(), self.proxy.to_string());
        // It asks the client that runs, and then one of its own, beside that.
        for rule in [
            format!("ip daddr {} tcp dport {} accept", self.proxy.ip(), self.proxy.port()),
            "ip saddr 127.0.0.1 ip daddr 127.0.0.1 meta l4proto tcp accept".to_owned(),
        ] {
            run("nft", &["add", "rule", "inet", "watch", "own", &rule]).await?;
        }
        // Elsewhere, exits are on other machines: from here they do not reach this one's ports.
        for rule in ["ip daddr { 127.0.0.1, 192.0.2.2 }", "ip6 daddr 2001:db8::2"] {
            let rule = format!("{rule} tcp flags & (syn | ack) == syn reject with tcp reset");
            run("nft", &["add", "rule", "inet", "watch", "exits", &rule]).await?;
        }
        let (code, report) = selftest::run(self.program(), &["--proxy", &proxy, "--site", &site]).await?;
        for check in ["start", "page", "unknown-name", "ipv6", "this-machine", "udp"] {
            ensure!(selftest::outcome(&report, check) == "ok", "{check}: {report}");
        }
        ensure!(code == Some(0) && selftest::outcome(&report, "relays") == "could-not-check", "{report}");
        let own = ["--config", "client.toml", "--site", &site];
        let (code, report) = selftest::run(self.program(), &own).await?;
        for chain in ["own", "exits"] {
            run("nft", &["flush", "chain", "inet", "watch", chain]).await?;
        }
        ensure!(selftest::outcome(&report, "loopback") == "ok", "{report}");
        for check in report["checks"].as_array().context("checks")? {
            ensure!(check["outcome"] == "ok", "{report}");
        }
        ensure!(code == Some(0) && report["ok"] == true, "{report}");
        Ok(())
    }

    async fn guards_die(&mut self) -> anyhow::Result<()> {
        for relay in self.lab.net.relays().iter().filter(|relay| relay.role != Role::Exit) {
            let pid = self.lab.net.pid(&relay.nickname).context("a relay")?;
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.try_into()?), Signal::SIGKILL)?;
        }
        for url in [self.lab.origins.open().url("/"), self.lab.origins.blocking_tor_exits().url("/")] {
            ensure!(self.fetch(&url).await? == 0);
        }
        Ok(())
    }

    async fn nobody_answers(&mut self) -> anyhow::Result<()> {
        self.client = None;
        std::fs::remove_dir_all(self.dir.join("state"))?;
        let mut client = Running::start(self.command(), &self.lab.folder("alone"))?;
        tokio::time::sleep(Duration::from_secs(10)).await;
        ensure!(self.fetch(&self.lab.origins.open().url("/")).await? == 0);
        client.signal(Signal::SIGTERM);
        let _either_way = client.exit_code(Duration::from_secs(10)).await?;
        Ok(())
    }
}

/// The guards that Arti uses by the state in this folder: of all that it sampled those that were used, then the first
/// ones.
fn guards(dir: &Path) -> anyhow::Result<BTreeSet<SocketAddr>> {
    let found = std::process::Command::new("find").arg(dir).args(["-name", "guards.json"]).output()?;
    let file = String::from_utf8(found.stdout)?;
    let state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(file.trim()).context("guards.json")?)?;
    let sample = state["default"]["guards"].as_array().context("no guards")?;
    let confirmed = state["default"]["confirmed"].as_array().context("no confirmed ones")?;
    let is_confirmed = |guard: &&serde_json::Value| confirmed.contains(&guard["id"]);
    let (used, others): (Vec<_>, Vec<_>) = sample.iter().partition(is_confirmed);
    let ports = used.into_iter().chain(others).take(GUARDS).map(|guard| guard["orports"].as_array());
    let ports = ports.flatten().flatten().filter_map(|port| port.as_str());
    ports.map(|port| Ok(port.parse()?)).collect()
}

/// Counts what the two users send elsewhere: the client may reach relays that can be guards, which are noted, and answer at its
/// port; programs may reach that port.
async fn watch(lab: &Lab, proxy: SocketAddr) -> anyhow::Result<()> {
    let guards = lab.net.relays().iter().filter(|relay| relay.role != Role::Exit);
    let guards: Vec<String> = guards.map(|relay| format!("{} . {}", relay.address, relay.orport)).collect();
    let (ip, port, guards) = (proxy.ip(), proxy.port(), guards.join(", "));
    let rules = format!(
        "table inet watch {{
            counter elsewhere {{ }}
            set guards {{ type ipv4_addr . inet_service; elements = {{ {guards} }} }}
            set reached {{ type ipv4_addr . inet_service; flags dynamic; size 100; }}
            set to4 {{ type ipv4_addr . inet_proto . inet_service; flags dynamic; size 100; }}
            set to6 {{ type ipv6_addr . inet_proto . inet_service; flags dynamic; size 100; }}
            chain sent {{
                type filter hook output priority 0;
                meta skuid {CLIENT} jump client
                meta skuid {PROGRAM} jump program
                jump exits
            }}
            chain own {{ }}
            chain exits {{ }}
            chain client {{
                jump own
                ip daddr . tcp dport @guards update @reached {{ ip daddr . tcp dport }} return
                ip saddr {ip} tcp sport {port} return
                goto stop
            }}
            chain program {{
                ip daddr {ip} tcp dport {port} return
                goto stop
            }}
            chain stop {{
                counter name elsewhere
                update @to4 {{ ip daddr . meta l4proto . th dport }}
                update @to6 {{ ip6 daddr . meta l4proto . th dport }}
                drop
            }}
        }}"
    );
    let file = lab.folder("nft").join("rules");
    std::fs::write(&file, rules)?;
    run("nft", &["-f", &path(&file)]).await?;
    Ok(())
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

/// Runs a program to its end; what it wrote to stdout.
pub async fn run(program: &str, args: &[&str]) -> anyhow::Result<String> {
    let out = Command::new(program).args(args).output().await.with_context(|| program.to_owned())?;
    if !out.status.success() {
        bail!("{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
