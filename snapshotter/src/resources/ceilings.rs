//! Budgets as they are configured, and as numbers of this node.

use std::{collections::BTreeMap, fs, io, path::Path, str::FromStr};

use super::{
    amount::{Amount, File},
    budget::{Budget, Ceilings, Dimension},
    disks::{DiskError, Disks},
};

/// How much there is of something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ceiling {
    /// No budget.
    None,
    /// So many hundredths of the node's own, of memory, swap, CPUs and processes.
    Percent(u8),
    /// So much.
    Amount(Amount),
}

impl Ceiling {
    /// Judges what was written.
    ///
    /// # Errors
    /// What is wrong, and what is right.
    pub fn parse(file: &File, text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::None);
        }
        if *file == File::Cpus {
            return Err("CPUs of a list are not counted: budget cpu.max".to_owned());
        }
        let Some(percent) = text.strip_suffix('%') else {
            return Amount::parse(file, text).map(Self::Amount).map_err(|error| error.reason.to_owned());
        };
        let has_whole = matches!(
            file,
            File::MemoryMax
                | File::MemoryHigh
                | File::MemoryLow
                | File::SwapMax
                | File::CpuMax
                | File::PidsMax
        );
        if !has_whole {
            return Err(
                "a percentage is of the node's memory, swap, CPUs or processes: write an amount".to_owned()
            );
        }
        let percent = percent.parse().ok().filter(|percent| (1..=200).contains(percent));
        percent.map(Self::Percent).ok_or_else(|| "write a percentage from 1% to 200%".to_owned())
    }
}

/// One budget, as it is configured.
pub type Configured = BTreeMap<File, Ceiling>;

/// All budgets, as they are configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// See [`Ceilings`].
    pub node: Configured,
    /// See [`Ceilings`].
    pub namespace: Configured,
    /// See [`Ceilings`].
    pub namespaces: BTreeMap<String, Configured>,
    /// See [`Ceilings`].
    pub pod: Configured,
    /// See [`Ceilings`].
    pub container: Configured,
}

impl Default for Settings {
    /// Of the node's memory, half can be granted, and a quarter protected; half of its swap and of the processes that it can have,
    /// which end others' when they are used up; and as many CPUs as there are, which are only shared.
    fn default() -> Self {
        let node = [
            (File::MemoryMax, Ceiling::Percent(50)),
            (File::MemoryLow, Ceiling::Percent(25)),
            (File::SwapMax, Ceiling::Percent(50)),
            (File::CpuMax, Ceiling::Percent(100)),
            (File::PidsMax, Ceiling::Percent(50)),
        ];
        Self {
            node: BTreeMap::from(node),
            namespace: Configured::new(),
            namespaces: BTreeMap::new(),
            pod: Configured::new(),
            container: Configured::new(),
        }
    }
}

/// What a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Bytes.
    pub memory: u64,
    /// Bytes; there may be none.
    pub swap: u64,
    /// CPUs that are online.
    pub cpus: u64,
    /// Processes and threads that there can be.
    pub pids: u64,
}

impl Capacity {
    /// Of this node: `MemTotal` and `SwapTotal` of proc_meminfo(5); the CPUs that are online, whichever of them this process may use;
    /// the lesser of `kernel.pid_max` and `kernel.threads-max`.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn read() -> io::Result<Self> {
        Self::read_below(Path::new("/"))
    }

    fn read_below(root: &Path) -> io::Result<Self> {
        let read = |path: &str| {
            fs::read_to_string(root.join(path))
                .map_err(|error| io::Error::new(error.kind(), format!("/{path}: {error}")))
        };
        let lacks = |path: &str, what: &str| io::Error::other(format!("/{path} has no {what}"));
        let number =
            |path: &str| -> io::Result<u64> { read(path)?.trim().parse().map_err(|_| lacks(path, "number")) };
        let (meminfo, online) = ("proc/meminfo", "sys/devices/system/cpu/online");
        let text = read(meminfo)?;
        let bytes = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kibibytes = value.and_then(|value| u64::from_str(value.trim().strip_suffix(" kB")?).ok());
            kibibytes.map(|number| number << 10).ok_or_else(|| lacks(meminfo, name))
        };
        let list = Amount::parse(&File::Cpus, &read(online)?);
        let Ok(Amount::Cpus(ranges)) = list else { return Err(lacks(online, "list of CPUs")) };
        Ok(Self {
            memory: bytes("MemTotal")?,
            swap: bytes("SwapTotal")?,
            cpus: ranges.iter().map(|(first, last)| u64::from(last - first) + 1).sum(),
            pids: number("proc/sys/kernel/pid_max")?.min(number("proc/sys/kernel/threads-max")?),
        })
    }
}

impl Settings {
    /// In numbers of a node.
    ///
    /// # Errors
    /// For a disk that is none.
    pub fn settle(&self, capacity: Capacity, disks: &Disks) -> Result<Ceilings, DiskError> {
        let settle = |configured: &Configured| settle(configured, capacity, disks);
        let named = |(name, configured): (&String, &Configured)| Ok((name.clone(), settle(configured)?));
        Ok(Ceilings {
            node: settle(&self.node)?,
            namespace: settle(&self.namespace)?,
            namespaces: self.namespaces.iter().map(named).collect::<Result<_, DiskError>>()?,
            pod: settle(&self.pod)?,
            container: settle(&self.container)?,
        })
    }
}

