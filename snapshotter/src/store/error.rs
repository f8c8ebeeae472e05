//! What can go wrong with the store.

use std::{io, path::PathBuf, sync::Arc};

use redb::{CommitError, DatabaseError, SetDurabilityError, StorageError, TableError, TransactionError};

/// What can go wrong with the store itself, by step.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store's directory could not be made.
    #[error("make directory {path}")]
    CreateDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file could not be opened or created.
    #[error("open metadata store {path}")]
    OpenFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no usable database, or another process has it open.
    #[error("open metadata store {path} as a database")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<DatabaseError>,
    },
    /// The store was written by a newer capsuled.
    #[error(
        "metadata store has format {found}, and this capsuled reads up to {supported}: install the capsuled \
         that wrote it, or a newer one"
    )]
    NewerFormat {
        /// The format found.
        found: u64,
        /// The newest one that is read.
        supported: u64,
    },
    /// A transaction could not begin.
    #[error("begin transaction: {0}")]
    Begin(Box<TransactionError>),
    /// The durability of a transaction could not be chosen.
    #[error("set durability: {0}")]
    Durability(#[from] SetDurabilityError),
    /// A table could not be opened.
    #[error("open table: {0}")]
    Table(Box<TableError>),
    /// The database could not be read or written.
    #[error("access metadata store: {0}")]
    Access(Box<StorageError>),
    /// The disk failed during a commit. Nothing of it is visible, and nothing more can be written until the store is
    /// opened again; then the change is either there as a whole or not at all.
    #[error("commit transaction: {0}")]
    Commit(Arc<CommitError>),
    /// The thread that writes the records could not be started.
    #[error("start the thread that writes attachment records")]
    Thread(#[source] io::Error),
    /// The thread that writes the records has ended.
    #[error("the metadata store is closed: capsuled is stopping")]
    Closed,
    /// A record cannot be read back.
    #[error("record {key:?} of table {table} is damaged: {reason}")]
    Damaged {
        /// The table.
        table: &'static str,
        /// The key of the record.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl StoreError {
    /// Whether the file system is full.
    pub fn is_out_of_space(&self) -> bool {
        matches!(self.storage(), Some(StorageError::Io(error)) if crate::full::is_kind(error))
    }

    /// Whether the store had failed before this call, and does nothing until it is opened again.
    pub fn has_failed_before(&self) -> bool {
        matches!(self.storage(), Some(StorageError::PreviousIo | StorageError::DatabaseClosed))
    }

    fn storage(&self) -> Option<&StorageError> {
        match self {
            Self::Begin(error) => match &**error {
                TransactionError::Storage(error) => Some(error),
                _ => None,
            },
            Self::Table(error) => match &**error {
                TableError::Storage(error) => Some(error),
                _ => None,
            },
            Self::Access(error) => Some(error),
            Self::Commit(error) => match &**error {
                CommitError::Storage(error) => Some(error),
                _ => None,
            },
            _ => None,
        }
    }
}

macro_rules! boxed_from {
    ($($source:ty => $variant:ident),* $(,)?) => {$(
        impl From<$source> for StoreError {
            fn from(source: $source) -> Self {
                Self::$variant(Box::new(source))
            }
        }
    )*};
}
boxed_from!(TransactionError => Begin, TableError => Table, StorageError => Access);

impl From<CommitError> for StoreError {
    fn from(source: CommitError) -> Self {
        Self::Commit(Arc::new(source))
    }
}
