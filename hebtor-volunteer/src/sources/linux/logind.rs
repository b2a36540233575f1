//! logind: who is logged in at this machine, and when did they do something last?

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use zbus::zvariant::OwnedObjectPath;

use super::bus::{Address, Bus, Object};
use super::reopen::{Broken, Open, Reopened};
use crate::sources::{Facts, Source};

const SERVICE: &str = "org.freedesktop.login1";
const MANAGER: Object<'_> =
    Object { service: SERVICE, path: "/org/freedesktop/login1", interface: "org.freedesktop.login1.Manager" };
const SESSION: &str = "org.freedesktop.login1.Session";

/// Asks the logind on this bus. With `has_display`, our own desktop is left to those who see its input:
/// few desktops tell logind of each key, and all tell it late.
///
/// The kernel rounds a terminal's times to 8 seconds, so that to ask often is no use.
pub fn source(bus: Address, has_display: bool) -> impl Source {
    Reopened::new("logind", Duration::from_secs(5), move || {
        Ok(Logind { bus: Bus::open(&bus)?, uid: nix::unistd::getuid().as_raw(), has_display, empty: None })
    })
}

struct Logind {
    bus: Bus,
    uid: u32,
    has_display: bool,
    /// When we first saw that nobody was logged in.
    empty: Option<Instant>,
}

impl Open for Logind {
    fn facts(&mut self) -> Result<Facts, Broken> {
        let sessions = self.sessions()?;
        let idle = if sessions.is_empty() {
            Some(self.empty.get_or_insert_with(Instant::now).elapsed())
        } else {
            self.empty = None;
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            let ours = self.has_display.then_some(self.uid);
            sessions.iter().filter_map(|session| session.idle(now, ours)).min()
        };
        Ok(Facts { idle, ..Facts::default() })
    }
}

impl Logind {
    /// The sessions of people, without those of services and log-in screens.
    fn sessions(&self) -> Result<Vec<Session>, Broken> {
        type Listed = (String, u32, String, String, OwnedObjectPath);
        let listed: Vec<Listed> = self.bus.call(MANAGER, "ListSessions", &())?;
        let mut sessions = Vec::new();
        for (_, uid, _, _, path) in listed {
            let object = Object { service: SERVICE, path: path.as_str(), interface: SESSION };
            // One that ended meanwhile.
            let Ok(mut told) = self.bus.properties(object) else { continue };
            let class: String = told.take("Class").unwrap_or_default();
            if !class.starts_with("user") {
                continue;
            }
            let kind: String = told.take("Type").unwrap_or_default();
            sessions.push(Session {
                uid,
                graphical: ["x11", "wayland", "mir"].contains(&kind.as_str()),
                active: told.take("Active").unwrap_or_default(),
                idle_hint: told.take("IdleHint").unwrap_or_default(),
                since: told.take("IdleSinceHint").map(Duration::from_micros).unwrap_or_default(),
            });
        }
        Ok(sessions)
    }
}

struct Session {
    uid: u32,
    graphical: bool,
    /// In front, at its seat.
    active: bool,
    idle_hint: bool,
    /// Of a terminal: when it was typed into last, idle or not. Of a desktop: when the hint changed. Unix time.
    since: Duration,
}

impl Session {
    /// For how long its person did nothing; `None` if it can't tell, or if it is the desktop of `not_of`.
    fn idle(&self, now: Duration, not_of: Option<u32>) -> Option<Duration> {
        let since = (self.since > Duration::ZERO).then(|| now.saturating_sub(self.since));
        if !self.graphical {
            return since;
        }
        if !self.active || not_of == Some(self.uid) {
            return None;
        }
        // Somebody sits at a desktop that we can't see into.
        if self.idle_hint { since } else { Some(Duration::ZERO) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_000_000);
    const OURS: u32 = 1000;

    fn terminal(ago: u64) -> Session {
        let since = NOW - Duration::from_secs(ago);
        Session { uid: OURS, graphical: false, active: false, idle_hint: false, since }
    }

    fn desktop(uid: u32, idle_hint: bool) -> Session {
        Session { uid, graphical: true, active: true, idle_hint, since: NOW - Duration::from_secs(70) }
    }

    fn idle(session: Session, not_of: Option<u32>) -> Option<u64> {
        session.idle(NOW, not_of).map(|idle| idle.as_secs())
    }

    #[test]
    fn a_terminal_tells_when_it_was_typed_into() {
        assert_eq!(idle(terminal(4), None), Some(4));
        assert_eq!(idle(terminal(4000), Some(OURS)), Some(4000));
        assert_eq!(idle(Session { since: Duration::ZERO, ..terminal(0) }, None), None);
    }

    #[test]
    fn a_desktop_tells_by_its_hint() {
        assert_eq!(idle(desktop(OURS, false), None), Some(0));
        assert_eq!(idle(desktop(OURS, true), None), Some(70));
    }

    #[test]
    fn our_desktop_is_left_to_those_who_see_its_input() {
        assert_eq!(idle(desktop(OURS, false), Some(OURS)), None);
        assert_eq!(idle(desktop(OURS + 1, false), Some(OURS)), Some(0));
    }

    #[test]
    fn nobody_sits_at_a_desktop_in_the_background() {
        assert_eq!(idle(Session { active: false, ..desktop(OURS + 1, false) }, Some(OURS)), None);
    }
}
