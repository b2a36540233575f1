//! The text of each tor's configuration, and the facts about nodes that go into it.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// What a relay does on the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Votes on the consensus; relays too.
    Authority,
    /// Relays only; has the Guard flag, as every relay here has.
    Middle,
    /// Connects to any address and port, private ones included.
    Exit,
}

/// How each tor decides when to write to its links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheduler {
    /// Tor's own, waking up every so many milliseconds. 10 is Tor's default and most of the delay on loopback.
    Kist(u32),
    /// Writes at once.
    Vanilla,
}

impl Default for Scheduler {
    fn default() -> Self {
        Self::Kist(10)
    }
}

/// One relay of the network, as the consensus knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayInfo {
    /// Its nickname, such as `middle2`.
    pub nickname: String,
    /// What it does.
    pub role: Role,
    /// Its address.
    pub address: Ipv4Addr,
    /// The port that it advertises; with latency, the delayed link's.
    pub orport: u16,
    /// RSA identity: 40 upper-case hex digits.
    pub rsa_identity: String,
    /// Ed25519 identity: base64 without padding.
    pub ed_identity: String,
}

impl RelayInfo {
    /// Where others reach it.
    pub fn or_addr(&self) -> SocketAddr {
        (self.address, self.orport).into()
    }
}

/// What all tors of a network have in common.
#[derive(Debug)]
pub(crate) struct Common {
    /// An empty file, in place of 25 MB of geoip text that each tor would parse.
    pub(crate) empty_file: PathBuf,
    /// What the authorities vote for as each relay's bandwidth.
    pub(crate) bandwidths: PathBuf,
    /// One `DirAuthority` value each.
    pub(crate) authorities: Vec<String>,
    pub(crate) scheduler: Scheduler,
    /// The process whose end ends every tor.
    pub(crate) owner_pid: u32,
    /// Seconds from one consensus to the next.
    pub(crate) voting_interval: u32,
}

/// One relay, before it runs.
#[derive(Debug)]
pub(crate) struct Relay<'a> {
    pub(crate) nickname: &'a str,
    pub(crate) role: Role,
    pub(crate) address: Ipv4Addr,
    /// What others connect to.
    pub(crate) orport: u16,
    /// Where tor listens when a delayed link stands on `orport`.
    pub(crate) listen_port: Option<u16>,
    /// For authorities.
    pub(crate) dirport: Option<u16>,
    /// `name=value` for the consensus; for authorities.
    pub(crate) consensus_params: &'a [String],
}

