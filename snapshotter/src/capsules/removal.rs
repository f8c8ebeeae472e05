//! Versions that go: nobody begins to use one while it does.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::OwnedMutexGuard;

use super::{
    CapsuleError, Capsules, catalogue::Published, model::Digest, signing::signature_tag, unpack::top_chain,
};
use crate::containerd::{ImageRecord, Scope};

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

/// Nobody else changes what references stand for until this is dropped.
#[derive(Debug)]
pub struct Names(#[allow(dead_code)] OwnedMutexGuard<()>); // held, and never looked at

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

    /// Lets nobody publish, tag or sign until what is given is dropped.
    pub async fn hold_names(&self) -> Names {
        Names(self.names.clone().lock_owned().await)
    }

    /// Removes the image records of a version, those of its tags and signatures too. What only they kept goes with containerd's
    /// next collection: see [`Capsules::collect_garbage`]. False, and nothing is removed, where the version has been published anew.
    ///
    /// # Errors
    /// containerd's: some may be gone then.
    pub async fn remove_images(&self, _: &Names, one: &Published) -> Result<bool, CapsuleError> {
        if self.catalogue.version(&one.name, &one.version).is_none_or(|now| now.digest != one.digest) {
            return Ok(false);
        }
        let scope = self.containerd.namespace(&self.namespace)?;
        let mut images = self.catalogue.images_of(&one.name, &one.version);
        // Its signatures go last: a version that is still there is one that can be used.
        let shared =
            self.catalogue.list(Some(&one.name)).iter().filter(|p| p.digest == one.digest).count() > 1;
        if let Some(mut signatures) = self.beside(&scope, &one.name, &one.digest).await?.filter(|_| !shared) {
            signatures.labels.insert(LEAVING.to_owned(), String::new());
            scope.update_image(&signatures).await?;
            images.push(signatures.name);
        }
        for image in &images {
            scope.delete_image(image).await?;
            self.refresh(image).await?;
        }
        Ok(true)
    }

    /// Removes the signatures of versions that are gone, where a removal was killed between the two.
    ///
    /// # Errors
    /// containerd's.
    pub(super) async fn clear_signatures(&self, scope: &Scope) -> Result<(), CapsuleError> {
        // As above: no version comes back meanwhile.
        let _names = self.names.lock().await;
        for image in left_signatures(&scope.images().await?) {
            tracing::info!(image, "removing the signatures of a version that is gone");
            scope.delete_image(&image).await?;
        }
        Ok(())
    }
}

/// On the image of signatures that are being removed: others that lie beside no version may be of one that is yet to come.
const LEAVING: &str = "resourcecapsules.io/leaving";

/// Signatures that were being removed with their version, which is gone.
fn left_signatures(images: &[ImageRecord]) -> Vec<String> {
    let is_left = |image: &&ImageRecord| {
        let Some((repository, tag)) = image.name.rsplit_once(':') else { return false };
        let is_theirs = |other: &ImageRecord| {
            other.name.rsplit_once(':').is_some_and(|(of, _)| of == repository)
                && other.digest.parse().is_ok_and(|digest| signature_tag(&digest) == tag)
        };
        image.labels.contains_key(LEAVING) && !images.iter().any(is_theirs)
    };
    images.iter().filter(is_left).map(|image| image.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use capsule_signatures::Subject;

    use super::*;
    use crate::capsules::{Signature, rig::Rig};

    #[tokio::test]
    async fn what_is_signed_while_it_goes_leaves_no_signature() {
        let rig = Rig::start();
        rig.publish(&["x@1"]).await;
        let (name, version) = ("x".parse().unwrap(), "1".parse().unwrap());
        let one = rig.capsules.catalogue().version(&name, &version).unwrap();
        let subject =
            Subject { repository: String::new(), digest: one.digest.to_string(), name: None, version: None };
        let signature = Signature::new(subject.payload(), "ours".to_owned());
        let names = rig.capsules.hold_names().await;
        let signing = tokio::spawn({
            let (capsules, name) = (rig.capsules.clone(), name.clone());
            async move { capsules.sign(&name, Some(&version), signature).await }
        });
        // It has chosen the version, and waits for us.
        while !rig.fake.leases().iter().any(|lease| lease.contains("sign")) {
            tokio::task::yield_now().await;
        }
        assert!(rig.capsules.remove_images(&names, &one).await.unwrap());
        drop(names);
        let error = signing.await.unwrap().unwrap_err();
        assert!(matches!(error, CapsuleError::UnknownCapsule { .. }), "{error}");
        assert_eq!((rig.fake.images().len(), rig.fake.leases().len()), (0, 0));
    }

    #[test]
    fn only_signatures_that_a_removal_has_left_alone_are_cleared() {
        let image = |name: &str, digest: &Digest, labels: &[&str]| ImageRecord {
            name: format!("localhost/capsules/{name}"),
            labels: labels.iter().map(|label| ((*label).to_owned(), String::new())).collect(),
            media_type: String::new(),
            digest: digest.to_string(),
            size: 1,
            created_at: None,
        };
        let (one, other) = (Digest::from_sha256(&[1; 32]), Digest::from_sha256(&[2; 32]));
        let signatures = |labels| image(&format!("lib:{}", signature_tag(&one)), &other, labels);
        let version = image("lib:1", &one, &[]);
        for (images, left) in [
            (vec![signatures(&[LEAVING])], 1),
            (vec![signatures(&[LEAVING]), image("lib:2", &other, &[]), image("tool:1", &one, &[])], 1),
            (vec![signatures(&[LEAVING]), version.clone()], 0),
            (vec![signatures(&[])], 0),
            (vec![version], 0),
        ] {
            assert_eq!(left_signatures(&images).len(), left, "{images:?}");
        }
    }
}
