//! What an account may do, and what is told of it: credentials, permissions, secrets.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Account;
use crate::common::finish;
use crate::emulator::{AWS, Cloud, DIGITALOCEAN, Emulator, HETZNER, SECRET, TOLD_SECRET};

pub fn no_secret_is_said_or_kept(cloud: &'static Cloud) {
    let account = Account::new(cloud);
    let mut ran = vec![
        account.up(&["--count", "2", "--json"]).ok(),
        account.eebt(&["ls", "--json"]).ok(),
        account.eebt(&["cost", "--json"]).ok(),
        account.eebt(&["status", "--json"]).ok(),
        account.eebt(&["doctor", cloud.name, "--region", cloud.regions[0], "--json"]).ok(),
        account.eebt(&["gc", "--provider", cloud.name, "--json"]).ok(),
    ];
    for fault in ["denied", "cut", "lost", "down"] {
        account.emulator.fault(cloud.create, fault, 99);
        ran.push(account.up(&["--timeout", "5s"]));
        account.emulator.clear();
    }
    // Refused for what it says.
    ran.push(account.up(&["--ssh-key", "no-such-key"]));
    let state = account.emulator.state();
    let script = state["machines"][0]["user_data"].as_str().unwrap();
    assert!(script.contains("dmVyeSBzZWNyZXQ") && !script.contains(SECRET), "its own keys, and nothing else");
    account.assert_truth("after all this");
    ran.push(account.eebt(&["down", "--all", "--json"]).ok());
    let said: String = ran.iter().flat_map(|run| [run.out.as_str(), run.err.as_str()]).collect();
    let kept = kept(&account.op.state());
    // What the fake exit bridge writes as its key, as it is and in base64.
    for secret in [SECRET, TOLD_SECRET, "very secret", "dmVyeSBzZWNyZXQ"] {
        assert!(!said.contains(secret) && !kept.contains(secret), "{secret}");
    }
}

/// All files in a folder.
fn kept(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let text = |path: PathBuf| match path.is_dir() {
        true => kept(&path),
        false => String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned(),
    };
    entries.map(|entry| text(entry.path())).collect()
}

pub fn without_credentials_one_line_says_so(cloud: &'static Cloud) {
    let account = Account::new(cloud);
    let mut up = account.up_command(&[]);
    Emulator::no_credentials(&mut up);
    finish(&mut up).fails(1, &[&format!("{}: credentials", cloud.name), "hint: "]);
    if cloud.name == "aws" {
        return;
    }
    let mut wrong = account.up_command(&[]);
    wrong.env("HCLOUD_TOKEN", "wrong").env("DIGITALOCEAN_ACCESS_TOKEN", "wrong");
    finish(&mut wrong).fails(1, &["unauthorized", "must work"]);
    let mut reading = account.up_command(&[]);
    let token = format!("{SECRET}-readonly");
    reading.env("HCLOUD_TOKEN", &token).env("DIGITALOCEAN_ACCESS_TOKEN", &token);
    let run = finish(&mut reading);
    assert!(!run.err.contains(SECRET), "{}", run.err);
    run.fails(1, &["hint: the token must"]);
    let mut in_the_clear = account.up_command(&[]);
    let url = "http://api.example.org/v1";
    in_the_clear.env("HCLOUD_ENDPOINT", url).env("DIGITALOCEAN_API_URL", url);
    finish(&mut in_the_clear).fails(1, &["is no https:// URL"]);
}

