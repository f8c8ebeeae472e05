//! A container's files of limits, in its control group: read, compared, written.
//!
//! The group belongs to the node: a container that has it mounted writable can write in it as well as we do, so whatever is read may have
//! been changed by it. It is a number to us and nothing else.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    change::{Amounts, Change},
    error::LimitError,
    file::File,
    throttles::{IoKey, Throttles, key_name},
    value::{Value, cpus},
};

/// Where the node has its control groups.
const TOP: &str = "/sys/fs/cgroup";
/// systemd keeps quotas in steps of 1 % of a CPU, rounded up.
const STEP: u64 = 10_000;
const SECOND: u64 = 1_000_000;
/// More CPUs than there are.
const ALL: u64 = 10_000;

/// The control groups that are the container's alone.
#[derive(Debug, Clone)]
pub struct Groups {
    /// That of its processes.
    inner: PathBuf,
    /// What lies between that and what others share: crun with systemd has its own in the scope that systemd made.
    outer: Option<PathBuf>,
}

impl Groups {
    /// Those of the container whose processes are in `inner`.
    #[must_use]
    pub fn new(inner: &Path) -> Self {
        let is_inner = inner.file_name().is_some_and(|name| name == "container");
        let scope =
            inner.parent().filter(|parent| is_inner && parent.extension().is_some_and(|e| e == "scope"));
        Self { inner: inner.to_owned(), outer: scope.map(Into::into) }
    }

    fn all(&self) -> impl Iterator<Item = &Path> {
        self.outer.as_deref().into_iter().chain([self.inner.as_path()])
    }

    /// What others share with it, the nearest first.
    fn above(&self) -> impl Iterator<Item = &Path> {
        let outermost = self.outer.as_deref().unwrap_or(&self.inner);
        outermost.ancestors().skip(1).take_while(|path| *path != Path::new(TOP))
    }

    /// A change in the files that this kernel has for it. With BFQ, the weight that runtimes set and that its disks go by is
    /// `io.bfq.weight`; `io.weight` is left as it is then. In both, twice the weight is twice the share.
    #[must_use]
    pub fn adapt(&self, change: Change) -> Change {
        let has_bfq = self.inner.join(File::IoBfqWeight.to_string()).exists();
        let of = |file| if has_bfq && file == File::IoWeight { File::IoBfqWeight } else { file };
        change.renamed(of)
    }

    /// The limit that a file is: of two groups, what is left by both. (crun with systemd has systemd's `TasksMax` on the scope and
    /// none below it.)
    ///
    /// # Errors
    /// [`LimitError::Missing`], [`LimitError::Strange`], [`LimitError::File`].
    pub fn read(&self, file: &File) -> Result<Value, LimitError> {
        let inner = read(&self.inner, file)?;
        let Some(outer) = &self.outer else { return Ok(inner) };
        Ok(both(read(outer, file)?, inner))
    }

    /// What holds of those that are there, of these files.
    #[must_use]
    pub fn read_some(&self, files: &[File]) -> Amounts {
        files.iter().filter_map(|file| Some((file.clone(), self.read(file).ok()?))).collect()
    }

