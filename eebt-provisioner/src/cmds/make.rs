//! What `eebt up` and `eebt run` have in common: which exit bridges are made, and how.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use anyhow::Context;
use data_encoding::HEXLOWER;
use eebt_proto::limits::MAX_LIFETIME;
use eebt_proto::{OnionReach, PortSet};
use eebt_provisioner::check::Checker;
use eebt_provisioner::cloud::user_data::Program;
use eebt_provisioner::cloud::{self, Come, MicroUsd, Offers, Query, Wanted};
use eebt_provisioner::instance::{Instance, Provider};
use eebt_provisioner::local::{Reach, Settings};
use eebt_provisioner::plan::{MAX_COUNT, Request};
use eebt_provisioner::raise::Failed;
use eebt_provisioner::{Fleet, machine};
use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::print::{Hinted, Usage};

/// How many machines are bought at a time. The cloud's own limits are lower for long purchases.
const WORKERS: usize = 16;

#[derive(clap::Args)]
pub struct Args {
    /// Who runs them
    #[arg(long, value_enum, default_value_t = Provider::Local)]
    pub provider: Provider,
    /// How many
    #[arg(long, short = 'n', default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(cloud::MAX_COUNT)))]
    pub count: u16,
    /// How long each lives, from 1m to 7d; then it ends by itself
    #[arg(long, default_value = "4h", value_name = "TIME", value_parser = lifetime)]
    pub lifetime: Duration,
    /// Public addresses of this machine to use in turn, as IP or range (may be repeated)
    /// [default: the one that leads to the Internet]
    #[arg(long, value_name = "IP|CIDR", value_parser = address)]
    address: Vec<IpNet>,
    /// Where to listen if a 1:1 NAT leads from --address to this machine
    #[arg(long, value_name = "IP")]
    listen_ip: Option<IpAddr>,
    /// Where to listen [default: a random high port each]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Ports that are let out: web, reduced, tor-default, or a list like 80,443,8000-8100
    #[arg(long, default_value = "web", value_name = "PORTS", value_parser = policy)]
    pub policy: String,
    /// How clients reach them: circuit needs an open port, onion works behind any NAT
    #[arg(long, value_enum, default_value_t)]
    reach: Reach,
    /// Onion address of an exit-bridge directory to register them with, so that clients find them (may be
    /// repeated)
    #[arg(long = "directory", value_name = "ONION", value_delimiter = ',')]
    directories: Vec<OnionReach>,
    /// A private Tor network, as a file of Arti's [tor_network] settings
    #[arg(long, value_name = "FILE")]
    pub network: Option<PathBuf>,
    /// Special-use addresses that a test network opens (may be repeated)
    #[arg(long, value_name = "CIDR", value_parser = address)]
    allow_egress: Vec<IpNet>,
    /// Addresses that relays of a test network connect from, if not those they publish (may be repeated)
    #[arg(long, value_name = "CIDR", value_parser = address)]
    allow_ingress: Vec<IpNet>,
    /// The program eebt-bridge [default: beside eebt, or in PATH]
    #[arg(long, value_name = "FILE", env = "EEBT_BRIDGE_BINARY")]
    bridge_binary: Option<PathBuf>,
    /// The program eebt-client, by which machines of a cloud are checked [default: beside eebt, or in PATH]
    #[arg(long, value_name = "FILE", env = "EEBT_CLIENT_BINARY")]
    client_binary: Option<PathBuf>,
    /// How long one may take to get ready [default: 2m on this machine, 5m in a cloud]
    #[arg(long, value_name = "TIME", value_parser = timeout)]
    timeout: Option<Duration>,
    #[command(flatten)]
    machines: MachineArgs,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Machines of a cloud")]
pub struct MachineArgs {
    /// Where; several are used in turn
    #[arg(long, value_name = "REGION", value_delimiter = ',')]
    region: Vec<String>,
    /// What: the cheapest that can be had is bought [default: small ones]
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    kinds: Vec<String>,
    /// Processors that the program was built for
    #[arg(long, default_value = "x86_64", value_parser = ["x86_64", "arm64"])]
    arch: String,
    /// System image [default: the newest Debian]
    #[arg(long, value_name = "ID")]
    image: Option<String>,
    /// Where machines fetch eebt-bridge from, by HTTPS [default: it is in the image]
    #[arg(long, value_name = "URL", default_value = "", hide_default_value = true)]
    program_url: String,
    /// Its SHA-256; machines run no other [default: that of the eebt-bridge here]
    #[arg(long, value_name = "HEX")]
    program_sha256: Option<String>,
    /// On demand and not spot, at this price for an hour, which the API of aws does not tell; with one --type
    #[arg(long, value_name = "USD")]
    on_demand: Option<MicroUsd>,
    /// Let whoever has this key log in with ssh: what the cloud calls it [default: nobody]
    #[arg(long, value_name = "NAME")]
    ssh_key: Option<String>,
    /// Most US dollars for one machine and hour
    #[arg(long, value_name = "USD")]
    max_price: Option<MicroUsd>,
    /// Most machines at once
    #[arg(long, value_name = "N", default_value_t = 20, env = "EEBT_MAX_COUNT")]
    max_count: usize,
    /// Most US dollars in 30 days, traffic included
    #[arg(long, value_name = "USD", default_value = "20", env = "EEBT_MAX_SPEND")]
    max_spend: MicroUsd,
    /// GB that each may carry in its life: half of them at any time, the rest evenly over its life
    #[arg(long, value_name = "GB", default_value = "2", value_parser = gigabytes)]
    traffic: u64,
}

impl Args {
    /// Finds the mistakes that need no fleet to be seen.
    pub fn check(&self) -> anyhow::Result<()> {
        self.settings()?;
        if self.provider == Provider::Local {
            if self.count > MAX_COUNT {
                let what = format!("--count: this machine runs {MAX_COUNT} at most");
                return Err(Usage::new(what, "clouds have more").into());
            }
            return Ok(());
        }
        let ours = [
            ("--address", !self.address.is_empty()),
            ("--listen-ip", self.listen_ip.is_some()),
            ("--port", self.port.is_some()),
        ];
        if let Some((field, _)) = ours.iter().find(|(_, is_given)| *is_given) {
            let what = format!("{field}: a machine of a cloud has its own");
            return Err(Usage::new(what, format!("leave {field} out")).into());
        }
        if self.reach != Reach::Circuit {
            let hint = "onion exit bridges are for machines that nobody can reach";
            return Err(Usage::new("--reach: machines of a cloud are reached by circuit", hint).into());
        }
        self.wanted().map(|_| ())
    }

