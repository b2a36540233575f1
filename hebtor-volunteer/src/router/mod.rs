//! The router of the default route: its address, and its hardware address, which tells one line from another.

#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(not(target_os = "linux"))]
pub use elsewhere::{address, hardware_address};
#[cfg(target_os = "linux")]
pub use linux::{address, hardware_address};