    /// The files that do not hold what they should.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn differing(&self, wanted: &Amounts) -> Result<Vec<File>, LimitError> {
        let mut files = Vec::new();
        for (file, value) in wanted {
            for group in self.all() {
                if !self.is_same(file, value, &read(group, file)?) {
                    files.push(file.clone());
                    break;
                }
            }
        }
        Ok(files)
    }

    /// Writes what differs, and sees that it is there: all that can be, and the first that cannot is the error.
    ///
    /// # Errors
    /// As [`Self::read`]; and [`LimitError::Ignored`].
    pub fn write(&self, wanted: &Amounts) -> Result<(), LimitError> {
        let mut failed = Ok(());
        for (file, value) in wanted {
            for group in self.all() {
                // One file that cannot be written is no reason to leave another as it is.
                failed = failed.and(self.write_one(group, file, value));
            }
        }
        failed
    }

    fn write_one(&self, group: &Path, file: &File, value: &Value) -> Result<(), LimitError> {
        let before = read(group, file)?;
        if self.is_exact(file, value, &before) {
            return Ok(());
        }
        write(group, file, &before, value)?;
        let found = read(group, file)?;
        if self.is_same(file, value, &found) {
            return Ok(());
        }
        let (wanted, found) = (value.to_string(), found.to_string());
        Err(LimitError::Ignored { path: group.join(file.to_string()), wanted, found })
    }

    fn is_exact(&self, file: &File, wanted: &Value, found: &Value) -> bool {
        match (wanted, found) {
            // All CPUs by name are not all those that come later, and a quota that nobody reaches is one.
            (Value::Cpus(_), _) | (Value::Quota { quota: None, .. }, Value::Quota { quota: Some(_), .. }) => {
                wanted == found
            }
            _ => self.is_same(file, wanted, found),
        }
    }

    /// The quota that a runtime is told where there is to be none. crun has systemd keep the one of before then: it is told one that
    /// nobody reaches.
    #[must_use]
    pub fn no_quota(&self, period: u64) -> i64 {
        if self.outer.is_none() { -1 } else { i64::try_from(period.saturating_mul(ALL)).unwrap_or(-1) }
    }

    /// Whether a file holds what was written, as the kernel and systemd round it.
    #[must_use]
    pub fn is_same(&self, file: &File, wanted: &Value, found: &Value) -> bool {
        match (wanted, found) {
            (Value::Number(Some(wanted)), Value::Number(Some(found))) => {
                let granule = granule(file);
                wanted == found || wanted / granule * granule == *found
            }
            (Value::Quota { quota: None, .. }, Value::Quota { quota, period }) => {
                quota.is_none_or(|quota| quota >= period.saturating_mul(ALL))
            }
            (
                Value::Quota { quota: Some(wanted), period },
                Value::Quota { quota: Some(found), period: of },
            ) => period == of && (wanted == found || systemds(*wanted, *period) == *found),
            (Value::Cpus(wanted), found) if wanted.is_empty() => {
                *found == Value::Cpus(wanted.clone()) || self.all_cpus().is_some_and(|all| *found == all)
            }
            _ => wanted == found,
        }
    }

    /// The CPUs that it would have without a list of its own.
    #[must_use]
    pub fn all_cpus(&self) -> Option<Value> {
        let above = self.outer.as_deref().unwrap_or(&self.inner).parent()?;
        let text = fs::read_to_string(above.join("cpuset.cpus.effective")).ok()?;
        cpus(text.trim()).filter(|cpus| !cpus.is_empty()).map(Value::Cpus)
    }

    /// How much of a limit is in use, where less than that cannot be.
    #[must_use]
    pub fn used(&self, file: &File) -> Option<u64> {
        let name = match file {
            File::MemoryMax => "memory.current",
            File::PidsMax => "pids.current",
            _ => return None,
        };
        let outermost = self.all().next()?;
        fs::read_to_string(outermost.join(name)).ok()?.trim().parse().ok()
    }

    /// Has the kernel take back memory that can be had again: caches, and what can be swapped out.
    pub fn reclaim(&self, bytes: u64) {
        // It fails when there is less, and where the kernel cannot (before 5.19).
        if let Some(outermost) = self.all().next() {
            let _ = fs::write(outermost.join("memory.reclaim"), bytes.to_string());
        }
    }

    /// Limits of groups above that are lower than these: what is granted beyond them has no effect.
    #[must_use]
    pub fn lower_above(&self, wanted: &Amounts) -> Vec<(PathBuf, Value)> {
        let lower = |wanted: &Value, above: &Value| match (wanted, above) {
            (Value::Number(wanted), Value::Number(Some(above))) => {
                wanted.is_none_or(|wanted| wanted > *above)
            }
            (Value::Quota { quota, period }, Value::Quota { quota: Some(above), period: of }) => quota
                .is_none_or(|quota| {
                    u128::from(quota) * u128::from(*of) > u128::from(*above) * u128::from(*period)
                }),
            _ => false,
        };
        let mut found = Vec::new();
        for (file, value) in wanted {
            if !matches!(file, File::MemoryMax | File::PidsMax | File::CpuMax) {
                continue;
            }
            for group in self.above() {
                if let Ok(above) = read(group, file)
                    && lower(value, &above)
                {
                    found.push((group.join(file.to_string()), above));
                }
            }
        }
        found
    }
}

