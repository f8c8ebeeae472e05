//! Signatures of versions, kept beside them: the image `…/NAME:sha256-HEX.sig`, a layer for each signature (cosign
//! `specs/SIGNATURE_SPEC.md`). Which versions are not used without one is [`super::policy`]'s.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use capsule_signatures::{PAYLOAD, SIGNATURE, Subject};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    CapsuleError, Capsules,
    catalogue::{Published, image_name},
    model::{CapsuleName, Digest, Version},
    oci,
    policy::Policy,
    tags::Undo,
};
use crate::containerd::{ImageRecord, Scope};

/// Largest manifest or payload of signatures that is read, and most signatures of a version.
const JSON_LIMIT: usize = 1 << 20;
pub(super) const MOST: usize = 64;
/// How long it may take to write one, in seconds.
const LEASE_SECONDS: u64 = 600;

/// One signature, unchecked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Signature {
    /// What was signed.
    pub payload: Vec<u8>,
    /// The layer's annotations; one of them is the signature itself, others are its maker's.
    pub annotations: BTreeMap<String, String>,
}

impl Signature {
    /// From a payload and the text of the signature over it.
    pub fn new(payload: Vec<u8>, signature: String) -> Self {
        Self { payload, annotations: BTreeMap::from([(SIGNATURE.to_owned(), signature)]) }
    }

    /// The text of the signature.
    pub fn text(&self) -> &str {
        self.annotations.get(SIGNATURE).map(String::as_str).unwrap_or_default()
    }
}

/// Why a version is not used, or not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The policy wants a signature, and there is none.
    #[error(
        "{name}@{version} is not signed, and this node's policy requires it: sign it with \"capsulectl sign \
         {name}@{version} --key FILE\", or pull it with its signature"
    )]
    Unsigned {
        /// The capsule.
        name: CapsuleName,
        /// The version.
        version: Version,
    },
    /// The policy wants a signature, and those that there are will not do.
    #[error("{name}@{version} has no signature that this node trusts: {reason}")]
    Untrusted {
        /// The capsule.
        name: CapsuleName,
        /// The version.
        version: Version,
        /// Why, of the last of them.
        reason: String,
    },
    /// What is to be kept as a signature is none of this version.
    #[error("this is no signature of {name}@{version}: {reason}")]
    Other {
        /// The capsule.
        name: CapsuleName,
        /// The version.
        version: Version,
        /// Why.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: Option<String>,
    config: Layer,
    layers: Vec<Layer>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl Layer {
    fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Digest::from_sha256(&Sha256::digest(bytes)),
            size: bytes.len() as u64,
            annotations: BTreeMap::new(),
        }
    }
}

/// The tag of what holds a manifest's signatures, in its repository.
pub(super) fn signature_tag(digest: &Digest) -> String {
    format!("{}.sig", digest.as_str().replacen(':', "-", 1))
}

/// The image that holds a version's signatures here.
fn signature_image(name: &CapsuleName, digest: &Digest) -> Option<String> {
    let tag: Version = signature_tag(digest).parse().ok()?;
    Some(image_name(name, &tag))
}

impl Capsules {
    /// With what this node demands of versions that it uses.
    pub fn with_policy(self, policy: Policy) -> Self {
        Self { policy: policy.into(), ..self }
    }

    /// Refuses a version that the policy does not let be used. From memory when it was let before.
    ///
    /// # Errors
    /// [`SignError`]; containerd's.
    pub async fn verify(
        &self,
        name: &CapsuleName,
        version: &Version,
        digest: &Digest,
    ) -> Result<(), CapsuleError> {
        if !self.policy.requires(name) {
            return Ok(());
        }
        let key = (name.clone(), version.clone(), digest.clone());
        if self.verified().contains(&key) {
            return Ok(());
        }
        let scope = self.containerd.namespace(&self.namespace)?;
        let signatures = self.signatures(&scope, name, digest).await?;
        self.policy.check(name, version, digest, &signatures)?;
        self.verified().insert(key);
        Ok(())
    }

