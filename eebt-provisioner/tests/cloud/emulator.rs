//! The clouds that tests buy from: EC2 as moto plays it, and stateful fakes of two others.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

/// The secret that an operator has of a cloud.
pub const SECRET: &str = "wJalrXUtnFEMI-not-a-real-one";
/// What a cloud tells that nobody shall see.
pub const TOLD_SECRET: &str = "SECRET-ROOT-PASSWORD";

/// How tests speak of a cloud.
#[derive(Debug)]
pub struct Cloud {
    pub name: &'static str,
    /// Three that are open.
    pub regions: [&'static str; 3],
    /// Calls of `up` that change nothing.
    pub reads: &'static [&'static str],
    /// Calls of `up` that do.
    pub writes: &'static [&'static str],
    pub create: &'static str,
    pub list: &'static str,
    pub terminate: &'static str,
    /// Can an order be given again, for it buys at most once?
    pub has_tokens: bool,
}

pub const AWS: Cloud = Cloud {
    name: "aws",
    regions: ["eu-central-1", "us-east-2", "eu-west-1"],
    reads: &[
        "DescribeRegions",
        "DescribeImages",
        "DescribeInstanceTypes",
        "DescribeInstanceTypeOfferings",
        "DescribeSpotPriceHistory",
        "DescribeSubnets",
        "DescribeInstances",
    ],
    writes: &["CreateSecurityGroup", "AuthorizeSecurityGroupIngress", "RunInstances"],
    create: "RunInstances",
    list: "DescribeInstances",
    terminate: "TerminateInstances",
    has_tokens: true,
};

pub const HETZNER: Cloud = Cloud {
    name: "hetzner",
    regions: ["fsn1", "nbg1", "hel1"],
    reads: &["GET /locations", "GET /server_types", "GET /pricing", "GET /images", "GET /servers"],
    writes: &["POST /servers"],
    create: "POST /servers",
    list: "GET /servers",
    terminate: "DELETE /servers/{id}",
    has_tokens: false,
};

pub const DIGITALOCEAN: Cloud = Cloud {
    name: "digitalocean",
    regions: ["fra1", "nyc3", "sgp1"],
    reads: &["GET /regions", "GET /sizes", "GET /images/{id}", "GET /droplets"],
    writes: &["POST /droplets"],
    create: "POST /droplets",
    list: "GET /droplets",
    terminate: "DELETE /droplets/{id}",
    has_tokens: false,
};

impl Cloud {
    /// What an error calls a call.
    pub fn says(&self, action: &str) -> String {
        match self.name {
            "digitalocean" => action.replace(" /", " /v2/").replace("images/{id}", "images/{slug}"),
            _ => action.to_owned(),
        }
    }
}

/// The process that plays it.
pub struct Emulator {
    child: Child,
    pub cloud: &'static Cloud,
    pub port: u16,
}

impl Emulator {
    pub fn start(cloud: &'static Cloud) -> Self {
        // The benchmark has it, too.
        let tests = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../eebt-provisioner/tests/cloud"));
        let mut command = if cloud.name == "aws" {
            let python = python();
            assert!(python.exists(), "no {}; `make test` installs it", python.display());
            let mut command = Command::new(python);
            command.arg(tests.join("ec2_emulator.py"));
            command.env("MOTO_ENABLE_AMI_VALIDATION", "1");
            command.env("MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION", "1");
            command
        } else {
            let mut command = Command::new("python3");
            command.arg(tests.join("rest_emulator.py")).arg(cloud.name).env("TOKEN", SECRET);
            command
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, cloud, port: line.trim().parse().unwrap() }
    }

    /// What a person's environment says of an account.
    pub fn credentials(&self, command: &mut Command) {
        let url = format!("http://127.0.0.1:{}", self.port);
        command
            .env("AWS_ENDPOINT_URL", &url)
            .env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env("AWS_REGION", "us-east-1")
            .env("AWS_MAX_ATTEMPTS", "2")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_CONFIG_FILE", "/dev/null")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
            .env("HCLOUD_ENDPOINT", format!("{url}/v1"))
            .env("HCLOUD_TOKEN", SECRET)
            .env("HCLOUD_CONFIG", "/dev/null")
            .env("DIGITALOCEAN_API_URL", &url)
            .env("DIGITALOCEAN_ACCESS_TOKEN", SECRET);
    }

    /// The environment of somebody who has no account.
    pub fn no_credentials(command: &mut Command) {
        for name in
            ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HCLOUD_TOKEN", "DIGITALOCEAN_ACCESS_TOKEN"]
        {
            command.env_remove(name);
        }
    }

    pub fn test(&self, what: &str, given: &Value) -> Value {
        test(self.port, what, given)
    }

    pub fn fault(&self, action: &str, fault: &str, times: u32) {
        self.test("faults", &json!({ "action": action, "fault": fault, "times": times }));
    }

    pub fn clear(&self) {
        self.test("clear", &json!({}));
    }

    pub fn state(&self) -> Value {
        self.test("state", &json!({}))
    }

    /// The instances, by our names, whose machines cost money now.
    pub fn alive(&self) -> BTreeSet<String> {
        alive(self.port)
    }
}

/// A call for the tests alone; see the emulators.
pub fn test(port: u16, what: &str, given: &Value) -> Value {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let body = given.to_string();
    let head = format!("POST /_test/{what} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(" 200 "), "{what}: {answer}");
    serde_json::from_str(body).unwrap()
}

pub fn alive(port: u16) -> BTreeSet<String> {
    let state = test(port, "state", &json!({}));
    let machines = state["machines"].as_array().unwrap();
    let over = ["terminated", "shutting-down", "deleting"];
    let alive = machines.iter().filter(|m| !over.contains(&m["state"].as_str().unwrap()));
    let names: Vec<String> = alive.map(|m| m["tags"]["eebt:id"].as_str().unwrap().to_owned()).collect();
    let distinct: BTreeSet<String> = names.iter().cloned().collect();
    assert_eq!(distinct.len(), names.len(), "one instance has two machines: {names:?}");
    distinct
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where `deploy/setup moto` puts it.
fn python() -> PathBuf {
    cache("exit-bridge-moto/bin/python")
}

/// What `deploy/setup` keeps for all checkouts.
pub fn cache(path: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache")).join(path)
}
