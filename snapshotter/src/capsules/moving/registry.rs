//! From and to registries.

use super::{Arrived, MoveError, Trouble, reference::Reference, transit::Transit};
use crate::{
    capsules::{
        CapsuleError, Capsules,
        catalogue::Published,
        claim::{Arriving, Naming, read_arriving},
        model::{CapsuleName, Version},
        signing::{Signature, read_signatures, signature_tag},
    },
    containerd::{ContainerdError, Credential, ImageRecord, Listener, Moved, RegistryImage},
};

impl Capsules {
    /// Fetches an image and makes it a version. `listener` is told how far it is; when it goes away the pull ends, and
    /// nothing is left of it.
    ///
    /// # Errors
    /// [`MoveError`], with what it means.
    pub async fn pull(
        &self,
        reference: &str,
        naming: &Naming,
        credentials: Vec<Credential>,
        listener: &Listener,
    ) -> Result<Arrived, CapsuleError> {
        let reference = Reference::parse(reference)?.source();
        self.listed().await?;
        let transit = self.begin().await?;
        let from = RegistryImage { reference, hosts: self.hosts.clone(), credentials };
        let outcome = self.pull_into(&transit, &from, naming, listener).await;
        self.finish(transit, outcome).await
    }

    async fn pull_into(
        &self,
        transit: &Transit,
        from: &RegistryImage,
        naming: &Naming,
        listener: &Listener,
    ) -> Result<Arrived, CapsuleError> {
        let Transit { scope, name, .. } = transit;
        if let Err(error) = scope.pull_image(from, name, listener).await {
            return Err(self.told("pull", &from.reference, error).await.into());
        }
        let missing = || ContainerdError::Incomplete { what: "pull".to_owned(), missing: "the image" };
        let came = scope.image(name).await?.ok_or_else(missing)?;
        let came = ImageRecord { name: from.reference.clone(), ..came };
        let mut arriving = read_arriving(scope, came, naming).await?;
        arriving.signatures = self.pull_signatures(transit, from, &arriving, listener).await?;
        let unpacking = Moved {
            event: "unpacking".to_owned(),
            name: format!("{}@{}", arriving.name, arriving.version),
            done: 0,
            total: 0,
        };
        listener.try_send(unpacking).ok();
        let mut arrived = self.keep(scope, &[arriving]).await?;
        arrived.pop().ok_or_else(|| missing().into())
    }

    /// What lies beside an image in the registry. Where that cannot be had the version comes without, unless the policy
    /// asks for it.
    async fn pull_signatures(
        &self,
        transit: &Transit,
        from: &RegistryImage,
        arriving: &Arriving,
        listener: &Listener,
    ) -> Result<Vec<Signature>, CapsuleError> {
        let reference = Reference::parse(&from.reference)?.sibling(&signature_tag(&arriving.digest));
        let beside = RegistryImage { reference, ..from.clone() };
        let Transit { scope, signatures, .. } = transit;
        match scope.pull_image(&beside, signatures, listener).await {
            Ok(()) => {}
            Err(ContainerdError::Abandoned) => {
                return Err(MoveError::failed("pull", &beside.reference, ContainerdError::Abandoned).into());
            }
            Err(error) => {
                if Trouble::of(&error) != Trouble::Unknown {
                    tracing::warn!(image = beside.reference, %error, "the signatures of what came could not be had");
                }
                return Ok(Vec::new());
            }
        }
        match scope.image(signatures).await? {
            Some(record) => read_signatures(scope, &record.digest).await,
            None => Ok(Vec::new()),
        }
    }

    /// Sends a version to a registry, with its signatures; where it is then.
    ///
    /// # Errors
    /// As [`Capsules::resolve`]; [`MoveError`].
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
        let beside = reference.sibling(&signature_tag(&found.digest));
        let reference = reference.destination(found.version.as_str())?;
        let scope = self.containerd.namespace(&self.namespace)?;
        if let Some(missing) = self.missing_blob(&scope, &found.image).await? {
            return Err(self.incomplete(name, &found.version, missing));
        }
        let to = RegistryImage { reference, hosts: self.hosts.clone(), credentials };
        let mut parts = vec![(published.image_name.clone(), to.clone())];
        if let Some(signatures) = self.beside(&scope, name, &found.digest).await? {
            // First: whoever pulls by the tag then finds both.
            parts.insert(0, (signatures.name, RegistryImage { reference: beside, ..to.clone() }));
        }
        for (image, to) in parts {
            if let Err(error) = scope.push_image(&image, &to, listener).await {
                return Err(self.told("push", &to.reference, error).await.into());
            }
        }
        Ok((published, to.reference))
    }

    /// A failure, with what this containerd cannot do where that may be why.
    async fn told(&self, action: &'static str, reference: &str, error: ContainerdError) -> MoveError {
        let failed = MoveError::failed(action, reference, error);
        match self.containerd.version().await {
            Ok(version) if version.trim_start_matches('v').starts_with("1.") => failed.with_hint(
                "the transfer service of containerd 1.7 speaks HTTPS only and reads no registry hosts: go by \"ctr\" or \
                 \"nerdctl\", and \"capsulectl import\" what they pulled; or use containerd 2.0 or newer",
            ),
            _ => failed,
        }
    }
}
