//! Is the machine on its battery? From /sys/class/power_supply.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sources::{Facts, Source};

/// Reads the kernel's list of power supplies.
pub struct Battery(PathBuf);

impl Default for Battery {
    fn default() -> Self {
        Self("/sys/class/power_supply".into())
    }
}

impl Source for Battery {
    fn name(&self) -> &'static str {
        "battery"
    }

    fn every(&self) -> Duration {
        Duration::from_secs(15)
    }

    fn look(&mut self) -> Facts {
        Facts { on_battery: on_battery(&self.0), ..Facts::default() }
    }
}

/// A battery of the machine empties, and no mains supply is plugged in. A strong machine may empty its
/// battery on the mains too, and a mouse has a battery of its own: neither counts.
fn on_battery(supplies: &Path) -> Option<bool> {
    let (mut empties, mut mains) = (false, false);
    for supply in fs::read_dir(supplies).ok()? {
        let folder = supply.ok()?.path();
        let is = |file: &str, what: &str| {
            fs::read_to_string(folder.join(file)).is_ok_and(|text| text.trim() == what)
        };
        if is("scope", "Device") {
            continue;
        }
        mains |= is("type", "Mains") && is("online", "1");
        empties |= (is("type", "Battery") || is("type", "UPS")) && is("status", "Discharging");
    }
    Some(empties && !mains)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supplies(all: &[(&str, &[(&str, &str)])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, files) in all {
            fs::create_dir(folder.path().join(name)).unwrap();
            for (file, text) in *files {
                fs::write(folder.path().join(name).join(file), format!("{text}\n")).unwrap();
            }
        }
        folder
    }

    const EMPTIES: &[(&str, &str)] = &[("type", "Battery"), ("status", "Discharging")];
    const FULL: &[(&str, &str)] = &[("type", "Battery"), ("status", "Full")];
    const PLUGGED: &[(&str, &str)] = &[("type", "Mains"), ("online", "1")];
    const UNPLUGGED: &[(&str, &str)] = &[("type", "Mains"), ("online", "0")];
    const MOUSE: &[(&str, &str)] = &[("type", "Battery"), ("status", "Discharging"), ("scope", "Device")];

    #[test]
    fn a_battery_that_empties_is_in_use() {
        assert_eq!(on_battery(supplies(&[("BAT0", EMPTIES)]).path()), Some(true));
        assert_eq!(on_battery(supplies(&[("BAT0", EMPTIES), ("AC", UNPLUGGED)]).path()), Some(true));
        assert_eq!(on_battery(supplies(&[("BAT0", FULL), ("BAT1", EMPTIES)]).path()), Some(true));
    }

    #[test]
    fn the_mains_is_no_battery() {
        assert_eq!(on_battery(supplies(&[]).path()), Some(false));
        assert_eq!(on_battery(supplies(&[("BAT0", FULL), ("AC", PLUGGED)]).path()), Some(false));
        assert_eq!(on_battery(supplies(&[("BAT0", EMPTIES), ("AC", PLUGGED)]).path()), Some(false));
    }

    #[test]
    fn a_mouse_has_its_own_battery() {
        assert_eq!(on_battery(supplies(&[("hidpp_battery_0", MOUSE)]).path()), Some(false));
    }

    #[test]
    fn without_the_list_nobody_can_tell() {
        assert_eq!(on_battery(Path::new("/nowhere")), None);
    }
}
