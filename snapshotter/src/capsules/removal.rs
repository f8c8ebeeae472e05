//! Versions that go: nobody begins to use one while it does.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use super::{
    CapsuleError, Capsules, catalogue::Published, model::Digest, signing::signature_image, unpack::top_chain,
};
use crate::fresh_id;

/// How the names of all our leases begin.
const LEASES: &str = "capsule-";

/// How often it is looked for what crashes have left.
const PAUSE: Duration = Duration::from_secs(5);
/// How long a sweep may take, in seconds.
const SWEEP_SECONDS: u64 = 600;

/// Names of the leases that calls have: cheap to clone, shared.
#[derive(Debug, Clone, Default)]
pub struct LiveLeases(Arc<Mutex<BTreeSet<String>>>);

impl LiveLeases {
    fn has(&self, id: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }
}

/// The name of a lease that a call has.
#[derive(Debug)]
pub(super) struct LeaseName {
    id: String,
    live: LiveLeases,
}

impl LeaseName {
    /// As containerd knows it.
    pub(super) fn as_str(&self) -> &str {
        &self.id
    }
}

impl Drop for LeaseName {
    fn drop(&mut self) {
        self.live.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

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

    /// Whether a name holds that of a lease that a call has.
    pub(super) fn is_live(&self, name: &str) -> bool {
        let live = self.live.0.lock().unwrap_or_else(PoisonError::into_inner);
        live.iter().any(|id| name.contains(id))
    }

    /// A name for a lease. It counts as needed until this is dropped.
    pub(super) fn lease(&self, what: &str) -> LeaseName {
        let id = format!("{LEASES}{what}-{}", fresh_id());
        self.live.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
        LeaseName { id, live: self.live.clone() }
    }

    /// Ends leases of ours that no call has any more: those of a capsuled that was killed, and those that could not be ended when
    /// containerd was. What was half published or unpacked under them is garbage.
    ///
    /// # Errors
    /// containerd's.
    pub async fn release_stale(&self) -> Result<(), CapsuleError> {
        let scope = self.containerd.namespace(&self.namespace)?;
        for lease in scope.leases().await? {
            if lease.starts_with(LEASES) && !self.live.has(&lease) {
                tracing::info!(lease, "found half done: what it held is given up");
                scope.under(&lease)?.release().await?;
            }
        }
        Ok(())
    }

    /// Lets containerd's next collection compare its snapshots with ours: one that it was about to make when it was killed is
    /// in no record of it, and it looks for such only after a snapshot has been removed (v2.1.9 `core/metadata/db.go`, `dirtySS`).
    ///
    /// # Errors
    /// containerd's.
    async fn sweep(&self) -> Result<(), CapsuleError> {
        if !self.containerd.namespaces().await?.contains(&self.namespace) {
            return Ok(());
        }
        let scope = self.containerd.namespace(&self.namespace)?;
        self.clear_transits(&scope).await?;
        let lease = self.lease("sweep");
        let scope = scope.leased(lease.as_str(), SWEEP_SECONDS).await?;
        let made = scope.prepare_snapshot(&self.snapshotter, lease.as_str(), "").await;
        let removed = scope.remove_snapshot(&self.snapshotter, lease.as_str()).await;
        scope.release().await?;
        made?;
        Ok(removed?)
    }

    /// Says that containerd was started anew, or capsuled.
    pub fn is_to_sweep(&self) {
        self.unswept.store(true, Ordering::Release);
    }

    /// Looks for what crashes have left, every now and then until the daemon ends: a call may end badly after containerd has
    /// been listed anew.
    pub async fn keep_clean(self) {
        loop {
            tokio::time::sleep(PAUSE).await;
            let released = self.release_stale().await;
            let swept = if self.unswept.swap(false, Ordering::AcqRel) { self.sweep().await } else { Ok(()) };
            if let Err(error) = released.and(swept) {
                self.is_to_sweep();
                tracing::debug!(%error, "cannot look for what crashes have left");
            }
        }
    }

    /// Removes the image records of a version, those of its tags and signatures too. With `collect`, containerd has collected what only they
    /// kept when this returns. False, and nothing is removed, where the version has been published anew.
    ///
    /// # Errors
    /// containerd's: some may be gone then.
    pub async fn remove_images(&self, one: &Published, collect: bool) -> Result<bool, CapsuleError> {
        // Nobody tags or signs it meanwhile.
        let _names = self.names.lock().await;
        if self.catalogue.version(&one.name, &one.version).is_none_or(|now| now.digest != one.digest) {
            return Ok(false);
        }
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
            scope.delete_image_as(image, collect && index + 1 == images.len()).await?;
            self.refresh(image).await?;
        }
        Ok(true)
    }
}
