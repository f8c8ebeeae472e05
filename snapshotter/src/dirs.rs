//! The directories under the root: the only room that names paths on disk.
//!
//! ```text
//! ROOT/metadata.redb        the store
//! ROOT/snapshots/ID/fs      a snapshot's own changes: upper directory while active, a lower one when committed
//! ROOT/snapshots/ID/work    overlayfs work directory (active snapshots only)
//! ROOT/snapshots/new-*      being made
//! ROOT/snapshots/rm-*       being removed
//! ROOT/empty/               an empty directory, to make an overlay of a single layer
//! ```

use std::path::{Path, PathBuf};

/// The directories under one root.
#[derive(Clone, Debug)]
pub struct Dirs {
    root: PathBuf,
}

impl Dirs {
    /// Names the directories under `root`; touches nothing.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The metadata store's file.
    pub fn metadata(&self) -> PathBuf {
        self.root.join("metadata.redb")
    }

    /// The empty directory.
    pub fn empty(&self) -> PathBuf {
        self.root.join("empty")
    }

    /// Where the snapshots' directories are.
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// The changes of snapshot `id`.
    pub fn upper(&self, id: u64) -> PathBuf {
        self.snapshots().join(id.to_string()).join("fs")
    }

    /// The overlayfs work directory of snapshot `id`.
    pub fn work(&self, id: u64) -> PathBuf {
        self.snapshots().join(id.to_string()).join("work")
    }

    /// The id of the snapshot whose [`Dirs::upper`] is `path`.
    pub fn parse_upper(&self, path: &Path) -> Option<u64> {
        let relative = path.strip_prefix(self.snapshots()).ok()?;
        let id = relative.parent()?.to_str()?.parse().ok()?;
        (self.upper(id) == path).then_some(id)
    }
}
