//! What a capsule and a version are called, and how versions are ordered. Pure: no I/O.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Longest capsule name, in bytes: a name is one component of an OCI repository path.
const NAME_MAX: usize = 128;
/// Longest version, in bytes: the OCI distribution specification's limit for a tag.
const VERSION_MAX: usize = 128;

/// Why a name, version, digest or mode is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// Not a capsule name.
    #[error(
        "capsule name {0:?} is not valid: use lower-case letters, digits and single '.', '_' or '-' between them, at most {NAME_MAX} bytes"
    )]
    Name(String),
    /// Not a version.
    #[error(
        "version {0:?} is not valid: use letters, digits, '_', '.' and '-', beginning with a letter, digit or '_', at most {VERSION_MAX} bytes"
    )]
    Version(String),
    /// Not a SHA-256 digest.
    #[error("digest {0:?} is not valid: expected sha256: and 64 hexadecimal digits")]
    Digest(String),
    /// Not a requirement.
    #[error("requirement {0:?} is not valid: {1}")]
    Requirement(String, String),
    /// Something else that a publisher says of a version.
    #[error("{what} {which:?} is not valid: {reason}")]
    Declared {
        /// Its kind.
        what: &'static str,
        /// As it was sent.
        which: String,
        /// What to do.
        reason: &'static str,
    },
    /// Not a mode.
    #[error("mode {0:?} is not known: use \"ro\" or \"union\"")]
    Mode(String),
}

/// A capsule's name: one component of an OCI repository path (distribution specification, "name").
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CapsuleName(String);

impl CapsuleName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CapsuleName {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let alnum = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let ok = !text.is_empty()
            && text.len() <= NAME_MAX
            && text.chars().all(|c| alnum(c) || matches!(c, '.' | '_' | '-'))
            && text.starts_with(alnum)
            && text.ends_with(alnum)
            && !["..", "._", "_.", ".-", "-.", "_-", "-_", "___"].iter().any(|bad| text.contains(bad));
        if ok { Ok(Self(text.to_owned())) } else { Err(ModelError::Name(text.to_owned())) }
    }
}

/// A published version's name. It is also the tag of the version's image, so the grammar is that of OCI tags.
///
/// Ordered as semantic versions are (semver.org, section 11), loosened to any number of dotted fields: fields
/// that are numbers compare as numbers and sort before words, a pre-release sorts before its release.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version(String);

impl Version {
    /// The version as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True for `1.0.0-rc.1` and the like: never chosen unless asked for by name.
    pub fn is_prerelease(&self) -> bool {
        self.0.contains('-')
    }
}

impl FromStr for Version {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let ok = text.len() <= VERSION_MAX
            && text.starts_with(word)
            && text.chars().all(|c| word(c) || matches!(c, '.' | '-'));
        if ok { Ok(Self(text.to_owned())) } else { Err(ModelError::Version(text.to_owned())) }
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, a_pre) = split_prerelease(&self.0);
        let (b, b_pre) = split_prerelease(&other.0);
        compare_fields(a, b)
            .then_with(|| match (a_pre, b_pre) {
                (None, None) => Ordering::Equal,
                (None, Some(_)) => Ordering::Greater,
                (Some(_), None) => Ordering::Less,
                (Some(a), Some(b)) => compare_fields(a, b),
            })
            // `1.0` and `1.00` are different tags: the order must tell them apart.
            .then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn split_prerelease(text: &str) -> (&str, Option<&str>) {
    match text.split_once('-') {
        Some((release, pre)) => (release, Some(pre)),
        None => (text, None),
    }
}

fn compare_fields(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a.split('.'), b.split('.'));
    loop {
        match (left.next(), right.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(x), Some(y)) => match compare_field(x, y) {
                Ordering::Equal => {}
                unequal => return unequal,
            },
        }
    }
}

fn compare_field(x: &str, y: &str) -> Ordering {
    let number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    match (number(x), number(y)) {
        (true, true) => {
            // Longer than any integer type is allowed in a tag, so compare as digits without leading zeros.
            let (x, y) = (x.trim_start_matches('0'), y.trim_start_matches('0'));
            x.len().cmp(&y.len()).then_with(|| x.cmp(y))
        }
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => x.cmp(y),
    }
}

