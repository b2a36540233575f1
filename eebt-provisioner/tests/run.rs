//! The real `eebt run`: so many serve, whatever ends, dies, falls silent or becomes known.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Operator, Running, eventually, finish, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

fn run_command(op: &Operator, args: &[&str]) -> Command {
    let range = op.range();
    let mut command =
        op.command(&["run", "--interval", "1s", "--check-every", "1s", "--spares", "0", "--address", &range]);
    command.arg("--network").arg(op.network()).args(["--allow-egress", "127.0.0.0/8"]).args(args);
    command
}

fn run(op: &Operator, args: &[&str]) -> Running {
    Running::start(run_command(op, args))
}

/// Rows that serve.
fn serving(op: &Operator) -> Vec<Value> {
    op.ls().into_iter().filter(|row| row["state"] == "running").collect()
}

fn ip(row: &Value) -> String {
    row["address"].as_str().unwrap().rsplit_once(':').unwrap().0.to_owned()
}

/// When `id` first came to `state`, in the order of all that happened.
fn happened(op: &Operator, id: &Value, state: &str) -> i64 {
    let ledger = rusqlite::Connection::open(op.ledger()).unwrap();
    let sql = "SELECT min(seq) FROM events WHERE instance = ?1 AND state = ?2";
    ledger.query_row(sql, [id.as_str().unwrap(), state], |row| row.get(0)).unwrap()
}

#[test]
fn what_dies_is_replaced_and_what_serves_goes_on_without_us() {
    let op = Operator::new(130, &[]);
    let running = run(&op, &["--count", "2"]);
    eventually("two serve", || serving(&op).len() == 2);
    let first = op.ids();

    let victim = op.processes()[0];
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    eventually("two serve again", || serving(&op).len() == 2 && op.ids() != first);
    eventually("its process was waited for", || !fs::exists(format!("/proc/{victim}")).unwrap());

    op.eebt(&["down", "--all"])
        .fails(1, &["keeps this fleet, and would start others", "hint: stop it first"]);
    finish(&mut run_command(&op, &[])).fails(1, &["another `eebt run` keeps this fleet", "hint: "]);
    let status = op.eebt(&["status", "--json"]).ok().json();
    assert_eq!((&status["kept"], &status["places"][0]["serving"]), (&json!(true), &json!(2)), "{status}");
    assert_eq!(status["run"]["places"][0]["kept"], 2, "{status}");
    let text = op.eebt(&["status"]).ok().out;
    assert!(text.contains("this machine: 2 of 2 serve") && text.contains("SERVING"), "{text}");

    let said = running.stop();
    assert!(said.contains("is ready"), "{said}");
    assert_eq!(op.ls_all().iter().filter(|row| row["state"] == "died").count(), 1);
    assert_eq!(op.assert_truth("after run"), 2);
    assert_eq!(op.eebt(&["status", "--json"]).ok().json()["kept"], false);
    op.eebt(&["down", "--all", "--now"]).ok();
}

#[test]
fn what_ends_soon_is_replaced_before() {
    let op = Operator::new(131, &[]);
    let lines = op.path().join("lines");
    let running = run(
        &op,
        &["--count", "1", "--lifetime", "1m", "--jitter", "0s", "--lines-file", lines.to_str().unwrap()],
    );
    let count = || fs::read_to_string(&lines).unwrap_or_default().lines().count();
    eventually("its line is there", || count() == 1);
    let (first, start) = (serving(&op)[0]["id"].clone(), Instant::now());
    // At half of so short a life.
    while serving(&op).len() < 2 {
        assert!(start.elapsed() < Duration::from_secs(50), "no second one before the end of the first");
        assert!(serving(&op).iter().any(|row| row["id"] == first), "the first one serves until then");
        std::thread::sleep(Duration::from_millis(300));
    }
    assert!(start.elapsed() > Duration::from_secs(20), "not sooner than need be");
    eventually("both lines are there", || count() == 2);
    let mode = fs::metadata(&lines).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "whoever has them may use them");
    running.stop();
    op.eebt(&["down", "--all", "--now"]).ok();
}