    /// As [`Capsules::verify`], of what is on its way with its signatures.
    pub(super) async fn verify_arriving(
        &self,
        scope: &Scope,
        (name, version, digest): (&CapsuleName, &Version, &Digest),
        came: &[Signature],
    ) -> Result<(), CapsuleError> {
        if !self.policy.requires(name) {
            return Ok(());
        }
        let mut signatures = self.signatures(scope, name, digest).await?;
        signatures.extend(came.iter().cloned());
        Ok(self.policy.check(name, version, digest, &signatures)?)
    }

    /// What was let is looked at again: a signature has come or gone.
    pub(super) fn forget_verified(&self) {
        self.verified().clear();
    }

    fn verified(&self) -> std::sync::MutexGuard<'_, BTreeSet<(CapsuleName, Version, Digest)>> {
        self.verified.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Adds a signature to a version. Whose it is is not asked; that it is about this version is.
    ///
    /// # Errors
    /// [`SignError::Other`]; as [`Capsules::resolve`]; containerd's.
    pub async fn sign(
        &self,
        name: &CapsuleName,
        version: Option<&Version>,
        signature: Signature,
    ) -> Result<Published, CapsuleError> {
        let found = self.resolve(name, version).await?;
        let other =
            |reason: String| SignError::Other { name: name.clone(), version: found.version.clone(), reason };
        let subject = Subject::parse(&signature.payload).map_err(|e| other(e.to_string()))?;
        if subject.digest != found.digest.as_str() {
            return Err(other(format!("it is one of {}", subject.digest)).into());
        }
        let lease = self.lease("sign");
        let scope = self.containerd.namespace(&self.namespace)?.leased(lease.as_str(), LEASE_SECONDS).await?;
        let kept = {
            let _names = self.names.lock().await;
            // Who removed it meanwhile has removed its signatures, and nobody would remove this one.
            match self.catalogue.find(name, Some(&found.version)) {
                Ok(now) if now.digest == found.digest => {
                    self.keep_signatures(&scope, name, &found.digest, &[signature]).await
                }
                Ok(now) => Err(CapsuleError::Leaving { name: now.name, version: now.version }),
                Err(error) => Err(error),
            }
        };
        scope.release().await?;
        kept?;
        self.forget_verified();
        self.catalogue().find(name, Some(&found.version))
    }

    /// The version and its signatures, each with whether a key of the policy made it.
    ///
    /// # Errors
    /// As [`Capsules::resolve`]; containerd's.
    pub async fn signed(
        &self,
        name: &CapsuleName,
        version: Option<&Version>,
    ) -> Result<(Published, Vec<(Signature, bool)>), CapsuleError> {
        let found = self.resolve(name, version).await?;
        let scope = self.containerd.namespace(&self.namespace)?;
        let signatures = self.signatures(&scope, name, &found.digest).await?;
        let judged = signatures.into_iter().map(|signature| {
            let trusted = self.policy.judge(name, &found.version, &found.digest, &signature).is_ok();
            (signature, trusted)
        });
        Ok((self.catalogue().find(name, Some(&found.version))?, judged.collect()))
    }

    async fn signatures(
        &self,
        scope: &Scope,
        name: &CapsuleName,
        digest: &Digest,
    ) -> Result<Vec<Signature>, CapsuleError> {
        match self.beside(scope, name, digest).await? {
            Some(record) => read_signatures(scope, &record.digest).await,
            None => Ok(Vec::new()),
        }
    }

    /// The image that holds a version's signatures here, if it has some.
    pub(super) async fn beside(
        &self,
        scope: &Scope,
        name: &CapsuleName,
        digest: &Digest,
    ) -> Result<Option<ImageRecord>, CapsuleError> {
        match signature_image(name, digest) {
            Some(image) => Ok(scope.image(&image).await?),
            None => Ok(None),
        }
    }

