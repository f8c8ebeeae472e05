//! Pinning a container's process, so that a recycled PID is never entered.

use std::{
    fs::File,
    io::Read,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
    process::{Pid, PidfdFlags},
};
use thiserror::Error;

use crate::{
    ids::IdMapping,
    mountinfo::{MountTable, ParseMountInfoError},
    target::ContainerRoot,
};

/// Why a process could not be pinned or asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PinError {
    /// It has ended (or never was).
    #[error("process {0} has ended")]
    Ended(i32),
    /// The kernel refused.
    #[error("cannot open {what} of process {pid}")]
    Open {
        /// Which file of `/proc/PID`, or "a pidfd".
        what: &'static str,
        /// The process.
        pid: i32,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// `/proc/PID/stat` is not as `proc_pid_stat(5)` says.
    #[error("cannot read the start time of process {0}")]
    StartTime(i32),
    /// The mapping of its ids could not be read.
    #[error("cannot read the mapping of ids of process {pid}")]
    ReadMapping {
        /// The process.
        pid: i32,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The mount table could not be read.
    #[error("cannot read the mount table of process {pid}")]
    ReadMounts {
        /// The process.
        pid: i32,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The mount table is not as `proc_pid_mountinfo(5)` says.
    #[error("cannot read the mount table of process {pid}")]
    ParseMounts {
        /// The process.
        pid: i32,
        /// The cause.
        #[source]
        source: ParseMountInfoError,
    },
}

/// A live process, pinned: its root, mount namespace and mount table are those of this very process.
#[derive(Debug)]
pub struct PinnedTask {
    pid: i32,
    pidfd: Arc<OwnedFd>,
    proc_dir: OwnedFd,
    root: ContainerRoot,
    start_time: u64,
}

impl PinnedTask {
    /// Pins the process that has the number `pid` now. A caller who knows a process by more than its number uses
    /// [`PinnedTask::of`].
    ///
    /// # Errors
    /// As [`PinnedTask::of`].
    pub fn open(pid: i32) -> Result<Self, PinError> {
        let raw = Pid::from_raw(pid).ok_or(PinError::Ended(pid))?;
        let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::empty());
        Self::of(Arc::new(pidfd.map_err(|source| open_error("a pidfd", pid, source))?), pid)
    }

    /// Pins the process of `pidfd`, whose number in this PID namespace is, or was, `pid`.
    ///
    /// A number is given to another process once its own has been reaped. The files of `/proc/PID` are opened before a
    /// check that the pidfd's process has not ended: if it has not, no other process can have had the number.
    ///
    /// # Errors
    /// [`PinError`]; [`PinError::Ended`] also for a zombie.
    pub fn of(pidfd: Arc<OwnedFd>, pid: i32) -> Result<Self, PinError> {
        let files = open_files(pid);
        if !is_alive(&pidfd) {
            return Err(PinError::Ended(pid));
        }
        let (proc_dir, root, start_time) = files?;
        Ok(Self { pid, pidfd, proc_dir, root: ContainerRoot::from_fd(root), start_time })
    }

    /// Whether the process has not ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        is_alive(&self.pidfd)
    }

    /// The process, in this PID namespace.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// When the process started, in clock ticks since boot: with the PID it names the process for good
    /// (`proc_pid_stat(5)`, field 22).
    #[must_use]
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// The pidfd, which [`in_mount_namespace`](crate::in_mount_namespace) takes.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The process's root directory, as it was when it was pinned.
    #[must_use]
    pub fn root(&self) -> &ContainerRoot {
        &self.root
    }

    /// The process's user namespace, unless it is the caller's own.
    ///
    /// # Errors
    /// [`PinError`]; [`PinError::Ended`] when the process has ended since.
    pub fn user_namespace(&self) -> Result<Option<OwnedFd>, PinError> {
        let theirs = self.open_file("ns/user", "the user namespace")?;
        let failed = |source| open_error("the user namespace", self.pid, source);
        let inode = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
        let ours = rustix::fs::stat("/proc/self/ns/user").map_err(failed)?;
        let same = inode(theirs.as_fd()).map_err(failed)? == (ours.st_dev, ours.st_ino);
        Ok((!same).then_some(theirs))
    }

    /// The mappings of users and groups of the process's user namespace, to those of the caller's; none when it is the same.
    ///
    /// # Errors
    /// As [`Self::user_namespace`].
    pub fn id_mappings(&self) -> Result<Option<[IdMapping; 2]>, PinError> {
        if self.user_namespace()?.is_none() {
            return Ok(None);
        }
        let read = |name: &'static str| {
            let file = self.open_file(name, "a mapping of ids")?;
            let text = std::io::read_to_string(File::from(file));
            let text = text.map_err(|source| PinError::ReadMapping { pid: self.pid, source })?;
            Ok::<_, PinError>(IdMapping::of_map(&text))
        };
        Ok(Some([read("uid_map")?, read("gid_map")?]))
    }

    /// The inode number of the process's mount namespace, which names it among those that there are (namespaces(7)).
    ///
    /// # Errors
    /// [`PinError`]; [`PinError::Ended`] when the process has ended since.
    pub fn mount_namespace(&self) -> Result<u64, PinError> {
        let stat = rustix::fs::statat(&self.proc_dir, "ns/mnt", AtFlags::empty());
        stat.map(|stat| stat.st_ino).map_err(|source| open_error("the mount namespace", self.pid, source))
    }

    /// The mounts that the process can see, by paths from its root.
    ///
    /// # Errors
    /// [`PinError`]; [`PinError::Ended`] when the process has ended since.
    pub fn read_mounts(&self) -> Result<MountTable, PinError> {
        let pid = self.pid;
        let file = self.open_file("mountinfo", "the mount table")?;
        let mut text = Vec::new();
        File::from(file).read_to_end(&mut text).map_err(|source| PinError::ReadMounts { pid, source })?;
        MountTable::parse(&text).map_err(|source| PinError::ParseMounts { pid, source })
    }

    fn open_file(&self, name: &str, what: &'static str) -> Result<OwnedFd, PinError> {
        rustix::fs::openat(&self.proc_dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|source| open_error(what, self.pid, source))
    }
}

