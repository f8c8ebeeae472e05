//! Collecting: which versions go, and their removal.
//!
//! `engine` (calls) and `policy` (by itself) → `users` → `plan` (pure) → [`crate::capsules`], [`crate::attachments`]. A version goes by its image
//! records, which is what keeps it: its blobs and snapshots are containerd's garbage then. Nothing in use goes: who is about to use a version pins it first and asks then whether it is leaving,
//! and who removes one says first that it is leaving and looks then for pins. Tags, leases and labels are looked at again right before the records go, while
//! nobody may tag.

mod engine;
mod plan;
mod policy;
mod users;

pub use self::{
    engine::{CollectError, Collector, Judged},
    plan::{Rules, Verdict},
    policy::{Policy, Watermarks},
};
