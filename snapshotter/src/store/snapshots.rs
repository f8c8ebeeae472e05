//! The tables of snapshots: records by key, the links from parent to child, and the ids.
//!
//! Reads and writes what it is told; the rules of a snapshot's life are the engine's.

use std::{
    collections::{BTreeMap, HashSet},
    time::SystemTime,
};

use prost::Message as _;
use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, Table, WriteTransaction};

use super::{CHILDREN, META, NEXT_ID, SNAPSHOTS, StoreError};
use crate::snapshots::model::{Info, Kind, Labels, Usage};

/// A snapshot as it is stored. Fields are only ever added: readers of this format skip those they do not know.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Record {
    /// Names the snapshot's directory.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// A [`StoredKind`].
    #[prost(int32, tag = "2")]
    stored_kind: i32,
    /// Name of the parent; empty for none.
    #[prost(string, tag = "3")]
    pub parent: String,
    #[prost(message, optional, tag = "4")]
    created: Option<prost_types::Timestamp>,
    #[prost(message, optional, tag = "5")]
    updated: Option<prost_types::Timestamp>,
    #[prost(btree_map = "string, string", tag = "6")]
    labels: BTreeMap<String, String>,
    #[prost(uint64, tag = "7")]
    size: u64,
    #[prost(uint64, tag = "8")]
    inodes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum StoredKind {
    Unknown = 0,
    View = 1,
    Active = 2,
    Committed = 3,
}

impl Record {
    /// The record of a snapshot made now.
    pub fn new(id: u64, kind: Kind, parent: &str, labels: Labels, now: SystemTime) -> Self {
        let mut record = Self { id, parent: parent.to_owned(), ..Self::default() };
        record.set_stored_kind(kind);
        record.created = Some(now.into());
        record.set_labels(labels, now);
        record
    }

    /// Makes it the record of a committed snapshot.
    pub fn commit(&mut self, labels: Labels, usage: Usage, now: SystemTime) {
        self.set_stored_kind(Kind::Committed);
        self.created = Some(now.into());
        self.set_labels(labels, now);
        self.size = usage.size;
        self.inodes = usage.inodes;
    }

    /// Replaces the labels.
    pub fn set_labels(&mut self, labels: Labels, now: SystemTime) {
        self.labels = labels.into_map();
        self.updated = Some(now.into());
    }

    /// Its labels.
    pub fn labels(&self) -> Labels {
        Labels::from_stored(self.labels.clone())
    }

    /// Disk usage, as found when it was committed; zero before.
    pub fn usage(&self) -> Usage {
        Usage { inodes: self.inodes, size: self.size }
    }

    /// Its kind. A record that does not say is refused by `decode`.
    pub fn kind(&self) -> Kind {
        match StoredKind::try_from(self.stored_kind) {
            Ok(StoredKind::View) => Kind::View,
            Ok(StoredKind::Committed) => Kind::Committed,
            Ok(StoredKind::Active | StoredKind::Unknown) | Err(_) => Kind::Active,
        }
    }

    /// What is told about it under its key or name.
    pub fn info(&self, name: &str) -> Info {
        let time = |stamp: Option<prost_types::Timestamp>| {
            stamp.and_then(|stamp| stamp.try_into().ok()).unwrap_or(SystemTime::UNIX_EPOCH)
        };
        Info {
            kind: self.kind(),
            name: name.to_owned(),
            parent: self.parent.clone(),
            labels: self.labels(),
            created: time(self.created),
            updated: time(self.updated),
        }
    }

    fn set_stored_kind(&mut self, kind: Kind) {
        let stored = match kind {
            Kind::View => StoredKind::View,
            Kind::Active => StoredKind::Active,
            Kind::Committed => StoredKind::Committed,
        };
        self.stored_kind = stored.into();
    }

    fn decode_stored(key: &str, bytes: &[u8]) -> Result<Self, StoreError> {
        let damaged =
            |reason: String| StoreError::Damaged { table: "snapshots", key: key.to_owned(), reason };
        let record = Self::decode(bytes).map_err(|error| damaged(error.to_string()))?;
        match StoredKind::try_from(record.stored_kind) {
            Ok(StoredKind::View | StoredKind::Active | StoredKind::Committed) if record.id > 0 => Ok(record),
            _ => Err(damaged(format!("id {} and kind {} mean nothing", record.id, record.stored_kind))),
        }
    }
}

type Records<'a> = Table<'a, &'static str, &'static [u8]>;

