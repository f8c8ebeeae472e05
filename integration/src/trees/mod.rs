//! Trees of files, read whole and compared: the judge of what a snapshotter made.
//!
//! | room | what lives there | what it may touch |
//! | --- | --- | --- |
//! | [`walk`] | a tree as a value: everything about every file but its inode's number and its access times | files it reads |
//! | [`compare`] | the differences of two trees | memory |

pub mod compare;
pub mod walk;

use std::collections::BTreeMap;
use std::fmt;

pub use compare::{Difference, differences};
pub use walk::{Window, read};

/// Every file of a tree by its path, in bytes; the root's is empty.
pub type Tree = BTreeMap<Vec<u8>, Node>;

/// One file. Two files are the same when these are equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The whole mode: type and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// In bytes; none for a folder, whose size depends on what was in it before.
    pub size: Option<u64>,
    /// A device's number; 0 for what is none.
    pub device: u64,
    /// The number of links.
    pub links: u64,
    /// The first path, in order, of the same inode.
    pub twin: Vec<u8>,
    /// When it was last changed.
    pub changed: Changed,
    /// All extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// A regular file's digest, a symbolic link's target.
    pub content: Content,
}

/// When a file was last changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// As its image says: seconds and nanoseconds.
    At(i64, i64),
    /// While the trees were made: no image says when.
    Meanwhile,
}

/// What a file holds.
#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    /// Nothing that can be read.
    None,
    /// The target of a symbolic link.
    Target(Vec<u8>),
    /// The SHA-256 of a regular file.
    Digest([u8; 32]),
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("nothing"),
            Self::Target(to) => write!(f, "-> {}", to.escape_ascii()),
            Self::Digest(digest) => f.write_str(crate::workspace::hex(digest).get(..12).unwrap_or_default()),
        }
    }
}
