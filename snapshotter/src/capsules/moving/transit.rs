//! What is on its way: content under a lease and a name of its own, in the capsule namespace and in nobody's sight.

use crate::{
    capsules::{CapsuleError, Capsules, leases::LeaseName},
    containerd::{ImageRecord, Scope},
};

/// Repository of names of what is on its way. What is called so is no version.
pub const TRANSIT: &str = "localhost/capsules-in-transit/";
/// How long it may take before containerd may collect what came, in seconds.
const LEASE_SECONDS: u64 = 24 * 3600;

/// Something on its way, until [`Capsules::finish`].
#[derive(Debug)]
pub(super) struct Transit {
    /// With the lease.
    pub(super) scope: Scope,
    lease: LeaseName,
    /// What came has this name.
    pub(super) name: String,
    /// And what lay beside it this.
    pub(super) signatures: String,
}

impl Capsules {
    pub(super) async fn begin(&self) -> Result<Transit, CapsuleError> {
        self.containerd.ensure_namespace(&self.namespace).await?;
        let lease = self.lease("transit");
        let id = lease.as_str();
        let scope = self.containerd.namespace(&self.namespace)?.leased(id, LEASE_SECONDS).await?;
        let (name, signatures) = (format!("{TRANSIT}{id}:0"), format!("{TRANSIT}{id}:sig"));
        Ok(Transit { scope, lease, name, signatures })
    }

    /// Takes the name and the lease away. What came and is no version is gone when this returns: a failed transfer leaves
    /// nothing that fills the disk.
    pub(super) async fn finish<T>(
        &self,
        transit: Transit,
        outcome: Result<T, CapsuleError>,
    ) -> Result<T, CapsuleError> {
        let Transit { scope, lease, name, signatures } = transit;
        let forgotten = scope.delete_image(&name).await.and(scope.delete_image(&signatures).await);
        let released = match outcome {
            Ok(_) => scope.release().await,
            Err(_) => scope.release_and_collect().await,
        };
        drop(lease);
        if forgotten.is_err() {
            self.is_to_sweep();
        }
        // The first error is the one to tell.
        let outcome = outcome?;
        forgotten?;
        released?;
        Ok(outcome)
    }

    /// Takes away the names of what no call has on its way any more; [`Capsules::release_stale`] does their leases.
    pub(in crate::capsules) async fn clear_transits(
        &self,
        scope: &Scope,
        images: &[ImageRecord],
    ) -> Result<(), CapsuleError> {
        for image in images {
            if image.name.starts_with(TRANSIT) && !self.is_live(&image.name) {
                tracing::info!(image = image.name, "removing what did not arrive");
                scope.delete_image(&image.name).await?;
            }
        }
        Ok(())
    }
}
