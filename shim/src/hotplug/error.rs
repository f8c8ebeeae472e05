//! Why a hot-plug call failed, with what to do about it.

use std::{io, path::PathBuf};

use overlayfs_utils::{
    ContainerPath, MountError, NamespaceError, PinError, PlanError, ProbeError, ResolveError, TreeError,
    UpperError, UserNamespaceError,
};
use thiserror::Error;

use super::{
    TaskLookupError,
    model::{AttachmentId, InvalidRequest},
    plan::PlanRefusal,
};
use crate::{
    bundle::BundleError,
    devices::{DeviceError, InvalidRule},
    limits::LimitError,
    oci::RuntimeError,
    seccomp::RecordError,
};

/// Why a call failed. The container is as it was before the call.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The request makes no sense.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// There is no live task.
    #[error(transparent)]
    Task(#[from] TaskLookupError),
    /// The container refuses capsules.
    #[error("container {0:?} takes no capsules: its annotation resourcecapsules.io/enabled is \"false\"")]
    Disabled(String),
    /// The kernel cannot do what capsules need.
    #[error("no capsules on this kernel")]
    Kernel(#[from] ProbeError),
    /// The container's init process could not be pinned or looked at.
    #[error("the container's init process cannot be entered")]
    Pin(#[from] PinError),
    /// The container's root, as the host has it mounted, could not be opened.
    #[error("cannot open the container's root file system {path}")]
    Rootfs {
        /// Where the host has it.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No attachment has this id.
    #[error("no attachment {0} in this container")]
    NoAttachment(AttachmentId),
    /// The id is attached with other content, target or mode.
    #[error("attachment {0} is there already, with other content, target, mode or resources")]
    Conflict(AttachmentId),
    /// The container's runtime is none with which processes could be denied anything.
    #[error("{content} denies system calls, which cannot be denied in this container")]
    Denials {
        /// The capsule.
        content: String,
        /// Why.
        source: RecordError,
    },
    /// The container was made without what it denies.
    #[error(
        "{0} denies system calls, and the container was created without that: start it, then attach; or start it anew"
    )]
    NotCreatedWith(String),
    /// What it writes to is still used by processes that had it before it was detached.
    #[error(
        "what attachment {0} writes to is still in use by processes of the container: attach it when they have ended"
    )]
    StillWritten(AttachmentId),
    /// A layer's directory could not be used.
    #[error("the capsule is incomplete on this node")]
    Layer(#[from] TreeError),
    /// A layer's directory could not be read.
    #[error("cannot read the layer directory {path}")]
    ReadLayer {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The layers make no overlay.
    #[error(transparent)]
    Layers(#[from] PlanError),
    /// The capsule cannot be put where it was to go.
    #[error(transparent)]
    Refused(#[from] PlanRefusal),
    /// The target cannot be used.
    #[error(transparent)]
    Target(#[from] ResolveError),
    /// Something is mounted at the target.
    #[error("{path} is occupied by {by}: choose another target, or detach it first")]
    Occupied {
        /// Where.
        path: ContainerPath,
        /// What is mounted there.
        by: String,
    },
    /// Something is mounted inside the attachment.
    #[error("{by} is mounted inside the attachment, at {path}: detach it first")]
    Nested {
        /// Where.
        path: String,
        /// What.
        by: String,
    },
    /// Something that is not ours is mounted over the attachment.
    #[error("{path} is covered by {by}, which this shim did not mount: unmount it first")]
    Covered {
        /// Where.
        path: ContainerPath,
        /// What.
        by: String,
    },
    /// The container moved directories while the call was at work.
    #[error("{0} changed in the container while the capsule was attached: repeat the call")]
    Raced(ContainerPath),
    /// The kernel refused a mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The container's mount namespace could not be entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The journal could not be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// `/proc` could not be searched for users.
    #[error("cannot search /proc for the users of an attachment")]
    Users(#[source] io::Error),
    /// The kernel says that it is in use, and no process shows how.
    #[error(
        "attachment {0} is in use by something that /proc does not show (a mount of another namespace?): detach it lazily"
    )]
    Busy(AttachmentId),
    /// Its layers are what was written to lies over.
    #[error("attachment {0} is writable: detach it, then attach the other version")]
    Writable(AttachmentId),
    /// What a container writes could not be kept with its owners.
    #[error(
        "a writable attachment in a container with a user namespace of its own needs Linux 6.15 and a file system that can be id-mapped"
    )]
    Owners,
    /// The directory for what is written could not be made or opened.
    #[error("what is written has no place")]
    Upper(#[from] UpperError),
    /// The owners of what is written could not be mapped.
    #[error("the owners of what is written cannot be mapped")]
    UserNamespace(#[from] UserNamespaceError),
    /// The container could not be given devices.
    #[error(transparent)]
    Devices(#[from] DevicesError),
    /// The container's limits could not be changed.
    #[error(transparent)]
    Limits(#[from] LimitError),
    /// Its runtime refused to change them.
    #[error("the runtime did not change the container's limits")]
    Runtime(#[source] RuntimeError),
    /// The directory that overlays need as a second layer could not be made.
    #[error("cannot make the directory {path}")]
    Empty {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl EngineError {
    /// Whether it is of a task that has ended, with all it had.
    #[must_use]
    pub fn is_of_ended_task(&self) -> bool {
        matches!(self, Self::Task(TaskLookupError::NotRunning { .. } | TaskLookupError::NotFound(_)))
    }
}

/// Why a container's devices could not be changed.
#[derive(Debug, Error)]
pub enum DevicesError {
    /// Its control groups are of version 1.
    #[error(
        "devices cannot be attached to a live container on this node: its control groups are of version 1, and that takes version 2 (the unified hierarchy); create the container with its devices"
    )]
    NotUnified,
    /// A node in there cannot be opened, whoever makes it.
    #[error(
        "the container has a user namespace of its own, in which nodes of devices cannot be opened: create it with its devices"
    )]
    UserNamespace,
    /// Its configuration could not be read.
    #[error("the container's own device rules cannot be read")]
    Config(#[source] BundleError),
    /// Its rules are none.
    #[error("the container's own device rules cannot be read")]
    Rules(#[source] InvalidRule),
    /// The device program.
    #[error(transparent)]
    Program(#[from] DeviceError),
    /// The node has not what is to be mounted.
    #[error(
        "the node has no {0}, which the device's CDI spec mounts: have the spec written anew if the driver has changed"
    )]
    NoFile(PathBuf),
    /// The hooks' mount namespace could not be prepared.
    #[error("the container's files cannot be shown to hooks")]
    Stage(#[source] io::Error),
    /// A hook failed.
    #[error("hook {path} failed: {reason}")]
    Hook {
        /// The program.
        path: PathBuf,
        /// How.
        reason: String,
    },
}

/// Why the journal could not be used.
#[derive(Debug, Error)]
pub enum JournalError {
    /// It could not be read.
    #[error("cannot read the journal {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is not what this shim writes.
    #[error("the journal {path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A newer shim wrote it.
    #[error("the journal {path} has format version {found}; this shim reads {known}")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version that is known.
        known: u32,
    },
    /// It could not be written.
    #[error("cannot write the journal {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}
