//! To registries. What is there is looked at first: a version never changes, and what others have signed stays signed.
//!
//! A registry has no call that does both at once: of two pushes at the same moment the later one counts.

use std::collections::HashMap;

use tokio::sync::mpsc;

use super::{MoveError, Trouble, reference::Reference, transit::Transit};
use crate::{
    capsules::{
        CapsuleError, Capsules,
        catalogue::{Published, Resolved},
        model::{CapsuleName, Digest, Version},
        oci,
        signing::{MOST, Signature, read_signatures, signature_tag, write_signatures},
    },
    containerd::{ContainerdError, Credential, ImageRecord, Listener, Moved, RegistryImage},
};

/// What of a transfer's progress may be unread while it is looked at.
const UNREAD: usize = 256;

impl Capsules {
    /// Sends a version to a registry, with its signatures, beside those that it has there; where it is then.
    ///
    /// # Errors
    /// As [`Capsules::resolve`]; [`MoveError`], of which [`MoveError::Published`] is told before anything is sent.
    pub async fn push(
        &self,
        (name, version): (&CapsuleName, Option<&Version>),
        reference: &str,
        credentials: Vec<Credential>,
        listener: &Listener,
    ) -> Result<(Published, String), CapsuleError> {
        let reference = Reference::parse(reference)?;
        let found = self.resolve(name, version).await?;
        let published = self.catalogue().find(name, Some(&found.version))?;
        let to = reference.destination(found.version.as_str())?;
        let to = RegistryImage { reference: to, hosts: self.hosts.clone(), credentials };
        let beside = reference.sibling(&signature_tag(&found.digest));
        let beside = RegistryImage { reference: beside, ..to.clone() };
        let scope = self.containerd.namespace(&self.namespace)?;
        if let Some(missing) = self.missing_blob(&scope, &found.image).await? {
            return Err(self.incomplete(name, &found.version, missing));
        }
        let transit = self.begin().await?;
        let outcome = self.push_from(&transit, &found, &published.image_name, [&to, &beside], listener).await;
        self.finish(transit, outcome).await?;
        Ok((published, to.reference))
    }

    async fn push_from(
        &self,
        transit: &Transit,
        found: &Resolved,
        image: &str,
        [to, beside]: [&RegistryImage; 2],
        listener: &Listener,
    ) -> Result<(), CapsuleError> {
        self.check_destination(transit, found, to, listener).await?;
        let signatures = self.signatures_to_push(transit, found, beside, listener).await?;
        // First: whoever pulls by the tag then finds both.
        let parts = signatures.iter().map(|image| (image.as_str(), beside)).chain([(image, to)]);
        for (image, to) in parts {
            if let Err(error) = transit.scope.push_image(image, to, listener).await {
                return Err(self.told("push", &to.reference, error).await.into());
            }
        }
        Ok(())
    }

    /// Refuses to change what a version is in the registry. A tag moves there as it does here.
    async fn check_destination(
        &self,
        transit: &Transit,
        found: &Resolved,
        to: &RegistryImage,
        listener: &Listener,
    ) -> Result<(), CapsuleError> {
        let tag = to.reference.rsplit_once(':').and_then(|(_, tag)| tag.parse().ok());
        let is_version =
            |tag: &Version| *tag == found.version || self.catalogue().version(&found.name, tag).is_some();
        if !tag.as_ref().is_some_and(is_version) {
            return Ok(());
        }
        match self.digest_there(transit, &found.digest, to, listener).await? {
            Some(there) if there != found.digest.as_str() => Err(MoveError::Published {
                name: found.name.clone(),
                version: found.version.clone(),
                reference: to.reference.clone(),
                there,
                here: Box::new(found.digest.clone()),
            }
            .into()),
            _ => Ok(()),
        }
    }

    /// What a reference stands for in the registry; `None` where there is nothing. Of what is `ours` nothing is fetched,
    /// and of another no more than comes until it is seen to be that.
    async fn digest_there(
        &self,
        transit: &Transit,
        ours: &Digest,
        from: &RegistryImage,
        listener: &Listener,
    ) -> Result<Option<String>, CapsuleError> {
        let (teller, mut told) = mpsc::channel::<Moved>(UNREAD);
        let another = async {
            while let Some(moved) = told.recv().await {
                match root_of(&moved.name) {
                    Some(root) if root != ours.as_str() => return root.to_owned(),
                    // What comes next are its parts.
                    Some(_) => break,
                    None => {}
                }
            }
            std::future::pending().await
        };
        let answer = tokio::select! {
            biased;
            () = listener.closed() => Err(ContainerdError::Abandoned),
            there = another => return Ok(Some(there)),
            answer = transit.scope.pull_image(from, &transit.name, &teller) => answer,
        };
        match answer {
            Ok(()) => Ok(transit.scope.image(&transit.name).await?.map(|image| image.digest)),
            Err(error) if Trouble::of(&error) == Trouble::Unknown => Ok(None),
            Err(error) => Err(self.told("push", &from.reference, error).await.into()),
        }
    }

    /// The image of signatures that is to be sent: those here, after those that the registry has. `None` where it has all.
    async fn signatures_to_push(
        &self,
        transit: &Transit,
        found: &Resolved,
        beside: &RegistryImage,
        listener: &Listener,
    ) -> Result<Option<String>, CapsuleError> {
        let Transit { scope, signatures: name, .. } = transit;
        let Some(here) = self.beside(scope, &found.name, &found.digest).await? else { return Ok(None) };
        match scope.pull_image(beside, name, listener).await {
            Ok(()) => {}
            Err(error) if Trouble::of(&error) == Trouble::Unknown => return Ok(Some(here.name)),
            Err(error) => return Err(self.told("push", &beside.reference, error).await.into()),
        }
        let missing = || ContainerdError::Incomplete { what: "pull".to_owned(), missing: "the signatures" };
        let there = scope.image(name).await?.ok_or_else(missing)?;
        let mut all = read_signatures(scope, &there.digest).await?;
        let more: Vec<Signature> = read_signatures(scope, &here.digest)
            .await?
            .into_iter()
            .filter(|one| !all.contains(one))
            .collect();
        if more.is_empty() {
            return Ok(None);
        }
        all.extend(more);
        if all.len() > MOST {
            return Err(MoveError::Signatures { reference: beside.reference.clone(), most: MOST }.into());
        }
        let (digest, size) = write_signatures(scope, all.into_iter()).await?;
        let merged = ImageRecord {
            name: name.clone(),
            labels: HashMap::new(),
            media_type: oci::MANIFEST.to_owned(),
            digest: digest.to_string(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            created_at: None,
        };
        scope.update_image(&merged).await?;
        Ok(Some(merged.name))
    }
}

/// The digest in the name under which containerd tells of a manifest or an index (v2.1.9 `core/remotes/handlers.go`,
/// `MakeRefKey`). Of an image it tells of that which its name stands for first.
fn root_of(name: &str) -> Option<&str> {
    ["manifest-", "index-"].iter().find_map(|kind| name.strip_prefix(kind)).filter(|name| name.contains(':'))
}

#[cfg(test)]
mod tests;