/// What is left by a limit and one below it. Weights count beside other containers, where the outer one is.
fn both(outer: Value, inner: Value) -> Value {
    match (outer, inner) {
        (Value::Quota { quota: Some(outer), period }, Value::Quota { quota: Some(inner), period: of }) => {
            let is_outer = u128::from(outer) * u128::from(of) < u128::from(inner) * u128::from(period);
            let (quota, period) = if is_outer { (outer, period) } else { (inner, of) };
            Value::Quota { quota: Some(quota), period }
        }
        (outer @ Value::Quota { quota: Some(_), .. }, Value::Quota { quota: None, .. })
        | (outer @ Value::Weight(_), _) => outer,
        (Value::Cpus(outer), Value::Cpus(inner)) if inner.is_empty() => Value::Cpus(outer),
        (outer @ (Value::Number(_) | Value::Io(_)), inner) => inner.clone().capped(&outer).unwrap_or(inner),
        (_, inner) => inner,
    }
}

/// What systemd makes of a quota.
fn systemds(quota: u64, period: u64) -> u64 {
    let period = u128::from(period.max(1));
    let in_second = (u128::from(quota) * u128::from(SECOND)).div_ceil(period).div_ceil(u128::from(STEP));
    u64::try_from(in_second * u128::from(STEP) * period / u128::from(SECOND)).unwrap_or(u64::MAX)
}

/// Amounts are kept in pages.
fn granule(file: &File) -> u64 {
    match file {
        File::MemoryMax | File::MemoryHigh | File::MemoryLow | File::MemorySwapMax => {
            u64::try_from(rustix::param::page_size()).unwrap_or(4096)
        }
        File::Hugetlb(size) => {
            let digits: String = size.chars().take_while(char::is_ascii_digit).collect();
            let unit = match &size[digits.len()..] {
                "KB" => 1 << 10,
                "MB" => 1 << 20,
                "GB" => 1 << 30,
                _ => 1,
            };
            digits.parse::<u64>().unwrap_or(1).saturating_mul(unit)
        }
        _ => 1,
    }
}

fn read(group: &Path, file: &File) -> Result<Value, LimitError> {
    let path = group.join(file.to_string());
    let text = fs::read_to_string(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound if group.is_dir() => {
            LimitError::Missing { file: file.clone(), controller: file.controller() }
        }
        io::ErrorKind::NotFound => LimitError::Gone,
        _ => LimitError::File { step: "read", path, source },
    })?;
    Value::read(file, &text).ok_or_else(|| LimitError::Strange { file: file.clone(), text })
}

