//! Files that layers of capsules have in common are stored once. Layers of containers' root file systems are left alone: only who
//! unpacks a capsule asks for this.

use std::path::Path;

use super::Snapshots;
use crate::{dirs::Fresh, snapshots::error::SnapshotError};

impl Snapshots {
    /// Shares the files of an active snapshot with those of committed ones, where they are equal. `upper` is where its mounts
    /// let write; `None` when that is no directory of ours. To be called between the last write and the commit.
    ///
    /// # Errors
    /// When the snapshot is not what was written to it any more, and must be given up.
    pub fn share(&self, upper: &Path) -> Result<Option<Fresh>, SnapshotError> {
        let Some(id) = self.inner.dirs.parse_upper(upper) else { return Ok(None) };
        Ok(Some(self.inner.dirs.share(id)?))
    }

    /// Lets later layers share what this one has. To be called after the commit.
    pub fn offer(&self, fresh: &Fresh) {
        self.inner.dirs.offer(fresh);
    }
}
