//! What is measured: runtimes, each over a snapshotter.

use crate::scenario::ctr::{OURS, REFERENCE};

/// A runtime over a snapshotter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    /// For the table.
    pub name: &'static str,
    /// As containerd names it.
    pub runtime: &'static str,
    /// As containerd names it.
    pub snapshotter: &'static str,
}

/// What every ratio is to.
pub const GO: Subject =
    Subject { name: "runc.v2", runtime: REFERENCE.runtime, snapshotter: REFERENCE.snapshotter };
/// Our shim on the same snapshotter, so that nothing but the shim differs.
pub const SHIM: Subject =
    Subject { name: "capsule.v1", runtime: OURS.runtime, snapshotter: REFERENCE.snapshotter };
/// Our shim on our snapshotter.
pub const BOTH: Subject = Subject {
    name: "capsule.v1 on capsuled's snapshots",
    runtime: OURS.runtime,
    snapshotter: OURS.snapshotter,
};

/// All.
pub const ALL: [Subject; 3] = [GO, SHIM, BOTH];
/// Those that differ in what does not touch a snapshotter.
pub const SHIMS: [Subject; 2] = [GO, SHIM];
