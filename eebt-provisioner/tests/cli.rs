//! What an operator does with `eebt`, and what they see.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Operator, eventually, finish};
use eebt_proto::BridgeLine;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn an_exit_bridge_goes_up_is_listed_and_goes_down() {
    let op = Operator::new(1, &[]);
    let up = op.up(&["--lifetime", "2h"]).ok();
    assert_eq!(up.lines().len(), 1, "stdout holds the bridge line only: {}", up.out);
    let line: BridgeLine = up.out.trim().parse().unwrap();
    assert!(line.expires.is_some());
    assert!(up.err.contains("plan: 1 exit bridge by provider local, cost 0"), "{}", up.err);
    assert!(!up.err.contains('\x1b'), "no colour off a terminal: {}", up.err);

    let rows = op.ls();
    let id = rows[0]["id"].as_str().unwrap();
    assert_eq!(rows[0]["state"], "running");
    assert_eq!(rows[0]["line"], up.out.trim());
    assert!(rows[0]["address"].as_str().unwrap().starts_with("127.45.1.1:"));
    let table = op.eebt(&["ls"]).ok();
    let words: Vec<&str> = table.lines()[1].split_whitespace().collect();
    assert_eq!(&words[..3], [id, "local", "running"]);
    assert!(table.out.contains("1h 59m"), "{}", table.out);
    assert_eq!(op.eebt(&["ls", "--lines"]).ok().out, up.out);

    let log = op.eebt(&["logs", id]).ok();
    assert!(log.out.contains("fake bridge for 127.45.1.1"), "{}", log.out);
    assert_eq!(op.eebt(&["logs", id, "-n", "0"]).ok().out, "");
    assert_eq!(op.eebt(&["logs", id, "--json"]).ok().json()["id"], id);

    let folder = op.state().join("instances").join(id);
    let mode = |name: &str| fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("keys"), mode("bridge.toml"), mode("log")), (0o700, 0o700, 0o600, 0o600));
    assert_eq!(fs::metadata(op.ledger()).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(op.state()).unwrap().permissions().mode() & 0o777, 0o700);

    let down = op.eebt(&["down", id]).ok();
    assert_eq!(down.out, "");
    assert_eq!(op.assert_truth("after down"), 0);
    assert!(op.eebt(&["logs", id]).ok().out.contains("drained"), "the log stays");
    let ended = &op.ls_all()[0];
    assert_eq!((ended["state"].as_str(), ended["line"].as_str()), (Some("ended"), None));
    assert!(op.eebt(&["down", id]).ok().err.contains("was down already"));
    assert!(op.eebt(&["ls"]).ok().err.contains("no exit bridges"));
}

#[test]
fn several_come_up_in_parallel_each_on_its_own_address() {
    let op = Operator::new(2, &[("FAKE_READY_AFTER", "1000")]);
    let start = Instant::now();
    let up = op.up(&["--count", "5"]).ok();
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert_eq!(up.lines().len(), 5);
    let mut ips: Vec<String> = op
        .ls()
        .iter()
        .map(|row| row["address"].as_str().unwrap().split(':').next().unwrap().to_owned())
        .collect();
    ips.sort();
    assert_eq!(ips, ["127.45.2.1", "127.45.2.2", "127.45.2.3", "127.45.2.4", "127.45.2.5"]);
    let down = op.eebt(&["down", "--all", "--json"]).ok().json();
    assert_eq!(down["instances"].as_array().unwrap().len(), 5);
    assert!(down["instances"].as_array().unwrap().iter().all(|row| row["state"] == "ended"));
    assert_eq!(op.assert_truth("after down --all"), 0);
    assert!(op.eebt(&["down", "--all"]).ok().err.contains("no exit bridges to end"));
}

#[test]
fn up_speaks_json() {
    let op = Operator::new(3, &[]);
    let up = op.up(&["--count", "2", "--json"]).ok().json();
    assert_eq!(up["failed"].as_array().unwrap().len(), 0);
    for row in up["instances"].as_array().unwrap() {
        for key in ["id", "provider", "state", "address", "expires", "line"] {
            assert!(row[key].is_string(), "{key}: {row}");
        }
        assert!(row["line"].as_str().unwrap().parse::<BridgeLine>().is_ok());
    }
}

