//! `testnet exec -- CMD`: a network for one command.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testnet::State;

use super::StopSignals;
use crate::options::NetworkOptions;

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// The network's folder, which is kept [default: a temporary one, which is not].
    #[arg(long)]
    dir: Option<PathBuf>,
    #[command(flatten)]
    network: NetworkOptions,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl Exec {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let mut signals = StopSignals::new()?;
        let start = async {
            let builder = self.network.builder();
            let net = match &self.dir {
                Some(dir) => builder.dir(dir),
                None => builder,
            };
            let net = net.start().await?;
            let origins = self.network.origins(&net).await?;
            anyhow::Ok((net, origins))
        };
        let (net, origins) = tokio::select! {
            started = start => started?,
            _ = signals.next() => return Ok(ExitCode::FAILURE),
        };
        let code = self.command(&State::of(&net, &origins), &mut signals).await;
        net.shutdown().await?;
        Ok(ExitCode::from(code?))
    }

    /// Runs the command to its end and gives its exit code, as a shell would.
    async fn command(&self, state: &State, signals: &mut StopSignals) -> anyhow::Result<u8> {
        let [program, args @ ..] = &self.command[..] else {
            return Ok(0); // clap requires a command
        };
        let mut child = tokio::process::Command::new(program)
            .args(args)
            .envs(variables(state))
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let status = loop {
            tokio::select! {
                status = child.wait() => break status?,
                signal = signals.next() => {
                    // The terminal sends Ctrl-C to the command too; other signals came to this process alone.
                    if signal != Signal::SIGINT && let Some(pid) = child.id().and_then(|id| id.try_into().ok()) {
                        let _ = kill(Pid::from_raw(pid), signal);
                    }
                }
            }
        };
        let code = status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(1);
        Ok(u8::try_from(code).unwrap_or(1))
    }
}

/// What the command finds in its environment.
fn variables(state: &State) -> Vec<(String, OsString)> {
    let mut variables: Vec<(String, OsString)> = vec![
        ("TESTNET_DIR".into(), state.dir.clone().into()),
        ("TESTNET_NETWORK_FILE".into(), state.network_file.clone().into()),
        ("TESTNET_SOCKS".into(), state.socks.to_string().into()),
        ("TESTNET_EXIT_EGRESS_IP".into(), state.exit_egress_ip.to_string().into()),
        ("TESTNET_CA_FILE".into(), state.ca_file.clone().into()),
    ];
    for (name, origin) in &state.origins {
        let name = name.replace('-', "_").to_uppercase();
        variables.push((format!("TESTNET_{name}_URL"), origin.url.clone().into()));
        variables.push((format!("TESTNET_{name}_ADDR"), origin.addr.to_string().into()));
        if name == "BLOCKING" {
            variables.push(("TESTNET_ORIGIN_URL".into(), origin.url.clone().into()));
        }
    }
    variables
}
