//! Capsules over a containerd of tests.

use tempfile::TempDir;

use super::{CapsuleError, Capsules, Published};
use crate::{
    containerd::{Containerd, fake::Fake},
    dirs::Dirs,
    snapshots::{Behaviour, Environment, OverlayOptions, Snapshots},
    store::{Store, attachments::Journal},
};

pub(crate) struct Rig {
    pub(crate) dir: TempDir,
    pub(crate) fake: Fake,
    pub(crate) containerd: Containerd,
    pub(crate) snapshots: Snapshots,
    pub(crate) journal: Journal,
    pub(crate) capsules: Capsules,
}

impl Rig {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (fake, containerd) = Fake::start(dir.path());
        let dirs = Dirs::new(dir.path().join("lib"));
        dirs.create().unwrap();
        let store = Store::open(&dirs.metadata()).unwrap();
        let (overlay, behaviour) = (OverlayOptions::default(), Behaviour::default());
        let environment = Environment { store: store.clone(), dirs, overlay, behaviour };
        let snapshots = Snapshots::open(environment).unwrap();
        let journal = Journal::start(store).unwrap();
        let capsules =
            Capsules::new(containerd.clone(), snapshots.clone(), "capsules", "capsule", journal.clone());
        Self { dir, fake, containerd, snapshots, journal, capsules }
    }

    /// Publishes `NAME@VERSION`s, each of them something else.
    pub(crate) async fn publish(&self, labels: &[&str]) {
        for label in labels {
            let (name, version) = label.split_once('@').unwrap();
            self.fake.publish(name, version, &[]);
        }
        self.capsules.reload().await.unwrap();
    }

    pub(crate) async fn tag(&self, label: &str, tag: &str) -> Result<Published, CapsuleError> {
        let (name, version) = label.split_once('@').unwrap();
        let (name, version) = (name.parse().unwrap(), version.parse().unwrap());
        self.capsules.tag(&name, Some(&version), &[tag.parse().unwrap()]).await
    }
}
