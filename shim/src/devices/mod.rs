//! Which devices a container may open, and how a live one is given more: the device program of its control group (version 2).
//!
//! The program that a runtime made stays what it was, instruction by instruction: ours is a few instructions that allow what
//! was hot-plugged, before all of the container's own (`program`). So rules of the container's own, of the runtime's defaults and
//! of whoever changed the program in the meantime keep their meaning, and taking a device back leaves exactly what was there.
//!
//! Rooms: `rules` (devices, accesses, the list in `config.json`), `runtime` (what runc and crun make of such a list), `program`
//! (instructions), `verdict` (what a program answers), `ledger` (which attachment wants what), `plan` (what is to be changed), `error`: pure;
//! `apply` does it.

mod apply;
mod error;
mod ledger;
mod plan;
mod program;
mod rules;
mod runtime;
mod verdict;

#[cfg(test)]
mod evaluate;
#[cfg(test)]
pub mod tests;

pub use apply::{Applied, apply};
pub use error::DeviceError;
pub use ledger::Ledger;
pub use plan::{Aim, Expected, Policy, Wish};
pub use rules::{Access, Device, DeviceKind, Grant, InvalidRule, parse_rules};
