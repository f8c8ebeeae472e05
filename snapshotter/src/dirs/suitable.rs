//! Whether the root is a place for overlays' upper directories: asked of the file system itself, before anything is
//! stored there.

use std::{
    ffi::OsStr,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use overlayfs_utils::{LayerDir, MountError, TreeError, try_writable_overlay};
use rustix::{
    fs::{CWD, Dir, FileType, Mode, OFlags, XattrFlags, openat, removexattr, setxattr},
    io::Errno,
};

use super::{Dirs, DirsError, Staged, failed};
use crate::snapshots::{OverlayOptions, model::Kind};

/// Why snapshots cannot be under the root.
#[derive(Debug, thiserror::Error)]
pub enum UnsuitableRoot {
    /// The place could not be examined.
    #[error(transparent)]
    Dirs(#[from] DirsError),
    /// The place could not be examined.
    #[error(transparent)]
    Open(#[from] TreeError),
    /// No `d_type`: an overlay could not tell whiteouts from files.
    #[error(
        "the file system of {path} does not tell the types of directory entries (d_type), which overlayfs needs: set \
         root to a directory on another (xfs has to be made with ftype=1)"
    )]
    NoTypes {
        /// The root.
        path: PathBuf,
    },
    /// No extended attributes: an overlay could not mark opaque directories.
    #[error(
        "files in {path} cannot have {attribute} attributes, which overlayfs needs: set root to a directory on another \
         file system (ext4, xfs, btrfs), and let capsuled run with CAP_SYS_ADMIN"
    )]
    NoAttributes {
        /// The root.
        path: PathBuf,
        /// The attribute that was tried.
        attribute: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Snapshots, and nothing that knows them: with a new store they would all be leftovers.
    #[error(
        "{snapshots} holds snapshots, and the metadata store {store} that knows them is missing or empty: restore it, \
         or remove {snapshots} to begin anew"
    )]
    NoStore {
        /// The directory of the snapshots.
        snapshots: PathBuf,
        /// The store's file.
        store: PathBuf,
    },
    /// The kernel refuses.
    #[error(
        "no overlay can be mounted with its upper directory in {path}{options}: set root to a directory on a local \
         file system (ext4, xfs, btrfs; no overlay), or correct snapshots.mount_options"
    )]
    Overlay {
        /// The root.
        path: PathBuf,
        /// The options that it was tried with.
        options: Tried,
        /// Why.
        #[source]
        source: MountError,
    },
}

impl UnsuitableRoot {
    /// Whether nothing could be tried, as the disk is full or read-only.
    fn is_untried(&self) -> bool {
        let kind = match self {
            Self::Dirs(error) => error.kind(),
            Self::NoAttributes { source, .. } => source.kind(),
            Self::Overlay { source, .. } => io::Error::from(source.errno()).kind(),
            Self::Open(_) | Self::NoTypes { .. } | Self::NoStore { .. } => return false,
        };
        matches!(
            kind,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::ReadOnlyFilesystem
        )
    }
}

/// Mount options, for a message.
#[derive(Debug)]
pub struct Tried(Vec<String>);

impl fmt::Display for Tried {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(out, " and the options {}", self.0.join(",")) }
    }
}

impl Dirs {
    /// Refuses a root on whose file system overlays do not work, or not with these options, in a directory of its
    /// own there that goes again. A full disk is no reason: what is stored can be used and removed. What a
    /// read-only one means, the store says.
    ///
    /// # Errors
    /// [`UnsuitableRoot`] says which need is not met and what to do.
    pub fn check_root(&self, overlay: &OverlayOptions) -> Result<(), UnsuitableRoot> {
        if self.is_space_scarce() {
            tracing::warn!("too little space is left in the root to try an overlay there");
            return Ok(()); // whatever is there was made on a start before, and the store needs what space there is
        }
        match self
            .stage_as(format!("trial-{}", crate::fresh_id()), Kind::Active)
            .map_err(Into::into)
            .and_then(|staged| self.try_overlays(&staged, overlay))
        {
            Err(error) if error.is_untried() => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "no overlay could be tried in the root; going on");
                Ok(())
            }
            tried => tried,
        }
    }

    /// Refuses to begin a new store where there are snapshots. No crash leads there: the store's file is whole, under its
    /// name and on the disk before the first snapshot is made.
    ///
    /// # Errors
    /// [`UnsuitableRoot::NoStore`], or when the directory of snapshots cannot be read.
    pub fn check_store(&self) -> Result<(), UnsuitableRoot> {
        let store = self.metadata();
        let is_new = match fs::metadata(&store) {
            Ok(found) => found.len() == 0,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if is_new && !self.present()?.is_empty() {
            return Err(UnsuitableRoot::NoStore { snapshots: self.snapshots(), store });
        }
        Ok(())
    }

    fn try_overlays(&self, staged: &Staged, overlay: &OverlayOptions) -> Result<(), UnsuitableRoot> {
        let path = || self.root.clone();
        if !tells_types(&staged.path).map_err(failed("read", &staged.path))? {
            return Err(UnsuitableRoot::NoTypes { path: path() });
        }
        let upper = staged.path.join("fs");
        let attribute = if overlay.userxattr { "user.overlay.capsule" } else { "trusted.overlay.capsule" };
        try_attribute(&upper, attribute).map_err(|source| UnsuitableRoot::NoAttributes {
            path: path(),
            attribute,
            source,
        })?;
        let open = |directory: &Path| LayerDir::open(directory);
        let (upper, work, lower) = (open(&upper)?, open(&staged.path.join("work"))?, open(&self.empty())?);
        try_writable_overlay(&upper, &work, &lower, &overlay.parameters().collect::<Vec<_>>()).map_err(
            |source| {
                let options = Tried(overlay.iter().map(str::to_owned).collect());
                UnsuitableRoot::Overlay { path: path(), options, source }
            },
        )
    }
}

