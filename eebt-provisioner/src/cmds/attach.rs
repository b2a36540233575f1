//! `eebt attach`

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use eebt_proto::{BridgeLine, Reach};
use eebt_provisioner::attach::{
    Asker, AttachError, Attachment, Chosen, Control, ControlError, ExitBridge, News, Place, Trust, Wanted,
    clean, descriptors, left,
};
use eebt_provisioner::{Fleet, State};
use serde_json::json;

use super::make::program;
use super::up::on_signals;
use crate::print::{Hinted, Printer, Usage};

/// Where tors listen, in the order in which they are looked for: Debian's, a plain one's, Tor Browser's.
const PLACES: [&str; 3] = ["/run/tor/control", "127.0.0.1:9051", "127.0.0.1:9151"];

/// The chosen hosts leave that tor through exit bridges, or not at all; all else goes on as before. This goes on until
/// Ctrl-C, and then tor is as it was. If this program fails or is killed meanwhile, hosts stay so: see --undo.
#[derive(clap::Args)]
pub struct Args {
    /// A bridge line [default: those of this fleet]
    #[arg(value_name = "LINE")]
    lines: Vec<BridgeLine>,
    /// A file of bridge lines, one a line; `-` for stdin
    #[arg(long, value_name = "FILE")]
    bridge_file: Option<PathBuf>,
    /// What leaves through them: a host, or *.example.com for that domain and all below it (may be repeated)
    #[arg(long = "for", value_name = "HOST", required_unless_present_any = ["undo", "for_file"])]
    chosen: Vec<Chosen>,
    /// A file of such hosts, one a line, for others on this machine can see what is in a command line; `-` for stdin
    #[arg(long, value_name = "FILE")]
    for_file: Option<PathBuf>,
    /// Tor's control port or control socket [default: /run/tor/control, 127.0.0.1:9051, 127.0.0.1:9151]
    #[arg(long, value_name = "ADDRESS:PORT|PATH")]
    control: Option<Place>,
    /// A file with the password of the control port that --control names, where it has no cookie
    #[arg(long, value_name = "FILE", requires = "control")]
    password_file: Option<PathBuf>,
    /// A file with server descriptors, as `eebt-bridge descriptor` prints them; exit bridges that it does not have are
    /// asked over Tor (may be repeated)
    #[arg(long = "descriptor", value_name = "FILE")]
    descriptors: Vec<PathBuf>,
    /// The program eebt-client, which asks them [default: beside eebt, or in PATH]
    #[arg(long, value_name = "FILE")]
    client_binary: Option<PathBuf>,
    /// Arti settings that name another Tor network, for tests
    #[arg(long, value_name = "FILE")]
    network: Option<PathBuf>,
    /// Only undo what an `eebt attach` that was killed left at tors
    #[arg(long, conflicts_with_all = ["lines", "bridge_file", "chosen", "for_file", "descriptors"])]
    undo: bool,
    /// Print a JSON document for each thing that happens
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self, fleet: &Fleet, printer: &Printer) -> anyhow::Result<()> {
        let password = self.password_file.as_deref().map(|path| read("--password-file", path)).transpose()?;
        let password = password.as_deref().map(|text| text.lines().next().unwrap_or_default());
        if self.undo {
            return self.undo(fleet, printer, self.trust(password));
        }
        let chosen = self.chosen()?;
        let lines = self.lines(fleet)?;
        let stop = on_signals()?;
        let (place, control) = self.connect(password)?;
        for other in left(fleet.dir()).into_iter().filter(|other| *other != place) {
            match clean(fleet.dir(), &other, Trust::Found) {
                Ok(()) => printer.say(format_args!("undid what was left at {other}")),
                Err(AttachError::Attached(_)) => {}
                Err(error) => printer.failed(format_args!("can't undo what was left at {other}: {error}")),
            }
        }
        let (exit_bridges, asker) = self.exit_bridges(fleet, printer, &lines, &stop)?;
        let progress = |text: &str| printer.progress(text);
        let wanted = Wanted { exit_bridges, chosen: chosen.clone(), asker };
        let begun = Attachment::begin(fleet.dir(), &place, control, wanted, &stop, &progress);
        printer.wipe();
        let (attachment, went_on) = begun.map_err(hinted)?;
        for error in attachment.left_out() {
            printer.failed(format_args!("an exit bridge is left out: {error}"));
        }
        if went_on {
            printer.say("went on from what an `eebt attach` before had left");
        }
        let (version, whole) = attachment.tor();
        let known: Vec<&str> = attachment.exit_bridges().map(ExitBridge::fingerprint).collect();
        if self.json {
            printer.json_line(&json!({ "attached": place.to_string(), "tor": version,
                "whole_descriptors": whole, "exit_bridges": known }))?;
        }
        if whole {
            printer.say(
                "this tor takes exit bridges only if it has whole descriptors (UseMicrodescriptors 0); it fetches some \
                 megabytes of them until this ends",
            );
        }
        printer.say(format_args!(
            "ready: {} of tor {version} at {place} leave through {} exit {}; Ctrl-C ends it",
            if chosen.len() == 1 { "one host".into() } else { format!("{} hosts", chosen.len()) },
            known.len(),
            if known.len() == 1 { "bridge" } else { "bridges" },
        ));
        let tell = |news: News<'_>| {
            let (what, text) = match news {
                News::Serves(exit_bridge) => {
                    (json!({ "exit_bridge": exit_bridge, "serves": true }), "serves again")
                }
                News::Dead(exit_bridge) => {
                    (json!({ "exit_bridge": exit_bridge, "serves": false }), "does not serve")
                }
                News::Ended(exit_bridge) => {
                    (json!({ "exit_bridge": exit_bridge, "ended": true }), "has ended")
                }
                News::SetAgain => {
                    (json!({ "set_again": true }), "tor's settings were changed, and are set again")
                }
            };
            if self.json {
                // Who reads may have gone; tor's streams matter more.
                let _ = printer.json_line(&what);
            }
            match what["exit_bridge"].as_str() {
                Some(fingerprint) => printer.say(format_args!("exit bridge {fingerprint} {text}")),
                None => printer.say(text),
            }
        };
        attachment.run(&stop, &tell).map_err(hinted)?;
        printer.say("tor is as it was");
        Ok(())
    }

    /// How far whoever listens at a control port is trusted.
    fn trust<'a>(&self, password: Option<&'a str>) -> Trust<'a> {
        if self.control.is_some() { Trust::Named(password) } else { Trust::Found }
    }

    fn undo(&self, fleet: &Fleet, printer: &Printer, trust: Trust<'_>) -> anyhow::Result<()> {
        let places = left(fleet.dir());
        let places =
            places.into_iter().filter(|place| self.control.as_ref().is_none_or(|only| only == place));
        let mut undone = 0;
        for place in places {
            clean(fleet.dir(), &place, trust).map_err(hinted)?;
            printer.say(format_args!("tor at {place} is as it was"));
            undone += 1;
        }
        if undone == 0 {
            printer.say("nothing is left to undo");
        }
        if self.json {
            printer.json_line(&json!({ "undone": undone }))?;
        }
        Ok(())
    }

    /// All hosts that were given, each once.
    fn chosen(&self) -> anyhow::Result<Vec<Chosen>> {
        let mut chosen = self.chosen.clone();
        if let Some(path) = &self.for_file {
            let text = read("--for-file", path)?;
            chosen.extend(parsed::<Chosen>("--for-file", &text, "a host, or *.example.com")?);
        }
        let mut once: Vec<Chosen> = Vec::new();
        for host in chosen {
            if !once.iter().any(|other| host.is_within(other)) {
                once.retain(|other| !other.is_within(&host));
                once.push(host);
            }
        }
        if once.is_empty() {
            return Err(
                Usage::new("--for-file: it has no host", "one a line: a host, or *.example.com").into()
            );
        }
        Ok(once)
    }

    /// The lines that were given, or else those of the fleet; of circuit exit bridges that have not ended.
    fn lines(&self, fleet: &Fleet) -> anyhow::Result<Vec<BridgeLine>> {
        let mut lines = self.lines.clone();
        if let Some(path) = &self.bridge_file {
            let text = read("--bridge-file", path)?;
            lines.extend(parsed::<BridgeLine>(
                "--bridge-file",
                &text,
                "copy the whole line, as `eebt up` printed it",
            )?);
        }
        let given = !lines.is_empty() || self.bridge_file.is_some();
        if !given {
            let rows = fleet.ledger().live()?;
            let serving = rows.iter().filter(|row| row.state == State::Running);
            lines.extend(serving.filter_map(|row| row.line.as_deref()?.parse().ok()));
        }
        let now = SystemTime::now();
        let (all, ended) = (lines.len(), |line: &BridgeLine| line.expires.is_some_and(|end| end <= now));
        lines.retain(|line| matches!(line.reach, Reach::Circuit(_)) && !ended(line));
        if lines.is_empty() {
            let what = match (all, given) {
                (0, true) => "LINE: there is no bridge line",
                (0, false) => "LINE: this fleet has no exit bridges that serve",
                _ => {
                    "LINE: tor can use circuit exit bridges only, and none of these is one that has not ended"
                }
            };
            return Err(
                Usage::new(what, "`eebt up` starts one; an onion exit bridge needs eebt-client").into()
            );
        }
        Ok(lines)
    }

    fn connect(&self, password: Option<&str>) -> anyhow::Result<(Place, Control)> {
        let mut places: Vec<Place> = self.control.iter().cloned().collect();
        if places.is_empty() {
            places.extend(PLACES.iter().filter_map(|place| place.parse().ok()));
        }
        let mut last = None;
        for place in places {
            match Control::connect(&place, self.trust(password)) {
                Ok(control) => return Ok((place, control)),
                Err(error) if error.is_gone() => last = Some(error),
                Err(error) => return Err(hinted(error.into())),
            }
        }
        let hint = Some(ControlError::HINT_CONNECT.to_owned());
        let message = match (&self.control, last) {
            (Some(_), Some(error)) => eebt_proto::causes(&error),
            _ => format!("--control: no tor listens for controllers at {}", PLACES.join(", ")),
        };
        Err(Hinted { message, hint }.into())
    }

    /// The exit bridges whose server descriptor could be had, and who can be asked for new ones.
    fn exit_bridges(
        &self,
        fleet: &Fleet,
        printer: &Printer,
        lines: &[BridgeLine],
        stop: &AtomicBool,
    ) -> anyhow::Result<(Vec<ExitBridge>, Option<Asker>)> {
        let mut texts = String::new();
        for path in &self.descriptors {
            texts += &read("--descriptor", path)?;
            texts.push('\n');
        }
        let asker = program("eebt-client", "--client-binary", self.client_binary.as_ref())
            .map(|program| Asker { program, dir: fleet.dir().clone(), network: self.network.clone() });
        let (mut found, missing) = matched(lines, &texts);
        if missing.is_empty() {
            return Ok((found, asker.ok()));
        }
        let asker = asker?;
        printer.progress("asking exit bridges for their server descriptors, over Tor");
        let missing: Vec<BridgeLine> = missing.into_iter().map(|(line, _)| line.clone()).collect();
        let answer = asker.ask(&missing)?.wait(stop);
        printer.wipe();
        let (texts, why) = answer.ok_or_else(|| hinted(AttachError::Stopped))?;
        let (more, still) = matched(&missing, &texts);
        found.extend(more);
        for (_, why) in still {
            printer.failed(format_args!("an exit bridge is left out: {why}"));
        }
        if found.is_empty() {
            // It names no exit bridge; control characters could do things to a terminal.
            let why = why.replace(|c: char| c.is_control() && c != '\n', "");
            let last = why
                .lines()
                .rfind(|line| !line.starts_with("hint: "))
                .unwrap_or("eebt-client does not say why");
            return Err(Hinted {
                message: format!("no exit bridge gave its server descriptor: {}", last.trim_start_matches("eebt-client: ")),
                hint: Some("does it serve? its operator can give you what `eebt-bridge descriptor` prints, for --descriptor".into()),
            }
            .into());
        }
        Ok((found, Some(asker)))
    }
}