#[test]
fn what_is_known_or_silent_is_ended_when_another_one_serves() {
    let op = Operator::new(132, &[]);
    let (list, page) = (op.path().join("blocked.txt"), "https://canary.example/");
    fs::write(&list, "# nobody yet\n").unwrap();
    let running = run(&op, &["--count", "2", "--canary", page, "--block-list", list.to_str().unwrap()]);
    eventually("two serve", || serving(&op).len() == 2);

    let replaced = |what: &str, change: &dyn Fn(&str)| {
        let victim = serving(&op)[0].clone();
        change(&ip(&victim));
        // A young one that is known means a moment of second thoughts.
        within(60, what, || {
            let rows = serving(&op);
            rows.len() == 2 && rows.iter().all(|row| row["id"] != victim["id"])
        });
        let newest = serving(&op).pop().unwrap();
        happened(&op, &newest["id"], "running") < happened(&op, &victim["id"], "stopping")
    };
    let made_first =
        replaced("turned away by the canary", &|ip| op.say(&json!({ "blocked": { page: [ip] } })));
    assert!(made_first, "it serves until another one does");
    replaced("silent", &|ip| op.say(&json!({ "silent": [ip] })));
    op.say(&json!({ "no_tor": true }));
    std::thread::sleep(Duration::from_secs(4));
    let ids = op.ids();
    op.say(&json!({ "ends": true }));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(op.ids(), ids, "that we see nothing is not their fault");
    let status = op.eebt(&["status", "--json"]).ok().json();
    assert!(status["run"]["blind"].as_str().is_some_and(|why| why.contains("no luck")), "{status}");
    let said = running.stop();
    assert!(
        said.contains("is known to https://canary.example/") && said.contains("it does not serve"),
        "{said}"
    );
    assert!(said.contains("can't see whether they serve"), "{said}");

    // Read at the start.
    op.say(&json!({}));
    let victim = serving(&op)[0].clone();
    fs::write(&list, format!("{} ; somebody's\n", ip(&victim))).unwrap();
    let running = run(&op, &["--count", "2", "--block-list", list.to_str().unwrap()]);
    within(60, "listed", || {
        let rows = serving(&op);
        rows.len() == 2 && rows.iter().all(|row| row["id"] != victim["id"])
    });
    running.stop();
    let drawn = op.eebt(&["history"]).ok().out;
    assert!(drawn.contains("█") && drawn.contains("known to") && drawn.contains("serving"), "{drawn}");
    let svg = op.path().join("fleet.svg");
    op.eebt(&["history", "--svg", svg.to_str().unwrap()]).ok();
    let svg = fs::read_to_string(svg).unwrap();
    assert!(svg.starts_with("<svg ") && svg.matches("<rect").count() > 5, "{svg}");
    assert!(op.eebt(&["history", "--json"]).ok().json()["instances"].as_array().unwrap().len() >= 5);
    op.eebt(&["down", "--all", "--now"]).ok();
}

#[test]
fn a_killed_run_is_taken_up_by_the_next_one() {
    let op = Operator::new(133, &[("FAKE_READY_AFTER", "400")]);
    for wait in [50, 200, 350, 600, 1200] {
        let running = run(&op, &["--count", "3"]);
        std::thread::sleep(Duration::from_millis(wait));
        running.signal(Signal::SIGKILL);
        drop(running);
    }
    let running = run(&op, &["--count", "3"]);
    eventually("three serve", || serving(&op).len() == 3);
    // They may have served before it began; told to stop before it listens, it would just die.
    let at_work = || op.eebt(&["status", "--json"]).ok().json()["run"]["pid"] == running.pid();
    eventually("it is at work", at_work);
    running.stop();
    assert_eq!(op.assert_truth("after all"), 3);
    op.eebt(&["down", "--all", "--now"]).ok();
}

#[test]
fn what_can_not_be_had_is_not_asked_for_all_the_time() {
    let op = Operator::new(134, &[("FAKE_KEYGEN_FAILS", "1")]);
    let running = run(&op, &["--count", "2"]);
    eventually("it says why", || {
        let status = op.eebt(&["status", "--json"]).ok().json();
        let place = &status["run"]["places"][0];
        place["trouble"].as_str().is_some_and(|why| why.contains("the dice are broken"))
            && !place["paused_until"].is_null()
    });
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(op.ls_all().len(), 2, "one try, and then a pause");
    let said = running.stop();
    assert_eq!(said.matches("the dice are broken").count(), 2, "each is said once: {said}");
    assert_eq!(op.assert_truth("nothing is left"), 0);
}

#[test]
fn mistakes_are_named() {
    let op = Operator::new(135, &[]);
    for (args, says) in [
        (&["--rotate", "61 * * * *"][..], "--rotate"),
        (&["--quiet-hours", "25:00-26:00"], "--quiet-hours"),
        (&["--block-list", "http://a.example/"], "--block-list"),
        (&["--jitter", "2d"], "--jitter"),
        (&["--provider", "aws", "--region", "eu-central-1"], "--address"),
    ] {
        finish(&mut run_command(&op, args)).fails(2, &[says, "hint: "]);
    }
    let cloud = ["run", "--provider", "aws", "--region", "eu-central-1"];
    op.eebt(&cloud[..3]).fails(2, &["--region", "hint: "]);
    op.eebt(&cloud).fails(2, &["--yes", "hint: "]);
    let full = [&cloud[..], &["--yes", "--count", "3", "--max-count", "3"]].concat();
    op.eebt(&full).fails(2, &["--max-count: 3 leaves no room", "hint: allow 4"]);
    op.eebt(&["down", "--all"]).ok();
    let plan = finish(&mut run_command(&op, &["--count", "2", "--dry-run"])).ok();
    assert!(plan.err.contains("would start 2 on this machine"), "{}", plan.err);
    assert!(op.ls().is_empty());
}
