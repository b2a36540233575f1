//! The real `eebt` against three clouds, with faults at every call and death at every step: what lives is what the ledger
//! says. EC2 is moto's, the others are stateful fakes; `tests/published.rs` holds their calls against what they publish.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "cloud/account.rs"]
mod account;
mod common;
#[path = "cloud/contract.rs"]
mod contract;
#[path = "cloud/emulator.rs"]
mod emulator;
#[path = "cloud/faults.rs"]
mod faults;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use account::*;
use common::{Operator, Run, Running, finish, within};
use eebt_provisioner::CLOUD_CRASH_POINTS;
use emulator::{AWS, Cloud, DIGITALOCEAN, Emulator, HETZNER};
use faults::*;
use libtest_mimic::{Arguments, Trial};
use serde_json::{Value, json};

/// Most of their time they wait: for retries, for machines that boot, for one another.
const AT_ONCE: usize = 8;

/// Tests and their names.
macro_rules! named {
    ($($test:ident),* $(,)?) => { [$((stringify!($test), $test)),*] };
}

fn main() {
    let mut args = Arguments::from_args();
    args.test_threads.get_or_insert(AT_ONCE);
    type Test = fn(&'static Cloud);
    let each: &[(&str, Test)] = &named![
        it_does_what_a_cloud_promises,
        machines_are_bought_and_ended,
        up_killed_at_any_step_leaves_what_the_ledger_says,
        down_killed_at_any_step_is_finished_by_the_next_one,
        who_is_killed_while_it_cleans_up_is_followed_by_another,
        no_fault_makes_machines_that_the_ledger_does_not_know,
        no_fault_keeps_a_machine_that_was_to_end,
        no_fault_makes_gc_lose_a_machine,
        limits_are_kept_before_anything_is_bought,
        where_one_kind_is_sold_out_another_is_bought,
        machines_that_are_gone_are_noticed,
        a_lost_ledger_loses_no_machine,
        run_keeps_machines_in_each_region_and_replaces_what_is_gone,
        run_killed_at_any_step_leaves_what_the_ledger_says,
        no_secret_is_said_or_kept,
        without_credentials_one_line_says_so,
        the_doctor_says_what_is_missing_before_anything_is_bought,
    ];
    let alone: &[(&str, fn())] = &named![
        a_second_machine_of_one_instance_is_ended,
        who_buys_by_the_hour_keeps_watch,
        what_is_bought_on_demand_is_no_bid,
        a_machine_gets_an_ipv6_address_where_its_subnet_has_them,
        who_may_log_in_is_let_in_and_nobody_else,
        run_spends_no_more_than_it_may,
        credentials_of_the_tools_are_found,
        the_policy_permits_what_is_called_and_no_more,
        what_machines_cost_is_told,
    ];
    let mut trials = Vec::new();
    for cloud in [&AWS, &HETZNER, &DIGITALOCEAN] {
        for (name, test) in each {
            trials.push(Trial::test(format!("{}::{name}", cloud.name), move || {
                test(cloud);
                Ok(())
            }));
        }
        for action in cloud.reads.iter().chain(cloud.writes) {
            let name = format!("{}::no_fault_keeps_run_from_its_number: {action}", cloud.name);
            trials.push(Trial::test(name, move || {
                no_fault_keeps_run_from_its_number(cloud, action);
                Ok(())
            }));
        }
    }
    for (name, test) in alone {
        trials.push(Trial::test(*name, move || {
            test();
            Ok(())
        }));
    }
    let part = Trial::test("what_a_cloud_promises", || {
        what_a_cloud_promises();
        Ok(())
    });
    trials.push(part.with_ignored_flag(true));
    libtest_mimic::run(&args, trials).exit();
}

/// An operator with an account.
struct Account {
    op: Operator,
    emulator: Emulator,
}

impl Account {
    fn new(cloud: &'static Cloud) -> Self {
        let account = Self { op: Operator::new(110, &[]), emulator: Emulator::start(cloud) };
        // As its timer does: else nothing may be bought with `--detach`.
        account.eebt(&["gc", "--due"]).ok();
        account
    }

    fn cloud(&self) -> &'static Cloud {
        self.emulator.cloud
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.op.command(args);
        self.emulator.credentials(&mut command);
        command
    }

    fn eebt(&self, args: &[&str]) -> Run {
        finish(&mut self.command(args))
    }

    /// `eebt up` in the cloud's first region.
    fn up_command(&self, args: &[&str]) -> Command {
        let cloud = self.cloud();
        let mut command =
            self.command(&["up", "--provider", cloud.name, "--region", cloud.regions[0], "--yes"]);
        command.arg("--detach").args(args);
        command
    }

    fn up(&self, args: &[&str]) -> Run {
        finish(&mut self.up_command(args))
    }

    fn gc(&self) -> Run {
        self.eebt(&["gc", "--provider", self.cloud().name])
    }

    fn ls(&self) -> Vec<Value> {
        self.eebt(&["ls", "--json"]).ok().json()["instances"].as_array().unwrap().clone()
    }

    fn running(&self) -> usize {
        self.op.count("state = 'running'")
    }

    fn calls(&self, action: &str) -> u64 {
        self.emulator.state()["calls"][action].as_u64().unwrap_or_default()
    }

    /// Whatever was ordered was ordered an hour ago: it has no effect any more that it has not had yet.
    fn age_orders(&self) {
        let instances = std::fs::read_dir(self.op.state().join("instances")).into_iter().flatten().flatten();
        let orders = instances.map(|entry| entry.path().join("order.json"));
        for path in orders.filter(|path| path.exists()).collect::<Vec<PathBuf>>() {
            let mut order: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            order["given"] = serde_json::to_value(SystemTime::now() - Duration::from_secs(3600)).unwrap();
            std::fs::write(path, order.to_string()).unwrap();
        }
    }

    /// What lives is what the ledger says. Returns how many that are.
    #[track_caller]
    fn assert_truth(&self, context: &str) -> usize {
        // What a killed run left is seen to by the next one; lists may lag behind for two.
        (0..3).for_each(|_| drop(self.eebt(&["ls"]).ok()));
        if !self.cloud().has_tokens {
            self.age_orders();
            self.eebt(&["ls"]).ok();
        }
        let rows = self.ls();
        let ledger: BTreeSet<String> =
            rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect();
        assert!(rows.iter().all(|row| row["state"] == "running"), "{context}: {rows:?}");
        let alive = self.emulator.alive();
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

    /// Runs a part of this file as a process that has the account in its environment.
    fn in_environment(&self, part: &str) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--ignored", "--nocapture", part]);
        self.emulator.credentials(&mut command);
        command.env("PART_OF", format!("{} {}", self.cloud().name, self.emulator.port));
        finish(&mut command).ok();
    }
}

