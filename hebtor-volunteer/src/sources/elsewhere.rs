//! Windows and macOS: idle time, battery, and which line it is. The other facts are unknown there.

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

/// The system's own count of time since the last input.
struct Input;

impl Source for Input {
    fn name(&self) -> &'static str {
        "input"
    }

    fn every(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn look(&mut self) -> Facts {
        Facts { idle: system_idle_time::get_idle_time().ok(), ..Facts::default() }
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
        Facts { line: router::hardware_address(), ..Facts::default() }
    }
}

fn on_battery() -> Result<bool, starship_battery::Error> {
    for battery in Manager::new()?.batteries()? {
        if battery?.state() == State::Discharging {
            return Ok(true);
        }
    }
    Ok(false)
}
