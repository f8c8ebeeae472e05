//! The attachments of each container, in memory, behind one lock per container.

use std::sync::Arc;

use dashmap::DashMap;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::model::{Attachment, ContainerKey};

/// A container's attachments, oldest first.
pub type OfContainer = Vec<Attachment>;

/// All records: cheap to clone, shared.
///
/// A container's lock is held for the whole of a call on it, its shim's answer included: calls on one container
/// wait for each other, calls on different containers never do.
#[derive(Debug, Clone, Default)]
pub struct Records {
    containers: Arc<DashMap<ContainerKey, Arc<Mutex<OfContainer>>>>,
}

impl Records {
    /// The container's records, locked.
    pub async fn lock(&self, container: &ContainerKey) -> OwnedMutexGuard<OfContainer> {
        loop {
            // The map's own lock is not held while waiting for the container's.
            let cell = self.containers.entry(container.clone()).or_default().clone();
            let guard = cell.clone().lock_owned().await;
            let current = self.containers.get(container).is_some_and(|c| Arc::ptr_eq(&c, &cell));
            if current {
                return guard;
            }
        }
    }

    /// Drops the container's entry if it has no records.
    pub fn tidy(&self, container: &ContainerKey) {
        self.containers
            .remove_if(container, |_, cell| cell.try_lock().is_ok_and(|records| records.is_empty()));
    }

    /// Containers that have (or had a moment ago) records, in order.
    pub fn containers(&self) -> Vec<ContainerKey> {
        let mut keys: Vec<ContainerKey> = self.containers.iter().map(|e| e.key().clone()).collect();
        keys.sort();
        keys
    }
}

/// Puts a record in the place of the one with its id, or behind the others.
pub fn put(records: &mut OfContainer, attachment: Attachment) {
    match records.iter_mut().find(|a| a.id == attachment.id) {
        Some(place) => *place = attachment,
        None => records.push(attachment),
    }
}
