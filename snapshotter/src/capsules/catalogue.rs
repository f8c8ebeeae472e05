//! What is published, held in memory so that an attach asks containerd nothing.
//!
//! Filled by listing once, then kept true by containerd's image events. Several images may be one version: it is there
//! as long as one of them is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use super::{
    CapsuleError, Capsules,
    claim::Claim,
    declared::Declared,
    model::{CapsuleName, Digest, Version},
    oci::Image,
    requirement::{Requirement, show},
    resolve::highest,
    told::{Key, Known},
};
/// Repository of the images that we make. Not a registry: a version is retagged before it is pushed.
pub const REPOSITORY: &str = "localhost/capsules";
/// The newest version, unless a tag is called so.
pub const LATEST: &str = "latest";

/// The reference of a version that we publish, and of a tag that we make.
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

impl Resolved {
    /// What the version says of itself beside its tree.
    ///
    /// # Errors
    /// [`CapsuleError::Declared`].
    pub fn declared(&self) -> Result<Declared, CapsuleError> {
        self.image.declared().map_err(|reason| CapsuleError::Declared {
            name: self.name.clone(),
            version: self.version.clone(),
            reason,
        })
    }
}

/// A moving name of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tagged {
    /// The capsule.
    pub name: CapsuleName,
    /// The name that moves.
    pub tag: Version,
    /// The version it stands for.
    pub version: Version,
    /// That version's identity: a tag of other content stands for nothing.
    pub digest: Digest,
    /// The image's name in containerd.
    pub image_name: String,
}

/// Images that claim to be one version, or one tag; the one that counts first.
type Claims<T> = BTreeMap<CapsuleName, BTreeMap<Version, Vec<T>>>;

#[derive(Debug, Default)]
struct Shelf {
    versions: Claims<Published>,
    tags: Claims<Tagged>,
}

impl Shelf {
    fn add(&mut self, claim: Claim) {
        let Claim { version: published, tag } = claim;
        let of_name = self.versions.entry(published.name.clone()).or_default();
        let claims = of_name.entry(published.version.clone()).or_default();
        if let Some(first) = claims.first().filter(|first| first.digest != published.digest) {
            tracing::warn!(
                capsule = %published.name, version = %published.version,
                one = first.image_name, other = published.image_name,
                "two images claim the same version"
            );
        }
        claims.push(published);
        // The one under our own reference counts, then the first by name.
        claims.sort_by_cached_key(|p| rank(&p.image_name, &p.name, &p.version));
        if let Some(tagged) = tag {
            let of_name = self.tags.entry(tagged.name.clone()).or_default();
            let claims = of_name.entry(tagged.tag.clone()).or_default();
            claims.push(tagged);
            claims.sort_by_cached_key(|t| rank(&t.image_name, &t.name, &t.tag));
        }
    }

    fn tagged(&self, name: &CapsuleName, tag: &Version) -> Option<&Published> {
        let tagged = self.tags.get(name)?.get(tag)?.first()?;
        self.versions.get(name)?.get(&tagged.version)?.iter().find(|p| p.digest == tagged.digest)
    }
}

/// What is published: cheap to clone, shared.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    shelf: Arc<RwLock<Shelf>>,
    /// Whether containerd has been listed: until then, nothing found means nothing.
    listed: Arc<AtomicBool>,
}

impl Catalogue {
    /// Versions of one capsule, or of all; by name, then newest first.
    pub fn list(&self, name: Option<&CapsuleName>) -> Vec<Published> {
        let shelf = self.read();
        shelf
            .versions
            .iter()
            .filter(|(n, _)| name.is_none_or(|wanted| wanted == *n))
            .flat_map(|(_, all)| all.values().rev().filter_map(|claims| claims.first()).cloned())
            .collect()
    }

    /// How many versions there are, of all capsules, and the bytes of their layers.
    pub fn count(&self) -> (usize, u64) {
        let shelf = self.read();
        let versions = shelf.versions.values().flat_map(BTreeMap::values).filter_map(|claims| claims.first());
        versions.fold((0, 0), |(count, bytes), version| {
            (count + 1, bytes + version.image.as_ref().map_or(0, Image::size))
        })
    }

    /// The version asked for: by its own name, by a tag, or by [`LATEST`] where no tag is called that. With no name the
    /// newest: the highest release, or the highest pre-release if there is no release.
    pub fn find(&self, name: &CapsuleName, version: Option<&Version>) -> Result<Published, CapsuleError> {
        let shelf = self.read();
        let unknown = || CapsuleError::UnknownCapsule { name: name.clone() };
        let all = shelf.versions.get(name).filter(|all| !all.is_empty()).ok_or_else(unknown)?;
        let Some(wanted) = version else { return newest(all).cloned().ok_or_else(unknown) };
        let found = all.get(wanted).and_then(|claims| claims.first());
        let found = found.or_else(|| shelf.tagged(name, wanted));
        let found = found.or_else(|| newest(all).filter(|_| wanted.as_str() == LATEST));
        found.cloned().ok_or_else(|| {
            let versions = all.keys().rev().map(ToString::to_string);
            let tags = shelf.tags.get(name).into_iter().flat_map(BTreeMap::keys);
            let tags = tags.filter(|tag| !all.contains_key(tag) && shelf.tagged(name, tag).is_some());
            let tags = tags.map(|tag| format!("{tag} (tag)"));
            CapsuleError::UnknownVersion {
                name: name.clone(),
                version: wanted.clone(),
                have: versions.chain(tags).collect::<Vec<_>>().join(", "),
            }
        })
    }

