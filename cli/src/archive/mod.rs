//! A directory tree as one deterministic, uncompressed tar: what a version's layer is made from.
//!
//! `walk` reads the tree and touches nothing else, `plan` decides (pure), with `delta` for a layer over another version, `encode` turns decisions into header
//! blocks (pure), `stream` reads the files' content and hands out chunks. The same tree gives the same bytes
//! whatever the clock, the order of directories on disk, and who builds it:
//!
//! * members are sorted by the bytes of their path, and the tree's own root is not one of them;
//! * every modification time is one given instant; owners are 0:0 unless asked for;
//! * hard links among the tree's files are kept (the first path holds the content), symbolic links verbatim;
//! * of the extended attributes `security.capability` and `user.*` are kept, as PAX `SCHILY.xattr.*` records;
//! * devices and FIFOs are members, as in the OCI layer specification; sockets are left out, as containerd does;
//! * names that mean "whiteout" in an OCI layer are refused, since their files would vanish;
//! * what `.capsuleignore` excludes is not a member, nor are that file and `capsule.toml`: see `exclude` (pure).
//!
//! Symbolic links are never followed below the given directory. A tree that changes while it is read is an
//! error, never a torn archive.
//!
//! Format: POSIX.1-2001 pax (IEEE Std 1003.1, `pax`), the dialect of the OCI image specification's `layer.md`.

mod delta;
mod encode;
mod exclude;
mod plan;
mod stream;
mod tarball;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::io::Errno;

use self::delta::Stuck;
pub use self::delta::{Base, BaseEntry, BaseKind};
use self::exclude::Exclude;
use self::plan::{Entry, Member};
pub use self::tarball::Tarball;
pub use self::walk::SMALL;

/// The largest modification time that eleven octal digits hold: in the year 2242.
pub const MAX_MTIME: u64 = 0o777_7777_7777;

/// The file of a tree's root that describes the version; never part of the tree.
pub const DECLARATION: &str = "capsule.toml";

/// The file of a tree's root that says what to leave out; never part of the tree.
const IGNORE: &str = ".capsuleignore";

/// What of the tree goes into the archive, and how.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Keep user and group ids; otherwise all is owned by 0:0.
    pub keep_owner: bool,
    /// Modification time of every member, in seconds since 1970; at most [`MAX_MTIME`].
    pub mtime: u64,
    /// A file that describes the version; where it lies in the tree it is not part of it.
    pub declaration: Option<&'a Path>,
}

/// A tree that has been read and judged, ready to be streamed.
#[derive(Debug)]
pub struct Plan {
    root: OwnedFd,
    dir: PathBuf,
    members: Vec<Member>,
    /// Sockets, which no image can hold.
    pub left_out: Vec<PathBuf>,
}

/// How much was archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Members that are neither directories nor deletions; `None` for an archive that was passed on as it is.
    pub files: Option<u64>,
    /// Bytes of content, or of the archive that was passed on.
    pub bytes: u64,
}

/// Why a tree cannot be archived.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be opened.
    #[error("cannot open the directory `{}`: {errno}", path.display())]
    OpenRoot { path: PathBuf, errno: Errno },
    /// Nothing is in it.
    #[error("`{}` is empty, or all of it is excluded: there is nothing to publish", path.display())]
    Empty { path: PathBuf },
    /// `capsule.toml` or `.capsuleignore` is something that cannot simply be read.
    #[error("`{}` is not a regular file: make it one, or remove it", path.display())]
    Special { path: PathBuf },
    /// `capsule.toml` or `.capsuleignore` is absurdly large.
    #[error("`{}` has more than {limit} bytes: it is not what its name says", path.display())]
    TooLarge { path: PathBuf, limit: u64 },
    /// A line of `.capsuleignore` that could match nothing.
    #[error("`{}` line {line} is no pattern of gitignore(5): {what}", path.display())]
    Pattern { path: PathBuf, line: usize, what: String },
    /// A file, directory or link of it cannot be read.
    #[error("cannot {step} `{}`: {errno}", path.display())]
    Read { step: &'static str, path: PathBuf, errno: Errno },
    /// A name that an OCI layer reserves.
    #[error("`{}` would not be a file in an image: names that begin with `.wh.` delete files of lower layers; rename it", path.display())]
    WhiteoutName { path: PathBuf },
    /// A device that overlayfs reserves.
    #[error("`{}` would not be a file in a container: overlayfs takes the character device 0:0 for a deletion; remove it", path.display())]
    WhiteoutDevice { path: PathBuf },
    /// An attribute that overlayfs obeys.
    #[error("attribute `{name}` of `{}` is overlayfs's own and would hide files; remove it with setfattr -x", path.display())]
    OverlayAttribute { name: String, path: PathBuf },
    /// An attribute that a PAX record cannot name.
    #[error("attribute `{name}` of `{}` has a name that an archive cannot record; remove it with setfattr -x", path.display())]
    AttributeName { name: String, path: PathBuf },
    /// Somebody writes to the tree.
    #[error("`{}` changed while it was read ({what}): publish a tree that nobody writes to", path.display())]
    Changed { path: PathBuf, what: String },
    /// The archive given is compressed.
    #[error(
        "{name} is compressed: decompress it on the way, with `{tool} -dc FILE | capsulectl build --tar - …`"
    )]
    Compressed { name: String, tool: &'static str },
    /// The archive given is none.
    #[error("{name} is not a tar: {what}")]
    NotTar { name: String, what: &'static str },
    /// The archive given ends too early.
    #[error(
        "{name} is broken off: it ends after {bytes} bytes without the two blocks of zeros that end a tar; make it anew"
    )]
    BrokenOff { name: String, bytes: u64 },
    /// The archive given cannot be read.
    #[error("cannot {step} {name}: {source}")]
    ReadTar { step: &'static str, name: String, source: std::io::Error },
}