/// A pidfd is readable once its process has ended (pidfd_open(2)).
fn is_alive(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    matches!(rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}

/// `/proc/PID`, the root, and the start time of whatever process has this number now.
fn open_files(pid: i32) -> Result<(OwnedFd, OwnedFd, u64), PinError> {
    let failed = |what| move |source| open_error(what, pid, source);
    let dir = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc_dir =
        rustix::fs::open(format!("/proc/{pid}"), dir, Mode::empty()).map_err(failed("/proc/PID"))?;
    let root = rustix::fs::openat(&proc_dir, "root", dir, Mode::empty()).map_err(failed("the root"))?;
    let start_time = read_start_time(&proc_dir, pid)?;
    Ok((proc_dir, root, start_time))
}

fn open_error(what: &'static str, pid: i32, source: Errno) -> PinError {
    match source {
        Errno::SRCH | Errno::NOENT => PinError::Ended(pid),
        source => PinError::Open { what, pid, source },
    }
}

fn read_start_time(proc_dir: &OwnedFd, pid: i32) -> Result<u64, PinError> {
    let file = rustix::fs::openat(proc_dir, "stat", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|source| open_error("stat", pid, source))?;
    let mut text = Vec::new();
    File::from(file).read_to_end(&mut text).map_err(|_| PinError::Ended(pid))?;
    parse_start_time(&text).ok_or(PinError::StartTime(pid))
}

/// Field 22 of `/proc/PID/stat`. The command, field 2, may hold blanks and brackets: fields count from the last one.
fn parse_start_time(stat: &[u8]) -> Option<u64> {
    let close = stat.iter().rposition(|&b| b == b')')?;
    let rest = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Sends any signal by number, real-time ones included, to the very process that `pidfd` is of (pidfd_send_signal(2)).
///
/// # Errors
/// The kernel's: `EINVAL` for a number that is no signal, `ESRCH` for a process that has been reaped.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    crate::sys::pidfd_send_signal(pidfd, signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_any_command() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        for command in ["sh", "a b", "x) R 1 (y", ")"] {
            assert_eq!(parse_start_time(format!("7 ({command}) {tail}").as_bytes()), Some(4711), "{command}");
        }
        for bad in ["", "7 (sh", "7 (sh) S 1 2", "7 (sh) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x"] {
            assert_eq!(parse_start_time(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn this_process_is_pinned_and_an_ended_one_is_not() {
        let me = i32::try_from(std::process::id()).unwrap();
        let task = PinnedTask::open(me).unwrap();
        assert!(task.is_alive());
        assert!(!task.read_mounts().unwrap().entries().is_empty());
        assert!(task.mount_namespace().unwrap() > 0);
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        child.wait().unwrap();
        assert!(matches!(PinnedTask::open(pid), Err(PinError::Ended(p)) if p == pid));
    }

    /// The number of this process stands for one that was given to another meanwhile.
    #[test]
    fn a_number_that_is_another_process_is_not_pinned() {
        let me = i32::try_from(std::process::id()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        let pidfd = Arc::new(pidfd);
        let pid = i32::try_from(child.id()).unwrap();
        let task = PinnedTask::of(pidfd.clone(), pid).unwrap();
        child.kill().unwrap();
        // Ended, then reaped.
        while task.is_alive() {
            std::thread::yield_now();
        }
        for _ in 0..2 {
            for number in [pid, me] {
                assert!(
                    matches!(PinnedTask::of(pidfd.clone(), number), Err(PinError::Ended(n)) if n == number)
                );
            }
            child.wait().unwrap();
        }
        assert!(matches!(task.mount_namespace(), Err(PinError::Ended(n)) if n == pid));
    }
}
