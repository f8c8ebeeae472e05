//! Snapshots on record whose directories are gone: a disk that was not mounted, a restore that was not whole, a hand.
//!
//! Found at start and never made anew: an empty directory in the place of a layer would be an image that lies. What
//! needs one is refused until the snapshot is removed, which works.

use std::{collections::HashMap, path::PathBuf};

use crate::{
    dirs::Dirs,
    snapshots::{error::SnapshotError, model::Kind},
};

/// How many are told by name at start.
const TOLD: usize = 20;

/// What was missing at start, by snapshot id.
#[derive(Debug, Default)]
pub(super) struct Lost(HashMap<u64, PathBuf>);

impl Lost {
    /// Looks for the directories of the snapshots and says which are not there.
    pub(super) fn find<'a>(dirs: &Dirs, snapshots: impl Iterator<Item = (&'a str, u64, Kind)>) -> Self {
        let mut lost = HashMap::new();
        for (key, id, kind) in snapshots {
            let Some(path) = dirs.missing(id, kind) else { continue };
            if lost.len() < TOLD {
                let path = path.display();
                tracing::error!(key, %path, "snapshot has lost its directory: it cannot be used, only removed");
            }
            lost.insert(id, path);
        }
        if lost.len() > TOLD {
            tracing::error!(
                snapshots = lost.len(),
                "snapshots have lost their directories: is the disk mounted?"
            );
        }
        Self(lost)
    }

    /// Refuses what needs one of the snapshots `ids` if that has lost its directory.
    pub(super) fn check(&self, key: &str, ids: &[u64]) -> Result<(), SnapshotError> {
        match ids.iter().find_map(|id| self.0.get(id)) {
            Some(path) => Err(SnapshotError::LostDirectory { key: key.to_owned(), path: path.clone() }),
            None => Ok(()),
        }
    }
}
