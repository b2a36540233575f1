//! `eebt-client selftest`: what a person can check about their own set-up, on the real network and without being root.
//!
//! It runs the client in this process as configured, but on a spare port, asks of it what a careless or hostile
//! program could ask (`ask`), has ports that only a direct connection reaches (`trap`), and looks all the while at
//! which sockets the process has (`watch`). Then the same with an exit bridge that does not exist. A client that runs
//! already can be asked by its address, where less can be known. What can't be seen from here (other programs' packets)
//! is in [`HINTS`].

mod ask;
mod sockets;
mod trap;
mod watch;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arti_client::TorClient;
use eebt_proto::reach::{CircuitReach, DEFAULT_PROTOCOLS};
use eebt_proto::{BridgeLine, PortSet, Reach};
use eebt_tor::TorRuntime;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use self::ask::Answer;
use self::sockets::{Kind, Socket};
use self::trap::Trap;
use self::watch::Watch;
use crate::client::Ready;
use crate::route::Mode;
use crate::{Client, Config, RunError};

/// What the self test can't see, and what to do about it.
pub const HINTS: &str = "\
What no proxy can see are programs that go around it:
  DNS     A program must give names to the proxy, not look them up: socks5h:// in curl and git, `Proxy DNS when
          using SOCKS v5` in Firefox. With socks5:// curl asks your own name server first.
  IPv6    IPv6 targets are taken by the proxy like others; nothing has to be switched off. But a program that was
          told of no proxy leaves by IPv6 as it does by IPv4.
  WebRTC  Browsers send UDP around any proxy, and tell pages your addresses. Firefox: media.peerconnection.enabled
          = false in about:config. Chromium: --force-webrtc-ip-handling-policy=disable_non_proxied_udp
  QUIC    is UDP, too: no SOCKS proxy carries it, and browsers with a proxy do without.";

/// A list of none.
const NOBODY: &str = "nobody";

/// Longest time for the start; the first one fetches a consensus.
const START: Duration = Duration::from_secs(180);

/// How it went with one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// Not as it should be.
    Failed,
    /// It could not be found out; `detail` says why.
    CouldNotCheck,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// A name for scripts, which stays.
    pub check: &'static str,
    /// How it went.
    pub outcome: Outcome,
    /// What was found, for a person.
    pub detail: String,
    /// What to try.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<&'static str>,
}

/// All checks, in the order in which they were made.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// No check failed.
    pub ok: bool,
    /// The checks.
    pub checks: Vec<Check>,
}

impl Report {
    fn add(&mut self, check: &'static str, outcome: Outcome, detail: impl Into<String>) {
        self.checks.push(Check { check, outcome, detail: detail.into(), hint: None });
    }

    fn hint(&mut self, hint: &'static str) {
        if let Some(check) = self.checks.last_mut().filter(|check| check.outcome != Outcome::Ok) {
            check.hint = Some(hint);
        }
    }

    fn done(mut self) -> Self {
        self.ok = self.checks.iter().all(|check| check.outcome != Outcome::Failed);
        self
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for Check { check, outcome, detail, hint } in &self.checks {
            let outcome = match outcome {
                Outcome::Ok => "ok",
                Outcome::Failed => "FAILED",
                Outcome::CouldNotCheck => "could not check",
            };
            writeln!(f, "{outcome:<16} {check:<13} {detail}")?;
            if let Some(hint) = hint {
                writeln!(f, "{:<16} {:<13} hint: {hint}", "", "")?;
            }
        }
        Ok(())
    }
}

/// Tests a client of our own with this configuration. `site` is a host and a port where HTTP is spoken, to be visited.
///
/// # Errors
/// The configuration can't work. All else is in the report.
pub async fn own(config: Config, site: (&str, u16), runtime: TorRuntime) -> Result<Report, RunError> {
    let mut report = Report::default();
    let spare = |config| Config {
        listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
        page: None,
        // It is to leave no trace of what it asked for.
        verdict_file: None,
        ..config
    };
    let traps = Trap::set();
    let asked_for = config.listen.clone();
    let entry_bridges = config.tor.contains_key("bridges");
    let dead = Config {
        mode: Mode::Always,
        bridges: vec![nobody()],
        bridge_file: None,
        directories: Vec::new(),
        connect_timeout: Duration::from_secs(20),
        ..spare(config.clone())
    };

    let watch = Watch::start("self".to_owned());
    let (mut before, mut proxies) = (Ok(HashSet::new()), Vec::new());
    let served = with_client(spare(config), runtime.clone(), async |proxy| {
        report.add("start", Outcome::Ok, "connected to the Tor network");
        before = watch.take();
        proxies.push(proxy);
        questions(&mut report, proxy, site, &traps).await;
    });
    let mut relays = match served.await? {
        Ok(((), relays)) => relays,
        Err(why) => {
            report.add("start", Outcome::Failed, format!("no connection to the Tor network: {why}"));
            report.hint("is the Internet reachable, and the clock right?");
            return Ok(report.done());
        }
    };
    if asked_for.iter().all(|addr| addr.ip().is_loopback()) {
        report.add("loopback", Outcome::Ok, "only this machine can use the proxy");
    } else {
        report.add("loopback", Outcome::Failed, "`listen` has an address that other machines reach");
        report.hint("whoever reaches it uses your Tor; 127.0.0.1 is for this machine alone");
    }
    let served = with_client(dead, runtime, async |proxy| {
        proxies.push(proxy);
        fails_closed(&mut report, proxy, site, &traps).await;
    });
    match served.await? {
        Ok(((), more)) => relays.extend(more),
        Err(why) => report.add("fails-closed", Outcome::CouldNotCheck, format!("no second start: {why}")),
    }
    own_sockets(&mut report, before, watch.take(), &proxies, &relays, entry_bridges);
    Ok(report.done())
}

/// Tests a client that runs.
pub async fn running(proxy: SocketAddr, site: (&str, u16)) -> Report {
    let mut report = Report::default();
    if let Err(error) = ask::greet(proxy).await {
        report.add("start", Outcome::Failed, format!("nothing speaks SOCKS5 on {proxy}: {error}"));
        report.hint("is the client running, and is this its address? It prints a line with `ready`");
        return report.done();
    }
    report.add("start", Outcome::Ok, format!("it answers on {proxy}"));
    let traps = Trap::set();
    let watch = match sockets::listener_on(proxy) {
        Ok(Some(pid)) => Some(Watch::start(pid.to_string())),
        Ok(None) | Err(_) => None,
    };
    questions(&mut report, proxy, site, &traps).await;
    for check in ["udp", "relays"] {
        match (&watch, check) {
            (None, _) => {
                report.add(check, Outcome::CouldNotCheck, "no process of yours listens there");
                report.hint("run the self test as the user whose client it is, without --proxy, or as root");
            }
            (Some(watch), "udp") => udp(&mut report, watch.take()),
            (Some(watch), _) => {
                let seen = watch.take().unwrap_or_default();
                let local = |s: &&Socket| s.local == proxy || s.remote == proxy;
                let far = seen.iter().filter(|s| s.kind == Kind::Tcp && !local(s)).map(|s| s.remote);
                let far: std::collections::BTreeSet<SocketAddr> = far.collect();
                let detail =
                    format!("it is connected to {}; whether these are relays is not known here", list(far));
                report.add(check, Outcome::CouldNotCheck, detail);
                report.hint("without --proxy the self test knows the relays");
            }
        }
    }
    report.add("fails-closed", Outcome::CouldNotCheck, "its exit bridges are in use");
    report.hint("without --proxy the self test starts a client whose exit bridge is dead");
    report.done()
}

/// What is asked of any client.
async fn questions(report: &mut Report, proxy: SocketAddr, site: (&str, u16), traps: &[Trap]) {
    let (host, port) = site;
    // example.org has no such name (RFC 6761 keeps it for examples), and no proxy can know that by itself.
    let nowhere = format!("{:08x}.example.org", rand::random::<u32>());
    // Only the loopback: whoever is the exit must not learn what this machine's addresses are.
    let near = || traps.iter().filter(|trap| trap.addr().ip().is_loopback());
    let (site, nowhere, address, v6, here) = tokio::join!(
        ask::page(proxy, host, port),
        ask::page(proxy, &nowhere, 80),
        ask::address(proxy, &nowhere),
        // An address for examples (RFC 3849).
        ask::page(proxy, "2001:db8::1", 80),
        caught(proxy, near()),
    );
    match site {
        Ok(Answer::Heard(bytes)) if bytes.starts_with(b"HTTP/") => {
            report.add("page", Outcome::Ok, "a page came; its name was looked up at the far end");
        }
        Ok(answer) => {
            report.add("page", Outcome::CouldNotCheck, format!("no page came: {}", told(&answer)));
            report.hint(
                "is the exit bridge alive? --site HOST:PORT visits another site that speaks plain HTTP",
            );
        }
        Err(error) => report.add("page", Outcome::Failed, error.to_string()),
    }
    let refused = |answers: &[std::io::Result<Answer>]| -> (Outcome, String) {
        for answer in answers {
            match answer {
                Ok(Answer::Declined(_) | Answer::Ended) => {}
                Ok(Answer::Silent) => return (Outcome::CouldNotCheck, "no answer in a minute".to_owned()),
                Ok(Answer::Heard(_)) => return (Outcome::Failed, "somebody answers there".to_owned()),
                Err(error) => return (Outcome::Failed, error.to_string()),
            }
        }
        (Outcome::Ok, "an error, as it should be".to_owned())
    };
    let (outcome, detail) = refused(&[nowhere, address]);
    report.add("unknown-name", outcome, format!("a name that does not exist: {detail}"));
    let (outcome, detail) = refused(&[v6]);
    report.add("ipv6", outcome, format!("an IPv6 address where nobody is: {detail}"));
    traps_told(report, "this-machine", here, near());
}

/// With an exit bridge that does not exist, there must be errors and nothing else.
///
/// Addresses of this machine can be asked for here, since nobody is told.
async fn fails_closed(report: &mut Report, proxy: SocketAddr, (host, port): (&str, u16), traps: &[Trap]) {
    let (page, here) = tokio::join!(ask::page(proxy, host, port), caught(proxy, traps.iter()));
    let (outcome, detail) = match (page, here) {
        (Ok(Answer::Heard(_)), _) => {
            (Outcome::Failed, "a page came, though the exit bridge is dead".to_owned())
        }
        (_, Ok(1..)) => (Outcome::Failed, "the exit bridge is dead, and this machine was reached".to_owned()),
        (Ok(answer), Ok(0)) => (Outcome::Ok, format!("the exit bridge is dead: {}", told(&answer))),
        (Err(error), _) => (Outcome::CouldNotCheck, error.to_string()),
        (_, Err(why)) => (Outcome::CouldNotCheck, why),
    };
    report.add("fails-closed", outcome, detail);
}

/// Asks for each trap, and counts those that were connected to directly.
async fn caught(proxy: SocketAddr, traps: impl Iterator<Item = &Trap>) -> Result<usize, String> {
    let asking = traps.map(|trap| async move {
        let ip = trap.addr().ip().to_string();
        let answer = ask::page(proxy, &ip, trap.addr().port()).await;
        answer.map(|_| trap.was_reached()).map_err(|error| error.to_string())
    });
    let reached: Result<Vec<bool>, String> = futures::future::join_all(asking).await.into_iter().collect();
    Ok(reached?.into_iter().filter(|reached| *reached).count())
}

fn traps_told<'a>(
    report: &mut Report,
    check: &'static str,
    caught: Result<usize, String>,
    traps: impl Iterator<Item = &'a Trap> + Clone,
) {
    let addresses = list(traps.clone().map(|trap| trap.addr().ip()));
    match caught {
        _ if addresses == NOBODY => report.add(check, Outcome::CouldNotCheck, "no port could be opened here"),
        Ok(0) => report.add(
            check,
            Outcome::Ok,
            format!("this machine's own addresses ({addresses}) are not reached"),
        ),
        Ok(_) => {
            report.add(check, Outcome::Failed, format!("one of {addresses} was reached from this machine"));
            report.hint("does an exit bridge run on this machine? if not, please tell the project of this");
        }
        Err(why) => report.add(check, Outcome::CouldNotCheck, why),
    }
}

/// No UDP socket: no name server is asked, and nothing goes around Tor.
fn udp(report: &mut Report, seen: std::io::Result<HashSet<Socket>>) {
    match seen {
        Err(error) => report.add("udp", Outcome::CouldNotCheck, format!("no look at the sockets: {error}")),
        Ok(seen) => match seen.iter().find(|s| s.kind == Kind::Udp) {
            None => {
                report.add("udp", Outcome::Ok, "no UDP socket was seen: no names are looked up from here")
            }
            Some(udp) => report.add("udp", Outcome::Failed, format!("a UDP socket to {}", udp.remote)),
        },
    }
}

/// What the sockets of this process say. Those of the time `before` the relays were known may lead to Tor's
/// built-in directory relays, which need not be in the consensus.
fn own_sockets(
    report: &mut Report,
    before: std::io::Result<HashSet<Socket>>,
    seen: std::io::Result<HashSet<Socket>>,
    proxies: &[SocketAddr],
    relays: &HashSet<SocketAddr>,
    entry_bridges: bool,
) {
    let sockets = match (before, seen) {
        (Ok(before), Ok(seen)) => (before, seen),
        (Err(error), _) | (_, Err(error)) => {
            for check in ["udp", "relays"] {
                report.add(check, Outcome::CouldNotCheck, format!("no look at the sockets: {error}"));
            }
            return;
        }
    };
    let (before, seen) = sockets;
    udp(report, Ok(seen.union(&before).copied().collect()));
    let proxy_side = |s: &Socket| proxies.contains(&s.local) || proxies.contains(&s.remote);
    let far = |sockets: &HashSet<Socket>| -> HashSet<SocketAddr> {
        sockets.iter().filter(|s| s.kind == Kind::Tcp && !proxy_side(s)).map(|s| s.remote).collect()
    };
    let (before, seen) = (far(&before), far(&seen));
    let others: Vec<SocketAddr> =
        seen.difference(relays).filter(|addr| !before.contains(addr)).copied().collect();
    let known = seen.intersection(relays).count();
    if relays.is_empty() {
        report.add("relays", Outcome::CouldNotCheck, "the relays of the Tor network are not known");
    } else if others.is_empty() && known == 0 {
        report.add("relays", Outcome::CouldNotCheck, "no connection to a relay was seen");
    } else if others.is_empty() {
        report.add("relays", Outcome::Ok, format!("connected to {known} Tor relays, and to nobody else"));
    } else if entry_bridges {
        let detail =
            format!("connected to {}, with [tor.bridges] set; these may be your Tor bridges", list(others));
        report.add("relays", Outcome::CouldNotCheck, detail);
    } else {
        report.add("relays", Outcome::Failed, format!("connected to {}: no Tor relays", list(others)));
        report.hint("please tell the project of this: nothing but relays should be there");
    }
}

fn told(answer: &Answer) -> String {
    match answer {
        Answer::Heard(_) => "something else came".to_owned(),
        Answer::Declined(status) => format!("an error (SOCKS status {status})"),
        Answer::Ended => "the stream ended".to_owned(),
        Answer::Silent => "no answer in a minute".to_owned(),
    }
}

fn list(items: impl IntoIterator<Item = impl ToString>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { NOBODY.to_owned() } else { items.join(", ") }
}

/// An exit bridge that does not exist: keys that nobody has, at an address for examples (RFC 5737).
fn nobody() -> BridgeLine {
    let reach = CircuitReach {
        addresses: vec![(IpAddr::from([192, 0, 2, 1]), 9).into()],
        ed25519: rand::random(),
        rsa: rand::random(),
        ntor: rand::random(),
        protocols: DEFAULT_PROTOCOLS.to_owned(),
    };
    let ports = "1-65535".parse().unwrap_or_else(|_| PortSet::web());
    BridgeLine { reach: Reach::Circuit(reach), ports, expires: None }
}

/// Runs a client in this process until `work`, which is given its port, is done. Gives what `work` gave, and where
/// relays of the consensus listen; or why the client can't serve.
async fn with_client<T>(
    config: Config,
    runtime: TorRuntime,
    work: impl AsyncFnOnce(SocketAddr) -> T,
) -> Result<Result<(T, HashSet<SocketAddr>), String>, RunError> {
    let client = Client::new(config)?.without_choices();
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let say = |now: Ready<'_>| {
        let _gone = ready.send((now.addresses.first().copied(), Arc::clone(now.tor)));
    };
    let working = async {
        match tokio::time::timeout(START, is_ready).await {
            Ok(Ok((Some(proxy), tor))) => Ok((work(proxy).await, relays(&tor))),
            // It has ended, and says why.
            Ok(_) => std::future::pending().await,
            Err(_) => Err("not in 3 minutes".to_owned()),
        }
    };
    Ok(tokio::select! {
        done = working => done,
        ended = client.run(runtime, CancellationToken::new(), say) => Err(match ended {
            Ok(()) => "it ended".to_owned(),
            Err(error) => eebt_proto::causes(&error),
        }),
    })
}

/// Where relays of the consensus listen.
fn relays(tor: &Arc<TorClient<TorRuntime>>) -> HashSet<SocketAddr> {
    use tor_linkspec::HasAddrs as _;
    let netdir = tor.dirmgr().ok().and_then(|dirmgr| dirmgr.timely_netdir().ok());
    netdir.iter().flat_map(|netdir| netdir.relays().flat_map(|r| r.addrs().collect::<Vec<_>>())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(remote: &str) -> Socket {
        Socket {
            kind: Kind::Tcp,
            local: "192.168.1.2:50000".parse().unwrap(),
            remote: remote.parse().unwrap(),
        }
    }

    fn judged(seen: &[Socket], before: &[Socket], entry_bridges: bool) -> Vec<Outcome> {
        let relays = HashSet::from(["198.51.100.1:443".parse().unwrap()]);
        let proxy = "127.0.0.1:9150".parse().unwrap();
        let set = |sockets: &[Socket]| Ok(sockets.iter().copied().collect());
        let mut report = Report::default();
        own_sockets(&mut report, set(before), set(seen), &[proxy], &relays, entry_bridges);
        report.checks.iter().map(|check| check.outcome).collect()
    }

    #[test]
    fn connections_to_relays_and_from_programs_are_fine_and_no_others() {
        use Outcome::{CouldNotCheck, Failed, Ok};
        let relay = tcp("198.51.100.1:443");
        assert_eq!(judged(&[relay, tcp("127.0.0.1:9150")], &[], false), [Ok, Ok]);
        assert_eq!(judged(&[relay, tcp("198.51.100.1:80")], &[], false), [Ok, Failed]);
        assert_eq!(judged(&[relay, tcp("127.0.0.1:5353")], &[], false), [Ok, Failed]);
        assert_eq!(judged(&[relay, tcp("203.0.113.9:443")], &[], true), [Ok, CouldNotCheck]);
        assert_eq!(judged(&[relay, tcp("203.0.113.9:443")], &[tcp("203.0.113.9:443")], false), [Ok, Ok]);
        assert_eq!(judged(&[], &[], false), [Ok, CouldNotCheck]);
        let dns = Socket { kind: Kind::Udp, ..tcp("192.0.2.53:53") };
        assert_eq!(judged(&[relay, dns], &[], false), [Failed, Ok]);
        assert_eq!(judged(&[relay], &[dns], false), [Failed, Ok]);
    }

    #[test]
    fn what_could_not_be_checked_is_no_failure() {
        let mut report = Report::default();
        report.add("one", Outcome::CouldNotCheck, "because");
        report.hint("try");
        let report = report.done();
        assert!(report.ok);
        assert_eq!(
            serde_json::to_value(&report).unwrap()["checks"][0],
            serde_json::json!({"check": "one", "outcome": "could-not-check", "detail": "because", "hint": "try"})
        );
        let mut report = Report::default();
        report.add("one", Outcome::Failed, "");
        assert!(!report.done().ok);
    }

    #[tokio::test]
    async fn a_proxy_that_connects_directly_is_caught() {
        // Stands for a client that leaks: it does what a naive SOCKS server does.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut tcp, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                    let mut head = [0; 3];
                    tcp.read_exact(&mut head).await.unwrap();
                    tcp.write_all(&[5, 0]).await.unwrap();
                    let mut request = [0; 10];
                    tcp.read_exact(&mut request).await.unwrap();
                    let ip: [u8; 4] = request[4..8].try_into().unwrap();
                    let port = u16::from_be_bytes([request[8], request[9]]);
                    let there = tokio::net::TcpStream::connect((Ipv4Addr::from(ip), port)).await;
                    tcp.write_all(&[5, u8::from(there.is_err()), 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
                });
            }
        });
        let traps: Vec<Trap> = Trap::set().into_iter().filter(|trap| trap.addr().is_ipv4()).collect();
        assert!(!traps.is_empty());
        assert_eq!(caught(proxy, traps.iter()).await, Ok(traps.len()));
    }
}
