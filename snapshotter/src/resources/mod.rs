//! Resources: what attachments do to the limits of their containers, and how much of it a node gives.
//!
//! `amount` (what people write, judged and put into the kernel's words) → `model` (grants and caps of an attachment) → `budget`
//! (who may add how much); `ceilings` is what is configured of it; `disks` says which device a limit of I/O is about. The shim carries it out.

mod amount;
mod budget;
mod ceilings;
mod disks;
mod model;

pub use self::{
    amount::{Amount, File, InvalidAmount},
    budget::{Budget, BudgetError, Budgets, Ceilings, Dimension, Holding, Reservation, Scope, Usage, Use},
    ceilings::{Capacity, Ceiling, Configured, Settings},
    disks::{DiskError, Disks},
    model::{Resources, Wanted},
};
