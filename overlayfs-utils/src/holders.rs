//! Which processes of a control group have device files, or files of bind mounts, open.
//!
//! A bind mount shows the device number of the file system that it is taken from, which is in many other places too: so mounts are
//! known by their ids alone, and devices by their numbers, through whatever node they were opened. As in `users`, nothing is opened:
//! a scan is a photograph.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Statx};

use crate::{
    point::{MountId, statx_mount},
    users::{Usage, User, read_command},
};

/// What is looked for.
#[derive(Debug, Default)]
pub struct Held {
    /// Devices: block or character, and their numbers.
    pub devices: Vec<(FileType, u32, u32)>,
    /// Mounts.
    pub mounts: Vec<MountId>,
}

/// The processes of the cgroup v2 directory `cgroup`, and of those below it, that have something of `held`.
///
/// # Errors
/// The kernel's, when the control group cannot be read. Processes that end meanwhile are left out.
pub fn find_holders(cgroup: &Path, held: &Held) -> io::Result<Vec<User>> {
    let mut pids = Vec::new();
    processes_below(cgroup, &mut pids)?;
    let mut users = Vec::new();
    for pid in pids {
        // Whatever fails here: the process has ended.
        let _ = of_process(pid, held, &mut users);
    }
    users.sort();
    users.dedup();
    Ok(users)
}

fn processes_below(cgroup: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    // A control group with threads of its own lists no processes (`EOPNOTSUPP`): they are its parent's.
    match fs::read_to_string(cgroup.join("cgroup.procs")) {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(error) => return Err(error),
    }
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            match processes_below(&entry.path(), pids) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
    }
    Ok(())
}

fn of_process(pid: i32, held: &Held, users: &mut Vec<User>) -> Result<(), rustix::io::Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty())?;
    for (name, how) in [("cwd", Usage::Cwd), ("root", Usage::Root), ("exe", Usage::Exe)] {
        look(pid, &dir, Path::new(name), &how, held, users);
    }
    links_in(pid, &dir, "fd", |name| name.parse().ok().map(Usage::Fd), held, users);
    links_in(pid, &dir, "map_files", |_| Some(Usage::Mmap), held, users);
    Ok(())
}

fn links_in(
    pid: i32,
    dir: &OwnedFd,
    name: &str,
    how: impl Fn(&str) -> Option<Usage>,
    held: &Held,
    users: &mut Vec<User>,
) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(links) = rustix::fs::openat(dir, name, flags, Mode::empty()) else { return };
    let Ok(entries) = Dir::read_from(&links) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().to_str() else { continue };
        if let Some(how) = how(name).filter(|_| !name.starts_with('.')) {
            look(pid, &links, Path::new(name), &how, held, users);
        }
    }
}

fn look(pid: i32, dir: &OwnedFd, name: &Path, how: &Usage, held: &Held, users: &mut Vec<User>) {
    // What the kernel knows will do: a FUSE server that does not answer must not hold the scan up.
    let Ok(stat) = statx_mount(dir.as_fd(), name, AtFlags::STATX_DONT_SYNC) else { return };
    if !held.has(&stat) {
        return;
    }
    use std::os::unix::ffi::OsStringExt;
    let path = rustix::fs::readlinkat(dir, name, Vec::new())
        .map(|path| PathBuf::from(std::ffi::OsString::from_vec(path.into_bytes())))
        .unwrap_or_default();
    users.push(User { pid, command: read_command(pid), path, how: how.clone() });
}

impl Held {
    fn has(&self, stat: &Statx) -> bool {
        let device =
            (FileType::from_raw_mode(stat.stx_mode.into()), stat.stx_rdev_major, stat.stx_rdev_minor);
        self.devices.contains(&device) || self.mounts.contains(&MountId::of(stat))
    }
}
