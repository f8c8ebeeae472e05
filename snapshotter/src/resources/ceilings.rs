//! Budgets as they are configured, and as numbers of this node.

use std::{collections::BTreeMap, fs, io, str::FromStr, thread::available_parallelism};

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
    /// So many hundredths of the node's own, of memory and CPUs.
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
        if !matches!(file, File::MemoryMax | File::MemoryHigh | File::MemoryLow | File::CpuMax) {
            return Err("a percentage is of the node's memory or CPUs: write an amount".to_owned());
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
    /// Of the node's memory, half can be granted, and a quarter protected.
    fn default() -> Self {
        let node = [(File::MemoryMax, Ceiling::Percent(50)), (File::MemoryLow, Ceiling::Percent(25))];
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
    /// CPUs.
    pub cpus: u64,
}

impl Capacity {
    /// Of this node: `MemTotal` of proc_meminfo(5), and the CPUs that this process may use.
    ///
    /// # Errors
    /// When either cannot be read.
    pub fn read() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/meminfo")?;
        let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
        let kibibytes = total.and_then(|number| u64::from_str(number).ok());
        let memory = kibibytes.ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal"))? << 10;
        Ok(Self { memory, cpus: u64::try_from(available_parallelism()?.get()).unwrap_or(u64::MAX) })
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
            Ceiling::Percent(percent) => Amount::Number(capacity.memory / 100 * u64::from(*percent)),
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
            ("pids.max", "5%", "write an amount"),
            ("cpuset.cpus", "0-1", "not counted"),
            ("memory.max", "max", "no amount"),
        ] {
            let error = ceiling(file, text).unwrap_err();
            assert!(error.contains(reason), "{file} {text}: {error}");
        }
    }

    #[test]
    fn they_become_numbers_of_the_node() {
        let capacity = Capacity { memory: 1000, cpus: 4 };
        let disks = Disks::new("/proc".as_ref());
        let all = [("memory.max", "50%"), ("cpu.max", "25%"), ("pids.max", "9"), ("io.weight", "none")];
        let node = all.map(|(file, text)| (file.parse().unwrap(), ceiling(file, text).unwrap()));
        let settings = Settings { node: BTreeMap::from(node), ..Settings::default() };
        let budget = settings.settle(capacity, &disks).unwrap().node;
        let shown: Vec<String> = budget.iter().map(|(what, much)| format!("{what} {much}")).collect();
        assert_eq!(shown, ["memory.max 500", "cpu.max 1000000", "pids.max 9"]);
        let io = BTreeMap::from([(File::IoMax, ceiling("io.max", "store rbps=1M").unwrap())]);
        let settings = Settings { pod: io, ..Settings::default() };
        assert!(settings.settle(capacity, &disks).unwrap_err().to_string().contains("no single disk"));
        let here = Capacity::read().unwrap();
        assert!(here.memory > 1 << 26 && here.cpus > 0);
    }
}
