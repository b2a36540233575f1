//! `eebt up`

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use eebt_proto::limits::MAX_LIFETIME;
use eebt_proto::{OnionReach, PortSet};
use eebt_provisioner::instance::{Instance, Provider, expiry};
use eebt_provisioner::local::{Reach, Settings};
use eebt_provisioner::plan::{MAX_COUNT, Request};
use eebt_provisioner::raise::{self, Failed, ReserveError};
use eebt_provisioner::{Fleet, causes, machine};
use ipnet::IpNet;
use serde_json::json;

use super::{buy, named};
use crate::print::{Hinted, Printer, Usage, View, rfc3339};

#[derive(clap::Args)]
pub struct Args {
    /// Who runs them
    #[arg(long, value_enum, default_value_t = Provider::Local)]
    provider: Provider,
    /// How many
    #[arg(long, short = 'n', default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_COUNT)))]
    count: u16,
    /// How long each lives, from 1m to 7d; then it ends by itself
    #[arg(long, default_value = "4h", value_name = "TIME", value_parser = lifetime)]
    lifetime: Duration,
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
    policy: String,
    /// How clients reach them: circuit needs an open port, onion works behind any NAT
    #[arg(long, value_enum, default_value_t)]
    reach: Reach,
    /// Onion address of an exit-bridge directory to register them with, so that clients find them (may be
    /// repeated)
    #[arg(long = "directory", value_name = "ONION", value_delimiter = ',')]
    directories: Vec<OnionReach>,
    /// A private Tor network, as a file of Arti's [tor_network] settings
    #[arg(long, value_name = "FILE")]
    network: Option<PathBuf>,
    /// Special-use addresses that a test network opens (may be repeated)
    #[arg(long, value_name = "CIDR", value_parser = address)]
    allow_egress: Vec<IpNet>,
    /// Addresses that relays of a test network connect from, if not those they publish (may be repeated)
    #[arg(long, value_name = "CIDR", value_parser = address)]
    allow_ingress: Vec<IpNet>,
    /// The program eebt-bridge [default: beside eebt, or in PATH]
    #[arg(long, value_name = "FILE", env = "EEBT_BRIDGE_BINARY")]
    bridge_binary: Option<PathBuf>,
    /// How long one may take to get ready
    #[arg(long, default_value = "120s", value_name = "TIME", value_parser = timeout)]
    timeout: Duration,
    /// Print bridge lines without waiting until they serve
    #[arg(long)]
    no_wait: bool,
    /// Print the plan, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask before buying (the provider local costs nothing and never asks)
    #[arg(long, short)]
    yes: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machines: buy::Args,
}

