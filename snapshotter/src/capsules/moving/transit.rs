//! What is on its way: content under a lease and a name of its own, in the capsule namespace and in nobody's sight.

use crate::{
    capsules::{CapsuleError, Capsules},
    containerd::Scope,
    fresh_id,
};

/// Repository of names of what is on its way. What is called so is no version.
pub const TRANSIT: &str = "localhost/capsules-in-transit/";
const LEASE: &str = "capsule-transit-";
/// How long it may take before containerd may collect what came, in seconds.
const LEASE_SECONDS: u64 = 24 * 3600;

/// Something on its way, until [`Capsules::finish`].
#[derive(Debug)]
pub(super) struct Transit {
    /// With the lease.
    pub(super) scope: Scope,
    /// What came has this name.
    pub(super) name: String,
    /// And what lay beside it this.
    pub(super) signatures: String,
    id: String,
}

impl Capsules {
    pub(super) async fn begin(&self) -> Result<Transit, CapsuleError> {
        self.containerd.ensure_namespace(&self.namespace).await?;
        let id = fresh_id();
        self.transits().insert(id.clone());
        let scope = self.containerd.namespace(&self.namespace)?;
        match scope.leased(&format!("{LEASE}{id}"), LEASE_SECONDS).await {
            Ok(scope) => {
                let (name, signatures) = (format!("{TRANSIT}{id}:0"), format!("{TRANSIT}{id}:sig"));
                Ok(Transit { scope, name, signatures, id })
            }
            Err(error) => {
                self.transits().remove(&id);
                Err(error.into())
            }
        }
    }

    /// Takes the name and the lease away. What came and is no version is gone when this returns: a failed transfer leaves
    /// nothing that fills the disk.
    pub(super) async fn finish<T>(
        &self,
        transit: Transit,
        outcome: Result<T, CapsuleError>,
    ) -> Result<T, CapsuleError> {
        let Transit { scope, name, signatures, id } = transit;
        let forgotten = scope.delete_image(&name).await.and(scope.delete_image(&signatures).await);
        let released = match outcome {
            Ok(_) => scope.release().await,
            Err(_) => scope.release_and_collect().await,
        };
        self.transits().remove(&id);
        // The first error is the one to tell.
        let outcome = outcome?;
        forgotten?;
        released?;
        Ok(outcome)
    }

    /// Takes away what a capsuled that was killed had on its way.
    pub(in crate::capsules) async fn clear_transits(&self, scope: &Scope) -> Result<(), CapsuleError> {
        let ours = |id: &str| self.transits().contains(id);
        for image in scope.images().await? {
            let id = image.name.strip_prefix(TRANSIT).and_then(|rest| rest.split(':').next());
            if id.is_some_and(|id| !ours(id)) {
                tracing::info!(image = image.name, "removing what did not arrive");
                scope.delete_image(&image.name).await?;
            }
        }
        for lease in scope.leases().await? {
            if lease.strip_prefix(LEASE).is_some_and(|id| !ours(id)) {
                scope.delete_lease(&lease, false).await?;
            }
        }
        Ok(())
    }

    fn transits(&self) -> std::sync::MutexGuard<'_, std::collections::HashSet<String>> {
        self.transits.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
