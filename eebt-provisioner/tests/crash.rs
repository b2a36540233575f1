//! `eebt` killed at any point, or run twice at once: the next run shows the truth.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use common::{Operator, eventually, finish};
use eebt_provisioner::CRASH_POINTS;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn up_killed_at_any_step_leaves_nothing_but_what_is_ready() {
    let op = Operator::new(101, &[]);
    for point in CRASH_POINTS.0 {
        let status = op.up_command(&["--count", "3"]).env("EEBT_CRASH_AT", point).output().unwrap().status;
        assert_eq!(status.signal(), Some(9), "{point}");
        // At the last step the one that was ready stays; others may have become so in that moment.
        let left = op.assert_truth(point);
        assert_eq!(left > 0, *point == "ready", "{point}: {left}");
        let ended = op.ls_all().into_iter().filter(|row| row["state"] == "failed");
        assert!(ended.clone().count() > 0 || left == 3, "{point}");
        assert!(ended.into_iter().all(|row| row["error"].as_str().unwrap().contains("was killed at step")));
    }
    op.eebt(&["down", "--all"]).ok();
    assert_eq!(op.assert_truth("at the end"), 0);
}

#[test]
fn down_killed_at_any_step_is_finished_by_the_next_down() {
    let op = Operator::new(102, &[("FAKE_DRAIN", "300")]);
    for point in CRASH_POINTS.1 {
        op.up(&[]).ok();
        let status = op.command(&["down", "--all"]).env("EEBT_CRASH_AT", point).output().unwrap().status;
        assert_eq!(status.signal(), Some(9), "{point}");
        for row in op.ls().into_iter().chain(op.ls()) {
            assert!(["stopping", "running"].contains(&row["state"].as_str().unwrap()), "{point}: {row}");
        }
        op.eebt(&["down", "--all"]).ok();
        assert_eq!(op.assert_truth(point), 0);
        for row in op.ls_all() {
            assert_eq!(row["state"], "ended", "{point}: {row}");
            let log = op.eebt(&["logs", row["id"].as_str().unwrap()]).ok().out;
            // Between the signal and its record no one can know; else it is told once.
            assert!(log.ends_with("drained\n") || *point == "signalled", "{point}: {log}");
        }
        op.sql("UPDATE instances SET ended = unixepoch() - 8 * 86400");
    }
}

#[test]
fn down_killed_at_any_step_is_finished_by_mere_looking() {
    let op = Operator::new(103, &[("FAKE_DRAIN", "300")]);
    for point in CRASH_POINTS.1 {
        op.up(&[]).ok();
        op.command(&["down", "--all"]).env("EEBT_CRASH_AT", point).output().unwrap();
        eventually(point, || op.ls().is_empty());
        assert_eq!(op.assert_truth(point), 0);
    }
}

#[test]
fn up_killed_after_any_delay_leaves_nothing_but_what_is_ready() {
    let op = Operator::new(104, &[("FAKE_READY_AFTER", "30"), ("FAKE_SLOW_HELPERS", "10")]);
    for delay in (0..180).step_by(6) {
        let mut up =
            op.up_command(&["--count", "2"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_millis(delay));
        up.kill().unwrap();
        up.wait().unwrap();
        let mut said = String::new();
        up.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        // A helper that still runs counts as its `up` at work, until it ends by itself.
        eventually("no one is at work", || {
            let rows = op.ls();
            rows.iter().all(|row| row["state"] == "running")
        });
        op.assert_truth(&format!("killed after {delay} ms"));
        let running = op.eebt(&["ls", "--lines"]).ok();
        for line in said.lines() {
            assert!(running.lines().contains(&line), "a line was printed whose exit bridge does not run");
        }
        op.eebt(&["down", "--all", "--now"]).ok();
    }
}

#[test]
fn two_at_once_take_different_addresses_and_ports() {
    let op = Operator::new(105, &[("FAKE_READY_AFTER", "300")]);
    let start =
        |_| op.up_command(&["--count", "3"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let ups: Vec<_> = (0..4).map(start).collect();
    // Others look meanwhile, and must not take half-made ones for remains.
    for _ in 0..10 {
        op.ls();
    }
    for up in ups {
        let output = up.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 3);
    }
    assert_eq!(op.assert_truth("four at once"), 12);
    let mut ips: Vec<String> = op
        .ls()
        .iter()
        .map(|row| row["address"].as_str().unwrap().split(':').next().unwrap().to_owned())
        .collect();
    ips.sort();
    ips.dedup();
    assert_eq!(ips.len(), 12);

    let downs: Vec<_> =
        (0..3).map(|_| op.command(&["down", "--all"]).stderr(Stdio::null()).spawn().unwrap()).collect();
    for mut down in downs {
        assert!(down.wait().unwrap().success());
    }
    assert_eq!(op.assert_truth("three downs at once"), 0);
}

#[test]
fn down_takes_back_what_another_eebt_is_still_starting() {
    let op = Operator::new(106, &[("FAKE_READY_AFTER", "600000")]);
    let up = op.up_command(&["--count", "2"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("both are launched", || op.processes().len() == 2);
    assert!(op.ls().iter().all(|row| row["state"] != "running"));
    let down = op.eebt(&["down", "--all"]).ok();
    assert!(down.err.contains("was taken down by another eebt"), "{}", down.err);
    let output = up.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stderr).unwrap().contains("taken down by another eebt while it started")
    );
    assert_eq!(op.assert_truth("after down of starting ones"), 0);
}

#[test]
fn an_interrupted_up_takes_back_what_is_not_ready() {
    let op = Operator::new(107, &[("FAKE_READY_AFTER", "600000")]);
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let up =
            op.up_command(&["--count", "2"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        eventually("both are launched", || op.processes().len() == 2);
        kill(Pid::from_raw(i32::try_from(up.id()).unwrap()), signal).unwrap();
        let output = up.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
        assert!(op.processes().is_empty());
        assert_eq!(op.assert_truth("after an interrupt"), 0);
    }
}

#[test]
fn a_crash_while_cleaning_up_after_a_crash_is_cleaned_up() {
    let op = Operator::new(108, &[("FAKE_READY_AFTER", "600000")]);
    let mut up =
        op.up_command(&["--count", "4"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("all are launched", || op.processes().len() == 4);
    up.kill().unwrap();
    up.wait().unwrap();
    for delay in [1, 3, 6, 10, 15, 25] {
        let mut ls = op.command(&["ls"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_millis(delay));
        ls.kill().unwrap();
        ls.wait().unwrap();
    }
    assert_eq!(op.assert_truth("after many crashes"), 0);
}

#[test]
fn the_first_runs_ever_may_be_at_the_same_time() {
    for third in 109..114 {
        let op = Operator::new(third, &[]);
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| finish(&mut op.command(&["ls"])).ok());
            }
        });
    }
}
