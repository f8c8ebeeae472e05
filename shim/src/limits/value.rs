//! Amounts of limits: read, written, added and capped. Pure.
//!
//! Two ways to read, one of what is asked for and one of what the kernel shows. Sums do not depend on the order of what is added: each
//! grant is rounded by itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::{
    file::{File, Kind},
    throttles::{self, Throttles, key_name, parse_io},
};

/// The kernel's longest CPU number is far below: a bound on what a list may make of itself.
const MAX_CPU: u32 = 8191;
/// The heaviest weight.
const MAX_WEIGHT: u64 = 10_000;
/// The kernel's shortest quota, in microseconds; its periods are from that to a second.
const MIN_QUOTA: u64 = 1_000;
const MAX_PERIOD: u64 = 1_000_000;
/// The kernel's period where none is named.
pub const PERIOD: u64 = 100_000;
/// No amount is larger; sums of those that are, are no limit.
pub(super) const MAX_AMOUNT: u64 = i64::MAX.cast_unsigned() / 2;

/// The amount of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Value {
    /// Of [`Kind::Number`]; none is no limit.
    Number(Option<u64>),
    /// Of [`Kind::Quota`]; a quota of none is no limit.
    Quota {
        /// Microseconds in a period.
        quota: Option<u64>,
        /// Microseconds.
        period: u64,
    },
    /// Of [`Kind::Weight`].
    Weight(u64),
    /// Of [`Kind::Cpus`]; none are all.
    Cpus(BTreeSet<u32>),
    /// Of [`Kind::Io`].
    #[serde(with = "throttles::as_text")]
    Io(Throttles),
}

impl Value {
    /// An amount that is asked for: strict, and `max` is none.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(file: &File, text: &str) -> Result<Self, &'static str> {
        let value = match file.kind() {
            Kind::Number => Self::Number(Some(number(text)?)),
            Kind::Quota => parse_quota(text)?,
            Kind::Weight => Self::Weight(weight(text)?),
            Kind::Cpus => Self::Cpus(cpus(text).filter(|cpus| !cpus.is_empty()).ok_or(NO_CPUS)?),
            Kind::Io => Self::Io(parse_io(text, false)?),
        };
        // Nothing could run with them, and runtimes take 0 for "not named".
        if matches!(
            (file, &value),
            (File::MemoryMax | File::MemoryHigh | File::PidsMax, Self::Number(Some(0)))
        ) {
            return Err("nothing runs with 0");
        }
        Ok(value)
    }

    /// What the kernel shows in a file. None for what it does not show.
    #[must_use]
    pub fn read(file: &File, text: &str) -> Option<Self> {
        let text = text.trim();
        Some(match file.kind() {
            Kind::Number if text == "max" => Self::Number(None),
            Kind::Number => Self::Number(Some(text.parse().ok()?)),
            Kind::Quota => {
                let mut words = text.split_ascii_whitespace();
                let quota = match words.next()? {
                    "max" => None,
                    quota => Some(quota.parse().ok()?),
                };
                let period = words.next().map_or(Some(PERIOD), |period| period.parse().ok())?;
                Self::Quota { quota, period }
            }
            Kind::Weight => {
                // "100", or of io.weight "default 100" before the lines of devices.
                let line = text.lines().next()?;
                Self::Weight(line.strip_prefix("default ").unwrap_or(line).trim().parse().ok()?)
            }
            Kind::Cpus => Self::Cpus(cpus(text)?),
            Kind::Io => Self::Io(parse_io(text, true).ok()?),
        })
    }

    /// With a grant.
    #[must_use]
    pub fn plus(self, grant: &Self) -> Self {
        match (self, grant) {
            (Self::Number(Some(own)), Self::Number(Some(more))) => {
                Self::Number(bounded(own.saturating_add(*more)))
            }
            (Self::Quota { quota: Some(own), period }, Self::Quota { quota: Some(more), period: of }) => {
                Self::Quota {
                    quota: bounded(own.saturating_add(in_period(*more, *of, period, true))),
                    period,
                }
            }
            (Self::Weight(own), Self::Weight(more)) => {
                Self::Weight(own.saturating_add(*more).min(MAX_WEIGHT))
            }
            (Self::Cpus(own), Self::Cpus(more)) if !own.is_empty() => {
                Self::Cpus(own.union(more).copied().collect())
            }
            (Self::Io(mut own), Self::Io(more)) => {
                for (device, keys) in more {
                    let Some(limited) = own.get_mut(device) else { continue };
                    for (key, amount) in keys {
                        if let Some(own) = limited.get_mut(key) {
                            *own = own.saturating_add(*amount).min(MAX_AMOUNT);
                        }
                    }
                }
                Self::Io(own)
            }
            // What is not limited stays so.
            (own, _) => own,
        }
    }

    /// Not above what a file takes.
    #[must_use]
    pub fn within(self, file: &File) -> Self {
        match self {
            Self::Weight(weight) => Self::Weight(weight.min(file.heaviest())),
            other => other,
        }
    }

    /// Not above a cap; none where that leaves no CPU.
    #[must_use]
    pub fn capped(self, cap: &Self) -> Option<Self> {
        Some(match (self, cap) {
            (Self::Number(own), Self::Number(Some(cap))) => {
                Self::Number(Some(own.map_or(*cap, |own| own.min(*cap))))
            }
            (Self::Quota { quota, period }, Self::Quota { quota: Some(cap), period: of }) => {
                let cap = in_period(*cap, *of, period, false).max(MIN_QUOTA);
                Self::Quota { quota: Some(quota.map_or(cap, |own| own.min(cap))), period }
            }
            (Self::Weight(own), Self::Weight(cap)) => Self::Weight(own.min(*cap)),
            (Self::Cpus(own), Self::Cpus(cap)) if own.is_empty() => Self::Cpus(cap.clone()),
            (Self::Cpus(own), Self::Cpus(cap)) => {
                let both: BTreeSet<u32> = own.intersection(cap).copied().collect();
                if both.is_empty() {
                    return None;
                }
                Self::Cpus(both)
            }
            (Self::Io(mut own), Self::Io(caps)) => {
                for (device, keys) in caps {
                    let limited = own.entry(*device).or_default();
                    for (key, cap) in keys {
                        limited.entry(*key).and_modify(|own| *own = (*own).min(*cap)).or_insert(*cap);
                    }
                }
                Self::Io(own)
            }
            (own, _) => own,
        })
    }
}