#[test]
fn of_several_the_good_ones_stay_and_the_bad_ones_are_explained() {
    let op = Operator::new(4, &[("FAKE_SICK_IP", "127.45.4.2")]);
    let up = op.up(&["--count", "3", "--timeout", "2s"]).fails(
        1,
        &[
            "127.45.4.2:",
            "not ready after 2 s: no consensus yet",
            "| fake bridge for 127.45.4.2",
            "error: 1 of 3 exit bridges did not come up",
            "hint: ",
        ],
    );
    assert_eq!(up.lines().len(), 2);
    assert_eq!(op.assert_truth("after a partial failure"), 2);
    let failed = op.ls_all().into_iter().find(|row| row["state"] == "failed").unwrap();
    assert!(op.eebt(&["logs", failed["id"].as_str().unwrap()]).ok().out.contains("fake bridge"));

    let json = op.up(&["--json", "--count", "3", "--timeout", "1s"]).fails(1, &[]).json();
    assert_eq!(json["instances"].as_array().unwrap().len(), 2);
    assert!(json["failed"][0]["error"].as_str().unwrap().contains("no consensus yet"));
}

#[test]
fn a_bridge_that_ends_early_or_makes_no_keys_is_explained() {
    let op = Operator::new(5, &[("FAKE_READY_AFTER", "60000"), ("FAKE_ENDS_AFTER", "200")]);
    op.up(&[]).fails(1, &["ended by itself (exit status: 3)", "| error: out of luck", "hint: "]);
    op.set(&[("FAKE_KEYGEN_FAILS", "1")]);
    let up =
        op.up(&[]).fails(1, &["`eebt-bridge keygen` failed (exit status: 1): error: the dice are broken"]);
    assert_eq!(up.out, "");
    assert_eq!(op.assert_truth("after failures"), 0);
}

#[test]
fn without_waiting_lines_come_at_once_and_ls_notices_when_they_serve() {
    let op = Operator::new(6, &[("FAKE_READY_AFTER", "1500")]);
    let start = Instant::now();
    assert_eq!(op.up(&["--no-wait"]).ok().lines().len(), 1);
    assert!(start.elapsed() < Duration::from_millis(1400), "{:?}", start.elapsed());
    assert_eq!(op.ls()[0]["state"], "starting");
    assert_eq!(op.eebt(&["ls", "--lines"]).ok().out, "");
    eventually("it is running", || op.ls()[0]["state"] == "running");
    op.assert_truth("after --no-wait");
}

#[test]
fn one_that_is_killed_died_and_one_that_reaches_its_expiry_expired() {
    let op = Operator::new(7, &[]);
    op.up(&["--count", "2"]).ok();
    let ids = op.ids();
    let pids = op.processes();
    kill(Pid::from_raw(pids[0]), Signal::SIGKILL).unwrap();
    eventually("one is gone", || op.processes().len() == 1);
    let ls = op.eebt(&["ls"]).ok();
    assert!(
        ls.err.contains("is died: its process was gone before its expiry; the last in its log: fake"),
        "{}",
        ls.err
    );
    assert_eq!(op.assert_truth("after a death"), 1);

    op.sql("UPDATE instances SET expires = unixepoch() - 1 WHERE state = 'running'");
    assert_eq!(op.ls().len(), 1, "it is late, but lives");
    kill(Pid::from_raw(op.processes()[0]), Signal::SIGKILL).unwrap();
    eventually("both are gone", || op.processes().is_empty());
    assert_eq!(op.assert_truth("after an expiry"), 0);
    let mut states: Vec<String> =
        op.ls_all().iter().map(|row| row["state"].as_str().unwrap().to_owned()).collect();
    states.sort();
    assert_eq!(states, ["died", "expired"]);
    assert!(ids.iter().all(|id| op.eebt(&["logs", id]).ok().out.contains("fake bridge")));
}

