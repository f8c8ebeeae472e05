//! Group commit: changes of callers that arrive together share one durable commit.
//!
//! A commit waits for the disk; without this, callers would wait for the disk one after the other. A caller alone
//! commits at once and waits for nobody.

use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use redb::{CommitError, Database, WriteTransaction};

use super::{StoreError, begin};

/// Most changes in one commit.
pub const MEMBERS: usize = 64;

/// Brings changes together.
#[derive(Debug, Default)]
pub(super) struct Group {
    batch: Mutex<Option<Batch>>,
    /// Callers that are about to make their change: each will see to the batch before it goes.
    arriving: AtomicUsize,
}

/// A transaction that holds the changes of some callers and is not committed yet.
struct Batch {
    transaction: WriteTransaction,
    members: usize,
    outcome: Arc<Outcome>,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Batch").field("members", &self.members).finish_non_exhaustive()
    }
}

/// What became of a batch.
#[derive(Debug, Default)]
struct Outcome {
    committed: Mutex<Option<Result<(), Arc<CommitError>>>>,
    known: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the locks guard is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outcome {
    fn set(&self, result: Result<(), Arc<CommitError>>) {
        *lock(&self.committed) = Some(result);
        self.known.notify_all();
    }

    fn wait(&self) -> Result<(), StoreError> {
        let mut committed = lock(&self.committed);
        loop {
            match &*committed {
                Some(result) => return result.clone().map_err(StoreError::Commit),
                None => committed = self.known.wait(committed).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl Group {
    /// Runs `change` in the batch of the moment and returns when it is on the disk.
    ///
    /// `change` must refuse before it writes: what it has written stays in the batch. A refusal, too, returns when all
    /// that it may have been made for is on the disk.
    pub(super) fn write<T, E: From<StoreError>>(
        &self,
        database: &Database,
        change: impl FnOnce(&WriteTransaction) -> Result<T, E>,
    ) -> Result<T, E> {
        self.arriving.fetch_add(1, Ordering::SeqCst);
        let mut turn = Turn { group: self, batch: lock(&self.batch) };
        self.arriving.fetch_sub(1, Ordering::SeqCst);
        let batch = match &mut *turn.batch {
            Some(batch) => batch,
            none => none.insert(Batch { transaction: begin(database)?, members: 0, outcome: Arc::default() }),
        };
        let changed = change(&batch.transaction);
        batch.members += usize::from(changed.is_ok());
        // A refusal waits too: what it was refused for may be in this batch, and nobody may be told of it who does not
        // find it when he looks.
        let outcome = (batch.members > 0).then(|| batch.outcome.clone());
        drop(turn);
        outcome.map_or(Ok(()), |outcome| outcome.wait())?;
        changed
    }
}

/// One caller's turn. However it ends, the batch is seen to.
struct Turn<'a> {
    group: &'a Group,
    batch: MutexGuard<'a, Option<Batch>>,
}

impl Drop for Turn<'_> {
    /// Commits the batch unless another caller is arriving, who will.
    fn drop(&mut self) {
        let full = self.batch.as_ref().is_some_and(|batch| batch.members >= MEMBERS);
        if self.group.arriving.load(Ordering::SeqCst) > 0 && !full {
            return;
        }
        match self.batch.take() {
            Some(batch) if batch.members > 0 => {
                batch.outcome.set(batch.transaction.commit().map_err(Arc::new));
            }
            Some(_) | None => {} // every change of it was refused: dropped, which aborts it
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use redb::{ReadableDatabase, ReadableTable, ReadableTableMetadata};

    use super::*;
    use crate::store::ATTACHMENTS;

    fn database() -> Database {
        Database::builder().create_with_backend(redb::backends::InMemoryBackend::new()).unwrap()
    }

    fn insert(group: &Group, database: &Database, key: &str) -> Result<(), StoreError> {
        group.write(database, |transaction| {
            transaction.open_table(ATTACHMENTS)?.insert(key, b"".as_slice())?;
            Ok(())
        })
    }

    #[test]
    fn everyone_returns_and_every_change_is_there() {
        let (group, database) = (Group::default(), database());
        thread::scope(|scope| {
            for caller in 0..32 {
                let (group, database) = (&group, &database);
                scope.spawn(move || {
                    for n in 0..50 {
                        insert(group, database, &format!("{caller}-{n}")).unwrap();
                        let refused = group.write(database, |_| {
                            Err::<(), _>(StoreError::NewerFormat { found: 0, supported: 0 })
                        });
                        assert!(refused.is_err());
                    }
                });
            }
        });
        let read = database.begin_read().unwrap();
        assert_eq!(read.open_table(ATTACHMENTS).unwrap().len().unwrap(), 32 * 50);
    }

    #[test]
    fn a_refusal_waits_for_what_it_was_made_for() {
        let (group, database) = (Group::default(), database());
        let wait_for_another = || {
            while group.arriving.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
        };
        let (first, first_is_in) = mpsc::channel();
        let (second, second_is_in) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                group.write(&database, |transaction| {
                    transaction.open_table(ATTACHMENTS)?.insert("k", b"".as_slice())?;
                    first.send(()).unwrap();
                    wait_for_another();
                    Ok::<_, StoreError>(())
                })
            });
            let (group, database) = (&group, &database);
            scope.spawn(move || {
                second_is_in.recv().unwrap();
                group.write(database, |_| {
                    thread::sleep(Duration::from_millis(100));
                    Err::<(), _>(StoreError::Closed)
                })
            });
            first_is_in.recv().unwrap();
            let refused = group.write(database, |transaction| {
                assert!(transaction.open_table(ATTACHMENTS)?.get("k")?.is_some());
                second.send(()).unwrap();
                wait_for_another();
                Err::<(), _>(StoreError::Closed)
            });
            assert!(matches!(refused, Err(StoreError::Closed)));
            let read = database.begin_read().unwrap();
            assert!(read.open_table(ATTACHMENTS).unwrap().get("k").unwrap().is_some());
        });
    }

    #[test]
    fn a_change_that_panics_takes_nobody_along() {
        let (group, database) = (Group::default(), database());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            group.write::<(), StoreError>(&database, |_| panic!("on purpose"))
        }));
        assert!(panicked.is_err());
        insert(&group, &database, "after").unwrap();
    }
}
