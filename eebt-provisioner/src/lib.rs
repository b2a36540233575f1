//! Fleets of short-lived exit bridges, from the operator's side.
//!
//! A [`Fleet`] is all that one operator runs: a [`Ledger`](ledger::Ledger) that says what should
//! exist, and a folder for each instance. Every change is a saga: the intent is written down, then
//! each step is done and recorded, and whatever `eebt` runs next finishes or unwinds what it finds
//! ([`Fleet::open`]). Only the holder of an instance's claim acts on it; a claim is a lock on a file,
//! so it ends with the process that took it, however that ends.
//!
//! Read in this order: [`plan`] (what is going to be made), [`raise`] and [`lower`] (the two sagas),
//! [`fleet`] (what is made of the remains of a crashed one), [`local`] (the provider: processes on
//! this machine), [`cloud`] (the providers that cost money, and their saga), [`keep`] (what `eebt run` does about a
//! fleet), [`watch`] (what is seen of exit bridges from outside: [`check`], [`block_list`]). [`attach`] stands apart: it
//! has a C tor use exit bridges.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod attach;
pub mod block_list;
pub mod check;
pub mod cloud;
pub mod fleet;
pub mod folder;
pub mod instance;
pub mod keep;
pub mod ledger;
pub mod local;
pub mod locks;
pub mod lower;
pub mod machine;
pub mod plan;
pub mod raise;
pub mod report;
pub mod watch;

pub use fleet::Fleet;
pub use instance::{Instance, Provider, State};

/// Where a test may let `eebt` die, in the order in which they come up in `up` and in `down`.
#[doc(hidden)]
pub const CRASH_POINTS: (&[&str], &[&str]) = (
    &["planned", "folder", "keys-made", "keys", "config-written", "config", "spawned", "launched", "ready"],
    &["stopping", "signalled", "draining", "gone", "cleared"],
);

/// The same for a machine in a cloud.
#[doc(hidden)]
pub const CLOUD_CRASH_POINTS: (&[&str], &[&str], &[&str]) = (
    &[
        "planned",
        "folder",
        "keys-made",
        "keys",
        "order-written",
        "ordered",
        "bought",
        "launched",
        "addressed",
        "ready",
    ],
    &["stopping", "gone", "cleared"],
    // Where others clean up.
    &["unwound", "order-ended", "adopted"],
);

/// Dies here as from `kill -9`, if `EEBT_CRASH_AT` names this point. In every build, so that the
/// binary that is tested is the one that is shipped.
pub(crate) fn crash_point(name: &str) {
    if std::env::var_os("EEBT_CRASH_AT").is_some_and(|at| at == name) {
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}