#[test]
fn one_ends_by_itself_at_its_expiry_though_no_eebt_runs() {
    let op = Operator::new(8, &[]);
    op.up(&["--lifetime", "1m"]).ok();
    let start = Instant::now();
    while !op.processes().is_empty() {
        assert!(start.elapsed() < Duration::from_secs(62), "it should have ended");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(start.elapsed() > Duration::from_secs(50), "{:?}", start.elapsed());
    assert_eq!(op.assert_truth("after the expiry"), 0);
    assert_eq!(op.ls_all()[0]["state"], "expired");
}

#[test]
fn one_that_outlives_its_expiry_is_killed() {
    let op = Operator::new(9, &[]);
    op.up(&[]).ok();
    op.sql("UPDATE instances SET expires = unixepoch() - 60");
    let ls = op.eebt(&["ls"]).ok();
    assert!(ls.err.contains("is expired: did not stop in time and was killed"), "{}", ls.err);
    assert_eq!(op.assert_truth("after an overdue one"), 0);
}

#[test]
fn folders_of_long_ended_ones_are_removed() {
    let op = Operator::new(10, &[]);
    op.up(&[]).ok();
    let id = op.ids().remove(0);
    op.eebt(&["down", "--all", "--now"]).ok();
    assert!(op.state().join("instances").join(&id).exists());
    op.sql("UPDATE instances SET ended = unixepoch() - 8 * 86400");
    assert!(op.ls_all().is_empty());
    assert!(!op.state().join("instances").join(&id).exists());
    op.eebt(&["logs", &id]).fails(1, &["has no log", "hint: "]);
}

#[test]
fn streams_get_time_to_finish_unless_told_otherwise() {
    let op = Operator::new(11, &[("FAKE_DRAIN", "1500")]);
    op.up(&["--count", "2"]).ok();
    let ids = op.ids();
    let start = Instant::now();
    op.eebt(&["down", &ids[0]]).ok();
    assert!(start.elapsed() > Duration::from_millis(1400));
    assert!(op.eebt(&["logs", &ids[0]]).ok().out.contains("drained"));
    let start = Instant::now();
    op.eebt(&["down", "--now", &ids[1]]).ok();
    assert!(start.elapsed() < Duration::from_millis(1400));
    assert!(!op.eebt(&["logs", &ids[1]]).ok().out.contains("drain"));
}

#[test]
fn one_that_does_not_drain_is_killed_at_the_deadline() {
    let op = Operator::new(12, &[("FAKE_DRAIN", "600000")]);
    op.up(&[]).ok();
    let start = Instant::now();
    op.eebt(&["down", "--all"]).ok();
    assert!((14..25).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert_eq!(op.assert_truth("after the deadline"), 0);
}

#[test]
fn a_log_is_followed_until_its_end() {
    let op = Operator::new(13, &[]);
    op.up(&[]).ok();
    let id = op.ids().remove(0);
    let follower = op.command(&["logs", &id, "-f"]).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    op.eebt(&["down", &id]).ok();
    let output = follower.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && text.starts_with("fake bridge") && text.ends_with("drained\n"),
        "{text}"
    );
}

#[test]
fn a_dry_run_changes_nothing() {
    let op = Operator::new(14, &[]);
    let run = op.up(&["--dry-run", "--count", "2"]).ok();
    assert_eq!(run.out, "");
    assert!(
        run.err.contains("plan: 2 exit bridges") && run.err.contains("127.45.14.1, 127.45.14.2"),
        "{}",
        run.err
    );
    let plan = op.up(&["--dry-run", "--json"]).ok().json();
    assert_eq!((&plan["plan"]["count"], &plan["plan"]["cost"]), (&1.into(), &0.into()));
    assert!(op.ls_all().is_empty() && op.processes().is_empty());
}

#[test]
fn every_bad_input_is_named() {
    let op = Operator::new(15, &[]);
    for (args, field) in [
        (&["up", "--count", "0"][..], "--count"),
        (&["up", "--count", "101"], "--count"),
        (&["up", "--lifetime", "59s"], "--lifetime"),
        (&["up", "--lifetime", "8d"], "--lifetime"),
        (&["up", "--lifetime", "soon"], "--lifetime"),
        (&["up", "--timeout", "0s"], "--timeout"),
        (&["up", "--address", "localhost"], "--address"),
        (&["up", "--address", "1.2.3.4/33"], "--address"),
        (&["up", "--address", "127.0.0.1"], "--address"),
        (&["up", "--address", "9.9.9.9"], "--address"),
        (&["up", "--allow-egress", "x"], "--allow-egress"),
        (&["up", "--listen-ip", "127.0.0.1"], "--listen-ip"),
        (&["up", "--listen-ip", "x"], "--listen-ip"),
        (&["up", "--port", "0"], "--port"),
        (&["up", "--policy", "everything"], "--policy"),
        (&["up", "--network", "/nowhere/network.toml"], "--network"),
        (&["up", "--bridge-binary", "/nowhere/eebt-bridge"], "--bridge-binary"),
        (&["up", "--bridge-binary", op.network().to_str().unwrap()], "--bridge-binary"),
        (&["up", "--provider", "moon"], "--provider"),
        (&["down"], "<ID"),
        (&["down", "nothere"], "ID: no instance \"nothere\""),
        (&["logs", "nothere"], "ID: no instance \"nothere\""),
        (&["ls", "--state-dir", ""], "--state-dir"),
    ] {
        let run = op.eebt(args).fails(2, &[field, "error: ", "hint: "]);
        assert_eq!(run.err.lines().count(), 2, "{args:?}: {}", run.err);
        assert_eq!(run.out, "", "{args:?}");
    }
    assert!(op.processes().is_empty() && op.ls_all().is_empty());
    let busy = std::net::TcpListener::bind("127.45.15.1:0").unwrap();
    let port = busy.local_addr().unwrap().port().to_string();
    let network = op.network();
    let args = ["up", "--address", "127.45.15.1", "--network", network.to_str().unwrap(), "--port", &port];
    op.eebt(&args).fails(2, &["--port: ", "is taken on 127.45.15.1", "hint: "]);
}

#[test]
fn behind_a_one_to_one_nat_the_line_has_the_public_address() {
    let op = Operator::new(16, &[]);
    let up = op.eebt(&["up", "--address", "5.6.7.8", "--listen-ip", "127.45.16.1"]).ok();
    assert!(up.out.contains("5.6.7.8:"), "{}", up.out);
    let id = op.ids().remove(0);
    let config = fs::read_to_string(op.state().join("instances").join(id).join("bridge.toml")).unwrap();
    assert!(config.contains("listen = \"127.45.16.1:"), "{config}");
    assert!(config.contains("egress_address = \"127.45.16.1\""), "{config}");
}

#[test]
fn a_missing_program_is_found_out_before_anything_is_written() {
    let op = Operator::new(17, &[]);
    let mut command = op.up_command(&[]);
    // Beside this copy there is none.
    let lonely = op.path().join("bin");
    fs::create_dir(&lonely).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_eebt"), lonely.join("eebt")).unwrap();
    let mut alone = std::process::Command::new(lonely.join("eebt"));
    alone.args(command.get_args()).env("EEBT_STATE_DIR", op.state()).env("PATH", "/nowhere");
    alone.env_remove("EEBT_BRIDGE_BINARY");
    finish(&mut alone).fails(1, &["can't find the program eebt-bridge", "hint: "]);
    assert!(!op.state().exists());
    fs::copy(op.bridge(), lonely.join("eebt-bridge")).unwrap();
    finish(&mut alone).ok();
    finish(command.env_remove("EEBT_BRIDGE_BINARY").env("EEBT_BRIDGE_BINARY", lonely.join("eebt-bridge")))
        .ok();
    assert_eq!(op.assert_truth("with the program beside eebt"), 2);
}

#[test]
fn a_broken_or_newer_ledger_is_reported_and_a_lost_one_is_rebuilt() {
    let op = Operator::new(18, &[]);
    let line = op.up(&["--count", "2"]).ok();
    let ids = op.ids();
    for extra in ["-wal", "-shm"] {
        let _ = fs::remove_file(op.state().join(format!("ledger.sqlite{extra}")));
    }
    fs::write(op.ledger(), "this is no database ".repeat(200)).unwrap();
    op.eebt(&["ls"]).fails(1, &["error: can't open the ledger", "not a database", "hint: move"]);
    op.up(&[]).fails(1, &["ledger.sqlite"]);
    fs::remove_file(op.ledger()).unwrap();

    let ls = op.eebt(&["ls", "--lines"]).ok();
    assert!(ls.err.contains("was unknown to the ledger; found by its folder"), "{}", ls.err);
    let sorted = |lines: Vec<&str>| {
        let mut lines: Vec<String> = lines.into_iter().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(ls.lines()), sorted(line.lines()));
    assert_eq!(op.assert_truth("after the ledger was lost"), 2);
    op.eebt(&["down", &ids[0]]).ok();
    assert_eq!(op.assert_truth("after down of a found one"), 1);

    op.sql("PRAGMA user_version = 9");
    op.eebt(&["ls"]).fails(1, &["of a newer eebt (schema 9", "hint: "]);
}

#[test]
fn a_state_folder_that_cannot_be_used_is_reported() {
    let op = Operator::new(19, &[]);
    let file = op.path().join("file");
    fs::write(&file, "").unwrap();
    for dir in [file.join("state"), file, "/proc/eebt".into()] {
        op.eebt(&["ls", "--state-dir", dir.to_str().unwrap()])
            .fails(1, &["can't create", "hint: ", "--state-dir"]);
    }
}

#[test]
fn folders_that_are_not_ours_are_left_alone() {
    let op = Operator::new(20, &[]);
    let theirs = op.state().join("instances/holiday/photos");
    fs::create_dir_all(&theirs).unwrap();
    op.eebt(&["ls"]).ok();
    assert!(theirs.exists());
}

#[test]
fn the_exit_bridge_sees_little_of_the_environment() {
    let op = Operator::new(21, &[]);
    finish(op.up_command(&[]).env("AWS_SECRET_ACCESS_KEY", "x").env("LD_LIBRARY_PATH", "/tmp")).ok();
    let environment = fs::read(format!("/proc/{}/environ", op.processes()[0])).unwrap();
    let environment = String::from_utf8(environment).unwrap();
    let mut names: Vec<&str> =
        environment.split('\0').filter_map(|entry| Some(entry.split_once('=')?.0)).collect();
    names.retain(|name| {
        !["PATH", "HOME", "RUST_LOG", "NO_COLOR", "PWD", "OLDPWD", "_", "SHLVL"].contains(name)
    });
    assert!(names.is_empty(), "{names:?}");
}

#[test]
fn attaching_says_what_is_missing_and_changes_nothing() {
    const ONION: &str = "eebt1 onion address=pg6mmjiyjmcrsslvykfwnntlaru7p5svn6y2ymmju6nubxndf4pscryd.onion ports=80,443 check=ae547a95";
    let op = Operator::new(22, &[]);
    let attach = |more: &[&str]| op.eebt(&[&["attach"], more].concat());
    attach(&["x"]).fails(2, &["LINE", "hint: "]);
    attach(&[]).fails(2, &["--for", "hint: "]);
    attach(&["--for", "a.example"]).fails(2, &["LINE: this fleet has no exit bridges", "hint: "]);
    attach(&["--for", "a.example", ONION]).fails(2, &["circuit exit bridges only", "hint: "]);
    for host in ["*", "localhost", "a b.example", "x.onion", "2001:db8::1"] {
        attach(&["--for", host, ONION]).fails(2, &["--for", "hint: "]);
    }
    for place in ["198.51.100.7:9051", "9051", "tor"] {
        attach(&["--for", "a.example", "--control", place]).fails(2, &["--control", "hint: "]);
    }
    let file = op.path().join("lines");
    fs::write(&file, "# mine\n\neebt1 onion\n").unwrap();
    let named = file.to_str().unwrap();
    attach(&["--for", "a.example", "--bridge-file", named]).fails(2, &["--bridge-file: line 3: ", "address"]);
    fs::write(&file, "a.example\n*\n").unwrap();
    attach(&["--for-file", named, ONION]).fails(2, &["--for-file: line 2: ", "hint: "]);
    fs::write(&file, "# none\n").unwrap();
    attach(&["--for-file", named, ONION]).fails(2, &["--for-file: it has no host", "hint: "]);
    attach(&["--for", "a.example", "--bridge-file", "/nowhere"]).fails(2, &["--bridge-file: /nowhere"]);
    attach(&["--undo", "--for", "a.example"]).fails(2, &["--undo", "hint: "]);
    // A password is for whom the person named, and for nobody who happens to listen.
    attach(&["--for", "a.example", "--password-file", named, ONION]).fails(2, &["--control", "hint: "]);
    assert_eq!(attach(&["--undo", "--json"]).ok().json()["undone"], 0);

    // A fleet whose exit bridges serve, and no tor.
    op.up(&[]).ok();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    attach(&["--for", "a.example", "--control", &nobody])
        .fails(1, &["can't connect to the control port", "hint: "]);
    assert_eq!(fs::read_dir(op.state().join("attach")).unwrap().count(), 0);
    op.eebt(&["down", "--all"]).ok();
}
