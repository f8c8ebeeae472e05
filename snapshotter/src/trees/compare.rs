//! What differs between two trees. Pure.

use std::collections::BTreeMap;

use super::{entry::Entry, merge::Shown};

/// One path that is not the same on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// `None` where only the other side has it.
    pub from: Option<Entry>,
    /// As `from`.
    pub to: Option<Entry>,
    /// Both are files, of different bytes.
    pub content_differs: bool,
}

/// One path, on the sides that have it.
#[derive(Debug, PartialEq, Eq)]
pub struct Pair {
    /// At least one of them is there.
    pub sides: [Option<Shown>; 2],
}

/// What is to be done about a pair, as far as that can be told without reading content.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Equal, with all that may be inside.
    Same,
    /// They are told apart by what is known, or only one side has it.
    Differs {
        /// Both are files, of different bytes.
        content: bool,
    },
    /// Nothing but the content of the two files can tell.
    Read {
        /// They differ even if their content does not.
        differs: bool,
    },
    /// Directories that are equal themselves: what is inside remains to be seen.
    Inside,
}

/// The names of both sides' directories, as pairs, in the order of their bytes.
pub fn plan_pairs(
    from: BTreeMap<Vec<u8>, Shown>,
    mut to: BTreeMap<Vec<u8>, Shown>,
) -> impl DoubleEndedIterator<Item = Pair> {
    let mut pairs: BTreeMap<Vec<u8>, Pair> = BTreeMap::new();
    for (name, shown) in from {
        let other = to.remove(&name);
        pairs.insert(name, Pair { sides: [Some(shown), other] });
    }
    for (name, shown) in to {
        pairs.insert(name, Pair { sides: [None, Some(shown)] });
    }
    pairs.into_values()
}

/// What is to be done about a pair.
pub fn plan_pair(pair: &Pair) -> Verdict {
    let [Some(from), Some(to)] = &pair.sides else { return Verdict::Differs { content: false } };
    if from.entry.inode == to.entry.inode && from.layers == to.layers {
        return Verdict::Same;
    }
    let (from, to) = (&from.entry, &to.entry);
    if from.inode == to.inode && !from.is_directory() {
        return Verdict::Same;
    }
    let differs = metadata_differs(from, to);
    match (from.size(), to.size()) {
        (Some(a), Some(b)) if a == b => Verdict::Read { differs },
        (Some(_), Some(_)) => Verdict::Differs { content: true },
        _ if differs => Verdict::Differs { content: false },
        _ => Verdict::Inside,
    }
}

/// Whether two entries of one path differ in anything but a file's content. When the root was written to last is no part
/// of a tree: it is when it was unpacked.
pub fn metadata_differs(from: &Entry, to: &Entry) -> bool {
    let root = from.path.is_empty();
    let of = |e: &Entry| (e.mode, e.uid, e.gid, if root { (0, 0) } else { e.mtime });
    from.kind != to.kind || of(from) != of(to) || from.xattrs != to.xattrs
}
