//! A container as a call finds it: its pinned init process, its root from both sides, its mounts, its journal.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use overlayfs_utils::{
    ContainerPath, ContainerRoot, DetachedMount, LayerDir, MountEntry, MountId, MountTable, PinnedTask,
    ResolveError, SuperBlock, mount_at,
};
use rustix::fs::{Mode as FileMode, OFlags};

use super::{
    LiveTask, Runtime,
    error::EngineError,
    journal::{Init, Journal, Mounted, Record},
    kernel::Kernel,
    known::Known,
    plan::{Place, Seen, There},
    steps::step,
};

/// The directory in the bundle that overlays of one layer get as their second.
const EMPTY: &str = "capsule-empty";

/// Mounts, attached nowhere, of the filesystems that drain.
///
/// The kernel gives the device number of a filesystem that is gone to the next one, which may well be the capsule's next
/// version; without a pin, users of the new one would be taken for users of the old.
pub type Pins = Vec<(SuperBlock, DetachedMount)>;

/// What the process keeps of a container from one call to the next.
#[derive(Debug, Default)]
pub struct Kept {
    /// What keeps draining filesystems alive.
    pub pins: Pins,
    /// The journal as it was last read or written.
    known: Known,
    /// Why its devices were denied when they were last looked at.
    pub denied: Option<String>,
}

/// One container during one call.
#[derive(Debug)]
pub struct Scene {
    /// The pinned init process: the container's own view.
    pub task: PinnedTask,
    /// The root file system as the host has it mounted, with none of the container's mounts.
    pub host: ContainerRoot,
    /// What is attached.
    pub journal: Journal,
    /// How layers are told to the kernel.
    pub kernel: Kernel,
    /// What is kept from call to call.
    pub kept: Kept,
    /// Whether anything may be attached.
    pub takes_capsules: bool,
    /// Whether its first process runs.
    pub has_begun: bool,
    /// Its control group, where the hierarchy is unified.
    pub cgroup: Option<PathBuf>,
    /// Its runtime.
    pub runtime: Arc<dyn Runtime>,
    bundle: PathBuf,
    rootfs: PathBuf,
}

impl Scene {
    /// Pins the task and reads its journal.
    ///
    /// # Errors
    /// [`EngineError`] when the task has ended, or the journal is unreadable.
    pub fn open(live: &LiveTask, kernel: Kernel, mut kept: Kept) -> Result<Self, EngineError> {
        let task = PinnedTask::of(Arc::clone(&live.init), live.init_pid)?;
        let host = ContainerRoot::open(&live.rootfs)
            .map_err(|e| EngineError::Rootfs { path: live.rootfs.clone(), source: e.into() })?;
        let init = Init { pid: task.pid(), start_time: task.start_time() };
        let journal = kept.known.read(&live.bundle, init)?;
        let (takes_capsules, has_begun, bundle) = (live.takes_capsules, live.has_begun, live.bundle.clone());
        let (cgroup, rootfs) = (live.cgroup.clone(), live.rootfs.clone());
        let runtime = Arc::clone(&live.runtime);
        Ok(Self {
            task,
            host,
            journal,
            kernel,
            kept,
            takes_capsules,
            has_begun,
            cgroup,
            runtime,
            bundle,
            rootfs,
        })
    }

    /// The bundle.
    #[must_use]
    pub fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// Where the host has the container's root mounted.
    #[must_use]
    pub fn rootfs(&self) -> &Path {
        &self.rootfs
    }

    /// Writes the journal.
    ///
    /// # Errors
    /// [`EngineError::Journal`].
    pub fn write_journal(&mut self) -> Result<(), EngineError> {
        Ok(step("journal", || self.kept.known.write(&self.journal, &self.bundle))?)
    }

    /// The container's mount table as it is now.
    ///
    /// # Errors
    /// [`EngineError::Pin`].
    pub fn read_mounts(&self) -> Result<MountTable, EngineError> {
        Ok(self.task.read_mounts()?)
    }

