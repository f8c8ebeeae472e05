//! Who uses a mount: processes with its files open, mapped, executed, or as a working or root directory.
//!
//! A scan of `/proc` is a photograph: a process may open or close a file the next moment. The kernel is the judge at
//! the strict unmount; this tells a person whom to ask.
//!
//! Measured on Linux 6.18, before and after a lazy unmount: `statx` of the magic links `fd/N`, `cwd`, `root`, `exe` and
//! `map_files/*` shows the overlay's own mount and device, also for a mapped file of an overlay. A program started by hand
//! through the dynamic loader shows in `map_files` alone. After a lazy unmount the links' texts begin at the mount's
//! own root. Device numbers are used again at once: hold a descriptor of a mount whose users matter after it is gone.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Dir, Mode, OFlags, Statx, StatxFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::{
    error::{MountError, Step},
    mountinfo::MountTable,
    point::{MountId, statx_mount},
};

/// The filesystem behind a mount, as its files show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SuperBlock {
    /// The mount's id: the surest sign where it is unique.
    pub mount: MountId,
    /// Device number (major, minor). Copies of the mount in other mount namespaces have other ids, and this device.
    pub device: (u32, u32),
    /// The mount's id as the mount table shows it ([`MountEntry::id`](crate::MountEntry::id)).
    pub table_id: u64,
}

impl SuperBlock {
    /// Reads it off a descriptor of the mount's root.
    ///
    /// # Errors
    /// [`MountError`] at [`Step::ReadMountId`].
    pub fn of(fd: std::os::fd::BorrowedFd<'_>) -> Result<Self, MountError> {
        let failed = |errno| MountError::new(Step::ReadMountId, "a mount", errno);
        let stat = statx_mount(fd, Path::new(""), AtFlags::EMPTY_PATH).map_err(failed)?;
        let shown = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).map_err(failed)?;
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        Ok(Self { mount: MountId::of(&stat), device, table_id: shown.stx_mnt_id })
    }

    fn has(&self, stat: &Statx) -> bool {
        let device = (stat.stx_dev_major, stat.stx_dev_minor) == self.device;
        // An id that is used again may mean another mount by now: only a unique one counts alone.
        device || (self.mount.unique && MountId::of(stat) == self.mount)
    }
}

/// How a process uses a mount.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Usage {
    /// An open file descriptor.
    Fd(u32),
    /// Its working directory.
    Cwd,
    /// Its root directory.
    Root,
    /// The program it runs.
    Exe,
    /// A mapped file.
    Mmap,
    /// The mount is still in the process's own mount namespace, which is not the one it was taken from.
    Mount,
}

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fd(n) => write!(f, "fd {n}"),
            Self::Cwd => f.write_str("cwd"),
            Self::Root => f.write_str("root"),
            Self::Exe => f.write_str("exe"),
            Self::Mmap => f.write_str("mmap"),
            Self::Mount => f.write_str("mount"),
        }
    }
}

/// One use of a mount by one process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct User {
    /// The process, in the PID namespace of `/proc`.
    pub pid: i32,
    /// Its name (`/proc/PID/comm`).
    pub command: String,
    /// Which file, as `/proc` shows it.
    pub path: PathBuf,
    /// How.
    pub how: Usage,
}

/// Finds the users of each of `mounts`: the answer has one list per mount, in the same order.
///
/// `not_namespace` is the mount namespace (inode of `ns/mnt`) where the mounts are meant to be: there they are no use.
/// A file is never opened, only looked at through its magic link, so no FIFO, device or dead network mount can hold
/// the scan up. Processes that end meanwhile are left out, as are those that the caller may not look at.
///
/// # Errors
/// The kernel's, when `/proc` cannot be read at all.
pub fn find_users(mounts: &[SuperBlock], not_namespace: Option<u64>) -> io::Result<Vec<Vec<User>>> {
    let mut scan = Scan {
        mounts,
        found: vec![Vec::new(); mounts.len()],
        namespaces: not_namespace.into_iter().collect(),
    };
    if mounts.is_empty() {
        return Ok(scan.found);
    }
    for entry in fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Whatever fails here: the process has ended, or is none of ours.
        let _ = scan.process(pid, &entry.path());
    }
    scan.found.iter_mut().for_each(|users| users.sort());
    Ok(scan.found)
}