/// Whether the entries of this directory, which are directories, are listed as such (readdir(3), `d_type`).
fn tells_types(directory: &Path) -> io::Result<bool> {
    let fd = openat(CWD, directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for entry in Dir::read_from(&fd)? {
        if entry?.file_type() != FileType::Directory {
            return Ok(false);
        }
    }
    Ok(true)
}

fn try_attribute(directory: &Path, name: impl AsRef<OsStr>) -> io::Result<()> {
    let name = name.as_ref();
    setxattr(directory, name, b"y", XattrFlags::empty())?;
    removexattr(directory, name).or_else(|errno| if errno == Errno::NODATA { Ok(()) } else { Err(errno) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

    use super::*;
    use crate::snapshots::MountOption;

    /// Checks a root in a mount of its own; nothing stays of it, whatever the answer.
    fn check(filesystem: &str, overlay: &OverlayOptions) -> Result<(), UnsuitableRoot> {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        overlayfs_utils::in_new_mount_namespace(|| {
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            for name in ["fs", "lower", "upper", "work"] {
                fs::create_dir(at(name)).unwrap();
            }
            let data = ["lower", "upper", "work"].map(|name| format!("{name}dir={}", at(name).display()));
            let data = std::ffi::CString::new(data.join(",")).unwrap();
            let data = (filesystem == "overlay").then_some(data.as_c_str());
            mount(filesystem, at("fs"), filesystem, MountFlags::empty(), data)
                .expect("this test mounts: run it as root");
            let dirs = Dirs::new(at("fs"));
            dirs.create().unwrap();
            fs::create_dir(dirs.snapshots().join("new-0")).unwrap(); // what a crash left is not in the way
            let checked = dirs.check_root(overlay);
            assert_eq!(fs::read_dir(dirs.snapshots()).unwrap().count(), 1);
            checked
        })
        .unwrap()
    }

    #[test]
    fn a_new_store_is_not_begun_where_there_are_snapshots() {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(root.path());
        dirs.create().unwrap();
        fs::create_dir(dirs.snapshots().join("new-0")).unwrap(); // what a crash left of the very first call
        dirs.check_store().unwrap();
        fs::create_dir(dirs.snapshots().join("7")).unwrap();
        let missing = dirs.check_store().unwrap_err();
        assert!(matches!(missing, UnsuitableRoot::NoStore { .. }), "{missing}");
        fs::write(dirs.metadata(), "").unwrap();
        let empty = dirs.check_store().unwrap_err();
        assert!(matches!(empty, UnsuitableRoot::NoStore { .. }), "{empty}");
        fs::write(dirs.metadata(), "a store").unwrap();
        dirs.check_store().unwrap();
    }

    fn with(option: &str) -> OverlayOptions {
        let configured = vec![MountOption::parse(option).unwrap()];
        OverlayOptions { configured, ..OverlayOptions::read().unwrap() }
    }

    #[test]
    fn privileged_a_root_is_judged_by_the_kernel() {
        let plain = OverlayOptions::read().unwrap();
        check("tmpfs", &plain).unwrap();
        check("tmpfs", &with("volatile")).unwrap();
        check("tmpfs", &with("noatime")).unwrap();
        let bare = check("ramfs", &plain).unwrap_err();
        assert!(matches!(bare, UnsuitableRoot::NoAttributes { .. }), "{bare}");
        for (filesystem, overlay) in
            [("overlay", &plain), ("tmpfs", &with("volatil")), ("tmpfs", &with("xino=maybe"))]
        {
            let refused = check(filesystem, overlay).unwrap_err();
            assert!(matches!(refused, UnsuitableRoot::Overlay { .. }), "{filesystem}: {refused}");
        }
    }
}
