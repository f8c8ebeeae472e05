//! Versions that go: nobody begins to use one while it does.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    CapsuleError, Capsules, catalogue::Published, model::Digest, signing::signature_image, unpack::top_chain,
};
use crate::fresh_id;

/// How the names of all our leases begin.
const LEASES: &str = "capsule-";

/// The digests of versions that are being removed: cheap to clone, shared.
#[derive(Debug, Clone, Default)]
pub struct Leaving(Arc<Mutex<BTreeMap<Digest, usize>>>);

impl Leaving {
    /// Whether a version is being removed.
    pub fn has(&self, digest: &Digest) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(digest)
    }
}

/// A version is being removed until this is dropped.
#[derive(Debug)]
pub struct Leave {
    leaving: Leaving,
    digest: Digest,
}

impl Drop for Leave {
    fn drop(&mut self) {
        let mut all = self.leaving.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.digest);
            }
        }
    }
}

impl Capsules {
    /// Lets nobody begin to use a version: who pins it from here on is refused. Who has pinned it before is seen by
    /// [`Capsules::pinned_by`] from here on.
    pub fn leave(&self, digest: &Digest) -> Leave {
        let leaving = self.leaving.clone();
        *leaving.0.lock().unwrap_or_else(PoisonError::into_inner).entry(digest.clone()).or_default() += 1;
        Leave { leaving, digest: digest.clone() }
    }

    /// Who has pinned the directories of a version, or of another with the same layers.
    pub fn pinned_by(&self, one: &Published) -> Option<String> {
        let image = one.image.as_ref().ok()?;
        self.snapshots.owner(&self.namespace, &top_chain(image))
    }

    /// A name for a lease, by which a later capsuled knows that nobody needs it any more.
    pub(super) fn lease_id(&self, what: &str) -> String {
        format!("{LEASES}{what}-{}-{}", self.session, fresh_id())
    }

    /// Ends the leases that an earlier capsuled had when it was killed: what it had half published or unpacked is garbage.
    ///
    /// # Errors
    /// containerd's.
    pub async fn release_stale(&self) -> Result<(), CapsuleError> {
        let scope = self.containerd.namespace(&self.namespace)?;
        for lease in scope.leases().await? {
            if lease.starts_with(LEASES) && !lease.contains(&self.session) {
                tracing::info!(lease, "found half done: what it held is given up");
                scope.under(&lease)?.release().await?;
            }
        }
        Ok(())
    }

    /// Removes the image records of a version, those of its tags and signatures too, and waits until containerd has collected what only they
    /// kept.
    ///
    /// # Errors
    /// containerd's: some may be gone then.
    pub async fn remove_images(&self, one: &Published) -> Result<(), CapsuleError> {
        let scope = self.containerd.namespace(&self.namespace)?;
        let mut images = self.catalogue.images_of(&one.name, &one.version);
        // Its signatures go last: a version that is still there is one that can be used.
        let beside = signature_image(&one.name, &one.digest);
        let shared =
            self.catalogue.list(Some(&one.name)).iter().filter(|p| p.digest == one.digest).count() > 1;
        if let Some(beside) = beside.filter(|_| !shared)
            && scope.image(&beside).await?.is_some()
        {
            images.push(beside);
        }
        for (index, image) in images.iter().enumerate() {
            scope.delete_image_as(image, index + 1 == images.len()).await?;
            self.refresh(image).await?;
        }
        Ok(())
    }
}
