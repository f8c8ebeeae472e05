//! Attachments: capsules in live containers.
//!
//! `controller`, `moves` and `listing` (calls) with `set` (what goes together), `written` (what is written to them), `devices` (those by themselves, and capsules' own), `limits` (what they do to limits), `environment` (their variables), `drains` (what left its path), `usage` (what containers use), `health` (whether it did), `notices` (what shims see by themselves), `pods` (containers by their names in pods), `called` (what people call containers), `named`, `restore` and `creation` (before a container's first process) and `recovery` (after a restart) → `effects` → {`plan`, `unmet`} (pure) → `records`, `marks`,
//! [`crate::shims`], [`crate::capsules`]. An intent is on record before its effect; the shim's all-or-nothing answer decides whether it
//! becomes the record or is given up; what a crash leaves between is settled by asking the shim.

pub mod called;
pub mod containers;
mod controller;
pub mod creation;
mod devices;
mod drains;
mod effects;
mod environment;
mod error;
pub mod health;
mod ledger;
mod limits;
mod listing;
mod marks;
pub mod model;
mod moves;
mod named;
mod notices;
mod plan;
pub mod pods;
mod records;
mod recovery;
mod restore;
mod set;
mod unmet;
mod usage;
mod watch;
mod words;
mod written;

use std::{collections::BTreeSet, path::Path, sync::Arc};

use crate::{
    capsules::Capsules,
    containerd::Containerd,
    devices::Registry,
    docker::Docker,
    metrics::Meters,
    resources::{Budgets, Disks},
    shims::Shims,
    snapshots::Snapshots,
    uppers::Uppers,
};

use self::{containers::Containers, health::Checks, marks::Marks, notices::LimitsLeft, records::Records};
pub use self::{
    controller::{AttachSpec, Choice},
    devices::{DevicesError, Moment},
    drains::Drains,
    error::AttachmentError,
    health::HealthCheck,
    ledger::Ledger,
    limits::LimitsError,
    listing::Listed,
    moves::{Move, Moved, Outcome},
    set::Planned,
    usage::ContainerUsage,
};

/// The attachment controller of this node: cheap to clone.
#[derive(Clone)]
pub struct Attachments {
    containerd: Containerd,
    containers: Containers,
    capsules: Capsules,
    snapshots: Snapshots,
    shims: Shims,
    ledger: Ledger,
    records: Records,
    marks: Marks,
    checks: Checks,
    uppers: Uppers,
    drains: Drains,
    registry: Arc<Registry>,
    budgets: Budgets,
    disks: Disks,
    limits_left: LimitsLeft,
    meters: Meters,
    /// What is done about others' device programs.
    refuse_foreign: bool,
    /// Kinds of devices that pods may name.
    pods_may_name: Arc<[String]>,
}

impl Attachments {
    /// A controller that knows of no attachment yet: see [`Attachments::recover`]. `run`: the run directory.
    pub fn new(
        containerd: Containerd,
        capsules: Capsules,
        snapshots: Snapshots,
        ledger: Ledger,
        uppers: Uppers,
        run: &Path,
    ) -> Self {
        let marks = Marks::new(run);
        let containers = Containers::new(containerd.clone());
        Self {
            ledger: ledger.naming(containers.clone()),
            containers,
            containerd,
            capsules,
            snapshots,
            shims: Shims::new(run),
            records: Records::new(marks.clone()),
            marks,
            checks: Checks::new(run),
            uppers,
            drains: Drains::default(),
            registry: Arc::default(),
            budgets: Budgets::default(),
            disks: Disks::new(run),
            limits_left: LimitsLeft::default(),
            meters: Meters::default(),
            refuse_foreign: false,
            pods_may_name: Arc::default(),
        }
    }

    /// Knowing what was told to drain.
    #[must_use]
    pub fn with_drains(self, drains: Drains) -> Self {
        Self { drains, ..self }
    }

    /// With the devices that these specs describe. With `refuse_foreign`, others' device programs are left alone.
    #[must_use]
    pub fn with_devices(self, registry: Arc<Registry>, refuse_foreign: bool) -> Self {
        Self { registry, refuse_foreign, ..self }
    }

    /// Whether there is anything that events of containers, or shims, change: something attached, draining, or to be put back.
    pub fn are_any(&self) -> bool {
        !self.records.containers().is_empty() || self.drains.are_any() || self.limits_left.are_any()
    }

    /// With kinds of devices, or `*`, that pods may name by annotation.
    #[must_use]
    pub fn with_devices_for_pods(self, kinds: &[String]) -> Self {
        Self { pods_may_name: kinds.into(), ..self }
    }

    /// With these budgets; `disks` says which disk is meant by a name.
    #[must_use]
    pub fn with_budgets(self, budgets: Budgets, disks: Disks) -> Self {
        Self { budgets, disks, ..self }
    }

    /// Counting with these.
    #[must_use]
    pub fn with_meters(self, meters: Meters) -> Self {
        Self { meters, ..self }
    }

    /// With Docker's containers in these namespaces, and what these dockerds call them.
    #[must_use]
    pub fn with_docker(self, namespaces: &BTreeSet<String>, docker: Docker) -> Self {
        let containers = self.containers.with_docker(namespaces, docker);
        Self { ledger: self.ledger.naming(containers.clone()), containers, ..self }
    }
}

#[cfg(test)]
mod tests;
