//! What a snapshot is: pure types, validated at construction.

use std::{collections::BTreeMap, time::SystemTime};

use super::idmap::IdMapError;

/// Most bytes that a label's key and value may have together (containerd, `pkg/labels/validate.go`).
const LABEL_LIMIT: usize = 4096;
/// How much of an overlong label's key an error quotes.
const LABEL_QUOTE: usize = 64;
/// Longest key or name: what containerd's own store is made for (bbolt's `MaxKeySize`), which lets longer ones pass.
const KEY_LIMIT: usize = 32768;

/// Input that can never be right, whatever the state of the store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidInput {
    /// A snapshot needs a key.
    #[error("a snapshot's key must not be empty")]
    EmptyKey,
    /// A key or name too long to be stored.
    #[error("a snapshot's key has {length} bytes, more than {KEY_LIMIT}")]
    LongKey {
        /// Its length in bytes.
        length: usize,
    },
    /// A label that no filter and no update could name.
    #[error("a label needs a key")]
    EmptyLabel,
    /// A label too long.
    #[error(
        "label key and value length ({length} bytes) greater than maximum size ({LABEL_LIMIT} bytes), key: {key}"
    )]
    LongLabel {
        /// The beginning of its key.
        key: String,
        /// Length of key and value in bytes.
        length: usize,
    },
    /// A label that asks for mapped ids and does not say which.
    #[error("label {label} is no id mapping: {reason}")]
    IdMapping {
        /// The label's key.
        label: &'static str,
        /// What is wrong with its value.
        reason: IdMapError,
    },
    /// An update of something that never changes, or that does not exist.
    #[error("cannot update field {path:?} of a snapshot: only labels can change")]
    Field {
        /// The field path asked for.
        path: String,
    },
}

/// What stage of its life a snapshot is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read-only, and never to be committed.
    View,
    /// Being changed; becomes committed, or is removed.
    Active,
    /// Immutable; can be a parent.
    Committed,
}

/// The key of a snapshot to be made: not empty and not too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// Takes a key or name from a client.
    ///
    /// # Errors
    /// When it is empty or longer than 32,768 bytes.
    pub fn parse(text: String) -> Result<Self, InvalidInput> {
        match text.len() {
            0 => Err(InvalidInput::EmptyKey),
            length if length > KEY_LIMIT => Err(InvalidInput::LongKey { length }),
            _ => Ok(Self(text)),
        }
    }

    /// The key itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Labels within containerd's limits. A label with an empty value is no label, as in containerd's store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// Takes labels from a client.
    ///
    /// # Errors
    /// When key and value of one have more than 4,096 bytes together, or it has no key.
    pub fn parse(labels: impl IntoIterator<Item = (String, String)>) -> Result<Self, InvalidInput> {
        let labels: BTreeMap<String, String> =
            labels.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        for (key, value) in &labels {
            if key.is_empty() {
                return Err(InvalidInput::EmptyLabel);
            }
            let length = key.len() + value.len();
            if length > LABEL_LIMIT {
                return Err(InvalidInput::LongLabel { key: key.chars().take(LABEL_QUOTE).collect(), length });
            }
        }
        Ok(Self(labels))
    }

    /// Wraps labels that were checked when they were stored.
    pub(crate) fn from_stored(labels: BTreeMap<String, String>) -> Self {
        Self(labels)
    }

    /// These labels and one more, or in place of the one with its key.
    pub(crate) fn with(mut self, key: &str, value: String) -> Self {
        self.0.insert(key.to_owned(), value);
        self
    }

    /// The labels by key.
    pub fn as_map(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// The labels, by value.
    pub fn into_map(self) -> BTreeMap<String, String> {
        self.0
    }
}

/// Which labels an update replaces, as the client asks. It is judged with the snapshot at hand: containerd looks for that
/// first, and checks no label that the field paths leave out (`core/metadata/snapshot.go`, `Update`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelUpdate {
    /// Labels by key.
    pub given: BTreeMap<String, String>,
    /// `labels`, `labels.KEY` (absent in `given`: removed), or none for all that can change.
    pub paths: Vec<String>,
}

