//! What an attachment is, on record. Pure: no I/O.

use std::{fmt, path::PathBuf, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::{
    capsules::model::{CapsuleName, Digest, Mode, OrNone, Version, or_none},
    devices::Edits,
    resources::{Holding, Resources},
    uppers::model::{Fate, Upper},
};

/// How many versions a rollback can go back.
pub const HISTORY: usize = 16;

/// A container, in all of containerd's namespaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerKey {
    /// containerd namespace.
    pub namespace: String,
    /// Container id.
    pub id: String,
}

impl fmt::Display for ContainerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.id)
    }
}

/// One version as it is (or was) mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The version.
    #[serde(deserialize_with = "or_none")]
    pub version: Version,
    /// Its identity.
    #[serde(deserialize_with = "or_none")]
    pub digest: Digest,
    /// Its lower directories on the node, topmost first.
    pub layers: Vec<PathBuf>,
    /// When it was attached.
    pub since: SystemTime,
    /// What it is to do to the container's limits, declared or asked for: disks by the names that were written.
    #[serde(default)]
    pub wanted: Resources,
    /// What it does to them while it is mounted: disks by the numbers that they have until the node is restarted.
    #[serde(default)]
    pub resources: Resources,
    /// Variables of processes that are started while it is mounted, as `NAME=VALUE`.
    #[serde(default)]
    pub env: Vec<String>,
    /// System calls that those processes are denied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub denied: Vec<String>,
}

/// How far an attachment is. Everything but [`Phase::Attached`] and [`Phase::Waiting`] is an intent: written before its
/// effect, so that a restarted capsuled knows what it may find half done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "one of each attachment, beside contents that are as large")]
pub enum Phase {
    /// The shim is asked to mount it.
    Attaching,
    /// It is mounted.
    Attached,
    /// The shim is asked to put `current` in the place of what is mounted; `history` is what will be behind it.
    Replacing {
        /// What will be mounted.
        current: Content,
        /// What Rollback will go back to then, oldest first.
        history: Vec<Content>,
    },
    /// The shim is asked to unmount it.
    Detaching {
        /// Even if it is in use.
        lazy: bool,
        /// What becomes of what was written, where something was that has no name.
        #[serde(default)]
        fate: Option<Fate>,
    },
    /// The task it was in has ended. The container's next task has it again, before its first process runs; it is on
    /// its way there, or never will be, until that task's shim says that it is mounted.
    Waiting,
}

/// The call that an intent is part of: its intents are carried out together, or none of them is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Unique on this node, for ever.
    pub id: String,
    /// It is not done until the container has been found to be well.
    pub trial: bool,
}

/// Devices of an attachment: what they asked for when they were attached, whatever their specs say since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Devices {
    /// Their CDI names.
    pub names: Vec<String>,
    /// What they ask for.
    pub edits: Edits,
    /// Others' device programs are left alone.
    pub refuse_foreign: bool,
}

/// The record of one attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Unique on this node, for ever.
    pub id: String,
    /// The container.
    pub container: ContainerKey,
    /// When the container was created, if that was known: a later one of the same id is another.
    #[serde(default)]
    pub created: Option<SystemTime>,
    /// The entry of the container's annotation that asked for it; none if a person did.
    #[serde(default)]
    pub named: Option<String>,
    /// The capsule; none ([`OrNone`]) for an attachment of devices alone, which has neither a content nor a target.
    #[serde(deserialize_with = "or_none")]
    pub capsule: CapsuleName,
    /// The devices that it has.
    #[serde(default)]
    pub devices: Option<Devices>,
    /// Where in the container.
    pub target: String,
    /// How.
    pub mode: Mode,
    /// What it writes to; none for one that is read-only.
    #[serde(default)]
    pub upper: Option<Upper>,
    /// What was asked for of limits, whatever its versions say of them.
    #[serde(default)]
    pub asked: Resources,
    /// What is mounted, as far as this record knows.
    pub current: Content,
    /// What Rollback goes back to, oldest first; at most [`HISTORY`].
    pub history: Vec<Content>,
    /// It has had another version: one that left may still be draining.
    #[serde(default)]
    pub replaced: bool,
    /// How far.
    pub phase: Phase,
    /// The call under way; none for what is no intent, and for an intent that is the only one of its call.
    #[serde(default)]
    pub call: Option<Call>,
}

impl Attachment {
    /// The name under which its snapshots are pinned.
    pub fn pin_owner(&self) -> String {
        format!("attachment {} of {} in {}", self.id, self.capsule, self.container)
    }

    /// `capsule@version`, or the names of devices alone.
    pub fn label(&self) -> String {
        match self.has_capsule() {
            true => format!("{}@{}", self.capsule, self.current.version),
            false => self.device_names().join(", "),
        }
    }

    /// Whether it is of a capsule, and not of devices alone.
    pub fn has_capsule(&self) -> bool {
        self.capsule != CapsuleName::none()
    }

    /// CDI names of its devices.
    pub fn device_names(&self) -> &[String] {
        self.devices.as_ref().map_or(&[], |devices| &devices.names)
    }

    /// What it holds of budgets: what is mounted now, and what is about to be, by whose version it is called.
    pub fn holding(&self, pod: Option<String>) -> Holding {
        let label = match &self.phase {
            Phase::Replacing { current, .. } => format!("{}@{}", self.capsule, current.version),
            Phase::Attaching | Phase::Attached | Phase::Detaching { .. } | Phase::Waiting => self.label(),
        };
        Holding::new(&self.id, &self.container, pod, label, self.in_force())
    }

    /// Whether it holds anything of a budget.
    pub fn grants(&self) -> bool {
        self.in_force().any(|resources| !resources.grants.is_empty())
    }

    /// Whether it changes limits.
    pub fn changes_limits(&self) -> bool {
        self.in_force().any(|resources| !resources.is_empty())
    }

    fn in_force(&self) -> impl Iterator<Item = &Resources> {
        let next = match &self.phase {
            Phase::Replacing { current, .. } => Some(&current.resources),
            Phase::Attaching | Phase::Attached | Phase::Detaching { .. } | Phase::Waiting => None,
        };
        [&self.current.resources].into_iter().chain(next)
    }

    /// All contents whose directories the record needs.
    pub fn contents(&self) -> impl Iterator<Item = &Content> {
        let next = match &self.phase {
            Phase::Replacing { current, .. } => Some(current),
            Phase::Attaching | Phase::Attached | Phase::Detaching { .. } | Phase::Waiting => None,
        };
        let all = self.history.iter().chain([&self.current]).chain(next);
        all.filter(|content| content.version != Version::none())
    }
}