fn it_does_what_a_cloud_promises(cloud: &'static Cloud) {
    Account::new(cloud).in_environment("what_a_cloud_promises");
}

/// A part of [`it_does_what_a_cloud_promises`], which needs an environment of its own.
fn what_a_cloud_promises() {
    let part = std::env::var("PART_OF").unwrap();
    let (name, port) = part.split_once(' ').unwrap();
    let cloud = [&AWS, &HETZNER, &DIGITALOCEAN].into_iter().find(|cloud| cloud.name == name).unwrap();
    contract::hold(name.parse().unwrap(), cloud.regions[0], cloud.create, port.parse().unwrap());
}

fn machines_are_bought_and_ended(cloud: &'static Cloud) {
    let account = Account::new(cloud);
    let up = account.up(&["--count", "3", "--region", cloud.regions[1], "--lifetime", "2h"]).ok();
    assert_eq!(up.lines().len(), 3, "{}", up.out);
    assert!(up.lines().iter().all(|line| line.parse::<eebt_proto::BridgeLine>().is_ok()), "{}", up.out);
    assert!(
        up.err.contains(&format!("plan: 3 exit bridges by provider {}, for 0.", cloud.name)),
        "{}",
        up.err
    );
    assert_eq!(account.assert_truth("after up"), 3);

    let state = account.emulator.state();
    let machines = state["machines"].as_array().unwrap();
    let regions: BTreeSet<&str> = machines.iter().map(|m| m["region"].as_str().unwrap()).collect();
    assert_eq!(regions, cloud.regions[..2].iter().copied().collect());
    if cloud.name == "hetzner" {
        let kind = |region| &machines.iter().find(|machine| machine["region"] == region).unwrap()["kind"];
        assert_eq!(
            (kind("fsn1"), kind("nbg1")),
            (&json!("cx23"), &json!("cx33")),
            "cx23 is not sold in nbg1 any more"
        );
    }
    let mut scripts = BTreeSet::new();
    for machine in machines {
        let (tags, script) = (&machine["tags"], machine["user_data"].as_str().unwrap());
        assert!(script.starts_with("#!/bin/sh\n") && !script.contains("@KEYS@"), "{script}");
        let timer = script.split("OnCalendar=").nth(1).unwrap().split(" UTC\n").next().unwrap();
        let expires = tags["eebt:expires"].as_str().unwrap();
        assert_eq!(timer.replace(['-', ':'], "").replace(' ', "T") + "Z", expires, "{script}");
        assert!(scripts.insert(script), "each has keys of its own: {machines:#?}");
        if cloud.name == "aws" {
            assert_eq!(machine["kind"], "t3a.nano", "the cheapest, and of those the first");
            assert_eq!((&machine["tokens"], &machine["hops"]), (&json!("required"), &json!(1)), "IMDSv2");
            assert_eq!(machine["shutdown"], "terminate");
        }
    }
    account.end_all("after down");
    account.gc().ok();
    assert_eq!(
        account.emulator.state()["groups"],
        json!([]),
        "security groups go when no machine needs them"
    );
}