impl Args {
    /// Finds the mistakes that need no fleet to be seen.
    pub fn check(&self) -> anyhow::Result<()> {
        let settings = self.settings()?;
        if self.provider == Provider::Local {
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
        self.machines.wanted(&self.common(), settings).map(|_| ())
    }

    fn common(&self) -> buy::Common {
        buy::Common {
            provider: self.provider,
            count: self.count,
            lifetime: self.lifetime,
            patience: self.timeout,
            is_dry_run: self.dry_run,
            is_agreed: self.yes,
            json: self.json,
        }
    }

    pub fn run(self, fleet: &Fleet, printer: &Printer) -> anyhow::Result<()> {
        let settings = self.settings()?;
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
        {
            signal_hook::flag::register(signal, Arc::clone(&interrupted)).context("can't handle signals")?;
        }
        if self.provider != Provider::Local {
            return self.machines.run(&self.common(), settings, fleet, printer, &interrupted);
        }
        let request = Request {
            count: self.count,
            addresses: self.address.clone(),
            listen_ip: self.listen_ip,
            port: self.port,
            // An onion exit bridge needs no address that others reach.
            private_network: self.network.is_some() || self.reach == Reach::Onion,
        };
        let (start, now) = (Instant::now(), SystemTime::now());
        let expires = expiry(now, self.lifetime);
        if self.dry_run {
            let slots = raise::choose(&request, &fleet.ledger().live()?).map_err(ReserveError::from)?;
            let addresses: Vec<String> = slots.iter().map(|slot| slot.address.ip().to_string()).collect();
            self.say_plan(printer, &addresses, expires);
            let plan = json!({ "provider": self.provider, "count": self.count, "addresses": addresses,
                "expires": rfc3339(expires), "policy": self.policy, "cost": 0 });
            return if self.json { printer.json(&json!({ "plan": plan })) } else { Ok(()) };
        }

        let rows = fleet.reserve(&request, now, expires)?;
        let addresses: Vec<String> =
            rows.iter().filter_map(|row| Some(row.address?.ip().to_string())).collect();
        self.say_plan(printer, &addresses, expires);

        let patience = (!self.no_wait).then_some(self.timeout);
        let mut good = Vec::new();
        let mut failed = Vec::new();
        let (sender, results) = mpsc::channel();
        std::thread::scope(|scope| -> anyhow::Result<()> {
            for row in &rows {
                let (sender, settings, interrupted) = (sender.clone(), &settings, &interrupted);
                scope.spawn(move || {
                    let _ = sender.send((row, fleet.raise(row, settings, patience, interrupted)));
                });
            }
            drop(sender);
            let waiting = |done: usize| {
                let after = start.elapsed().as_secs();
                printer.progress(format_args!("{done} of {} ready after {after}s ...", rows.len()));
            };
            waiting(0);
            loop {
                match results.recv_timeout(Duration::from_secs(1)) {
                    Ok((row, Ok(line))) => {
                        if !self.json {
                            printer.data(&line)?;
                        }
                        let what = if self.no_wait { "starting" } else { "ready" };
                        let after = start.elapsed().as_secs_f32();
                        printer.say(format_args!("{} is {what} after {after:.1}s", place(row)));
                        good.push(named(fleet, &row.id)?);
                    }
                    Ok((row, Err(error))) => failed.push((row, error)),
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                    Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
                }
                waiting(good.len());
            }
        })?;
        printer.wipe();
        if self.json {
            let views: Vec<View> = good.iter().map(View::from).collect();
            let failed: Vec<_> = failed.iter().map(|(row, failed)| view(row, failed)).collect();
            printer.json(&json!({ "instances": views, "failed": failed }))?;
        }
        report(printer, &failed, rows.len())
    }

    fn say_plan(&self, printer: &Printer, addresses: &[String], expires: SystemTime) {
        let what = if self.count == 1 { "exit bridge" } else { "exit bridges" };
        printer.say(format_args!("plan: {} {what} by provider {}, cost 0", self.count, self.provider));
        printer.say(format_args!("  on {}, letting out: {}", addresses.join(", "), self.policy));
        printer.say(format_args!(
            "  until {} ({})",
            rfc3339(expires),
            humantime::format_duration(self.lifetime)
        ));
    }

    fn settings(&self) -> anyhow::Result<Settings> {
        let absolute = |field, path: &PathBuf| {
            let missing =
                |err| Usage::new(format!("{field}: {}: {err}", path.display()), "name a file that exists");
            path.canonicalize().map_err(missing)
        };
        let bridge = match &self.bridge_binary {
            Some(path) => absolute("--bridge-binary", path)?,
            None => machine::find_bridge().ok_or_else(|| Hinted {
                message: "can't find the program eebt-bridge beside eebt or in PATH".into(),
                hint: Some(
                    "build it with `cargo build --release -p eebt-bridge`, or name it with --bridge-binary"
                        .into(),
                ),
            })?,
        };
        if !machine::is_program(&bridge) {
            let message = format!("--bridge-binary: {} is not a program", bridge.display());
            return Err(Usage::new(message, "`chmod +x` makes it one").into());
        }
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
}

pub(super) fn report(printer: &Printer, failed: &[(&Instance, Failed)], of: usize) -> anyhow::Result<()> {
    for (row, Failed { error, log, .. }) in failed {
        let causes = causes(error.as_ref());
        printer.failed(format_args!("{}: {causes}", place(row)));
        log.iter().for_each(|line| printer.say(format_args!("  | {line}")));
    }
    let Some((_, first)) = failed.first() else { return Ok(()) };
    let message = format!("{} of {of} exit bridges did not come up", failed.len());
    Err(Hinted { message, hint: first.error.hint() }.into())
}

pub(super) fn view(row: &Instance, Failed { id, error, log }: &Failed) -> serde_json::Value {
    json!({ "id": id, "provider": row.provider, "address": row.address, "error": causes(error.as_ref()), "log": log })
}

/// Which one, and where.
fn place(row: &Instance) -> String {
    let place = row.address.map(|address| address.to_string()).or(row.region().map(str::to_owned));
    format!("{} {}", row.id, place.unwrap_or_default())
}

fn lifetime(text: &str) -> Result<Duration, String> {
    between(text, Duration::from_secs(60), MAX_LIFETIME)
}

fn timeout(text: &str) -> Result<Duration, String> {
    between(text, Duration::from_secs(1), Duration::from_secs(3600))
}

fn between(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
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
