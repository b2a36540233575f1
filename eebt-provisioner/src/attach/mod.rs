//! Exit bridges for a C tor that knows nothing of them, Tor Browser's included (`eebt attach`).
//!
//! Tor is given the server descriptor of each exit bridge (POSTDESCRIPTOR), and `MAPADDRESS HOST=HOST.FINGERPRINT.exit`
//! sends the chosen hosts there. Tor does the rest by itself: it attaches streams to circuits, keeps apart what is to be
//! kept apart, and where it can't reach the exit bridge, the stream fails. That holds if we are killed, too: chosen
//! hosts then still go to exit bridges, or nowhere, and tor goes on with all else. What we do meanwhile is to lay
//! [`circuits`] ahead, to give the hosts of an exit bridge that died to another one, and to [`undo`] it all.
//!
//! Unmodified tors take a relay as last hop that is in no consensus only when they work with whole descriptors
//! (`UseMicrodescriptors 0`); that is set where it is needed.

mod chosen;
mod circuits;
mod control;
mod undo;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use data_encoding::{BASE64_NOPAD, HEXUPPER};
use eebt_proto::{BridgeLine, Reach};

pub use chosen::Chosen;
use circuits::{Became, Circuits, stem};
pub use control::{Control, ControlError, Place};
use undo::{MAP, MICRODESCRIPTORS, Undo};
pub use undo::{clean, left};

use crate::folder::{FolderError, StateDir};
use crate::locks::LockError;

/// Circuits kept ready for each exit bridge that has hosts: browsers open some sites at once, each by its own.
const SPARES: usize = 2;
/// So many failures without a stream between them, and an exit bridge counts as dead; it is tried again after the pause,
/// which is twice as long each time, up to the longest one.
const MAX_FAILURES: u32 = 2;
const PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(900);
/// How long tor may take to get ready, and to fetch all descriptors.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two looks where nothing is heard.
const TICK: Duration = Duration::from_millis(250);

/// Why a tor can't use exit bridges.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The control port.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Somebody does it already.
    #[error("another `eebt attach` is at work at {0}")]
    Attached(Place),
    /// The lock.
    #[error("can't know whether another `eebt attach` is at work")]
    Lock(#[source] LockError),
    /// The record of changes.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The record of changes can't be removed.
    #[error("can't write or remove {}", path.display())]
    Remove {
        /// The record.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Tor is not there yet.
    #[error("tor is not ready: {0}")]
    NotReady(String),
    /// Tor is set up so that it can't be.
    #[error("this tor can't use exit bridges: {0}")]
    Unable(&'static str),
    /// The person has plans for this host.
    #[error("MapAddress: tor maps {0:?} already, to somewhere else")]
    Taken(String),
    /// Tor does not like the descriptor.
    #[error("tor does not take the server descriptor of {fingerprint}: {why}")]
    Descriptor {
        /// Whose.
        fingerprint: String,
        /// Tor's words.
        why: String,
    },
    /// We were told to stop.
    #[error("stopped before tor was ready")]
    Stopped,
}

impl AttachError {
    /// What to try.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Control(error) => Some(error.hint()),
            Self::Attached(_) => Some("give that one all hosts and bridge lines; it ends at Ctrl-C"),
            Self::NotReady(_) => Some("does it reach the Tor network? its own log tells"),
            Self::Taken(_) => Some("take the line out of torrc, or leave this host out"),
            Self::Unable(_) => Some("eebt-client needs no tor of yours, and does all of this by itself"),
            Self::Descriptor { .. } => Some("is this machine's clock right?"),
            Self::Lock(_) | Self::Folder(_) | Self::Remove { .. } | Self::Stopped => None,
        }
    }
}

/// An exit bridge, and what is known of it.
pub struct ExitBridge {
    fingerprint: String,
    addresses: Vec<IpAddr>,
    expires: Option<SystemTime>,
    descriptor: String,
    failures: u32,
    dead_until: Option<Instant>,
    ended: bool,
}

