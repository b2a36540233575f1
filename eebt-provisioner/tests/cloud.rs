//! The real `eebt` against EC2 as moto plays it, with faults at every call and death at every step: what lives is what
//! the ledger says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "cloud/ec2.rs"]
mod ec2;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Operator, Run, Running, finish, within};
use ec2::{Ec2, SECRET};
use eebt_provisioner::CLOUD_CRASH_POINTS;
use serde_json::{Value, json};

/// An operator with an account.
struct Account {
    op: Operator,
    ec2: Ec2,
}

impl Account {
    fn new() -> Self {
        Self { op: Operator::new(110, &[]), ec2: Ec2::start() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.op.command(args);
        self.ec2.credentials(&mut command);
        command
    }

    fn eebt(&self, args: &[&str]) -> Run {
        finish(&mut self.command(args))
    }

    fn up_command(&self, args: &[&str]) -> Command {
        let mut command = self.command(&["up", "--provider", "aws", "--region", "eu-central-1", "--yes"]);
        command.args(args);
        command
    }

    fn up(&self, args: &[&str]) -> Run {
        finish(&mut self.up_command(args))
    }

    fn ls(&self) -> Vec<Value> {
        self.eebt(&["ls", "--json"]).ok().json()["instances"].as_array().unwrap().clone()
    }

    /// What lives is what the ledger says. Returns how many that are.
    #[track_caller]
    fn assert_truth(&self, context: &str) -> usize {
        // What a killed run left is seen to by the next one; lists may lag behind for two.
        (0..3).for_each(|_| drop(self.eebt(&["ls"]).ok()));
        let rows = self.ls();
        let ledger: BTreeSet<String> =
            rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect();
        assert!(rows.iter().all(|row| row["state"] == "running"), "{context}: {rows:?}");
        let alive = self.ec2.alive();
        if alive != ledger {
            panic!("{context}: {alive:?} live, the ledger says\n{}", self.eebt(&["ls", "--all"]).ok().out);
        }
        assert_eq!(self.op.folders_with_secrets(), Vec::<String>::new(), "{context}");
        rows.len()
    }

    fn end_all(&self, context: &str) {
        self.eebt(&["down", "--all"]).ok();
        assert_eq!(self.assert_truth(context), 0, "{context}");
    }
}

#[test]
fn machines_are_bought_and_ended() {
    let account = Account::new();
    let up = account.up(&["--count", "3", "--region", "us-east-2", "--lifetime", "2h"]).ok();
    assert_eq!(up.lines().len(), 3, "{}", up.out);
    assert!(up.lines().iter().all(|line| line.parse::<eebt_proto::BridgeLine>().is_ok()), "{}", up.out);
    assert!(up.err.contains("plan: 3 exit bridges by provider aws, for 0."), "{}", up.err);
    assert_eq!(account.assert_truth("after up"), 3);

    let state = account.ec2.state();
    let machines = state["machines"].as_array().unwrap();
    let regions: BTreeSet<&str> = machines.iter().map(|m| m["region"].as_str().unwrap()).collect();
    assert_eq!(regions, ["eu-central-1", "us-east-2"].into());
    let mut scripts = BTreeSet::new();
    for machine in machines {
        let (tags, script) = (&machine["tags"], machine["user_data"].as_str().unwrap());
        assert!(script.starts_with("#!/bin/sh\n") && !script.contains("@KEYS@"), "{script}");
        let expires = tags["eebt:expires"].as_str().unwrap().trim_end_matches('Z').replace('T', " ");
        assert!(script.contains(&format!("OnCalendar={expires} UTC\n")), "{script}");
        assert!(scripts.insert(script), "each has keys of its own: {machines:#?}");
        assert_eq!(machine["kind"], "t3a.nano", "the cheapest, and of those the first");
        assert_eq!(machine["tokens"], "required", "IMDSv2");
        assert_eq!(machine["shutdown"], "terminate");
    }
    account.end_all("after down");
    account.eebt(&["gc", "--provider", "aws"]).ok();
    assert_eq!(account.ec2.state()["groups"], json!([]), "security groups go when no machine needs them");
}

#[test]
fn up_killed_at_any_step_leaves_what_the_ledger_says() {
    let account = Account::new();
    for lag in [0, 2] {
        for point in CLOUD_CRASH_POINTS.0 {
            account.ec2.test("lag", &json!({ "calls": lag }));
            let mut up = account.up_command(&["--count", "2"]);
            let status = up.env("EEBT_CRASH_AT", point).output().unwrap().status;
            assert_eq!(status.signal(), Some(9), "{point}");
            let left = account.assert_truth(point);
            assert_eq!(left > 0, *point == "ready", "{point}, lag {lag}: {left}");
        }
        account.end_all("at the end");
    }
}

#[test]
fn down_killed_at_any_step_is_finished_by_the_next_one() {
    let account = Account::new();
    for point in CLOUD_CRASH_POINTS.1 {
        account.up(&["--count", "2"]).ok();
        let mut down = account.command(&["down", "--all"]);
        assert_eq!(down.env("EEBT_CRASH_AT", point).output().unwrap().status.signal(), Some(9), "{point}");
        account.end_all(point);
    }
}

/// Every fault at every call of `up`, once and for as long as it is asked.
#[test]
fn no_fault_makes_machines_that_the_ledger_does_not_know() {
    let account = Account::new();
    let reads = [
        "DescribeRegions",
        "DescribeImages",
        "DescribeInstanceTypes",
        "DescribeInstanceTypeOfferings",
        "DescribeSpotPriceHistory",
        "DescribeInstances",
    ];
    let writes = ["CreateSecurityGroup", "AuthorizeSecurityGroupIngress", "RunInstances"];
    let cases = reads.iter().flat_map(|action| [("cut", 9), ("denied", 9)].map(|fault| (*action, fault)));
    let faults = [
        ("lost", 1),
        ("lost", 9),
        ("cut", 1),
        ("cut", 9),
        ("throttle", 1),
        ("down", 9),
        ("denied", 9),
        ("quota", 9),
    ];
    let cases = cases.chain(writes.iter().flat_map(|action| faults.map(|fault| (*action, fault))));
    for (action, (fault, times)) in cases {
        let context = format!("{action} {fault} {times}");
        account.ec2.test("faults", &json!({ "action": action, "fault": fault, "times": times }));
        let up = account.up(&["--count", "2", "--timeout", "5s"]);
        let calls = account.ec2.state()["calls"][action].as_u64();
        assert!(calls.is_some(), "{context}: the call was made");
        if times == 1 {
            assert_eq!(up.code, Some(0), "{context}: a retry helps: {}", up.err);
        } else {
            assert_eq!(up.code, Some(1), "{context}: {}", up.err);
            assert!(up.err.contains(action), "{context}: the error names the call: {}", up.err);
        }
        if fault == "denied" {
            assert!(
                up.err.contains(&format!("ec2:{action}")),
                "{context}: the hint names the permission: {}",
                up.err
            );
            assert!(!up.err.contains("AbCdEf"), "{context}: {}", up.err);
        }
        account.ec2.test("clear", &json!({}));
        let left = account.assert_truth(&context);
        assert_eq!(left, if times == 1 { 2 } else { 0 }, "{context}");
        account.end_all(&context);
    }
}

#[test]
fn no_fault_keeps_a_machine_that_was_to_end() {
    let account = Account::new();
    for (fault, times) in [("lost", 9), ("cut", 1), ("cut", 9), ("throttle", 9), ("down", 9), ("denied", 9)] {
        for action in ["TerminateInstances", "DescribeInstances"] {
            let context = format!("{action} {fault} {times}");
            account.up(&["--count", "2"]).ok();
            account.ec2.test("faults", &json!({ "action": action, "fault": fault, "times": times }));
            account.eebt(&["down", "--all"]);
            account.ec2.test("clear", &json!({}));
            account.end_all(&context);
        }
    }
}

#[test]
fn limits_are_kept_before_anything_is_bought() {
    let account = Account::new();
    account
        .up(&["--count", "3", "--max-count", "2"])
        .fails(1, &["--max-count: 0 machines are there, 3 more"]);
    account.up(&["--max-spend", "0.001", "--lifetime", "5h"]).fails(1, &["--max-spend", "hint: "]);
    account.up(&["--max-price", "0.0001"]).fails(1, &["--type: none of", "0.0001 USD an hour or less"]);
    account.up(&["--region", "xx-nowhere-1"]).fails(1, &["--region: xx-nowhere-1 is none"]);
    account.up(&["--max-spend", "a lot"]).fails(2, &["--max-spend"]);
    account.up(&["--program-sha256", "abc"]).fails(2, &["--program-sha256"]);
    account.up(&["--address", "1.2.3.4"]).fails(2, &["--address"]);
    account.up(&["--dry-run"]).ok();
    let mut unasked = account.command(&["up", "--provider", "aws", "--region", "eu-central-1"]);
    finish(&mut unasked).fails(2, &["--yes"]);
    assert_eq!(account.ec2.state()["calls"]["RunInstances"], Value::Null, "nothing was bought");

    // Money is promised until machines end, and counts for 30 days when they have.
    let dear = ["--lifetime", "100h", "--traffic", "0.001", "--max-spend", "1.4"];
    account.up(&dear).ok();
    account.up(&dear).fails(1, &["--max-spend"]);
    account.end_all("after limits");
    account.up(&dear).ok();
}

#[test]
fn where_one_kind_is_sold_out_another_is_bought() {
    let account = Account::new();
    account.ec2.test("faults", &json!({ "action": "RunInstances", "fault": "capacity", "times": 3 }));
    account.up(&[]).ok();
    let machines = account.ec2.state()["machines"].clone();
    assert_eq!(machines[0]["kind"], "t3.nano", "{machines}");
    account.ec2.test("faults", &json!({ "action": "RunInstances", "fault": "capacity", "times": 99 }));
    account.up(&[]).fails(1, &["InsufficientInstanceCapacity", "hint: name more --type"]);
    account.ec2.test("clear", &json!({}));
    assert_eq!(account.assert_truth("sold out"), 1);
}

#[test]
fn machines_that_the_cloud_takes_back_are_noticed() {
    let account = Account::new();
    account.up(&[]).ok();
    let machine = account.ec2.state()["machines"][0]["id"].clone();
    account.ec2.test("interrupt", &json!({ "id": machine }));
    let ls = account.eebt(&["ls"]).ok();
    assert!(ls.err.contains("died") && ls.err.contains("Spot instance termination"), "{}", ls.err);
    assert_eq!(account.assert_truth("after the interruption"), 0);
}

#[test]
fn a_lost_ledger_loses_no_machine() {
    let account = Account::new();
    account.up(&["--count", "2"]).ok();
    for point in ["ordered", "bought"] {
        account.up_command(&[]).env("EEBT_CRASH_AT", point).output().unwrap();
        std::fs::remove_file(account.op.ledger()).unwrap();
        let gc = account.eebt(&["gc", "--provider", "aws"]).ok();
        assert!(gc.err.contains("found by its tags") && gc.err.contains("found by its order"), "{}", gc.err);
        assert_eq!(account.assert_truth(point), 2);
    }
    account.end_all("after the ledger was lost");
}

/// An `eebt run`, until `is_done`; what it said.
fn run_until(account: &Account, args: &[&str], what: &str, is_done: impl Fn() -> bool) -> String {
    let mut command = account.command(&["run", "--provider", "aws", "--yes", "--spares", "0"]);
    command.args(["--interval", "1s", "--check-every", "1s"]).args(args);
    let running = Running::start(command);
    within(60, what, is_done);
    running.stop()
}

#[test]
fn run_keeps_machines_in_each_region_and_replaces_what_the_cloud_takes_back() {
    let account = Account::new();
    let regions = ["--region", "eu-central-1,us-east-2", "--count", "2"];
    let serving = || account.ls().iter().filter(|row| row["state"] == "running").count();
    run_until(&account, &regions, "two in each of two regions", || serving() == 4);
    assert_eq!(account.assert_truth("after run"), 4);
    let machine = account.ec2.state()["machines"][0].clone();
    account.ec2.test("interrupt", &json!({ "id": machine["id"] }));
    run_until(&account, &regions, "another one", || {
        let rows = account.ls();
        rows.len() == 4 && rows.iter().all(|row| row["state"] == "running" && row["machine"] != machine["id"])
    });
    assert_eq!(account.assert_truth("after the interruption"), 4);
    // One that nobody knows of, in a region where none should be.
    let mut elsewhere = account.command(&["up", "--provider", "aws", "--region", "eu-west-1", "--yes"]);
    finish(&mut elsewhere).ok();
    let sum = account.eebt(&["cost", "--json"]).ok().json()["limited_usd"].as_str().unwrap().to_owned();
    std::fs::remove_file(account.op.ledger()).unwrap();
    let down = account.eebt(&["down", "--all"]).ok();
    assert_eq!(down.err.matches("found by its tags").count(), 5, "{}", down.err);
    assert_eq!(account.assert_truth("after down --all without a ledger"), 0);
    let after = account.eebt(&["cost", "--json"]).ok().json()["limited_usd"].as_str().unwrap().to_owned();
    let parse = |text: &str| text.parse::<f64>().unwrap();
    assert!(parse(&after) > parse(&sum) / 4.0, "what they cost is known by their tags: {after} of {sum}");
}

/// Every fault at every call that `eebt run` makes, from the first time on and from the second: in the end there is what
/// should be, and nothing else.
#[test]
fn no_fault_keeps_run_from_its_number_or_makes_it_lose_a_machine() {
    let account = Account::new();
    let args = ["--region", "eu-central-1", "--count", "2", "--timeout", "5s"];
    let actions = ["DescribeInstances", "CreateSecurityGroup", "DescribeSpotPriceHistory", "RunInstances"];
    let cases = actions.map(|action| [(action, "lost", 0), (action, "denied", 1)]).concat();
    let more = [("cut", 1), ("throttle", 0), ("quota", 1), ("down", 0)]
        .map(|(fault, skip)| ("RunInstances", fault, skip));
    for (action, fault, skip) in cases.into_iter().chain(more) {
        let context = format!("{action} {fault} after {skip}");
        account.ec2.test("faults", &json!({ "action": action, "fault": fault, "skip": skip, "times": 2 }));
        // With a pause after each failure.
        run_until(&account, &args, &context, || {
            account.ls().iter().filter(|row| row["state"] == "running").count() == 2
        });
        account.ec2.test("clear", &json!({}));
        assert_eq!(account.assert_truth(&context), 2, "{context}");
        account.end_all(&context);
    }
}

#[test]
fn run_killed_at_any_step_leaves_what_the_ledger_says() {
    let account = Account::new();
    for point in CLOUD_CRASH_POINTS.0 {
        let mut run = account.command(&[
            "run",
            "--provider",
            "aws",
            "--yes",
            "--region",
            "eu-central-1",
            "--interval",
            "1s",
        ]);
        let status = run.env("EEBT_CRASH_AT", point).stderr(Stdio::null()).status().unwrap();
        assert_eq!(status.signal(), Some(9), "{point}");
        account.assert_truth(point);
        account.end_all(point);
    }
}

#[test]
fn run_spends_no_more_than_it_may() {
    let account = Account::new();
    let status = || account.eebt(&["status", "--json"]).ok().json();
    let args = [
        "--region",
        "eu-central-1",
        "--count",
        "3",
        "--lifetime",
        "10h",
        "--traffic",
        "0.001",
        "--max-spend",
        "0.25",
    ];
    let said = run_until(&account, &args, "it says why", || {
        let place = status()["run"]["places"][0].clone();
        place["trouble"].as_str().is_some_and(|why| why.contains("--max-spend")) && place["serving"] == 2
    });
    assert!(said.contains("would be above 0.2500 USD"), "{said}");
    assert_eq!(account.assert_truth("as many as the money is enough for"), 2, "{said}");
    account.end_all("at the end");
}

#[test]
fn no_secret_is_said_or_kept() {
    let account = Account::new();
    let ran = [
        account.up(&["--count", "2", "--json"]).ok(),
        account.eebt(&["ls", "--json"]).ok(),
        account.eebt(&["gc", "--provider", "aws", "--json"]).ok(),
    ];
    let said: String = ran.iter().flat_map(|run| [run.out.as_str(), run.err.as_str()]).collect();
    let kept: String = std::fs::read_dir(account.op.state())
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path()).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .collect();
    // What the fake exit bridge writes as its key, as it is and in base64.
    for secret in [SECRET, "very secret", "dmVyeSBzZWNyZXQ"] {
        assert!(!said.contains(secret) && !kept.contains(secret), "{secret}");
    }
    let state = account.ec2.state();
    let script = state["machines"][0]["user_data"].as_str().unwrap();
    assert!(script.contains("dmVyeSBzZWNyZXQ") && !script.contains(SECRET), "its own keys, and nothing else");
}

