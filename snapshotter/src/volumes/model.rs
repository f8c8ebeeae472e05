//! What a volume is. Pure: no I/O.

use std::{fmt, str::FromStr, time::SystemTime};

use overlayfs_utils::{ContainerPath, SuperBlock};
use serde::{Deserialize, Serialize};

use super::VolumeError;
use crate::{
    capsules::model::{CapsuleName, Version},
    uppers::model::{About, Over},
};

/// Longest id: what a field of a storage driver's calls holds (CSI 1.11, "Size Limits").
const ID_MAX: usize = 128;

/// `[STACK/]NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeId(String);

impl VolumeId {
    /// Whose directory has what is written; none for one that is alone.
    pub fn stack(&self) -> Option<&str> {
        self.0.split_once('/').map(|(stack, _)| stack)
    }

    /// Its name in that directory.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(self.0.as_str(), |(_, name)| name)
    }
}

impl FromStr for VolumeId {
    type Err = VolumeError;

    fn from_str(text: &str) -> Result<Self, VolumeError> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let is_word = |word: &str| {
            word.starts_with(plain)
                && word.ends_with(plain)
                && word.chars().all(|c| plain(c) || matches!(c, '.' | '_' | '-'))
        };
        let words: Vec<&str> = text.split('/').collect();
        let ok = text.len() <= ID_MAX && words.len() <= 2 && words.iter().all(|word| is_word(word));
        if ok { Ok(Self(text.to_owned())) } else { Err(VolumeError::Id(text.to_owned())) }
    }
}

impl TryFrom<String> for VolumeId {
    type Error = VolumeError;

    fn try_from(text: String) -> Result<Self, VolumeError> {
        text.parse()
    }
}

impl From<VolumeId> for String {
    fn from(id: VolumeId) -> Self {
        id.0
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Which volume.
    pub id: VolumeId,
    /// Of which capsule; none for a directory that is no capsule's.
    pub capsule: Option<CapsuleName>,
    /// A version or a tag of it; the newest when none.
    pub version: Option<Version>,
    /// What is written is kept.
    pub writable: bool,
    /// How many bytes it is to hold.
    pub size: Option<u64>,
    /// Whom its root is to belong to.
    pub owner: Option<(u32, u32)>,
    /// And its mode.
    pub permissions: Option<u32>,
}

impl Spec {
    /// Refuses what contradicts itself.
    ///
    /// # Errors
    /// [`VolumeError::Spec`].
    pub fn check(self) -> Result<Self, VolumeError> {
        let refuse = |what| Err(VolumeError::Spec { id: self.id.clone(), what });
        if self.capsule.is_none() && !self.writable {
            return refuse("of no capsule, and not to be written to: name a capsule, or make it writable");
        }
        if self.capsule.is_none() && self.version.is_some() {
            return refuse("of a version, and of no capsule: name the capsule");
        }
        if !self.writable && (self.size.is_some() || self.owner.is_some() || self.permissions.is_some()) {
            return refuse(
                "only read, and has a size, an owner or permissions: make it writable, or leave them out",
            );
        }
        if self.permissions.is_some_and(|mode| mode > 0o7777) {
            return refuse("of permissions that are none: 07777 is all of them");
        }
        Ok(self)
    }
}

/// One mounted content of a volume: the version that it has, or had, and that some still use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// The version; none for a directory that is no capsule's.
    pub over: Option<Over>,
    /// The file system that all its mounts are of.
    pub block: SuperBlock,
    /// What its mounts are called in mount tables: beside the device number, which is used again, the sign that it is this one.
    pub source: String,
    /// Directories of the version's layers, topmost first.
    pub layers: Vec<std::path::PathBuf>,
}

/// Where a volume is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct At {
    /// Of the node.
    pub path: ContainerPath,
    /// Nothing is written through this mount.
    pub read_only: bool,
}

