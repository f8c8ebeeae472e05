//! The metadata store: the only room that sees the database.
//!
//! What lives here: the table definitions, transactions, and the functions that read and write one table each
//! (`snapshots`, `attachments`). It knows records, not directories or mounts.

pub mod attachments;
pub mod damage;
mod disk;
mod error;
pub mod events;
mod group;
pub mod images;
pub mod snapshots;
mod space;

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
};

use redb::{
    Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
    TableError, WriteTransaction, backends::FileBackend,
};

use damage::{Closed, Closing, Work};
pub use disk::Watch;
use disk::Watched;
pub use error::StoreError;
use group::Group;
pub use group::MEMBERS;
use space::Filled;

/// Store-wide counters, by name: see [`FORMAT`] and [`NEXT_ID`].
pub const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Every snapshot by its key (active, view) or name (committed), which share one key space.
/// The value is a protobuf message, [`snapshots::Record`].
pub const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");

/// (parent's id, child's id) → the child's key or name. Whether a snapshot has children is one range read.
pub const CHILDREN: TableDefinition<'_, (u64, u64), &str> = TableDefinition::new("children");

/// Attachment id → the attachment's record as JSON.
pub const ATTACHMENTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("attachments");

/// Number of an event → the event as JSON. Made with the first one: stores without it are of this format too.
pub const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");

/// Digest of an image → what it says, as JSON. Made with the first one, as [`EVENTS`] is.
pub const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images");

/// The newest format that this program reads, and the one that it writes.
pub const FORMAT_VERSION: u64 = 1;

/// Key in [`META`]: the format version of everything else.
const FORMAT: &str = "format";
/// Key in [`META`]: the id that the next snapshot gets. Ids are never used twice.
const NEXT_ID: &str = "next_id";

/// Cache of database pages. The store holds a few hundred bytes per snapshot; the default of 1 GiB is for
/// databases of another kind.
const CACHE_BYTES: usize = 8 << 20;

/// The metadata store, open. Cheap to clone; all clones are one store.
///
/// Its calls block on the disk: from async code, use `tokio::task::spawn_blocking`.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: Arc<Path>,
    _closing: Closing,
    database: Database,
    _closed: Closed,
    group: Group,
    watch: Watch,
}

