//! How `eebt` talks: data on stdout, all else on stderr, and no colour or motion off a terminal.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use eebt_provisioner::cloud::{BuyError, CloudError};
use eebt_provisioner::fleet::{FleetError, News};
use eebt_provisioner::raise::ReserveError;
use eebt_provisioner::{Instance, Provider, State};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// A mistake in what was asked for. Names the field; exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Usage {
    message: String,
    hint: String,
}

impl Usage {
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }
}

/// Something that went wrong, with what to try.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Hinted {
    pub message: String,
    pub hint: Option<String>,
}

/// The one place that prints.
pub struct Printer {
    quiet: bool,
    colour: bool,
    /// On a terminal only.
    progress: ProgressBar,
}

impl Printer {
    pub fn new(quiet: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let moving = terminal && !dumb && !quiet;
        let target = if moving { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let progress = ProgressBar::with_draw_target(None, target);
        // It shows nothing before it is told what.
        progress.finish_and_clear();
        Self { quiet, colour: terminal && !plain && !dumb, progress }
    }

    /// Data, at once. A reader that has gone away (`| head`) is no error.
    pub fn data(&self, text: &str) -> io::Result<()> {
        let written = self.progress.suspend(|| {
            let mut out = io::stdout().lock();
            writeln!(out, "{text}").and_then(|()| out.flush())
        });
        match written {
            Err(err) if err.kind() != io::ErrorKind::BrokenPipe => Err(err),
            _ => Ok(()),
        }
    }

    /// One JSON document.
    pub fn json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        Ok(self.data(&serde_json::to_string_pretty(value)?)?)
    }

    /// One JSON document of several, on a line of its own.
    pub fn json_line(&self, value: &impl Serialize) -> anyhow::Result<()> {
        Ok(self.data(&serde_json::to_string(value)?)?)
    }

    /// What goes on.
    pub fn say(&self, text: impl fmt::Display) {
        if !self.quiet {
            self.talk(text);
        }
    }

    /// What is being done; on a terminal only, until the next one or [`wipe`](Self::wipe).
    pub fn progress(&self, text: impl fmt::Display) {
        self.draw("{spinner} {msg}", None, text);
    }

    /// The same, with how much of it is done.
    pub fn done(&self, done: usize, of: usize, text: impl fmt::Display) {
        self.draw("[{bar:30}] {pos} of {len} {msg}", Some((done, of)), text);
    }

    fn draw(&self, template: &str, done: Option<(usize, usize)>, text: impl fmt::Display) {
        if self.progress.is_finished() {
            self.progress.reset();
        }
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.progress.set_style(style.progress_chars("=> "));
        if let Some((done, of)) = done {
            self.progress.set_length(u64::try_from(of).unwrap_or(u64::MAX));
            self.progress.set_position(u64::try_from(done).unwrap_or(u64::MAX));
        }
        self.progress.set_message(text.to_string());
        self.progress.tick();
    }

    /// Takes the progress off.
    pub fn wipe(&self) {
        self.progress.finish_and_clear();
    }

    fn talk(&self, text: impl fmt::Display) {
        self.progress.suspend(|| {
            let _ = writeln!(io::stderr(), "{text}");
        });
    }

    fn label(&self, label: &str, ansi: &str) -> String {
        if self.colour { format!("\x1b[1;{ansi}m{label}:\x1b[0m") } else { format!("{label}:") }
    }

    /// What went wrong with one of several.
    pub fn failed(&self, text: impl fmt::Display) {
        self.talk(format_args!("{} {text}", self.label("failed", "31")));
    }

    /// What was found out about an instance.
    pub fn news(&self, news: &News) {
        let reason = news.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        self.say(format_args!("{} {} is {}{reason}", self.label("note", "36"), news.id, news.state));
    }

    /// The last words of a command that failed.
    pub fn failure(&self, err: &anyhow::Error) -> ExitCode {
        self.talk(format_args!("{} {err:#}", self.label("error", "31")));
        if let Some(hint) = hint(err) {
            self.talk(format_args!("{} {hint}", self.label("hint", "36")));
        }
        let usage = err.is::<Usage>() || matches!(err.downcast_ref(), Some(ReserveError::Plan(_)));
        ExitCode::from(if usage { 2 } else { 1 })
    }
}

fn hint(err: &anyhow::Error) -> Option<String> {
    if let Some(err) = err.downcast_ref::<Usage>() {
        return Some(err.hint.clone());
    }
    if let Some(err) = err.downcast_ref::<Hinted>() {
        return err.hint.clone();
    }
    match err.downcast_ref::<ReserveError>() {
        Some(ReserveError::Plan(err)) => err.hint(),
        Some(ReserveError::Ledger(err)) => err.hint(),
        None => match (err.downcast_ref::<BuyError>(), err.downcast_ref::<CloudError>()) {
            (Some(err), _) => err.hint(),
            (_, Some(err)) => err.hint.clone(),
            _ => err.downcast_ref::<FleetError>()?.hint(),
        },
    }
}

/// An instance as `--json` shows it. Times are RFC 3339, UTC.
#[derive(Serialize)]
pub struct View<'a> {
    id: &'a str,
    provider: Provider,
    state: State,
    region: Option<&'a str>,
    kind: Option<&'a str>,
    machine: Option<&'a str>,
    address: Option<String>,
    created: String,
    expires: String,
    ended: Option<String>,
    line: Option<&'a str>,
    error: Option<&'a str>,
}

impl<'a> From<&'a Instance> for View<'a> {
    fn from(row: &'a Instance) -> Self {
        Self {
            id: &row.id,
            provider: row.provider,
            state: row.state,
            region: row.region(),
            kind: row.purchase.as_ref().map(|purchase| purchase.kind.as_str()),
            machine: row.purchase.as_ref().and_then(|purchase| purchase.machine.as_deref()),
            address: row.address.map(|address| address.to_string()),
            created: rfc3339(row.created),
            expires: rfc3339(row.expires),
            ended: row.ended.map(rfc3339),
            line: row.line.as_deref(),
            error: row.last_error.as_deref(),
        }
    }
}

pub fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}

/// From `from` to `to`, in its two largest units: `3h 20m`. Nothing if it is not after.
pub fn span(from: SystemTime, to: SystemTime) -> String {
    let secs = to.duration_since(from).unwrap_or(Duration::ZERO).as_secs();
    let (days, hours, minutes) = (secs / 86_400, secs / 3600 % 24, secs / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{secs}s"),
        (0, 0, _) => format!("{minutes}m {}s", secs % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// Columns as wide as their widest cell.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_show_two_units() {
        let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        for (secs, text) in
            [(0, "0s"), (59, "59s"), (61, "1m 1s"), (3600, "1h 0m"), (12_345, "3h 25m"), (200_000, "2d 7h")]
        {
            assert_eq!(span(at(1), at(1 + secs)), text);
        }
        assert_eq!(span(at(5), at(1)), "0s");
    }

    #[test]
    fn tables_are_aligned_without_trailing_blanks() {
        let rows = [vec!["ID".into(), "STATE".into()], vec!["abcdef".into(), "up".into()]];
        assert_eq!(table(&rows), "ID      STATE\nabcdef  up");
    }
}
