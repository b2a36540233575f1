//! `testnet run`: a network in the foreground.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use testnet::{Origins, State, TestNet};

use super::StopSignals;
use crate::options::{DirOption, NetworkOptions};
use crate::output::{data, say, summary};

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    dir: DirOption,
    #[command(flatten)]
    network: NetworkOptions,
}

impl Run {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let dir = self.dir.path();
        let mut signals = StopSignals::new()?;
        let start = async {
            let net = self.network.builder().dir(&dir).start().await?;
            let origins = self.network.origins(&net).await?;
            anyhow::Ok((net, origins))
        };
        // A signal drops the start half-way, which ends what it had started.
        let (mut net, origins): (TestNet, Origins) = tokio::select! {
            started = start => started?,
            _ = signals.next() => return Ok(ExitCode::FAILURE),
        };
        let state = State::of(&net, &origins);
        state.save()?;
        data(&summary(&state))?;

        let outcome = watch(&mut net, &mut signals).await;
        say("stopping");
        State::remove(net.dir());
        net.shutdown().await?;
        outcome.map(|()| ExitCode::SUCCESS)
    }
}

/// Until a signal, or until a tor ends by itself.
async fn watch(net: &mut TestNet, signals: &mut StopSignals) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            _ = signals.next() => return Ok(()),
            _ = tick.tick() => {}
        }
        if let Err(died) = net.check() {
            // Ctrl-C reaches every process of a terminal; tors may be quicker than this one.
            let stopped = tokio::time::timeout(Duration::from_millis(300), signals.next()).await.is_ok();
            return if stopped { Ok(()) } else { Err(died.into()) };
        }
    }
}