    /// The highest version of a capsule that is in a range, as where another capsule requires it; one that is complete, where there is one.
    pub fn find_within(&self, wanted: &Requirement) -> Result<Published, CapsuleError> {
        let all = self.list(Some(&wanted.name));
        if all.is_empty() {
            return Err(CapsuleError::UnknownCapsule { name: wanted.name.clone() });
        }
        let complete = || all.iter().filter(|one| one.image.is_ok()).map(|one| &one.version);
        let found = highest(&wanted.versions, complete);
        let found = found.or_else(|| highest(&wanted.versions, || all.iter().map(|one| &one.version)));
        let found = found.and_then(|version| all.iter().find(|one| one.version == *version));
        found.cloned().ok_or_else(|| CapsuleError::NoneWithin {
            name: wanted.name.clone(),
            range: show(&wanted.versions),
            have: all.iter().map(|one| one.version.to_string()).collect::<Vec<_>>().join(", "),
        })
    }

    /// The version under exactly this name: no tag, and no [`LATEST`] that is none.
    pub fn version(&self, name: &CapsuleName, version: &Version) -> Option<Published> {
        self.read().versions.get(name)?.get(version)?.first().cloned()
    }

    /// The tag, whatever it stands for.
    pub fn tag(&self, name: &CapsuleName, tag: &Version) -> Option<Tagged> {
        self.read().tags.get(name)?.get(tag)?.first().cloned()
    }

    /// The tags by which a version is found, in order.
    pub fn tags_of(&self, published: &Published) -> Vec<Version> {
        let shelf = self.read();
        let versions = shelf.versions.get(&published.name);
        let hidden = |tag: &Version| versions.is_some_and(|all| all.contains_key(tag));
        let of_name = shelf.tags.get(&published.name).into_iter().flatten();
        of_name
            .filter(|(tag, claims)| {
                let first = claims.first();
                let of_it = |t: &Tagged| {
                    t.version == published.version && t.digest == published.digest && !hidden(tag)
                };
                first.is_some_and(of_it)
            })
            .map(|(tag, _)| tag.clone())
            .collect()
    }

    /// Names of all images that hold this version, tags included: while one of them is there, so is the version.
    pub fn images_of(&self, name: &CapsuleName, version: &Version) -> Vec<String> {
        let shelf = self.read();
        let claims = shelf.versions.get(name).and_then(|all| all.get(version)).into_iter().flatten();
        claims.map(|p| p.image_name.clone()).collect()
    }

    #[cfg(test)]
    pub(crate) fn put(&self, published: Published) {
        self.write().add(Claim { version: published, tag: None });
    }

    pub(super) fn is_listed(&self) -> bool {
        self.listed.load(Ordering::Acquire)
    }

    /// The versions that an image claims to be.
    pub(super) fn keys_of(&self, image_name: &str) -> Vec<Key> {
        let shelf = self.read();
        let all = shelf
            .versions
            .iter()
            .flat_map(|(name, all)| all.iter().map(move |(v, claims)| (name, v, claims)));
        let claims = |claims: &[Published]| claims.iter().any(|p| p.image_name == image_name);
        all.filter(|(_, _, all)| claims(all))
            .map(|(name, version, _)| (name.clone(), version.clone()))
            .collect()
    }

    /// These versions as they are, and the tags of their capsules.
    pub(super) fn known(&self, keys: &BTreeSet<Key>) -> Known {
        let shelf = self.read();
        let first =
            |(name, version): &Key| Some(shelf.versions.get(name)?.get(version)?.first()?.digest.clone());
        let versions = keys.iter().filter_map(|key| Some((key.clone(), first(key)?))).collect();
        let names: BTreeSet<&CapsuleName> = keys.iter().map(|(name, _)| name).collect();
        let tags = names.into_iter().filter_map(|name| shelf.tags.get(name)).flatten();
        let tagged = |(tag, claims): (&Version, &Vec<Tagged>)| {
            let first = claims.first()?;
            Some(((first.name.clone(), tag.clone()), (first.version.clone(), first.digest.clone())))
        };
        Known { versions, tags: tags.filter_map(tagged).collect() }
    }

    pub(super) fn keys(&self) -> BTreeSet<Key> {
        let shelf = self.read();
        let all =
            shelf.versions.iter().flat_map(|(name, all)| all.keys().map(move |v| (name.clone(), v.clone())));
        all.collect()
    }

    /// What an image is from now on; at no moment is it neither that nor what it was.
    pub(super) fn change(&self, image_name: &str, claim: Option<Claim>) {
        let mut shelf = self.write();
        forget(&mut shelf.versions, |p| p.image_name == image_name);
        forget(&mut shelf.tags, |t| t.image_name == image_name);
        if let Some(claim) = claim {
            shelf.add(claim);
        }
    }

    pub(crate) fn replace(&self, all: Vec<Claim>) {
        let mut shelf = self.write();
        *shelf = Shelf::default();
        for claim in all {
            shelf.add(claim);
        }
        drop(shelf);
        self.listed.store(true, Ordering::Release);
    }

    fn write(&self) -> RwLockWriteGuard<'_, Shelf> {
        self.shelf.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, Shelf> {
        self.shelf.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forget<T>(claims: &mut Claims<T>, of_image: impl Fn(&T) -> bool) {
    claims.retain(|_, all| {
        all.retain(|_, claims| {
            claims.retain(|claim| !of_image(claim));
            !claims.is_empty()
        });
        !all.is_empty()
    });
}

fn newest(all: &BTreeMap<Version, Vec<Published>>) -> Option<&Published> {
    let mut first = all.values().rev().filter_map(|claims| claims.first());
    first.clone().find(|p| !p.version.is_prerelease()).or_else(|| first.next())
}

fn rank(image: &str, name: &CapsuleName, version: &Version) -> (bool, String) {
    (image != image_name(name, version), image.to_owned())
}

impl Capsules {
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
}

#[cfg(test)]
mod tests;
