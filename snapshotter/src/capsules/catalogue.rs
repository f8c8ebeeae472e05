//! What is published, held in memory so that an attach asks containerd nothing.
//!
//! Filled by listing once, then kept true by containerd's image events. An image of the capsule namespace is a
//! version if its labels say so, or else by its reference: `…/NAME:VERSION`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use super::{
    CapsuleError, Capsules,
    model::{CapsuleName, Digest, Version},
    oci::{self, Image},
};
use crate::containerd::{ContainerdError, ImageRecord, Scope};

/// Repository of the images that we make. Not a registry: a version is retagged before it is pushed.
pub const REPOSITORY: &str = "localhost/capsules";
/// Largest manifest or configuration that is read: what registries accept.
const JSON_LIMIT: usize = 4 << 20;

/// The reference of a version that we publish.
pub fn image_name(name: &CapsuleName, version: &Version) -> String {
    format!("{REPOSITORY}/{name}:{version}")
}

/// One published version.
#[derive(Debug, Clone)]
pub struct Published {
    /// The capsule.
    pub name: CapsuleName,
    /// The version.
    pub version: Version,
    /// What the image's name stands for: the version's identity.
    pub digest: Digest,
    /// The image's name in containerd.
    pub image_name: String,
    /// When the record was made.
    pub created_at: Option<SystemTime>,
    /// What the image says, or why it cannot be read.
    pub image: Result<Image, String>,
}

/// A version found, with an image that could be read.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The capsule.
    pub name: CapsuleName,
    /// The version.
    pub version: Version,
    /// The version's identity.
    pub digest: Digest,
    /// What the image says.
    pub image: Image,
}

type Versions = BTreeMap<CapsuleName, BTreeMap<Version, Published>>;

/// The published versions: cheap to clone, shared.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    versions: Arc<RwLock<Versions>>,
    /// Whether containerd has been listed: until then, nothing found means nothing.
    listed: Arc<AtomicBool>,
}

impl Catalogue {
    /// Versions of one capsule, or of all; by name, then newest first.
    pub fn list(&self, name: Option<&CapsuleName>) -> Vec<Published> {
        let versions = self.versions.read().unwrap_or_else(PoisonError::into_inner);
        versions
            .iter()
            .filter(|(n, _)| name.is_none_or(|wanted| wanted == *n))
            .flat_map(|(_, all)| all.values().rev().cloned())
            .collect()
    }

    /// The version asked for, or the newest: the highest release, or the highest pre-release if there is no
    /// release.
    pub fn find(&self, name: &CapsuleName, version: Option<&Version>) -> Result<Published, CapsuleError> {
        let versions = self.versions.read().unwrap_or_else(PoisonError::into_inner);
        let all = versions
            .get(name)
            .filter(|all| !all.is_empty())
            .ok_or_else(|| CapsuleError::UnknownCapsule { name: name.clone() })?;
        let Some(version) = version else {
            let release = all.values().rev().find(|p| !p.version.is_prerelease());
            let newest = release.or_else(|| all.values().next_back());
            return newest.cloned().ok_or_else(|| CapsuleError::UnknownCapsule { name: name.clone() });
        };
        all.get(version).cloned().ok_or_else(|| CapsuleError::UnknownVersion {
            name: name.clone(),
            version: version.clone(),
            have: all.keys().rev().map(Version::as_str).collect::<Vec<_>>().join(", "),
        })
    }

    pub(crate) fn put(&self, published: Published) {
        let mut versions = self.versions.write().unwrap_or_else(PoisonError::into_inner);
        let of_name = versions.entry(published.name.clone()).or_default();
        match of_name.get(&published.version) {
            // Two images that claim one version: the one under our own reference wins, then the first by name.
            Some(old) if rank(&old.image_name, old) < rank(&published.image_name, &published) => {
                tracing::warn!(
                    capsule = %published.name, version = %published.version,
                    kept = old.image_name, ignored = published.image_name,
                    "two images claim the same version"
                );
            }
            _ => {
                of_name.insert(published.version.clone(), published);
            }
        }
    }

    fn forget(&self, image_name: &str) {
        let mut versions = self.versions.write().unwrap_or_else(PoisonError::into_inner);
        for all in versions.values_mut() {
            all.retain(|_, p| p.image_name != image_name);
        }
        versions.retain(|_, all| !all.is_empty());
    }

