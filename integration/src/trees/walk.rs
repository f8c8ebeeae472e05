//! Reads a tree. Follows no link and stays on no file system: a mount inside a tree is part of it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsStr};
use std::fs::{self, File, Metadata};
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{lgetxattr, llistxattr};
use sha2::{Digest as _, Sha256};

use super::{Changed, Content, Node, Tree};

/// What Linux allows a list of names or a value to have (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_LIMIT: usize = 65536;

/// What overlayfs notes about an upper directory: a handle of the lower file that was copied up, and the number of the
/// file system. They are of one place on one disk, so their lengths alone count.
const OF_THIS_PLACE: [&[u8]; 2] = [b"trusted.overlay.origin", b"trusted.overlay.uuid"];

/// The time in which trees are made. What has changed in it is the same for all of them.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    since: Duration,
}

impl Window {
    /// Starts now.
    pub fn open() -> Result<Self> {
        Ok(Self { since: now()? })
    }

    /// The time of a file that is read now.
    fn place(self, seconds: i64, nanoseconds: i64) -> Result<Changed> {
        let at = u64::try_from(seconds).map(Duration::from_secs).unwrap_or_default()
            + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or_default());
        // The kernel stamps files with the time of its last tick.
        let tick = Duration::from_millis(10);
        let meanwhile = at + tick >= self.since && at <= now()?;
        Ok(if meanwhile { Changed::Meanwhile } else { Changed::At(seconds, nanoseconds) })
    }
}

fn now() -> Result<Duration> {
    SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")
}

/// The tree below `root`, which needs the right to read every file. An error if a folder lists a name twice.
pub fn read(root: &Path, window: Window) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut inodes: HashMap<(u64, u64), Vec<Vec<u8>>> = HashMap::new();
    let mut folders = vec![Vec::new()];
    add(&mut tree, root, Vec::new(), window)?;
    while let Some(folder) = folders.pop() {
        let at = root.join(OsStr::from_bytes(&folder));
        for entry in fs::read_dir(&at).with_context(|| format!("list {}", at.display()))? {
            let name = entry.with_context(|| format!("list {}", at.display()))?.file_name();
            let mut path = folder.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(name.as_bytes());
            let metadata = add(&mut tree, &at.join(&name), path.clone(), window)?;
            if metadata.is_dir() {
                folders.push(path);
            } else if metadata.nlink() > 1 {
                inodes.entry((metadata.dev(), metadata.ino())).or_default().push(path);
            }
        }
    }
    for paths in inodes.into_values() {
        let first = paths.iter().min().cloned().unwrap_or_default();
        for path in paths {
            if let Some(node) = tree.get_mut(&path) {
                node.twin.clone_from(&first);
            }
        }
    }
    Ok(tree)
}

fn add(tree: &mut Tree, at: &Path, path: Vec<u8>, window: Window) -> Result<Metadata> {
    let metadata = fs::symlink_metadata(at).with_context(|| format!("look at {}", at.display()))?;
    let node = node(at, &path, &metadata, window).with_context(|| format!("read {}", at.display()))?;
    if tree.insert(path, node).is_some() {
        bail!("{} is listed twice", at.display());
    }
    Ok(metadata)
}

fn node(at: &Path, path: &[u8], metadata: &Metadata, window: Window) -> Result<Node> {
    let kind = metadata.file_type();
    let content = if kind.is_symlink() {
        Content::Target(fs::read_link(at)?.into_os_string().into_vec())
    } else if kind.is_file() {
        Content::Digest(digest(at)?)
    } else {
        Content::None
    };
    Ok(Node {
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        size: (!kind.is_dir()).then_some(metadata.len()),
        device: metadata.rdev(),
        links: metadata.nlink(),
        twin: path.to_owned(),
        changed: window.place(metadata.mtime(), metadata.mtime_nsec())?,
        xattrs: xattrs(at)?,
        content,
    })
}

fn digest(at: &Path) -> Result<[u8; 32]> {
    let mut file = File::open(at)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().into()),
            length => hasher.update(buffer.get(..length).unwrap_or_default()),
        }
    }
}

fn xattrs(at: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut buffer = vec![0; XATTR_LIMIT];
    let length = llistxattr(at, &mut *buffer).context("list extended attributes")?;
    let names = buffer.get(..length).unwrap_or_default().to_owned();
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let length = lgetxattr(at, CString::new(name)?, &mut *buffer)
                .with_context(|| format!("read the extended attribute {}", name.escape_ascii()))?;
            let value = if OF_THIS_PLACE.contains(&name) {
                format!("{length} bytes").into_bytes()
            } else {
                buffer.get(..length).unwrap_or_default().to_owned()
            };
            Ok((name.to_owned(), value))
        })
        .collect()
}