fn settle(configured: &Configured, capacity: Capacity, disks: &Disks) -> Result<Budget, DiskError> {
    let mut budget = Budget::new();
    for (file, ceiling) in configured {
        let amount = match ceiling {
            Ceiling::None => continue,
            Ceiling::Percent(percent) if *file == File::CpuMax => {
                // Of a period of 100,000 microseconds, a hundredth of a CPU is 1,000.
                let quota = capacity.cpus.saturating_mul(u64::from(*percent)).saturating_mul(1000);
                Amount::Cpu { quota, period: 100_000 }
            }
            // Where there is none, nothing that is granted has an effect.
            Ceiling::Percent(_) if *file == File::SwapMax && capacity.swap == 0 => continue,
            Ceiling::Percent(percent) => {
                let whole = match file {
                    File::SwapMax => capacity.swap,
                    File::PidsMax => capacity.pids,
                    _ => capacity.memory,
                };
                let part = u128::from(whole) * u128::from(*percent) / 100;
                Amount::Number(u64::try_from(part).unwrap_or(u64::MAX))
            }
            Ceiling::Amount(amount) => disks.settle_amount(amount)?,
        };
        budget.extend(Dimension::amounts(file, &amount));
    }
    Ok(budget)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ceiling(file: &str, text: &str) -> Result<Ceiling, String> {
        Ceiling::parse(&file.parse().unwrap(), text)
    }

    #[test]
    fn ceilings_are_amounts_parts_of_the_node_or_none() {
        assert_eq!(ceiling("memory.max", "512M"), Ok(Ceiling::Amount(Amount::Number(512 << 20))));
        assert_eq!(ceiling("cpu.max", "150%"), Ok(Ceiling::Percent(150)));
        assert_eq!(ceiling("pids.max", "none"), Ok(Ceiling::None));
        for (file, text, reason) in [
            ("memory.max", "0%", "from 1%"),
            ("memory.max", "x%", "from 1%"),
            ("cpu.weight", "5%", "write an amount"),
            ("cpuset.cpus", "0-1", "not counted"),
            ("memory.max", "max", "no amount"),
        ] {
            let error = ceiling(file, text).unwrap_err();
            assert!(error.contains(reason), "{file} {text}: {error}");
        }
    }

    #[test]
    fn they_become_numbers_of_the_node() {
        let capacity = Capacity { memory: 1000, swap: 50, cpus: 4, pids: 30 };
        let disks = Disks::new("/proc".as_ref());
        let all = [
            ("memory.max", "50%"),
            ("memory.swap.max", "10%"),
            ("cpu.max", "25%"),
            ("pids.max", "9"),
            ("io.weight", "none"),
        ];
        let node = all.map(|(file, text)| (file.parse().unwrap(), ceiling(file, text).unwrap()));
        let settings = Settings { node: BTreeMap::from(node), ..Settings::default() };
        let budget = settings.settle(capacity, &disks).unwrap().node;
        let shown: Vec<String> = budget.iter().map(|(what, much)| format!("{what} {much}")).collect();
        assert_eq!(shown, ["memory.max 500", "memory.swap.max 5", "cpu.max 1000000", "pids.max 9"]);
        let shown = |capacity| -> Vec<String> {
            let budget = Settings::default().settle(capacity, &disks).unwrap().node;
            budget.iter().map(|(what, much)| format!("{what} {much}")).collect()
        };
        let default =
            ["memory.max 500", "memory.low 250", "memory.swap.max 25", "cpu.max 4000000", "pids.max 15"];
        assert_eq!(shown(capacity), default);
        // Without swap, nobody is refused some.
        assert!(!shown(Capacity { swap: 0, ..capacity }).concat().contains("swap"));
        let io = BTreeMap::from([(File::IoMax, ceiling("io.max", "store rbps=1M").unwrap())]);
        let settings = Settings { pod: io, ..Settings::default() };
        assert!(settings.settle(capacity, &disks).unwrap_err().to_string().contains("no single disk"));
        let here = Capacity::read().unwrap();
        assert!(here.memory > 1 << 26 && here.cpus > 0 && here.pids > 1);
    }

    #[test]
    fn what_a_node_has_is_read_of_the_node_and_not_of_this_process() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/meminfo", "MemTotal:        2048 kB\nSwapCached: 1 kB\nSwapTotal:          4 kB\n");
        write("proc/sys/kernel/pid_max", "4194304\n");
        write("proc/sys/kernel/threads-max", "1000\n");
        // More than any machine has that runs this test.
        write("sys/devices/system/cpu/online", "0-1999,4000,4002-4003\n");
        let found = Capacity::read_below(root.path()).unwrap();
        assert_eq!(found, Capacity { memory: 2 << 20, swap: 4 << 10, cpus: 2003, pids: 1000 });
        write("sys/devices/system/cpu/online", "\n");
        let error = Capacity::read_below(root.path()).unwrap_err().to_string();
        assert!(error.contains("/sys/devices/system/cpu/online has no list of CPUs"), "{error}");
        fs::remove_file(root.path().join("proc/sys/kernel/pid_max")).unwrap();
        write("sys/devices/system/cpu/online", "0\n");
        let error = Capacity::read_below(root.path()).unwrap_err().to_string();
        assert!(error.contains("/proc/sys/kernel/pid_max"), "{error}");
    }
}
