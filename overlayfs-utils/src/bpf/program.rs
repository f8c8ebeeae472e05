//! Device programs in the kernel.

use std::{
    fmt,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::io::Errno;

use super::{BpfError, BpfStep, Instruction};
use crate::sys;

/// Enough for the verifier's last words; newer kernels (6.4) keep the end of a log that is longer, older ones its beginning.
const LOG_SIZE: usize = 64 << 10;
/// How many lines of it an error carries.
const LOG_LINES: usize = 3;
/// A name is at most 15 bytes, of letters, digits, `_` and `.` (`bpf_obj_name_cpy`).
const NAME_SIZE: usize = 16;

/// The number of a program while it is loaded. The kernel counts on before it gives one again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct ProgramId(pub u32);

impl fmt::Display for ProgramId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The kernel's digest of a program's instructions. Its algorithm is the kernel's own affair (SHA-1 before 6.18, SHA-256
/// since): equal tags are equal programs on one kernel, and a tag is never computed here.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProgramTag(pub [u8; 8]);

impl fmt::Display for ProgramTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ProgramTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the kernel tells of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Its number.
    pub id: ProgramId,
    /// The digest of its instructions.
    pub tag: ProgramTag,
    /// The name that it was loaded with; runc and crun give none.
    pub name: String,
    /// When it was loaded, since the machine's start.
    pub loaded_at: Duration,
    /// How many maps it uses.
    pub map_count: u32,
    /// What it does, after the verifier: a device program without maps and helpers as it was loaded, less what can never be
    /// reached. None where the kernel keeps that to itself (`net.core.bpf_jit_harden`, no `CAP_PERFMON`).
    pub instructions: Option<Vec<Instruction>>,
}

/// A device program (`BPF_PROG_TYPE_CGROUP_DEVICE`), kept loaded by this handle and by each control group that has it.
#[derive(Debug)]
pub struct DeviceProgram {
    fd: OwnedFd,
}

impl DeviceProgram {
    /// Loads a program under a name of at most 15 letters, digits, `_` and `.`. It does nothing until it is attached, and
    /// is gone when this is dropped before.
    ///
    /// # Errors
    /// `EPERM` without `CAP_BPF` and `CAP_NET_ADMIN` in the first user namespace, `EINVAL` for another name, `EACCES` and `EINVAL`
    /// for what the verifier refuses, with the end of its log in the error.
    pub fn load(name: &str, instructions: &[Instruction]) -> Result<Self, BpfError> {
        let failed = |errno| BpfError::new(BpfStep::Load, format!("{name:?}"), errno);
        let mut bytes = [0; NAME_SIZE];
        let place = bytes.get_mut(..name.len()).filter(|_| name.len() < NAME_SIZE && !name.contains('\0'));
        place.ok_or_else(|| failed(Errno::INVAL))?.copy_from_slice(name.as_bytes());
        // The log costs more than the check itself, and is wanted only once that has failed.
        match sys::bpf::load(bytes, instructions, &mut []) {
            Ok(fd) => Ok(Self { fd }),
            Err(errno @ (Errno::ACCESS | Errno::INVAL | Errno::TOOBIG)) => {
                let mut log = vec![0; LOG_SIZE];
                match sys::bpf::load(bytes, instructions, &mut log) {
                    Ok(fd) => Ok(Self { fd }),
                    Err(_) => Err(failed(errno).with_log(last_lines(&log))),
                }
            }
            Err(errno) => Err(failed(errno)),
        }
    }

    /// Opens a program that is loaded.
    ///
    /// # Errors
    /// `ENOENT` when it is gone, `EPERM` without `CAP_SYS_ADMIN` or `CAP_BPF`, or where a security module forbids it.
    pub fn open(id: ProgramId) -> Result<Self, BpfError> {
        let fd = sys::bpf::open_by_id(id.0)
            .map_err(|errno| BpfError::new(BpfStep::Open, format!("program {id}"), errno))?;
        Ok(Self { fd })
    }

    /// What the kernel tells of it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn info(&self) -> Result<ProgramInfo, BpfError> {
        let read = |room: &mut [Instruction]| {
            sys::bpf::info(self.fd.as_fd(), room)
                .map_err(|errno| BpfError::new(BpfStep::ReadInfo, "a program", errno))
        };
        let size = usize::try_from(read(&mut [])?.translated_size).unwrap_or(0);
        let mut instructions = vec![Instruction::default(); size / size_of::<Instruction>()];
        let info = read(&mut instructions)?;
        // A kernel that hides them clears the address, and a program has at least one.
        let shown = !instructions.is_empty() && info.translated != 0;
        let name = info.name.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(ProgramInfo {
            id: ProgramId(info.id),
            tag: ProgramTag(info.tag),
            name: String::from_utf8_lossy(name).into_owned(),
            loaded_at: Duration::from_nanos(info.loaded_at),
            map_count: info.map_count,
            instructions: shown.then_some(instructions),
        })
    }
}

impl AsFd for DeviceProgram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The last lines of a log that ends with a zero, without the statistics that every log ends with.
fn last_lines(log: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(log.split(|byte| *byte == 0).next().unwrap_or_default());
    let lines: Vec<_> =
        text.lines().filter(|line| !line.is_empty() && !line.starts_with("processed ")).collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].iter().map(|line| (*line).to_owned()).collect()
}
