//! What can go wrong with an attachment.

use std::{io, path::PathBuf};

use overlayfs_utils::InvalidPath;

use super::{
    devices::DevicesError,
    limits::LimitsError,
    model::{Attachment, ContainerKey},
    pods::MemberRef,
    words::{
        at_target, by_ids, in_namespace, in_the_pod, list_users, nothing_to_decide, what_to_detach,
        with_targets,
    },
};
use crate::{
    capsules::{
        CapsuleError,
        model::{CapsuleName, ModelError},
    },
    containerd::ContainerdError,
    docker::Unanswered,
    full,
    shims::{ShimError, User},
    store::StoreError,
    uppers::{UpperError, model::UpperName},
};

/// A call on attachments that failed, having changed nothing. Each message names the container and what to do.
#[derive(Debug, thiserror::Error)]
pub enum AttachmentError {
    /// No container has this id or prefix.
    #[error(
        "container {id:?} is not known{}: see \"ctr containers ls\", \"nerdctl ps -a\" or \"docker ps -a\"{}",
        in_namespace(.namespace), by_ids(.unanswered.as_ref())
    )]
    UnknownContainer {
        /// What was asked for.
        id: String,
        /// Where it was looked for; everywhere when empty.
        namespace: String,
        /// Why what Docker calls its containers now is not known.
        unanswered: Option<Unanswered>,
    },
    /// Several containers do.
    #[error("container {id:?} is ambiguous: it could be {}; give more of the id or --namespace", .matches.join(", "))]
    AmbiguousContainer {
        /// What was asked for.
        id: String,
        /// `namespace/id` of each.
        matches: Vec<String>,
    },
    /// No pod has this container.
    #[error("no container is known as {wanted}: {}", in_the_pod(.names))]
    UnknownMember {
        /// What was asked for.
        wanted: MemberRef,
        /// The containers that the pod has.
        names: Vec<String>,
    },
    /// The pod has several containers, and none was named.
    #[error("{wanted} has the containers {}: name one, as {wanted}/{}", .names.join(", "), .names.first().map_or("", String::as_str))]
    WhichMember {
        /// What was asked for.
        wanted: MemberRef,
        /// The containers that the pod has.
        names: Vec<String>,
    },
    /// The container runs on another runtime.
    #[error(
        "container {container} runs on {runtime}, which cannot hot-plug: create it with the runtime io.containerd.capsule.v1 (a pod: with runtimeClassName: capsule)"
    )]
    OtherRuntime {
        /// The container.
        container: ContainerKey,
        /// Its runtime.
        runtime: String,
    },
    /// The container has no running task.
    #[error("container {container} is not running (its task is {state}): start it, then attach")]
    NotRunning {
        /// The container.
        container: ContainerKey,
        /// containerd's word for its task's state, or "not there".
        state: String,
    },
    /// A request for nothing.
    #[error("no capsule is named: say which one to attach")]
    NoSpecs,
    /// An entry of a container's annotation.
    #[error("{entry:?}: {reason} (an entry is NAME[@VERSION][:TARGET[:MODE]])")]
    Named {
        /// The entry.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What is on record of the container may be of an earlier task.
    #[error("the shim of {container} does not say what is attached to it: start it again")]
    Unsettled {
        /// The container.
        container: ContainerKey,
    },
    /// What the container's last task had cannot be attached to this one.
    #[error(
        "{}{}, which the container had before, cannot be attached again: {source}; to start without it: capsulectl detach {} {}",
        .attachment.label(), at_target(&.attachment.target), .attachment.container, what_to_detach(.attachment)
    )]
    Again {
        /// What waits for it.
        attachment: Box<Attachment>,
        /// Why.
        source: Box<AttachmentError>,
    },
    /// The attachment is on record for the container's next task only.
    #[error(
        "{label} at {target} waits for the next start of {container}: start it, then repeat the call, or detach it"
    )]
    Waiting {
        /// The container.
        container: ContainerKey,
        /// Capsule and version.
        label: String,
        /// The target.
        target: String,
    },
    /// The mark that makes the container's next start ask for its attachments.
    #[error("cannot write {path}")]
    Mark {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A target that no container can have.
    #[error("target: {0}")]
    Target(#[from] InvalidPath),
    /// The root itself, covered.
    #[error("mode ro at / would hide the container's whole root: use --mode union, or --target DIRECTORY")]
    RoRoot,
    /// Neither the call nor the capsule names a target.
    #[error("{capsule} has no default target: say where with --target PATH")]
    NoTarget {
        /// The capsule.
        capsule: CapsuleName,
    },
    /// The same for one that another capsule requires.
    #[error("{capsule}, which {by} requires, has no default target: attach it first, with --target PATH")]
    NoTargetOfRequired {
        /// The capsule.
        capsule: CapsuleName,
        /// What requires it.
        by: String,
    },
    /// Something would lack what it requires.
    #[error(
        "{label} in {container} requires {requirement}, which would be missing: detach {label} first, or attach what it requires"
    )]
    Unmet {
        /// The container.
        container: String,
        /// Capsule and version.
        label: String,
        /// What it requires.
        requirement: String,
    },
    /// Another attachment is at the target.
    #[error(
        "{target} in {container} is taken by {occupant}: detach or upgrade that one, or choose another --target"
    )]
    Occupied {
        /// The container.
        container: ContainerKey,
        /// The target.
        target: String,
        /// The capsule there, with its version.
        occupant: String,
    },
    /// The container has no attachment of the capsule.
    #[error("{capsule} is not attached to {container}{}: see \"capsulectl ps\"", at_target(.target))]
    NotAttached {
        /// The container.
        container: ContainerKey,
        /// The capsule.
        capsule: CapsuleName,
        /// The target asked for; any when empty.
        target: String,
    },
    /// There is no earlier version.
    #[error(
        "{capsule} at {target} in {container} has no earlier version to go back to: rollback undoes upgrades, and none is left to undo"
    )]
    NoHistory {
        /// The container.
        container: ContainerKey,
        /// The capsule.
        capsule: CapsuleName,
        /// The target.
        target: String,
    },
    /// The command that was to prove it failed, and what was changed is undone.
    #[error("{container} is not well with that, so it has what it had: {reason}")]
    Unhealthy {
        /// The container.
        container: ContainerKey,
        /// What the command did.
        reason: String,
    },
    /// Processes use it.
    #[error("{label}{} in {container} is in use: {}; end the use, or detach with --lazy", at_target(.target), list_users(.users))]
    InUse {
        /// The container.
        container: ContainerKey,
        /// Capsule and version.
        label: String,
        /// The target.
        target: String,
        /// Who.
        users: Vec<User>,
    },
    /// Devices that cannot be had, or not in a live container.
    #[error(transparent)]
    Devices(Box<DevicesError>),
    /// Limits that cannot be changed so, or a budget that is used up.
    #[error(transparent)]
    Limits(Box<LimitsError>),
    /// Nobody said what is to become of what was written.
    #[error(
        "{label} at {target} in {container} is writable: say what becomes of what was written, --keep NAME or --drop; to publish it first: capsulectl commit"
    )]
    Undecided {
        /// The container.
        container: ContainerKey,
        /// Capsule and version.
        label: String,
        /// The target.
        target: String,
    },
    /// There is nothing to keep or drop.
    #[error("{}", nothing_to_decide(.container, .name.as_ref()))]
    NothingToDecide {
        /// The container.
        container: ContainerKey,
        /// Under which name what was written stays, if anything was.
        name: Option<UpperName>,
    },
    /// Nothing can have been written.
    #[error(
        "{capsule} in {container} is read-only, so nothing was written: attach it with --writable or --persist"
    )]
    ReadOnly {
        /// The container.
        container: ContainerKey,
        /// The capsule.
        capsule: CapsuleName,
    },
    /// A version is made from one of them.
    #[error("{capsule} is attached at several targets: say which with --target")]
    WhichTarget {
        /// The capsule.
        capsule: CapsuleName,
    },
    /// One name for several.
    #[error(
        "{capsule} is attached at several targets, and one name is for one of them: say which with --target"
    )]
    KeepOne {
        /// The capsule.
        capsule: CapsuleName,
    },
    /// A writable attachment has the version that it was made with.
    #[error(
        "{label} at {target} in {container} is writable, and stays at its version: publish what was written with \"capsulectl commit\", detach it, and attach the other version"
    )]
    Writable {
        /// The container.
        container: ContainerKey,
        /// Capsule and version.
        label: String,
        /// The target.
        target: String,
    },
    /// What was written, or is to be.
    #[error(transparent)]
    Upper(#[from] UpperError),
    /// A malformed name, version or mode.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The capsule.
    #[error(transparent)]
    Capsule(#[from] CapsuleError),
    /// No room for it: in the stores, in `/run`, or in the container's own root.
    #[error("cannot {action} {labels} in {container}: {} ({cause})", full::CURE)]
    DiskFull {
        /// "attach" or "detach".
        action: &'static str,
        /// Capsules with their versions and targets, and devices.
        labels: String,
        /// The container.
        container: ContainerKey,
        /// What was being written, and who says that there is no room.
        cause: String,
    },
    /// Somebody else's refusal, which knows of no capsule: the shim's, containerd's.
    #[error("cannot {action} {what} in {container}: {}", full::one_line(.source))]
    Failed {
        /// "attach", "upgrade", "roll back" or "detach".
        action: &'static str,
        /// Capsules with their versions and targets, and devices.
        what: String,
        /// The container.
        container: ContainerKey,
        /// Why.
        source: Box<AttachmentError>,
    },
    /// The shim.
    #[error(transparent)]
    Shim(#[from] ShimError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// containerd.
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
}

impl AttachmentError {
    /// Whether a full disk is what this is from.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::DiskFull { .. } => true,
            Self::Store(error) => error.is_out_of_space(),
            Self::Shim(error) => error.is_disk_full(),
            Self::Again { source, .. } => source.is_disk_full(),
            Self::Failed { source, .. } => source.is_disk_full(),
            error => full::is(error),
        }
    }

    /// Whether the message says which capsule or device it is about, and in which container. Where it does not, who knows what was
    /// asked for has to say it.
    pub fn says_of_what(&self) -> bool {
        match self {
            Self::Again { .. }
            | Self::Waiting { .. }
            | Self::Unmet { .. }
            | Self::NotAttached { .. }
            | Self::NoHistory { .. }
            | Self::InUse { .. }
            | Self::Devices(_)
            | Self::Limits(_)
            | Self::Undecided { .. }
            | Self::ReadOnly { .. }
            | Self::Writable { .. }
            | Self::DiskFull { .. }
            | Self::Failed { .. } => true,
            Self::UnknownContainer { .. }
            | Self::AmbiguousContainer { .. }
            | Self::UnknownMember { .. }
            | Self::WhichMember { .. }
            | Self::OtherRuntime { .. }
            | Self::NotRunning { .. }
            | Self::NoSpecs
            | Self::Named { .. }
            | Self::Unsettled { .. }
            | Self::Mark { .. }
            | Self::Occupied { .. }
            | Self::Target(_)
            | Self::RoRoot
            | Self::NoTarget { .. }
            | Self::NoTargetOfRequired { .. }
            | Self::Unhealthy { .. }
            | Self::NothingToDecide { .. }
            | Self::WhichTarget { .. }
            | Self::KeepOne { .. }
            | Self::Upper(_)
            | Self::Model(_)
            | Self::Capsule(_)
            | Self::Shim(_)
            | Self::Store(_)
            | Self::Containerd(_) => false,
        }
    }

    /// The same where what Docker calls its containers was not to be had.
    pub(super) fn without_names(self, why: Option<Unanswered>) -> Self {
        match self {
            Self::UnknownContainer { id, namespace, .. } => {
                Self::UnknownContainer { id, namespace, unanswered: why }
            }
            other => other,
        }
    }

    /// What this is to whoever wanted to `action` these in a container: [`AttachmentError::DiskFull`] where that is why and
    /// nothing has said so yet, [`AttachmentError::Failed`] where who refuses knows of no capsule, else as it is.
    pub(super) fn of(self, action: &'static str, intents: &[Attachment]) -> Self {
        let said = matches!(self, Self::DiskFull { .. } | Self::Capsule(_) | Self::Again { .. });
        match intents.first() {
            Some(first) if !said && self.is_disk_full() => {
                let labels = with_targets(intents);
                let cause = full::one_line(&self);
                Self::DiskFull { action, labels, container: first.container.clone(), cause }
            }
            Some(first) if matches!(self, Self::Shim(_) | Self::Containerd(_)) => {
                let what = with_targets(intents);
                Self::Failed { action, what, container: first.container.clone(), source: Box::new(self) }
            }
            _ => self,
        }
    }
}

impl From<LimitsError> for AttachmentError {
    fn from(error: LimitsError) -> Self {
        Self::Limits(Box::new(error))
    }
}

impl From<DevicesError> for AttachmentError {
    fn from(error: DevicesError) -> Self {
        Self::Devices(Box::new(error))
    }
}
