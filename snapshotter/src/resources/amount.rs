//! One amount of one limit: what people write, in the kernel's words. Pure: no I/O.
//!
//! | file | written as | in the kernel's words |
//! | --- | --- | --- |
//! | `memory.max`, `.high`, `.low`, `.swap.max`, `hugetlb.SIZE.max` | `536870912`, `512M`, `512MiB` | bytes |
//! | `pids.max` | `64` | `64` |
//! | `cpu.max` | `50000 100000`, `0.5cpus` | `50000 100000` |
//! | `cpu.weight`, `io.weight` | 1 to 10000 | the same |
//! | `cpuset.cpus` | `0-3,8` | the same |
//! | `io.max` | `DISK KEY=N …`, several with `;` | `MAJ:MIN KEY=N …`, one a line |
//!
//! `Documentation/admin-guide/cgroup-v2.rst`.

use std::{collections::BTreeMap, fmt, str::FromStr};

/// What `cpu.max` has for a period unless told otherwise, in microseconds.
const PERIOD: u64 = 100_000;
/// Most CPUs that a list may name: more than any kernel is built for.
const CPUS: u32 = 8192;
/// What `io.max` knows of a disk.
const IO_KEYS: [&str; 4] = ["rbps", "wbps", "riops", "wiops"];

/// Why an amount is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file} {value:?}: {reason}")]
pub struct InvalidAmount {
    /// The limit.
    pub file: String,
    /// What was written.
    pub value: String,
    /// What is wrong, and what is right.
    pub reason: &'static str,
}

/// A limit, by its file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum File {
    /// `memory.max`.
    MemoryMax,
    /// `memory.high`.
    MemoryHigh,
    /// `memory.low`.
    MemoryLow,
    /// `memory.swap.max`.
    SwapMax,
    /// `cpu.max`.
    CpuMax,
    /// `cpu.weight`.
    CpuWeight,
    /// `cpuset.cpus`.
    Cpus,
    /// `pids.max`.
    PidsMax,
    /// `io.max`.
    IoMax,
    /// `io.weight`.
    IoWeight,
    /// `hugetlb.SIZE.max`.
    Hugetlb(String),
}

