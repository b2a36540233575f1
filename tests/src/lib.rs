//! What the end-to-end cases are written with: one private Tor network with its origins
//! ([`Lab`]), real `eebt-bridge` and `eebt-client` processes on it, and a name server that lies on
//! request ([`Dns`]), and browsers: as people have them ([`Browser`]), and one
//! that is told each click ([`Chromium`]).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // this crate is a test

mod browser;
mod chromium;
mod ctor;
pub mod directory;
mod dns;
mod lab;
mod operator;
mod process;
mod volunteer;

pub use browser::Browser;
pub use chromium::{Chromium, Look, Node};
pub use ctor::{CTor, Control, patched_tor, relay_line};
pub use dns::Dns;
pub use lab::{Bridge, BridgeBuilder, Client, ClientBuilder, Fetched, Lab, Way, circuit_reach, curl};
pub use operator::Operator;
pub use process::{Running, binary, connections_of, peers_of};
pub use volunteer::{Desktop, Volunteer, walk};