impl ExitBridge {
    /// From its bridge line and the server descriptor that it gave. Whether that is signed well, tor will say.
    ///
    /// # Errors
    /// Says what does not fit together.
    pub fn new(line: &BridgeLine, descriptor: &str) -> Result<Self, String> {
        let Reach::Circuit(reach) = &line.reach else {
            return Err("tor can't extend circuits to an onion exit bridge".into());
        };
        let word = |keyword: &str| {
            let found = descriptor.lines().find_map(|line| line.strip_prefix(keyword)?.strip_prefix(' '));
            found.unwrap_or_default().trim_end().trim_end_matches('=').to_owned()
        };
        let fingerprint = HEXUPPER.encode(&reach.rsa);
        let router = word("router");
        let router: Vec<&str> = router.split(' ').collect();
        let address: Option<SocketAddr> = match &router[..] {
            [_, ip, port, ..] => format!("{ip}:{port}").parse().ok(),
            _ => None,
        };
        for (what, fits) in [
            ("fingerprint", word("fingerprint").replace(' ', "") == fingerprint),
            ("master-key-ed25519", word("master-key-ed25519") == BASE64_NOPAD.encode(&reach.ed25519)),
            ("ntor-onion-key", word("ntor-onion-key") == BASE64_NOPAD.encode(&reach.ntor)),
            ("router", address.is_some_and(|address| reach.addresses.contains(&address))),
        ] {
            if !fits {
                return Err(format!(
                    "{what}: its server descriptor says something else than its bridge line"
                ));
            }
        }
        Ok(Self {
            fingerprint,
            addresses: reach.addresses.iter().map(SocketAddr::ip).collect(),
            expires: line.expires,
            descriptor: descriptor.to_owned(),
            failures: 0,
            dead_until: None,
            ended: false,
        })
    }

    /// RSA identity, 40 upper-case hexadecimal digits.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn serves(&self) -> bool {
        !self.ended && self.dead_until.is_none()
    }
}

