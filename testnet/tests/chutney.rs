//! Networks that Chutney runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use testnet::{Role, State};

/// The network `basic`.
fn basic() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../chutney-configs/networks/basic")
}

fn up(dir: &Path, chutney_path: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_testnet"));
    command.args(["up", "--json", "--ports=ephemeral", "--chutney"]).arg(basic()).arg("--dir").arg(dir);
    match chutney_path {
        Some(path) => command.env("CHUTNEY_PATH", path),
        None => command.env_remove("CHUTNEY_PATH"),
    };
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A checkout whose program is this shell script.
fn checkout(dir: &Path, script: &str) -> PathBuf {
    let checkout = dir.join("checkout");
    std::fs::create_dir_all(&checkout).unwrap();
    let program = checkout.join("chutney");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
    checkout
}

#[test]
fn without_chutney_it_says_how_to_get_it() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty");
    for path in [None, Some(&*empty)] {
        let out = up(&dir.path().join("net"), path);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{said}");
        assert!(said.contains("error: there is no Chutney"), "{said}");
        assert!(said.contains("\nhint: git clone https://gitlab.torproject.org/tpo/core/chutney"), "{said}");
    }
}

#[test]
fn each_chutney_is_told_of_the_network_in_its_own_way() {
    let dir = tempfile::tempdir().unwrap();
    let told = dir.path().join("told");
    let tell = |script: &str| {
        let script = format!("echo \"$1 $(basename -- \"${{2:-}}\") $#\" >>{}\n{script}", told.display());
        let _ = std::fs::remove_file(&told);
        let out = up(&dir.path().join("net"), Some(&checkout(dir.path(), &script)));
        (text(&out.stderr), std::fs::read_to_string(&told).unwrap())
    };
    // Of 2021: knows no init.
    let (said, told_2021) = tell("[ $1 != init ] && echo 'too bad' >&2; exit 7");
    assert_eq!(told_2021, "init --help 2\nconfigure basic 2\n");
    assert!(
        said.contains("error: `chutney configure` failed (exit status: 7): too bad\nhint: less /"),
        "{said}"
    );
    // Later.
    let (_, told_later) = tell("[ $1 = init ]");
    assert_eq!(told_later, "init --help 2\ninit --net-from-script-path 3\nconfigure  1\n");
}

/// The nodes of a network as a Chutney sees them whose `Node` is this Python function: one line each.
fn nodes(network: &str, node: &str) -> Vec<String> {
    let basic = basic().canonicalize().unwrap();
    let configs = basic.ancestors().nth(2).unwrap();
    let file = configs.join("networks").join(network);
    let script = format!(
        "{node}\ndef Require(it): pass\ndef ConfigureNodes(nodes):\n    for node in nodes: print(node)\n\
         exec(open({:?}).read())",
        file.display()
    );
    let mut python = Command::new("python3");
    python.args(["-B", "-c", &script]).env("PYTHONPATH", configs).env("TESTNET_SLICE", "127.99");
    let out = python.env("TESTNET_TORRC", "NumCPUs 7").output().unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
    text(&out.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn a_later_chutney_is_given_the_same_network_without_what_it_writes_itself() {
    let of_2021 = "def Node(tag, ip, torrc, **kw): return f'{ip} {tag} {torrc}'";
    let later = "def Node(tag, ip, extra_raw_torrc, **kw): return f'{ip} {tag} {extra_raw_torrc!r}'";
    for (network, count) in [("basic", 12), ("circuit", 13), ("onion", 12), ("ipv6", 12)] {
        let (templates, texts) = (nodes(network, of_2021), nodes(network, later));
        assert_eq!((templates.len(), texts.len()), (count, count), "{network}");
        for (template, text) in templates.iter().zip(&texts) {
            let same = template.rsplit_once(' ').unwrap().0;
            assert!(text.starts_with(same) && same.starts_with("127.99."), "{template}, {text}");
            assert!(text.contains("\\nNumCPUs 7\\n"), "{text}");
            assert!(!text.contains("${") && !text.contains("DataDirectory"), "{text}");
        }
        let authorities =
            texts.iter().filter(|t| t.contains("TestingDirAuthVoteExit 127.99.3.0/24\\n")).count();
        assert_eq!(authorities, 4, "{network}");
    }
}

#[test]
#[ignore = "needs a checkout of Chutney: make test-chutney"]
fn its_tors_end_with_their_supervisor_and_nothing_is_written_in_the_checkout() {
    let checkout = PathBuf::from(std::env::var_os("CHUTNEY_PATH").expect("CHUTNEY_PATH"));
    let files = || {
        let out =
            Command::new("find").arg(&checkout).args(["-newermt", "@0", "-printf", "%p %T@\n"]).output();
        text(&out.unwrap().stdout)
    };
    let (before, dir) = (files(), tempfile::tempdir().unwrap());
    let out = up(dir.path(), Some(&checkout));
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let state: State = serde_json::from_slice(&out.stdout).unwrap();
    let count = |role| state.relays.iter().filter(|relay| relay.role == role).count();
    assert_eq!([count(Role::Authority), count(Role::Middle), count(Role::Exit)], [4, 5, 2]);
    assert_eq!(state.pids.len(), 12);

    let page = |url: &str| {
        let socks = state.socks.to_string();
        let args =
            ["-sS", "-m", "60", "-w", "%{http_code}", "-o", "/dev/null", "--socks5-hostname", &socks, url];
        text(&Command::new("curl").args(args).output().unwrap().stdout)
    };
    assert_eq!(page(&state.origins["blocking"].url), "403");
    assert_eq!(page(&state.origins["open"].url), "200");

    let alive = |pid: &u32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|args| !args.is_empty());
    assert!(state.pids.iter().all(alive));
    let killed = Command::new("kill").args(["-9", &state.supervisor_pid.to_string()]).status().unwrap();
    assert!(killed.success());
    let start = Instant::now();
    while state.pids.iter().any(alive) {
        assert!(start.elapsed() < Duration::from_secs(20), "tors go on: Chutney of 2021 ends them at once");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(files(), before);
}
