//! containerd's filter syntax (`pkg/filters` at v2.1.9): which items of a listing a client wants.
//!
//! ```text
//! selectors := selector ("," selector)*
//! selector  := fieldpath (operator value)?
//! fieldpath := field ("." field)*
//! field     := quoted | [A-Za-z0-9_]+
//! operator  := "==" | "!=" | "~="
//! value     := quoted | [^\s,]+
//! quoted    := Go string syntax; after "~=" also between slashes or bars
//! ```
//!
//! Pure: text in, matcher out. It knows nothing of snapshots. Two things differ from the original: an unquoted value
//! may hold code points that Unicode has not assigned, and regular expressions have no Unicode classes (`\pL`).

mod parser;
mod quote;
mod scanner;

use regex_lite::Regex;

/// A filter that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filters: parse error: [{marked}]: {reason}")]
pub struct FilterError {
    /// The filter with the place of the mistake marked.
    marked: String,
    reason: String,
}

/// What a filter looks at: fields by their path.
pub trait Fields {
    /// The field's value, or `None` where the item has no such field.
    fn field(&self, path: &[Vec<u8>]) -> Option<&str>;
}

/// Several filters, any of which may match; matches all items when there are none.
#[derive(Clone, Debug)]
pub struct Filters(Vec<Filter>);

impl Filters {
    /// Parses each filter. An empty one matches everything.
    ///
    /// # Errors
    /// For the first that cannot be understood.
    pub fn parse(filters: &[impl AsRef<str>]) -> Result<Self, FilterError> {
        filters.iter().map(|text| Filter::parse(text.as_ref())).collect::<Result<_, _>>().map(Self)
    }

    /// Whether the item is wanted.
    pub fn matches(&self, item: &impl Fields) -> bool {
        self.0.is_empty() || self.0.iter().any(|filter| filter.matches(item))
    }
}

/// One filter: all of its selectors must match.
#[derive(Clone, Debug)]
struct Filter(Vec<Selector>);

impl Filter {
    fn parse(text: &str) -> Result<Self, FilterError> {
        if text.is_empty() { Ok(Self(Vec::new())) } else { parser::parse(text).map(Self) }
    }

    fn matches(&self, item: &impl Fields) -> bool {
        self.0.iter().all(|selector| selector.matches(item))
    }
}

/// A field path, and what is asked of that field. Values are bytes: Go's escapes can spell what is no UTF-8.
#[derive(Clone, Debug)]
struct Selector {
    path: Vec<Vec<u8>>,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Present,
    Equal(Vec<u8>),
    NotEqual(Vec<u8>),
    /// `None` for an expression that does not compile: it matches nothing, as in containerd.
    Matches(Option<Regex>),
}

impl Selector {
    fn matches(&self, item: &impl Fields) -> bool {
        let value = item.field(&self.path);
        // An absent field reads as the empty string, except where presence is what counts (filter.go, `Match`).
        let text = value.unwrap_or_default();
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.is_some() && text.as_bytes() == wanted,
            Test::NotEqual(unwanted) => text.as_bytes() != unwanted,
            Test::Matches(pattern) => pattern.as_ref().is_some_and(|pattern| pattern.is_match(text)),
        }
    }
}

#[cfg(test)]
mod tests;
