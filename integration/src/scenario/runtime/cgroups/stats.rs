//! The metrics of a task: every field of containerd's message, against the kernel's file that it comes from.
//!
//! The tables are the test's own. They are proved on containerd's own runtime.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use capsule_proto::containerd::services::tasks::v1::MetricsRequest;
use prost_types::Any;

use super::group::Group;
use super::message::{all, number};
use crate::scenario::ctr::ctr;
use crate::scenario::runtime::bed::{Bed, SLEEP, eventually};
use crate::scenario::runtime::client::request;
use crate::scenario::runtime::task::{Stdio, Task};
use crate::scenario::runtime::{Case, Need};

/// The cases.
pub const CASES: &[Case] = &[
    Case::new("version 2: every field is what the kernel says", |bed| fields(bed, V2))
        .needs(&[Need::UnifiedCgroups]),
    Case::new("version 1: every field is what the kernel says", |bed| fields(bed, V1))
        .needs(&[Need::LegacyCgroups]),
    Case::new("metrics of a task that waits, runs, is paused, and has ended", states)
        .needs(CONTROLLERS)
        .in_vm(),
    Case::new("metrics of an init that moved to another control group", moved).needs(CONTROLLERS).in_vm(),
];

const CONTROLLERS: &[Need] = &[Need::Controllers];

/// A field of the message, the controller and file that it comes from, the key in the file (none: all of it), and what one
/// there is in the field.
struct Row(&'static [u64], &'static str, &'static str, &'static str, u64);

struct Version {
    kind: &'static str,
    /// A word instead of a number.
    max: u64,
    rows: &'static [Row],
    /// What containerd 2.1 has not and newer ones have.
    newer: &'static [Row],
    /// Where block devices are: the number of the messages, and in them of their bytes.
    devices: (&'static [u64], u64, &'static str),
}

const fn row(path: &'static [u64], controller: &'static str, file: &'static str, key: &'static str) -> Row {
    Row(path, controller, file, key, 1)
}

const V2: &Version = &Version {
    kind: "io.containerd.cgroups.v2.Metrics",
    max: u64::MAX,
    rows: &[
        row(&[1, 1], "pids", "pids.current", ""),
        row(&[1, 2], "pids", "pids.max", ""),
        row(&[2, 1], "cpu", "cpu.stat", "usage_usec"),
        row(&[2, 2], "cpu", "cpu.stat", "user_usec"),
        row(&[2, 3], "cpu", "cpu.stat", "system_usec"),
        row(&[2, 4], "cpu", "cpu.stat", "nr_periods"),
        row(&[2, 5], "cpu", "cpu.stat", "nr_throttled"),
        row(&[2, 6], "cpu", "cpu.stat", "throttled_usec"),
        row(&[2, 7, 1, 4], "cpu", "cpu.pressure", "some"),
        row(&[2, 7, 2, 4], "cpu", "cpu.pressure", "full"),
        row(&[4, 1], "memory", "memory.stat", "anon"),
        row(&[4, 2], "memory", "memory.stat", "file"),
        row(&[4, 3], "memory", "memory.stat", "kernel_stack"),
        row(&[4, 4], "memory", "memory.stat", "slab"),
        row(&[4, 5], "memory", "memory.stat", "sock"),
        row(&[4, 6], "memory", "memory.stat", "shmem"),
        row(&[4, 7], "memory", "memory.stat", "file_mapped"),
        row(&[4, 8], "memory", "memory.stat", "file_dirty"),
        row(&[4, 9], "memory", "memory.stat", "file_writeback"),
        row(&[4, 10], "memory", "memory.stat", "anon_thp"),
        row(&[4, 11], "memory", "memory.stat", "inactive_anon"),
        row(&[4, 12], "memory", "memory.stat", "active_anon"),
        row(&[4, 13], "memory", "memory.stat", "inactive_file"),
        row(&[4, 14], "memory", "memory.stat", "active_file"),
        row(&[4, 15], "memory", "memory.stat", "unevictable"),
        row(&[4, 16], "memory", "memory.stat", "slab_reclaimable"),
        row(&[4, 17], "memory", "memory.stat", "slab_unreclaimable"),
        row(&[4, 18], "memory", "memory.stat", "pgfault"),
        row(&[4, 19], "memory", "memory.stat", "pgmajfault"),
        row(&[4, 23], "memory", "memory.stat", "pgrefill"),
        row(&[4, 24], "memory", "memory.stat", "pgscan"),
        row(&[4, 25], "memory", "memory.stat", "pgsteal"),
        row(&[4, 26], "memory", "memory.stat", "pgactivate"),
        row(&[4, 27], "memory", "memory.stat", "pgdeactivate"),
        row(&[4, 28], "memory", "memory.stat", "pglazyfree"),
        row(&[4, 29], "memory", "memory.stat", "pglazyfreed"),
        row(&[4, 30], "memory", "memory.stat", "thp_fault_alloc"),
        row(&[4, 31], "memory", "memory.stat", "thp_collapse_alloc"),
        row(&[4, 32], "memory", "memory.current", ""),
        row(&[4, 33], "memory", "memory.max", ""),
        row(&[4, 34], "memory", "memory.swap.current", ""),
        row(&[4, 35], "memory", "memory.swap.max", ""),
        row(&[4, 36], "memory", "memory.peak", ""),
        row(&[4, 37], "memory", "memory.swap.peak", ""),
        row(&[4, 38, 1, 4], "memory", "memory.pressure", "some"),
        row(&[4, 38, 2, 4], "memory", "memory.pressure", "full"),
        row(&[6, 2, 1, 4], "io", "io.pressure", "some"),
        row(&[6, 2, 2, 4], "io", "io.pressure", "full"),
        row(&[8, 1], "memory", "memory.events", "low"),
        row(&[8, 2], "memory", "memory.events", "high"),
        row(&[8, 3], "memory", "memory.events", "max"),
        row(&[8, 4], "memory", "memory.events", "oom"),
        row(&[8, 5], "memory", "memory.events", "oom_kill"),
    ],
    newer: &[
        row(&[2, 8], "cpu", "cpu.stat", "nr_bursts"),
        row(&[2, 9], "cpu", "cpu.stat", "burst_usec"),
        row(&[8, 6], "memory", "memory.events", "oom_group_kill"),
    ],
    devices: (&[6, 1], 4, "io.stat"),
};

