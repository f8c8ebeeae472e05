//! The file below the database, watched: whether it has failed, and whether it is closed.
//!
//! redb refuses everything after one failed read or write until the database is opened again; here that is known as
//! soon as it happens, with its cause.

use std::{io, ops::Bound, sync::Arc};

use redb::{BackendError, StorageBackend};
use tokio::sync::watch;

/// A storage backend that tells its [`Watch`]es of its first failure, and of its end.
#[derive(Debug)]
pub(super) struct Watched<B> {
    backend: B,
    // Behind `backend`, so that the file is closed and unlocked when the watches hear that this is gone.
    failure: watch::Sender<Option<Arc<io::Error>>>,
}

/// What can be known of a store without holding it open. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Watch(watch::Receiver<Option<Arc<io::Error>>>);

impl Watch {
    /// Ends when the store has failed: every call on it fails from there on, until it is opened again. Gives the
    /// failure that was the first.
    pub async fn failed(&mut self) -> Arc<io::Error> {
        match self.0.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(error)) => Arc::clone(error),
            Ok(None) | Err(_) => std::future::pending().await, // closed without a failure
        }
    }

    /// Whether the file is closed and unlocked: another process can open the store.
    pub fn is_closed(&self) -> bool {
        self.0.has_changed().is_err()
    }
}

impl<B: StorageBackend> Watched<B> {
    pub(super) fn new(backend: B) -> (Self, Watch) {
        let (failure, watch) = watch::channel(None);
        (Self { backend, failure }, Watch(watch))
    }

    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| {
            let copy = match error.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::new(error.kind(), error.to_string()),
            };
            self.failure.send_if_modified(|first| {
                let is_first = first.is_none();
                first.get_or_insert_with(|| Arc::new(copy));
                is_first
            });
        })
    }
}

impl<B: StorageBackend> StorageBackend for Watched<B> {
    fn len(&self) -> io::Result<u64> {
        self.note(self.backend.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.note(self.backend.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(self.backend.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.note(self.backend.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.note(self.backend.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.backend.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.query_lock_range(start, end)
    }
}