    /// How long one may take to get ready.
    pub fn patience(&self) -> Duration {
        let seconds = if self.provider == Provider::Local { 120 } else { 300 };
        self.timeout.unwrap_or(Duration::from_secs(seconds))
    }

    /// Most machines at once.
    pub fn max_count(&self) -> usize {
        self.machines.max_count
    }

    /// What is made on this machine.
    pub fn request(&self) -> Request {
        Request {
            count: self.count,
            addresses: self.address.clone(),
            listen_ip: self.listen_ip,
            port: self.port,
            // An onion exit bridge needs no address that others reach.
            private_network: self.network.is_some() || self.reach == Reach::Onion,
        }
    }

    /// What is bought.
    pub fn wanted(&self) -> anyhow::Result<Wanted> {
        let (machines, settings) = (&self.machines, self.settings()?);
        if machines.region.is_empty() {
            let hint = "name at least one, such as --region eu-central-1";
            return Err(Usage::new("--region: not given", hint).into());
        }
        let sha256 = match &machines.program_sha256 {
            Some(sum) => sum.clone(),
            None => sum_of(&settings.bridge)?,
        };
        let program = Program::new(&machines.program_url, &sha256)
            .map_err(|what| Usage::new(what, "`sha256sum eebt-bridge` prints the sum"))?;
        let mut regions = machines.region.clone();
        regions.sort();
        regions.dedup();
        let (arch, image, on_demand) = (machines.arch.clone(), machines.image.clone(), machines.on_demand);
        if on_demand.is_some() && self.provider != Provider::Aws {
            let what = format!("--on-demand: {} sells nothing else, and tells its prices", self.provider);
            return Err(Usage::new(what, "leave it out").into());
        }
        if on_demand.is_some() && machines.kinds.len() != 1 {
            let what = "--on-demand: is the price of one type";
            return Err(Usage::new(what, "name that one with --type").into());
        }
        Ok(Wanted {
            provider: self.provider,
            regions,
            query: Query { kinds: machines.kinds.clone(), arch, image, on_demand },
            count: self.count,
            max_count: machines.max_count,
            max_spend: machines.max_spend,
            traffic: machines.traffic,
            max_price: machines.max_price,
            program,
            ssh_key: machines.ssh_key.clone(),
            settings,
        })
    }

    /// How each is set up.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let bridge = program("eebt-bridge", "--bridge-binary", self.bridge_binary.as_ref())?;
        let network = self.network.as_ref().map(|path| absolute("--network", path)).transpose()?;
        Ok(Settings {
            bridge,
            network,
            policy: self.policy.clone(),
            allow_egress: self.allow_egress.clone(),
            allow_ingress: self.allow_ingress.clone(),
            reach: self.reach,
            directories: self.directories.clone(),
        })
    }

    /// What checks exit bridges.
    pub fn client(&self) -> anyhow::Result<PathBuf> {
        program("eebt-client", "--client-binary", self.client_binary.as_ref())
    }
}