    /// An empty directory of the host's, made when it is not there.
    ///
    /// # Errors
    /// [`EngineError::Empty`].
    pub fn empty_dir(&self) -> Result<LayerDir, EngineError> {
        let path = self.bundle.join(EMPTY);
        match fs::DirBuilder::new().mode(0o755).create(&path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                Err(EngineError::Empty { path, source })
            }
            _ => Ok(LayerDir::open(&path)?),
        }
    }

    /// A directory of the container's root file system, opened to be a union's lower layer.
    ///
    /// # Errors
    /// [`EngineError`] when it is not there, or cannot be read.
    pub fn open_host_dir(&self, path: &ContainerPath) -> Result<LayerDir, EngineError> {
        let dir = self.host.resolve_plain(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir.fd(), ".", flags, FileMode::empty()).map_err(|source| {
            EngineError::Target(ResolveError::Kernel { step: "open", path: path.clone(), source })
        })?;
        Ok(LayerDir::from_fd(fd, path.as_ref().to_owned()))
    }

    /// The mount on top at `path`, if `path` is a mount's root.
    ///
    /// # Errors
    /// [`EngineError`] when the kernel does not say.
    pub fn mount_at(&self, path: &ContainerPath) -> Result<Option<MountId>, EngineError> {
        match self.task.root().mount_point(path) {
            Ok(point) => Ok(mount_at(&point)?),
            // A parent that was renamed away or replaced by a link: our mount is not at that path.
            Err(ResolveError::Missing(_) | ResolveError::NotADirectory(_) | ResolveError::Link(_)) => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether one of an attachment's mounts is on top where it was put.
    ///
    /// # Errors
    /// [`EngineError`] when the kernel does not say.
    pub fn is_there(&self, mounted: &Mounted) -> Result<bool, EngineError> {
        Ok(self.mount_at(&mounted.path)? == Some(mounted.id()))
    }

    /// Where one of an attachment's mounts is now: where it was put, unless the container renamed a directory above it.
    /// It may have moved on when the caller gets there, so what acts on it checks the mount's id.
    ///
    /// # Errors
    /// [`EngineError`] when the kernel does not say.
    pub fn locate(&self, mounted: &Mounted) -> Result<Option<ContainerPath>, EngineError> {
        if self.is_there(mounted)? {
            return Ok(Some(mounted.path.clone()));
        }
        let table = self.read_mounts()?;
        // By id and device: the container may have bound the capsule elsewhere too, and ids are used again.
        let ours = |m: &&MountEntry| m.id == mounted.block.table_id && m.device == mounted.block.device;
        let path = table.entries().iter().find(ours).and_then(|entry| entry.mount_point.to_str());
        Ok(path.and_then(|path| ContainerPath::parse(path).ok()))
    }

    /// Names a mount to a person.
    #[must_use]
    pub fn name_mount(&self, entry: &MountEntry) -> String {
        self.name_owned(entry, self.journal.owners().get(entry.mount_point.as_os_str()).copied())
    }

    fn name_owned(&self, entry: &MountEntry, owner: Option<&Record>) -> String {
        match owner {
            Some(record) => name_attachment(record),
            None if self.is_of_devices(&entry.mount_point) => "a file of attached devices".to_owned(),
            None if entry.source.is_empty() || entry.source == "none" => {
                format!("the {} mounted there", entry.filesystem)
            }
            None => format!("the {} mount of {:?}", entry.filesystem, entry.source),
        }
    }

    fn is_of_devices(&self, path: &Path) -> bool {
        self.journal.devices.iter().any(|record| record.mounts.iter().any(|m| m.path.as_ref() == path))
    }

    /// The mounts of `table` other than the container's root and those of `except`, named.
    #[must_use]
    pub fn seen_mounts(&self, table: &MountTable, except: Option<&Record>) -> Vec<Seen> {
        let own =
            |path: &Path| except.is_some_and(|record| record.mounts.iter().any(|m| m.path.as_ref() == path));
        let others =
            table.entries().iter().filter(|m| m.mount_point != Path::new("/") && !own(&m.mount_point));
        let owners = self.journal.owners();
        let name = |m: &MountEntry| self.name_owned(m, owners.get(m.mount_point.as_os_str()).copied());
        let mut seen: Vec<Seen> = others
            .map(|m| Seen { path: m.mount_point.to_string_lossy().into_owned(), what: name(m) })
            .collect();
        // The outermost first, so that a refusal names the mount that stands in the way.
        seen.sort_by(|a, b| a.path.cmp(&b.path));
        seen
    }
}

/// Names an attachment to a person.
#[must_use]
pub fn name_attachment(record: &Record) -> String {
    format!("attachment {} ({})", record.spec.id, record.spec.content)
}

impl Place<EngineError> for Scene {
    fn look(&self, path: &ContainerPath) -> Result<There, EngineError> {
        match self.host.resolve_plain(path) {
            Ok(_) => Ok(There::Dir),
            Err(ResolveError::Missing(_)) => Ok(There::Missing),
            Err(ResolveError::Link(_) | ResolveError::NotADirectory(_)) => match self.host.read_link(path)? {
                Some(text) => Ok(There::Link(text, self.host.resolve(path).ok().map(|r| r.path().clone()))),
                None => Ok(There::Other),
            },
            Err(error) => Err(error.into()),
        }
    }
}