/// Reads the tree at `dir` and decides what its archive holds: all of it, or what differs from `base`.
///
/// `dir` itself may be a symbolic link. Mount points below it are entered; excluded paths are not even opened.
///
/// # Errors
/// Any of [`Error`] but content that changes later.
pub fn plan(dir: &Path, options: Options<'_>, base: Option<&Base>) -> Result<Plan, Error> {
    let root = walk::open_root(dir)?;
    let exclude = read_exclude(&root, dir, options.declaration)?;
    let found = walk::read_tree(&root, dir, &exclude)?;
    if found.iter().all(|found| found.kind == walk::Kind::Socket) {
        return Err(Error::Empty { path: dir.to_owned() });
    }
    let planned = match base {
        None => plan::plan_members(found, options).map_err(Stuck::Refused),
        Some(base) => delta::plan_delta(found, base, options, |found, stamp| {
            stream::hash(&root, dir, &found.path, stamp)
        }),
    };
    let plan::Planned { members, left_out } = planned.map_err(|stuck| match stuck {
        Stuck::Refused(refusal) => refusal.in_tree(dir),
        Stuck::Unread(error) => error,
    })?;
    let left_out = left_out.iter().map(|path| join(dir, path)).collect();
    Ok(Plan { root, dir: dir.to_owned(), members, left_out })
}

/// Reads the `capsule.toml` of the tree at `dir`; `None` if it has none.
///
/// # Errors
/// [`Error::OpenRoot`] and [`Error::Read`], and what such a file may not be: a link, a device, too large.
pub fn read_declaration(dir: &Path) -> Result<Option<Vec<u8>>, Error> {
    walk::read_small(&walk::open_root(dir)?, dir, DECLARATION)
}

fn read_exclude(root: &OwnedFd, dir: &Path, declaration: Option<&Path>) -> Result<Exclude, Error> {
    let mut own = BTreeSet::from([DECLARATION, IGNORE].map(|name| name.as_bytes().to_vec()));
    own.extend(declaration.and_then(|file| walk::path_below(dir, file)));
    let patterns = walk::read_small(root, dir, IGNORE)?.unwrap_or_default();
    Exclude::parse(&patterns, own).map_err(|bad| Error::Pattern {
        path: dir.join(IGNORE),
        line: bad.line,
        what: bad.what,
    })
}

impl Plan {
    /// How much it holds.
    pub fn summary(&self) -> Summary {
        let is_file = |m: &&Member| !matches!(m.entry, Entry::Directory | Entry::Whiteout);
        let files = self.members.iter().filter(is_file).count() as u64;
        let bytes = self.members.iter().filter_map(|m| m.content.as_ref()).map(|c| c.size).sum();
        Summary { files: Some(files), bytes }
    }

    /// Reads the content and passes the archive to `emit` in chunks of at most [`stream::CHUNK`] bytes, until
    /// it is complete or `emit` returns false.
    ///
    /// # Errors
    /// [`Error::Read`], and [`Error::Changed`] for a file that is no longer what was planned.
    pub fn stream(&self, emit: impl FnMut(Vec<u8>) -> bool) -> Result<(), Error> {
        stream::stream(&self.root, &self.dir, &self.members, emit)
    }
}

/// A path of the tree as the person who named `dir` would write it.
fn join(dir: &Path, path: &[u8]) -> PathBuf {
    dir.join(OsStr::from_bytes(path))
}