fn up_killed_at_any_step_leaves_what_the_ledger_says(cloud: &'static Cloud) {
    let account = Account::new(cloud);
    for lag in [0, 2] {
        for point in CLOUD_CRASH_POINTS.0 {
            account.emulator.test("lag", &json!({ "calls": lag }));
            let mut up = account.up_command(&["--count", "2"]);
            let status = up.env("EEBT_CRASH_AT", point).output().unwrap().status;
            assert_eq!(status.signal(), Some(9), "{point}");
            let left = account.assert_truth(point);
            assert_eq!(left > 0, *point == "ready", "{point}, lag {lag}: {left}");
        }
        account.end_all("at the end");
    }
}

fn down_killed_at_any_step_is_finished_by_the_next_one(cloud: &'static Cloud) {
    let account = Account::new(cloud);
    for point in CLOUD_CRASH_POINTS.1 {
        account.up(&["--count", "2"]).ok();
        let mut down = account.command(&["down", "--all"]);
        assert_eq!(down.env("EEBT_CRASH_AT", point).output().unwrap().status.signal(), Some(9), "{point}");
        account.end_all(point);
    }
}

fn who_is_killed_while_it_cleans_up_is_followed_by_another(cloud: &'static Cloud) {
    let account = Account::new(cloud);
    account.up(&[]).ok();
    for point in CLOUD_CRASH_POINTS.2 {
        // What is cleaned up after: an `up` that was killed, and for two of three a ledger that was lost.
        let mut up = account.up_command(&[]);
        let up_dies_at = if *point == "order-ended" { "bought" } else { "launched" };
        assert_eq!(up.env("EEBT_CRASH_AT", up_dies_at).output().unwrap().status.signal(), Some(9));
        if *point != "unwound" {
            std::fs::remove_file(account.op.ledger()).unwrap();
            account.age_orders();
        }
        let mut gc = account.command(&["gc", "--provider", cloud.name]);
        assert_eq!(gc.env("EEBT_CRASH_AT", point).output().unwrap().status.signal(), Some(9), "{point}");
        account.gc().ok();
        account.assert_truth(point);
        account.end_all(point);
        account.up(&[]).ok();
    }
}

fn limits_are_kept_before_anything_is_bought(cloud: &'static Cloud) {
    let account = Account::new(cloud);
    account
        .up(&["--count", "3", "--max-count", "2"])
        .fails(1, &["--max-count: 0 machines are there, 3 more"]);
    account.up(&["--max-spend", "0.001", "--lifetime", "5h"]).fails(1, &["--max-spend", "hint: "]);
    account.up(&["--max-price", "0.0001"]).fails(1, &["--type: none of", "0.0001 USD an hour or less"]);
    account.up(&["--type", "no.such"]).fails(1, &["--type: none of no.such can be had"]);
    account.up(&["--region", "xx-nowhere-1"]).fails(1, &["--region: xx-nowhere-1 is none"]);
    account.up(&["--max-spend", "a lot"]).fails(2, &["--max-spend"]);
    account.up(&["--program-sha256", "abc"]).fails(2, &["--program-sha256"]);
    account.up(&["--address", "1.2.3.4"]).fails(2, &["--address"]);
    account.up(&["--dry-run"]).ok();
    let mut unasked = account.command(&["up", "--provider", cloud.name, "--region", cloud.regions[0]]);
    finish(&mut unasked).fails(2, &["--yes"]);
    assert_eq!(account.calls(cloud.create), 0, "nothing was bought");
    let on_demand = account.up(&["--on-demand", "0.01"]);
    on_demand.fails(2, &["--on-demand"]);

    // Money is promised until machines end.
    let plan = account.up(&["--lifetime", "10h", "--traffic", "0.001", "--dry-run", "--json"]).ok().json();
    let cost: f64 = plan["plan"]["cost_usd"].as_str().unwrap().parse().unwrap();
    // The plan counts the dearest offer that is tried.
    let for_one = format!("{:.6}", cost * 1.1);
    let dear = ["--lifetime", "10h", "--traffic", "0.001", "--max-spend", &for_one];
    account.up(&dear).ok();
    account.up(&dear).fails(1, &["--max-spend"]);
    // It counts for 30 days when they have ended: an hour where hours are sold.
    account.end_all("after limits");
    account.up(&dear).ok();
}