impl LabelUpdate {
    /// What `labels` become.
    ///
    /// # Errors
    /// For any other field path, and for labels that [`Labels::parse`] refuses.
    pub fn apply(&self, labels: Labels) -> Result<Labels, InvalidInput> {
        let mut map = labels.into_map();
        if self.paths.is_empty() {
            map.clone_from(&self.given);
        }
        for path in &self.paths {
            match path.strip_prefix("labels.") {
                Some(key) => {
                    let value = self.given.get(key).cloned().unwrap_or_default();
                    map.insert(key.to_owned(), value);
                }
                None if path == "labels" => map.clone_from(&self.given),
                None => return Err(InvalidInput::Field { path: path.clone() }),
            }
        }
        Labels::parse(map)
    }
}

/// What is told about a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Active, view or committed.
    pub kind: Kind,
    /// Its key or name.
    pub name: String,
    /// The name of its parent; empty when it has none.
    pub parent: String,
    /// Its labels.
    pub labels: Labels,
    /// When it was prepared, or committed once it is.
    pub created: SystemTime,
    /// When it or its labels last changed.
    pub updated: SystemTime,
}

/// Disk space of a snapshot without its parents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Files of any type; hard links to one file count once.
    pub inodes: u64,
    /// Allocated bytes.
    pub size: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        Labels::parse(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))).unwrap()
    }

    #[test]
    fn keys_are_neither_empty_nor_longer_than_containerd_stores() {
        assert_eq!(Key::parse(String::new()), Err(InvalidInput::EmptyKey));
        assert_eq!(Key::parse("k".repeat(32769)), Err(InvalidInput::LongKey { length: 32769 }));
        assert!(Key::parse("k".repeat(32768)).is_ok());
    }

    #[test]
    fn a_label_may_have_4096_bytes_and_no_more() {
        assert!(Labels::parse([("k".to_owned(), "v".repeat(4095))]).is_ok());
        let long = Labels::parse([("ü".repeat(100), "v".repeat(3897))]);
        assert_eq!(long, Err(InvalidInput::LongLabel { key: "ü".repeat(64), length: 4097 }));
    }

    #[test]
    fn labels_without_a_value_are_no_labels() {
        assert_eq!(labels(&[("a", ""), ("b", "1")]), labels(&[("b", "1")]));
    }

    fn update(given: &[(&str, &str)], paths: &[&str]) -> LabelUpdate {
        let given = given.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        LabelUpdate { given, paths: paths.iter().map(|path| (*path).to_owned()).collect() }
    }

    #[test]
    fn updates_follow_their_field_paths() {
        let old = [("l1", "v1"), ("l2", "v2"), ("l3", "v3")];
        type Pairs = &'static [(&'static str, &'static str)];
        const GIVEN: Pairs = &[("l1", "new"), ("l4", "v4")];
        let cases: [(&[&str], Pairs); 5] = [
            (&[], GIVEN),
            (&["labels"], GIVEN),
            (&["labels.l1", "labels.l2"], &[("l1", "new"), ("l3", "v3")]),
            (&["labels.l4"], &[("l1", "v1"), ("l2", "v2"), ("l3", "v3"), ("l4", "v4")]),
            (&["labels.l1", "labels"], GIVEN),
        ];
        for (paths, expected) in cases {
            let update = update(GIVEN, paths);
            assert_eq!(update.apply(labels(&old)), Ok(labels(expected)));
        }
        let refused = update(&[], &["labels.l1", "parent"]).apply(labels(&old));
        assert_eq!(refused, Err(InvalidInput::Field { path: "parent".to_owned() }));
    }

    #[test]
    fn an_update_checks_what_it_changes_and_nothing_else() {
        let long = "v".repeat(5000);
        let given = [("long", long.as_str()), ("short", "1"), ("", "no key")];
        let selected = update(&given, &["labels.short"]).apply(Labels::default());
        assert_eq!(selected, Ok(labels(&[("short", "1")])));
        let refused = update(&given, &["labels.long"]).apply(Labels::default());
        assert_eq!(refused, Err(InvalidInput::LongLabel { key: "long".to_owned(), length: 5004 }));
        assert_eq!(update(&given, &["labels."]).apply(Labels::default()), Err(InvalidInput::EmptyLabel));
    }
}