/// A SHA-256 content digest, `sha256:` and 64 lower-case hexadecimal digits (OCI image specification, "Digests").
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// The digest as text, with its algorithm.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// From the 32 bytes of a SHA-256 sum.
    pub fn from_sha256(sum: &[u8]) -> Self {
        Self(format!("sha256:{}", crate::hex(sum)))
    }
}

impl FromStr for Digest {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let ok = text.strip_prefix("sha256:").is_some_and(|hex| {
            hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        });
        if ok { Ok(Self(text.to_owned())) } else { Err(ModelError::Digest(text.to_owned())) }
    }
}

/// How a capsule is laid over a target directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The capsule alone, at the target.
    Ro,
    /// The capsule over what the target directory already holds.
    Union,
}

impl FromStr for Mode {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        match text {
            "ro" => Ok(Self::Ro),
            "union" => Ok(Self::Union),
            other => Err(ModelError::Mode(other.to_owned())),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ro => "ro",
            Self::Union => "union",
        })
    }
}

/// What an attachment of devices alone has in the place of a capsule's name, version or digest: an empty text, which no person
/// can write.
pub trait OrNone: FromStr<Err = ModelError> {
    /// It.
    fn none() -> Self;
}

/// Reads a text of this kind, or the empty one of [`OrNone::none`].
///
/// # Errors
/// The deserializer's.
pub fn or_none<'de, D: serde::Deserializer<'de>, T: OrNone>(deserializer: D) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() { Ok(T::none()) } else { text.parse().map_err(serde::de::Error::custom) }
}

macro_rules! text_newtype {
    ($($type:ident),*) => {$(
        impl OrNone for $type {
            fn none() -> Self {
                Self(String::new())
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $type {
            type Error = ModelError;
            fn try_from(text: String) -> Result<Self, ModelError> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.0
            }
        }
    )*};
}

text_newtype!(CapsuleName, Version, Digest);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_repository_grammar() {
        for good in ["tzdata", "debug-tools", "cuda12.4", "a", "a__b", "0x"] {
            assert!(good.parse::<CapsuleName>().is_ok(), "{good}");
        }
        for bad in ["", "Tz", "a/b", "-a", "a-", "a..b", "a b", "ä", "a:b", "a@b", &"x".repeat(129)] {
            assert!(bad.parse::<CapsuleName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn versions_follow_the_tag_grammar() {
        for good in ["1", "2024.1", "1.2.3-rc.1", "dev-main-0a1b2c", "_x", "V1"] {
            assert!(good.parse::<Version>().is_ok(), "{good}");
        }
        for bad in ["", ".1", "-1", "1/2", "1:2", "1 2", "1+2", &"1".repeat(129)] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
    }

    #[test]
    fn versions_are_ordered_by_number_not_by_letter() {
        let ordered = [
            "0.9",
            "0.10",
            "1",
            "1.0-alpha",
            "1.0-alpha.1",
            "1.0-rc.2",
            "1.0-rc.10",
            "1.0",
            "1.0.1",
            "2024.1",
            "2026.2",
            "2026.10",
        ];
        for pair in ordered.windows(2) {
            let (a, b): (Version, Version) = (pair[0].parse().unwrap(), pair[1].parse().unwrap());
            assert!(a < b, "{a} < {b}");
            assert!(b > a, "{b} > {a}");
        }
        let huge: Version = "99999999999999999999999999999999999999990".parse().unwrap();
        assert!(huge > "7".parse().unwrap());
    }

    #[test]
    fn digests_are_sha256_in_lower_case() {
        assert!(format!("sha256:{}", "a".repeat(64)).parse::<Digest>().is_ok());
        for bad in ["sha256:", "sha512:aa", &format!("sha256:{}", "A".repeat(64)), &"a".repeat(64)] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        assert_eq!(Digest::from_sha256(&[0xab; 32]).as_str(), format!("sha256:{}", "ab".repeat(32)));
    }
}
