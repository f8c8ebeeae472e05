//! Unpacking a version's layers through containerd into our own snapshots.

use std::{collections::HashMap, path::PathBuf};

use capsule_proto::containerd::types::Mount;

use super::{CapsuleError, Capsules, catalogue::Resolved, model::Digest, oci::Image};
use crate::{
    containerd::{ContainerdError, Scope},
    fresh_id,
};

/// How long what an unpack makes is kept before something refers to it, in seconds.
const LEASE_SECONDS: u64 = 3600;

impl Capsules {
    /// The version's lower directories, topmost first, kept from removal until `owner` is unpinned. From memory when
    /// the version is unpacked (always, for what [`Capsules::publish`] made); otherwise it is unpacked now.
    ///
    /// # Errors
    /// Whatever `owner` has pinned by then is for the caller to let go.
    pub async fn pin(&self, version: &Resolved, owner: &str) -> Result<Vec<PathBuf>, CapsuleError> {
        self.verify(&version.name, &version.version, &version.digest).await?;
        let pinned = self.pin_unpacked(version, owner).await;
        let layers = pinned.map_err(|error| error.of("unpack", &version.name, &version.version))?;
        // In this order: who removes it says so first, and looks for pins then.
        if self.leaving.has(&version.digest) {
            return Err(CapsuleError::Leaving {
                name: version.name.clone(),
                version: version.version.clone(),
            });
        }
        Ok(layers)
    }

    /// As [`Capsules::pin`], of a version that is to be used from now on: it must still be published when it is pinned. What a container
    /// has, or had before, needs not to be.
    ///
    /// # Errors
    /// [`CapsuleError::Leaving`]; as above.
    pub async fn pin_published(&self, version: &Resolved, owner: &str) -> Result<Vec<PathBuf>, CapsuleError> {
        let layers = self.pin(version, owner).await?;
        match self.catalogue.version(&version.name, &version.version) {
            Some(now) if now.digest == version.digest => Ok(layers),
            // Its removal began and ended since it was chosen.
            _ => Err(CapsuleError::Leaving { name: version.name.clone(), version: version.version.clone() }),
        }
    }

    async fn pin_unpacked(&self, version: &Resolved, owner: &str) -> Result<Vec<PathBuf>, CapsuleError> {
        let top = top_chain(&version.image);
        if let Some(layers) = self.snapshots.pin(&self.namespace, &top, owner) {
            return Ok(layers);
        }
        let scope = self.containerd.namespace(&self.namespace)?;
        if let Some(missing) = check_layers(&scope, &version.image).await? {
            return Err(self.incomplete(&version.name, &version.version, missing));
        }
        let lease = self.lease("unpack");
        let scope = scope.leased(lease.as_str(), LEASE_SECONDS).await?;
        let unpacked = self.unpack_to_stay(&scope, &version.image).await;
        let pinned = self.snapshots.pin(&self.namespace, &top, owner);
        scope.release().await?;
        unpacked?;
        pinned.ok_or_else(|| {
            let missing = format!("its snapshot {top} was removed while it was unpacked");
            self.incomplete(&version.name, &version.version, missing)
        })
    }

    /// Unpacks the layers, and lets the image refer to what it is unpacked to: so do containerd's clients, and without that its
    /// garbage collector takes the snapshots when the lease has ended.
    pub(super) async fn unpack_to_stay(&self, scope: &Scope, image: &Image) -> Result<(), CapsuleError> {
        self.unpack(scope, image).await?;
        Ok(scope.label_blob(image.config.digest.as_str(), self.snapshot_label(image)).await?)
    }

