//! Flags that several commands share.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use testnet::{Origins, OriginsConfig, Ports, Scheduler, TestNet, TestNetBuilder};

use crate::output::say;

/// Which folder a network lives in.
#[derive(Debug, Clone, Args)]
pub(crate) struct DirOption {
    /// The network's folder [default: eebt-testnet in $XDG_RUNTIME_DIR or the temporary folder].
    #[arg(long, env = "TESTNET_DIR")]
    dir: Option<PathBuf>,
}

impl DirOption {
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.clone().unwrap_or_else(|| {
            let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
            runtime.filter(|dir| dir.is_dir()).unwrap_or_else(std::env::temp_dir).join("eebt-testnet")
        })
    }
}

/// What a network looks like.
#[derive(Debug, Clone, Args)]
pub(crate) struct NetworkOptions {
    /// One-way delay on every link to a relay, such as 40ms.
    #[arg(long, default_value = "0ms", value_parser = humantime::parse_duration)]
    pub(crate) latency: Duration,
    /// How tors schedule writes: `kist:MS` (Tor's own is kist:10) or `vanilla`.
    #[arg(long, default_value = "kist:10", value_parser = parse_scheduler)]
    scheduler: Scheduler,
    /// Relays that are neither authority nor exit.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=250))]
    middles: u8,
    /// Exits.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=250))]
    exits: u8,
    /// A consensus parameter; may be repeated.
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parse_param)]
    params: Vec<(String, i32)>,
    /// Ports of the origins.
    #[arg(long, value_enum, default_value_t = PortChoice::Auto)]
    ports: PortChoice,
    /// Have Chutney run this network file, which says what relays there are; $CHUTNEY_PATH is its checkout.
    #[arg(long, value_name = "NETWORK_FILE", env = "TESTNET_CHUTNEY")]
    chutney: Option<PathBuf>,
}

/// Ports of the origins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PortChoice {
    /// 80 and 443 where this process may bind them, otherwise any.
    Auto,
    /// 80 and 443.
    Web,
    /// Any.
    Ephemeral,
}

impl NetworkOptions {
    /// The network that is asked for; its progress goes to stderr.
    pub(crate) fn builder(&self) -> TestNetBuilder {
        let builder = TestNet::builder()
            .latency(self.latency)
            .scheduler(self.scheduler)
            .middles(self.middles)
            .exits(self.exits)
            .progress(say);
        let builder = match &self.chutney {
            Some(network) => builder.chutney(network),
            None => builder,
        };
        self.params.iter().fold(builder, |builder, (name, value)| builder.consensus_param(name, *value))
    }

    /// The origins that are asked for.
    pub(crate) async fn origins(&self, net: &TestNet) -> anyhow::Result<Origins> {
        let on = |ports| Origins::start(OriginsConfig { ports, ..OriginsConfig::on_network(net) });
        let started = match self.ports {
            PortChoice::Ephemeral => on(Ports::EPHEMERAL).await,
            PortChoice::Web => on(Ports::WEB).await,
            PortChoice::Auto => match on(Ports::WEB).await {
                Err(refused) if refused.is_port_refused() => on(Ports::EPHEMERAL).await,
                other => other,
            },
        };
        started.context("the origins did not start")
    }

    /// The same options as arguments, for a process that starts the network instead of this one.
    pub(crate) fn to_args(&self) -> Vec<OsString> {
        let scheduler = match self.scheduler {
            Scheduler::Kist(ms) => format!("kist:{ms}"),
            Scheduler::Vanilla => "vanilla".into(),
        };
        let ports = self.ports.to_possible_value().map(|v| v.get_name().to_owned());
        let mut args = vec![
            format!("--latency={}", humantime::format_duration(self.latency)),
            format!("--scheduler={scheduler}"),
            format!("--middles={}", self.middles),
            format!("--exits={}", self.exits),
        ];
        args.extend(ports.map(|ports| format!("--ports={ports}")));
        args.extend(self.params.iter().map(|(name, value)| format!("--param={name}={value}")));
        let mut args: Vec<OsString> = args.into_iter().map(OsString::from).collect();
        if let Some(network) = &self.chutney {
            // The supervisor has another working directory.
            let network = std::path::absolute(network).unwrap_or_else(|_| network.clone());
            args.extend(["--chutney".into(), network.into()]);
        }
        args
    }
}

fn parse_scheduler(text: &str) -> Result<Scheduler, String> {
    match text.split_once(':') {
        None if text == "vanilla" => Ok(Scheduler::Vanilla),
        // Tor takes 2 to 100 ms.
        Some(("kist", ms)) => match ms.parse() {
            Ok(ms @ 2..=100) => Ok(Scheduler::Kist(ms)),
            _ => Err("kist takes 2 to 100 milliseconds, as in kist:10".into()),
        },
        _ => Err("either `vanilla` or `kist:MS`".into()),
    }
}

fn parse_param(text: &str) -> Result<(String, i32), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE, as in cc_alg=0")?;
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || !name.chars().all(fits) {
        return Err("a name has letters, digits, - and _".into());
    }
    Ok((name.to_owned(), value.parse().map_err(|_| "the value is a whole number of 32 bits")?))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        network: NetworkOptions,
    }

    #[test]
    fn arguments_survive_the_way_to_the_supervisor() {
        let args = [
            "x",
            "--latency=1500us",
            "--scheduler=vanilla",
            "--exits=3",
            "--param=a=-1",
            "--ports=web",
            "--chutney=/n",
        ];
        let first = Only::try_parse_from(args).unwrap().network;
        let again = first.to_args();
        let second = Only::try_parse_from(std::iter::once("x".into()).chain(again)).unwrap().network;
        assert_eq!(format!("{first:?}"), format!("{second:?}"));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["--scheduler=kist:0", "--scheduler=x", "--param=a", "--param=a b=1", "--latency=40"] {
            assert!(Only::try_parse_from(["x", bad]).is_err(), "{bad}");
        }
    }
}