/// Where the clouds' own tools keep credentials.
pub fn credentials_of_the_tools_are_found() {
    let account = Account::new(&HETZNER);
    let file = account.op.path().join("cli.toml");
    let text = format!(
        "active_context = \"b\"\n[[contexts]]\nname = \"a\"\ntoken = \"wrong\"\n[[contexts]]\nname = \"b\"\ntoken = \"{SECRET}\"\n"
    );
    std::fs::write(&file, text).unwrap();
    let doctor = |context: Option<&str>| {
        let mut doctor = account.command(&["doctor", "hetzner"]);
        doctor.env_remove("HCLOUD_TOKEN").env("HCLOUD_CONFIG", &file);
        context.map(|context| doctor.env("HCLOUD_CONTEXT", context));
        finish(&mut doctor)
    };
    doctor(None).ok();
    doctor(Some("a")).fails(1, &["unauthorized"]);
    doctor(Some("c")).fails(1, &["has no context \"c\"", "hint: "]);

    let account = Account::new(&DIGITALOCEAN);
    let tool = account.op.path().join("doctl");
    std::fs::write(&tool, format!("#!/bin/sh\n[ \"$*\" = 'auth token' ] && echo {SECRET}\n")).unwrap();
    std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut doctor = account.command(&["doctor", "digitalocean"]);
    doctor.env_remove("DIGITALOCEAN_ACCESS_TOKEN");
    doctor.env("PATH", format!("{}:/usr/bin:/bin", account.op.path().display()));
    finish(&mut doctor).ok();
}

pub fn the_policy_permits_what_is_called_and_no_more() {
    let account = Account::new(&AWS);
    account.up(&["--count", "2"]).ok();
    account.end_all("after up");
    account.gc().ok();
    account.eebt(&["doctor", "aws", "--region", "eu-central-1"]).ok();
    let state = account.emulator.state();
    let named = |call: &String| if call.contains(':') { call.clone() } else { format!("ec2:{call}") };
    let called: BTreeSet<String> = state["calls"].as_object().unwrap().keys().map(named).collect();
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

pub fn the_doctor_says_what_is_missing_before_anything_is_bought(cloud: &'static Cloud) {
    let account = Account::new(cloud);
    let region = cloud.regions[0];
    let doctor = |args: &[&str]| account.eebt(&[&["doctor", cloud.name, "--region", region], args].concat());
    let well = doctor(&[]).ok();
    assert!(well.out.contains(&format!("ok    {region}: buying machines: permitted")), "{}", well.out);
    assert!(well.out.contains("ok    credentials") && !well.out.contains("WRONG"), "{}", well.out);
    let mut actions = vec![cloud.create, cloud.list];
    if cloud.name == "aws" {
        assert!(doctor(&["--arch", "arm64"]).ok().out.contains("t4g.nano"), "{}", well.out);
        actions.extend(["TerminateInstances", "CreateSecurityGroup", "DescribeImages"]);
    }
    for action in actions {
        account.emulator.fault(action, "denied", 99);
        let ill = doctor(&["--json"]);
        assert_eq!(ill.code, Some(1), "{action}: {}", ill.err);
        let hint = if cloud.name == "aws" {
            format!("hint: allow ec2:{action}")
        } else {
            "hint: the token must".into()
        };
        assert!(ill.err.contains(&hint), "{action}: {}", ill.err);
        let wrong = ill.json()["findings"].as_array().unwrap().iter().filter(|f| f["ok"] == false).count();
        assert!((1..=2).contains(&wrong), "{action}: {}", ill.out);
        account.emulator.clear();
    }
    if cloud.name == "aws" {
        assert!(well.out.contains("how many there may be: 32 virtual processors"), "{}", well.out);
        account.emulator.fault("servicequotas:GetServiceQuota", "denied", 99);
        doctor(&[]).fails(1, &["hint: allow servicequotas:GetServiceQuota"]);
        account.emulator.clear();
        account.emulator.test("quota", &json!({ "processors": 0.0 }));
        doctor(&[]).fails(1, &["hint: ask for more in Service Quotas"]);
    }
    assert_eq!(account.emulator.state()["machines"], json!([]));
    assert_eq!(account.emulator.state()["groups"], json!([]));
    account
        .eebt(&["doctor", cloud.name, "--region", "xx-nowhere-1"])
        .fails(2, &["xx-nowhere-1 is none", "hint: "]);
    account.eebt(&["doctor", "local"]).fails(2, &["local is no cloud"]);
}
