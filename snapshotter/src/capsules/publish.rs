//! Publishing a version: layers become an OCI image in containerd's store, unpacked and durable.
//!
//! All is made under a lease and becomes a version with its last step, the image record: a publish that breaks off
//! anywhere leaves nothing that anyone can see, and containerd's garbage collector takes the rest.

use std::collections::HashMap;

use futures::{Stream, StreamExt};
use overlayfs_utils::ContainerPath;
use sha2::{Digest as _, Sha256};

use super::{
    CapsuleError, Capsules,
    catalogue::{Published, image_name},
    model::{Digest, Version},
    oci::{self, Blobs, Declaration, Descriptor, Image},
    origin::Origin,
    tags::{self, Undo, taken},
};
use crate::containerd::{ImageRecord, Scope};

/// How long a publish may take before containerd may collect what it wrote, in seconds.
const LEASE_SECONDS: u64 = 24 * 3600;

impl Capsules {
    /// Publishes one version. True beside it if the same version with the same digest was there already. When this
    /// returns, the version is durable and unpacked, and `tags` stand for it; on an error none of this is so.
    ///
    /// # Errors
    /// [`CapsuleError::Exists`], and whatever keeps it from being made; as [`Capsules::check_tags`].
    pub async fn publish(
        &self,
        declaration: Declaration,
        tags: &[Version],
        origin: Origin<impl Stream<Item = Result<Vec<u8>, String>> + Send + Unpin>,
    ) -> Result<(Published, bool), CapsuleError> {
        let (name, version) = (declaration.name.clone(), declaration.version.clone());
        let published = self.publish_checked(declaration, tags, origin).await;
        published.map_err(|error| error.of("publish", &name, &version))
    }

    async fn publish_checked(
        &self,
        declaration: Declaration,
        tags: &[Version],
        origin: Origin<impl Stream<Item = Result<Vec<u8>, String>> + Send + Unpin>,
    ) -> Result<(Published, bool), CapsuleError> {
        check(&declaration, matches!(origin, Origin::Tree(_)))?;
        self.check_version(&declaration.name, &declaration.version).await?;
        self.containerd.ensure_namespace(&self.namespace).await?;
        let lease = self.lease("publish");
        let id = lease.as_str();
        let scope = self.containerd.namespace(&self.namespace)?.leased(id, LEASE_SECONDS).await?;
        let published = self.publish_leased(&scope, id, (&declaration, tags), origin).await;
        let released = scope.release().await;
        let existed = published?;
        released?;
        for reference in [&declaration.version].into_iter().chain(tags) {
            self.refresh(&image_name(&declaration.name, reference)).await?;
        }
        Ok((self.catalogue().find(&declaration.name, Some(&declaration.version))?, existed))
    }

    async fn publish_leased(
        &self,
        scope: &Scope,
        reference: &str,
        (declaration, tags): (&Declaration, &[Version]),
        origin: Origin<impl Stream<Item = Result<Vec<u8>, String>> + Send + Unpin>,
    ) -> Result<bool, CapsuleError> {
        let stack = origin.store(self, scope, reference, declaration).await?;
        let blobs = oci::make_image(declaration, &stack)?;
        let digest = &blobs.manifest.1.digest;
        let name = image_name(&declaration.name, &declaration.version);
        let existed = self.is_published(scope, &name, declaration, digest).await?;
        // Also for a version that is there: what has been removed of it since is put back, and referred to again.
        let image = oci::parse_config(oci::parse_manifest(digest, &blobs.manifest.0)?, &blobs.config.0)?;
        self.store_json(scope, &image, &blobs).await?;
        self.unpack(scope, &image).await?;
        let record = ImageRecord {
            name: name.clone(),
            labels: HashMap::from([
                (oci::NAME.to_owned(), declaration.name.to_string()),
                (oci::VERSION.to_owned(), declaration.version.to_string()),
            ]),
            media_type: oci::MANIFEST.to_owned(),
            digest: digest.to_string(),
            size: i64::try_from(blobs.manifest.1.size).unwrap_or(i64::MAX),
            created_at: None,
        };
        if existed && tags.is_empty() {
            return Ok(true);
        }
        self.name_with_tags(scope, &record, (declaration, digest), tags).await
    }