/// What is worth telling.
#[derive(Debug, PartialEq, Eq)]
pub enum News<'a> {
    /// This exit bridge serves.
    Serves(&'a str),
    /// It does not, so its hosts go to another one, or nowhere if there is none.
    Dead(&'a str),
    /// Its time is over, or it is at its limits; tor, as long as it runs, gives it no more streams.
    Ended(&'a str),
    /// Somebody changed tor's settings, and they are set again.
    SetAgain,
}

/// A tor that uses exit bridges.
pub struct Attachment {
    control: Control,
    undo: Undo,
    exit_bridges: Vec<ExitBridge>,
    chosen: Vec<Chosen>,
    circuits: Circuits,
    /// Which host is mapped to what.
    mapped: Vec<(String, String)>,
    /// A circuit of tor's own was asked for, so that there are guard and middle to take from it.
    asked_at: Option<Instant>,
}

impl Attachment {
    /// Makes tor use exit bridges for these hosts. `progress` hears what is waited for. Returns, too, whether something
    /// was undone that an earlier one left.
    ///
    /// # Errors
    /// See [`AttachError`]; tor is then as it was found.
    pub fn begin(
        dir: &StateDir,
        place: &Place,
        mut control: Control,
        exit_bridges: Vec<ExitBridge>,
        chosen: Vec<Chosen>,
        stop: &AtomicBool,
        progress: &dyn Fn(&str),
    ) -> Result<(Self, bool), AttachError> {
        let (undo, found) = Undo::begin(dir, place, &mut control)?;
        let mut attachment = Self {
            control,
            undo,
            exit_bridges,
            chosen,
            circuits: Circuits::default(),
            mapped: Vec::new(),
            asked_at: None,
        };
        match attachment.set_up(stop, progress) {
            Ok(()) => Ok((attachment, found)),
            Err(error) => {
                // The first error is the one to tell; the record stays if this fails, too.
                let _ = attachment.undo.undo(&mut attachment.control);
                Err(error)
            }
        }
    }

    fn set_up(&mut self, stop: &AtomicBool, progress: &dyn Fn(&str)) -> Result<(), AttachError> {
        if self.control.option("DisableNetwork")? == ["1"] {
            return Err(AttachError::NotReady("its network is switched off (DisableNetwork)".into()));
        }
        if self.control.option("__LeaveStreamsUnattached")? == ["1"] {
            return Err(AttachError::Unable(
                "another controller attaches its streams (__LeaveStreamsUnattached)",
            ));
        }
        self.wait(stop, progress, "tor to connect", |control| {
            let phase = control.get("status/bootstrap-phase")?;
            let summary = phase.split_once("SUMMARY=").map_or("", |(_, summary)| summary).trim_matches('"');
            Ok(if phase.contains("PROGRESS=100") { None } else { Some(summary.to_owned()) })
        })?;
        self.control.ask("SETEVENTS CIRC STREAM CONF_CHANGED")?;
        self.post()?;
        self.take_last_hops(stop, progress)?;
        self.map()
    }

    /// Gives tor the descriptors.
    fn post(&mut self) -> Result<(), AttachError> {
        for exit_bridge in &self.exit_bridges {
            let posted =
                self.control.ask_with("POSTDESCRIPTOR purpose=controller cache=no", &exit_bridge.descriptor);
            posted.map_err(|error| match error {
                ControlError::Refused { text, .. } => {
                    AttachError::Descriptor { fingerprint: exit_bridge.fingerprint.clone(), why: text }
                }
                other => other.into(),
            })?;
        }
        Ok(())
    }

    /// Sees to it that tor extends circuits to them: tries it, and if it must be, has tor work with whole descriptors.
    fn take_last_hops(&mut self, stop: &AtomicBool, progress: &dyn Fn(&str)) -> Result<(), AttachError> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.lay(0) {
                Ok(true) => return Ok(()),
                Ok(false) => progress("waiting for a circuit of tor's own"),
                // Tor knows too little of that guard just now, or it has left.
                Err(AttachError::Control(ControlError::Refused { code: 551, .. })) => {}
                // It may also be guard or middle that tor knows too little of.
                Err(AttachError::Control(ControlError::Refused { code: 552, text, .. }))
                    if !self.exit_bridges.iter().any(|one| text.contains(&one.fingerprint)) => {}
                Err(AttachError::Control(ControlError::Refused { code: 552, .. })) => {
                    if !self.undo.whole_descriptors() {
                        let before =
                            self.control.option(MICRODESCRIPTORS)?.pop().unwrap_or_else(|| "auto".into());
                        self.undo.will_set_microdescriptors(before)?;
                        self.control.set(MICRODESCRIPTORS, "0")?;
                        self.wait(stop, progress, "tor to fetch whole descriptors", |control| {
                            let enough = control.get("status/enough-dir-info")?;
                            Ok(if enough == "1" { None } else { Some("not enough of them yet".into()) })
                        })?;
                        self.post()?;
                    }
                }
                Err(error) => return Err(error),
            }
            if stop.load(Ordering::Relaxed) {
                return Err(AttachError::Stopped);
            }
            if Instant::now() > until {
                return Err(AttachError::NotReady("it makes no circuits that could be lengthened".into()));
            }
            let mut wait = TICK;
            while let Some(event) = self.control.event(wait)? {
                wait = Duration::ZERO;
                self.hear(&event);
            }
        }
    }

    fn wait(
        &mut self,
        stop: &AtomicBool,
        progress: &dyn Fn(&str),
        what: &str,
        mut missing: impl FnMut(&mut Control) -> Result<Option<String>, ControlError>,
    ) -> Result<(), AttachError> {
        let until = Instant::now() + PATIENCE;
        while let Some(why) = missing(&mut self.control)? {
            progress(&format!("waiting for {what}: {why}"));
            if stop.load(Ordering::Relaxed) {
                return Err(AttachError::Stopped);
            }
            if Instant::now() > until {
                return Err(AttachError::NotReady(why));
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    /// Has a circuit made to an exit bridge, if there is a path for it.
    fn lay(&mut self, index: usize) -> Result<bool, AttachError> {
        let Some(exit_bridge) = self.exit_bridges.get(index) else { return Ok(false) };
        let Some((guard, middle)) = stem(&mut self.control, &exit_bridge.addresses, &self.circuits)? else {
            // A path by tor's own rules, whose beginning can be had.
            if self.asked_at.is_none_or(|at| at.elapsed() > PAUSE / 10) {
                self.asked_at = Some(Instant::now());
                self.control.ask("EXTENDCIRCUIT 0")?;
            }
            return Ok(false);
        };
        let made =
            self.control.ask(&format!("EXTENDCIRCUIT 0 {guard},{middle},{}", exit_bridge.fingerprint))?;
        let id = made.first().and_then(|line| line.strip_prefix("EXTENDED "));
        let id = id.ok_or(ControlError::Malformed("EXTENDCIRCUIT"))?;
        self.circuits.made(id.to_owned(), index, Instant::now());
        Ok(true)
    }

    /// Sends each host to its exit bridge. Where none serves, all stays as it is: streams fail, and go no other way.
    fn map(&mut self) -> Result<(), AttachError> {
        let places: Vec<_> = self.chosen.iter().filter_map(|host| host.place(&self.exit_bridges)).collect();
        if places.len() < self.chosen.len() {
            let none = || AttachError::NotReady("no exit bridge serves".into());
            return if self.mapped.is_empty() { Err(none()) } else { Ok(()) };
        }
        let places = places.into_iter().filter_map(|index| self.exit_bridges.get(index));
        let mapped: Vec<_> =
            self.chosen.iter().zip(places).flat_map(|(host, at)| host.mapped(&at.fingerprint)).collect();
        for other in self.control.option(MAP)? {
            let from = other.split(' ').next().unwrap_or_default().to_ascii_lowercase();
            let from = Chosen(from.trim_end_matches('.').to_owned());
            if self.chosen.iter().any(|host| from.is_within(host) || host.is_within(&from)) {
                return Err(AttachError::Taken(from.0));
            }
        }
        self.undo.will_map(self.exit_bridges.iter().map(ExitBridge::fingerprint))?;
        crate::crash_point("mapped-written");
        undo::map(&mut self.control, &mapped)?;
        crate::crash_point("mapped");
        self.mapped = mapped;
        Ok(())
    }

    /// Takes note of an event: the exit bridge that has another standing now.
    fn hear(&mut self, event: &str) -> Option<usize> {
        let given_up = |exit_bridge: &ExitBridge| {
            !exit_bridge.ended && circuits::is_given_up(event, &exit_bridge.fingerprint)
        };
        if let Some(index) = self.exit_bridges.iter().position(given_up) {
            self.exit_bridges.get_mut(index)?.ended = true;
            return Some(index);
        }
        match self.circuits.hear(event)? {
            Became::Built(index) => self.serves(index),
            Became::Used(index) => {
                self.exit_bridges.get_mut(index)?.failures = 0;
                None
            }
            Became::Unreached(index) => self.failed(index),
            Became::Gone => None,
        }
    }

    fn serves(&mut self, index: usize) -> Option<usize> {
        self.exit_bridges.get_mut(index)?.dead_until.take().map(|_| index)
    }

    fn failed(&mut self, index: usize) -> Option<usize> {
        let exit_bridge = self.exit_bridges.get_mut(index)?;
        exit_bridge.failures += 1;
        let alive = exit_bridge.dead_until.is_none();
        if exit_bridge.failures < MAX_FAILURES {
            return None;
        }
        let pause = PAUSE.saturating_mul(1 << (exit_bridge.failures - MAX_FAILURES).min(8));
        exit_bridge.dead_until = Some(Instant::now() + pause.min(LONGEST_PAUSE));
        alive.then_some(index)
    }

    /// Keeps it so until `stop`, then leaves tor as it was found.
    ///
    /// # Errors
    /// See [`AttachError`]. If tor is still there, what could not be undone is undone by whoever attaches next.
    pub fn run(mut self, stop: &AtomicBool, tell: &dyn Fn(News<'_>)) -> Result<(), AttachError> {
        let kept = self.keep(stop, tell);
        if !matches!(kept, Err(AttachError::Control(ControlError::Broken(_)))) {
            for id in self.circuits.ids() {
                // One that is gone by now is no error.
                let _ = self.control.ask(&format!("CLOSECIRCUIT {id} IfUnused"));
            }
            self.undo.undo(&mut self.control)?;
        }
        kept
    }

    fn keep(&mut self, stop: &AtomicBool, tell: &dyn Fn(News<'_>)) -> Result<(), AttachError> {
        while !stop.load(Ordering::Relaxed) {
            self.keep_up(tell)?;
            let mut wait = TICK;
            while let Some(event) = self.control.event(wait)? {
                wait = Duration::ZERO;
                if event.starts_with("CONF_CHANGED") && self.set_again()? {
                    tell(News::SetAgain);
                }
                if let Some(index) = self.hear(&event) {
                    self.tell_of(index, tell)?;
                }
            }
        }
        Ok(())
    }

    fn tell_of(&mut self, index: usize, tell: &dyn Fn(News<'_>)) -> Result<(), AttachError> {
        let Some(exit_bridge) = self.exit_bridges.get(index) else { return Ok(()) };
        let fingerprint = exit_bridge.fingerprint.as_str();
        tell(match (exit_bridge.ended, exit_bridge.serves()) {
            (true, _) => News::Ended(fingerprint),
            (false, true) => News::Serves(fingerprint),
            (false, false) => News::Dead(fingerprint),
        });
        self.map()
    }

    /// Sees to spare circuits, and to exit bridges whose time is over.
    fn keep_up(&mut self, tell: &dyn Fn(News<'_>)) -> Result<(), AttachError> {
        for (id, index) in self.circuits.overdue(Instant::now()) {
            let _ = self.control.ask(&format!("CLOSECIRCUIT {id}"));
            if let Some(index) = self.failed(index) {
                self.tell_of(index, tell)?;
            }
        }
        let (now, clock) = (Instant::now(), SystemTime::now());
        for index in 0..self.exit_bridges.len() {
            let Some(exit_bridge) = self.exit_bridges.get_mut(index) else { break };
            if !exit_bridge.ended && exit_bridge.expires.is_some_and(|end| end <= clock) {
                exit_bridge.ended = true;
                self.tell_of(index, tell)?;
                continue;
            }
            let wanted = match exit_bridge.dead_until {
                _ if exit_bridge.ended => 0,
                // One, to see whether it came back.
                Some(until) if until <= now => 1,
                Some(_) => 0,
                None if self.mapped.iter().any(|(_, to)| to.contains(&exit_bridge.fingerprint)) => SPARES,
                // It is known to work when it is needed.
                None => 1,
            };
            while self.circuits.spare(index) < wanted {
                match self.lay(index) {
                    Ok(true) => {}
                    Ok(false) => break,
                    // Tor knows too little just now; it comes back to it by itself.
                    Err(AttachError::Control(ControlError::Refused { .. })) => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Somebody changed settings, or tor read its torrc again and forgot ours: sets what is missing.
    fn set_again(&mut self) -> Result<bool, AttachError> {
        let mut missing = false;
        if self.undo.whole_descriptors() && self.control.option(MICRODESCRIPTORS)? != ["0"] {
            self.control.set(MICRODESCRIPTORS, "0")?;
            missing = true;
        }
        if !undo::has(&mut self.control, &self.mapped)? {
            undo::map(&mut self.control, &self.mapped)?;
            missing = true;
        }
        Ok(missing)
    }

    /// Which tor it is, and whether it had to be told to work with whole descriptors.
    pub fn tor(&self) -> (&str, bool) {
        (self.control.version(), self.undo.whole_descriptors())
    }

    /// The exit bridges.
    pub fn exit_bridges(&self) -> &[ExitBridge] {
        &self.exit_bridges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit_bridge(fingerprint: &str) -> ExitBridge {
        ExitBridge {
            fingerprint: fingerprint.into(),
            addresses: Vec::new(),
            expires: None,
            descriptor: String::new(),
            failures: 0,
            dead_until: None,
            ended: false,
        }
    }

    #[test]
    fn only_the_hosts_of_a_dead_exit_bridge_move() {
        let mut all: Vec<ExitBridge> = ["A", "B", "C"].map(exit_bridge).into();
        let hosts: Vec<Chosen> = (0..60).map(|n| format!("h{n}.example").parse().unwrap()).collect();
        let places = |all: &[ExitBridge]| hosts.iter().map(|host| host.place(all)).collect::<Vec<_>>();
        let before = places(&all);
        for index in 0..3 {
            assert!(before.iter().filter(|place| **place == Some(index)).count() > 5, "{before:?}");
        }
        all[1].ended = true;
        let after = places(&all);
        for (before, after) in before.iter().zip(&after) {
            assert!(after.is_some_and(|after| after != 1));
            assert!(*before == Some(1) || before == after);
        }
        all.iter_mut().for_each(|one| one.dead_until = Some(Instant::now()));
        assert!(places(&all).iter().all(Option::is_none));
    }
}
