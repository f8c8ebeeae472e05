//! The snapshot engine: containerd's snapshot lifecycle over the store and the directories.
//!
//! It knows no protocol. Order of effects: directories are made before the transaction that records them commits,
//! and removed after the transaction that forgets them has committed; what a crash leaves is found by
//! [`Snapshots::cleanup`].

mod index;
pub mod model;

use std::{path::PathBuf, sync::Arc};

use crate::{
    dirs::Dirs,
    store::{Store, StoreError},
};
use index::Index;

/// The snapshot engine. Cheap to clone; all clones are one engine. Its calls block on the disk, except
/// [`Snapshots::layers`] and the pins.
#[derive(Clone, Debug)]
pub struct Snapshots {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    dirs: Dirs,
    index: Index,
}

impl Snapshots {
    /// The engine over `store` and `dirs`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn open(store: Store, dirs: Dirs) -> Result<Self, StoreError> {
        Ok(Self { inner: Arc::new(Inner { store, dirs, index: Index::default() }) })
    }

    /// Overlay lower directories, topmost first, of the committed snapshot that containerd knows as `name` (a chain
    /// id) in its namespace `namespace`. From memory.
    pub fn layers(&self, namespace: &str, name: &str) -> Option<Vec<PathBuf>> {
        self.inner.index.chain(namespace, name).map(|chain| self.paths(&chain))
    }

    /// As [`Snapshots::layers`], and keeps the snapshot and all below it from being removed until
    /// [`Snapshots::unpin`], in one step. An owner may hold several; holding one twice is holding it once.
    pub fn pin(&self, namespace: &str, name: &str, owner: &str) -> Option<Vec<PathBuf>> {
        self.inner.index.pin(namespace, name, owner).map(|chain| self.paths(&chain))
    }

    /// Pins the snapshot whose directory is the first of `layers` (as [`Snapshots::layers`] gave them), for
    /// attachments found at start. False when that is no snapshot's directory.
    pub fn pin_layers(&self, layers: &[PathBuf], owner: &str) -> bool {
        let id = layers.first().and_then(|top| self.inner.dirs.parse_upper(top));
        if let Some(id) = id {
            self.inner.index.pin_id(id, owner);
        }
        id.is_some()
    }

    /// Drops every pin that `owner` holds.
    pub fn unpin(&self, owner: &str) {
        self.inner.index.unpin(owner);
    }

    fn paths(&self, chain: &[u64]) -> Vec<PathBuf> {
        chain.iter().map(|id| self.inner.dirs.upper(*id)).collect()
    }
}
