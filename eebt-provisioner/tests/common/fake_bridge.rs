//! A stand-in for `eebt-bridge`: same commands, files, signals and status page, no Tor. How it is to
//! misbehave comes in `FAKE_*` variables, set by the little script that starts it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::fs::{self, DirBuilder};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use eebt_proto::{BridgeLine, CircuitReach, OnionReach, PortSet, Reach};

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Config {
    keys: PathBuf,
    state_dir: PathBuf,
    pid_file: PathBuf,
    network: Option<PathBuf>,
    reach: Vec<String>,
    #[serde(default)]
    directories: Vec<OnionReach>,
    listen: SocketAddr,
    address: SocketAddr,
    egress_address: Option<std::net::IpAddr>,
    status: SocketAddr,
    policy: String,
    #[serde(default)]
    allow_egress: Vec<ipnet::IpNet>,
    #[serde(default)]
    allow_ingress: Vec<ipnet::IpNet>,
    drain: String,
    expires: String,
    limits: Option<toml::Value>,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (command, path) = (args[0].as_str(), PathBuf::from(&args[2]));
    if command != "run" {
        sleep(milliseconds("FAKE_SLOW_HELPERS").unwrap_or_default());
    }
    match command {
        "keygen" => keygen(&path),
        "line" => println!("{}", line(&config(&path))),
        "run" => run(&config(&path)),
        other => panic!("no command {other}"),
    }
}

fn milliseconds(name: &str) -> Option<Duration> {
    Some(Duration::from_millis(std::env::var(name).ok()?.parse().unwrap()))
}

fn config(path: &PathBuf) -> Config {
    toml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn keygen(path: &PathBuf) {
    if std::env::var_os("FAKE_KEYGEN_FAILS").is_some() {
        eprintln!("error: the dice are broken");
        exit(1);
    }
    if path.exists() {
        eprintln!("error: {} holds keys already", path.display());
        exit(1);
    }
    DirBuilder::new().mode(0o700).create(path).unwrap();
    fs::write(path.join("ed25519"), format!("very secret {}", std::process::id())).unwrap();
}

fn line(config: &Config) -> BridgeLine {
    assert!(config.keys.join("ed25519").exists());
    BridgeLine {
        reach: Reach::Circuit(CircuitReach {
            addresses: vec![config.address],
            ed25519: [7; 32],
            rsa: [8; 20],
            ntor: [9; 32],
            protocols: "FlowCtrl=1-2 Relay=1-6".into(),
        }),
        ports: config.policy.parse::<PortSet>().unwrap(),
        expires: Some(humantime::parse_rfc3339(&config.expires).unwrap()),
    }
}

fn run(config: &Config) {
    fs::write(&config.pid_file, std::process::id().to_string()).unwrap();
    eprintln!("fake bridge for {} (environment: {})", config.address, std::env::vars_os().count());
    assert!(config.keys.join("ed25519").exists());
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&stop)).unwrap();

    let sick = std::env::var("FAKE_SICK_IP").is_ok_and(|ip| ip == config.address.ip().to_string());
    let start = Instant::now();
    let ready_after = milliseconds("FAKE_READY_AFTER").unwrap_or_default();
    let _or_port = TcpListener::bind(config.listen).unwrap();
    let status = TcpListener::bind(config.status).unwrap();
    std::thread::spawn(move || {
        for stream in status.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let reply = if sick || start.elapsed() < ready_after {
                "HTTP/1.1 503 Service Unavailable\r\n\r\nno consensus yet\n"
            } else {
                "HTTP/1.1 200 OK\r\n\r\nready\n"
            };
            let _ = stream.write_all(reply.as_bytes());
        }
    });

    let expires = humantime::parse_rfc3339(&config.expires).unwrap();
    let ends_after = milliseconds("FAKE_ENDS_AFTER");
    loop {
        if stop.load(Ordering::Relaxed) {
            stop.store(false, Ordering::Relaxed);
            eprintln!("draining");
            let deadline = Instant::now() + milliseconds("FAKE_DRAIN").unwrap_or_default();
            while Instant::now() < deadline {
                if stop.load(Ordering::Relaxed) {
                    eprintln!("told twice");
                    exit(0);
                }
                sleep(Duration::from_millis(10));
            }
            eprintln!("drained");
            exit(0);
        }
        if SystemTime::now() >= expires {
            eprintln!("expired");
            exit(0);
        }
        if ends_after.is_some_and(|after| start.elapsed() > after) {
            eprintln!("error: out of luck");
            exit(3);
        }
        sleep(Duration::from_millis(10));
    }
}