    /// Keeps signatures beside a version, with those that are there. `names` are held; the scope has a lease.
    pub(super) async fn keep_signatures(
        &self,
        scope: &Scope,
        name: &CapsuleName,
        digest: &Digest,
        more: &[Signature],
    ) -> Result<Option<Undo>, CapsuleError> {
        let Some(image) = signature_image(name, digest).filter(|_| !more.is_empty()) else { return Ok(None) };
        let old = scope.image(&image).await?;
        let mut all: BTreeSet<Signature> = more.iter().cloned().collect();
        if let Some(old) = &old {
            all.extend(read_signatures(scope, &old.digest).await?);
        }
        let (digest, size) = write_signatures(scope, all.into_iter().take(MOST)).await?;
        let (labels, media_type) = (HashMap::new(), oci::MANIFEST.to_owned());
        let record = ImageRecord {
            name: image,
            labels,
            media_type,
            digest: digest.to_string(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            created_at: None,
        };
        match old {
            Some(old) if old.digest == record.digest => Ok(None),
            Some(old) => {
                scope.update_image(&record).await?;
                Ok(Some(Undo::Restore(old)))
            }
            None => {
                scope.create_image(&record).await?;
                Ok(Some(Undo::Delete(record.name)))
            }
        }
    }
}

/// The signatures that an image holds. One that is not as it should be holds none: anybody may have made it.
///
/// # Errors
/// containerd's; of an image that is altered, too: it may have held some.
pub(super) async fn read_signatures(scope: &Scope, digest: &str) -> Result<Vec<Signature>, CapsuleError> {
    let Some(bytes) = scope.read_blob(digest, JSON_LIMIT).await? else { return Ok(Vec::new()) };
    let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) else { return Ok(Vec::new()) };
    let mut signatures = Vec::new();
    for layer in manifest.layers.into_iter().filter(|layer| layer.media_type == PAYLOAD).take(MOST) {
        let payload = scope.read_blob(layer.digest.as_str(), JSON_LIMIT).await?;
        signatures.extend(payload.map(|payload| Signature { payload, annotations: layer.annotations }));
    }
    Ok(signatures)
}

/// Writes the image that holds signatures; its digest and size.
pub(super) async fn write_signatures(
    scope: &Scope,
    signatures: impl Iterator<Item = Signature>,
) -> Result<(Digest, u64), CapsuleError> {
    let mut children = HashMap::new();
    let mut layers = Vec::new();
    for (index, signature) in signatures.enumerate() {
        let layer = Layer { annotations: signature.annotations, ..Layer::of(PAYLOAD, &signature.payload) };
        scope.put_blob(layer.digest.as_str(), &signature.payload, HashMap::new()).await?;
        children.insert(format!("containerd.io/gc.ref.content.l.{index}"), layer.digest.to_string());
        layers.push(layer);
    }
    let diff_ids: Vec<&Digest> = layers.iter().map(|layer| &layer.digest).collect();
    let config = serde_json::json!({
        "architecture": "", "os": "", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string().into_bytes();
    let described = Layer::of(oci::CONFIG, &config);
    scope.put_blob(described.digest.as_str(), &config, HashMap::new()).await?;
    children.insert("containerd.io/gc.ref.content.config".to_owned(), described.digest.to_string());
    let manifest =
        Manifest { schema_version: 2, media_type: Some(oci::MANIFEST.to_owned()), config: described, layers };
    let json = |source| oci::OciError::Json { what: "manifest of signatures".to_owned(), source };
    let bytes = serde_json::to_vec(&manifest).map_err(json)?;
    let described = Layer::of(oci::MANIFEST, &bytes);
    scope.put_blob(described.digest.as_str(), &bytes, children).await?;
    Ok((described.digest, described.size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_lie_beside_the_image() {
        let digest = Digest::from_sha256(&[0xab; 32]);
        let image = signature_image(&"a".parse().unwrap(), &digest).unwrap();
        assert_eq!(image, format!("localhost/capsules/a:sha256-{}.sig", "ab".repeat(32)));
    }
}
