//! The crate's only `unsafe`: system calls that rustix does not wrap, or wraps as unsafe.
#![allow(unsafe_code)] // one small module to audit; everything else in the workspace denies or forbids it

pub(crate) mod bpf;

use std::{
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use linux_raw_sys::{
    general::{
        __NR_clone3, __NR_listmount, __NR_mount_setattr, __NR_statmount, CLONE_NEWUSER, clone_args,
        mnt_id_req, mount_attr,
    },
    loop_device::{LOOP_CONFIGURE, LOOP_CTL_GET_FREE, LOOP_GET_STATUS64, loop_config, loop_info64},
};
use rustix::{
    io::Errno,
    process::{Resource, Rlimit},
    thread::UnshareFlags,
};

/// Gives the calling thread a root and working directory of its own: `setns(CLONE_NEWNS)` demands it.
pub(crate) fn unshare_fs() -> Result<(), Errno> {
    // SAFETY: the flag is not `FILES`, so descriptors stay shared, which is all that makes the call unsafe. Only the
    // calling thread is affected, and callers own it (`namespace`).
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }
}

/// Puts the calling thread into a new mount namespace, a copy of the one it is in.
pub(crate) fn unshare_mounts() -> Result<(), Errno> {
    // SAFETY: as in `unshare_fs`; `NEWNS` implies `FS`.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }
}

/// `mount_setattr(fd, "", AT_EMPTY_PATH, attr)` (Linux 5.12), also of what is mounted below where it is `recursive`. Id-mapping needs
/// a mount that is not yet visible.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, attr: &mount_attr, recursive: bool) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal, `attr` is a valid `mount_attr` for the duration of the call and
    // its size is passed; the kernel only reads both.
    let rc = unsafe {
        libc::syscall(
            libc::c_long::from(__NR_mount_setattr),
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<mount_attr>(),
        )
    };
    result(rc).map(drop)
}

/// `pidfd_send_signal` (Linux 5.1). rustix has no safe way to name a real-time signal: the C library keeps some to itself,
/// which is no matter for signals to another process.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    // SAFETY: no pointers but a null `siginfo`, which the kernel fills in as kill(2) does; the number is checked by the
    // kernel (`EINVAL`).
    let rc = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    result(rc).map(drop)
}

/// `listmount` (Linux 6.8): fills `ids` with unique ids of the mounts below `root`, and returns how many.
pub(crate) fn listmount(root: u64, ids: &mut [u64]) -> Result<usize, Errno> {
    let request = id_request(root, 0);
    // SAFETY: the request is a valid `mnt_id_req` that says its own size; `ids` is writable for the number of
    // elements passed.
    let rc = unsafe {
        libc::syscall(
            libc::c_long::from(__NR_listmount),
            std::ptr::from_ref(&request),
            ids.as_mut_ptr(),
            ids.len(),
            0,
        )
    };
    result(rc).and_then(|n| usize::try_from(n).map_err(|_| Errno::INVAL))
}

/// `statmount` (Linux 6.8) of one mount of the calling thread's namespace, into `buffer`, which the kernel fills
/// with a `struct statmount`.
pub(crate) fn statmount(id: u64, what: u64, buffer: &mut [u64]) -> Result<(), Errno> {
    let request = id_request(id, what);
    // SAFETY: the request is a valid `mnt_id_req` that says its own size; the kernel writes at most the passed number
    // of bytes to `buffer`, which is aligned for the struct's 64-bit fields.
    let rc = unsafe {
        libc::syscall(
            libc::c_long::from(__NR_statmount),
            std::ptr::from_ref(&request),
            buffer.as_mut_ptr(),
            size_of_val(buffer),
            0,
        )
    };
    result(rc).map(drop)
}

fn id_request(mnt_id: u64, param: u64) -> mnt_id_req {
    // 24 bytes is `MNT_ID_REQ_SIZE_VER0` of Linux 6.8: without the namespace id that 6.11 added.
    mnt_id_req { size: 24, spare: 0, mnt_id, param, mnt_ns_id: 0 }
}

