//! A new snapshot's directory, from when it is made to when it is recorded.

use std::{
    fs,
    os::unix::fs::{MetadataExt, lchown},
    path::PathBuf,
};

use super::{Dirs, DirsError, failed, tree};

/// A snapshot's directory that is not yet recorded: removed when dropped, unless [`Staged::keep`] was called.
#[derive(Debug)]
pub struct Staged {
    pub(super) dirs: Dirs,
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) kept: bool,
}

impl Staged {
    /// Gives the new snapshot's root the owner of its parent's, as containerd's overlayfs does: in an overlay the
    /// upper directory is what shows.
    ///
    /// # Errors
    /// When the parent's directory is not there or the owner cannot be changed.
    pub fn inherit_owner(&self, parent: u64) -> Result<(), DirsError> {
        let from = self.dirs.upper(parent);
        let metadata = fs::symlink_metadata(&from).map_err(failed("stat parent", &from))?;
        self.give_to(metadata.uid(), metadata.gid())
    }

    /// Gives the new snapshot's root to a user and a group.
    ///
    /// # Errors
    /// When the owner cannot be changed.
    pub fn give_to(&self, user: u32, group: u32) -> Result<(), DirsError> {
        let root = self.path.join("fs");
        lchown(&root, Some(user), Some(group)).map_err(failed("change owner of", &root))
    }

    /// Moves it to where snapshot `id` belongs. To be called inside the transaction that records the snapshot, so
    /// that ids and directories follow one order.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn place(&mut self, id: u64) -> Result<(), DirsError> {
        let path = self.dirs.snapshot(id);
        fs::rename(&self.path, &path).map_err(failed("move new snapshot to", &path))?;
        self.path = path;
        Ok(())
    }

    /// Keeps it: it is recorded durably.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = tree::remove(&self.path)
        {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(path = %self.path.display(), error, "left behind, cleanup will retry");
        }
        self.dirs.making.lock().remove(&self.name);
    }
}
