//! A network that Chutney runs: it writes the configurations, makes keys, starts the tors, and waits for them. For the rest
//! it is a network like ours: each node has a folder in `nodes`, whose files are links to those that Chutney keeps.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::SystemTime;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Command;

use super::{RELAY_PHASE, TestNet, TestNetBuilder, until_phase};
use crate::error::TestNetError;
use crate::keys::private_dir;
use crate::process;
use crate::torrc;

mod node;

use node::Node;

/// How long Chutney may wait for its network, in seconds. Its default is 60.
const START_TIME: &str = "180";
/// Where relays listen when a delayed link stands on their OR port.
const BEHIND_THE_LINK: &str = "9101";

/// A checkout of Chutney, with a network to run.
#[derive(Debug)]
pub(super) struct Chutney {
    program: PathBuf,
    network: PathBuf,
    /// Where it writes.
    data: PathBuf,
    env: Vec<(&'static str, OsString)>,
    /// Whether it is told the network once, by `init`, and not by each command.
    has_init: bool,
    /// The other end is standard input of the tors, where Chutney passes that on: they exit when this closes.
    owner: Option<UnixStream>,
}

impl TestNet {
    /// Starts a network that Chutney runs; see [`TestNetBuilder::start`].
    pub(super) async fn start_chutney(
        builder: &TestNetBuilder,
        network: &Path,
        dir: PathBuf,
    ) -> Result<Self, TestNetError> {
        let say = &builder.progress;
        let mut net = Self::empty(builder, dir)?;
        let mut chutney = Chutney::find(builder, network, &net).await?;
        say("chutney configure: keys and configurations");
        chutney.configure().await?;
        let nodes = chutney.nodes()?;
        for node in &nodes {
            node.link(&net.node_dir(&node.name))?;
            if net.common.authorities.is_empty() {
                net.common.authorities = node.all("DirAuthority").map(str::to_owned).collect();
            }
            if let Some(plan) = node.relay()? {
                if !builder.latency.is_zero() && plan.listen_port.is_none() {
                    let problem = "its relay has no port behind a delayed link";
                    return Err(TestNetError::Malformed { path: node.torrc.clone(), problem });
                }
                net.links.extend(plan.link(builder.latency).await?);
                let relay = net.identity(&plan).await?;
                net.relays.push(relay);
            } else if let Some(socks) = node.address("SocksPort")? {
                net.socks = socks;
                net.control = node.address("ControlPort")?.unwrap_or(net.control);
            }
        }
        net.relays.sort_by_key(|relay| relay.role as u8);
        net.write_bandwidths()?;

        tokio::time::sleep(until_phase(RELAY_PHASE, SystemTime::now())).await;
        say("chutney start");
        chutney.start().await?;
        for node in &nodes {
            let mut pid = None;
            net.wait_for(&format!("{} to write its process id", node.name), &node.name, || {
                pid = node.pid();
                pid.is_some()
            })
            .await?;
            net.tors.extend(pid.map(|pid| node.adopt(pid)));
        }
        // A SIGHUP among these makes it faster than Chutney's own waiting alone.
        net.wait_for_consensus().await?;
        net.wait_for_microdescs().await?;
        say("chutney wait_for_bootstrap");
        chutney.call("wait_for_bootstrap").await?;
        net.chutney = Some(chutney);
        net.write_network_file()?;
        Ok(net)
    }
}

impl Chutney {
    /// Finds the checkout, and says how the network is to be.
    async fn find(builder: &TestNetBuilder, network: &Path, net: &TestNet) -> Result<Self, TestNetError> {
        let checkout = std::env::var_os("CHUTNEY_PATH").map(PathBuf::from);
        let checkout = checkout.filter(|path| path.join("chutney").is_file());
        let checkout = checkout.ok_or(TestNetError::NoChutney)?;
        let checkout = checkout.canonicalize().map_err(TestNetError::file("open", &checkout))?;
        let network = network.canonicalize().map_err(TestNetError::file("open", network))?;
        let tor = Command::new(&builder.tor).arg("--version").stdout(Stdio::null()).status().await;
        tor.map_err(|source| process::failed_to_run(&builder.tor, source))?;
        let data = net.dir.join("chutney");
        if data.exists() {
            fs::remove_dir_all(&data).map_err(TestNetError::file("remove", &data))?; // of a network before
        }
        private_dir(&data)?;
        // Network files share what is beside their folder.
        let mut python = network.parent().and_then(Path::parent).unwrap_or(&network).as_os_str().to_owned();
        if let Some(before) = std::env::var_os("PYTHONPATH") {
            python.push(":");
            python.push(before);
        }
        let mut env = vec![
            ("CHUTNEY_PATH", checkout.clone().into()),
            ("CHUTNEY_DATA_DIR", data.clone().into()),
            ("CHUTNEY_TOR", builder.tor.clone().into()),
            ("CHUTNEY_TOR_SANDBOX", "0".into()),
            ("CHUTNEY_START_TIME", START_TIME.into()),
            ("PYTHONPATH", python),
            ("PYTHONDONTWRITEBYTECODE", "1".into()), // nor anything else in the checkout
            ("TESTNET_SLICE", net.slice.prefix().into()),
            ("TESTNET_TORRC", every_torrc(net).into()),
            ("TESTNET_AUTHORITY_TORRC", authority_torrc(builder, net).into()),
        ];
        if !builder.latency.is_zero() {
            env.push(("TESTNET_LISTEN", BEHIND_THE_LINK.into()));
        }
        let program = checkout.join("chutney");
        let mut chutney = Self { program, network, data, env, has_init: false, owner: None };
        // To Chutney of 2021 the second word is a network file, and this is none.
        chutney.has_init = chutney.run(&["init".as_ref(), "--help".as_ref()], Stdio::null()).await.is_ok();
        Ok(chutney)
    }

