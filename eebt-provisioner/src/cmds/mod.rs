//! One file for each command.

pub mod attach;
pub mod cost;
pub mod doctor;
pub mod down;
pub mod gc;
pub mod history;
pub mod logs;
pub mod ls;
mod make;
pub mod run;
pub mod status;
pub mod up;

use eebt_provisioner::{Fleet, Instance};

use crate::print::Usage;

/// The instance that the operator named.
fn named(fleet: &Fleet, id: &str) -> anyhow::Result<Instance> {
    let unknown = || Usage::new(format!("ID: no instance {id:?}"), "`eebt ls --all` lists them");
    Ok(fleet.ledger().get(id)?.ok_or_else(unknown)?)
}
