//! One file of containerd's configuration: its text, what it means, and where in the text that is written. Pure.
//!
//! What is changed is cut out of the text and put into it, so that all else stays byte by byte.

use std::ops::Range;

use toml::{Table, Value};
use toml_edit::{Document, Item};

use super::error::SetupError;

/// A path of keys, the outermost first.
pub type Path = Vec<String>;

/// A path of these keys.
pub fn path(keys: &[&str]) -> Path {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

/// A text that is TOML.
#[derive(Debug)]
pub struct Parsed<'a> {
    text: &'a str,
    document: Document<&'a str>,
    meaning: Table,
}

/// What a path is in a file.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A value, and where it is written.
    Value(Value, Range<usize>),
    /// A table that a header of its own begins; where the header is. Keys can be put below it.
    Table(Range<usize>),
    /// A table that others' headers imply: it can have a header of its own.
    Implied,
    /// An array of tables; where its last element ends.
    Tables(usize),
    /// A table in another form: of dotted keys.
    Other,
}

impl<'a> Parsed<'a> {
    /// Parses a file's text.
    ///
    /// # Errors
    /// The parser's message, with line and column.
    pub fn parse(text: &'a str) -> Result<Self, String> {
        let meaning = text.parse::<Table>().map_err(|e| line_of(&e.to_string()))?;
        let document = Document::parse(text).map_err(|e| line_of(&e.to_string()))?;
        Ok(Self { text, document, meaning })
    }

    /// The text that was parsed.
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// What it means.
    pub fn meaning(&self) -> &Table {
        &self.meaning
    }

    /// The value at a path.
    pub fn value(&self, path: &[String]) -> Option<&Value> {
        value_at(&self.meaning, path)
    }

    /// What is written at a path.
    pub fn find(&self, path: &[String]) -> Found {
        let mut item = self.document.as_item();
        for key in path {
            match item.get(key.as_str()) {
                Some(inner) => item = inner,
                None => return Found::Nothing,
            }
        }
        let value = || self.value(path).cloned();
        match (item, item.span()) {
            (Item::Value(_), Some(span)) => value().map_or(Found::Other, |value| Found::Value(value, span)),
            (Item::Table(table), Some(span)) if !table.is_dotted() && !table.is_implicit() => {
                Found::Table(span)
            }
            (Item::Table(table), _) if table.is_implicit() && !table.is_dotted() => Found::Implied,
            (Item::ArrayOfTables(tables), _) => {
                let last = tables.iter().last().and_then(end_of_table);
                last.map_or(Found::Other, |end| Found::Tables(self.end_of_line(end)))
            }
            _ => Found::Other,
        }
    }

    /// Where the line ends that `at` is in: behind its newline, or the text's end.
    pub fn end_of_line(&self, at: usize) -> usize {
        self.text[at..].find('\n').map_or(self.text.len(), |newline| at + newline + 1)
    }

    /// Where the line begins that `at` is in.
    pub fn start_of_line(&self, at: usize) -> usize {
        self.text[..at].rfind('\n').map_or(0, |newline| newline + 1)
    }

    /// How lines end in it.
    pub fn newline(&self) -> &'static str {
        if self.text.contains("\r\n") { "\r\n" } else { "\n" }
    }
}

/// The value at a path of a table.
pub fn value_at<'a>(table: &'a Table, path: &[String]) -> Option<&'a Value> {
    let (last, tables) = path.split_last()?;
    let mut table = table;
    for key in tables {
        table = table.get(key)?.as_table()?;
    }
    table.get(last)
}

/// Where what is written last in a table ends.
fn end_of_table(table: &toml_edit::Table) -> Option<usize> {
    let inner = table.iter().filter_map(|(_, item)| end_of(item));
    table.span().map(|span| span.end).into_iter().chain(inner).max()
}

fn end_of(item: &Item) -> Option<usize> {
    match item {
        Item::Table(table) => end_of_table(table),
        Item::ArrayOfTables(tables) => tables.iter().filter_map(end_of_table).max(),
        other => other.span().map(|span| span.end),
    }
}

