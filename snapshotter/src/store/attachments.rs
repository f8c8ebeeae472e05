//! Attachment records, and a journal that writes them in order.
//!
//! One thread writes all changes in the order in which they were handed in, and whatever has gathered meanwhile in
//! one transaction: where the store is on a disk, concurrent callers share one flush of it. The daemon's is in `/run`
//! (docs/adr/0006): a record must outlive capsuled, and ends with the mount that it tells of.

use std::{collections::BTreeMap, thread};

use redb::ReadableTable;
use tokio::sync::{mpsc, oneshot};

use super::{ATTACHMENTS, Store, StoreError};
use crate::attachments::model::Attachment;

/// One record written or removed.
#[derive(Debug, Clone)]
pub enum Change {
    /// Write the record under its id.
    Put(Box<Attachment>),
    /// Remove the record of this id; one that is not there is fine.
    Remove(String),
}

type Ack = oneshot::Sender<Result<(), StoreError>>;

/// Writes changes in order. Cheap to clone. The writing thread ends when the last clone is gone.
#[derive(Debug, Clone)]
pub struct Journal {
    queue: mpsc::UnboundedSender<(Vec<Change>, Option<Ack>)>,
}

impl Journal {
    /// Starts the writing thread.
    ///
    /// # Errors
    /// The operating system's, when it gives no thread.
    pub fn start(store: Store) -> std::io::Result<Self> {
        let (queue, receiver) = mpsc::unbounded_channel();
        thread::Builder::new().name("journal".into()).spawn(move || run(&store, receiver))?;
        Ok(Self { queue })
    }

    /// Writes the changes, all or none; they are durable when this returns `Ok`.
    ///
    /// # Errors
    /// The store's: none of the changes is kept.
    pub async fn write(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        let (ack, done) = oneshot::channel();
        self.queue.send((changes, Some(ack))).map_err(|_| StoreError::Closed)?;
        done.await.map_err(|_| StoreError::Closed)?
    }

    /// Hands the changes in and does not wait: they are durable some time later, before anything handed in after
    /// them. For what a restart would find out by itself.
    pub fn post(&self, changes: Vec<Change>) {
        // A closed queue means that the daemon ends; the records still hold the intents.
        self.queue.send((changes, None)).ok();
    }
}

fn run(store: &Store, mut queue: mpsc::UnboundedReceiver<(Vec<Change>, Option<Ack>)>) {
    while let Some(first) = queue.blocking_recv() {
        let mut batch = vec![first];
        while let Ok(next) = queue.try_recv() {
            batch.push(next);
        }
        let result = apply(store, batch.iter().flat_map(|(changes, _)| changes));
        match result {
            Ok(()) => {
                for (_, ack) in batch {
                    ack.map(|ack| ack.send(Ok(())).ok());
                }
            }
            Err(error) if batch.len() == 1 => answer(batch.remove(0).1, Err(error)),
            // One bad change must not fail its neighbours: write them one by one.
            Err(_) => {
                for (changes, ack) in batch {
                    answer(ack, apply(store, changes.iter()));
                }
            }
        }
    }
}

fn answer(ack: Option<Ack>, result: Result<(), StoreError>) {
    match (ack, result) {
        (Some(ack), result) => {
            // A caller that has gone does not want to know.
            ack.send(result).ok();
        }
        (None, Err(error)) => {
            tracing::error!(%error, "could not write attachment records; they are corrected at the next start");
        }
        (None, Ok(())) => {}
    }
}

fn apply<'a>(store: &Store, changes: impl Iterator<Item = &'a Change>) -> Result<(), StoreError> {
    store.write(|transaction| {
        let mut table = transaction.open_table(ATTACHMENTS)?;
        for change in changes {
            match change {
                Change::Put(attachment) => {
                    let bytes = serde_json::to_vec(attachment).map_err(|e| damaged(&attachment.id, &e))?;
                    table.insert(attachment.id.as_str(), bytes.as_slice())?;
                }
                Change::Remove(id) => {
                    table.remove(id.as_str())?;
                }
            }
        }
        Ok(())
    })
}

/// All records, by id.
///
/// # Errors
/// The store's; [`StoreError::Damaged`] for a record that does not read.
pub fn read_all(store: &Store) -> Result<BTreeMap<String, Attachment>, StoreError> {
    store.read(|transaction| {
        let table = transaction.open_table(ATTACHMENTS)?;
        let mut all = BTreeMap::new();
        for entry in table.iter()? {
            let (key, value) = entry?;
            let attachment = serde_json::from_slice(value.value()).map_err(|e| damaged(key.value(), &e))?;
            all.insert(key.value().to_owned(), attachment);
        }
        Ok(all)
    })
}

fn damaged(key: &str, e: &serde_json::Error) -> StoreError {
    StoreError::Damaged { table: "attachments", key: key.to_owned(), reason: e.to_string() }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::{
        attachments::model::{ContainerKey, Content, Phase},
        capsules::model::{Digest, Mode},
    };

    fn attachment(id: &str) -> Attachment {
        Attachment {
            id: id.into(),
            container: ContainerKey { namespace: "default".into(), id: "c".into() },
            created: None,
            named: None,
            capsule: "tzdata".parse().unwrap(),
            target: "/t".into(),
            mode: Mode::Union,
            current: Content {
                version: "1".parse().unwrap(),
                digest: Digest::from_sha256(&[1; 32]),
                layers: vec!["/a".into(), "/b".into()],
                since: SystemTime::now(),
            },
            history: vec![],
            replaced: false,
            phase: Phase::Detaching { lazy: true },
            call: None,
        }
    }

    #[tokio::test]
    async fn what_is_written_reads_back_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("m.redb")).unwrap();
        let journal = Journal::start(store.clone()).unwrap();
        journal
            .write(vec![Change::Put(Box::new(attachment("a"))), Change::Put(Box::new(attachment("b")))])
            .await
            .unwrap();
        for _ in 0..50 {
            journal.post(vec![Change::Remove("a".into())]);
            journal.post(vec![Change::Put(Box::new(attachment("a")))]);
        }
        journal.write(vec![Change::Remove("b".into()), Change::Remove("never".into())]).await.unwrap();
        assert_eq!(
            read_all(&store).unwrap(),
            BTreeMap::from([("a".into(), {
                let stored = read_all(&store).unwrap()["a"].clone();
                assert_eq!(stored.phase, Phase::Detaching { lazy: true });
                stored
            })])
        );
    }

    #[tokio::test]
    async fn a_damaged_record_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("m.redb")).unwrap();
        store
            .write(|t| -> Result<(), StoreError> {
                t.open_table(ATTACHMENTS)?.insert("x", b"{".as_slice())?;
                Ok(())
            })
            .unwrap();
        let error = read_all(&store).unwrap_err();
        assert!(
            matches!(&error, StoreError::Damaged { table: "attachments", key, .. } if key == "x"),
            "{error}"
        );
    }
}
