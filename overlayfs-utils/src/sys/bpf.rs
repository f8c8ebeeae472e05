//! `bpf(2)` for device programs. Each command passes as much of the kernel's `union bpf_attr` as it uses: the kernel takes a
//! shorter one for one with zeros behind it.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::result;
use crate::bpf::Instruction;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;

const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_QUERY_EFFECTIVE: u32 = 1;

/// The programs use no helper, so the licence decides nothing; the kernel wants one.
const LICENSE: &std::ffi::CStr = c"Apache";

#[repr(C)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
struct Attach {
    target: i32,
    program: i32,
    attach_type: u32,
    flags: u32,
    replaced: i32,
}

/// All 64 bytes: kernels 6.17 to 7.1 write the last field whatever size is passed.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: i32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
    attach_flags_of_each: u64,
    link_ids: u64,
    link_flags: u64,
    revision: u64,
}
const _: () = assert!(size_of::<Query>() == 64);

#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

#[repr(C)]
struct InfoOf {
    program: i32,
    size: u32,
    info: u64,
}

/// The head of `struct bpf_prog_info`, to the program's name.
#[repr(C)]
#[derive(Debug, Default, Clone)]
pub(crate) struct Info {
    pub(crate) program_type: u32,
    pub(crate) id: u32,
    pub(crate) tag: [u8; 8],
    jited_size: u32,
    pub(crate) translated_size: u32,
    jited: u64,
    pub(crate) translated: u64,
    pub(crate) loaded_at: u64,
    user: u32,
    pub(crate) map_count: u32,
    maps: u64,
    pub(crate) name: [u8; 16],
}
const _: () = assert!(size_of::<Info>() == 80);

/// What a query says beside the ids.
pub(crate) struct Queried {
    /// How many there are, also when there was no room for them (`ENOSPC`).
    pub(crate) count: usize,
    pub(crate) flags: u32,
    pub(crate) revision: u64,
}

/// `BPF_PROG_LOAD` of a device program. The verifier writes what it did to `log`, if that is not empty.
pub(crate) fn load(name: [u8; 16], instructions: &[Instruction], log: &mut [u8]) -> Result<OwnedFd, Errno> {
    let too_many = |_| Errno::TOOBIG;
    let mut attr = Load {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(instructions.len()).map_err(too_many)?,
        instructions: address(instructions.as_ptr()),
        license: address(LICENSE.as_ptr()),
        log_level: u32::from(!log.is_empty()),
        log_size: u32::try_from(log.len()).map_err(too_many)?,
        log: if log.is_empty() { 0 } else { address(log.as_mut_ptr()) },
        kernel_version: 0,
        flags: 0,
        name,
    };
    // SAFETY: `instructions` and the licence are read for the lengths that are passed, and live through the call, as does
    // `log`, which is written for its length and borrowed mutably. `Instruction` is the kernel's `struct bpf_insn`, any
    // eight bytes of which are judged by the verifier.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &mut attr) }?;
    owned(fd)
}

/// `BPF_PROG_GET_FD_BY_ID`.
pub(crate) fn open_by_id(id: u32) -> Result<OwnedFd, Errno> {
    let mut attr = ById { id, next: 0, flags: 0 };
    // SAFETY: the attributes hold no pointers.
    let fd = unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &mut attr) }?;
    owned(fd)
}

/// `BPF_OBJ_GET_INFO_BY_FD` of a program, with as many of its instructions as there is room for.
pub(crate) fn info(program: BorrowedFd<'_>, instructions: &mut [Instruction]) -> Result<Info, Errno> {
    let mut info = Info {
        translated_size: u32::try_from(size_of_val(instructions)).map_err(|_| Errno::TOOBIG)?,
        translated: if instructions.is_empty() { 0 } else { address(instructions.as_mut_ptr()) },
        ..Info::default()
    };
    let size = u32::try_from(size_of::<Info>()).map_err(|_| Errno::TOOBIG)?;
    let mut attr =
        InfoOf { program: program.as_raw_fd(), size, info: address(std::ptr::from_mut(&mut info)) };
    // SAFETY: `info` is written for its size, and `instructions`, borrowed mutably, for theirs, which `info` names; both live
    // through the call. Any eight bytes are an `Instruction`. The other lengths in `info` are zero, so nothing else is written.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// `BPF_PROG_QUERY` of the device programs at a cgroup, or of all that are run for it.
pub(crate) fn query(
    cgroup: BorrowedFd<'_>,
    ids: &mut [u32],
    effective: bool,
) -> (Queried, Result<(), Errno>) {
    let mut attr = Query {
        target: cgroup.as_raw_fd(),
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: if effective { BPF_F_QUERY_EFFECTIVE } else { 0 },
        ids: address(ids.as_mut_ptr()),
        count: u32::try_from(ids.len()).unwrap_or(u32::MAX),
        ..Query::default()
    };
    // SAFETY: `ids` is written for at most the number of elements passed, and is borrowed mutably through the call; the
    // attributes, of which the kernel writes some, are as long as the longest that it knows of.
    let done = unsafe { bpf(BPF_PROG_QUERY, &mut attr) }.map(drop);
    let count = usize::try_from(attr.count).unwrap_or(usize::MAX);
    (Queried { count, flags: attr.attach_flags, revision: attr.revision }, done)
}

/// `BPF_PROG_ATTACH`.
pub(crate) fn attach(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    flags: u32,
    replaced: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut attr = Attach {
        target: cgroup.as_raw_fd(),
        program: program.as_raw_fd(),
        attach_type: BPF_CGROUP_DEVICE,
        flags,
        replaced: replaced.map_or(0, |fd| fd.as_raw_fd()),
    };
    // SAFETY: the attributes hold no pointers; the kernel checks that each descriptor is what it is to be.
    unsafe { bpf(BPF_PROG_ATTACH, &mut attr) }.map(drop)
}

/// `BPF_PROG_DETACH`.
pub(crate) fn detach(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut attr = Attach {
        target: cgroup.as_raw_fd(),
        program: program.as_raw_fd(),
        attach_type: BPF_CGROUP_DEVICE,
        flags: 0,
        replaced: 0,
    };
    // SAFETY: as in `attach`.
    unsafe { bpf(BPF_PROG_DETACH, &mut attr) }.map(drop)
}

fn address<T>(pointer: *const T) -> u64 {
    // The kernel takes every pointer as 64 bits, and no supported machine has wider ones.
    pointer.expose_provenance() as u64
}

fn owned(fd: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = i32::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just made this descriptor for the caller (close-on-exec, as all of `bpf(2)`), and nobody else
    // knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
/// What `attr` points to must be valid for what `command` reads and writes there.
unsafe fn bpf<A>(command: libc::c_int, attr: &mut A) -> Result<libc::c_long, Errno> {
    // SAFETY: `attr` is valid for the size that is passed; the rest is the caller's promise.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    result(rc)
}
