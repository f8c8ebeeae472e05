//! Files that layers of capsules have in common are stored once. Layers of containers' root file systems are left alone: only who
//! unpacks a capsule asks for this.

use std::path::Path;

use super::Snapshots;
use crate::dirs::Dirs;

impl Snapshots {
    /// The active snapshot whose mounts let write at `upper`, for [`Dirs::share`] between the last write and the commit, and
    /// [`Dirs::offer`] after it; `None` when that is no directory of ours. Both may take long, and keep no store open.
    pub fn sharing(&self, upper: &Path) -> Option<(Dirs, u64)> {
        let id = self.inner.dirs.parse_upper(upper)?;
        Some((self.inner.dirs.clone(), id))
    }
}