fn where_one_kind_is_sold_out_another_is_bought(cloud: &'static Cloud) {
    let account = Account::new(cloud);
    account.up(&[]).ok();
    let cheapest = account.emulator.state()["machines"][0]["kind"].clone();
    account.end_all("the cheapest");
    account.emulator.fault(cloud.create, "capacity", if cloud.name == "aws" { 3 } else { 1 });
    account.up(&[]).ok();
    let alive = account.emulator.alive();
    let machines = account.emulator.state()["machines"].clone();
    let of_id = |machine: &&Value| alive.contains(machine["tags"]["eebt:id"].as_str().unwrap());
    let machine = machines.as_array().unwrap().iter().find(of_id).unwrap().clone();
    assert_ne!(machine["kind"], cheapest, "{machine}");
    account.emulator.fault(cloud.create, "capacity", 99);
    account.up(&[]).fails(1, &["hint: name more --type"]);
    account.emulator.clear();
    assert_eq!(account.assert_truth("sold out"), 1);
}

fn machines_that_are_gone_are_noticed(cloud: &'static Cloud) {
    let account = Account::new(cloud);
    account.up(&[]).ok();
    let machine = account.emulator.state()["machines"][0]["id"].clone();
    account.emulator.test("interrupt", &json!({ "id": machine }));
    let ls = account.eebt(&["ls"]).ok();
    let why = if cloud.name == "aws" { "Spot instance termination" } else { "was switched off" };
    assert!(ls.err.contains("died") && ls.err.contains(why), "{}", ls.err);
    assert_eq!(account.assert_truth("after the interruption"), 0);
    // One whose `up` was killed, and that ended so long ago that the cloud knows it no more.
    let mut up = account.up_command(&[]);
    assert_eq!(up.env("EEBT_CRASH_AT", "launched").output().unwrap().status.signal(), Some(9));
    let state = account.emulator.state();
    let machine = state["machines"].as_array().unwrap().last().unwrap()["id"].clone();
    account.op.sql("UPDATE instances SET created = created - 3600");
    account.emulator.test("vanish", &json!({ "id": machine }));
    assert_eq!(account.assert_truth("after it was forgotten"), 0);
    if cloud.has_tokens {
        return;
    }
    // One that somebody else deletes is missing from lists; one that is missed by a list alone is not given up.
    account.up(&["--count", "2"]).ok();
    account.op.sql("UPDATE instances SET created = created - 3600");
    let vanished = account.emulator.state()["machines"][0]["id"].clone();
    account.emulator.test("vanish", &json!({ "id": vanished }));
    account.emulator.test("hide", &json!({ "calls": 1 }));
    let ls = account.eebt(&["ls"]).ok();
    assert_eq!(ls.err.matches("its machine was gone before its expiry").count(), 1, "{}", ls.err);
    assert_eq!(account.assert_truth("after one vanished"), 1);
}

fn a_second_machine_of_one_instance_is_ended() {
    for cloud in [&HETZNER, &DIGITALOCEAN] {
        let account = Account::new(cloud);
        account.up(&["--count", "2"]).ok();
        let machine = account.emulator.state()["machines"][0]["id"].clone();
        account.emulator.test("double", &json!({ "id": machine }));
        assert_eq!(account.emulator.state()["machines"].as_array().unwrap().len(), 3);
        // `alive` of the tests does not bear two of one name: an `eebt` first.
        account.eebt(&["ls"]).ok();
        assert_eq!(account.assert_truth("after a second one was there"), 2);
        assert_eq!(
            account.emulator.state()["machines"][0]["id"],
            machine,
            "the second one went, not the first"
        );
    }
}

