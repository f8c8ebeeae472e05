//! Attachment records, and a journal that writes them in order.
//!
//! One thread writes all changes in the order in which they were handed in, and whatever has gathered meanwhile in
//! one transaction: where the store is on a disk, concurrent callers share one flush of it. The daemon has two: one in `/run`
//! (docs/adr/0006) for intents and what is, and one beside the snapshots (docs/adr/0018) for what is to be again after a reboot.

use std::{collections::BTreeMap, thread};

use redb::{ReadableTable, WriteTransaction};
use tokio::sync::{mpsc, oneshot, watch};

use super::{ATTACHMENTS, META, Store, StoreError, events, images};
use crate::{
    attachments::model::{Attachment, Phase},
    capsules::{model::Digest, oci::Image},
    events::{Event, Feed},
};

/// One record written or removed.
#[derive(Debug, Clone)]
pub enum Change {
    /// Write the record under its id.
    Put(Box<Attachment>),
    /// Remove the record of this id; one that is not there is fine.
    Remove(String),
    /// Write an event behind those before: it becomes known with the changes beside it.
    Tell(Box<Event>),
    /// Write what the image of this digest says, or forget it.
    Image(Digest, Option<Box<Image>>),
}

type Ack = oneshot::Sender<Result<(), StoreError>>;

/// Writes changes in order. Cheap to clone. The writing thread ends when the last clone is gone.
#[derive(Debug, Clone)]
pub struct Journal {
    queue: mpsc::UnboundedSender<(Vec<Change>, Option<Ack>)>,
    newest: watch::Receiver<u64>,
}

impl Journal {
    /// Starts the writing thread.
    ///
    /// # Errors
    /// The operating system's, when it gives no thread; the store's.
    pub fn start(store: Store) -> Result<Self, StoreError> {
        let (queue, receiver) = mpsc::unbounded_channel();
        let (told, newest) = watch::channel(events::last(&store)?);
        thread::Builder::new()
            .name("journal".into())
            .spawn(move || run(&store, receiver, &told))
            .map_err(StoreError::Thread)?;
        Ok(Self { queue, newest })
    }

    /// The events that are written here, to be followed. `store` is the one that this was started with.
    pub fn feed(&self, store: Store) -> Feed {
        Feed::new(store, self.newest.clone())
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

fn run(
    store: &Store,
    mut queue: mpsc::UnboundedReceiver<(Vec<Change>, Option<Ack>)>,
    told: &watch::Sender<u64>,
) {
    while let Some(first) = queue.blocking_recv() {
        let mut batch = vec![first];
        while let Ok(next) = queue.try_recv() {
            batch.push(next);
        }
        let result = apply(store, batch.iter().flat_map(|(changes, _)| changes), told);
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
                    answer(ack, apply(store, changes.iter(), told));
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

fn apply<'a>(
    store: &Store,
    changes: impl Iterator<Item = &'a Change>,
    told: &watch::Sender<u64>,
) -> Result<(), StoreError> {
    let newest = store.write(|transaction| {
        let (mut table, mut newest) = (transaction.open_table(ATTACHMENTS)?, None);
        for change in changes {
            match change {
                Change::Put(attachment) => {
                    let bytes = serde_json::to_vec(attachment).map_err(|e| damaged(&attachment.id, &e))?;
                    table.insert(attachment.id.as_str(), bytes.as_slice())?;
                }
                Change::Remove(id) => {
                    table.remove(id.as_str())?;
                }
                Change::Tell(event) => newest = Some(events::append(transaction, event)?),
                Change::Image(digest, image) => images::set(transaction, digest, image.as_deref())?,
            }
        }
        Ok::<_, StoreError>(newest)
    })?;
    if let Some(newest) = newest {
        told.send_replace(newest);
    }
    Ok(())
}

/// Key in [`META`]: what was kept over a reboot has been taken over.
const TAKEN_OVER: &str = "taken_over";

/// The records in `live`; after a reboot, when that is new, those in `kept`, as `waiting` for the containers' next tasks.
/// `kept` then has no others.
///
/// # Errors
/// The stores'.
pub fn take_over(live: &Store, kept: &Store) -> Result<BTreeMap<String, Attachment>, StoreError> {
    let is_taken = live.read(|t| Ok::<_, StoreError>(t.open_table(META)?.get(TAKEN_OVER)?.is_some()))?;
    let mut before = read_all(kept)?;
    if !is_taken {
        before.values_mut().for_each(|a| (a.phase, a.call, a.replaced) = (Phase::Waiting, None, false));
        live.write(|transaction| {
            transaction.open_table(META)?.insert(TAKEN_OVER, 1)?;
            put_all(transaction, before.values())
        })?;
    }
    let records = read_all(live)?;
    let stale: Vec<&String> = before.keys().filter(|id| !records.contains_key(*id)).collect();
    if !stale.is_empty() {
        kept.write(|transaction| {
            let mut table = transaction.open_table(ATTACHMENTS)?;
            stale.iter().try_for_each(|id| table.remove(id.as_str()).map(drop))?;
            Ok::<_, StoreError>(())
        })?;
    }
    Ok(records)
}

fn put_all<'a>(
    transaction: &WriteTransaction,
    records: impl Iterator<Item = &'a Attachment>,
) -> Result<(), StoreError> {
    let mut table = transaction.open_table(ATTACHMENTS)?;
    for record in records {
        let bytes = serde_json::to_vec(record).map_err(|e| damaged(&record.id, &e))?;
        table.insert(record.id.as_str(), bytes.as_slice())?;
    }
    Ok(())
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
            devices: None,
            asked: Default::default(),
            target: "/t".into(),
            mode: Mode::Union,
            upper: None,
            current: Content {
                version: "1".parse().unwrap(),
                digest: Digest::from_sha256(&[1; 32]),
                layers: vec!["/a".into(), "/b".into()],
                since: SystemTime::now(),
                wanted: Default::default(),
                resources: Default::default(),
                env: Vec::new(),
                denied: Vec::new(),
            },
            history: vec![],
            replaced: false,
            phase: Phase::Detaching { lazy: true, fate: None },
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
                assert_eq!(stored.phase, Phase::Detaching { lazy: true, fate: None });
                stored
            })])
        );
    }

    #[tokio::test]
    async fn after_a_reboot_what_was_kept_waits() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| Store::open(&dir.path().join(name)).unwrap();
        let kept = open("kept.redb");
        let put = |store: &Store, id: &str, phase| {
            let record = Attachment { phase, ..attachment(id) };
            store.write(|t| put_all(t, [record].iter())).unwrap();
        };
        put(&kept, "a", Phase::Attached);
        put(&kept, "b", Phase::Attached);
        let live = open("boot-2.redb");
        let taken = take_over(&live, &kept).unwrap();
        assert_eq!(taken.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert!(taken.values().all(|a| a.phase == Phase::Waiting));
        // The next start is of the same boot: what is live counts, and what is not is kept no longer.
        put(&live, "a", Phase::Attached);
        live.write(|t| Ok::<_, StoreError>(t.open_table(ATTACHMENTS)?.remove("b").map(drop)?)).unwrap();
        let taken = take_over(&live, &kept).unwrap();
        assert_eq!(taken["a"].phase, Phase::Attached);
        assert_eq!(read_all(&kept).unwrap().keys().collect::<Vec<_>>(), ["a"]);
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
