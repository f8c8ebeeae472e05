//! The snapshot engine: containerd's snapshot lifecycle over the store and the directories.
//!
//! It knows no protocol. A *key* names an active snapshot or a view, a *name* a committed one; they share one
//! space (containerd, `core/snapshots/snapshotter.go`).
//!
//! Order of effects: directories are made and placed before the transaction that records them commits, and removed
//! after the transaction that forgets them has committed. A crash therefore leaves at most directories that
//! nothing records; [`Snapshots::cleanup`] finds them, at start too.

mod engine;
mod error;
mod idmap;
mod index;
pub mod model;
mod mounts;
mod options;

pub use engine::{Commit, Create, Environment, Snapshots};
pub use error::SnapshotError;
pub use idmap::{IdMap, IdMapError};
pub use mounts::Mount;
pub use options::{Behaviour, MountOption, MountOptionError, OverlayOptions};