/// Where a machine that is switched off is billed on, `up` stays until it is deleted.
fn who_buys_by_the_hour_keeps_watch() {
    for cloud in [&HETZNER, &DIGITALOCEAN] {
        let account = Account::new(cloud);
        let up = |args: &[&str]| {
            let mut up = account.command(&["up", "--provider", cloud.name, "--region", cloud.regions[0]]);
            up.args(["--yes", "--count", "2"]).args(args);
            Running::start(up)
        };
        let watching = up(&[]);
        within(60, "two run", || account.running() == 2);
        let said = watching.stop();
        assert!(said.contains("keeping watch") && said.contains("is down"), "{said}");
        assert_eq!(account.assert_truth("after SIGTERM"), 0);

        let watching = up(&[]);
        within(60, "two run", || account.running() == 2);
        account.op.sql("UPDATE instances SET expires = created WHERE state = 'running'");
        let said = watching.wait();
        assert!(said.contains("expired"), "{said}");
        assert_eq!(account.emulator.alive().len(), 0);
        assert_eq!(account.assert_truth("after the expiry"), 0);

        // Nobody else would end them: it is not left to chance.
        std::fs::remove_file(account.op.state().join("reaped")).unwrap();
        account.up(&[]).fails(2, &["--detach: nothing would end", "eebt-reap.timer"]);
        account.eebt(&["gc", "--due"]).ok();
        account.up(&[]).ok();
        account.op.sql("UPDATE instances SET expires = created WHERE state = 'running'");
        account.emulator.fault(cloud.terminate, "denied", 99);
        account.eebt(&["gc", "--due"]).fails(1, &["due and not ended", "hint: "]);
        account.emulator.clear();
        account.eebt(&["gc", "--due"]).ok();
        assert_eq!(account.emulator.alive().len(), 0);
    }
}

fn what_is_bought_on_demand_is_no_bid() {
    let account = Account::new(&AWS);
    account.up(&["--on-demand", "0.0052"]).fails(2, &["--on-demand", "--type"]);
    account.up(&["--ssh-key", "no-such"]).fails(1, &["InvalidKeyPair.NotFound"]);
    account.up(&["--on-demand", "0.0052", "--type", "t3.nano"]).ok();
    let machine = account.emulator.state()["machines"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&machine["kind"], &machine["market"]), (&json!("t3.nano"), &Value::Null), "{machine}");
    let bill = account.eebt(&["cost", "--json"]).ok().json();
    assert_eq!(bill["instances"].as_array().unwrap().last().unwrap()["usd_per_hour"], "0.011900", "{bill}");
    assert_eq!(account.assert_truth("on demand"), 1);
    account.up(&[]).ok();
    let machine = account.emulator.state()["machines"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(machine["market"], "spot", "{machine}");
}

fn a_machine_gets_an_ipv6_address_where_its_subnet_has_them() {
    let account = Account::new(&AWS);
    account.up(&[]).ok();
    account.emulator.test("ipv6", &json!({ "region": AWS.regions[0] }));
    account.up(&[]).ok();
    let state = account.emulator.state();
    let machines = state["machines"].as_array().unwrap();
    let addresses: Vec<&Value> = machines.iter().map(|machine| &machine["ipv6"]).collect();
    assert_eq!(addresses, [&json!(0), &json!(1)], "{state}");
}

fn who_may_log_in_is_let_in_and_nobody_else() {
    for (cloud, key) in [(&AWS, "operator"), (&HETZNER, "operator"), (&DIGITALOCEAN, "4711")] {
        let account = Account::new(cloud);
        account.up(&[]).ok();
        account.up(&["--ssh-key", key]).ok();
        let state = account.emulator.state();
        let machines = state["machines"].as_array().unwrap();
        let with = |machine: &&Value| machine["user_data"].as_str().unwrap().contains("tcp dport { 22, ");
        let (open, closed): (Vec<&Value>, Vec<&Value>) = machines.iter().partition(with);
        assert_eq!((open.len(), closed.len()), (1, 1));
        let keys = |machine: &Value| machine["ssh_keys"].to_string();
        assert!(keys(open[0]).contains(key) && !keys(closed[0]).contains(key), "{state}");
        if cloud.name == "aws" {
            let groups = state["groups"].as_array().unwrap().iter();
            let with_ssh = groups.filter(|group| group["ports"].as_array().unwrap().contains(&json!(22)));
            assert_eq!(with_ssh.count(), 1, "one group of two lets ssh in: {state}");
        }
    }
}

