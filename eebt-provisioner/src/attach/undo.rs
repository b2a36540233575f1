//! What was changed at a tor, written down before it is changed, so that whoever comes next can undo it.
//!
//! What an `eebt attach` that was killed left stays until the next one has mapped its own hosts: meanwhile they must not leave by
//! plain exits. Which hosts these are, tor itself knows.
//!
//! Hosts are mapped by the command MAPADDRESS and not by the option of that name: what the command maps stays when tor reads its
//! torrc again, and no SAVECONF writes it there.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::AttachError;
use super::circuits::{hops, words};
use super::control::{Control, ControlError, Place, Trust};
use crate::folder::StateDir;
use crate::locks::{self, LockError};

/// The option that must not map the same hosts, and the one that is changed: whether tor works with whole descriptors.
pub(super) const MAP: &str = "MapAddress";
pub(super) const MICRODESCRIPTORS: &str = "UseMicrodescriptors";

/// What is known of a tor that was changed.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    place: String,
    /// Another one at the same place was never changed.
    pid: String,
    /// Exit bridges that hosts are sent to, by fingerprint. Not the hosts: they are nobody's business.
    exit_bridges: Vec<String>,
    /// What `UseMicrodescriptors` was.
    microdescriptors: Option<String>,
}

/// The changes at one tor. Only one at a time makes any.
pub(super) struct Undo {
    path: PathBuf,
    record: Record,
    _lock: File,
}

impl Undo {
    /// Begins with a tor. Returns, too, whether an `eebt attach` that was killed left something there.
    pub(super) fn begin(
        dir: &StateDir,
        place: &Place,
        control: &mut Control,
    ) -> Result<(Self, bool), AttachError> {
        let (path, lock) = (file_of(dir, place, "json"), file_of(dir, place, "lock"));
        let lock = locks::lock(&lock, Duration::from_secs(2)).map_err(|error| match error {
            LockError::Held { .. } => AttachError::Attached(place.clone()),
            other => AttachError::Lock(other),
        })?;
        let pid = control.get("process/pid")?;
        let left = read(&path).filter(|left| left.pid == pid);
        let is_left = left.is_some();
        let record = left.unwrap_or_else(|| Record {
            place: place.to_string(),
            pid,
            exit_bridges: Vec::new(),
            microdescriptors: None,
        });
        Ok((Self { path, record, _lock: lock }, is_left))
    }

    /// Circuits and hosts are going to be sent to these exit bridges, besides those before.
    pub(super) fn will_use<'a>(&mut self, to: impl Iterator<Item = &'a str>) -> Result<(), AttachError> {
        for fingerprint in to {
            if !self.record.exit_bridges.iter().any(|known| known == fingerprint) {
                self.record.exit_bridges.push(fingerprint.to_owned());
            }
        }
        self.write()
    }

    /// `UseMicrodescriptors` is going to be changed, and was this.
    pub(super) fn will_set_microdescriptors(&mut self, before: String) -> Result<(), AttachError> {
        self.record.microdescriptors.get_or_insert(before);
        self.write()
    }

    /// Is tor to work with whole descriptors, by our doing?
    pub(super) fn whole_descriptors(&self) -> bool {
        self.record.microdescriptors.is_some()
    }

    /// Leaves tor as it was found.
    pub(super) fn undo(&mut self, control: &mut Control) -> Result<(), AttachError> {
        self.unmap_but(control, &[])?;
        // Used ones, too: any stream could be put on them.
        self.close_circuits(control)?;
        if let Some(before) = &self.record.microdescriptors
            && control.option(MICRODESCRIPTORS)? == ["0"]
        {
            control.set(MICRODESCRIPTORS, before)?;
        }
        self.record.exit_bridges.clear();
        self.record.microdescriptors = None;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(AttachError::Remove { path: self.path.clone(), source: error })
            }
            _ => Ok(()),
        }
    }

    /// Hosts that are mapped by our doing go as they did before, but for these.
    pub(super) fn unmap_but(
        &self,
        control: &mut Control,
        stay: &[(String, String)],
    ) -> Result<(), ControlError> {
        let ours = |to: &str| {
            let fingerprint = to.strip_suffix(".exit").and_then(|rest| rest.rsplit('.').next());
            fingerprint.is_some_and(|found| self.record.exit_bridges.iter().any(|known| known == found))
        };
        let back: Vec<_> = mappings(control)?
            .into_iter()
            .filter(|(from, to)| ours(to) && !stay.iter().any(|(host, _)| host == from))
            .map(|(from, _)| (from.clone(), from))
            .collect();
        if back.is_empty() { Ok(()) } else { control.ask(&command(&back)).map(drop) }
    }

    fn close_circuits(&self, control: &mut Control) -> Result<(), ControlError> {
        let status = control.get("circuit-status")?;
        let ours = status.lines().map(words).filter(|words| {
            let last = words.get(2).and_then(|path| hops(path).pop());
            last.is_some_and(|last| self.record.exit_bridges.iter().any(|known| known == last))
        });
        for circuit in ours {
            let id = circuit.first().unwrap_or(&"");
            // One that is gone by now is no error.
            control.attempt(&format!("CLOSECIRCUIT {id}"))?;
        }
        Ok(())
    }

    fn write(&self) -> Result<(), AttachError> {
        let text = serde_json::to_string(&self.record)
            .map_err(|error| AttachError::Remove { path: self.path.clone(), source: error.into() })?;
        Ok(StateDir::replace_private(&self.path, &text)?)
    }
}

