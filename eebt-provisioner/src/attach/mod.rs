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

mod ask;
mod chosen;
mod circuits;
mod control;
mod exit_bridge;
#[cfg(test)]
mod fake;
mod pace;
mod undo;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

pub use ask::{Asker, Asking};
pub use chosen::Chosen;
use circuits::{Became, Circuits, stem};
pub use control::{Control, ControlError, Place, Trust};
pub use exit_bridge::{ExitBridge, descriptors};
use pace::Pace;
use undo::{MAP, MICRODESCRIPTORS, Undo};
pub use undo::{clean, left};

use crate::folder::{FolderError, StateDir};
use crate::locks::LockError;

/// Circuits kept ready for each exit bridge that has hosts: browsers open some sites at once, each by its own.
const SPARES: usize = 2;
/// Between requests for a circuit of tor's own.
const ROOTS: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(300));
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
    /// The person has plans for a host. Which one, no log should have.
    #[error("MapAddress: tor maps one of the chosen hosts already, to somewhere else")]
    Taken,
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
    /// It went wrong while hosts were mapped, and they stay so.
    #[error(
        "nobody sees to it any more that chosen hosts get through, and they go no other way than by exit bridges"
    )]
    Left(#[source] Box<AttachError>),
}

impl AttachError {
    /// What to try.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Control(error) => Some(error.hint()),
            Self::Attached(_) => Some("give that one all hosts and bridge lines; it ends at Ctrl-C"),
            Self::NotReady(_) => Some("does it reach the Tor network? its own log tells"),
            Self::Taken => Some("take the line out of torrc, or leave this host out"),
            Self::Unable(_) => Some("eebt-client needs no tor of yours, and does all of this by itself"),
            Self::Descriptor { .. } => Some("is this machine's clock right?"),
            Self::Left(_) => {
                Some("`eebt attach` again goes on with it; `eebt attach --undo` has them go as before")
            }
            Self::Lock(_) | Self::Folder(_) | Self::Remove { .. } | Self::Stopped => None,
        }
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

/// What a person wants of a tor.
pub struct Wanted {
    /// Exit bridges, of which one at least must serve.
    pub exit_bridges: Vec<ExitBridge>,
    /// The hosts that leave through them.
    pub chosen: Vec<Chosen>,
    /// Where new server descriptors come from, as tor forgets them after two days.
    pub asker: Option<Asker>,
}

/// A tor that uses exit bridges.
pub struct Attachment {
    control: Control,
    undo: Undo,
    exit_bridges: Vec<ExitBridge>,
    chosen: Vec<Chosen>,
    asker: Option<Asker>,
    /// This exit bridge is being asked for a new server descriptor.
    asking: Option<(usize, Asking)>,
    circuits: Circuits,
    /// Which host is mapped to what.
    mapped: Vec<(String, String)>,
    /// When a circuit of tor's own is asked for, so that there are guard and middle to take from it.
    roots: Pace,
    left_out: Vec<AttachError>,
}

