//! What real servers tell: an X server, buses with what GNOME, logind and NetworkManager would answer, a compositor,
//! and a network that is ours. And a panel, to whose tray we tell something.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "sources/bus.rs"]
mod bus;
#[path = "sources/buses.rs"]
mod buses;
#[path = "sources/child.rs"]
mod child;
#[path = "sources/line.rs"]
mod line;
#[path = "sources/pace.rs"]
mod pace;
#[path = "sources/tray.rs"]
mod tray;
#[path = "sources/wayland.rs"]
mod wayland;
#[path = "sources/x11.rs"]
mod x11;