    /// The label by which a configuration refers to the snapshot of all its layers (containerd,
    /// `docs/garbage-collection.md`).
    pub(super) fn snapshot_label(&self, image: &Image) -> HashMap<String, String> {
        [(format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter), top_chain(image))].into()
    }

    /// Why a version could not be attached now; `None` if it could. Asks containerd.
    pub async fn missing(&self, image: &Image) -> Result<Option<String>, CapsuleError> {
        if self.snapshots.layers(&self.namespace, &top_chain(image)).is_some() {
            return Ok(None);
        }
        let scope = self.containerd.namespace(&self.namespace)?;
        self.missing_blob(&scope, image).await
    }

    pub(super) async fn missing_blob(
        &self,
        scope: &Scope,
        image: &Image,
    ) -> Result<Option<String>, CapsuleError> {
        for layer in &image.layers {
            if scope.blob_labels(layer.digest.as_str()).await?.is_none() {
                return Ok(Some(missing(&layer.digest)));
            }
        }
        Ok(None)
    }

    /// Unpacks the layers that are not unpacked yet, bottom first. The caller's scope holds a lease.
    pub(super) async fn unpack(&self, scope: &Scope, image: &Image) -> Result<(), CapsuleError> {
        let chain = image.chain_ids();
        for index in 0..chain.len() {
            if self.unpack_at(scope, image, &chain, index).await? {
                continue;
            }
            // containerd has one of this name, which we have not: our root was lost. It unpacked the same again otherwise.
            self.forget(scope, &chain[index..]).await?;
            self.unpack_at(scope, image, &chain, index).await?;
        }
        Ok(())
    }

    /// Unpacks a layer if it is not yet. False where that cannot be, because containerd knows a snapshot of its name that is not there.
    async fn unpack_at(
        &self,
        scope: &Scope,
        image: &Image,
        chain: &[Digest],
        index: usize,
    ) -> Result<bool, CapsuleError> {
        let name = chain[index].as_str();
        if scope.has_snapshot(&self.snapshotter, name).await? {
            return Ok(true);
        }
        let parent = index.checked_sub(1).map_or("", |below| chain[below].as_str());
        let key = format!("capsule-unpack-{} {name}", fresh_id());
        match self.unpack_layer(scope, image, index, &key, parent, name).await {
            Ok(true) => Ok(true),
            // Somebody else unpacked the same layer meanwhile: theirs counts.
            Ok(false) => {
                scope.remove_snapshot(&self.snapshotter, &key).await?;
                Ok(scope.has_snapshot(&self.snapshotter, name).await?)
            }
            Err(error) => {
                // The first error is the one to tell; the lease takes the snapshot in the end.
                scope.remove_snapshot(&self.snapshotter, &key).await.ok();
                Err(error)
            }
        }
    }

    /// Has containerd forget snapshots that are not there, topmost first.
    async fn forget(&self, scope: &Scope, chain: &[Digest]) -> Result<(), CapsuleError> {
        for name in chain.iter().rev().map(Digest::as_str) {
            if !scope.has_snapshot(&self.snapshotter, name).await? {
                tracing::warn!(name, "containerd knows a snapshot that is not here: it is unpacked again");
                scope.remove_snapshot(&self.snapshotter, name).await?;
            }
        }
        Ok(())
    }

    async fn unpack_layer(
        &self,
        scope: &Scope,
        image: &Image,
        index: usize,
        key: &str,
        parent: &str,
        name: &str,
    ) -> Result<bool, CapsuleError> {
        let (layer, diff_id) = (&image.layers[index], &image.diff_ids[index]);
        let mounts = scope.prepare_snapshot(&self.snapshotter, key, parent).await?;
        let upper = upper_of(&mounts);
        let found = scope.apply_layer(&layer.media_type, layer.digest.as_str(), layer.size, mounts).await?;
        if found != diff_id.as_str() {
            return Err(CapsuleError::DiffId {
                layer: layer.digest.clone(),
                found,
                expected: diff_id.clone(),
            });
        }
        let sharing = upper.and_then(|upper| self.snapshots.sharing(&upper));
        let fresh = match sharing.clone() {
            Some((dirs, id)) => Some(blocking(move || dirs.share(id)).await??),
            None => None,
        };
        let committed = scope.commit_snapshot(&self.snapshotter, key, name).await?;
        if let (true, Some((dirs, _)), Some(fresh)) = (committed, sharing, fresh) {
            blocking(move || dirs.offer(&fresh)).await?;
        }
        Ok(committed)
    }
}

/// As [`Capsules::missing_blob`], with every layer read: what comes in is what its digests say, also where containerd has had it
/// before and looks at it no more.
///
/// # Errors
/// [`ContainerdError::Altered`]; containerd's.
pub(super) async fn check_layers(scope: &Scope, image: &Image) -> Result<Option<String>, ContainerdError> {
    for layer in &image.layers {
        if !scope.check_blob(layer.digest.as_str()).await? {
            return Ok(Some(missing(&layer.digest)));
        }
    }
    Ok(None)
}

pub(super) fn missing(layer: &Digest) -> String {
    format!("layer {layer} is not in containerd's content store")
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, CapsuleError> {
    Ok(tokio::task::spawn_blocking(work).await?)
}

/// Where mounts let write: what they bind, or their upper directory.
fn upper_of(mounts: &[Mount]) -> Option<PathBuf> {
    let [mount] = mounts else { return None };
    let path = match mount.r#type.as_str() {
        "bind" => Some(mount.source.as_str()),
        _ => mount.options.iter().find_map(|option| option.strip_prefix("upperdir=")),
    };
    path.map(PathBuf::from)
}

/// The name of the snapshot that holds all layers. An image has at least one layer: `parse_manifest` sees to it.
pub(super) fn top_chain(image: &Image) -> String {
    image.chain_ids().last().map(ToString::to_string).unwrap_or_default()
}
