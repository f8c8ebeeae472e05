//! Files as block devices: loop(4).

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use linux_raw_sys::loop_device::{
    LO_FLAGS_AUTOCLEAR, LO_FLAGS_DIRECT_IO, LO_FLAGS_READ_ONLY, LO_NAME_SIZE, loop_config, loop_info64,
};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use thiserror::Error;

use crate::sys;

const CONTROL: &str = "/dev/loop-control";
/// All block devices of the node.
const DEVICES: &str = "/sys/block";
/// How often another device is tried when somebody else was given the same one, and the pause before the second try; it
/// grows with each. Of those who are given the same one, one gets it.
const TRIES: (u32, Duration) = (100, Duration::from_millis(1));

/// Why a file is no block device.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoopError {
    /// The file, the device, or what hands devices out.
    #[error("cannot open {}", path.display())]
    Open {
        /// Which of them.
        path: PathBuf,
        /// `ENOENT` for a device where nobody makes nodes for the kernel's devices, `EROFS` for a file that is to be
        /// written to where nothing can be.
        #[source]
        source: Errno,
    },
    /// There is no device (`LOOP_CTL_GET_FREE`).
    #[error("cannot get a free loop device from {CONTROL}")]
    Free(#[source] Errno),
    /// The device does not take the file (`LOOP_CONFIGURE`); `EBUSY` when others took every device that was tried.
    #[error("cannot attach {} to {}", file.display(), device.display())]
    Attach {
        /// The file.
        file: PathBuf,
        /// The device.
        device: PathBuf,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
}

/// A loop device with a file attached. The kernel frees it when nobody has it open and nothing of it is mounted any more
/// (`LO_FLAGS_AUTOCLEAR`): a mount keeps it when this is dropped.
#[derive(Debug)]
pub struct LoopDevice {
    _open: OwnedFd,
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches `file` to a free device (Linux 5.8). `direct`: past the page cache, where the file's own file system can
    /// do that; elsewhere the kernel goes through it.
    ///
    /// # Errors
    /// [`LoopError`]; then no device has the file.
    pub fn attach(file: &Path, read_only: bool, direct: bool) -> Result<Self, LoopError> {
        let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let backing = open(file, access)?;
        let config = config(file, &backing, read_only, direct);
        let control = open(Path::new(CONTROL), OFlags::RDWR)?;
        let mut tries = 0;
        loop {
            let number = sys::loop_get_free(control.as_fd()).map_err(LoopError::Free)?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = open(&path, access)?;
            match sys::loop_configure(device.as_fd(), &config) {
                Ok(()) => return Ok(Self { _open: device, path }),
                Err(Errno::BUSY) if tries < TRIES.0 => {
                    tries += 1;
                    sleep(TRIES.1 * tries);
                }
                Err(source) => return Err(LoopError::Attach { file: file.to_owned(), device: path, source }),
            }
        }
    }

    /// The device that has `file` attached already, held open; none when there is none.
    ///
    /// # Errors
    /// [`LoopError::Open`], for what shows the devices.
    pub(crate) fn find(file: &OwnedFd) -> Result<Option<Self>, LoopError> {
        let failed = |source| LoopError::Open { path: PathBuf::from(DEVICES), source };
        let wanted = rustix::fs::fstat(file).map_err(failed)?;
        let devices =
            fs::read_dir(DEVICES).map_err(|e| failed(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
        for name in devices.flatten().map(|entry| entry.file_name()) {
            let attached = Path::new(DEVICES).join(&name).join("loop/backing_file");
            if !attached.exists() {
                continue;
            }
            // It may be another's by the time it is open: asked then, it stays what it is.
            let path = Path::new("/dev").join(&name);
            let Ok(device) = open(&path, OFlags::RDWR) else { continue };
            let is_it = sys::loop_status(device.as_fd())
                .is_ok_and(|info| (info.lo_device, info.lo_inode) == (wanted.st_dev, wanted.st_ino));
            if is_it {
                return Ok(Some(Self { _open: device, path }));
            }
        }
        Ok(None)
    }

    /// The device's node.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn open(path: &Path, access: OFlags) -> Result<OwnedFd, LoopError> {
    rustix::fs::open(path, access | OFlags::CLOEXEC, Mode::empty())
        .map_err(|source| LoopError::Open { path: path.to_owned(), source })
}

fn config(file: &Path, backing: &OwnedFd, read_only: bool, direct: bool) -> loop_config {
    let mut lo_flags = LO_FLAGS_AUTOCLEAR as u32;
    for (flag, wanted) in [(LO_FLAGS_READ_ONLY, read_only), (LO_FLAGS_DIRECT_IO, direct)] {
        lo_flags |= if wanted { flag as u32 } else { 0 };
    }
    // For whoever looks at the device; a NUL ends it.
    let mut lo_file_name = [0; LO_NAME_SIZE as usize];
    let name = file.as_os_str().as_encoded_bytes().iter().take(lo_file_name.len() - 1);
    lo_file_name.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
    let info = loop_info64 {
        lo_device: 0,
        lo_inode: 0,
        lo_rdevice: 0,
        lo_offset: 0,
        lo_sizelimit: 0,
        lo_number: 0,
        lo_encrypt_type: 0,
        lo_encrypt_key_size: 0,
        lo_flags,
        lo_file_name,
        lo_crypt_name: [0; 64],
        lo_encrypt_key: [0; 32],
        lo_init: [0; 2],
    };
    loop_config { fd: backing.as_raw_fd().cast_unsigned(), block_size: 0, info, __reserved: [0; 8] }
}

#[cfg(test)]
mod tests {
    use std::{fs, thread, time::Instant};

    use super::*;

    /// What the kernel says of a device.
    fn seen(device: &Path, name: &str) -> String {
        let device = device.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(format!("/sys/block/{device}/{name}")).unwrap_or_default();
        text.trim_end().to_owned()
    }

    /// Several at once: they are given the same device again and again.
    #[test]
    fn privileged_a_file_is_a_device_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let attach = |number: u8| {
            let file = dir.path().join(format!("{number:0>100}"));
            let read_only = number.is_multiple_of(2);
            fs::write(&file, vec![number; 1 << 20]).unwrap();
            let device = LoopDevice::attach(&file, read_only, false).expect("run this as root");
            let path = device.path().to_owned();
            assert_eq!(Path::new(&seen(&path, "loop/backing_file")), file);
            assert_eq!(seen(&path, "ro") == "1", read_only);
            assert_eq!(fs::read(&path).unwrap(), vec![number; 1 << 20]);
            drop(device);
            // Whoever looks at all devices has it open for a moment.
            let deadline = Instant::now() + Duration::from_secs(10);
            while Path::new(&seen(&path, "loop/backing_file")) == file {
                assert!(Instant::now() < deadline, "{} stays", path.display());
                sleep(Duration::from_millis(5));
            }
        };
        thread::scope(|scope| {
            for number in 0..8 {
                let attach = &attach;
                scope.spawn(move || attach(number));
            }
        });
    }

    #[test]
    fn privileged_what_cannot_be_attached_is_named() {
        let missing = LoopDevice::attach(Path::new("/nowhere/file"), true, false).unwrap_err();
        assert_eq!(missing.to_string(), "cannot open /nowhere/file");
        let directory = LoopDevice::attach(Path::new("/tmp"), true, false).expect_err("it is no file");
        assert!(directory.to_string().starts_with("cannot attach /tmp to /dev/loop"), "{directory}");
    }
}