/// Exit bridges whose descriptor is in a text of some, and lines for which none fits.
fn matched<'a>(lines: &'a [BridgeLine], texts: &str) -> (Vec<ExitBridge>, Vec<(&'a BridgeLine, String)>) {
    let descriptors = descriptors(texts);
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for line in lines {
        match ExitBridge::new(line, &descriptors) {
            Ok(exit_bridge) => found.push(exit_bridge),
            Err(why) => missing.push((line, why)),
        }
    }
    (found, missing)
}

/// What a file has, one a line, but for empty lines and comments.
fn parsed<T: FromStr<Err: fmt::Display>>(field: &str, text: &str, hint: &str) -> anyhow::Result<Vec<T>> {
    let lines = text.lines().map(str::trim).enumerate();
    lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(index, line)| {
            let wrong = |error| Usage::new(format!("{field}: line {}: {error}", index + 1), hint);
            Ok(line.parse().map_err(wrong)?)
        })
        .collect()
}

fn read(field: &str, path: &Path) -> anyhow::Result<String> {
    let failed =
        |error| Usage::new(format!("{field}: {}: {error}", path.display()), "name a file that exists");
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map_err(failed)?;
    } else {
        text = std::fs::read_to_string(path).map_err(failed)?;
    }
    Ok(text)
}

fn hinted(error: AttachError) -> anyhow::Error {
    let hint = error.hint().map(str::to_owned);
    Hinted { message: eebt_proto::causes(&error), hint }.into()
}