impl File {
    /// Those that have one name.
    const NAMED: [(&'static str, Self); 10] = [
        ("memory.max", Self::MemoryMax),
        ("memory.high", Self::MemoryHigh),
        ("memory.low", Self::MemoryLow),
        ("memory.swap.max", Self::SwapMax),
        ("cpu.max", Self::CpuMax),
        ("cpu.weight", Self::CpuWeight),
        ("cpuset.cpus", Self::Cpus),
        ("pids.max", Self::PidsMax),
        ("io.max", Self::IoMax),
        ("io.weight", Self::IoWeight),
    ];

    /// Whether it is counted in bytes.
    pub fn is_bytes(&self) -> bool {
        matches!(
            self,
            Self::MemoryMax | Self::MemoryHigh | Self::MemoryLow | Self::SwapMax | Self::Hugetlb(_)
        )
    }
}

impl FromStr for File {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some((_, file)) = Self::NAMED.iter().find(|(name, _)| *name == text) {
            return Ok(file.clone());
        }
        let size = text.strip_prefix("hugetlb.").and_then(|rest| rest.strip_suffix(".max"));
        let is_size = |size: &&str| {
            size.strip_suffix("KB")
                .or(size.strip_suffix("MB"))
                .or(size.strip_suffix("GB"))
                .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
        };
        size.filter(is_size).map(|size| Self::Hugetlb(size.to_owned())).ok_or(
            "use memory.max, memory.high, memory.low, memory.swap.max, cpu.max, cpu.weight, cpuset.cpus, pids.max, io.max, io.weight or hugetlb.SIZE.max, as hugetlb.2MB.max",
        )
    }
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Hugetlb(size) = self {
            return write!(f, "hugetlb.{size}.max");
        }
        let name = Self::NAMED.iter().find(|(_, file)| file == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

/// An amount of a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Amount {
    /// Bytes, processes or a weight.
    Number(u64),
    /// So many microseconds of each period, in microseconds.
    Cpu {
        /// Of each period.
        quota: u64,
        /// How long one is.
        period: u64,
    },
    /// CPUs: ascending, apart, first and last of each range.
    Cpus(Vec<(u32, u32)>),
    /// For each disk, as it was written, what of it.
    Io(BTreeMap<String, BTreeMap<&'static str, u64>>),
}

impl Amount {
    /// Judges what was written of a cap: as an amount, and 0 where a container can run with it.
    ///
    /// # Errors
    /// [`InvalidAmount`].
    pub fn parse_cap(file: &File, text: &str) -> Result<Self, InvalidAmount> {
        let digits = text.trim().trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
        let is_zero = !digits.is_empty() && digits.bytes().all(|byte| byte == b'0');
        let reason = match file {
            _ if !is_zero => return Self::parse(file, text),
            // No swap, no protection, no huge pages.
            File::SwapMax | File::MemoryLow | File::Hugetlb(_) => return Ok(Self::Number(0)),
            File::MemoryMax => {
                "with 0 the kernel kills every process of the container: write what it may use, as 64MiB"
            }
            File::MemoryHigh => {
                "with 0 the kernel takes all memory back and holds up whoever asks for some, so that nothing runs: write how much, as 64MiB"
            }
            File::PidsMax => {
                "with 0 no process of the container can start another, and none can be started in it: write 1 or more"
            }
            _ => return Self::parse(file, text),
        };
        Err(InvalidAmount { file: file.to_string(), value: text.trim().to_owned(), reason })
    }

    /// Judges what was written of a grant or of a budget.
    ///
    /// # Errors
    /// [`InvalidAmount`].
    pub fn parse(file: &File, text: &str) -> Result<Self, InvalidAmount> {
        let text = text.trim();
        let parsed = match file {
            _ if text == "max" => Err("\"max\" is no amount: say how much"),
            file if file.is_bytes() => bytes(text).map(Self::Number),
            File::CpuMax => cpu(text),
            File::CpuWeight | File::IoWeight => weight(text).map(Self::Number),
            File::Cpus => cpus(text).map(Self::Cpus),
            File::IoMax => io(text).map(Self::Io),
            _ => number(text).ok_or("write a number above 0").map(Self::Number),
        };
        parsed.map_err(|reason| InvalidAmount { file: file.to_string(), value: text.to_owned(), reason })
    }

    /// With the device's numbers for the name of each disk. Two names of one disk are refused, as its second name.
    ///
    /// # Errors
    /// `find`'s, or the name.
    pub fn with_disks<E>(
        self,
        find: impl Fn(&str) -> Result<String, E>,
        twice: impl Fn(&str) -> E,
    ) -> Result<Self, E> {
        let Self::Io(disks) = self else { return Ok(self) };
        let mut found = BTreeMap::new();
        for (disk, rates) in disks {
            if found.insert(find(&disk)?, rates).is_some() {
                return Err(twice(&disk));
            }
        }
        Ok(Self::Io(found))
    }
}

/// In the kernel's words.
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Cpu { quota, period } => write!(f, "{quota} {period}"),
            Self::Cpus(ranges) => {
                let range = |(first, last): &(u32, u32)| {
                    if first == last { first.to_string() } else { format!("{first}-{last}") }
                };
                f.write_str(&ranges.iter().map(range).collect::<Vec<_>>().join(","))
            }
            Self::Io(disks) => {
                let line = |(disk, rates): (&String, &BTreeMap<&str, u64>)| {
                    let rates = rates.iter().map(|(key, rate)| format!(" {key}={rate}"));
                    format!("{disk}{}", rates.collect::<String>())
                };
                f.write_str(&disks.iter().map(line).collect::<Vec<_>>().join("\n"))
            }
        }
    }
}

fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number > 0)
}

/// As the kernel's `memparse`, with the binary units' own names too.
pub(super) fn bytes(text: &str) -> Result<u64, &'static str> {
    const UNITS: [(&str, u32); 8] =
        [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("K", 10), ("M", 20), ("G", 30), ("T", 40)];
    let unit = UNITS.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
    let (digits, shift) = unit.unwrap_or((text, 0));
    let bytes = number(digits.trim_end()).and_then(|number| number.checked_mul(1 << shift));
    bytes.ok_or("write bytes as 536870912, 512M or 512MiB")
}

