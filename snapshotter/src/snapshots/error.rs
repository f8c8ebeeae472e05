//! What can go wrong with a snapshot.

use std::path::PathBuf;

use crate::{dirs::DirsError, filters::FilterError, snapshots::model::InvalidInput, store::StoreError};

/// Why a call on the engine failed. On any error nothing is changed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No snapshot has that key or name.
    #[error("snapshot {key:?} does not exist")]
    NotFound {
        /// What was looked for.
        key: String,
    },
    /// The metadata is older than the directories.
    #[error(
        "{} has directories up to {newest}, and the metadata store knows of none from {next} on: it is an older copy, \
         and what was made since would be lost. Restore the newest copy of the store; or, if nothing needs those, move \
         them away", .snapshots.display()
    )]
    NewerDirectories {
        /// The newest directory.
        newest: u64,
        /// What the next snapshot would have.
        next: u64,
        /// Where they are.
        snapshots: PathBuf,
    },
    /// The key or name is taken.
    #[error("snapshot {key:?} already exists")]
    AlreadyExists {
        /// The key or name.
        key: String,
    },
    /// The parent is no committed snapshot.
    #[error("parent {parent:?} is not a committed snapshot")]
    ParentNotCommitted {
        /// The parent.
        parent: String,
    },
    /// The parent that a snapshot should be put on at its commit is no committed snapshot.
    #[error("cannot commit on {parent:?}: it is not a committed snapshot")]
    RebaseOnUncommitted {
        /// The parent.
        parent: String,
    },
    /// A snapshot that has a parent keeps it.
    #[error("cannot change the parent of snapshot {key:?} on commit: it was prepared on {parent:?}")]
    OtherParent {
        /// The snapshot.
        key: String,
        /// The parent that it has.
        parent: String,
    },
    /// Mounts are for snapshots that are not committed.
    #[error("snapshot {key:?} is committed: only active snapshots and views have mounts")]
    NotMountable {
        /// The snapshot.
        key: String,
    },
    /// Only active snapshots can be committed.
    #[error("snapshot {key:?} is not active")]
    NotActive {
        /// The snapshot.
        key: String,
    },
    /// A snapshot that others build on.
    #[error("cannot remove snapshot {key:?} with child")]
    HasChildren {
        /// The snapshot.
        key: String,
    },
    /// A snapshot that is in use in a container.
    #[error("cannot remove snapshot {key:?}: attachment {owner} uses it")]
    Pinned {
        /// The snapshot.
        key: String,
        /// Who holds it.
        owner: String,
    },
    /// A snapshot, or one that it builds on, whose directory was gone when capsuled started.
    #[error(
        "snapshot {key:?} cannot be used, since {path} is missing or no directory: remove the snapshot, and unpack its image again"
    )]
    LostDirectory {
        /// The snapshot that was asked for.
        key: String,
        /// What is missing.
        path: PathBuf,
    },
    /// Input that can never be right.
    #[error(transparent)]
    Invalid(#[from] InvalidInput),
    /// A filter that cannot be understood.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The metadata store failed.
    #[error("snapshot metadata")]
    Store(#[from] StoreError),
    /// A directory could not be made, measured or made durable.
    #[error("snapshot directory")]
    Dirs(#[from] DirsError),
}
