//! Tags: names of versions that move, as `latest`, `stable`, `dev-BRANCH-COMMIT`.
//!
//! A tag is an image record of its own that stands for the version's manifest. It and the versions of its capsule share
//! one space of names, because they share one of references: no tag is called as a version, and no version as a tag.

use std::collections::HashMap;

use super::{
    CapsuleError, Capsules,
    catalogue::{Published, image_name},
    model::{CapsuleName, Version},
    oci,
};
use crate::containerd::{ImageRecord, Scope};

/// What is wrong with a tag.
#[derive(Debug, thiserror::Error)]
pub enum TagError {
    /// A tag of this name would hide a version, or be hidden by it.
    #[error("{name}@{tag} is a version: give the tag another name")]
    IsVersion {
        /// The capsule.
        name: CapsuleName,
        /// What was to be a tag.
        tag: Version,
    },
    /// The version itself is to be published under this name.
    #[error("{name}@{tag} is what is published: give the tag another name")]
    IsItself {
        /// The capsule.
        name: CapsuleName,
        /// What was to be a tag.
        tag: Version,
    },
    /// A version of this name would be hidden by a tag.
    #[error(
        "{name}@{version} is a tag of {name}@{of}: choose another version, or take the tag away with \
         \"capsulectl untag {name}@{version}\""
    )]
    Taken {
        /// The capsule.
        name: CapsuleName,
        /// What was to be a version.
        version: Version,
        /// What the tag stands for.
        of: Version,
    },
    /// There is no such tag.
    #[error("capsule {name} has no tag {tag}: see \"capsulectl ls {name}\"")]
    Unknown {
        /// The capsule.
        name: CapsuleName,
        /// What was asked for.
        tag: Version,
    },
    /// The tag is in the reference of an image that we did not make.
    #[error(
        "the tag {name}@{tag} is the reference of the image {image}: remove that with \"ctr -n {namespace} images rm \
         {image}\""
    )]
    Foreign {
        /// The capsule.
        name: CapsuleName,
        /// What was to go.
        tag: Version,
        /// The image.
        image: String,
        /// Its containerd namespace.
        namespace: String,
    },
}

/// How a change of an image record is taken back.
pub(super) enum Undo {
    Delete(String),
    Restore(ImageRecord),
}

impl Capsules {
    /// Refuses tags that a version could not have, before anything is done.
    ///
    /// # Errors
    /// [`TagError`]; containerd's.
    pub async fn check_tags(
        &self,
        name: &CapsuleName,
        version: &Version,
        tags: &[Version],
    ) -> Result<(), CapsuleError> {
        let catalogue = self.listed().await?;
        for tag in tags {
            let (name, tag) = (name.clone(), tag.clone());
            if tag == *version {
                return Err(TagError::IsItself { name, tag }.into());
            }
            if catalogue.version(&name, &tag).is_some() {
                return Err(TagError::IsVersion { name, tag }.into());
            }
        }
        Ok(())
    }

    /// Refuses to publish a version that is called as a tag. From memory; the record's own name is the judge.
    pub(super) async fn check_version(
        &self,
        name: &CapsuleName,
        version: &Version,
    ) -> Result<(), CapsuleError> {
        match self.listed().await?.tag(name, version) {
            Some(tagged) => Err(taken(name, version, tagged.version)),
            None => Ok(()),
        }
    }

    /// Lets each of `tags` stand for a version, whatever it stood for: all of them or none. Durable when it returns.
    ///
    /// # Errors
    /// [`TagError::IsVersion`]; as [`Capsules::resolve`].
    pub async fn tag(
        &self,
        name: &CapsuleName,
        version: Option<&Version>,
        tags: &[Version],
    ) -> Result<Published, CapsuleError> {
        let found = self.resolve(name, version).await?;
        let _names = self.names.lock().await;
        self.check_tags(name, &found.version, tags).await?;
        let scope = self.containerd.namespace(&self.namespace)?;
        let published = self.catalogue().find(name, Some(&found.version))?;
        let of = scope.image(&published.image_name).await?.ok_or_else(|| {
            let missing = format!("its image {} is gone", published.image_name);
            self.incomplete(name, &found.version, missing)
        })?;
        let mut undo = Vec::new();
        let applied = self.apply_all(&scope, &of, (name, &published.version), tags, &mut undo).await;
        if let Err(error) = applied {
            self.take_back(&scope, undo).await;
            return Err(error);
        }
        for tag in tags {
            self.refresh(&image_name(name, tag)).await?;
        }
        self.catalogue().find(name, Some(&found.version))
    }

