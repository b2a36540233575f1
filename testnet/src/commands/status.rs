//! `testnet status`: exit code 0 when the network is up, 1 when it is not.

use std::process::ExitCode;

use clap::Args;
use testnet::State;

use crate::options::DirOption;
use crate::output::{data, summary};

#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    dir: DirOption,
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let dir = self.dir.path();
        let state = State::load(&dir)?;
        let starting = state.is_none() && State::supervisor(&dir)?.is_some();
        let text = match &state {
            _ if self.json => {
                let status = match &state {
                    Some(_) => "up",
                    None if starting => "starting",
                    None => "down",
                };
                serde_json::to_string_pretty(&serde_json::json!({ "status": status, "network": state }))?
            }
            Some(state) => summary(state),
            None if starting => format!("a network is starting or stopping in {}", dir.display()),
            None => format!("no network is up in {}", dir.display()),
        };
        data(&text)?;
        Ok(if state.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
