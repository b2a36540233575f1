//! Real networks of real tors.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use testnet::{Origins, OriginsConfig, Role, State, TestNet};

/// Body and status of a page, through Tor.
async fn get(socks: SocketAddr, url: &str) -> (String, u16) {
    let args = ["-sS", "-m", "60", "-w", "\n%{http_code}", "--socks5-hostname", &socks.to_string(), url];
    let out = tokio::process::Command::new("curl").args(args).output().await.unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    assert!(out.status.success(), "{url}: {}", String::from_utf8_lossy(&out.stderr));
    (body.to_owned(), status.parse().unwrap())
}

/// Whether a process runs; a zombie does not.
fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn all_end_within(pids: &[u32], limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while pids.iter().any(|pid| runs(*pid)) {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn two_networks_side_by_side_and_nothing_left_behind() {
    const ONE_WAY: Duration = Duration::from_millis(40);
    let (near, far) = tokio::join!(
        TestNet::builder().name("near").start(),
        TestNet::builder().name("far").latency(ONE_WAY).middles(3).exits(1).start(),
    );
    let (near, far) = (near.unwrap(), far.unwrap());
    assert_eq!(near.relays().len(), 11);
    assert_eq!(far.relays().iter().filter(|r| r.role == Role::Exit).count(), 1);
    for relay in near.relays() {
        assert_eq!((relay.rsa_identity.len(), relay.ed_identity.len()), (40, 43), "{relay:?}");
        assert!(far.relays().iter().all(|other| other.address != relay.address));
    }

    let near_origins = Origins::start(OriginsConfig::on_network(&near)).await.unwrap();
    let far_origins = Origins::start(OriginsConfig::on_network(&far)).await.unwrap();
    for (net, origins) in [(&near, &near_origins), (&far, &far_origins)] {
        let blocking = origins.blocking_tor_exits();
        let (page, status) = get(net.socks_addr(), &blocking.url("/")).await;
        assert!(status == 403 && page.contains("Access denied"), "{status} {page}");
        let (peer, status) = get(net.socks_addr(), &blocking.url("/peer")).await;
        assert_eq!((peer, status), (net.exit_egress_ip().to_string(), 200));
        assert_eq!(blocking.last_peer_ip(), Some(net.exit_egress_ip()));
        assert_eq!(get(net.socks_addr(), &origins.open().url("/")).await.1, 200);
        assert!(std::fs::read_to_string(net.network_file()).unwrap().contains("fallback_caches"));
        // Exits that carried nothing yet are as good as those that did.
        let consensus = net.dir().join("nodes/client/data/cached-microdesc-consensus");
        let consensus = std::fs::read_to_string(consensus).unwrap();
        let measured = net.relays().iter().filter(|relay| relay.role != Role::Authority).count();
        assert_eq!(consensus.matches("\nw Bandwidth=1000\n").count(), measured, "{consensus}");
    }

    // Three links out and three back, on a circuit that is built already.
    let start = Instant::now();
    get(far.socks_addr(), &far_origins.open().url("/peer")).await;
    assert!(start.elapsed() >= 6 * ONE_WAY, "{:?}", start.elapsed());

    let (near_pids, far_pids) = (near.pids(), far.pids());
    let near_dir = near.dir().to_owned();
    assert!(near_pids.iter().chain(&far_pids).all(|pid| runs(*pid)));
    drop(near);
    assert!(all_end_within(&near_pids, Duration::from_secs(1)));
    assert!(!near_dir.exists());
    assert_eq!(get(far.socks_addr(), &far_origins.open().url("/peer")).await.1, 200);
    far.shutdown().await.unwrap();
    assert!(all_end_within(&far_pids, Duration::from_secs(1)));
}

fn testnet(args: &[&str], dir: &Path) -> Output {
    let binary = env!("CARGO_BIN_EXE_testnet");
    Command::new(binary).args(args).env("TESTNET_DIR", dir).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The smallest network, for tests of the binary.
const SMALL: [&str; 3] = ["--middles=2", "--exits=1", "--ports=ephemeral"];

#[test]
fn the_binary_brings_a_network_up_and_down_and_a_killed_supervisor_leaves_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("net");
    assert_eq!(testnet(&["status"], &dir).status.code(), Some(1));

    let up = testnet(&[&["up", "--json"], &SMALL[..]].concat(), &dir);
    assert_eq!(up.status.code(), Some(0), "{}", text(&up.stderr));
    let state: State = serde_json::from_slice(&up.stdout).unwrap();
    assert_eq!(State::load(&dir).unwrap().as_ref(), Some(&state));
    assert!(state.pids.iter().all(|pid| runs(*pid)) && runs(state.supervisor_pid));
    let again = testnet(&["up"], &dir);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("\nhint: testnet down --dir"), "{}", text(&again.stderr));

    let everything: Vec<u32> = state.pids.iter().copied().chain([state.supervisor_pid]).collect();
    assert_eq!(testnet(&["down"], &dir).status.code(), Some(0));
    assert!(all_end_within(&everything, Duration::from_secs(1)));
    assert!(State::load(&dir).unwrap().is_none());

    let up = testnet(&[&["up", "--json"], &SMALL[..]].concat(), &dir);
    let state: State = serde_json::from_slice(&up.stdout).unwrap();
    let kill = Command::new("kill").args(["-9", &state.supervisor_pid.to_string()]).status().unwrap();
    assert!(kill.success());
    // Sooner than by looking for their owner, which they do each 15 s.
    assert!(all_end_within(&state.pids, Duration::from_secs(12)));
    assert_eq!(testnet(&["status"], &dir).status.code(), Some(1));
    assert_eq!(testnet(&["down"], &dir).status.code(), Some(0));
}

#[test]
fn exec_passes_the_environment_and_the_exit_code() {
    let temp = tempfile::tempdir().unwrap();
    let script = "curl -s --socks5-hostname $TESTNET_SOCKS ${TESTNET_ORIGIN_URL}peer; exit 7";
    let args = [&["exec"], &SMALL[..], &["--", "sh", "-c", script]].concat();
    let out = testnet(&args, temp.path());
    assert_eq!(
        (out.status.code(), text(&out.stdout).as_str()),
        (Some(7), "127.0.0.1"),
        "{}",
        text(&out.stderr)
    );
}

#[test]
fn errors_say_what_to_try() {
    let temp = tempfile::tempdir().unwrap();
    assert_eq!(testnet(&["up", "--latency=x"], temp.path()).status.code(), Some(2));

    let binary = env!("CARGO_BIN_EXE_testnet");
    let run = |tor: &Path| {
        let cache = temp.path().join("cache");
        let mut command = Command::new(binary);
        command.args(["up", "--ports=ephemeral"]).env("XDG_CACHE_HOME", cache).env("TESTNET_TOR", tor);
        command.env("TESTNET_DIR", temp.path().join("net")).output().unwrap()
    };
    let missing = run(&PathBuf::from("/no/such/tor"));
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        text(&missing.stderr)
            .ends_with("error: the program `/no/such/tor` was not found\nhint: apt-get install tor\n")
    );

    // A tor that makes keys and then refuses to run.
    let broken = temp.path().join("tor");
    let script = "#!/bin/sh\ncase $1 in --list-fingerprint) exec tor \"$@\";; esac\necho '[err] Out of luck'\nexit 3\n";
    std::fs::write(&broken, script).unwrap();
    std::fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let early = run(&broken);
    let said = text(&early.stderr);
    assert_eq!(early.status.code(), Some(1));
    assert!(
        said.contains("exited early") && said.contains("[err] Out of luck") && said.contains("/log\n"),
        "{said}"
    );
}
