//! Decides what the archive of a tree holds. Pure: what was found goes in, members in their final order come out.

use std::collections::HashMap;
use std::path::Path;

use super::walk::{Attributes, Found, Kind, Stamp};
use super::{Error, Options, join};

/// One member of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// As in the archive: directories end in a slash.
    pub name: Vec<u8>,
    pub entry: Entry,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u64,
    pub xattrs: Attributes,
    /// What follows the header; for regular files only.
    pub content: Option<Content>,
}

/// Type of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    File,
    Directory,
    HardLink {
        first: Vec<u8>,
    },
    Symlink {
        target: Vec<u8>,
    },
    Fifo,
    Device {
        block: bool,
        major: u32,
        minor: u32,
    },
    /// Of a layer over others: what those have here is gone.
    Whiteout,
}

/// A file's content: where it is and how it looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Below the tree's root.
    pub path: Vec<u8>,
    pub size: u64,
    pub stamp: Stamp,
}

/// The outcome of planning.
#[derive(Debug, Default)]
pub struct Planned {
    pub members: Vec<Member>,
    /// Paths of sockets.
    pub left_out: Vec<Vec<u8>>,
}

/// Why an entry cannot be a member.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    WhiteoutName { path: Vec<u8> },
    WhiteoutDevice { path: Vec<u8> },
    OverlayAttribute { path: Vec<u8>, name: Vec<u8> },
    AttributeName { path: Vec<u8>, name: Vec<u8> },
}

impl Refusal {
    /// The refusal as an error that names the path as the person would.
    pub fn in_tree(self, dir: &Path) -> Error {
        match self {
            Self::WhiteoutName { path } => Error::WhiteoutName { path: join(dir, &path) },
            Self::WhiteoutDevice { path } => Error::WhiteoutDevice { path: join(dir, &path) },
            Self::OverlayAttribute { path, name } => {
                Error::OverlayAttribute { path: join(dir, &path), name: text(&name) }
            }
            Self::AttributeName { path, name } => {
                Error::AttributeName { path: join(dir, &path), name: text(&name) }
            }
        }
    }
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

impl Member {
    /// Where it is in the tree, which is what members are ordered by.
    pub fn path(&self) -> &[u8] {
        self.name.strip_suffix(b"/").unwrap_or(&self.name)
    }
}

/// Orders the entries by the bytes of their paths (a parent comes before what it holds), finds hard links, and
/// replaces what would differ between two builds of the same tree.
pub fn plan_members(mut found: Vec<Found>, options: Options<'_>) -> Result<Planned, Refusal> {
    found.sort_by(|a, b| a.path.cmp(&b.path));
    let mut planned = Planned::default();
    let mut first_paths = HashMap::new();
    for found in found {
        check(&found)?;
        let (uid, gid) = owner(&found, options);
        let Found { path, kind, mode, xattrs, .. } = found;
        let Some((entry, content)) = plan_entry(kind, &path, &mut first_paths) else {
            planned.left_out.push(path);
            continue;
        };
        let mut name = path;
        if entry == Entry::Directory {
            name.push(b'/');
        }
        // Attributes belong to the file, not to a name of it: the first name carries them.
        let xattrs = if matches!(entry, Entry::HardLink { .. }) { Attributes::new() } else { xattrs };
        planned.members.push(Member { name, entry, mode, uid, gid, mtime: options.mtime, xattrs, content });
    }
    Ok(planned)
}

/// User and group as the archive has them.
pub fn owner(found: &Found, options: Options<'_>) -> (u32, u32) {
    if options.keep_owner { (found.uid, found.gid) } else { (0, 0) }
}

/// Refuses what no archive can hold.
pub fn check(found: &Found) -> Result<(), Refusal> {
    let name = found.path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    if name.starts_with(b".wh.") {
        return Err(Refusal::WhiteoutName { path: found.path.clone() });
    }
    if matches!(found.kind, Kind::Device { block: false, major: 0, minor: 0 }) {
        return Err(Refusal::WhiteoutDevice { path: found.path.clone() });
    }
    found.xattrs.keys().try_for_each(|name| check_attribute(&found.path, name))
}

fn check_attribute(path: &[u8], name: &[u8]) -> Result<(), Refusal> {
    // Read as whiteouts and opaque marks by an overlay that is mounted with `userxattr`.
    if name.starts_with(b"user.overlay.") {
        return Err(Refusal::OverlayAttribute { path: path.to_vec(), name: name.to_vec() });
    }
    if name.contains(&b'=') || std::str::from_utf8(name).is_err() {
        return Err(Refusal::AttributeName { path: path.to_vec(), name: name.to_vec() });
    }
    Ok(())
}

/// `None` for a socket.
fn plan_entry(
    kind: Kind,
    path: &[u8],
    first_paths: &mut HashMap<(u64, u64), Vec<u8>>,
) -> Option<(Entry, Option<Content>)> {
    Some(match kind {
        Kind::Directory => (Entry::Directory, None),
        Kind::Symlink { target } => (Entry::Symlink { target }, None),
        Kind::Fifo => (Entry::Fifo, None),
        Kind::Device { block, major, minor } => (Entry::Device { block, major, minor }, None),
        Kind::Socket => return None,
        Kind::File { stamp, has_links } => {
            let id = (stamp.device, stamp.inode);
            if let Some(first) = first_paths.get(&id) {
                return Some((Entry::HardLink { first: first.clone() }, None));
            }
            if has_links {
                first_paths.insert(id, path.to_vec());
            }
            (Entry::File, Some(Content { path: path.to_vec(), size: stamp.size, stamp }))
        }
    })
}
