//! The attachments of each container, in memory, behind one lock per container.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, PoisonError, RwLock},
};

use dashmap::DashMap;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{
    marks::Marks,
    model::{Attachment, ContainerKey},
};

/// A container's attachments, oldest first.
pub type OfContainer = Vec<Attachment>;

/// One container's records.
#[derive(Debug, Default)]
struct Cell {
    records: Arc<Mutex<OfContainer>>,
    /// As they were when the lock was last free: what can be seen while a call is under way.
    shown: RwLock<OfContainer>,
}

/// All records: cheap to clone, shared.
///
/// A container's lock is held for the whole of a call on it, its shim's answer included: calls on one container
/// wait for each other, calls on different containers never do.
#[derive(Debug, Clone)]
pub struct Records {
    containers: Arc<DashMap<ContainerKey, Arc<Cell>>>,
    marks: Marks,
}

/// A container's records, locked. What a call made of them is seen by [`Records::shown`] once this is dropped. A
/// container that has none then is marked no more: see [`Marks`].
#[derive(Debug)]
pub struct Locked {
    container: ContainerKey,
    marks: Marks,
    cell: Arc<Cell>,
    records: OwnedMutexGuard<OfContainer>,
}

impl Deref for Locked {
    type Target = OfContainer;

    fn deref(&self) -> &OfContainer {
        &self.records
    }
}

impl DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut OfContainer {
        &mut self.records
    }
}

impl Locked {
    /// Lets [`Records::shown`] see what a call under way has made, before it is known whether that stays.
    pub fn show(&self, made: &[Attachment]) {
        let mut shown = self.cell.shown.write().unwrap_or_else(PoisonError::into_inner);
        for attachment in made {
            put(&mut shown, attachment.clone());
        }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.cell.shown.write().unwrap_or_else(PoisonError::into_inner).clone_from(&self.records);
        if self.records.is_empty() {
            self.marks.clear(&self.container);
        }
    }
}

impl Records {
    /// Of no container yet.
    pub fn new(marks: Marks) -> Self {
        Self { containers: Arc::default(), marks }
    }

    /// The container's records, locked.
    pub async fn lock(&self, container: &ContainerKey) -> Locked {
        loop {
            // The map's own lock is not held while waiting for the container's.
            let cell = self.containers.entry(container.clone()).or_default().clone();
            let records = cell.records.clone().lock_owned().await;
            let current = self.containers.get(container).is_some_and(|c| Arc::ptr_eq(&c, &cell));
            if current {
                return Locked { container: container.clone(), marks: self.marks.clone(), cell, records };
            }
        }
    }

    /// The container's records as no call under way has changed them. Waits for nothing.
    pub fn shown(&self, container: &ContainerKey) -> OfContainer {
        self.look(container, <[Attachment]>::to_vec)
    }

    /// The same where a look at them will do: they are not to be waited for meanwhile.
    pub fn look<T>(&self, container: &ContainerKey, look: impl FnOnce(&[Attachment]) -> T) -> T {
        match self.containers.get(container).map(|cell| cell.clone()) {
            Some(cell) => look(&cell.shown.read().unwrap_or_else(PoisonError::into_inner)),
            None => look(&[]),
        }
    }

    /// Drops the container's entry if it has no records.
    pub fn tidy(&self, container: &ContainerKey) {
        self.containers
            .remove_if(container, |_, cell| cell.records.try_lock().is_ok_and(|records| records.is_empty()));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn records_can_be_seen_while_a_call_holds_them() {
        let run = tempfile::tempdir().unwrap();
        let records = Records::new(Marks::new(run.path()));
        let key = ContainerKey { namespace: "default".into(), id: "c".into() };
        let held = records.lock(&key).await;
        assert_eq!(records.shown(&key), []);
        assert_eq!(records.containers(), std::slice::from_ref(&key));
        records.tidy(&key);
        assert_eq!(records.containers(), std::slice::from_ref(&key));
        drop(held);
        records.tidy(&key);
        assert_eq!(records.containers(), []);
    }
}