impl fmt::Display for Value {
    /// As the kernel takes it; of `io.max`, what is limited.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(None) => f.write_str("max"),
            Self::Number(Some(number)) | Self::Weight(number) => write!(f, "{number}"),
            Self::Quota { quota: None, period } => write!(f, "max {period}"),
            Self::Quota { quota: Some(quota), period } => write!(f, "{quota} {period}"),
            Self::Cpus(cpus) => f.write_str(&ranges(cpus)),
            Self::Io(devices) => {
                let line = |((major, minor), keys): (&(u32, u32), &BTreeMap<throttles::IoKey, u64>)| {
                    let words = keys.iter().map(|(key, amount)| format!(" {}={amount}", key_name(*key)));
                    format!("{major}:{minor}{}", words.collect::<String>())
                };
                f.write_str(&devices.iter().map(line).collect::<Vec<_>>().join("\n"))
            }
        }
    }
}

const NO_CPUS: &str = "it is no list of CPUs as 0-3,8";

fn bounded(sum: u64) -> Option<u64> {
    (sum <= MAX_AMOUNT).then_some(sum)
}

/// A decimal number.
pub(super) fn number(text: &str) -> Result<u64, &'static str> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse().ok().filter(|number| digits && *number <= MAX_AMOUNT);
    number.ok_or("it is no decimal number, or too large a one")
}

fn weight(text: &str) -> Result<u64, &'static str> {
    number(text)
        .ok()
        .filter(|weight| (1..=MAX_WEIGHT).contains(weight))
        .ok_or("it is no number from 1 to 10000")
}

fn parse_quota(text: &str) -> Result<Value, &'static str> {
    let (quota, period) = text.split_once(' ').ok_or("it is no \"QUOTA PERIOD\"")?;
    let (quota, period) = (number(quota)?, number(period)?);
    if !(MIN_QUOTA..=MAX_PERIOD).contains(&period) {
        return Err("a period is from 1000 to 1000000 microseconds");
    }
    if quota == 0 {
        return Err("a quota of 0 is none");
    }
    Ok(Value::Quota { quota: Some(quota), period })
}

/// A quota in another period: of a grant not less, of a cap not more.
fn in_period(quota: u64, of: u64, period: u64, up: bool) -> u64 {
    let (product, of) = (u128::from(quota) * u128::from(period), u128::from(of.max(1)));
    let quota = if up { product.div_ceil(of) } else { product / of };
    u64::try_from(quota).unwrap_or(u64::MAX)
}