#[test]
fn without_credentials_one_line_says_so() {
    let account = Account::new();
    let mut up = account.up_command(&[]);
    up.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    finish(&mut up).fails(1, &["aws: credentials", "hint: "]);
}

#[test]
fn the_policy_permits_what_is_called_and_no_more() {
    let account = Account::new();
    account.up(&["--count", "2"]).ok();
    account.end_all("after up");
    account.eebt(&["gc", "--provider", "aws"]).ok();
    let called: BTreeSet<String> =
        account.ec2.state()["calls"].as_object().unwrap().keys().map(|call| format!("ec2:{call}")).collect();
    let policy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/aws/iam-policy.json");
    let policy: Value = serde_json::from_str(&std::fs::read_to_string(policy).unwrap()).unwrap();
    let actions = policy["Statement"].as_array().unwrap().iter().flat_map(|statement| {
        let actions = &statement["Action"];
        actions.as_array().cloned().unwrap_or_else(|| vec![actions.clone()])
    });
    let mut permitted: BTreeSet<String> = actions.map(|action| action.as_str().unwrap().to_owned()).collect();
    // No call: AWS asks for it when what is made has tags from the start.
    assert!(permitted.remove("ec2:CreateTags"));
    assert_eq!(permitted, called);
}

#[test]
fn the_doctor_says_what_is_missing_before_anything_is_bought() {
    let account = Account::new();
    let doctor =
        |args: &[&str]| account.eebt(&[&["doctor", "aws", "--region", "eu-central-1"], args].concat());
    let well = doctor(&[]).ok();
    assert!(well.out.contains("ok    eu-central-1: buying machines: permitted"), "{}", well.out);
    assert!(well.out.contains("ok    credentials") && !well.out.contains("WRONG"), "{}", well.out);
    assert!(doctor(&["--arch", "arm64"]).ok().out.contains("t4g.nano"), "{}", well.out);
    for action in ["RunInstances", "TerminateInstances", "CreateSecurityGroup", "DescribeImages"] {
        account.ec2.test("faults", &json!({ "action": action, "fault": "denied", "times": 9 }));
        let ill = doctor(&["--json"]);
        assert_eq!(ill.code, Some(1), "{action}: {}", ill.err);
        assert!(ill.err.contains(&format!("hint: allow ec2:{action}")), "{action}: {}", ill.err);
        let wrong = ill.json()["findings"].as_array().unwrap().iter().filter(|f| f["ok"] == false).count();
        assert!((1..=2).contains(&wrong), "{action}: {}", ill.out);
        account.ec2.test("clear", &json!({}));
    }
    assert_eq!(account.ec2.state()["machines"], json!([]));
    assert_eq!(account.ec2.state()["groups"], json!([]));
    account
        .eebt(&["doctor", "aws", "--region", "xx-nowhere-1"])
        .fails(2, &["xx-nowhere-1 is none", "hint: "]);
    account.eebt(&["doctor", "local"]).fails(2, &["local is no cloud"]);
}