    /// Makes the image record of a version and those of its tags: all of them or none. True if the version had one.
    async fn name_with_tags(
        &self,
        scope: &Scope,
        record: &ImageRecord,
        (declaration, digest): (&Declaration, &Digest),
        tags: &[Version],
    ) -> Result<bool, CapsuleError> {
        let (name, version) = (&declaration.name, &declaration.version);
        let _names = self.names.lock().await;
        self.check_tags(name, version, tags).await?;
        let mut undo = Vec::new();
        let named = async {
            let existed = match scope.create_image(&tags::marked(record, tags)).await {
                Ok(()) => {
                    undo.push(Undo::Delete(record.name.clone()));
                    false
                }
                // It was there before, or another publish of the same version was faster.
                Err(e) if e.is_already_exists() => {
                    self.is_published(scope, &record.name, declaration, digest).await?
                }
                Err(e) => return Err(e.into()),
            };
            self.apply_all(scope, record, (name, version), tags, &mut undo).await?;
            Ok(existed)
        };
        let named = named.await;
        if named.is_err() {
            self.take_back(scope, undo).await;
        }
        named
    }

    /// True if the version is there with this digest; an error if it is there with another.
    async fn is_published(
        &self,
        scope: &Scope,
        image: &str,
        declaration: &Declaration,
        digest: &Digest,
    ) -> Result<bool, CapsuleError> {
        match scope.image(image).await? {
            None => Ok(false),
            Some(existing) if existing.labels.contains_key(oci::TAG) => {
                let of = existing.labels.get(oci::VERSION).and_then(|of| of.parse().ok());
                let of = of.unwrap_or_else(|| declaration.version.clone());
                Err(taken(&declaration.name, &declaration.version, of))
            }
            Some(existing) if existing.digest == digest.as_str() => Ok(true),
            Some(existing) => Err(CapsuleError::Exists {
                name: declaration.name.clone(),
                version: declaration.version.clone(),
                existing: existing.digest,
                digest: digest.clone(),
            }),
        }
    }

    /// Stores configuration and manifest with the labels that tell containerd's garbage collector what each
    /// refers to (containerd docs/garbage-collection.md, "Garbage Collection Labels"): nobody refers to layers that are to be
    /// discarded, and the publish's lease holds them until they are unpacked.
    async fn store_json(&self, scope: &Scope, image: &Image, blobs: &Blobs) -> Result<(), CapsuleError> {
        let (config, config_descriptor) = &blobs.config;
        let (manifest, manifest_descriptor) = &blobs.manifest;
        scope.put_blob(config_descriptor.digest.as_str(), config, self.snapshot_label(image)).await?;
        let layers = image.layers.iter().filter(|_| !self.discard_layers).enumerate();
        let mut children: HashMap<_, _> = layers
            .map(|(i, layer)| (format!("containerd.io/gc.ref.content.l.{i}"), layer.digest.to_string()))
            .collect();
        children
            .insert("containerd.io/gc.ref.content.config".to_owned(), config_descriptor.digest.to_string());
        scope.put_blob(manifest_descriptor.digest.as_str(), manifest, children).await?;
        Ok(())
    }
}

/// Refuses what no version may declare; with more than its own tar, not what its first layers are from either.
fn check(declaration: &Declaration, alone: bool) -> Result<(), CapsuleError> {
    let ours = [oci::BASE_NAME, oci::BASE_DIGEST].into_iter();
    if let Some(base) = ours.filter(|_| !alone).find(|key| declaration.annotations.contains_key(*key)) {
        return Err(CapsuleError::BaseAnnotation(base));
    }
    if let Some(reserved) = declaration.annotations.keys().find(|k| k.starts_with(oci::PREFIX)) {
        return Err(CapsuleError::ReservedAnnotation(reserved.clone()));
    }
    if let Some(target) = &declaration.default_target {
        ContainerPath::parse(target)?;
    }
    Ok(())
}

pub(super) async fn store_layer(
    scope: &Scope,
    reference: &str,
    declaration: &Declaration,
    mut tar: impl Stream<Item = Result<Vec<u8>, String>> + Send + Unpin,
) -> Result<Descriptor, CapsuleError> {
    let mut writer = scope.write_blob(reference).await?;
    let mut hash = Sha256::new();
    let failed = loop {
        match tar.next().await {
            None => break None,
            Some(Ok(piece)) => {
                hash.update(&piece);
                if let Err(e) = writer.write(piece).await {
                    break Some(e.into());
                }
            }
            Some(Err(reason)) => {
                let (name, version) = (declaration.name.clone(), declaration.version.clone());
                break Some(CapsuleError::Stream { name, version, reason });
            }
        }
    };
    if let Some(error) = failed {
        // The first error is the one to tell; the lease takes the ingest in the end.
        writer.abort().await.ok();
        return Err(error);
    }
    let size = writer.written();
    let digest = Digest::from_sha256(&hash.finalize());
    let labels = HashMap::from([("containerd.io/uncompressed".to_owned(), digest.to_string())]);
    writer.commit(digest.as_str(), labels).await?;
    Ok(Descriptor { media_type: oci::LAYER_TAR.to_owned(), digest, size })
}

#[cfg(test)]
mod tests;
