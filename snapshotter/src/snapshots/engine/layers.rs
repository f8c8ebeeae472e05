//! The layers of committed snapshots for attachments, and the pins that keep them from being removed.

use std::path::{Path, PathBuf};

use super::Snapshots;

impl Snapshots {
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

    /// Lets `owner` hold the snapshots of `tops` (each the first of what [`Snapshots::layers`] gave) and nothing else,
    /// in one step. Gives back those that are no snapshot's directory.
    pub fn repin_layers<'a>(&self, tops: impl Iterator<Item = &'a Path>, owner: &str) -> Vec<&'a Path> {
        let (mut ids, mut unknown) = (Vec::new(), Vec::new());
        for top in tops {
            match self.inner.dirs.parse_upper(top) {
                Some(id) => ids.push(id),
                None => unknown.push(top),
            }
        }
        self.inner.index.repin(&ids, owner);
        unknown
    }

    /// Pins all committed snapshots of a containerd namespace, for an owner that cannot say yet which it needs.
    pub fn pin_all(&self, namespace: &str, owner: &str) {
        self.inner.index.pin_all(namespace, owner);
    }

    /// One who has pinned the snapshot that containerd calls `name` in `namespace`, if anybody has.
    pub fn owner(&self, namespace: &str, name: &str) -> Option<String> {
        self.inner.index.owner(namespace, name)
    }

    /// Drops every pin that `owner` holds.
    pub fn unpin(&self, owner: &str) {
        self.inner.index.unpin(owner);
    }

    /// Whether overlays here read their marks from attributes that users can write (mount option `userxattr`).
    pub fn are_marks_of_users(&self) -> bool {
        self.inner.overlay.userxattr
    }

    fn paths(&self, chain: &[u64]) -> Vec<PathBuf> {
        chain.iter().map(|id| self.inner.dirs.upper(*id)).collect()
    }
}
