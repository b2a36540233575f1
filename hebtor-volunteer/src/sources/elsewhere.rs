//! Windows and macOS: idle time, battery, VPN, and which line it is. The other facts are unknown there.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use starship_battery::{Manager, State};

use super::{Facts, Source};
use crate::router;

/// Sources of a system that is not Linux.
pub(super) fn of_this_machine(_own_bytes: Arc<AtomicU64>) -> Vec<Box<dyn Source>> {
    vec![Box::new(Input), Box::new(Power), Box::new(Line)]
}

/// The system's own count of time since the last input. On Windows that is of our session, and says nothing where nobody can sit at it.
struct Input;

impl Source for Input {
    fn name(&self) -> &'static str {
        "input"
    }

    fn every(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn look(&mut self) -> Facts {
        let at_console =
            !cfg!(windows) || std::env::var_os("SESSIONNAME").is_some_and(|name| name == "Console");
        let idle = at_console.then(|| system_idle_time::get_idle_time().ok()).flatten();
        Facts { idle, ..Facts::default() }
    }
}

/// The batteries.
struct Power;

impl Source for Power {
    fn name(&self) -> &'static str {
        "battery"
    }

    fn every(&self) -> Duration {
        Duration::from_secs(15)
    }

    fn look(&mut self) -> Facts {
        Facts { on_battery: on_battery().ok(), ..Facts::default() }
    }
}

/// The line.
struct Line;

impl Source for Line {
    fn name(&self) -> &'static str {
        "line"
    }

    fn every(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn look(&mut self) -> Facts {
        let vpn = netdev::get_default_interface().ok().map(|interface| interface.is_tun());
        Facts { vpn, line: router::hardware_address(), ..Facts::default() }
    }
}

fn on_battery() -> Result<bool, starship_battery::Error> {
    // One that is almost empty is not called discharging; one that can't be read says nothing.
    let feeds = |state| matches!(state, State::Discharging | State::Empty);
    Ok(Manager::new()?.batteries()?.flatten().any(|battery| feeds(battery.state())))
}