fn write(group: &Path, file: &File, before: &Value, value: &Value) -> Result<(), LimitError> {
    let path = group.join(file.to_string());
    for line in lines(file, before, value) {
        fs::write(&path, line).map_err(|source| LimitError::File {
            step: "write",
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

/// What is written, one write each.
fn lines(file: &File, before: &Value, value: &Value) -> Vec<String> {
    match (file, value) {
        (File::IoMax, Value::Io(devices)) => {
            let none = Throttles::new();
            let before = if let Value::Io(before) = before { before } else { &none };
            let every: BTreeMap<_, _> = before.iter().chain(devices).collect();
            every.into_keys().map(|device| io_line(*device, devices)).collect()
        }
        (File::IoWeight, _) => vec![format!("default {value}")],
        // No bytes are no write.
        _ => vec![format!("{value}\n")],
    }
}

fn io_line(device: (u32, u32), devices: &Throttles) -> String {
    let of = |key: IoKey| {
        let amount = devices.get(&device).and_then(|keys| keys.get(&key));
        format!(" {}={}", key_name(key), amount.map_or_else(|| "max".to_owned(), u64::to_string))
    };
    let keys = [IoKey::Rbps, IoKey::Wbps, IoKey::Riops, IoKey::Wiops].map(of).concat();
    format!("{}:{}{keys}", device.0, device.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(file: &str, text: &str) -> (File, Value) {
        let file = File::parse(file).unwrap();
        let value = Value::read(&file, text).unwrap();
        (file, value)
    }

    #[test]
    fn rounding_is_no_difference() {
        let groups = Groups::new(Path::new("/nowhere"));
        for (file, wanted, found, same) in [
            ("memory.max", "67108865", "67108864", true),
            ("memory.max", "67108864", "67000000", false),
            ("memory.max", "67108863", "67108864", false),
            ("memory.max", "67108863", "max", false),
            ("hugetlb.2MB.max", "3000000", "2097152", true),
            ("pids.max", "20", "19", false),
            ("cpu.max", "33333 100000", "34000 100000", true),
            ("cpu.max", "33333 100000", "33333 100000", true),
            ("cpu.max", "33333 100000", "35000 100000", false),
            ("cpu.max", "max 50000", "max 100000", true),
            ("cpu.max", "max 100000", "1000000000 100000", true),
            ("cpu.max", "max 100000", "150000 100000", false),
            ("cpuset.cpus", "", "0", false),
        ] {
            let ((name, wanted), (_, found)) = (value(file, wanted), value(file, found));
            assert_eq!(groups.is_same(&name, &wanted, &found), same, "{file} {wanted} {found}");
        }
    }

    #[test]
    fn a_limit_in_two_groups_is_what_both_leave() {
        for (file, outer, inner, want) in [
            ("pids.max", "4643", "max", "4643"),
            ("pids.max", "max", "max", "max"),
            ("memory.swap.max", "603979776", "67108864", "67108864"),
            ("cpu.max", "34000 100000", "33333 100000", "33333 100000"),
            ("cpu.max", "10000 100000", "10000 50000", "10000 100000"),
            ("cpu.max", "10000 100000", "max 50000", "10000 100000"),
            ("cpu.max", "max 100000", "5000 50000", "5000 50000"),
            ("cpu.weight", "250", "100", "250"),
            ("cpuset.cpus", "0", "", "0"),
            ("cpuset.cpus", "0-1", "1", "1"),
            ("io.max", "8:0 rbps=5", "8:0 rbps=6 wbps=7", "8:0 rbps=5 wbps=7"),
        ] {
            let ((_, outer), (_, inner)) = (value(file, outer), value(file, inner));
            assert_eq!(both(outer, inner).to_string(), want, "{file}");
        }
    }

    #[test]
    fn a_device_without_limits_is_told_so() {
        let ((file, before), (_, now)) =
            (value("io.max", "8:0 rbps=5 wbps=6\n8:16 riops=7"), value("io.max", "8:0 rbps=9"));
        assert_eq!(
            lines(&file, &before, &now),
            ["8:0 rbps=9 wbps=max riops=max wiops=max", "8:16 rbps=max wbps=max riops=max wiops=max"]
        );
        let (file, none) = value("cpuset.cpus", "");
        assert_eq!(lines(&file, &none, &none), ["\n"]);
    }

    #[test]
    fn a_kernel_with_bfq_has_a_file_of_its_own_for_the_weight() {
        let folder = tempfile::tempdir().unwrap();
        let groups = Groups::new(folder.path());
        let put = |file: &str, text: &str| fs::write(folder.path().join(file), text).unwrap();
        let weight = |file: File, text: &str| (file, Value::read(&File::IoWeight, text).unwrap());
        let asked = Change {
            grants: Amounts::from([weight(File::IoWeight, "50"), value("pids.max", "3")]),
            caps: Amounts::from([weight(File::IoWeight, "5000")]),
        };
        put("io.weight", "default 70\n8:0 9\n");
        assert_eq!(groups.adapt(asked.clone()), asked);
        // As the kernel shows it since 5.4, and as it did before.
        for shown in ["default 100\n8:0 30\n", "100\n"] {
            put("io.bfq.weight", shown);
            let change = groups.adapt(asked.clone());
            assert_eq!(change.grants.keys().collect::<Vec<_>>(), [&File::PidsMax, &File::IoBfqWeight]);
            assert_eq!(change.caps, Amounts::from([weight(File::IoBfqWeight, "5000")]));
            assert_eq!(groups.read(&File::IoBfqWeight).unwrap(), Value::Weight(100));
        }
        groups.write(&Amounts::from([weight(File::IoBfqWeight, "150")])).unwrap();
        let read = |file: &str| fs::read_to_string(folder.path().join(file)).unwrap();
        assert_eq!(
            (read("io.bfq.weight").trim(), read("io.weight").lines().next()),
            ("150", Some("default 70"))
        );
    }

    #[test]
    fn a_folder_without_the_file_lacks_the_controller() {
        let folder = tempfile::tempdir().unwrap();
        let groups = Groups::new(folder.path());
        let missing = groups.read(&File::PidsMax).unwrap_err().to_string();
        assert!(missing.contains("pids.max") && missing.contains("pids controller"), "{missing}");
        fs::write(folder.path().join("pids.max"), "max\n").unwrap();
        let wanted = Amounts::from([value("pids.max", "20")]);
        assert_eq!(groups.differing(&wanted).unwrap(), [File::PidsMax]);
        groups.write(&wanted).unwrap();
        assert_eq!(groups.differing(&wanted).unwrap(), []);
    }
}