/// Maps hosts, and looks whether tor did.
pub(super) fn map(control: &mut Control, wanted: &[(String, String)]) -> Result<(), AttachError> {
    // What tor says to it is not passed on, for it may name hosts.
    if control.attempt(&command(wanted))? && has(control, wanted)? {
        return Ok(());
    }
    Err(AttachError::Unable("it does not map hosts to exits (MAPADDRESS)"))
}

/// Are these hosts mapped?
pub(super) fn has(control: &mut Control, wanted: &[(String, String)]) -> Result<bool, ControlError> {
    let found = mappings(control)?;
    Ok(wanted.iter().all(|one| found.contains(one)))
}

/// What is mapped by the command, by whomever.
fn mappings(control: &mut Control) -> Result<Vec<(String, String)>, ControlError> {
    let text = control.get("address-mappings/control")?;
    let mapping = |line: &str| {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    };
    Ok(text.lines().filter_map(mapping).collect())
}

fn command(pairs: &[(String, String)]) -> String {
    let pairs: String = pairs.iter().map(|(from, to)| format!(" {from}={to}")).collect();
    format!("MAPADDRESS{pairs}")
}

/// The tors that an `eebt attach` changed and did not change back. Those that somebody is attached to are among them.
pub fn left(dir: &StateDir) -> Vec<Place> {
    let entries = fs::read_dir(dir.attach()).into_iter().flatten().flatten();
    let records =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "json"));
    records.filter_map(|path| read(&path)?.place.parse().ok()).collect()
}

/// Forgets a tor that runs no more: it took the changes with it.
pub fn forget(dir: &StateDir, place: &Place) {
    let _ = fs::remove_file(file_of(dir, place, "json"));
}

/// Undoes what is left at one tor.
///
/// # Errors
/// See [`AttachError`].
pub fn clean(dir: &StateDir, place: &Place, trust: Trust<'_>) -> Result<(), AttachError> {
    match Control::connect(place, trust) {
        Err(error) if error.is_gone() => {
            forget(dir, place);
            Ok(())
        }
        Err(error) => Err(error.into()),
        Ok(mut control) => Undo::begin(dir, place, &mut control)?.0.undo(&mut control),
    }
}

fn read(path: &Path) -> Option<Record> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

fn file_of(dir: &StateDir, place: &Place, extension: &str) -> PathBuf {
    let name = HEXLOWER.encode(&Sha256::digest(place.to_string())[..8]);
    dir.attach().join(name).with_extension(extension)
}
