//! From registries.

use super::{Arrived, MoveError, Trouble, reference::Reference, transit::Transit};
use crate::{
    capsules::{
        CapsuleError, Capsules,
        claim::{Arriving, Naming, read_arriving},
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

    /// A failure, with what this containerd cannot do where that may be why.
    pub(super) async fn told(
        &self,
        action: &'static str,
        reference: &str,
        error: ContainerdError,
    ) -> MoveError {
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