/// A bandwidth file (bandwidth-file-spec) that gives these relays the same.
///
/// Without it relays have what they saw of themselves. An exit that carried nothing yet then has 0, and is
/// no exit for clients until it has. Tor heeds such files where there are three authorities or more, for
/// three days, and never for authorities: those have 0, and so clients leave them alone.
pub(crate) fn bandwidths(relays: &[RelayInfo], now: SystemTime) -> String {
    let mut text = format!("{}\n", now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
    for relay in relays {
        line(&mut text, &format!("node_id=${}", relay.rsa_identity), "bw=1000");
    }
    text
}

/// The `DirAuthority` value of an authority.
pub(crate) fn dir_authority(relay: &Relay<'_>, dirport: u16, v3ident: &str, rsa_identity: &str) -> String {
    format!(
        "{} orport={} no-v2 v3ident={v3ident} {}:{dirport} {rsa_identity}",
        relay.nickname, relay.orport, relay.address
    )
}

/// The identity that signs votes, of a `DirAuthority` value.
pub(crate) fn v3ident(dir_authority: &str) -> Option<&str> {
    dir_authority.split(' ').find_map(|word| word.strip_prefix("v3ident="))
}

/// Configuration of an authority, a middle or an exit.
pub(crate) fn relay(common: &Common, data: &Path, relay: &Relay<'_>) -> String {
    let mut text = head(common, data);
    let ip = relay.address;
    line(&mut text, "Nickname", relay.nickname);
    line(&mut text, "Address", ip);
    line(&mut text, "AddressDisableIPv6", 1);
    line(&mut text, "AssumeReachable", 1);
    line(&mut text, "SocksPort", 0);
    match relay.listen_port {
        None => line(&mut text, "ORPort", format_args!("{ip}:{} IPv4Only", relay.orport)),
        Some(port) => {
            line(&mut text, "ORPort", format_args!("{ip}:{} IPv4Only NoListen", relay.orport));
            line(&mut text, "ORPort", format_args!("{ip}:{port} IPv4Only NoAdvertise"));
        }
    }
    match relay.role {
        Role::Exit => {
            line(&mut text, "ExitRelay", 1);
            line(&mut text, "ExitPolicyRejectPrivate", 0);
            line(&mut text, "ExitPolicy", "accept *:*");
        }
        Role::Middle => line(&mut text, "ExitRelay", 0),
        Role::Authority => {
            line(&mut text, "V3BandwidthsFile", quoted(&common.bandwidths));
            authority(&mut text, relay, common.voting_interval);
        }
    }
    text
}

fn authority(text: &mut String, relay: &Relay<'_>, voting_interval: u32) {
    line(text, "ExitRelay", 0);
    line(text, "AuthoritativeDirectory", 1);
    line(text, "V3AuthoritativeDirectory", 1);
    if let Some(port) = relay.dirport {
        line(text, "DirPort", format_args!("{}:{port}", relay.address));
    }
    // Flags are given, not earned: a network of seconds has no history.
    // An exit is no guard, as on the real network, where exits are scarce: a client whose guard is one
    // of two exits has a single exit left. Each role has a /24 of its own (see `Slice::node`).
    let [a, b, ..] = relay.address.octets();
    for (flag, relays) in [
        ("Exit", format!("{a}.{b}.3.0/24")),
        ("Guard", format!("{a}.{b}.1.0/24,{a}.{b}.2.0/24")),
        ("HSDir", "*".to_owned()),
    ] {
        line(text, &format!("TestingDirAuthVote{flag}"), relays);
        line(text, &format!("TestingDirAuthVote{flag}IsStrict"), 1);
    }
    line(text, "TestingMinExitFlagThreshold", 0);
    line(text, "AuthDirTestReachability", 0);
    // 5 s is the least that tor accepts; the first consensus decides how soon the network is up.
    line(text, "TestingV3AuthInitialVotingInterval", INITIAL_VOTING_INTERVAL);
    line(text, "TestingV3AuthInitialVoteDelay", 2);
    line(text, "TestingV3AuthInitialDistDelay", 2);
    line(text, "V3AuthVotingInterval", voting_interval);
    line(text, "V3AuthVoteDelay", 2);
    line(text, "V3AuthDistDelay", 2);
    line(text, "V3AuthNIntervalsValid", 3);
    if !relay.consensus_params.is_empty() {
        line(text, "ConsensusParams", relay.consensus_params.join(" "));
    }
}

/// Seconds between votes until the first consensus.
pub(crate) const INITIAL_VOTING_INTERVAL: u32 = 5;

/// Configuration of the plain Tor client.
pub(crate) fn client(common: &Common, data: &Path, socks: SocketAddr, control: SocketAddr) -> String {
    let mut text = head(common, data);
    line(&mut text, "SocksPort", socks);
    line(&mut text, "ControlPort", control);
    line(&mut text, "CookieAuthentication", 1);
    text
}

/// Configuration of an onion service with one port.
pub(crate) fn onion_service(common: &Common, data: &Path, port: u16, target: SocketAddr) -> String {
    let mut text = head(common, data);
    line(&mut text, "SocksPort", 0);
    line(&mut text, "HiddenServiceDir", quoted(&data.join("service")));
    line(&mut text, "HiddenServicePort", format_args!("{port} {target}"));
    text
}

fn head(common: &Common, data: &Path) -> String {
    let mut text = String::new();
    line(&mut text, "TestingTorNetwork", 1);
    line(&mut text, "DataDirectory", quoted(data));
    line(&mut text, "GeoIPFile", quoted(&common.empty_file));
    line(&mut text, "GeoIPv6File", quoted(&common.empty_file));
    line(&mut text, "Log", "notice stdout");
    line(&mut text, "SafeLogging", 0);
    line(&mut text, "NumCPUs", 1);
    line(&mut text, "ShutdownWaitLength", 0);
    line(&mut text, "__OwningControllerProcess", common.owner_pid);
    // Standard input is a socket to the owner; tor exits when it closes, long before it polls the process.
    line(&mut text, "__OwningControllerFD", 0);
    text += &scheduler(common.scheduler);
    for authority in &common.authorities {
        line(&mut text, "DirAuthority", authority);
    }
    text
}

/// How a tor schedules its writes.
pub(crate) fn scheduler(scheduler: Scheduler) -> String {
    match scheduler {
        Scheduler::Kist(ms) => format!("Schedulers KIST\nKISTSchedRunInterval {ms} msec\n"),
        Scheduler::Vanilla => "Schedulers Vanilla\n".into(),
    }
}

fn line(text: &mut String, key: &str, value: impl std::fmt::Display) {
    let _ = writeln!(text, "{key} {value}"); // writing to a String can't fail
}

/// A path as a torrc string, which knows the escapes of C.
pub(crate) fn quoted(path: &Path) -> String {
    let escaped = path.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common() -> Common {
        Common {
            empty_file: "/n/empty".into(),
            bandwidths: "/n/bandwidths".into(),
            authorities: Vec::new(),
            scheduler: Scheduler::Kist(2),
            owner_pid: 7,
            voting_interval: 10,
        }
    }

    fn sample(role: Role) -> Relay<'static> {
        Relay {
            nickname: "n1",
            role,
            address: Ipv4Addr::new(127, 64, 1, 1),
            orport: 9001,
            listen_port: None,
            dirport: None,
            consensus_params: &[],
        }
    }

    #[test]
    fn exit_accepts_everything_and_only_exits_do() {
        let exit = relay(&common(), Path::new("/n/d"), &sample(Role::Exit));
        assert!(exit.contains("ExitPolicy accept *:*\n") && exit.contains("ExitRelay 1\n"));
        assert!(exit.contains("ORPort 127.64.1.1:9001 IPv4Only\n"));
        let middle = relay(&common(), Path::new("/n/d"), &sample(Role::Middle));
        assert!(middle.contains("ExitRelay 0\n") && !middle.contains("AuthoritativeDirectory"));
    }

    #[test]
    fn delayed_relay_advertises_the_link_and_listens_behind_it() {
        let delayed = Relay { listen_port: Some(9101), ..sample(Role::Middle) };
        let text = relay(&common(), Path::new("/n/d"), &delayed);
        assert!(text.contains("ORPort 127.64.1.1:9001 IPv4Only NoListen\n"));
        assert!(text.contains("ORPort 127.64.1.1:9101 IPv4Only NoAdvertise\n"));
    }

    #[test]
    fn authority_line_and_consensus_params() {
        let params = ["cc_alg=0".to_owned(), "x=1".to_owned()];
        let authority = Relay { dirport: Some(9030), consensus_params: &params, ..sample(Role::Authority) };
        assert_eq!(
            dir_authority(&authority, 9030, "V3", "FP"),
            "n1 orport=9001 no-v2 v3ident=V3 127.64.1.1:9030 FP"
        );
        let text = relay(&common(), Path::new("/n/d"), &authority);
        assert!(text.contains("ConsensusParams cc_alg=0 x=1\n"));
        assert!(text.contains("DirPort 127.64.1.1:9030\n"));
    }

    #[test]
    fn schedulers_and_odd_paths() {
        let text = head(&common(), Path::new("/a \"b\\c"));
        assert!(text.contains("KISTSchedRunInterval 2 msec\n"));
        assert!(text.contains("DataDirectory \"/a \\\"b\\\\c\"\n"));
        let vanilla = head(&Common { scheduler: Scheduler::Vanilla, ..common() }, Path::new("/d"));
        assert!(vanilla.contains("Schedulers Vanilla\n"));
    }
}
