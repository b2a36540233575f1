//! GNOME: its compositor counts the time since the last input, under Wayland and under X.

use std::time::Duration;

use super::bus::{Address, Bus, Object};
use super::reopen::{Broken, Open, Reopened};
use crate::sources::{Facts, Source};

const MONITOR: Object<'_> = Object {
    service: "org.gnome.Mutter.IdleMonitor",
    path: "/org/gnome/Mutter/IdleMonitor/Core",
    interface: "org.gnome.Mutter.IdleMonitor",
};

/// Asks the compositor on this bus.
pub fn source(bus: Address) -> impl Source {
    Reopened::new("GNOME", Duration::from_secs(1), move || Bus::open(&bus).map(Mutter))
}

struct Mutter(Bus);

impl Open for Mutter {
    fn facts(&mut self) -> Result<Facts, Broken> {
        let milliseconds: u64 = self.0.call(MONITOR, "GetIdletime", &())?;
        Ok(Facts { idle: Some(Duration::from_millis(milliseconds)), ..Facts::default() })
    }
}
