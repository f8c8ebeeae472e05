//! Capsules: names, versions and the images that carry them.
//!
//! `publish` (with `origin`), `moving`, `unpack`, `held`, `tags`, `signing` and `set` → `reading` → `catalogue` → `claim` → {`resolve`, `oci`} → {`declared`, `requirement`, `model`} (pure). This room speaks to containerd through
//! [`crate::containerd`] and asks the snapshot engine for directories; it knows nothing of containers.

pub mod catalogue;
pub(crate) mod claim;
mod conflict;
pub mod declared;
mod error;
mod held;
mod leases;
pub mod model;
mod moving;
pub mod oci;
mod origin;
mod policy;
mod publish;
mod reading;
mod removal;
pub mod requirement;
pub mod resolve;
#[cfg(test)]
pub(crate) mod rig;
pub mod seccomp;
pub mod set;
mod signing;
mod tags;
mod told;
mod unpack;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use tokio::sync::Mutex;

use self::model::{CapsuleName, Digest, Version};
use crate::{
    containerd::Containerd,
    snapshots::Snapshots,
    store::{Store, attachments::Journal},
};

pub use self::{
    catalogue::{Catalogue, Published, Resolved},
    claim::Naming,
    declared::Declared,
    error::CapsuleError,
    held::Held,
    moving::{Arrived, MoveError, Trouble},
    oci::Declaration,
    origin::{BaseRef, ImageRef, Origin},
    policy::{Policy, PolicyError},
    removal::Leave,
    signing::{SignError, Signature},
    tags::TagError,
};
use self::{leases::LiveLeases, removal::Leaving};

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
    /// containerd's directory of registry hosts.
    hosts: PathBuf,
    /// What this node demands of versions that it uses.
    policy: Arc<Policy>,
    /// What it has let be used.
    verified: Arc<std::sync::Mutex<BTreeSet<(CapsuleName, Version, Digest)>>>,
    /// Held while an image is read and what it is is noted.
    reading: Arc<Mutex<()>>,
    /// Where it is told what is published and removed.
    journal: Journal,
    /// Where what images say is kept from one start to the next.
    images: Option<Store>,
    leaving: Leaving,
    live: LiveLeases,
    /// containerd may have snapshots that it does not know of.
    unswept: Arc<AtomicBool>,
    /// Held while what a reference stands for is looked at and then changed.
    names: Arc<Mutex<()>>,
    /// Layers of what is published are not kept in containerd's content store once they are unpacked.
    discard_layers: bool,
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
            hosts: PathBuf::new(),
            policy: Arc::default(),
            verified: Arc::default(),
            reading: Arc::default(),
            journal,
            images: None,
            leaving: Leaving::default(),
            live: LiveLeases::default(),
            unswept: Arc::default(),
            names: Arc::default(),
            discard_layers: false,
        }
    }

    /// Lets containerd collect the layers of what is published from now on, once they are unpacked.
    pub fn discarding_layers(self, discard_layers: bool) -> Self {
        Self { discard_layers, ..self }
    }

    /// With the store of the journal, where what images say is kept from one start to the next.
    pub fn with_images(self, store: Store) -> Self {
        Self { images: Some(store), ..self }
    }

    /// With containerd's directory of registry hosts (containerd `docs/hosts.md`).
    pub fn with_hosts(self, hosts: PathBuf) -> Self {
        Self { hosts, ..self }
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
