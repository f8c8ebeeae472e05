//! The directories under the root: the only room that names paths on disk, and that changes them.
//!
//! ```text
//! ROOT/metadata.redb        the store
//! ROOT/snapshots/ID/fs      a snapshot's own changes: upper directory while active, a lower one when committed
//! ROOT/snapshots/ID/work    overlayfs work directory (active snapshots only)
//! ROOT/snapshots/new-N      being made
//! ROOT/snapshots/trial-ID   at start: is this a place for overlays?
//! ROOT/pool/KEY             one more name of a file of committed capsule layers, by what it is
//! ROOT/empty/               an empty directory, to make an overlay of a single layer
//! ```
//!
//! What is in `fs` was written by containers: it is never followed through a link.

mod flush;
mod pool;
mod staged;
mod suitable;
mod tree;

pub use pool::Fresh;
pub use staged::Staged;
pub use suitable::UnsuitableRoot;
pub(crate) use tree::remove as remove_tree;

use std::{
    collections::HashSet,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::snapshots::model::{Kind, Usage};
use flush::Flushes;

/// Free bytes below which space is scarce: removals themselves need some in the metadata store.
const SCARCE: u64 = 64 << 20;

/// A directory operation that failed: which, where and why.
#[derive(Debug, thiserror::Error)]
#[error("{step} {path}")]
pub struct DirsError {
    step: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl DirsError {
    /// What kind of error the system gave.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// Whether the file system is full.
    pub fn is_out_of_space(&self) -> bool {
        crate::full::is_kind(&self.source)
    }
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirsError {
    let path = path.to_owned();
    move |source| DirsError { step, path, source }
}

/// The directories under one root. Cheap to clone; clones share what is in the making.
#[derive(Clone, Debug)]
pub struct Dirs {
    root: PathBuf,
    making: Arc<Making>,
    removing: Arc<Mutex<()>>,
    flushes: Arc<OnceLock<Flushes>>,
    /// A layer has gone since the pool was swept.
    gone: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Making {
    next: AtomicU64,
    /// Names of the `new-N` that belong to calls under way.
    names: Mutex<HashSet<String>>,
}

impl Making {
    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dirs {
    /// Names the directories under `root`; touches nothing.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            making: Arc::default(),
            removing: Arc::default(),
            flushes: Arc::default(),
            gone: Arc::default(),
        }
    }

    /// Makes what must be there before anything else, with mode 0700. Does nothing to what is there.
    ///
    /// # Errors
    /// When a directory cannot be made.
    pub fn create(&self) -> Result<(), DirsError> {
        for path in [self.root.clone(), self.snapshots(), self.empty()] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(failed("make directory", &path))?;
        }
        self.flushes()?;
        Ok(())
    }

    /// The metadata store's file.
    pub fn metadata(&self) -> PathBuf {
        self.root.join("metadata.redb")
    }

    /// The empty directory.
    pub fn empty(&self) -> PathBuf {
        self.root.join("empty")
    }

    /// Where the snapshots' directories are.
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    fn snapshot(&self, id: u64) -> PathBuf {
        self.snapshots().join(id.to_string())
    }

    /// The changes of snapshot `id`.
    pub fn upper(&self, id: u64) -> PathBuf {
        self.snapshot(id).join("fs")
    }

    /// The overlayfs work directory of snapshot `id`.
    pub fn work(&self, id: u64) -> PathBuf {
        self.snapshot(id).join("work")
    }

    /// The id of the snapshot whose [`Dirs::upper`] is `path`.
    pub fn parse_upper(&self, path: &Path) -> Option<u64> {
        let relative = path.strip_prefix(self.snapshots()).ok()?;
        let id = relative.parent()?.to_str()?.parse().ok()?;
        (self.upper(id) == path).then_some(id)
    }

    /// The first directory that snapshot `id` should have and has not: nothing is there, or something else.
    pub fn missing(&self, id: u64, kind: Kind) -> Option<PathBuf> {
        let work = (kind == Kind::Active).then(|| self.work(id));
        let is_directory = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
        [Some(self.upper(id)), work].into_iter().flatten().find(|path| !is_directory(path))
    }

    /// Makes the directories of a new snapshot under a temporary name. Their modes are those of containerd's
    /// overlayfs: `fs` 0755, since it becomes the root that a container sees, `work` 0711.
    ///
    /// # Errors
    /// When a directory cannot be made.
    pub fn stage(&self, kind: Kind) -> Result<Staged, DirsError> {
        self.stage_as(format!("new-{}", self.making.next.fetch_add(1, Ordering::Relaxed)), kind)
    }

    /// As [`Dirs::stage`], under this name. A crash may have left any name that a call of an earlier run had.
    fn stage_as(&self, name: String, kind: Kind) -> Result<Staged, DirsError> {
        let path = self.snapshots().join(&name);
        self.making.lock().insert(name.clone());
        let staged = Staged { dirs: self.clone(), name, path, kept: false };
        make_directory(&staged.path, 0o700)?;
        make_directory(&staged.path.join("fs"), 0o755)?;
        if kind == Kind::Active {
            make_directory(&staged.path.join("work"), 0o711)?;
        }
        Ok(staged)
    }

    fn flushes(&self) -> Result<&Flushes, DirsError> {
        if let Some(flushes) = self.flushes.get() {
            return Ok(flushes);
        }
        let path = self.snapshots();
        let flushes = Flushes::open(&path).map_err(failed("open", &path))?;
        Ok(self.flushes.get_or_init(|| flushes))
    }

    /// Writes everything of the file system that holds the snapshots to the disk. What was written to a snapshot
    /// before this call survives a power cut after it. Callers at the same time share the work.
    ///
    /// # Errors
    /// When the disk reports an error, also for earlier writes (Linux ≥ 5.8, syncfs(2)).
    pub fn sync(&self) -> Result<(), DirsError> {
        self.flushes()?.flush().map_err(failed("sync", &self.snapshots()))
    }

    /// Disk space of the changes of snapshot `id`.
    ///
    /// # Errors
    /// When the tree cannot be read, or is changed while it is being read in a way that hides parts of it.
    pub fn usage(&self, id: u64) -> Result<Usage, DirsError> {
        let path = self.upper(id);
        tree::measure(&path).map_err(failed("measure", &path))
    }

    /// Whether the snapshots' file system has so little space left that what can go should go at once. False when it
    /// does not say.
    pub fn is_space_scarce(&self) -> bool {
        // ramfs, for one, has no number of blocks.
        let scarce = |stat: rustix::fs::StatVfs| stat.f_blocks > 0 && stat.f_bavail * stat.f_frsize < SCARCE;
        rustix::fs::statvfs(self.snapshots()).is_ok_and(scarce)
    }

    /// Removes the directory of snapshot `id`, or what is left of it.
    ///
    /// # Errors
    /// When something of it cannot be removed.
    pub fn remove(&self, id: u64) -> Result<(), DirsError> {
        let path = self.snapshot(id);
        self.gone.store(true, Ordering::Release);
        tree::remove(&path).map_err(failed("remove", &path))
    }

    /// Ids of the snapshots whose directories are there.
    ///
    /// # Errors
    /// When the directory of snapshots cannot be read.
    pub fn present(&self) -> Result<HashSet<u64>, DirsError> {
        let path = self.snapshots();
        let mut present = HashSet::new();
        for entry in fs::read_dir(&path).map_err(failed("read", &path))? {
            let entry = entry.map_err(failed("read", &path))?;
            present.extend(entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        Ok(present)
    }

    /// Directories that belong to no snapshot and no call under way: what a removal or a crash left. To be called
    /// while no snapshot can be made, so that `known` is complete.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn leftovers(&self, known: &HashSet<u64>) -> Result<Vec<Leftover>, DirsError> {
        let path = self.snapshots();
        let mut leftovers = Vec::new();
        for entry in fs::read_dir(&path).map_err(failed("read", &path))? {
            let entry = entry.map_err(failed("read", &path))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let id = name.parse().ok();
            let recorded = id.is_some_and(|id| known.contains(&id));
            if !recorded && !self.making.lock().contains(&*name) {
                leftovers.push(Leftover { path: entry.path(), id });
            }
        }
        Ok(leftovers)
    }

    /// Removes these of [`Dirs::leftovers`], after what is being removed already. One that cannot be removed is logged
    /// and left.
    pub fn remove_leftovers(&self, leftovers: &[Leftover]) {
        // Whoever asks for a removal finds it done afterwards, also when another had begun it.
        let _alone = self.removing.lock().unwrap_or_else(PoisonError::into_inner);
        self.gone.fetch_or(!leftovers.is_empty(), Ordering::AcqRel);
        for Leftover { path, .. } in leftovers {
            match tree::remove(path).map_err(failed("remove", path)) {
                Ok(()) => tracing::debug!(path = %path.display(), "removed a leftover directory"),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(path = %path.display(), error, "leftover directory stays");
                }
            }
        }
    }
}

/// A directory that belongs to no snapshot.
#[derive(Debug, PartialEq, Eq)]
pub struct Leftover {
    path: PathBuf,
    /// Of the snapshot that it was for, if it has come so far.
    pub id: Option<u64>,
}

fn make_directory(path: &Path, mode: u32) -> Result<(), DirsError> {
    DirBuilder::new().mode(mode).create(path).map_err(failed("make directory", path))?;
    // The mode of mkdir(2) is subject to the umask, and the root of a container's file system must not be.
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
    fs::set_permissions(path, permissions).map_err(failed("change mode of", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn upper_directories_parse_back_and_nothing_else_does() {
        let dirs = Dirs::new("/r");
        assert_eq!(dirs.parse_upper(&dirs.upper(17)), Some(17));
        for path in ["/r/snapshots/017/fs", "/r/snapshots/17", "/r/snapshots/17/work", "/s/snapshots/17/fs"] {
            assert_eq!(dirs.parse_upper(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn what_is_staged_goes_unless_kept() {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(root.path());
        dirs.create().unwrap();
        let mut dropped = dirs.stage(Kind::Active).unwrap();
        dropped.place(1).unwrap();
        drop(dropped);
        let mut kept = dirs.stage(Kind::View).unwrap();
        kept.place(2).unwrap();
        kept.keep();
        assert!(!dirs.upper(1).exists());
        assert!(dirs.upper(2).exists());
        assert!(!dirs.work(2).exists());
    }

    #[test]
    fn leftovers_are_what_nobody_knows() {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(root.path());
        dirs.create().unwrap();
        let under_way = dirs.stage(Kind::Active).unwrap();
        for name in ["1", "2", "new-99", "07", "rubbish"] {
            fs::create_dir(dirs.snapshots().join(name)).unwrap();
        }
        let mut found: Vec<String> = dirs
            .leftovers(&HashSet::from([1, 7]))
            .unwrap()
            .iter()
            .map(|leftover| leftover.path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        found.sort();
        assert_eq!(found, ["2", "new-99", "rubbish"]);
        drop(under_way);
    }

    #[test]
    fn modes_do_not_depend_on_the_umask() {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(root.path());
        dirs.create().unwrap();
        let staged = dirs.stage(Kind::Active).unwrap();
        let mode = |name| fs::metadata(staged.path.join(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("fs"), mode("work")), (0o755, 0o711));
    }
}