/// `LOOP_CTL_GET_FREE`: the number of a loop device that nobody uses, made if there is none.
pub(crate) fn loop_get_free(control: BorrowedFd<'_>) -> Result<u32, Errno> {
    // SAFETY: the request takes no argument and touches no memory of this process; on another file than
    // `/dev/loop-control` it is unknown (`ENOTTY`).
    let rc = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as libc::Ioctl) };
    result(rc.into()).and_then(|number| u32::try_from(number).map_err(|_| Errno::INVAL))
}

/// `LOOP_CONFIGURE` (Linux 5.8): attaches the file that `config` names by its descriptor.
pub(crate) fn loop_configure(device: BorrowedFd<'_>, config: &loop_config) -> Result<(), Errno> {
    // SAFETY: `config` is a valid `loop_config` for the duration of the call, which the kernel only reads; its
    // descriptor is the caller's, and the kernel takes a reference of its own. On another file than a loop device the
    // request is unknown.
    let rc =
        unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as libc::Ioctl, std::ptr::from_ref(config)) };
    result(rc.into()).map(drop)
}

/// `LOOP_GET_STATUS64`: what a loop device has attached; `ENXIO` when it has nothing.
pub(crate) fn loop_status(device: BorrowedFd<'_>) -> Result<loop_info64, Errno> {
    // SAFETY: all zero is a valid `loop_info64` of plain numbers.
    let mut info: loop_info64 = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `loop_info64`, which is there for the duration of the call; on another file than a loop
    // device the request is unknown.
    let rc = unsafe {
        libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64 as libc::Ioctl, std::ptr::from_mut(&mut info))
    };
    result(rc.into()).map(|_| info)
}

/// A child process that does nothing but wait to be killed, which it is when this is dropped.
#[derive(Debug)]
pub(crate) struct IdleChild {
    pid: libc::pid_t,
}

impl IdleChild {
    /// Starts it in a new user namespace (`clone3`, Linux 5.3).
    pub(crate) fn in_new_user_namespace() -> Result<Self, Errno> {
        let parent = std::process::id();
        // No exit signal: `SIGCHLD` would have the caller's reaper look for a child that is none of its own, and a
        // child that sends none is seen by no `wait` that does not ask for it (`__WCLONE`).
        // SAFETY: all zero is a valid `clone_args` of plain numbers.
        let mut args: clone_args = unsafe { std::mem::zeroed() };
        args.flags = u64::from(CLONE_NEWUSER);
        // SAFETY: without `CLONE_VM` and with no stack given it is a fork: the child has a copy of everything. Other
        // threads' locks may be held in it for ever, so it makes system calls only, which touch none.
        let rc = unsafe {
            libc::syscall(libc::c_long::from(__NR_clone3), std::ptr::from_ref(&args), size_of::<clone_args>())
        };
        if rc == 0 {
            Self::wait_to_be_killed(parent)
        }
        let pid = libc::pid_t::try_from(result(rc)?).map_err(|_| Errno::OVERFLOW)?;
        Ok(Self { pid })
    }

    fn wait_to_be_killed(parent: u32) -> ! {
        // SAFETY: system calls without pointers, and `_exit`, none of which takes a lock or runs a handler of the
        // parent's (async-signal-safe, signal-safety(7)).
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if u32::try_from(libc::getppid()) == Ok(parent) {
                loop {
                    libc::pause();
                }
            }
            libc::_exit(0)
        }
    }

    pub(crate) fn pid(&self) -> libc::pid_t {
        self.pid
    }
}

impl Drop for IdleChild {
    fn drop(&mut self) {
        // SAFETY: no pointers but a null status. Nobody else waits for this child (see above), so until here the pid is
        // its own.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), libc::__WALL);
        }
    }
}

/// Has the children that `command` starts set a limit of their own before they execute its program.
pub(crate) fn set_limit_of_children(command: &mut Command, resource: Resource, limit: Rlimit) {
    // SAFETY: between fork and exec a child may only do what is async-signal-safe (signal-safety(7)), since other threads'
    // locks may be held in it for ever. The closure makes one system call with values of its own, and neither it nor its
    // error allocates.
    unsafe {
        command.pre_exec(move || rustix::process::setrlimit(resource, limit).map_err(Into::into));
    }
}

fn result(rc: libc::c_long) -> Result<libc::c_long, Errno> {
    if rc >= 0 {
        return Ok(rc);
    }
    let code = std::io::Error::last_os_error().raw_os_error();
    Err(code.map_or(Errno::IO, Errno::from_raw_os_error))
}