fn a_lost_ledger_loses_no_machine(cloud: &'static Cloud) {
    let account = Account::new(cloud);
    account.up(&["--count", "2"]).ok();
    for point in ["ordered", "bought"] {
        account.up_command(&[]).env("EEBT_CRASH_AT", point).output().unwrap();
        std::fs::remove_file(account.op.ledger()).unwrap();
        account.age_orders();
        let gc = account.gc().ok();
        assert!(gc.err.contains("found by its tags") && gc.err.contains("found by its order"), "{}", gc.err);
        assert_eq!(account.assert_truth(point), 2);
    }
    account.end_all("after the ledger was lost");
}

/// An `eebt run`, until `is_done`; what it said.
fn run_until(account: &Account, args: &[&str], what: &str, is_done: impl Fn() -> bool) -> String {
    let mut command = account.command(&["run", "--provider", account.cloud().name, "--yes", "--spares", "0"]);
    command.args(["--interval", "1s", "--check-every", "1s"]).args(args);
    let running = Running::start(command);
    within(180, what, is_done);
    running.stop()
}

fn run_keeps_machines_in_each_region_and_replaces_what_is_gone(cloud: &'static Cloud) {
    let account = Account::new(cloud);
    let two = cloud.regions[..2].join(",");
    let regions = ["--region", two.as_str(), "--count", "2"];
    run_until(&account, &regions, "two in each of two regions", || account.running() == 4);
    assert_eq!(account.assert_truth("after run"), 4);
    let machine = account.emulator.state()["machines"][0].clone();
    account.emulator.test("interrupt", &json!({ "id": machine["id"] }));
    run_until(&account, &regions, "another one", || {
        let rows = account.ls();
        rows.len() == 4 && rows.iter().all(|row| row["state"] == "running" && row["machine"] != machine["id"])
    });
    assert_eq!(account.assert_truth("after the interruption"), 4);
    // One that nobody knows of, in a region where none should be.
    let elsewhere = ["up", "--provider", cloud.name, "--region", cloud.regions[2], "--yes", "--detach"];
    account.eebt(&elsewhere).ok();
    let sum = account.eebt(&["cost", "--json"]).ok().json()["limited_usd"].as_str().unwrap().to_owned();
    std::fs::remove_file(account.op.ledger()).unwrap();
    let down = account.eebt(&["down", "--all"]).ok();
    assert_eq!(down.err.matches("found by its tags").count(), 5, "{}", down.err);
    assert_eq!(account.assert_truth("after down --all without a ledger"), 0);
    let after = account.eebt(&["cost", "--json"]).ok().json()["limited_usd"].as_str().unwrap().to_owned();
    let parse = |text: &str| text.parse::<f64>().unwrap();
    // They were to live for four hours.
    assert!(parse(&after) > parse(&sum) / 6.0, "what they cost is known by their tags: {after} of {sum}");
}

fn run_killed_at_any_step_leaves_what_the_ledger_says(cloud: &'static Cloud) {
    let account = Account::new(cloud);
    for point in CLOUD_CRASH_POINTS.0 {
        let mut run = account.command(&["run", "--provider", cloud.name, "--yes", "--interval", "1s"]);
        run.args(["--region", cloud.regions[0]]);
        let status = run.env("EEBT_CRASH_AT", point).stderr(Stdio::null()).status().unwrap();
        assert_eq!(status.signal(), Some(9), "{point}");
        account.assert_truth(point);
        account.end_all(point);
    }
}

fn run_spends_no_more_than_it_may() {
    let account = Account::new(&AWS);
    let status = || account.eebt(&["status", "--json"]).ok().json();
    let limits = ["--lifetime", "10h", "--traffic", "0.001", "--max-spend", "0.25"];
    let args = [&["--region", "eu-central-1", "--count", "3"][..], &limits].concat();
    let said = run_until(&account, &args, "it says why", || {
        let place = status()["run"]["places"][0].clone();
        place["trouble"].as_str().is_some_and(|why| why.contains("--max-spend")) && place["serving"] == 2
    });
    assert!(said.contains("would be above 0.2500 USD"), "{said}");
    assert_eq!(account.assert_truth("as many as the money is enough for"), 2, "{said}");
    account.end_all("at the end");
}

fn what_machines_cost_is_told() {
    let account = Account::new(&AWS);
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