/// A parser's message, which draws the line below it, as one line.
fn line_of(message: &str) -> String {
    let drawn = |line: &str| line.contains('|');
    message.lines().filter(|line| !drawn(line)).map(str::trim).collect::<Vec<_>>().join(": ")
}

/// The text with what is at `at` replaced.
pub fn replaced(text: &str, at: Range<usize>, with: &str) -> String {
    [&text[..at.start], with, &text[at.end..]].concat()
}

/// A list in one value, as it is written, with one element more: after the last, or on a line of its own where each has one. All
/// else in it stays.
pub fn longer(list: &str, element: &Value) -> Option<String> {
    const KEY: &str = "list = ";
    let text = format!("{KEY}{list}");
    let document = Document::parse(text.as_str()).ok()?;
    let array = document.get("list")?.as_array()?;
    let newline = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let end = text.rfind(']')?;
    let (at, with) = match array.iter().last() {
        None => (KEY.len() + 1, element.to_string()),
        Some(_) if array.trailing_comma() && text[..end].ends_with('\n') => {
            (end, format!("  {element},{newline}"))
        }
        Some(_) if array.trailing_comma() => (end, element.to_string()),
        Some(last) => (last.span()?.end, format!(", {element}")),
    };
    Some(replaced(&text, at..at, &with)[KEY.len()..].to_owned())
}

/// Sets the value at a path; false if what is on the way is no table.
pub fn set(table: &mut Table, path: &[String], value: Value) -> bool {
    let Some((last, tables)) = path.split_last() else { return false };
    let mut table = table;
    for key in tables {
        match table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(inner) => table = inner,
            _ => return false,
        }
    }
    table.insert(last.clone(), value);
    true
}

/// Puts what `more` says into `table`: tables are merged, lists made longer, values replaced.
pub fn merge(table: &mut Table, more: &Table) {
    for (key, value) in more {
        match (table.get_mut(key), value) {
            (Some(Value::Table(inner)), Value::Table(more)) => merge(inner, more),
            (Some(Value::Array(list)), Value::Array(more)) => list.extend(more.iter().cloned()),
            _ => {
                table.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Takes what `less` says out of `table`; false if some of it is not there, or is something else.
pub fn subtract(table: &mut Table, less: &Table) -> bool {
    less.iter().all(|(key, value)| {
        let is_gone = match (table.get_mut(key), value) {
            (Some(Value::Table(inner)), Value::Table(less)) => {
                if !subtract(inner, less) {
                    return false;
                }
                inner.is_empty()
            }
            (Some(Value::Array(list)), Value::Array(less)) => {
                for one in less {
                    match list.iter().position(|other| other == one) {
                        Some(at) => list.remove(at),
                        None => return false,
                    };
                }
                list.is_empty()
            }
            (Some(other), value) if other == value => true,
            _ => return false,
        };
        if is_gone {
            table.remove(key);
        }
        true
    })
}

/// Without tables in which nothing is: whether a table has a header or is implied is no difference in meaning.
pub fn pruned(table: &Table) -> Table {
    let prune = |(key, value): (&String, &Value)| match value {
        Value::Table(inner) => {
            Some(pruned(inner)).filter(|inner| !inner.is_empty()).map(|inner| (key.clone(), inner.into()))
        }
        other => Some((key.clone(), other.clone())),
    };
    table.iter().filter_map(prune).collect()
}

/// Checks that a file's version is one that its containerd reads, and one that is understood here.
///
/// # Errors
/// [`SetupError::Version`], [`SetupError::NoVersion`].
pub fn version_of(parsed: &Parsed<'_>, file: &std::path::Path) -> Result<Option<i64>, SetupError> {
    match parsed.meaning().get("version") {
        None => Ok(None),
        Some(Value::Integer(version)) if (2..=4).contains(version) => Ok(Some(*version)),
        Some(other) => Err(SetupError::Version { file: file.to_owned(), version: other.to_string() }),
    }
}
