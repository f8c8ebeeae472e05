//! The files of cgroup v2 that hold a container's limits. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum File {
    /// `memory.max`: above it the kernel kills.
    MemoryMax,
    /// `memory.high`: above it the kernel slows and reclaims.
    MemoryHigh,
    /// `memory.low`: what is kept when memory is short.
    MemoryLow,
    /// `memory.swap.max`, of swap alone.
    MemorySwapMax,
    /// `hugetlb.SIZE.max`, with its size as the kernel names it.
    Hugetlb(String),
    /// `pids.max`: at it no process can fork.
    PidsMax,
    /// `cpu.max`.
    CpuMax,
    /// `cpu.weight`.
    CpuWeight,
    /// `cpuset.cpus`.
    CpusetCpus,
    /// `io.weight`, the default one: as it is asked for.
    IoWeight,
    /// `io.bfq.weight`, which a kernel with BFQ has for it: see [`super::Groups::adapt`].
    IoBfqWeight,
    /// `io.max`.
    IoMax,
}

/// How a file's amounts are written and combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A number, or `max`.
    Number,
    /// `QUOTA PERIOD`.
    Quota,
    /// 1 to [`File::heaviest`].
    Weight,
    /// A list of CPUs.
    Cpus,
    /// Lines of `MAJ:MIN KEY=N`.
    Io,
}

/// Those without a part of their own.
const PLAIN: [(&str, File); 11] = [
    ("memory.max", File::MemoryMax),
    ("memory.high", File::MemoryHigh),
    ("memory.low", File::MemoryLow),
    ("memory.swap.max", File::MemorySwapMax),
    ("pids.max", File::PidsMax),
    ("cpu.max", File::CpuMax),
    ("cpu.weight", File::CpuWeight),
    ("cpuset.cpus", File::CpusetCpus),
    ("io.weight", File::IoWeight),
    ("io.bfq.weight", File::IoBfqWeight),
    ("io.max", File::IoMax),
];

impl File {
    /// The file of this name, if it is one of a limit.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        if let Some((_, file)) = PLAIN.iter().find(|(plain, _)| *plain == name) {
            return Some(file.clone());
        }
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(".max")?;
        // "2MB", "1GB": it becomes part of a path. `hugetlb.2MB.rsvd.max` is another thing.
        let plain = !size.is_empty() && size.bytes().all(|b| b.is_ascii_alphanumeric());
        plain.then(|| Self::Hugetlb(size.to_owned()))
    }

    /// How its amounts are written.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::MemoryMax
            | Self::MemoryHigh
            | Self::MemoryLow
            | Self::MemorySwapMax
            | Self::Hugetlb(_)
            | Self::PidsMax => Kind::Number,
            Self::CpuMax => Kind::Quota,
            Self::CpuWeight | Self::IoWeight | Self::IoBfqWeight => Kind::Weight,
            Self::CpusetCpus => Kind::Cpus,
            Self::IoMax => Kind::Io,
        }
    }

    /// The heaviest weight: `CGROUP_WEIGHT_MAX`, and BFQ's own (`BFQ_MAX_WEIGHT`).
    #[must_use]
    pub fn heaviest(&self) -> u64 {
        if *self == Self::IoBfqWeight { 1000 } else { 10_000 }
    }

    /// The controller that makes it.
    #[must_use]
    pub fn controller(&self) -> &'static str {
        match self {
            Self::MemoryMax | Self::MemoryHigh | Self::MemoryLow | Self::MemorySwapMax => "memory",
            Self::Hugetlb(_) => "hugetlb",
            Self::PidsMax => "pids",
            Self::CpuMax | Self::CpuWeight => "cpu",
            Self::CpusetCpus => "cpuset",
            Self::IoWeight | Self::IoBfqWeight | Self::IoMax => "io",
        }
    }
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Hugetlb(size) = self {
            return write!(f, "hugetlb.{size}.max");
        }
        let name = PLAIN.iter().find(|(_, file)| file == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

impl From<File> for String {
    fn from(file: File) -> Self {
        file.to_string()
    }
}

impl TryFrom<String> for File {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::parse(&name).ok_or_else(|| format!("{name:?} is no file of a limit"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let names = PLAIN.iter().map(|(name, _)| *name).chain(["hugetlb.2MB.max", "hugetlb.1GB.max"]);
        for name in names {
            assert_eq!(File::parse(name).unwrap().to_string(), name);
        }
        for other in
            ["", "memory.min", "cgroup.procs", "hugetlb..max", "hugetlb.2MB.rsvd.max", "hugetlb.a/b.max"]
        {
            assert_eq!(File::parse(other), None, "{other}");
        }
    }
}
