//! Version 1: a directory for each controller (Documentation/admin-guide/cgroup-v1).
//!
//! A controller that the node lacks, or a control group that has been removed, leaves its part of the message out, as
//! containerd's own shim answers for it; only what is always made there stays: `cpu` and its parts.

use std::path::PathBuf;

use containerd_shim::protos::{
    cgroups::metrics::{
        BlkIOEntry, BlkIOStat, CPUStat, HugetlbStat, MemoryEntry, MemoryOomControl, MemoryStat, Metrics,
        PidsStat, RdmaStat,
    },
    protobuf::MessageField,
};

use super::{Node, StatsError, files::Files, parse};

/// `cpuacct.stat` counts in these (USER_HZ, which is 100 on every architecture that containers run on).
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

/// The metrics of a container, from the directory of each controller.
///
/// # Errors
/// [`StatsError`].
pub fn read(paths: &[(&'static str, PathBuf)], node: &Node) -> Result<Metrics, StatsError> {
    let mut metrics = Metrics { cpu: MessageField::some(CPUStat::default()), ..Default::default() };
    let cpu = metrics.cpu.mut_or_insert_default();
    (cpu.usage, cpu.throttling) = (Some(Default::default()).into(), Some(Default::default()).into());
    for (controller, path) in paths {
        let Some(mut files) = Files::open(path)? else { continue };
        let files = &mut files;
        match *controller {
            "blkio" => metrics.blkio = MessageField::some(read_blkio(files, node)?),
            "cpu" => read_throttling(files, &mut metrics)?,
            "cpuacct" => read_cpu_usage(files, &mut metrics)?,
            "hugetlb" => metrics.hugetlb = read_huge_pages(files, node)?,
            "memory" => {
                metrics.memory = MessageField::some(read_memory(files)?);
                metrics.memory_oom_control = MessageField::some(read_oom_control(files)?);
            }
            "pids" => metrics.pids = MessageField::some(read_pids(files)?),
            "rdma" => metrics.rdma = read_rdma(files)?,
            _ => {}
        }
    }
    Ok(metrics)
}

/// `max` is 0 here, other than in version 2.
fn read_pids(files: &mut Files<'_>) -> Result<PidsStat, StatsError> {
    let (current, limit) = (files.number("pids.current", 0)?, files.number("pids.max", 0)?);
    Ok(PidsStat { current, limit, ..Default::default() })
}

fn read_throttling(files: &mut Files<'_>, metrics: &mut Metrics) -> Result<(), StatsError> {
    let throttling = metrics.cpu.mut_or_insert_default().throttling.mut_or_insert_default();
    files.pairs("cpu.stat", |key, value| match key {
        "nr_periods" => throttling.periods = value,
        "nr_throttled" => throttling.throttled_periods = value,
        "throttled_time" => throttling.throttled_time = value,
        _ => {}
    })
}

fn read_cpu_usage(files: &mut Files<'_>, metrics: &mut Metrics) -> Result<(), StatsError> {
    let usage = metrics.cpu.mut_or_insert_default().usage.mut_or_insert_default();
    files.pairs("cpuacct.stat", |key, value| match key {
        "user" => usage.user = value.saturating_mul(NANOSECONDS_PER_TICK),
        "system" => usage.kernel = value.saturating_mul(NANOSECONDS_PER_TICK),
        _ => {}
    })?;
    usage.total = files.number("cpuacct.usage", 0)?;
    files.lines("cpuacct.usage_percpu", |line| {
        line.split_ascii_whitespace()
            .all(|word| parse::number(word).map(|value| usage.per_cpu.push(value)).is_some())
    })
}

/// Sets the field that belongs to the key, if there is one.
macro_rules! set {
    ($into:ident, $key:ident, $value:ident: $($name:literal => $field:ident,)*) => {
        match $key {
            $($name => $into.$field = $value,)*
            _ => {}
        }
    };
}

fn read_memory(files: &mut Files<'_>) -> Result<MemoryStat, StatsError> {
    let mut stat = MemoryStat {
        usage: MessageField::some(read_entry(files, "memory")?),
        swap: MessageField::some(read_entry(files, "memory.memsw")?),
        kernel: MessageField::some(read_entry(files, "memory.kmem")?),
        kernel_tcp: MessageField::some(read_entry(files, "memory.kmem.tcp")?),
        ..Default::default()
    };
    files.pairs("memory.stat", |key, value| {
        set!(stat, key, value:
            "cache" => cache, "rss" => rss, "rss_huge" => rss_huge, "mapped_file" => mapped_file,
            "dirty" => dirty, "writeback" => writeback, "pgpgin" => pg_pg_in, "pgpgout" => pg_pg_out,
            "pgfault" => pg_fault, "pgmajfault" => pg_maj_fault,
            "inactive_anon" => inactive_anon, "active_anon" => active_anon,
            "inactive_file" => inactive_file, "active_file" => active_file, "unevictable" => unevictable,
            "hierarchical_memory_limit" => hierarchical_memory_limit,
            "hierarchical_memsw_limit" => hierarchical_swap_limit,
            "total_cache" => total_cache, "total_rss" => total_rss, "total_rss_huge" => total_rss_huge,
            "total_mapped_file" => total_mapped_file, "total_dirty" => total_dirty,
            "total_writeback" => total_writeback, "total_pgpgin" => total_pg_pg_in,
            "total_pgpgout" => total_pg_pg_out, "total_pgfault" => total_pg_fault,
            "total_pgmajfault" => total_pg_maj_fault, "total_inactive_anon" => total_inactive_anon,
            "total_active_anon" => total_active_anon, "total_inactive_file" => total_inactive_file,
            "total_active_file" => total_active_file, "total_unevictable" => total_unevictable,
        );
    })?;
    Ok(stat)
}

fn read_entry(files: &mut Files<'_>, prefix: &str) -> Result<MemoryEntry, StatsError> {
    let mut number = |name: &str| files.number(&format!("{prefix}.{name}"), 0);
    Ok(MemoryEntry {
        usage: number("usage_in_bytes")?,
        max: number("max_usage_in_bytes")?,
        failcnt: number("failcnt")?,
        limit: number("limit_in_bytes")?,
        ..Default::default()
    })
}

fn read_oom_control(files: &mut Files<'_>) -> Result<MemoryOomControl, StatsError> {
    let mut control = MemoryOomControl::default();
    files.pairs("memory.oom_control", |key, value| {
        set!(control, key, value:
            "oom_kill_disable" => oom_kill_disable, "under_oom" => under_oom, "oom_kill" => oom_kill,
        );
    })?;
    Ok(control)
}

/// The counts of the disk scheduler, for kernels and disks that have one that counts (CFQ, before Linux 5.0), or those of
/// the block layer.
fn read_blkio(files: &mut Files<'_>, node: &Node) -> Result<BlkIOStat, StatsError> {
    let mut stat = BlkIOStat::default();
    if files.read("blkio.io_serviced_recursive")?.is_some() {
        let mut of = |name: &str| read_devices(files, &format!("blkio.{name}_recursive"), node);
        stat.sectors_recursive = of("sectors")?;
        stat.io_service_bytes_recursive = of("io_service_bytes")?;
        stat.io_serviced_recursive = of("io_serviced")?;
        stat.io_queued_recursive = of("io_queued")?;
        stat.io_service_time_recursive = of("io_service_time")?;
        stat.io_wait_time_recursive = of("io_wait_time")?;
        stat.io_merged_recursive = of("io_merged")?;
        stat.io_time_recursive = of("time")?;
        if stat != BlkIOStat::default() {
            return Ok(stat);
        }
    }
    stat.io_serviced_recursive = read_devices(files, "blkio.throttle.io_serviced", node)?;
    stat.io_service_bytes_recursive = read_devices(files, "blkio.throttle.io_service_bytes", node)?;
    Ok(stat)
}

fn read_devices(files: &mut Files<'_>, name: &str, node: &Node) -> Result<Vec<BlkIOEntry>, StatsError> {
    let name_of = |major, minor| {
        let mut partitions = node.partitions.lines().filter_map(parse::partition);
        let found = partitions.find(|(numbers, _)| *numbers == (major, minor));
        found.map(|(_, name)| format!("/dev/{name}")).unwrap_or_default()
    };
    let mut entries = Vec::new();
    files.lines(name, |line| parse::blkio(line, name_of).map(|entry| entries.extend(entry)).is_some())?;
    Ok(entries)
}

/// In the order of the directory's names, other than in version 2.
fn read_huge_pages(files: &mut Files<'_>, node: &Node) -> Result<Vec<HugetlbStat>, StatsError> {
    let mut sizes = node.huge_pages.clone();
    sizes.sort();
    let of = |pagesize: String| {
        let mut number = |name: &str| files.number(&format!("hugetlb.{pagesize}.{name}"), 0);
        let (usage, max) = (number("usage_in_bytes")?, number("max_usage_in_bytes")?);
        let failcnt = number("failcnt")?;
        Ok(HugetlbStat { usage, max, failcnt, pagesize, ..Default::default() })
    };
    sizes.into_iter().map(of).collect()
}

/// None when a device went away between the reading of the two files, or without them.
fn read_rdma(files: &mut Files<'_>) -> Result<MessageField<RdmaStat>, StatsError> {
    let mut entries = |name: &str| -> Result<_, StatsError> {
        let text = files.read(name)?;
        Ok(text.map(|text| text.lines().filter_map(parse::rdma).collect::<Vec<_>>()))
    };
    let (current, limit) = (entries("rdma.current")?, entries("rdma.max")?);
    Ok(match (current, limit) {
        (Some(current), Some(limit)) if current.len() == limit.len() => {
            MessageField::some(RdmaStat { current, limit, ..Default::default() })
        }
        _ => MessageField::none(),
    })
}