fn weight(text: &str) -> Result<u64, &'static str> {
    number(text).filter(|weight| *weight <= 10_000).ok_or("write a weight from 1 to 10000")
}

fn cpu(text: &str) -> Result<Amount, &'static str> {
    const REASON: &str =
        "write QUOTA PERIOD in microseconds, as \"50000 100000\", or how many CPUs, as 0.5cpus";
    if let Some(count) = text.strip_suffix("cpus").or(text.strip_suffix("cpu")) {
        let (whole, part) = count.trim_end().split_once('.').unwrap_or((count.trim_end(), ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(part) || part.len() > 5 {
            return Err(REASON);
        }
        // Of a period of 100,000, five places are microseconds.
        let quota = format!("{whole}{part:0<5}").parse().map_err(|_| REASON)?;
        return checked_cpu(quota, PERIOD).ok_or("a CPU's part is at least 0.01cpus");
    }
    let mut words = text.split_whitespace().map(number);
    match (words.next(), words.next(), words.next()) {
        (Some(Some(quota)), Some(Some(period)), None) => {
            checked_cpu(quota, period).ok_or("a quota is at least 1000, a period from 1000 to 1000000")
        }
        _ => Err(REASON),
    }
}

/// The bounds of `kernel/sched/core.c`, `tg_set_cfs_bandwidth`.
fn checked_cpu(quota: u64, period: u64) -> Option<Amount> {
    let good = quota >= 1000 && (1000..=1_000_000).contains(&period) && quota < 1 << 43;
    good.then_some(Amount::Cpu { quota, period })
}

fn cpus(text: &str) -> Result<Vec<(u32, u32)>, &'static str> {
    const REASON: &str = "write CPUs as 0-3,8";
    let cpu = |text: &str| text.trim().parse().ok().filter(|cpu| *cpu < CPUS).ok_or(REASON);
    let mut ranges = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range: (u32, u32) = (cpu(first)?, cpu(last)?);
        if range.0 > range.1 {
            return Err(REASON);
        }
        ranges.push(range);
    }
    ranges.sort_unstable();
    let mut apart: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match apart.last_mut() {
            Some(before) if first <= before.1 + 1 => before.1 = before.1.max(last),
            _ => apart.push((first, last)),
        }
    }
    Ok(apart)
}

fn io(text: &str) -> Result<BTreeMap<String, BTreeMap<&'static str, u64>>, &'static str> {
    const REASON: &str = "write DISK KEY=N ..., as \"store rbps=10M\" or \"/dev/vda riops=500 wiops=500\"; a disk is a block device, MAJ:MIN, or store, capsuled's own; keys are rbps, wbps, riops and wiops";
    let mut disks = BTreeMap::new();
    for line in text.split([';', '\n']) {
        let mut words = line.split_whitespace();
        let disk = words.next().filter(|disk| is_disk(disk)).ok_or(REASON)?;
        let mut rates = BTreeMap::new();
        for word in words {
            let (key, value) = word.split_once('=').ok_or(REASON)?;
            let key = IO_KEYS.into_iter().find(|known| *known == key).ok_or(REASON)?;
            let rate = if key.ends_with("bps") { bytes(value).ok() } else { number(value) };
            if rates.insert(key, rate.ok_or(REASON)?).is_some() {
                return Err("a disk's rate is given twice");
            }
        }
        if rates.is_empty() || disks.insert(disk.to_owned(), rates).is_some() {
            return Err(REASON);
        }
    }
    Ok(disks)
}