const V1: &Version = &Version {
    kind: "io.containerd.cgroups.v1.Metrics",
    max: 0,
    rows: &[
        row(&[2, 1], "pids", "pids.current", ""),
        row(&[2, 2], "pids", "pids.max", ""),
        row(&[3, 1, 1], "cpuacct", "cpuacct.usage", ""),
        Row(&[3, 1, 2], "cpuacct", "cpuacct.stat", "system", 10_000_000),
        Row(&[3, 1, 3], "cpuacct", "cpuacct.stat", "user", 10_000_000),
        row(&[3, 2, 1], "cpu", "cpu.stat", "nr_periods"),
        row(&[3, 2, 2], "cpu", "cpu.stat", "nr_throttled"),
        row(&[3, 2, 3], "cpu", "cpu.stat", "throttled_time"),
        row(&[4, 1], "memory", "memory.stat", "cache"),
        row(&[4, 2], "memory", "memory.stat", "rss"),
        row(&[4, 3], "memory", "memory.stat", "rss_huge"),
        row(&[4, 4], "memory", "memory.stat", "mapped_file"),
        row(&[4, 5], "memory", "memory.stat", "dirty"),
        row(&[4, 6], "memory", "memory.stat", "writeback"),
        row(&[4, 7], "memory", "memory.stat", "pgpgin"),
        row(&[4, 8], "memory", "memory.stat", "pgpgout"),
        row(&[4, 9], "memory", "memory.stat", "pgfault"),
        row(&[4, 10], "memory", "memory.stat", "pgmajfault"),
        row(&[4, 11], "memory", "memory.stat", "inactive_anon"),
        row(&[4, 12], "memory", "memory.stat", "active_anon"),
        row(&[4, 13], "memory", "memory.stat", "inactive_file"),
        row(&[4, 14], "memory", "memory.stat", "active_file"),
        row(&[4, 15], "memory", "memory.stat", "unevictable"),
        row(&[4, 16], "memory", "memory.stat", "hierarchical_memory_limit"),
        row(&[4, 17], "memory", "memory.stat", "hierarchical_memsw_limit"),
        row(&[4, 18], "memory", "memory.stat", "total_cache"),
        row(&[4, 19], "memory", "memory.stat", "total_rss"),
        row(&[4, 20], "memory", "memory.stat", "total_rss_huge"),
        row(&[4, 21], "memory", "memory.stat", "total_mapped_file"),
        row(&[4, 22], "memory", "memory.stat", "total_dirty"),
        row(&[4, 23], "memory", "memory.stat", "total_writeback"),
        row(&[4, 24], "memory", "memory.stat", "total_pgpgin"),
        row(&[4, 25], "memory", "memory.stat", "total_pgpgout"),
        row(&[4, 26], "memory", "memory.stat", "total_pgfault"),
        row(&[4, 27], "memory", "memory.stat", "total_pgmajfault"),
        row(&[4, 28], "memory", "memory.stat", "total_inactive_anon"),
        row(&[4, 29], "memory", "memory.stat", "total_active_anon"),
        row(&[4, 30], "memory", "memory.stat", "total_inactive_file"),
        row(&[4, 31], "memory", "memory.stat", "total_active_file"),
        row(&[4, 32], "memory", "memory.stat", "total_unevictable"),
        row(&[4, 33, 1], "memory", "memory.limit_in_bytes", ""),
        row(&[4, 33, 2], "memory", "memory.usage_in_bytes", ""),
        row(&[4, 33, 3], "memory", "memory.max_usage_in_bytes", ""),
        row(&[4, 33, 4], "memory", "memory.failcnt", ""),
        row(&[4, 34, 1], "memory", "memory.memsw.limit_in_bytes", ""),
        row(&[4, 34, 2], "memory", "memory.memsw.usage_in_bytes", ""),
        row(&[4, 34, 3], "memory", "memory.memsw.max_usage_in_bytes", ""),
        row(&[4, 34, 4], "memory", "memory.memsw.failcnt", ""),
        row(&[4, 35, 1], "memory", "memory.kmem.limit_in_bytes", ""),
        row(&[4, 35, 2], "memory", "memory.kmem.usage_in_bytes", ""),
        row(&[4, 35, 3], "memory", "memory.kmem.max_usage_in_bytes", ""),
        row(&[4, 36, 1], "memory", "memory.kmem.tcp.limit_in_bytes", ""),
        row(&[4, 36, 2], "memory", "memory.kmem.tcp.usage_in_bytes", ""),
        row(&[9, 1], "memory", "memory.oom_control", "oom_kill_disable"),
        row(&[9, 2], "memory", "memory.oom_control", "under_oom"),
        row(&[9, 3], "memory", "memory.oom_control", "oom_kill"),
    ],
    newer: &[],
    devices: (&[5, 1], 5, "blkio.throttle.io_service_bytes"),
};