/// A list of CPUs (cpuset(7), "List format"), also an empty one.
pub fn cpus(text: &str) -> Option<BTreeSet<u32>> {
    let mut cpus = BTreeSet::new();
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let number =
            |text: &str| number(text).ok().and_then(|n| u32::try_from(n).ok()).filter(|n| *n <= MAX_CPU);
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// CPUs as a list.
fn ranges(cpus: &BTreeSet<u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for cpu in cpus {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            _ => runs.push((*cpu, *cpu)),
        }
    }
    let run =
        |(first, last): (u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    runs.into_iter().map(run).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(file: &str, text: &str) -> Result<Value, &'static str> {
        Value::parse(&File::parse(file).unwrap(), text)
    }

    fn read(file: &str, text: &str) -> Value {
        Value::read(&File::parse(file).unwrap(), text).unwrap()
    }

    #[test]
    fn what_is_asked_for_is_strict() {
        for (file, text) in [
            ("memory.max", "67108864"),
            ("memory.swap.max", "0"),
            ("memory.low", "0"),
            ("hugetlb.2MB.max", "0"),
            ("hugetlb.2MB.max", "4194304"),
            ("pids.max", "20"),
            ("cpu.max", "50000 100000"),
            ("cpu.weight", "10000"),
            ("cpuset.cpus", "0-3,8"),
            ("io.max", "8:0 rbps=1048576 wiops=10\n8:16 wbps=5"),
        ] {
            assert_eq!(parse(file, text).unwrap().to_string(), text, "{file}");
        }
        for (file, text) in [
            ("memory.max", "max"),
            ("memory.max", "0"),
            ("memory.high", "0"),
            ("memory.max", "+5"),
            ("memory.max", "64M"),
            ("memory.max", "18446744073709551615"),
            ("pids.max", ""),
            ("pids.max", "0"),
            ("cpu.max", "50000"),
            ("cpu.max", "max 100000"),
            ("cpu.max", "0 100000"),
            ("cpu.max", "500 999"),
            ("cpu.max", "500 1000001"),
            ("cpu.weight", "0"),
            ("io.weight", "10001"),
            ("cpuset.cpus", ""),
            ("cpuset.cpus", "3-1"),
            ("cpuset.cpus", "1,"),
            ("cpuset.cpus", "0-4294967295"),
            ("io.max", ""),
            ("io.max", "8:0"),
            ("io.max", "8:0 rbps=max"),
            ("io.max", "8:0 rbps=0"),
            ("io.max", "8:0 bps=1"),
            ("io.max", "sda rbps=1"),
            ("io.max", "8:0 rbps=1 rbps=2"),
            ("io.max", "8:0 rbps=1\n8:0 rbps=2"),
        ] {
            assert!(parse(file, text).is_err(), "{file} {text:?}");
        }
    }

    #[test]
    fn what_the_kernel_shows_is_read() {
        assert_eq!(read("memory.max", "max\n"), Value::Number(None));
        assert_eq!(read("cpu.max", "max 100000\n"), Value::Quota { quota: None, period: 100_000 });
        assert_eq!(read("io.weight", "default 100\n8:0 200\n"), Value::Weight(100));
        assert_eq!(read("cpuset.cpus", "\n"), Value::Cpus(BTreeSet::new()));
        let shown = read("io.max", "8:0 rbps=1048576 wbps=max riops=max wiops=5\n8:16 rbps=max\n");
        assert_eq!(shown.to_string(), "8:0 rbps=1048576 wiops=5");
        assert_eq!(Value::read(&File::PidsMax, "many"), None);
        for value in [shown, read("cpuset.cpus", "1-2"), read("cpu.max", "5000 10000")] {
            let json = serde_json::to_string(&value).unwrap();
            assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), value, "{json}");
        }
    }

    #[test]
    fn grants_add_and_caps_lower() {
        for (file, own, grant, cap, want) in [
            ("memory.max", "100", "50", "120", "120"),
            ("memory.max", "100", "50", "1000", "150"),
            ("memory.max", "max", "50", "120", "120"),
            ("pids.max", "max", "5", "9", "9"),
            ("cpu.max", "50000 100000", "1 3000", "900000 1000000", "50034 100000"),
            ("cpu.max", "50000 100000", "25000 50000", "45000 50000", "90000 100000"),
            ("cpu.max", "max 20000", "1000 1000", "1000 2000", "10000 20000"),
            ("cpu.max", "50000 100000", "1000 1000", "1 1000000", "1000 100000"),
            ("cpu.weight", "9999", "9999", "10000", "10000"),
            ("cpuset.cpus", "0-1", "3,5", "1-3", "1,3"),
            ("cpuset.cpus", "", "3", "1-3", "1-3"),
            (
                "io.max",
                "8:0 rbps=10",
                "8:0 rbps=5 wbps=7\n8:1 rbps=3",
                "8:0 rbps=12\n8:2 wbps=1",
                "8:0 rbps=12\n8:2 wbps=1",
            ),
        ] {
            let result =
                read(file, own).plus(&parse(file, grant).unwrap()).capped(&parse(file, cap).unwrap());
            assert_eq!(result.unwrap().to_string(), want, "{file} {own} + {grant}, {cap}");
        }
        assert_eq!(read("cpuset.cpus", "0").capped(&parse("cpuset.cpus", "1").unwrap()), None);
        let huge = Value::Number(Some(MAX_AMOUNT));
        assert_eq!(huge.clone().plus(&huge), Value::Number(None));
        // A rate that nobody reaches stays one that can be read again.
        let rate = |text: &str| Value::read(&File::IoMax, text).unwrap();
        let much = rate(&format!("8:0 rbps={MAX_AMOUNT}"));
        let sum = much.clone().plus(&much);
        assert_eq!(rate(&sum.to_string()), sum);
        assert_eq!(rate(&format!("8:0 rbps={}", u64::MAX)), much);
    }
}
