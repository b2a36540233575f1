//! The emulator's process.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

/// The secret half of the credentials.
pub const SECRET: &str = "wJalrXUtnFEMI-not-a-real-one";

pub struct Ec2 {
    child: Child,
    port: u16,
}

impl Ec2 {
    pub fn start() -> Self {
        let python = python();
        assert!(python.exists(), "no {}; `make test` installs it", python.display());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cloud/ec2_emulator.py");
        let mut command = Command::new(python);
        command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.env("MOTO_ENABLE_AMI_VALIDATION", "1").env("MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION", "1");
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, port: line.trim().parse().unwrap() }
    }

    /// What a person's environment says of an account.
    pub fn credentials(&self, command: &mut Command) {
        command
            .env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port))
            .env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env("AWS_REGION", "us-east-1")
            .env("AWS_MAX_ATTEMPTS", "2")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_CONFIG_FILE", "/dev/null")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
    }

    /// A call for the tests alone; see the emulator.
    pub fn test(&self, what: &str, given: &Value) -> Value {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        let body = given.to_string();
        let head = format!("POST /_test/{what} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(" 200 "), "{what}: {answer}");
        serde_json::from_str(body).unwrap()
    }

    pub fn state(&self) -> Value {
        self.test("state", &json!({}))
    }

    /// The instances, by our names, whose machines cost money now.
    pub fn alive(&self) -> BTreeSet<String> {
        let state = self.state();
        let machines = state["machines"].as_array().unwrap();
        let alive = machines
            .iter()
            .filter(|m| !["terminated", "shutting-down"].contains(&m["state"].as_str().unwrap()));
        let names: Vec<String> = alive.map(|m| m["tags"]["eebt:id"].as_str().unwrap().to_owned()).collect();
        let distinct: BTreeSet<String> = names.iter().cloned().collect();
        assert_eq!(distinct.len(), names.len(), "one instance has two machines: {names:?}");
        distinct
    }
}

impl Drop for Ec2 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where `deploy/setup moto` puts it.
fn python() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"));
    cache.join("exit-bridge-moto/bin/python")
}
