//! Talk on stderr, data on stdout.

use std::io::Write;

use testnet::{State, TestNetError};

/// An error with something to try.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct WithHint {
    pub(crate) message: String,
    pub(crate) hint: String,
}

/// One line of talk. A closed stderr is nobody's problem.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// What failed, then what to try.
pub(crate) fn error(error: &anyhow::Error) {
    say(&format!("error: {error:#}"));
    let hint = error.chain().find_map(|cause| {
        cause
            .downcast_ref::<TestNetError>()
            .and_then(TestNetError::hint)
            .or_else(|| Some(cause.downcast_ref::<WithHint>()?.hint.clone()))
    });
    if let Some(hint) = hint {
        say(&format!("hint: {hint}"));
    }
}

/// Data, for a script or a person.
pub(crate) fn data(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

/// A network on one screen.
pub(crate) fn summary(state: &State) -> String {
    let mut lines = vec![
        format!("network      {} ({} relays)", state.dir.display(), state.relays.len()),
        format!("network file {}", state.network_file.display()),
        format!("plain Tor    socks5h://{} (origins see {})", state.socks, state.exit_egress_ip),
        format!("CA file      {}", state.ca_file.display()),
    ];
    for (name, origin) in &state.origins {
        lines.push(format!("origin       {name:<12} {}", origin.url));
    }
    if let Some(blocking) = state.origins.get("blocking") {
        lines.push(format!("try          curl -i --proxy socks5h://{} {}", state.socks, blocking.url));
    }
    lines.push(format!("stop         testnet down --dir {}", state.dir.display()));
    lines.join("\n")
}
