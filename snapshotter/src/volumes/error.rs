//! What can go wrong with volumes.

use std::{io, path::PathBuf};

use overlayfs_utils::{
    InvalidPath, MountError, NamespaceError, PinError, PlanError, ProbeError, ResolveError, TreeError,
    UpperError as PlaceError,
};

use super::model::VolumeId;
use crate::{
    capsules::{CapsuleError, model::CapsuleName},
    uppers::UpperError,
};

/// A call that failed. Unless it says otherwise it has changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Not an id.
    #[error(
        "{0:?} is no id of a volume: [STACK/]NAME, of lower-case letters, digits, '.', '_' and '-', a letter or digit first and last, 128 bytes at most"
    )]
    Id(String),
    /// It contradicts itself.
    #[error("volume {id} is {what}")]
    Spec {
        /// Which.
        id: VolumeId,
        /// How.
        what: &'static str,
    },
    /// There is none.
    #[error("there is no volume {0}: see \"capsulectl volumes\"")]
    Unknown(VolumeId),
    /// It is to be written to, and nobody made it.
    #[error(
        "volume {0} is to be written to, and is not on this node: make it first; what was written elsewhere is there"
    )]
    NotMade(VolumeId),
    /// There is one that is otherwise.
    #[error("volume {id} is there already, and {how}: remove it, or choose another id")]
    Exists {
        /// Which.
        id: VolumeId,
        /// What is not as it is asked for.
        how: String,
    },
    /// It is mounted.
    #[error("volume {id} is mounted at {path}: unmount it first")]
    Mounted {
        /// Which.
        id: VolumeId,
        /// Where.
        path: String,
    },
    /// It is written to: two mounts of two versions would not see each other's writes.
    #[error(
        "volume {id} is written to, and mounted at {path}: it can have another version when it is mounted nowhere"
    )]
    Written {
        /// Which.
        id: VolumeId,
        /// Where.
        path: String,
    },
    /// A directory has no versions.
    #[error("volume {0} is of no capsule, and has no version")]
    NoCapsule(VolumeId),
    /// Processes still use it.
    #[error("volume {0} is mounted nowhere, and processes still use it: end them first")]
    InUse(VolumeId),
    /// Not where volumes may be.
    #[error(
        "{0} is not where volumes may be mounted on this node: below {1} (volumes.below of capsuled's configuration)"
    )]
    Elsewhere(PathBuf, String),
    /// More than one that nobody has to ask for may have.
    #[error(
        "volume {id} is to hold {size} bytes, and one that goes with its mount holds {most} at most on this node (volumes.ephemeral of capsuled's configuration): ask for less, or make a volume that stays"
    )]
    TooLarge {
        /// Which.
        id: VolumeId,
        /// What was asked for.
        size: u64,
        /// What it may have.
        most: u64,
    },
    /// Something else is mounted there.
    #[error("something else is mounted at {0}: unmount it, or choose another path")]
    Occupied(PathBuf),
    /// Not a path.
    #[error("{path:?} is no path of a volume: {source}")]
    Path {
        /// What was given.
        path: String,
        /// Why.
        source: InvalidPath,
    },
    /// Where it is to be cannot be found.
    #[error("the path of volume {id}")]
    Target {
        /// Which.
        id: VolumeId,
        /// Why.
        #[source]
        source: ResolveError,
    },
    /// A part of it is bound, and the other version has no such directory.
    #[error(
        "{part} of volume {id} is mounted at {at} by itself (a subPath), and {capsule}@{version} has no such directory"
    )]
    Part {
        /// Which volume.
        id: VolumeId,
        /// Which part.
        part: String,
        /// Where.
        at: String,
        /// The capsule.
        capsule: CapsuleName,
        /// The version.
        version: String,
    },
    /// Mounts of the node changed while they were replaced.
    #[error("mounts of volume {0} change faster than they can be replaced: try again")]
    Unstable(VolumeId),
    /// The kernel.
    #[error("mounts of volume {id}")]
    Mount {
        /// Which.
        id: VolumeId,
        /// Why.
        #[source]
        source: MountError,
    },
    /// The node's mounts.
    #[error("the node's own mounts, as process 1 sees them (a container needs the node's process ids): {0}")]
    Node(#[from] PinError),
    /// Likewise.
    #[error("the node's own mounts: {0}")]
    Namespace(#[from] NamespaceError),
    /// What the kernel cannot do.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// A layer.
    #[error(transparent)]
    Layer(#[from] TreeError),
    /// Layers.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// What is written.
    #[error("what is written to volume {id}")]
    Place {
        /// Which.
        id: VolumeId,
        /// Why.
        #[source]
        source: PlaceError,
    },
    /// A record or `/proc`.
    #[error("cannot {step} {}", path.display())]
    Disk {
        /// What was to be done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A thread.
    #[error("a thread of volume {0} ended before its work")]
    Thread(VolumeId),
    /// What is written, on disk.
    #[error(transparent)]
    Upper(#[from] UpperError),
    /// The capsule.
    #[error(transparent)]
    Capsule(#[from] CapsuleError),
}
