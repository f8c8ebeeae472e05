//! Capsules: names, versions and the images that carry them.
//!
//! `publish` (with `origin`), `unpack`, `held` and `set` → `catalogue` → {`resolve`, `oci`} → {`declared`, `requirement`, `model`} (pure). This room speaks to containerd through
//! [`crate::containerd`] and asks the snapshot engine for directories; it knows nothing of containers.

pub mod catalogue;
mod conflict;
pub mod declared;
mod error;
mod held;
pub mod model;
pub mod oci;
mod origin;
mod publish;
pub mod requirement;
pub mod resolve;
pub mod set;
mod unpack;

use crate::{containerd::Containerd, snapshots::Snapshots};

pub use self::{
    catalogue::{Catalogue, Published, Resolved},
    declared::Declared,
    error::CapsuleError,
    held::Held,
    oci::Declaration,
    origin::{BaseRef, ImageRef, Origin},
};

/// Capsules of this node: cheap to clone.
#[derive(Clone)]
pub struct Capsules {
    containerd: Containerd,
    snapshots: Snapshots,
    /// containerd namespace of capsule images.
    namespace: String,
    /// The name by which containerd knows our snapshotter.
    snapshotter: String,
    catalogue: Catalogue,
    /// Layers of what is published are not kept in containerd's content store once they are unpacked.
    discard_layers: bool,
}

impl Capsules {
    /// Nothing is read yet: see [`Capsules::reload`].
    pub fn new(containerd: Containerd, snapshots: Snapshots, namespace: &str, snapshotter: &str) -> Self {
        Self {
            containerd,
            snapshots,
            namespace: namespace.to_owned(),
            snapshotter: snapshotter.to_owned(),
            catalogue: Catalogue::default(),
            discard_layers: false,
        }
    }

    /// Lets containerd collect the layers of what is published from now on, once they are unpacked.
    pub fn discarding_layers(self, discard_layers: bool) -> Self {
        Self { discard_layers, ..self }
    }

    /// containerd namespace of capsule images.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// What is published, from memory.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }
}
