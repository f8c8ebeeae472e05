//! Which processes of a control group have device files, or files of bind mounts, open.
//!
//! A bind mount shows the device number of the file system that it is taken from, which is in many other places too: so mounts are
//! known by their ids alone, and devices by their numbers, through whatever node they were opened. As in `users`, nothing is opened:
//! a scan is a photograph.

use std::{fs, io, path::Path};

use rustix::fs::{FileType, Mode, OFlags, Statx};

use crate::{
    point::MountId,
    users::{User, visit_links},
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
    visit_links(&dir, |link| {
        if link.stat().is_some_and(|stat| held.has(&stat)) {
            users.push(link.user(pid));
        }
    });
    Ok(())
}

impl Held {
    fn has(&self, stat: &Statx) -> bool {
        let device =
            (FileType::from_raw_mode(stat.stx_mode.into()), stat.stx_rdev_major, stat.stx_rdev_minor);
        self.devices.contains(&device) || self.mounts.contains(&MountId::of(stat))
    }
}
