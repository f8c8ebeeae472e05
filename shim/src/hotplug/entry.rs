//! A record of the journal that is written once and shared.
//!
//! Each call writes the whole journal, twice, and reads it once. In a container with a hundred attachments that was most of
//! what an attach cost the shim: a hundred records were copied and put into JSON anew, all but one of them as before.

use std::{
    ops::Deref,
    sync::{Arc, OnceLock},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::Error as _};
use serde_json::value::{RawValue, to_raw_value};

use super::journal::Record;

/// A record with the text that it has in the file, once that is made. It cannot be changed, only replaced.
#[derive(Debug, Clone)]
pub struct Entry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    record: Record,
    text: OnceLock<Box<RawValue>>,
}

impl Entry {
    /// The record, to be changed.
    #[must_use]
    pub fn to_record(&self) -> Record {
        self.0.record.clone()
    }
}

impl From<Record> for Entry {
    fn from(record: Record) -> Self {
        Self(Arc::new(Inner { record, text: OnceLock::new() }))
    }
}

impl Deref for Entry {
    type Target = Record;

    fn deref(&self) -> &Record {
        &self.0.record
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.record == other.0.record
    }
}

impl Eq for Entry {}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = match self.0.text.get() {
            Some(text) => text,
            None => {
                let made = to_raw_value(&self.0.record).map_err(S::Error::custom)?;
                self.0.text.get_or_init(|| made)
            }
        };
        text.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Record::deserialize(deserializer).map(Self::from)
    }
}