/// What is known of a volume that is mounted, or that somebody still uses. It ends with the kernel, as mounts do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which volume.
    pub id: VolumeId,
    /// Of which capsule.
    pub capsule: Option<CapsuleName>,
    /// What is written is kept.
    pub writable: bool,
    /// It goes with its last mount, with all that was written.
    pub ephemeral: bool,
    /// When it was made.
    pub since: SystemTime,
    /// What it had, the newest last: all but that one drain.
    pub generations: Vec<Generation>,
    /// Where it is mounted.
    pub paths: Vec<At>,
}

impl Record {
    /// Whether some still use what it has not any more.
    pub fn is_draining(&self) -> bool {
        self.generations.len() > 1 || self.paths.is_empty()
    }

    /// Which version it has.
    pub fn over(&self) -> Option<&Over> {
        self.generations.last()?.over.as_ref()
    }
}

/// A volume, mounted or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Which.
    pub id: VolumeId,
    /// The version that it has, or has when it is mounted next.
    pub over: Option<Over>,
    /// What is written is kept.
    pub writable: bool,
    /// How many bytes it holds.
    pub size: Option<u64>,
    /// It goes with its last mount.
    pub ephemeral: bool,
    /// When it was made.
    pub since: SystemTime,
    /// Where it is mounted.
    pub paths: Vec<ContainerPath>,
    /// Versions that are still used, though it has another one.
    pub draining: Vec<Version>,
}

impl Volume {
    /// One of which nothing is known but that it is there.
    pub fn new(id: &VolumeId) -> Self {
        Self {
            id: id.clone(),
            over: None,
            writable: false,
            size: None,
            ephemeral: false,
            since: SystemTime::UNIX_EPOCH,
            paths: Vec::new(),
            draining: Vec::new(),
        }
    }

    /// From what is known of it in memory and on disk, of which there is one.
    pub fn of(id: &VolumeId, record: Option<&Record>, about: Option<&About>) -> Option<Self> {
        let since = about.map(|about| about.since).or(record.map(|record| record.since))?;
        let draining = record.into_iter().flat_map(|record| record.generations.iter().rev().skip(1));
        Some(Self {
            id: id.clone(),
            over: record.and_then(Record::over).or(about.and_then(|about| about.over.as_ref())).cloned(),
            writable: about.is_some() || record.is_some_and(|record| record.writable),
            size: about.and_then(|about| about.limit),
            ephemeral: record.is_some_and(|record| record.ephemeral),
            since,
            paths: record.iter().flat_map(|record| &record.paths).map(|at| at.path.clone()).collect(),
            draining: draining.filter_map(|one| Some(one.over.as_ref()?.version.clone())).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_one_or_two_words() {
        for (text, stack, name) in [
            ("csi-0123abcd", None, "csi-0123abcd"),
            ("shop/data", Some("shop"), "data"),
            ("a.b/c_d-e", Some("a.b"), "c_d-e"),
        ] {
            let id: VolumeId = text.parse().unwrap();
            assert_eq!((id.stack(), id.name(), id.to_string().as_str()), (stack, name, text));
        }
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "a/b/c",
            "../a",
            "a/..",
            "A",
            "a b",
            "-a",
            "a-",
            ".a",
            "_/a",
            &"a".repeat(129),
        ] {
            assert!(text.parse::<VolumeId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let spec = Spec {
            id: "a".parse().unwrap(),
            capsule: Some("tools".parse().unwrap()),
            version: None,
            writable: false,
            size: None,
            owner: None,
            permissions: None,
        };
        assert!(spec.clone().check().is_ok());
        assert!(
            Spec { capsule: None, writable: true, permissions: Some(0o750), ..spec.clone() }.check().is_ok()
        );
        let version = Some("1".parse().unwrap());
        for (bad, words) in [
            (Spec { capsule: None, ..spec.clone() }, "name a capsule"),
            (Spec { capsule: None, version, writable: true, ..spec.clone() }, "name the capsule"),
            (Spec { size: Some(1), ..spec.clone() }, "only read"),
            (Spec { writable: true, permissions: Some(0o10000), ..spec.clone() }, "07777"),
        ] {
            let said = bad.check().unwrap_err().to_string();
            assert!(said.contains(words), "{said}");
        }
    }
}
