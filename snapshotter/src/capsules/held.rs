//! Versions whose layers are read by capsuled itself.

use std::path::PathBuf;

use super::{CapsuleError, Capsules, catalogue::Resolved};
use crate::{
    fresh_id,
    snapshots::Snapshots,
    trees::{Layers, TreeError},
};

/// A version whose layers stay where they are until this is dropped.
#[derive(Debug)]
pub struct Held {
    layers: Vec<PathBuf>,
    owner: String,
    snapshots: Snapshots,
}

impl Capsules {
    /// Keeps a version's layers from removal. One that is not unpacked is unpacked now.
    ///
    /// # Errors
    /// As [`Capsules::pin`].
    pub async fn hold(&self, version: &Resolved) -> Result<Held, CapsuleError> {
        let owner = format!("reader {}", fresh_id());
        // Before the call, which pins: so that nothing stays pinned when it is given up.
        let mut held = Held { layers: Vec::new(), owner, snapshots: self.snapshots.clone() };
        held.layers = self.pin(version, &held.owner).await?;
        Ok(held)
    }

    /// Layers of versions of this node, to be read: none yet.
    pub fn layers(&self) -> Layers {
        Layers::new(self.snapshots.are_marks_of_users())
    }
}

impl Held {
    /// Opens the layers among `layers`; their numbers, topmost first.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn open(&self, layers: &mut Layers) -> Result<Vec<usize>, TreeError> {
        self.layers.iter().map(|path| layers.add(path)).collect()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.snapshots.unpin(&self.owner);
    }
}
