//! Device programs of control groups (`BPF_PROG_TYPE_CGROUP_DEVICE`): what cgroup v2 has in place of the `devices` controller.
//!
//! A program is asked at each `open` of a device node and at each `mknod`, and answers 1 to allow it. What it does is
//! somebody else's business; here it is loaded, read back, attached and replaced. Needs `CAP_BPF` and `CAP_NET_ADMIN`
//! of the first user namespace: root in another one has neither.
//!
//! `instruction` (one, pure), `program` (in the kernel), `cgroup` (attached), `error`.

mod cgroup;
mod error;
mod instruction;
mod program;

pub use cgroup::{Attached, DeviceCgroup, Sharing};
pub use error::{BpfError, BpfStep};
pub use instruction::Instruction;
pub use program::{DeviceProgram, ProgramId, ProgramInfo, ProgramTag};
