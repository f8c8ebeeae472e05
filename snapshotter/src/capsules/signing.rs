//! Signatures of versions, kept beside them: the image `…/NAME:sha256-HEX.sig`, a layer for each signature (cosign
//! `specs/SIGNATURE_SPEC.md`). And the policy: which versions are not used without one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    path::PathBuf,
};

use capsule_signatures::{PAYLOAD, PublicKey, SIGNATURE, SignatureError, Subject};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    CapsuleError, Capsules,
    catalogue::{Published, image_name},
    model::{CapsuleName, Digest, Version},
    oci,
    tags::Undo,
};
use crate::{
    config::{Require, Verify},
    containerd::{ImageRecord, Scope},
};

/// Largest manifest or payload of signatures that is read, and most signatures of a version.
const JSON_LIMIT: usize = 1 << 20;
const MOST: usize = 64;
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

/// A key of the policy that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// No such file, say.
    #[error("read the key {path} of [verify]: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not a key.
    #[error("the key {path} of [verify]: {source}")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: SignatureError,
    },
}

/// Who is trusted, and for what that is asked.
#[derive(Debug, Clone)]
pub struct Policy {
    keys: Vec<PublicKey>,
    require: Require,
}

impl Default for Policy {
    /// Nothing is asked.
    fn default() -> Self {
        Self { keys: Vec::new(), require: Require::None }
    }
}

impl Policy {
    /// Reads the keys.
    ///
    /// # Errors
    /// [`PolicyError`] of the first that is none: a policy with a key less would refuse what it should not.
    pub fn load(verify: &Verify) -> Result<Self, PolicyError> {
        let read = |path: &PathBuf| {
            let pem = fs::read_to_string(path)
                .map_err(|source| PolicyError::Read { path: path.clone(), source })?;
            PublicKey::from_pem(&pem).map_err(|source| PolicyError::Key { path: path.clone(), source })
        };
        let keys = verify.keys.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { keys, require: verify.require.clone() })
    }

    fn requires(&self, name: &CapsuleName) -> bool {
        match &self.require {
            Require::None => false,
            Require::All => true,
            Require::Only(names) => names.contains(name),
        }
    }

    /// Whether a trusted key says of this version that it is this content; why not.
    fn judge(
        &self,
        name: &CapsuleName,
        version: &Version,
        digest: &Digest,
        signature: &Signature,
    ) -> Result<(), String> {
        let subject = Subject::parse(&signature.payload).map_err(|e| e.to_string())?;
        if subject.digest != digest.as_str() {
            return Err(format!("the signature is one of {}, and this is {digest}", subject.digest));
        }
        let called = |said: &Option<String>, is: &str| said.as_deref().is_none_or(|said| said == is);
        if !called(&subject.name, name.as_str()) || !called(&subject.version, version.as_str()) {
            let or_any = |said: Option<String>| said.unwrap_or_else(|| "*".to_owned());
            return Err(format!("it was signed as {}@{}", or_any(subject.name), or_any(subject.version)));
        }
        if self.keys.iter().any(|key| key.verifies(&signature.payload, signature.text())) {
            return Ok(());
        }
        Err("no key of [verify] made it".to_owned())
    }

    /// The policy's word on a version with these signatures.
    fn check(
        &self,
        name: &CapsuleName,
        version: &Version,
        digest: &Digest,
        signatures: &[Signature],
    ) -> Result<(), SignError> {
        if !self.requires(name) {
            return Ok(());
        }
        let (name, version) = (name.clone(), version.clone());
        let mut last = None;
        for signature in signatures {
            match self.judge(&name, &version, digest, signature) {
                Ok(()) => return Ok(()),
                Err(reason) => last = Some(reason),
            }
        }
        Err(match last {
            None => SignError::Unsigned { name, version },
            Some(reason) => SignError::Untrusted { name, version, reason },
        })
    }
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
pub(super) fn signature_image(name: &CapsuleName, digest: &Digest) -> Option<String> {
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
            self.keep_signatures(&scope, name, &found.digest, &[signature]).await
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
        let Some(image) = signature_image(name, digest) else { return Ok(Vec::new()) };
        match scope.image(&image).await? {
            Some(record) => read_signatures(scope, &record.digest).await,
            None => Ok(Vec::new()),
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
async fn write_signatures(
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
    use capsule_signatures::PrivateKey;

    use super::*;

    fn subject(digest: &Digest, named: Option<(&str, &str)>) -> Vec<u8> {
        let (name, version) = named.map(|(name, version)| (name.to_owned(), version.to_owned())).unzip();
        Subject { repository: "r".into(), digest: digest.to_string(), name, version }.payload()
    }

    #[test]
    fn the_policy_asks_for_a_trusted_signature_of_this_version() {
        let (ours, theirs) = (PrivateKey::generate(), PrivateKey::generate());
        let (digest, other) = (Digest::from_sha256(&[1; 32]), Digest::from_sha256(&[2; 32]));
        let (name, version): (CapsuleName, Version) = ("a".parse().unwrap(), "1".parse().unwrap());
        let sign = |key: &PrivateKey, payload: Vec<u8>| {
            let text = key.sign(&payload);
            Signature::new(payload, text)
        };
        let forged = {
            let signature = sign(&ours, subject(&other, None));
            Signature { payload: subject(&digest, None), ..signature }
        };
        let policy = |require| Policy { keys: vec![ours.public()], require };
        for (signatures, refusal) in [
            (vec![], Some("is not signed")),
            (vec![sign(&theirs, subject(&digest, None))], Some("no key of [verify]")),
            (vec![forged], Some("no key of [verify]")),
            (vec![sign(&ours, subject(&other, None))], Some("is one of sha256:0202")),
            (vec![sign(&ours, subject(&digest, Some(("b", "1"))))], Some("signed as b@1")),
            (vec![sign(&ours, subject(&digest, Some(("a", "2"))))], Some("signed as a@2")),
            (vec![Signature::new(b"no JSON".to_vec(), String::new())], Some("payload")),
            (vec![sign(&ours, subject(&digest, Some(("a", "1"))))], None),
            (vec![sign(&theirs, subject(&digest, None)), sign(&ours, subject(&digest, None))], None),
        ] {
            let told = policy(Require::All)
                .check(&name, &version, &digest, &signatures)
                .err()
                .map(|e| e.to_string());
            match refusal {
                None => assert_eq!(told, None),
                Some(words) => assert!(told.as_ref().is_some_and(|t| t.contains(words)), "{words}: {told:?}"),
            }
            let only = policy(Require::Only([name.clone()].into()));
            assert_eq!(only.check(&name, &version, &digest, &signatures).is_err(), refusal.is_some());
            let elsewhere = policy(Require::Only(["b".parse().unwrap()].into()));
            assert!(elsewhere.check(&name, &version, &digest, &signatures).is_ok());
            assert!(policy(Require::None).check(&name, &version, &digest, &signatures).is_ok());
        }
    }

    #[test]
    fn signatures_lie_beside_the_image() {
        let digest = Digest::from_sha256(&[0xab; 32]);
        let image = signature_image(&"a".parse().unwrap(), &digest).unwrap();
        assert_eq!(image, format!("localhost/capsules/a:sha256-{}.sig", "ab".repeat(32)));
    }
}