    fn replace(&self, all: Vec<Published>) {
        self.versions.write().unwrap_or_else(PoisonError::into_inner).clear();
        for published in all {
            self.put(published);
        }
        self.listed.store(true, Ordering::Release);
    }
}

fn rank<'a>(image: &'a str, published: &Published) -> (bool, &'a str) {
    (image != image_name(&published.name, &published.version), image)
}

impl Capsules {
    /// Reads what is published from containerd.
    pub async fn reload(&self) -> Result<(), CapsuleError> {
        let scope = self.containerd.namespace(&self.namespace)?;
        let mut all = Vec::new();
        for record in scope.images().await? {
            if let Some(published) = self.read_published(&scope, &record).await? {
                all.push(published);
            }
        }
        self.catalogue.replace(all);
        Ok(())
    }

    /// The catalogue, read now if it has not been read since the start.
    ///
    /// # Errors
    /// containerd's, then only: a node whose capsules are unknown is not one without capsules.
    pub async fn listed(&self) -> Result<&Catalogue, CapsuleError> {
        if !self.catalogue.listed.load(Ordering::Acquire) {
            self.reload().await?;
        }
        Ok(&self.catalogue)
    }

    /// Reads one image again after an event.
    pub async fn refresh(&self, image_name: &str) -> Result<(), CapsuleError> {
        let scope = self.containerd.namespace(&self.namespace)?;
        let record = scope.image(image_name).await?;
        self.catalogue.forget(image_name);
        if let Some(record) = record
            && let Some(published) = self.read_published(&scope, &record).await?
        {
            self.catalogue.put(published);
        }
        Ok(())
    }

    /// The version asked for, or the newest, from memory. An image that could not be read when it was last looked
    /// at is looked at once more.
    pub async fn resolve(
        &self,
        name: &CapsuleName,
        version: Option<&Version>,
    ) -> Result<Resolved, CapsuleError> {
        let mut found = match self.catalogue.find(name, version) {
            Ok(found) => found,
            // An import that has just ended may be ahead of its event.
            Err(CapsuleError::UnknownCapsule { .. } | CapsuleError::UnknownVersion { .. }) => {
                self.reload().await?;
                self.catalogue.find(name, version)?
            }
            Err(other) => return Err(other),
        };
        if found.image.is_err() {
            self.refresh(&found.image_name).await?;
            found = self.catalogue.find(name, Some(&found.version))?;
        }
        match found.image {
            Ok(image) => {
                Ok(Resolved { name: found.name, version: found.version, digest: found.digest, image })
            }
            Err(missing) => Err(self.incomplete(&found.name, &found.version, missing)),
        }
    }

    pub(super) fn incomplete(&self, name: &CapsuleName, version: &Version, missing: String) -> CapsuleError {
        CapsuleError::Incomplete {
            name: name.clone(),
            version: version.clone(),
            missing,
            namespace: self.namespace.clone(),
        }
    }

    async fn read_published(
        &self,
        scope: &Scope,
        record: &ImageRecord,
    ) -> Result<Option<Published>, CapsuleError> {
        let (Some((name, version)), Ok(digest)) = (identify(record), record.digest.parse::<Digest>()) else {
            return Ok(None);
        };
        let image = match read_image(scope, &record.media_type, &digest).await {
            Ok(image) => Ok(image),
            Err(ReadError::Unusable(why)) => Err(why),
            Err(ReadError::Containerd(e)) => return Err(e.into()),
        };
        Ok(Some(Published {
            name,
            version,
            digest,
            image_name: record.name.clone(),
            created_at: record.created_at,
            image,
        }))
    }
}

/// The capsule and version that an image is, by its labels or else its reference; `None` if it can be neither.
fn identify(record: &ImageRecord) -> Option<(CapsuleName, Version)> {
    if let (Some(name), Some(version)) = (record.labels.get(oci::NAME), record.labels.get(oci::VERSION)) {
        return Some((name.parse().ok()?, version.parse().ok()?));
    }
    let last = record.name.rsplit('/').next()?;
    let last = last.split('@').next()?;
    let (name, version) = last.split_once(':')?;
    // CRI keeps a record of each image under `sha256:ID`.
    if name == "sha256" {
        return None;
    }
    Some((name.parse().ok()?, version.parse().ok()?))
}

pub(super) enum ReadError {
    Unusable(String),
    Containerd(ContainerdError),
}

impl From<ContainerdError> for ReadError {
    fn from(e: ContainerdError) -> Self {
        Self::Containerd(e)
    }
}

