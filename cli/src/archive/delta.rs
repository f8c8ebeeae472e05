//! Decides what of a tree a layer over another version has to hold. Pure but for the sums that it asks for.
//!
//! What is there after the layer is applied is the tree: entries that differ or are new, the directories above them (whose
//! times an unpacker would otherwise change), and a whiteout for what is gone (OCI image specification, `layer.md`,
//! "Whiteouts"). Whether two names are one file is no part of a tree: of names that share a file, those that
//! differ from the base are members.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Options;
use super::plan::{self, Entry, Member, Planned, Refusal};
use super::walk::{Attributes, Found, Kind, Stamp};

/// What the other version has, by path; its root is not in it.
pub type Base = BTreeMap<Vec<u8>, BaseEntry>;

/// One path of the other version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseEntry {
    pub kind: BaseKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
    pub xattrs: Attributes,
}

/// What a path of the other version is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseKind {
    Directory,
    File { size: u64, sha256: [u8; 32] },
    Symlink { target: Vec<u8> },
    Fifo,
    Device { block: bool, major: u32, minor: u32 },
    Socket,
}

/// Why there is no plan.
#[derive(Debug)]
pub enum Stuck<E> {
    /// The tree cannot be published.
    Refused(Refusal),
    /// A sum could not be had.
    Unread(E),
}

/// The members of the layer that makes the tree out of `base`. `sum` gives the SHA-256 of a file's content; it is asked for
/// files of which all else is equal.
pub fn plan_delta<E>(
    found: Vec<Found>,
    base: &Base,
    options: Options<'_>,
    mut sum: impl FnMut(&Found, Stamp) -> Result<[u8; 32], E>,
) -> Result<Planned, Stuck<E>> {
    found.iter().try_for_each(plan::check).map_err(Stuck::Refused)?;
    let tree: HashMap<&[u8], &Found> = found
        .iter()
        .filter(|found| found.kind != Kind::Socket) // is left out: what the base has there goes
        .map(|found| (found.path.as_slice(), found))
        .collect();
    let mut needed: BTreeSet<Vec<u8>> = BTreeSet::new();
    for found in tree.values() {
        let is_equal = match base.get(&found.path) {
            Some(old) => is_equal(old, found, options, &mut sum).map_err(Stuck::Unread)?,
            None => false,
        };
        if !is_equal {
            needed.insert(found.path.clone());
        }
    }
    let gone = |path: &[u8]| {
        let is_directory = |path: &[u8]| tree.get(path).is_some_and(|f| f.kind == Kind::Directory);
        // With its directory goes all that is in it.
        !tree.contains_key(path) && parent(path).is_none_or(is_directory)
    };
    let whiteouts: Vec<Vec<u8>> = base.keys().filter(|path| gone(path)).cloned().collect();
    let above: Vec<Vec<u8>> =
        needed.iter().chain(&whiteouts).flat_map(|path| ancestors(path)).map(<[u8]>::to_vec).collect();
    needed.extend(above);
    let members = found.into_iter().filter(|f| f.kind == Kind::Socket || needed.contains(&f.path)).collect();
    let mut planned = plan::plan_members(members, options).map_err(Stuck::Refused)?;
    planned.members.extend(whiteouts.iter().map(|path| whiteout(path, options)));
    planned.members.sort_by(|a, b| a.path().cmp(b.path()));
    Ok(planned)
}

fn is_equal<E>(
    old: &BaseEntry,
    found: &Found,
    options: Options<'_>,
    sum: &mut impl FnMut(&Found, Stamp) -> Result<[u8; 32], E>,
) -> Result<bool, E> {
    let (uid, gid) = plan::owner(found, options);
    let mtime = (i64::try_from(options.mtime).unwrap_or(i64::MAX), 0);
    let metadata = (old.mode, old.uid, old.gid, old.mtime) == (found.mode, uid, gid, mtime);
    if !metadata || old.xattrs != found.xattrs {
        return Ok(false);
    }
    Ok(match (&old.kind, &found.kind) {
        (BaseKind::File { size, sha256 }, Kind::File { stamp, .. }) => {
            *size == stamp.size && sum(found, *stamp)? == *sha256
        }
        (BaseKind::Directory, Kind::Directory) | (BaseKind::Fifo, Kind::Fifo) => true,
        (BaseKind::Symlink { target: old }, Kind::Symlink { target }) => old == target,
        (BaseKind::Device { block, major, minor }, Kind::Device { block: b, major: x, minor: y }) => {
            (block, major, minor) == (b, x, y)
        }
        _ => false,
    })
}

fn whiteout(path: &[u8], options: Options<'_>) -> Member {
    let at = path.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    Member {
        name: [&path[..at], b".wh.", &path[at..]].concat(),
        entry: Entry::Whiteout,
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: options.mtime,
        xattrs: Attributes::new(),
        content: None,
    }
}

fn parent(path: &[u8]) -> Option<&[u8]> {
    path.iter().rposition(|b| *b == b'/').map(|slash| &path[..slash])
}

fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(parent(path), |path| parent(path))
}

#[cfg(test)]
mod tests;
