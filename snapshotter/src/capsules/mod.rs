//! Capsules: names, versions and the images that carry them.
//!
//! `publish` (with `origin`), `unpack`, `held`, `tags` and `set` → `catalogue` → `claim` → {`resolve`, `oci`} → {`declared`, `requirement`, `model`} (pure). This room speaks to containerd through
//! [`crate::containerd`] and asks the snapshot engine for directories; it knows nothing of containers.

pub mod catalogue;
pub(crate) mod claim;
mod conflict;
pub mod declared;
mod error;
mod held;
pub mod model;
pub mod oci;
mod origin;
mod publish;
mod removal;
pub mod requirement;
pub mod resolve;
pub mod set;
mod tags;
mod unpack;

use std::sync::{Arc, atomic::AtomicBool};

use tokio::sync::Mutex;

use crate::{containerd::Containerd, snapshots::Snapshots, store::attachments::Journal};

use self::removal::{Leaving, LiveLeases};
pub use self::{
    catalogue::{Catalogue, Published, Resolved},
    declared::Declared,
    error::CapsuleError,
    held::Held,
    oci::Declaration,
    origin::{BaseRef, ImageRef, Origin},
    tags::TagError,
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
    /// Where it is told what is published and removed.
    journal: Journal,
    leaving: Leaving,
    live: LiveLeases,
    /// containerd may have snapshots that it does not know of.
    unswept: Arc<AtomicBool>,
    /// Held while what a reference stands for is looked at and then changed.
    names: Arc<Mutex<()>>,
}

impl Capsules {
    /// Nothing is read yet: see [`Capsules::reload`].
    pub fn new(
        containerd: Containerd,
        snapshots: Snapshots,
        namespace: &str,
        snapshotter: &str,
        journal: Journal,
    ) -> Self {
        Self {
            containerd,
            snapshots,
            namespace: namespace.to_owned(),
            snapshotter: snapshotter.to_owned(),
            catalogue: Catalogue::default(),
            journal,
            leaving: Leaving::default(),
            live: LiveLeases::default(),
            unswept: Arc::default(),
            names: Arc::default(),
        }
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