/// A file that a process has, by its magic link in a directory of `/proc/PID`. It is looked at, never opened.
pub(crate) struct Link<'a> {
    dir: &'a OwnedFd,
    name: &'a Path,
    how: Usage,
}

impl Link<'_> {
    /// What the kernel knows of the file; nothing when the process has ended or let go of it.
    pub(crate) fn stat(&self) -> Option<Statx> {
        // What the kernel knows will do. Without the flag a FUSE server that does not answer, any container's, would hold
        // the scan up (Linux: fs/fuse/dir.c, fuse_update_get_attr).
        statx_mount(self.dir.as_fd(), self.name, AtFlags::STATX_DONT_SYNC).ok()
    }

    /// The process, as one that has the file.
    pub(crate) fn user(&self, pid: i32) -> User {
        let path = rustix::fs::readlinkat(self.dir, self.name, Vec::new())
            .map(|p| PathBuf::from(OsString::from_vec(p.into_bytes())))
            .unwrap_or_default();
        User { pid, command: read_command(pid), path, how: self.how.clone() }
    }
}

/// Shows every file that the process of the directory `/proc/PID` has: its directories, program, descriptors and mappings.
pub(crate) fn visit_links(process: &OwnedFd, mut see: impl FnMut(Link<'_>)) {
    for (name, how) in [("cwd", Usage::Cwd), ("root", Usage::Root), ("exe", Usage::Exe)] {
        see(Link { dir: process, name: Path::new(name), how });
    }
    visit_links_in(process, "fd", |name| name.parse().ok().map(Usage::Fd), &mut see);
    visit_links_in(process, "map_files", |_| Some(Usage::Mmap), &mut see);
}

fn visit_links_in(
    process: &OwnedFd,
    name: &str,
    how: impl Fn(&str) -> Option<Usage>,
    see: &mut impl FnMut(Link<'_>),
) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(links) = rustix::fs::openat(process, name, flags, Mode::empty()) else { return };
    let Ok(entries) = Dir::read_from(&links) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().to_str() else { continue };
        if let Some(how) = how(name).filter(|_| !name.starts_with('.')) {
            see(Link { dir: &links, name: Path::new(name), how });
        }
    }
}

struct Scan<'a> {
    mounts: &'a [SuperBlock],
    found: Vec<Vec<User>>,
    namespaces: HashSet<u64>,
}

impl Scan<'_> {
    fn process(&mut self, pid: i32, path: &Path) -> Result<(), Errno> {
        let dir = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        visit_links(&dir, |link| self.link(pid, &link));
        self.mount_table(pid, path, &dir);
        Ok(())
    }

    fn link(&mut self, pid: i32, link: &Link<'_>) {
        let Some(stat) = link.stat() else { return };
        for (mount, found) in self.mounts.iter().zip(&mut self.found) {
            if !mount.has(&stat) {
                continue;
            }
            let user = link.user(pid);
            // One file is often mapped several times.
            if !found.contains(&user) {
                found.push(user);
            }
        }
    }

    /// A mount namespace that was copied while the mount was there has it still. One look for each namespace.
    fn mount_table(&mut self, pid: i32, path: &Path, dir: &OwnedFd) {
        let Ok(namespace) = rustix::fs::statat(dir, "ns/mnt", AtFlags::empty()) else { return };
        if self.namespaces.contains(&namespace.st_ino) {
            return;
        }
        let Ok(text) = fs::read(path.join("mountinfo")) else { return };
        let Ok(table) = MountTable::parse(&text) else { return };
        self.namespaces.insert(namespace.st_ino);
        for (mount, found) in self.mounts.iter().zip(&mut self.found) {
            if let Some(entry) = table.entries().iter().find(|m| m.device == mount.device) {
                let path = entry.mount_point.clone();
                found.push(User { pid, command: read_command(pid), path, how: Usage::Mount });
            }
        }
    }
}

fn read_command(pid: i32) -> String {
    let raw = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    String::from_utf8_lossy(&raw).trim_end().to_owned()
}