pub(super) async fn read_image(scope: &Scope, media_type: &str, digest: &Digest) -> Result<Image, ReadError> {
    let unusable = |e: oci::OciError| ReadError::Unusable(describe(&e));
    let mut manifest = digest.clone();
    if oci::INDEXES.contains(&media_type) {
        let bytes = read_part(scope, "index", digest).await?;
        let chosen = oci::parse_index(digest, &bytes).map_err(unusable)?;
        manifest = chosen
            .ok_or_else(|| ReadError::Unusable(format!("index {digest} has no image for this machine")))?
            .digest;
    }
    let bytes = read_part(scope, "manifest", &manifest).await?;
    let image = oci::parse_manifest(&manifest, &bytes).map_err(unusable)?;
    let bytes = read_part(scope, "configuration", &image.config.digest).await?;
    oci::parse_config(image, &bytes).map_err(unusable)
}

async fn read_part(scope: &Scope, what: &str, digest: &Digest) -> Result<Vec<u8>, ReadError> {
    let bytes = scope.read_blob(digest.as_str(), JSON_LIMIT).await?;
    bytes.ok_or_else(|| ReadError::Unusable(format!("{what} {digest} is not in containerd's content store")))
}

fn describe(e: &dyn std::error::Error) -> String {
    match e.source() {
        Some(source) => format!("{e}: {source}"),
        None => e.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, labels: &[(&str, &str)]) -> ImageRecord {
        ImageRecord {
            name: name.into(),
            labels: labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            media_type: oci::MANIFEST.into(),
            digest: Digest::from_sha256(&[1; 32]).to_string(),
            size: 1,
            created_at: None,
        }
    }

    fn published(name: &str, version: &str, image: &str) -> Published {
        Published {
            name: name.parse().unwrap(),
            version: version.parse().unwrap(),
            digest: Digest::from_sha256(&[1; 32]),
            image_name: image.into(),
            created_at: None,
            image: Err("unread".into()),
        }
    }

    #[test]
    fn images_are_identified_by_label_or_reference() {
        let id = |r: &ImageRecord| identify(r).map(|(n, v)| format!("{n}@{v}"));
        let labels = [(oci::NAME, "tzdata"), (oci::VERSION, "2024.1")];
        assert_eq!(id(&record("whatever", &labels)).as_deref(), Some("tzdata@2024.1"));
        assert_eq!(id(&record("localhost/capsules/a:1", &[])).as_deref(), Some("a@1"));
        assert_eq!(id(&record("host:5000/x/b:2.0", &[])).as_deref(), Some("b@2.0"));
        assert_eq!(id(&record("b:2.0@sha256:00", &[])).as_deref(), Some("b@2.0"));
        assert_eq!(id(&record("sha256:abc", &[])), None);
        assert_eq!(id(&record("no-tag", &[])), None);
    }

    #[test]
    fn the_newest_release_is_found() {
        let catalogue = Catalogue::default();
        for version in ["1.9", "1.10", "2.0-rc.1"] {
            catalogue.put(published("a", version, version));
        }
        let name: CapsuleName = "a".parse().unwrap();
        assert_eq!(catalogue.find(&name, None).unwrap().version.as_str(), "1.10");
        catalogue.forget("1.10");
        catalogue.forget("1.9");
        assert_eq!(catalogue.find(&name, None).unwrap().version.as_str(), "2.0-rc.1");
        let missing = catalogue.find(&name, Some(&"3".parse().unwrap())).unwrap_err();
        assert_eq!(missing.to_string(), "capsule a has no version 3: it has 2.0-rc.1");
        catalogue.forget("2.0-rc.1");
        assert!(matches!(catalogue.find(&name, None), Err(CapsuleError::UnknownCapsule { .. })));
    }

    #[test]
    fn our_own_reference_wins_over_another_claim() {
        let catalogue = Catalogue::default();
        catalogue.put(published("a", "1", "localhost/capsules/a:1"));
        catalogue.put(published("a", "1", "elsewhere/a:1"));
        assert_eq!(catalogue.list(None)[0].image_name, "localhost/capsules/a:1");
        let other = Catalogue::default();
        other.put(published("a", "1", "elsewhere/a:1"));
        other.put(published("a", "1", "localhost/capsules/a:1"));
        assert_eq!(other.list(None)[0].image_name, "localhost/capsules/a:1");
    }
}
