//! What setup changes in a text, so that it can be taken back. Pure.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::document::{Found, Parsed, Path, merge, pruned, replaced, set, subtract};

/// One change of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Change {
    /// Lines that were put in; they are TOML by themselves.
    Inserted {
        /// The lines, as they are in the file.
        text: String,
    },
    /// A key that was put into a table which was there.
    Added {
        /// The key's path.
        key: Path,
        /// Its line.
        line: String,
    },
    /// A value that was another.
    Replaced {
        /// The key's path.
        key: Path,
        /// As it was written.
        before: String,
        /// As it is written since.
        after: String,
    },
}

/// A file's text while it is changed, step by step. Each step means what it should, or is not made.
#[derive(Debug)]
pub struct Draft {
    /// As it is by now.
    pub text: String,
    /// What was done, in order.
    pub changes: Vec<Change>,
}

impl Draft {
    /// Begins with the file's text.
    pub fn new(text: &str) -> Self {
        Self { text: text.to_owned(), changes: Vec::new() }
    }

    /// Makes a change by putting `with` in the place of what is `at`. False, and nothing is changed, if the outcome would not be
    /// TOML, or would mean something else than the change says.
    pub fn make(&mut self, at: Range<usize>, with: &str, change: Change) -> bool {
        let text = replaced(&self.text, at, with);
        let before = self.text.parse::<Table>();
        let (Ok(mut expected), Ok(after)) = (before, text.parse::<Table>()) else { return false };
        if !change.apply_to(&mut expected) || pruned(&expected) != pruned(&after) {
            return false;
        }
        self.text = text;
        self.changes.push(change);
        true
    }
}

impl Change {
    /// What the change does to the file's meaning. False if that is no meaning.
    fn apply_to(&self, meaning: &mut Table) -> bool {
        match self {
            Self::Inserted { text } => match text.parse::<Table>() {
                Ok(more) => {
                    merge(meaning, &more);
                    true
                }
                Err(_) => false,
            },
            Self::Added { key, line } => match (key.last(), line.parse::<Table>()) {
                (Some(last), Ok(mut more)) => {
                    more.remove(last).is_some_and(|value| more.is_empty() && set(meaning, key, value))
                }
                _ => false,
            },
            Self::Replaced { key, after, .. } => {
                value_of(after).is_some_and(|value| set(meaning, key, value))
            }
        }
    }

    /// The text without the change; `None` if what was changed is not there any more as it was left.
    pub fn take_back(&self, text: &str) -> Option<String> {
        let parsed = Parsed::parse(text).ok()?;
        let mut expected = parsed.meaning().clone();
        let without = match self {
            Self::Inserted { text: inserted } => {
                let at = only_occurrence(text, inserted)?;
                let less = inserted.parse::<Table>().ok()?;
                subtract(&mut expected, &less).then(|| replaced(text, at..at + inserted.len(), ""))?
            }
            Self::Added { key, line } => {
                let Found::Value(_, span) = parsed.find(key) else { return None };
                let at = parsed.start_of_line(span.start)..parsed.end_of_line(span.end);
                if text[at.clone()] != **line {
                    return None;
                }
                remove(&mut expected, key)?;
                replaced(text, at, "")
            }
            Self::Replaced { key, before, after } => {
                let Found::Value(_, span) = parsed.find(key) else { return None };
                if text[span.clone()] != **after {
                    return None;
                }
                set(&mut expected, key, value_of(before)?);
                replaced(text, span, before)
            }
        };
        let meaning = without.parse::<Table>().ok()?;
        (pruned(&meaning) == pruned(&expected)).then_some(without)
    }

    /// Whether nothing of what it made is there: somebody has taken it back already, or it was never made.
    pub fn is_absent(&self, text: &str) -> bool {
        let Ok(parsed) = Parsed::parse(text) else { return false };
        match self {
            Self::Inserted { text } => {
                let leaves = text.parse::<Table>().map(|table| leaves(&table, &[])).unwrap_or_default();
                !leaves.iter().any(|(path, value)| has(&parsed, path, value))
            }
            Self::Added { key, .. } => parsed.value(key).is_none(),
            Self::Replaced { key, before, .. } => parsed.value(key) == value_of(before).as_ref(),
        }
    }

    /// Whether it has said of which version the file is: what else is in it would mean something else without that.
    pub fn is_version(&self) -> bool {
        let Self::Inserted { text } = self else { return false };
        text.parse::<Table>().is_ok_and(|table| table.keys().eq(["version"]))
    }

    /// What it is about, in the file's words.
    pub fn name(&self) -> String {
        match self {
            Self::Inserted { text } => {
                let header = text.lines().map(str::trim).find(|line| line.starts_with('['));
                let line = header.or_else(|| text.lines().map(str::trim).find(|line| !line.is_empty()));
                line.unwrap_or_default().to_owned()
            }
            Self::Added { key, .. } | Self::Replaced { key, .. } => key.join("."),
        }
    }
}

/// What a table holds that is no table, with its path.
fn leaves(table: &Table, at: &[String]) -> Vec<(Path, Value)> {
    let leaves = table.iter().map(|(key, value)| {
        let path = [at, std::slice::from_ref(key)].concat();
        match value {
            Value::Table(inner) => leaves(inner, &path),
            other => vec![(path, other.clone())],
        }
    });
    leaves.flatten().collect()
}

/// Whether a file says something at this path; of lists, whether it has one of these elements.
fn has(parsed: &Parsed<'_>, path: &[String], value: &Value) -> bool {
    match (parsed.value(path), value) {
        (Some(Value::Array(present)), Value::Array(ours)) => ours.iter().any(|one| present.contains(one)),
        (present, _) => present.is_some(),
    }
}

fn only_occurrence(text: &str, part: &str) -> Option<usize> {
    let at = text.find(part)?;
    (text.rfind(part) == Some(at)).then_some(at)
}

fn remove(table: &mut Table, key: &[String]) -> Option<Value> {
    let (last, tables) = key.split_last()?;
    let mut table = table;
    for key in tables {
        table = table.get_mut(key)?.as_table_mut()?;
    }
    table.remove(last)
}

/// A value as it is written.
fn value_of(text: &str) -> Option<Value> {
    format!("value = {text}").parse::<Table>().ok()?.remove("value")
}