    /// Takes a tag away; the version that it stood for, if that is there.
    ///
    /// # Errors
    /// [`TagError::Unknown`], [`TagError::Foreign`]; containerd's.
    pub async fn untag(&self, name: &CapsuleName, tag: &Version) -> Result<Option<Published>, CapsuleError> {
        let _names = self.names.lock().await;
        let scope = self.containerd.namespace(&self.namespace)?;
        let reference = image_name(name, tag);
        self.refresh(&reference).await?;
        let Some(tagged) = self.listed().await?.tag(name, tag) else {
            return Err(TagError::Unknown { name: name.clone(), tag: tag.clone() }.into());
        };
        if tagged.image_name != reference {
            return Err(TagError::Foreign {
                name: name.clone(),
                tag: tag.clone(),
                image: tagged.image_name,
                namespace: self.namespace.clone(),
            }
            .into());
        }
        if let Some(record) = scope.image(&reference).await? {
            self.keep_version(&scope, &record).await?;
        }
        scope.delete_image(&reference).await?;
        self.refresh(&reference).await?;
        Ok(self.catalogue().version(name, &tagged.version))
    }

    pub(super) async fn take_back(&self, scope: &Scope, undo: Vec<Undo>) {
        for one in undo.into_iter().rev() {
            let (name, done) = match &one {
                Undo::Delete(name) => (name, scope.delete_image(name).await),
                Undo::Restore(record) => (&record.name, scope.update_image(record).await),
            };
            if let Err(error) = done {
                tracing::warn!(image = name, %error, "a tag could not be put back");
                self.is_to_sweep();
            }
            // The event will tell what this cannot.
            self.refresh(name).await.ok();
        }
    }

    /// Gives versions the tags that a capsuled was about to give them when it was killed.
    ///
    /// # Errors
    /// containerd's.
    pub(super) async fn finish_tags(&self, scope: &Scope) -> Result<(), CapsuleError> {
        self.listed().await?;
        // No call is in the middle of it.
        let _names = self.names.lock().await;
        for record in scope.images().await? {
            let (plain, tags) = unmarked(&record);
            if tags.is_empty() {
                continue;
            }
            for (name, version) in self.catalogue.keys_of(&record.name) {
                tracing::info!(capsule = %name, %version, ?tags, "found half tagged: finished");
                self.give(scope, &plain, (&name, &version), &tags).await?;
            }
            scope.update_image(&plain).await?;
        }
        Ok(())
    }

