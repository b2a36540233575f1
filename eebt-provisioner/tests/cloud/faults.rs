//! Every fault at every call: what lives is what the ledger says.

use super::{Account, run_until};
use crate::emulator::Cloud;

/// What `up --count 2` comes to with a fault that many times: its exit code, and how many are left.
fn outcome(cloud: &Cloud, fault: &str, times: u32) -> (i32, usize) {
    match (fault, times) {
        // No order is given twice, but what it bought is found.
        ("lost", _) if !cloud.has_tokens => (0, 2),
        ("cut" | "late" | "down", 1) if !cloud.has_tokens => (1, 1),
        (_, 1) => (0, 2),
        _ => (1, 0),
    }
}

/// Every fault at every call of `up`, once and for as long as it is asked.
pub fn no_fault_makes_machines_that_the_ledger_does_not_know(cloud: &'static Cloud) {
    let account = Account::new(cloud);
    let cases = cloud.reads.iter().flat_map(|action| {
        [("lost", 99), ("cut", 99), ("throttle", 99), ("down", 99), ("denied", 99)]
            .map(|fault| (*action, fault))
    });
    let mut faults = vec![
        ("lost", 1),
        ("lost", 99),
        ("cut", 1),
        ("cut", 99),
        ("throttle", 1),
        ("throttle", 99),
        ("down", 99),
        ("denied", 99),
        ("quota", 99),
    ];
    if !cloud.has_tokens {
        faults.extend([("late", 1), ("late", 99)]);
    }
    let writes = cloud.writes.iter().flat_map(|action| faults.iter().map(|fault| (*action, *fault)));
    for (action, (fault, times)) in cases.chain(writes) {
        let context = format!("{action} {fault} {times}");
        account.emulator.fault(action, fault, times);
        let up = account.up(&["--count", "2", "--timeout", "15s"]);
        assert!(account.calls(action) > 0, "{context}: the call was made");
        let is_read = cloud.reads.contains(&action);
        let (code, left) = if is_read { (1, 0) } else { outcome(cloud, fault, times) };
        assert_eq!(up.code, Some(code), "{context}: {}", up.err);
        if code != 0 {
            assert!(up.err.contains(&cloud.says(action)), "{context}: the error names the call: {}", up.err);
        }
        if fault == "denied" {
            let hint =
                if cloud.name == "aws" { format!("ec2:{action}") } else { "hint: the token must".into() };
            assert!(up.err.contains(&hint), "{context}: the hint names the permission: {}", up.err);
            assert!(!up.err.contains("AbCdEf"), "{context}: {}", up.err);
        }
        account.emulator.clear();
        assert_eq!(account.assert_truth(&context), left, "{context}");
        account.end_all(&context);
    }
}

pub fn no_fault_keeps_a_machine_that_was_to_end(cloud: &'static Cloud) {
    let account = Account::new(cloud);
    let mut faults =
        vec![("lost", 99), ("cut", 1), ("cut", 99), ("throttle", 99), ("down", 99), ("denied", 99)];
    if !cloud.has_tokens {
        faults.push(("locked", 99));
    }
    for (fault, times) in faults {
        // That lists fail is much the same in each way.
        let is_list_as_well = matches!(fault, "cut" | "denied");
        for action in [cloud.terminate, cloud.list].into_iter().take(1 + usize::from(is_list_as_well)) {
            let context = format!("{action} {fault} {times}");
            account.up(&["--count", "2"]).ok();
            account.emulator.fault(action, fault, times);
            let down = account.eebt(&["down", "--all"]);
            let left = account.emulator.alive();
            assert!(
                down.code != Some(0) || left.is_empty(),
                "{context}: it says that all are down: {left:?}"
            );
            account.emulator.clear();
            account.end_all(&context);
        }
    }
}

pub fn no_fault_makes_gc_lose_a_machine(cloud: &'static Cloud) {
    let account = Account::new(cloud);
    account.up(&["--count", "2"]).ok();
    let mut actions = vec![cloud.reads[0], cloud.list];
    if cloud.name == "aws" {
        actions.extend(["DescribeSecurityGroups", "DeleteSecurityGroup"]);
    }
    for action in actions {
        for (fault, times) in [("lost", 1), ("cut", 99), ("throttle", 99), ("down", 99), ("denied", 99)] {
            let context = format!("{action} {fault} {times}");
            // One that the ledger knows is over, and one that it never heard of.
            account.up(&[]).ok();
            let ids: Vec<String> =
                account.ls().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect();
            let over =
                format!("UPDATE instances SET state = 'ended', ended = created WHERE id = '{}'", ids[0]);
            account.op.sql(&over);
            account.op.sql(&format!("DELETE FROM instances WHERE id = '{}'", ids[1]));
            account.emulator.fault(action, fault, times);
            account.gc();
            account.emulator.clear();
            account.gc().ok();
            assert_eq!(account.assert_truth(&context), ids.len() - 1, "{context}");
        }
    }
}

/// Every fault at a call that `eebt run` makes: in the end there is what should be, and nothing else.
pub fn no_fault_keeps_run_from_its_number(cloud: &'static Cloud, action: &str) {
    let account = Account::new(cloud);
    let args = ["--region", cloud.regions[0], "--count", "2", "--timeout", "15s"];
    let is_write = cloud.writes.contains(&action);
    let mut faults = vec!["lost", "cut", "throttle", "down", "denied"];
    if is_write {
        faults.push("quota");
        faults.extend((!cloud.has_tokens).then_some("late"));
    }
    for fault in faults {
        let context = format!("{action} {fault}");
        // As often as a call is tried, so that one fails: a pause of 10 s follows.
        let tries = if cloud.has_tokens { 2 } else { 4 };
        let is_tried_again =
            !matches!(fault, "denied" | "quota") && (!is_write || cloud.has_tokens || fault == "throttle");
        account.emulator.fault(action, fault, if is_tried_again { tries } else { 1 });
        let has_met = || account.emulator.state()["faulted"][action].as_u64().unwrap_or_default() > 0;
        run_until(&account, &args, &context, || account.running() == 2 && has_met());
        account.emulator.clear();
        assert_eq!(account.assert_truth(&context), 2, "{context}");
        account.end_all(&context);
    }
}