/// What a task is given to do before its metrics are read: memory, processor time above its share, and a disk.
const WORK: &str = "dd if=/dev/zero of=/file bs=64k count=40 conv=fsync 2>/dev/null; \
    dd if=/dev/zero of=/dev/shm/memory bs=64k count=40 2>/dev/null; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done";

fn fields(bed: &Bed, version: &Version) -> Result<String> {
    let options = ["--memory-limit", "67108864", "--cpu-quota", "20000", "--cpu-period", "100000"];
    let task = Task::container(bed, "metrics", &options, &SLEEP)?;
    let group = Group::of(task.create(&Stdio::default())?)?;
    task.start("")?;
    task.run_exec("e1", &Stdio::default(), &["/bin/sh", "-c", WORK])?;
    task.wait("e1")?;
    task.delete_exec("e1")?;
    // Nothing that is counted changes by itself.
    task.pause()?;
    let before = read_all(&group, version)?;
    let metrics = metrics(bed, &task)?.context("no metrics")?;
    let after = read_all(&group, version)?;
    task.resume()?;
    ensure!(metrics.type_url == version.kind, "the metrics are a {}", metrics.type_url);
    let rows = version.rows.iter().chain(if bed.is_reference() { &[] } else { version.newer });
    let (mut wrong, mut filled) = (Vec::new(), 0);
    for (row, (before, after)) in rows.zip(before.into_iter().zip(after)) {
        let told = number(&metrics.value, row.0)?;
        filled += usize::from(told > 0);
        if !(before.min(after)..=before.max(after)).contains(&told) {
            wrong.push(format!("{} {}: {told}, not {before} to {after}", row.2, row.3));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    let devices = devices(&group, version, &metrics.value)?;
    let pages = huge_pages(version, &metrics.value)?;
    task.remove()?;
    Ok(format!("{} fields, {filled} of them not 0; {devices} devices; {pages}", version.rows.len()))
}

fn read_all(group: &Group, version: &Version) -> Result<Vec<u64>> {
    version.rows.iter().chain(version.newer).map(|row| read(group, version, row)).collect()
}

/// 0 for a file or a key that this kernel has not.
fn read(group: &Group, version: &Version, Row(_, controller, file, key, unit): &Row) -> Result<u64> {
    let text = group.read(controller, file).unwrap_or_default();
    let text = if key.is_empty() {
        &text
    } else {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.and_then(|line| line.rsplit([' ', '=']).next()).unwrap_or("0")
    };
    match text {
        "" => Ok(0),
        "max" => Ok(version.max),
        text => Ok(text.parse::<u64>().with_context(|| format!("{file} {key}: {text:?}"))? * unit),
    }
}

/// The bytes of all block devices together are those in the file; how many entries there are.
fn devices(group: &Group, version: &Version, metrics: &[u8]) -> Result<usize> {
    let (path, field, file) = version.devices;
    let above = all(metrics, path[0])?.last().copied().unwrap_or_default();
    let entries = all(above, path[1])?;
    let told = entries.iter().map(|entry| number(entry, &[field])).sum::<Result<u64>>()?;
    let text = group.read(if version.max == 0 { "blkio" } else { "io" }, file).unwrap_or_default();
    let words = text.lines().filter(|line| !line.starts_with("Total")).flat_map(str::split_ascii_whitespace);
    let expected: u64 = if version.max == 0 {
        text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<u64>().ok()).sum()
    } else {
        words.filter_map(|word| word.strip_prefix("wbytes=")?.parse::<u64>().ok()).sum()
    };
    ensure!(told == expected, "{file}: {told} bytes, not {expected}");
    Ok(entries.len())
}

/// An entry for each size of the node. A hybrid has none without the controller.
fn huge_pages(version: &Version, metrics: &[u8]) -> Result<String> {
    let field = if version.max == 0 { 1 } else { 7 };
    let name = if version.max == 0 { 4 } else { 3 };
    let entries = all(metrics, field)?;
    let mut sizes = Vec::new();
    for entry in &entries {
        let size = all(entry, name)?.first().copied().unwrap_or_default();
        sizes.push(String::from_utf8_lossy(size).into_owned());
    }
    let node = fs::read_dir("/sys/kernel/mm/hugepages").map(Iterator::count).unwrap_or_default();
    ensure!(version.max == 0 || entries.len() == node, "{sizes:?} of {node} sizes of huge pages");
    Ok(format!("huge pages {sizes:?}"))
}

/// What containerd answers; nothing when the shim has an error instead.
pub fn metrics(bed: &Bed, task: &Task<'_>) -> Result<Option<Any>> {
    let ask = MetricsRequest { filters: vec![format!("id=={}", task.id)] };
    let answer = bed.client().call(bed.client().tasks().metrics(request(ask)))?;
    Ok(answer.metrics.into_iter().find(|metric| metric.id == task.id).and_then(|metric| metric.data))
}

fn states(bed: &Bed) -> Result<String> {
    let task = Task::created(bed, "states", &Stdio::default(), &SLEEP)?;
    let pids = |what: &str| -> Result<u64> {
        let metrics = metrics(bed, &task)?.with_context(|| format!("no metrics of a task that {what}"))?;
        number(&metrics.value, if bed.facts().unified { &[1, 1] } else { &[2, 1] })
    };
    ensure!(pids("waits")? > 0, "a task that waits has no process");
    task.start("")?;
    // The runtime's own process has several threads, until it is the task's.
    eventually("the runtime's threads to go", || {
        ensure!(pids("runs")? == 1, "a task of one process that runs has not one");
        Ok(())
    })?;
    task.pause()?;
    ensure!(pids("is paused")? == 1, "a task of one process that is paused has not one");
    task.resume()?;
    task.end()?;
    ensure!(pids("has ended")? == 0, "a task that has ended has processes");
    task.remove().map(|()| String::new())
}

/// An init that runs an init system makes control groups of its own below, and moves there.
fn moved(bed: &Bed) -> Result<String> {
    let task = Task::container(bed, "moved", &["--memory-limit", "67108864"], &SLEEP)?;
    let pid = task.create(&Stdio::default())?;
    let group = Group::of(pid)?;
    task.start("")?;
    let below = group.directory("memory")?.join("below");
    fs::create_dir(&below).with_context(|| format!("create {}", below.display()))?;
    fs::write(below.join("cgroup.procs"), pid.to_string()).context("move the init")?;
    let limit = metrics(bed, &task)?.context("no metrics")?;
    let limit = number(&limit.value, if bed.facts().unified { &[4, 33] } else { &[4, 33, 1] })?;
    ensure!(limit == 67_108_864, "the limit is {limit}: these are the metrics of another control group");
    task.end()?;
    fs::remove_dir(&below).with_context(|| format!("remove {}", below.display()))?;
    let json = ctr(&["task", "metrics", "--format", "json", &task.id])?.success("ctr task metrics")?;
    ensure!(json.contains("67108864"), "{json}");
    task.remove().map(|()| String::new())
}