impl Store {
    /// Opens the store in the file at `path`, made with mode 0600 when it is not there (its directory too, 0700).
    ///
    /// # Errors
    /// [`StoreError::NewerFormat`] when a newer capsuled wrote it; [`StoreError::Open`] when another process
    /// has it open or it is damaged beyond redb's repair.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if let Some(dir) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(|source| StoreError::CreateDir { path: dir.to_owned(), source })?;
        }
        if path.exists() {
            return Self::open_file(path);
        }
        // A power cut can leave a database that is not yet one. Until it is whole it has another name.
        let unfinished = path.with_extension("new");
        remove_if_there(&unfinished)
            .map_err(|source| StoreError::OpenFile { path: unfinished.clone(), source })?;
        let store = Self::open_file(&unfinished)?;
        rename_durably(&unfinished, path)
            .map_err(|source| StoreError::OpenFile { path: path.to_owned(), source })?;
        Ok(store)
    }

    fn open_file(path: &Path) -> Result<Self, StoreError> {
        let file =
            open_file(path).map_err(|source| StoreError::OpenFile { path: path.to_owned(), source })?;
        let failed = |source| StoreError::Open { path: path.to_owned(), source: Box::new(source) };
        Self::on(FileBackend::new(file).map_err(failed)?, path)
    }

    /// Opens the store on another kind of storage. The seam for fault injection.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn with_backend(backend: impl StorageBackend) -> Result<Self, StoreError> {
        Self::on(backend, Path::new(""))
    }

    fn on(backend: impl StorageBackend, path: &Path) -> Result<Self, StoreError> {
        let (backend, watch) = Watched::new(Filled::new(backend));
        let path: Arc<Path> = path.into();
        let _work = Work::on(&path);
        let failed = |source| StoreError::Open { path: path.to_path_buf(), source: Box::new(source) };
        let database = builder().create_with_backend(backend).map_err(failed)?;
        let (closing, group) = (Closing(path.clone()), Group::default());
        let inner = Inner { path, _closing: closing, database, _closed: Closed, group, watch };
        let store = Self { inner: Arc::new(inner) };
        store.prepare_format()?;
        Ok(store)
    }

    /// Writes only what is missing: a store that is in order opens on a full disk too.
    fn prepare_format(&self) -> Result<(), StoreError> {
        if !self.read(has_format)? {
            self.write(prepare_format)?;
        }
        Ok(())
    }

    /// A watch over the store, which does not keep it open.
    pub fn watch(&self) -> Watch {
        self.inner.watch.clone()
    }

    /// Runs `change` in a write transaction and commits it durably: when this returns `Ok`, a power cut no longer loses
    /// it. Changes are made one after the other; those of callers that arrive together are committed together, so that
    /// they wait for the disk together and not in a row. `change` must refuse before it writes anything: what it has
    /// written by then may stay.
    ///
    /// # Errors
    /// What `change` returns, or a [`StoreError`] of the transaction itself. A commit that fails fails for all whose
    /// changes were in it.
    pub fn write<T, E: From<StoreError>>(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let _work = Work::on(&self.inner.path);
        self.inner.group.write(&self.inner.database, change)
    }

    /// Runs `look` in a write transaction that is given up: while it runs nobody changes anything, and nothing is
    /// written.
    ///
    /// # Errors
    /// What `look` returns, or a [`StoreError`] of the transaction itself: also when an earlier write failed on the
    /// disk, so that what it left is not known.
    pub fn look_alone<T, E: From<StoreError>>(
        &self,
        look: impl FnOnce(&WriteTransaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let _work = Work::on(&self.inner.path);
        look(&begin(&self.inner.database)?)
    }

    /// Runs `look` on one consistent state of the store. Never waits for writers.
    ///
    /// # Errors
    /// What `look` returns, or a [`StoreError`] of the transaction itself.
    pub fn read<T, E: From<StoreError>>(
        &self,
        look: impl FnOnce(&ReadTransaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let _work = Work::on(&self.inner.path);
        let transaction = self.inner.database.begin_read().map_err(StoreError::from)?;
        look(&transaction)
    }
}

/// Begins a transaction whose commit waits for the disk.
fn begin(database: &Database) -> Result<WriteTransaction, StoreError> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    Ok(transaction)
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn rename_durably(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    match to.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Whether the store is one already, of this format. Refuses a newer one.
fn has_format(transaction: &ReadTransaction) -> Result<bool, StoreError> {
    let meta = match transaction.open_table(META) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(false),
        opened => opened?,
    };
    match meta.get(FORMAT)?.map(|guard| guard.value()) {
        Some(found) if found > FORMAT_VERSION => {
            Err(StoreError::NewerFormat { found, supported: FORMAT_VERSION })
        }
        found => Ok(found == Some(FORMAT_VERSION)),
    }
}

/// Makes a new store: every table, so that readers need not expect a missing one.
fn prepare_format(transaction: &WriteTransaction) -> Result<(), StoreError> {
    let mut meta = transaction.open_table(META)?;
    meta.insert(FORMAT, FORMAT_VERSION)?;
    if meta.get(NEXT_ID)?.is_none() {
        meta.insert(NEXT_ID, 1)?;
    }
    transaction.open_table(SNAPSHOTS)?;
    transaction.open_table(CHILDREN)?;
    transaction.open_table(ATTACHMENTS)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn set_format(store: &Store, format: u64) {
        store
            .write(|transaction| {
                transaction.open_table(META)?.insert(FORMAT, format)?;
                Ok::<_, StoreError>(())
            })
            .unwrap();
    }

    #[test]
    fn a_newer_format_is_refused_by_name_and_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("metadata.redb");
        set_format(&Store::open(&path).unwrap(), FORMAT_VERSION + 1);
        for _ in 0..2 {
            let error = Store::open(&path).unwrap_err();
            assert!(matches!(error, StoreError::NewerFormat { found: 2, supported: 1 }), "{error}");
            assert!(error.to_string().contains("format 2, and this capsuled reads up to 1"));
        }
    }

    #[test]
    fn one_process_has_it_open_and_its_file_is_private() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("deep/metadata.redb");
        let first = Store::open(&path).unwrap();
        let second = Store::open(&path).unwrap_err();
        assert!(matches!(second, StoreError::Open { .. }), "{second}");
        drop(first);
        Store::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_database_that_was_never_finished_is_begun_again() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("metadata.redb");
        fs::write(path.with_extension("new"), "half a datab").unwrap();
        Store::open(&path).unwrap();
        assert!(path.exists());
        assert!(!path.with_extension("new").exists());
    }

    #[test]
    fn a_failed_change_changes_nothing() {
        let store = Store::with_backend(redb::backends::InMemoryBackend::new()).unwrap();
        let failed: Result<(), StoreError> = store.write(|transaction| {
            transaction.open_table(ATTACHMENTS)?.insert("a", b"1".as_slice())?;
            Err(StoreError::NewerFormat { found: 0, supported: 0 })
        });
        assert!(failed.is_err());
        let found = store
            .read(|transaction| Ok::<_, StoreError>(transaction.open_table(ATTACHMENTS)?.get("a")?.is_some()))
            .unwrap();
        assert!(!found);
    }
}
