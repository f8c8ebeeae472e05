//! What an upper directory is, on record. Pure: no I/O.

use std::{fmt, path::PathBuf, str::FromStr, time::SystemTime};

use serde::{Deserialize, Serialize};

use super::UpperError;
use crate::capsules::{
    Resolved,
    model::{CapsuleName, Digest, Version},
};

/// The name under which what is written outlives its attachment: of the form of a capsule's name, as it is one of a
/// directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UpperName(CapsuleName);

impl FromStr for UpperName {
    type Err = UpperError;

    fn from_str(text: &str) -> Result<Self, UpperError> {
        text.parse().map(Self).map_err(|_| UpperError::Name(text.to_owned()))
    }
}

impl TryFrom<String> for UpperName {
    type Error = UpperError;

    fn try_from(text: String) -> Result<Self, UpperError> {
        text.parse()
    }
}

impl From<UpperName> for String {
    fn from(name: UpperName) -> Self {
        name.0.as_str().to_owned()
    }
}

impl fmt::Display for UpperName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where what is written is, on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// A directory with `upper` and `work`.
    Directory(PathBuf),
    /// A file with an ext4 file system with both.
    Image(PathBuf),
}

/// What an attachment has that can be written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upper {
    /// Its name; none for one that goes with its attachment.
    pub name: Option<UpperName>,
    /// Where it is.
    pub place: Place,
    /// How many bytes it can hold; as many as the node when `None`.
    pub limit: Option<u64>,
    /// It was made for this attachment, which has not been made yet.
    #[serde(default)]
    pub fresh: bool,
}

/// What becomes, at a detach, of what was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It goes with the attachment.
    Drop,
    /// It stays, under this name.
    Keep(UpperName),
}

/// What is known of an upper directory beside what is in it: `about.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Format of this file.
    pub format: u32,
    /// Over which version it was last; none for a directory that is no capsule's.
    #[serde(flatten)]
    pub over: Option<Over>,
    /// The last attachment that had it; of a volume, which none has, an id of its own.
    pub attachment: String,
    /// How many bytes it can hold, where that is fixed.
    pub limit: Option<u64>,
    /// When it was made.
    pub since: SystemTime,
    /// It was made for its first attachment, which has not been made yet: nobody has written to it.
    #[serde(default)]
    pub pending: bool,
    /// Whom its root is to belong to, where that is not as of the version below, and its mode. Of volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<(u32, u32)>,
    /// Likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<u32>,
    /// Of a volume that goes with its last mount.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ephemeral: bool,
}

/// A version that something was written over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Over {
    /// Of which capsule.
    pub capsule: CapsuleName,
    /// Which.
    pub version: Version,
    /// Its identity.
    pub digest: Digest,
}

impl From<&Resolved> for Over {
    fn from(of: &Resolved) -> Self {
        Self { capsule: of.name.clone(), version: of.version.clone(), digest: of.digest.clone() }
    }
}

/// The format of `about.json` that this capsuled writes and reads.
pub const FORMAT: u32 = 1;
