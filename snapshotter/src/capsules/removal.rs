//! Versions that go: nobody begins to use one while it does.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{CapsuleError, Capsules, catalogue::Published, model::Digest, unpack::top_chain};

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

    /// Removes the image records of a version, those of its tags and signatures too. What only they kept goes with containerd's
    /// next collection: see [`Capsules::collect_garbage`]. False, and nothing is removed, where the version has been published anew.
    ///
    /// # Errors
    /// containerd's: some may be gone then.
    pub async fn remove_images(&self, one: &Published) -> Result<bool, CapsuleError> {
        // Nobody tags or signs it meanwhile.
        let _names = self.names.lock().await;
        if self.catalogue.version(&one.name, &one.version).is_none_or(|now| now.digest != one.digest) {
            return Ok(false);
        }
        let scope = self.containerd.namespace(&self.namespace)?;
        let mut images = self.catalogue.images_of(&one.name, &one.version);
        // Its signatures go last: a version that is still there is one that can be used.
        let shared =
            self.catalogue.list(Some(&one.name)).iter().filter(|p| p.digest == one.digest).count() > 1;
        if !shared {
            images.extend(self.beside(&scope, &one.name, &one.digest).await?.map(|record| record.name));
        }
        for image in &images {
            scope.delete_image(image).await?;
            self.refresh(image).await?;
        }
        Ok(true)
    }
}
