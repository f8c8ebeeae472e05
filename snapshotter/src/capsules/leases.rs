//! Leases of calls, and what is left of them when a daemon was killed.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use super::{CapsuleError, Capsules};
use crate::{
    containerd::{LEASE_LABEL, Lease},
    fresh_id,
};

/// How the names of all our leases begin; those of others may, too.
const LEASES: &str = "capsule-";
/// What leases were for when they had no label yet.
const UNLABELLED: [&str; 6] = ["collect", "publish", "sign", "sweep", "transit", "unpack"];

/// Whether a lease is one of ours. One of before the label has the very name that was given to it.
fn is_ours(lease: &Lease) -> bool {
    let Some(name) = lease.id.strip_prefix(LEASES) else { return false };
    let is_id = |id: &str| id.len() == 24 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let of_before = || name.split_once('-').is_some_and(|(what, id)| UNLABELLED.contains(&what) && is_id(id));
    lease.labels.contains_key(LEASE_LABEL) || of_before()
}

/// How often it is looked for what crashes have left.
const PAUSE: Duration = Duration::from_secs(5);
/// How long a sweep or a collection may take, in seconds.
const LEASE_SECONDS: u64 = 600;

/// Names of the leases that calls have: cheap to clone, shared.
#[derive(Debug, Clone, Default)]
pub struct LiveLeases(Arc<Mutex<BTreeSet<String>>>);

impl LiveLeases {
    fn has(&self, id: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }
}

/// The name of a lease that a call has.
#[derive(Debug)]
pub(super) struct LeaseName {
    id: String,
    live: LiveLeases,
}

impl LeaseName {
    /// As containerd knows it.
    pub(super) fn as_str(&self) -> &str {
        &self.id
    }
}

impl Drop for LeaseName {
    fn drop(&mut self) {
        self.live.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl Capsules {
    /// Whether a name holds that of a lease that a call has.
    pub(super) fn is_live(&self, name: &str) -> bool {
        let live = self.live.0.lock().unwrap_or_else(PoisonError::into_inner);
        live.iter().any(|id| name.contains(id))
    }

    /// A name for a lease. It counts as needed until this is dropped.
    pub(super) fn lease(&self, what: &str) -> LeaseName {
        let id = format!("{LEASES}{what}-{}", fresh_id());
        self.live.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
        LeaseName { id, live: self.live.clone() }
    }

    /// Ends leases of ours that no call has any more: those of a capsuled that was killed, and those that could not be ended when
    /// containerd was. What was half published or unpacked under them is garbage.
    ///
    /// # Errors
    /// containerd's.
    pub async fn release_stale(&self) -> Result<(), CapsuleError> {
        let scope = self.containerd.namespace(&self.namespace)?;
        for lease in scope.leases().await? {
            if is_ours(&lease) && !self.live.has(&lease.id) {
                tracing::info!(lease = lease.id, "found half done: what it held is given up");
                scope.under(&lease.id)?.release().await?;
            }
        }
        Ok(())
    }

    /// Lets containerd's next collection compare its snapshots with ours: one that it was about to make when it was killed is
    /// in no record of it, and it looks for such only after a snapshot has been removed (v2.1.9 `core/metadata/db.go`, `dirtySS`).
    ///
    /// # Errors
    /// containerd's.
    async fn sweep(&self) -> Result<(), CapsuleError> {
        if !self.containerd.namespaces().await?.contains(&self.namespace) {
            return Ok(());
        }
        let scope = self.containerd.namespace(&self.namespace)?;
        self.clear_transits(&scope, &scope.images().await?).await?;
        self.clear_signatures(&scope).await?;
        self.finish_tags(&scope).await?;
        let lease = self.lease("sweep");
        let scope = scope.leased(lease.as_str(), LEASE_SECONDS).await?;
        let made = scope.prepare_snapshot(&self.snapshotter, lease.as_str(), "").await;
        let removed = scope.remove_snapshot(&self.snapshotter, lease.as_str()).await;
        scope.release().await?;
        made?;
        Ok(removed?)
    }

    /// Says that containerd was started anew, or capsuled.
    pub fn is_to_sweep(&self) {
        self.unswept.store(true, Ordering::Release);
    }

    /// Looks for what crashes have left, every now and then until the daemon ends: a call may end badly after containerd has
    /// been listed anew.
    pub async fn keep_clean(self) {
        loop {
            tokio::time::sleep(PAUSE).await;
            let released = self.release_stale().await;
            let swept = if self.unswept.swap(false, Ordering::AcqRel) { self.sweep().await } else { Ok(()) };
            if let Err(error) = released.and(swept) {
                self.is_to_sweep();
                tracing::debug!(%error, "cannot look for what crashes have left");
            }
        }
    }

    /// Waits until containerd has collected what nothing refers to.
    ///
    /// # Errors
    /// containerd's.
    pub async fn collect_garbage(&self) -> Result<(), CapsuleError> {
        let lease = self.lease("collect");
        let scope = self.containerd.namespace(&self.namespace)?;
        let scope = scope.leased(lease.as_str(), LEASE_SECONDS).await?;
        Ok(scope.release_and_collect().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_of_others_are_not_ours_whatever_they_are_called() {
        let lease = |id: &str, labels: &[&str]| Lease {
            id: id.to_owned(),
            created: None,
            labels: labels.iter().map(|label| ((*label).to_owned(), String::new())).collect(),
        };
        let id = fresh_id();
        for (name, labels, ours) in [
            (format!("capsule-new-{id}"), &[LEASE_LABEL][..], true),
            (format!("capsule-publish-{id}"), &[], true),
            (format!("capsule-backup-{id}"), &[], false),
            ("capsule-publish".to_owned(), &[], false),
            (format!("capsule-publish-{id}0"), &[], false),
            ("capsule-publish-of-my-own-backup-tool".to_owned(), &["containerd.io/gc.expire"], false),
            (format!("publish-{id}"), &[], false),
        ] {
            assert_eq!(is_ours(&lease(&name, labels)), ours, "{name}");
        }
    }
}
