//! The crate's only `unsafe`: system calls that rustix does not wrap, or wraps as unsafe.
#![allow(unsafe_code)] // one small module to audit; everything else in the workspace denies or forbids it

use std::os::fd::{AsRawFd, BorrowedFd};

use linux_raw_sys::general::{__NR_listmount, __NR_mount_setattr, __NR_statmount, mnt_id_req, mount_attr};
use rustix::{io::Errno, thread::UnshareFlags};

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

/// `mount_setattr(fd, "", AT_EMPTY_PATH, attr)` (Linux 5.12). Id-mapping needs a mount that is not yet visible.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, attr: &mount_attr) -> Result<(), Errno> {
    // SAFETY: the path is a NUL-terminated literal, `attr` is a valid `mount_attr` for the duration of the call and
    // its size is passed; the kernel only reads both.
    let rc = unsafe {
        libc::syscall(
            libc::c_long::from(__NR_mount_setattr),
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
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

fn result(rc: libc::c_long) -> Result<libc::c_long, Errno> {
    if rc >= 0 {
        return Ok(rc);
    }
    let code = std::io::Error::last_os_error().raw_os_error();
    Err(code.map_or(Errno::IO, Errno::from_raw_os_error))
}