fn is_disk(text: &str) -> bool {
    let numbers = |(major, minor): (&str, &str)| major.parse::<u32>().is_ok() && minor.parse::<u32>().is_ok();
    text == super::disks::STORE || text.starts_with("/dev/") || text.split_once(':').is_some_and(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(file: &str, text: &str) -> Result<String, String> {
        let file: File = file.parse().map_err(str::to_owned)?;
        Amount::parse(&file, text).map(|amount| amount.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_people_write_becomes_the_kernels_words() {
        for (file, text, words) in [
            ("memory.max", "512M", "536870912"),
            ("memory.high", "1 GiB", "1073741824"),
            ("memory.low", "7", "7"),
            ("memory.swap.max", "4K", "4096"),
            ("hugetlb.2MB.max", "4M", "4194304"),
            ("pids.max", "64", "64"),
            ("cpu.max", "50000 100000", "50000 100000"),
            ("cpu.max", "0.5cpus", "50000 100000"),
            ("cpu.max", "2 cpus", "200000 100000"),
            ("cpu.max", "0.01cpu", "1000 100000"),
            ("cpu.weight", "10000", "10000"),
            ("cpuset.cpus", "8,0-3, 4", "0-4,8"),
            ("io.max", "store rbps=10M riops=5", "store rbps=10485760 riops=5"),
            ("io.max", "/dev/vda wbps=1K; 8:16 wiops=9", "/dev/vda wbps=1024\n8:16 wiops=9"),
        ] {
            // Sorted by name, as a map has it.
            let expected: Vec<&str> = words.split('\n').collect();
            let found = parse(file, text).unwrap();
            let mut found: Vec<&str> = found.split('\n').collect();
            found.sort_by_key(|line| expected.iter().position(|e| e == line));
            assert_eq!(found, expected, "{file} {text}");
            // The kernel's words are understood too: records and annotations have them.
            assert_eq!(parse(file, words).unwrap().len(), words.len());
        }
    }

    #[test]
    fn a_cap_is_0_where_a_container_can_run_with_it() {
        for (file, text) in [("memory.swap.max", "0"), ("memory.low", "0KiB"), ("hugetlb.2MB.max", " 0 ")] {
            let file: File = file.parse().unwrap();
            assert_eq!(Amount::parse_cap(&file, text), Ok(Amount::Number(0)), "{file}");
            assert!(Amount::parse(&file, text).is_err(), "{file}: nothing is granted with 0");
        }
        for (file, text, reason) in [
            ("memory.max", "0", "kills every process"),
            ("memory.max", "0MiB", "as 64MiB"),
            ("memory.high", "0", "nothing runs"),
            ("pids.max", "0", "write 1 or more"),
            ("cpu.max", "0cpus", "0.01cpus"),
            ("cpu.max", "0 100000", "0.5cpus"),
            ("cpu.weight", "0", "from 1 to 10000"),
            ("io.max", "store rbps=0", "KEY=N"),
            ("cpuset.cpus", "", "0-3,8"),
            ("memory.max", "", "512MiB"),
        ] {
            let error = Amount::parse_cap(&file.parse().unwrap(), text).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(file), "{file} {text}: {error}");
        }
        assert_eq!(Amount::parse_cap(&File::PidsMax, "1"), Ok(Amount::Number(1)));
    }

    #[test]
    fn what_is_no_amount_is_refused_with_a_reason() {
        for (file, text, reason) in [
            ("memory", "1", "use memory.max"),
            ("hugetlb..max", "1", "hugetlb.SIZE.max"),
            ("hugetlb.2B.max", "1", "hugetlb.SIZE.max"),
            ("memory.max", "max", "no amount"),
            ("memory.max", "512MB", "512MiB"),
            ("memory.max", "-1", "512MiB"),
            ("memory.max", "0", "512MiB"),
            ("memory.max", "99999999999999999999", "512MiB"),
            ("memory.max", "17179869184G", "512MiB"),
            ("pids.max", "+4", "above 0"),
            ("pids.max", "0", "above 0"),
            ("cpu.max", "50000", "0.5cpus"),
            ("cpu.max", "0.001cpus", "0.01cpus"),
            ("cpu.max", ".5cpus", "0.5cpus"),
            ("cpu.max", "500 100000", "at least 1000"),
            ("cpu.max", "max 100000", "0.5cpus"),
            ("cpu.weight", "10001", "10000"),
            ("cpuset.cpus", "3-1", "0-3,8"),
            ("cpuset.cpus", "9999", "0-3,8"),
            ("io.max", "store", "KEY=N"),
            ("io.max", "sda rbps=1", "KEY=N"),
            ("io.max", "8:0 bps=1", "KEY=N"),
            ("io.max", "8:0 rbps=1 rbps=2", "twice"),
        ] {
            let error = parse(file, text).unwrap_err();
            assert!(error.contains(reason), "{file} {text}: {error}");
        }
    }
}