#[test]
fn what_machines_cost_is_told() {
    let account = Account::new();
    account.up(&["--count", "2", "--lifetime", "10h", "--traffic", "1"]).ok();
    let cost = || account.eebt(&["cost", "--json"]).ok().json();
    let usd = |bill: &Value, what: &str| bill[what].as_str().unwrap().parse::<f64>().unwrap();
    let live = cost();
    let price = usd(&live["instances"][0], "usd_per_hour");
    assert_eq!(live["live"], 2);
    // A GB leaves for 0.09 USD, with a tenth of overhead: half of that is spent from the first moment, at worst.
    let traffic = 2.0 * 0.099;
    let promised = usd(&live, "promised_usd") - traffic / 2.0;
    assert!((promised - 2.0 * price * 10.0).abs() < 0.2 * price * 10.0, "{live}");
    let spent = usd(&live, "spent_usd") - traffic / 2.0;
    assert!((0.0..price).contains(&spent) && usd(&live, "forecast_usd") >= usd(&live, "spent_usd"), "{live}");
    assert!(price > 0.0067, "with the address and the disk: {live}");
    account.end_all("after cost");
    let ended = cost();
    assert_eq!((ended["live"].as_u64(), usd(&ended, "promised_usd")), (Some(0), 0.0));
    assert!(usd(&ended, "limited_usd") > 0.0, "a minute of each: {ended}");
    assert!(account.eebt(&["cost"]).ok().out.contains("spent this month"));
}