    /// Has it write keys and a configuration for each node.
    async fn configure(&self) -> Result<(), TestNetError> {
        if self.has_init {
            let args = ["init".as_ref(), "--net-from-script-path".as_ref(), self.network.as_os_str()];
            self.run(&args, Stdio::null()).await?;
        }
        self.call("configure").await
    }

    /// Has it start all nodes.
    async fn start(&mut self) -> Result<(), TestNetError> {
        let (ours, theirs) =
            UnixStream::pair().map_err(TestNetError::file("make a socket for", &self.data))?;
        self.owner = Some(ours);
        self.run(&self.words("start"), OwnedFd::from(theirs).into()).await
    }

    /// Tells it that its tors have ended.
    pub(super) async fn stop(&self) -> Result<(), TestNetError> {
        self.call("stop").await
    }

    async fn call(&self, verb: &str) -> Result<(), TestNetError> {
        self.run(&self.words(verb), Stdio::null()).await
    }

    fn words<'a>(&'a self, verb: &'a str) -> Vec<&'a OsStr> {
        let network = (!self.has_init).then_some(self.network.as_os_str());
        std::iter::once(verb.as_ref()).chain(network).collect()
    }

    /// Runs it to its end, with its log in the folder where it writes.
    async fn run(&self, args: &[&OsStr], input: Stdio) -> Result<(), TestNetError> {
        let child = Command::new(&self.program)
            .args(args)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|source| process::failed_to_run(&self.program, source))?;
        let mut group = Group(child.id());
        let output = child.wait_with_output().await.map_err(TestNetError::file("wait for", &self.program))?;
        group.0 = None;
        let log = [&output.stdout[..], &output.stderr[..]].concat();
        let verb = args.first().copied().unwrap_or_default().display().to_string();
        let path = self.data.join(format!("{verb}.log"));
        fs::write(&path, &log).map_err(TestNetError::file("write", &path))?;
        if output.status.success() {
            return Ok(());
        }
        let log = String::from_utf8_lossy(&log);
        let last = log.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned();
        Err(TestNetError::Chutney { verb, status: output.status.to_string(), last, log: path })
    }

    /// What it has configured.
    fn nodes(&self) -> Result<Vec<Node>, TestNetError> {
        let dir = self.data.join("nodes");
        let list = fs::read_dir(&dir).map_err(TestNetError::file("read", &dir))?;
        let mut torrcs: Vec<PathBuf> = list.flatten().map(|entry| entry.path().join("torrc")).collect();
        torrcs.retain(|torrc| torrc.is_file());
        torrcs.sort();
        torrcs.iter().map(|torrc| Node::read(torrc)).collect()
    }
}

/// The processes that one call of Chutney consists of; dropped before its end, it ends them.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0.and_then(|pid| i32::try_from(pid).ok()) {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Options for every tor of Chutney's.
fn every_torrc(net: &TestNet) -> String {
    let owner = format!("__OwningControllerProcess {}\n", net.common.owner_pid);
    owner + &torrc::scheduler(net.common.scheduler)
}

/// Options for its authorities; a later one goes over an earlier one.
fn authority_torrc(builder: &TestNetBuilder, net: &TestNet) -> String {
    let mut text = format!("V3BandwidthsFile {}\n", torrc::quoted(&net.common.bandwidths));
    if let Some(seconds) = builder.voting_interval {
        text += &format!("V3AuthVotingInterval {seconds}\n");
    }
    if !builder.consensus_params.is_empty() {
        text += &format!("ConsensusParams {}\n", builder.consensus_params.join(" "));
    }
    text
}
