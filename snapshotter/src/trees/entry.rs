//! One path of a tree. Pure.

use std::collections::BTreeMap;

/// Extended attributes: values by name.
pub type Attributes = BTreeMap<Vec<u8>, Vec<u8>>;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// In bytes.
        size: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Verbatim.
        target: Vec<u8>,
    },
    /// A named pipe.
    Fifo,
    /// A device node.
    Device {
        /// Of blocks, not of characters.
        block: bool,
        /// Which driver.
        major: u32,
        /// Which of its devices.
        minor: u32,
    },
    /// A socket.
    Socket,
}

/// One path of a tree, as a container would see it. How many names its file has is no part of it: files that are equal
/// are stored once, whatever they belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the root, without leading or trailing slash; empty for the root.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, setuid, setgid and sticky included.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The owning group.
    pub gid: u32,
    /// Seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
    /// When anything of it was changed last, as `mtime`: nobody can set it. No part of the tree.
    pub ctime: (i64, u32),
    /// Neither overlayfs's own nor security labels.
    pub xattrs: Attributes,
    /// Device and inode number on the node: equal inodes are equal files.
    pub inode: (u64, u64),
    /// SHA-256 of a file's content, where it was computed.
    pub sha256: Option<[u8; 32]>,
}

impl Entry {
    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }

    /// A file's size.
    pub fn size(&self) -> Option<u64> {
        match self.kind {
            Kind::File { size } => Some(size),
            _ => None,
        }
    }
}