fn read_record(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<Record>, StoreError> {
    match table.get(key)? {
        Some(guard) => Record::decode_stored(key, guard.value()).map(Some),
        None => Ok(None),
    }
}

/// Ids of the snapshot named `name` and of all below it, topmost first; none for the empty name.
fn read_chain(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
) -> Result<Vec<u64>, StoreError> {
    let mut chain = Vec::new();
    let mut name = name.to_owned();
    while !name.is_empty() {
        let record = read_record(table, &name)?.ok_or_else(|| StoreError::Damaged {
            table: "snapshots",
            key: name.clone(),
            reason: "it is missing, and another snapshot's parent".to_owned(),
        })?;
        chain.push(record.id);
        name = record.parent;
    }
    Ok(chain)
}

/// The tables, to be read.
pub struct Reader {
    records: ReadOnlyTable<&'static str, &'static [u8]>,
}

impl Reader {
    /// Opens the tables in a read transaction.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn open(transaction: &ReadTransaction) -> Result<Self, StoreError> {
        Ok(Self { records: transaction.open_table(SNAPSHOTS)? })
    }

    /// The snapshot with that key or name.
    ///
    /// # Errors
    /// When the database cannot be read or the record is damaged.
    pub fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        read_record(&self.records, key)
    }

    /// Ids of the snapshot named `name` and of all below it, topmost first; none for the empty name.
    ///
    /// # Errors
    /// As [`Reader::get`].
    pub fn chain(&self, name: &str) -> Result<Vec<u64>, StoreError> {
        read_chain(&self.records, name)
    }

    /// Every snapshot, by key.
    ///
    /// # Errors
    /// As [`Reader::get`], per item.
    pub fn iter(&self) -> Result<impl Iterator<Item = Result<(String, Record), StoreError>>, StoreError> {
        Ok(self.records.iter()?.map(|entry| {
            let (key, value) = entry?;
            let record = Record::decode_stored(key.value(), value.value())?;
            Ok((key.value().to_owned(), record))
        }))
    }
}

/// The tables, to be changed.
pub struct Writer<'a> {
    records: Records<'a>,
    children: Table<'a, (u64, u64), &'static str>,
    meta: Table<'a, &'static str, u64>,
}

impl<'a> Writer<'a> {
    /// Opens the tables in a write transaction.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn open(transaction: &'a WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            records: transaction.open_table(SNAPSHOTS)?,
            children: transaction.open_table(CHILDREN)?,
            meta: transaction.open_table(META)?,
        })
    }

    /// As [`Reader::get`].
    ///
    /// # Errors
    /// As [`Reader::get`].
    pub fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        read_record(&self.records, key)
    }

    /// As [`Reader::chain`].
    ///
    /// # Errors
    /// As [`Reader::get`].
    pub fn chain(&self, name: &str) -> Result<Vec<u64>, StoreError> {
        read_chain(&self.records, name)
    }

    /// Whether any snapshot has the one with this id as its parent.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn has_children(&self, id: u64) -> Result<bool, StoreError> {
        Ok(self.children.range((id, 0)..=(id, u64::MAX))?.next().transpose()?.is_some())
    }

    /// The id for the next snapshot.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn next_id(&self) -> Result<u64, StoreError> {
        Ok(self.meta.get(NEXT_ID)?.map_or(1, |guard| guard.value()))
    }

    /// Takes that id: once the transaction has committed, it is never given again.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn take_id(&mut self, id: u64) -> Result<(), StoreError> {
        self.meta.insert(NEXT_ID, id + 1)?;
        Ok(())
    }

    /// Writes a record under its key or name.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn put(&mut self, key: &str, record: &Record) -> Result<(), StoreError> {
        self.records.insert(key, record.encode_to_vec().as_slice())?;
        Ok(())
    }

    /// Deletes the record under that key or name.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn delete(&mut self, key: &str) -> Result<(), StoreError> {
        self.records.remove(key)?;
        Ok(())
    }

    /// Records that snapshot `child`, under `key`, has `parent` below it.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn link(&mut self, parent: u64, child: u64, key: &str) -> Result<(), StoreError> {
        self.children.insert((parent, child), key)?;
        Ok(())
    }

    /// Takes back [`Writer::link`].
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn unlink(&mut self, parent: u64, child: u64) -> Result<(), StoreError> {
        self.children.remove((parent, child))?;
        Ok(())
    }

    /// Ids of all snapshots.
    ///
    /// # Errors
    /// As [`Reader::get`].
    pub fn ids(&self) -> Result<HashSet<u64>, StoreError> {
        let mut ids = HashSet::new();
        for entry in self.records.iter()? {
            let (key, value) = entry?;
            ids.insert(Record::decode_stored(key.value(), value.value())?.id);
        }
        Ok(ids)
    }
}