fn absolute(field: &str, path: &Path) -> anyhow::Result<PathBuf> {
    let missing = |err| Usage::new(format!("{field}: {}: {err}", path.display()), "name a file that exists");
    Ok(path.canonicalize().map_err(missing)?)
}

/// A program of ours, given by this field or found.
pub fn program(name: &str, field: &str, given: Option<&PathBuf>) -> anyhow::Result<PathBuf> {
    let found = match given {
        Some(path) => absolute(field, path)?,
        None => machine::find_program(name).ok_or_else(|| Hinted {
            message: format!("can't find the program {name} beside eebt or in PATH"),
            hint: Some(format!("build it with `cargo build --release -p {name}`, or name it with {field}")),
        })?,
    };
    if !machine::is_program(&found) {
        let message = format!("{field}: {} is not a program", found.display());
        return Err(Usage::new(message, "`chmod +x` makes it one").into());
    }
    Ok(found)
}

fn sum_of(program: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(program).with_context(|| format!("can't read {}", program.display()))?;
    Ok(HEXLOWER.encode(&Sha256::digest(&bytes)))
}

/// How exit bridges that are planned come into being.
pub enum How<'a> {
    /// On this machine.
    Local(&'a Settings),
    /// In a cloud.
    Cloud(&'a Wanted, &'a Offers),
}

/// How long they may take, and who sees whether they serve.
#[derive(Clone, Copy)]
pub struct Patience<'a> {
    pub time: Duration,
    /// Is it waited until they serve?
    pub waits: bool,
    /// Checks those of a cloud; there is one if it is waited for them.
    pub checker: Option<&'a Checker>,
}

/// What became of one.
pub type Made = (Instance, Result<Come, Failed>);

/// Makes all of the planned ones at once, and tells of each as it comes up.
pub fn make(
    fleet: &Fleet,
    rows: &[Instance],
    how: &How<'_>,
    patience: Patience<'_>,
    interrupted: &AtomicBool,
    made: &Sender<Made>,
) {
    // If nobody listens any more, nobody needs to know.
    let tell = |row: &Instance, result| drop(made.send((row.clone(), result)));
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| match how {
        How::Local(settings) => {
            let time = patience.waits.then_some(patience.time);
            let serves = if patience.waits { Ok(()) } else { Err("nobody waited for it".to_owned()) };
            for row in rows {
                let (tell, serves) = (&tell, serves.clone());
                scope.spawn(move || {
                    let raised = fleet.raise(row, settings, time, interrupted);
                    tell(row, raised.map(|line| Come { line, serves }));
                });
            }
        }
        How::Cloud(wanted, offers) => {
            let (sender, bought) = mpsc::channel();
            for _ in 0..WORKERS.min(rows.len()) {
                let (sender, tell, next) = (sender.clone(), &tell, &next);
                scope.spawn(move || {
                    while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                        match fleet.buy(row, wanted, offers, interrupted) {
                            Ok(()) => drop(sender.send(row.clone())),
                            Err(failed) => tell(row, Err(failed)),
                        }
                    }
                });
            }
            drop(sender);
            fleet.until_serving(&bought, wanted, patience.time, patience.checker, interrupted, tell);
        }
    });
}

/// GB as bytes.
fn gigabytes(text: &str) -> Result<u64, String> {
    // As money: decimals, exactly.
    let MicroUsd(millionths) =
        text.parse().map_err(|_| "must be a number of GB such as 0.5 or 20".to_owned())?;
    let bytes = millionths.saturating_mul(1000);
    if (1_000_000..=1_000_000_000_000_000).contains(&bytes) {
        Ok(bytes)
    } else {
        Err("must be from 0.001 to 1000000".into())
    }
}

fn lifetime(text: &str) -> Result<Duration, String> {
    between(text, Duration::from_secs(60), MAX_LIFETIME)
}

fn timeout(text: &str) -> Result<Duration, String> {
    between(text, Duration::from_secs(1), Duration::from_secs(3600))
}

/// A time of at least and at most so much.
pub fn between(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|err| format!("{err} (write it like 30m, 4h, 2d)"))?;
    if time < least || time > most {
        let show = humantime::format_duration;
        return Err(format!("must be from {} to {}", show(least), show(most)));
    }
    Ok(time)
}

fn address(text: &str) -> Result<IpNet, String> {
    let single = text.parse::<IpAddr>().map(IpNet::from);
    single
        .or_else(|_| text.parse())
        .map_err(|_| "must be an IP address or a range like 198.51.100.0/28".into())
}

fn policy(text: &str) -> Result<String, String> {
    text.parse::<PortSet>().map(|_| text.to_owned()).map_err(|err| err.to_string())
}
