//! What a failed operation on programs reports.

use std::fmt;

use rustix::io::Errno;
use thiserror::Error;

/// The command of `bpf(2)` that failed, and what it was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BpfStep {
    /// Open a cgroup's directory.
    OpenCgroup,
    /// `BPF_PROG_LOAD`.
    Load,
    /// `BPF_PROG_GET_FD_BY_ID`.
    Open,
    /// `BPF_OBJ_GET_INFO_BY_FD`.
    ReadInfo,
    /// `BPF_PROG_QUERY`.
    Query,
    /// `BPF_PROG_ATTACH`.
    Attach,
    /// `BPF_PROG_ATTACH` with `BPF_F_REPLACE`.
    Replace,
    /// `BPF_PROG_DETACH`.
    Detach,
}

impl fmt::Display for BpfStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenCgroup => "open the control group",
            Self::Load => "load a device program (bpf load)",
            Self::Open => "open a device program (bpf get fd by id)",
            Self::ReadInfo => "read a device program (bpf get info)",
            Self::Query => "list the device programs (bpf query)",
            Self::Attach => "attach a device program (bpf attach)",
            Self::Replace => "replace a device program (bpf attach with replace)",
            Self::Detach => "detach a device program (bpf detach)",
        })
    }
}

/// An operation on device programs that the kernel refused.
#[derive(Debug, Error)]
#[error("cannot {step} for {object}{}", Log(log))]
pub struct BpfError {
    /// What was tried.
    pub step: BpfStep,
    /// The control group or program that it was tried on.
    pub object: String,
    /// The end of what the verifier said, when it refused a program.
    pub log: Vec<String>,
    #[source]
    errno: Errno,
}

impl BpfError {
    pub(crate) fn new(step: BpfStep, object: impl Into<String>, errno: Errno) -> Self {
        Self { step, object: object.into(), log: Vec::new(), errno }
    }

    pub(crate) fn with_log(mut self, log: Vec<String>) -> Self {
        self.log = log;
        self
    }

    /// The kernel's error number.
    #[must_use]
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// Whether the program or the control group has gone: somebody else was faster, and a second look tells more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.errno == Errno::NOENT
    }
}

struct Log<'a>(&'a [String]);

impl fmt::Display for Log<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " (verifier: {})", self.0.join("; ")) }
    }
}
