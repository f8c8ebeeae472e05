//! Which device programs a control group has.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
};

use super::{BpfError, BpfStep, DeviceProgram, ProgramId};
use crate::sys;

/// `BPF_F_ALLOW_OVERRIDE`.
const OVERRIDE: u32 = 1;
/// `BPF_F_ALLOW_MULTI`.
const MULTI: u32 = 2;
/// `BPF_F_REPLACE`.
const REPLACE: u32 = 4;
/// How many a control group can have (`BPF_CGROUP_MAX_PROGS`). With its ancestors' there can be more.
const MAX_PROGRAMS: usize = 64;
/// A control group's ancestors that each have as many, and more than any node has.
const MAX_EFFECTIVE: usize = 4096;

/// How a control group's programs get on with others: what the first was attached with, and every later one must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// There is none yet, or one that forbids others, here and below.
    Alone,
    /// One, which a program of a control group below replaces (`BPF_F_ALLOW_OVERRIDE`).
    Overridable,
    /// Any number, all of which must allow an access (`BPF_F_ALLOW_MULTI`): what runc, crun and systemd do.
    Shared,
}

/// The programs of a control group at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// In the order in which they are run. The kernel runs all of them, and an access needs the consent of each.
    pub programs: Vec<ProgramId>,
    /// How they were attached.
    pub sharing: Sharing,
    /// Counts the changes (Linux 6.17); 0 before.
    pub revision: u64,
}

/// A directory of a cgroup v2 hierarchy, whose device programs can be listed and changed. Other hierarchies are refused by each
/// operation with `EBADF`.
#[derive(Debug)]
pub struct DeviceCgroup {
    fd: OwnedFd,
    name: String,
}

impl DeviceCgroup {
    /// Opens the directory, which stays the same one whatever happens to its name.
    ///
    /// # Errors
    /// `ENOENT` when it is not there.
    pub fn open(path: &Path) -> Result<Self, BpfError> {
        let name = path.display().to_string();
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH;
        match openat(CWD, path, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, name }),
            Err(errno) => Err(BpfError::new(BpfStep::OpenCgroup, name, errno)),
        }
    }

    /// The programs at this control group itself.
    ///
    /// # Errors
    /// `ENOENT` when the control group has been removed.
    pub fn attached(&self) -> Result<Attached, BpfError> {
        let mut ids = vec![0; MAX_PROGRAMS];
        let (queried, done) = sys::bpf::query(self.fd.as_fd(), &mut ids, false);
        done.map_err(|errno| self.failed(BpfStep::Query, errno))?;
        let sharing = match queried.flags & (OVERRIDE | MULTI) {
            0 => Sharing::Alone,
            OVERRIDE => Sharing::Overridable,
            _ => Sharing::Shared,
        };
        Ok(Attached { programs: some(&ids, queried.count), sharing, revision: queried.revision })
    }

    /// All programs that are run for a process in it: its own and its ancestors'.
    ///
    /// # Errors
    /// `ENOENT` when the control group has been removed.
    pub fn effective(&self) -> Result<Vec<ProgramId>, BpfError> {
        let mut room = MAX_PROGRAMS;
        loop {
            let mut ids = vec![0; room];
            match sys::bpf::query(self.fd.as_fd(), &mut ids, true) {
                (queried, Ok(())) => return Ok(some(&ids, queried.count)),
                (_, Err(Errno::NOSPC)) if room < MAX_EFFECTIVE => room *= 2,
                (_, Err(errno)) => return Err(self.failed(BpfStep::Query, errno)),
            }
        }
    }

    /// Attaches one program more, which runs after those that are there.
    ///
    /// # Errors
    /// `EINVAL` when the same program is there already, `E2BIG` when there are 64, `EPERM` when they are not
    /// [`Sharing::Shared`].
    pub fn attach(&self, program: &DeviceProgram) -> Result<(), BpfError> {
        sys::bpf::attach(self.fd.as_fd(), program.as_fd(), MULTI, None)
            .map_err(|errno| self.failed(BpfStep::Attach, errno))
    }

    /// Puts `new` into the place of `old`, with no instant at which neither or both would decide.
    ///
    /// # Errors
    /// `ENOENT` when `old` is not attached here (any more), `E2BIG` when there are 64 programs, `EPERM` when they are not
    /// [`Sharing::Shared`]. Nothing has changed then.
    pub fn replace(&self, old: &DeviceProgram, new: &DeviceProgram) -> Result<(), BpfError> {
        sys::bpf::attach(self.fd.as_fd(), new.as_fd(), MULTI | REPLACE, Some(old.as_fd()))
            .map_err(|errno| self.failed(BpfStep::Replace, errno))
    }

    /// Detaches one program.
    ///
    /// # Errors
    /// `ENOENT` when it is not attached here (any more).
    pub fn detach(&self, program: &DeviceProgram) -> Result<(), BpfError> {
        sys::bpf::detach(self.fd.as_fd(), program.as_fd())
            .map_err(|errno| self.failed(BpfStep::Detach, errno))
    }

    fn failed(&self, step: BpfStep, errno: Errno) -> BpfError {
        BpfError::new(step, &self.name, errno)
    }
}

fn some(ids: &[u32], count: usize) -> Vec<ProgramId> {
    ids.iter().take(count).copied().map(ProgramId).collect()
}
