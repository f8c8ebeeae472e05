//! Ids of containers and execs, which become parts of file names.

use std::fmt;

use super::EngineError;

/// Longer than any that containerd (76) or its clients give.
pub const MAX: usize = 128;

/// A name that is safe as a part of a file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Id(String);

impl Id {
    /// containerd's rule (`pkg/identifiers`), but for its order of separators.
    ///
    /// # Errors
    /// [`EngineError::Id`].
    pub fn parse(text: &str) -> Result<Self, EngineError> {
        let plain = |c: char| c.is_ascii_alphanumeric();
        let valid = (1..=MAX).contains(&text.len())
            && text.starts_with(plain)
            && text.chars().all(|c| plain(c) || "._-".contains(c));
        if valid { Ok(Self(text.to_owned())) } else { Err(EngineError::Id(text.to_owned())) }
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_safe_in_file_names() {
        for (text, valid) in [
            ("c1", true),
            ("A.b_c-d", true),
            ("", false),
            (".", false),
            ("..", false),
            ("-a", false),
            ("a/b", false),
            ("a\0", false),
            ("é", false),
        ] {
            assert_eq!(Id::parse(text).is_ok(), valid, "{text:?}");
        }
        assert!(Id::parse(&"a".repeat(MAX)).is_ok());
        assert!(Id::parse(&"a".repeat(MAX + 1)).is_err());
    }
}
