//! Linux: the display, the buses, and what the kernel says.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::{Elsewhere, Facts, Source};

pub mod battery;
pub mod bus;
pub mod console;
pub mod line;
pub mod logind;
pub mod mutter;
pub mod network_manager;
mod reopen;
pub mod wayland;
pub mod x11;

use bus::Address;

pub(super) fn of_this_machine(own_bytes: Arc<AtomicU64>) -> Vec<Box<dyn Source>> {
    let display = env::var("DISPLAY").ok().filter(|name| !name.is_empty());
    let compositor = compositor();
    let has_display = display.is_some() || compositor.is_some();

    let mut sources: Vec<Box<dyn Source>> = Vec::new();
    if let Some(display) = display {
        // Under Wayland, an X server sees only what people type into X programs.
        sources.push(Box::new(x11::source(display, compositor.is_none())));
    }
    if let Some(socket) = compositor {
        sources.push(Box::new(wayland::source(socket)));
    }
    if has_display {
        sources.push(Box::new(mutter::source(Address::Session)));
    }
    let logins = || logind::source(Address::System, has_display);
    match (logind_runs(), has_display) {
        (true, true) => sources.push(Box::new(Elsewhere(logins()))),
        (true, false) => sources.push(Box::new(logins())),
        (false, true) => sources.push(Box::new(Elsewhere(console::Console::default()))),
        (false, false) => sources.push(Box::new(console::Console::default())),
    }
    sources.push(Box::new(network_manager::source(Address::System)));
    sources.push(Box::new(line::Line::new(own_bytes)));
    sources.push(Box::new(battery::Battery::default()));
    sources
}

/// The folder is how logind (and elogind) says that it runs; images of containers have it without any bus.
fn logind_runs() -> bool {
    Path::new("/run/systemd/seats").exists() && Path::new("/run/dbus/system_bus_socket").exists()
}

/// The socket of the Wayland session that we belong to.
fn compositor() -> Option<PathBuf> {
    let name = env::var_os("WAYLAND_DISPLAY").filter(|name| !name.is_empty()).map(PathBuf::from)?;
    if name.is_absolute() {
        return Some(name);
    }
    env::var_os("XDG_RUNTIME_DIR").map(|folder| Path::new(&folder).join(name))
}