impl Attachment {
    /// Makes tor use exit bridges for these hosts. `progress` hears what is waited for. Returns, too, whether it went on
    /// from what an earlier one left.
    ///
    /// # Errors
    /// See [`AttachError`]; tor is then as it was found.
    pub fn begin(
        dir: &StateDir,
        place: &Place,
        mut control: Control,
        wanted: Wanted,
        stop: &AtomicBool,
        progress: &dyn Fn(&str),
    ) -> Result<(Self, bool), AttachError> {
        let (undo, is_left) = Undo::begin(dir, place, &mut control)?;
        let mut attachment = Self {
            control,
            undo,
            exit_bridges: wanted.exit_bridges,
            chosen: wanted.chosen,
            asker: wanted.asker,
            asking: None,
            circuits: Circuits::default(),
            mapped: Vec::new(),
            roots: Pace::new(ROOTS.0, ROOTS.1),
            left_out: Vec::new(),
        };
        match attachment.set_up(stop, progress) {
            Ok(()) => Ok((attachment, is_left)),
            // What hosts were promised before still holds.
            Err(error) if is_left && !matches!(error, AttachError::Stopped) => {
                Err(AttachError::Left(Box::new(error)))
            }
            Err(error) => {
                // The first error is the one to tell; the record stays if this fails, too.
                let _ = attachment.undo();
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
        self.undo.will_use(self.exit_bridges.iter().map(ExitBridge::fingerprint))?;
        self.post_all()?;
        self.take_last_hops(stop, progress)?;
        self.map()?;
        self.undo.unmap_but(&mut self.control, &self.mapped)?;
        self.close_streams()?;
        Ok(())
    }

    /// Gives tor the descriptors. Exit bridges whose one it does not take are left out, unless these are all.
    fn post_all(&mut self) -> Result<(), AttachError> {
        for index in 0..self.exit_bridges.len() {
            match self.post(index) {
                Err(error @ AttachError::Descriptor { .. }) => {
                    if let Some(exit_bridge) = self.exit_bridges.get_mut(index) {
                        exit_bridge.ended = true;
                    }
                    self.left_out.push(error);
                }
                other => other?,
            }
        }
        match self.left_out.pop() {
            Some(last) if self.exit_bridges.iter().all(|one| one.ended) => Err(last),
            last => {
                self.left_out.extend(last);
                Ok(())
            }
        }
    }

    /// Gives tor the descriptor of one exit bridge: the first one that it takes, or has already.
    fn post(&mut self, index: usize) -> Result<(), AttachError> {
        let Some(exit_bridge) = self.exit_bridges.get(index) else { return Ok(()) };
        let mut why = String::new();
        for descriptor in &exit_bridge.descriptors {
            match self.control.ask_with("POSTDESCRIPTOR purpose=controller cache=no", descriptor) {
                Ok(said) => why = said.join(" "),
                Err(ControlError::Refused { text, .. }) => why = text,
                Err(error) => return Err(error.into()),
            }
            // Tor says the same of one that it has and of one that it does not want.
            match self.control.get(&format!("desc/id/{}", exit_bridge.fingerprint)) {
                Ok(known) if exit_bridge.fits(&known).is_ok() => return Ok(()),
                Ok(_) | Err(ControlError::Refused { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(AttachError::Descriptor { fingerprint: exit_bridge.fingerprint.clone(), why })
    }

    /// Sees to it that tor extends circuits to them: tries it, and if it must be, has tor work with whole descriptors.
    fn take_last_hops(&mut self, stop: &AtomicBool, progress: &dyn Fn(&str)) -> Result<(), AttachError> {
        let until = Instant::now() + PATIENCE;
        for index in (0..self.exit_bridges.len()).cycle() {
            if !self.exit_bridges.iter().any(ExitBridge::serves) {
                return Err(no_exit_bridge());
            }
            let Some(exit_bridge) = self.exit_bridges.get(index).filter(|one| one.serves()) else { continue };
            let fingerprint = exit_bridge.fingerprint.clone();
            match self.lay(index) {
                Ok(true) => return Ok(()),
                Ok(false) => progress("waiting for a circuit of tor's own"),
                Err(AttachError::Control(ControlError::Refused { code: 552, text, .. }))
                    if text.contains(&fingerprint) =>
                {
                    self.have_whole_descriptors(stop, progress)?;
                }
                // Tor knows too little of guard or middle just now, or they have left.
                Err(AttachError::Control(ControlError::Refused { code: 551 | 552, .. })) => {}
                Err(error) => return Err(error),
            }
            if stop.load(Ordering::Relaxed) {
                return Err(AttachError::Stopped);
            }
            if Instant::now() > until {
                break;
            }
            let mut wait = TICK;
            while let Some(event) = self.control.event(wait)? {
                wait = Duration::ZERO;
                self.hear(&event);
            }
        }
        Err(AttachError::NotReady("it makes no circuits that could be lengthened".into()))
    }

    /// Has tor work with whole descriptors, if it does not.
    fn have_whole_descriptors(
        &mut self,
        stop: &AtomicBool,
        progress: &dyn Fn(&str),
    ) -> Result<(), AttachError> {
        let before = self.control.option(MICRODESCRIPTORS)?.pop().unwrap_or_else(|| "auto".into());
        if before == "0" {
            return Ok(());
        }
        self.undo.will_set_microdescriptors(before)?;
        self.control.set(MICRODESCRIPTORS, "0")?;
        self.wait(stop, progress, "tor to fetch whole descriptors", |control| {
            let enough = control.get("status/enough-dir-info")?;
            Ok(if enough == "1" { None } else { Some("not enough of them yet".into()) })
        })?;
        self.post_all()
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
        let now = Instant::now();
        let Some((guard, middle)) = stem(&mut self.control, &exit_bridge.addresses, &self.circuits)? else {
            // A path by tor's own rules, whose beginning can be had.
            if self.roots.is_due(now) {
                self.roots.failed(now);
                self.control.ask("EXTENDCIRCUIT 0")?;
            }
            return Ok(false);
        };
        self.roots.succeeded();
        let made =
            self.control.ask(&format!("EXTENDCIRCUIT 0 {guard},{middle},{}", exit_bridge.fingerprint))?;
        let id = made.first().and_then(|line| line.strip_prefix("EXTENDED "));
        let id = id.ok_or(ControlError::Malformed("EXTENDCIRCUIT"))?;
        self.circuits.made(id.to_owned(), index, now);
        Ok(true)
    }

    /// Sends each host to its exit bridge. Where none serves, all stays as it is: streams fail, and go no other way.
    fn map(&mut self) -> Result<(), AttachError> {
        let places: Vec<_> = self.chosen.iter().filter_map(|host| host.place(&self.exit_bridges)).collect();
        if places.len() < self.chosen.len() {
            return if self.mapped.is_empty() { Err(no_exit_bridge()) } else { Ok(()) };
        }
        let places = places.into_iter().filter_map(|index| self.exit_bridges.get(index));
        let mapped: Vec<_> =
            self.chosen.iter().zip(places).flat_map(|(host, at)| host.mapped(&at.fingerprint)).collect();
        for other in self.control.option(MAP)? {
            let from = other.split(' ').next().unwrap_or_default().to_ascii_lowercase();
            let from = Chosen(from.trim_end_matches('.').to_owned());
            if self.chosen.iter().any(|host| from.is_within(host) || host.is_within(&from)) {
                return Err(AttachError::Taken);
            }
        }
        crate::crash_point("mapped-written");
        undo::map(&mut self.control, &mapped)?;
        crate::crash_point("mapped");
        self.mapped = mapped;
        Ok(())
    }

    /// Ends streams to chosen hosts that began before these were mapped: they would go on by plain exits. Programs begin
    /// them again.
    fn close_streams(&mut self) -> Result<(), ControlError> {
        for line in self.control.get("stream-status")?.lines() {
            let [id, _, _, target, ..] = circuits::words(line)[..] else { continue };
            if self.chosen.iter().any(|host| host.is_passed_by(target)) {
                // REASON_MISC; one that is gone by now is no error.
                self.control.attempt(&format!("CLOSESTREAM {id} 1"))?;
            }
        }
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
        let became = self.circuits.hear(event)?;
        self.note(became)
    }

    /// Takes note of what became of a circuit: the exit bridge that has another standing now.
    fn note(&mut self, became: Became) -> Option<usize> {
        let (Became::Built(index) | Became::Used(index) | Became::Unreached(index) | Became::Lost(index)) =
            became
        else {
            return None;
        };
        let (exit_bridge, now) = (self.exit_bridges.get_mut(index)?, Instant::now());
        let is_news = match became {
            Became::Built(_) => exit_bridge.reached(),
            Became::Unreached(_) => {
                exit_bridge.laying.failed(now);
                exit_bridge.failed(now)
            }
            Became::Lost(_) => {
                exit_bridge.laying.failed(now);
                false
            }
            Became::Used(_) | Became::Gone => {
                exit_bridge.used();
                false
            }
        };
        is_news.then_some(index)
    }

    /// Keeps it so until `stop`, then leaves tor as it was found.
    ///
    /// # Errors
    /// [`AttachError::Left`]: hosts stay mapped, for they must not leave by plain exits because something went wrong here.
    pub fn run(mut self, stop: &AtomicBool, tell: &dyn Fn(News<'_>)) -> Result<(), AttachError> {
        let kept = self.keep(stop, tell).and_then(|()| self.undo());
        kept.map_err(|error| AttachError::Left(Box::new(error)))
    }

    fn undo(&mut self) -> Result<(), AttachError> {
        self.undo.undo(&mut self.control)?;
        // Those that do not lead to an exit bridge yet: only we know that they are going to.
        for id in self.circuits.ids() {
            self.control.attempt(&format!("CLOSECIRCUIT {id}"))?;
        }
        Ok(())
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

    /// Sees to spare circuits, to server descriptors, and to exit bridges whose time is over.
    fn keep_up(&mut self, tell: &dyn Fn(News<'_>)) -> Result<(), AttachError> {
        for (id, became) in self.circuits.overdue(Instant::now()) {
            self.control.attempt(&format!("CLOSECIRCUIT {id}"))?;
            if let Some(index) = self.note(became) {
                self.tell_of(index, tell)?;
            }
        }
        self.take_answer()?;
        let (now, clock) = (Instant::now(), SystemTime::now());
        for index in 0..self.exit_bridges.len() {
            let Some(exit_bridge) = self.exit_bridges.get_mut(index) else { break };
            if !exit_bridge.ended && exit_bridge.line.expires.is_some_and(|end| end <= clock) {
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
            if self.circuits.spare(index) < wanted && exit_bridge.laying.is_due(now) {
                self.lay_or_wait(index, now, tell)?;
            }
        }
        Ok(())
    }

    /// Has one more circuit made to an exit bridge; where tor can't, it is told what it lacks, and has some time.
    fn lay_or_wait(
        &mut self,
        index: usize,
        now: Instant,
        tell: &dyn Fn(News<'_>),
    ) -> Result<(), AttachError> {
        let refusal = match self.lay(index) {
            Ok(_) => return Ok(()),
            Err(AttachError::Control(ControlError::Refused { text, .. })) => text,
            Err(error) => return Err(error),
        };
        let Some(exit_bridge) = self.exit_bridges.get_mut(index) else { return Ok(()) };
        exit_bridge.laying.failed(now);
        // Else it is guard or middle that tor knows too little of; it comes back to that by itself.
        if refusal.contains(&exit_bridge.fingerprint) {
            self.ask_anew(index, now);
            let dead = match self.post(index) {
                Err(AttachError::Descriptor { .. }) => {
                    self.exit_bridges.get_mut(index).is_some_and(|exit_bridge| exit_bridge.failed(now))
                }
                other => other.map(|()| false)?,
            };
            if dead {
                self.tell_of(index, tell)?;
            }
        }
        Ok(())
    }

    /// Tor has forgotten a server descriptor, as it does after two days: asks the exit bridge for a new one. One after the other.
    fn ask_anew(&mut self, index: usize, now: Instant) {
        let (Some(exit_bridge), Some(asker), None) =
            (self.exit_bridges.get_mut(index), &self.asker, &self.asking)
        else {
            return;
        };
        if exit_bridge.asking.is_due(now) {
            exit_bridge.asking.failed(now);
            self.asking =
                asker.ask(std::slice::from_ref(&exit_bridge.line)).ok().map(|asking| (index, asking));
        }
    }

    /// Gives tor the new server descriptor, if it has come.
    fn take_answer(&mut self) -> Result<(), AttachError> {
        let Some((index, asking)) = &mut self.asking else { return Ok(()) };
        let (index, Some((texts, _))) = (*index, asking.answer()) else { return Ok(()) };
        self.asking = None;
        let Some(exit_bridge) = self.exit_bridges.get_mut(index) else { return Ok(()) };
        if exit_bridge.take(&descriptors(&texts)).is_err() {
            return Ok(());
        }
        match self.post(index) {
            Err(AttachError::Descriptor { .. }) => Ok(()),
            other => other,
        }
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

    /// The exit bridges that hosts leave through.
    pub fn exit_bridges(&self) -> impl Iterator<Item = &ExitBridge> {
        self.exit_bridges.iter().filter(|exit_bridge| exit_bridge.serves())
    }

    /// Why others were left out.
    pub fn left_out(&self) -> &[AttachError] {
        &self.left_out
    }
}

fn no_exit_bridge() -> AttachError {
    AttachError::NotReady("no exit bridge serves".into())
}

#[cfg(test)]
mod tests;