    async fn give(
        &self,
        scope: &Scope,
        of: &ImageRecord,
        (name, version): (&CapsuleName, &Version),
        tags: &[Version],
    ) -> Result<(), CapsuleError> {
        for tag in tags {
            match self.apply_tag(scope, of, (name, version), tag).await {
                Ok(_) => self.refresh(&image_name(name, tag)).await?,
                Err(error @ CapsuleError::Tag(_)) => tracing::warn!(%error, "a tag is left out"),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Lets each of `tags` stand for the version whose record is `of`: all of them, also if capsuled is killed meanwhile, when it
    /// is there again. On an error, `undo` is what is to be taken back. `names` are held.
    pub(super) async fn apply_all(
        &self,
        scope: &Scope,
        of: &ImageRecord,
        (name, version): (&CapsuleName, &Version),
        tags: &[Version],
        undo: &mut Vec<Undo>,
    ) -> Result<(), CapsuleError> {
        let here = scope.image(&of.name).await?.unwrap_or_else(|| of.clone());
        // Marked for these by the call that has made it, or for others by a capsuled that was killed.
        let (plain, marks) = unmarked(&here);
        let pending: Vec<Version> =
            marks.iter().chain(tags.iter().filter(|tag| !marks.contains(tag))).cloned().collect();
        // One record is made or not; of several, some.
        if pending.len() > 1 && pending != marks {
            scope.update_image(&marked(&plain, &pending)).await?;
            undo.push(Undo::Restore(here.clone()));
        }
        for tag in &pending {
            match self.apply_tag(scope, of, (name, version), tag).await {
                Ok(done) => undo.extend(done),
                Err(CapsuleError::Tag(error)) if !tags.contains(tag) => {
                    tracing::warn!(%error, "a tag is left out")
                }
                Err(error) => return Err(error),
            }
        }
        if pending.len() > 1 || !marks.is_empty() {
            scope.update_image(&plain).await?;
        }
        Ok(())
    }

    /// `None` where the tag stands for it already. `names` are held.
    pub(super) async fn apply_tag(
        &self,
        scope: &Scope,
        of: &ImageRecord,
        (name, version): (&CapsuleName, &Version),
        tag: &Version,
    ) -> Result<Option<Undo>, CapsuleError> {
        let record = ImageRecord {
            name: image_name(name, tag),
            labels: HashMap::from([
                (oci::NAME.to_owned(), name.to_string()),
                (oci::VERSION.to_owned(), version.to_string()),
                (oci::TAG.to_owned(), tag.to_string()),
            ]),
            created_at: None,
            ..of.clone()
        };
        match scope.image(&record.name).await? {
            None => {
                scope.create_image(&record).await?;
                Ok(Some(Undo::Delete(record.name)))
            }
            Some(old) if !old.labels.contains_key(oci::TAG) => {
                Err(TagError::IsVersion { name: name.clone(), tag: tag.clone() }.into())
            }
            Some(old) if old.digest == record.digest && old.labels == record.labels => Ok(None),
            Some(old) => {
                self.keep_version(scope, &old).await?;
                scope.update_image(&record).await?;
                Ok(Some(Undo::Restore(old)))
            }
        }
    }

    /// Gives the version that a tag stands for a record of its own, where the tag's is the only one: a removal that was broken off
    /// has left it so, and no version goes because a tag does.
    async fn keep_version(&self, scope: &Scope, tag: &ImageRecord) -> Result<(), CapsuleError> {
        let label = |key| tag.labels.get(key).map(String::as_str).unwrap_or_default();
        let (Ok(name), Ok(version)) = (label(oci::NAME).parse(), label(oci::VERSION).parse()) else {
            return Ok(());
        };
        let own = image_name(&name, &version);
        // The event of its end may be on its way.
        self.refresh(&own).await?;
        if self.catalogue().images_of(&name, &version).iter().any(|image| *image != tag.name) {
            return Ok(());
        }
        let mut labels = tag.labels.clone();
        labels.remove(oci::TAG);
        let own = ImageRecord { name: own, labels, created_at: None, ..tag.clone() };
        tracing::info!(capsule = %name, %version, "a version that was left by its tag alone has its own record again");
        match scope.create_image(&own).await {
            Err(error) if !error.is_already_exists() => Err(error.into()),
            _ => self.refresh(&own.name).await,
        }
    }
}

/// Before the number of a tag in the labels of a version's record: that it is to be given to it. They are there while some of
/// several records are made, and none but a killed capsuled leaves them.
const TAGGING: &str = "resourcecapsules.io/tagging.";

/// A version's record that says which tags it is about to have.
pub(super) fn marked(record: &ImageRecord, tags: &[Version]) -> ImageRecord {
    let mut record = record.clone();
    let marks = tags.iter().enumerate().map(|(index, tag)| (format!("{TAGGING}{index}"), tag.to_string()));
    record.labels.extend(marks);
    record
}

/// The record without that, and the tags.
fn unmarked(record: &ImageRecord) -> (ImageRecord, Vec<Version>) {
    let mut record = record.clone();
    let tags = record.labels.extract_if(|key, _| key.starts_with(TAGGING));
    let mut tags: Vec<Version> = tags.filter_map(|(_, tag)| tag.parse().ok()).collect();
    tags.sort();
    (record, tags)
}

/// The error for a version that is called as a tag of `of`.
pub(super) fn taken(name: &CapsuleName, version: &Version, of: Version) -> CapsuleError {
    TagError::Taken { name: name.clone(), version: version.clone(), of }.into()
}
