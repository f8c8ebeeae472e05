//! File systems in files: an ext4 file system of a fixed size, for what is not to grow beyond it.

use std::{
    io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
    mount::MountAttrFlags,
};
use thiserror::Error;

use crate::{
    context::Context,
    detached::DetachedMount,
    error::MountError,
    loopback::{LoopDevice, LoopError},
};

/// Why a file is no mount.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The file.
    #[error("cannot open {}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no device for it.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// The kernel does not mount it.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// Mounts the ext4 file system in `file`, detached, with `nosuid,nodev`, and read-only with `read_only`.
///
/// One file has one device, whoever asks: two devices would each have a cache of their own, and neither would see what is
/// written through the other. So several mounts are of one file system. A lock on the file (flock(2)) makes those who
/// ask at once wait for each other; the device goes with the last mount.
///
/// # Errors
/// [`ImageError`]; then nothing is mounted.
pub fn mount_image(file: &Path, read_only: bool) -> Result<DetachedMount, ImageError> {
    let failed = |source: Errno| ImageError::Open { path: file.to_owned(), source: source.into() };
    let open = rustix::fs::open(file, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty());
    let open = open.map_err(failed)?;
    rustix::fs::flock(&open, FlockOperation::LockExclusive).map_err(failed)?;
    let device = match LoopDevice::find(&open)? {
        Some(device) => device,
        None => LoopDevice::attach(file, false, false)?,
    };
    let context = Context::open("ext4")?;
    context.set_string("source", &device.path().to_string_lossy())?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    if read_only {
        // Of the mount alone: what is mounted to be written to stays so.
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let name = file.display().to_string();
    let fd = context.mount(attributes, &name)?;
    Ok(DetachedMount::from_fd(fd, name))
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command, thread};

    use super::*;

    fn make(dir: &Path) -> PathBuf {
        let file = dir.join("image");
        fs::File::create(&file).unwrap().set_len(8 << 20).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&file).status().unwrap();
        assert!(made.success());
        file
    }

    /// Through the descriptor of the mount: no path leads there.
    fn at(mount: &DetachedMount, name: &str) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}/{name}", mount.fd().as_raw_fd()))
    }

    #[test]
    fn privileged_all_mounts_of_an_image_are_of_one_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let file = make(dir.path());
        let mount = |read_only| mount_image(&file, read_only).expect("run this as root");
        let writable = mount(false);
        fs::write(at(&writable, "told"), "once").unwrap();
        let readable = mount(true);
        assert_eq!(fs::read_to_string(at(&readable, "told")).unwrap(), "once");
        fs::write(at(&writable, "told"), "twice").unwrap();
        assert_eq!(fs::read_to_string(at(&readable, "told")).unwrap(), "twice");
        let refused = fs::write(at(&readable, "told"), "never").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
        let full = fs::write(at(&writable, "big"), vec![1; 16 << 20]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        drop((writable, readable));
        assert_eq!(fs::read_to_string(at(&mount(false), "told")).unwrap(), "twice");
        // Many at once, with nobody before them.
        thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|n| scope.spawn(move || mount(n % 2 == 0))).collect();
            let all: Vec<_> = all.into_iter().map(|one| one.join().unwrap()).collect();
            fs::write(at(&all[1], "told"), "to all").unwrap();
            for one in &all {
                assert_eq!(fs::read_to_string(at(one, "told")).unwrap(), "to all");
            }
        });
    }

    #[test]
    fn privileged_what_is_no_image_is_refused_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let missing = mount_image(&dir.path().join("missing"), false).unwrap_err();
        assert!(missing.to_string().starts_with("cannot open "), "{missing}");
        let file = dir.path().join("zeros");
        fs::write(&file, vec![0; 1 << 20]).unwrap();
        let refused = mount_image(&file, false).unwrap_err();
        assert!(matches!(&refused, ImageError::Mount(error) if error.errno() == Errno::INVAL), "{refused:?}");
    }
}
