//! Version 2: every file in one directory (Documentation/admin-guide/cgroup-v2.rst).

use std::path::Path;

use containerd_shim::protos::{
    cgroups::metrics::RdmaEntry as Rdma,
    cgroups_v2::metrics::{
        CPUStat, HugeTlbStat, IOStat, MemoryEvents, MemoryStat, Metrics, PSIStats, PidsStat, RdmaEntry,
        RdmaStat,
    },
    protobuf::MessageField,
};

use super::{Node, StatsError, files::Files, parse};

/// The metrics of the control group at `path`.
///
/// # Errors
/// [`StatsError`].
pub fn read(path: &Path, node: &Node) -> Result<Metrics, StatsError> {
    let mut files = Files::open(path)?.ok_or_else(|| StatsError::Gone(path.to_owned()))?;
    Ok(Metrics {
        pids: MessageField::some(read_pids(&mut files)?),
        cpu: MessageField::some(read_cpu(&mut files)?),
        memory: MessageField::some(read_memory(&mut files)?),
        memory_events: read_events(&mut files)?.into(),
        io: MessageField::some(read_io(&mut files)?),
        rdma: MessageField::some(RdmaStat {
            current: read_rdma(&mut files, "rdma.current")?,
            limit: read_rdma(&mut files, "rdma.max")?,
            ..Default::default()
        }),
        hugetlb: read_huge_pages(&mut files, node)?,
        ..Default::default()
    })
}

/// Sets the field whose name is the key, if there is one.
macro_rules! set {
    ($into:ident, $key:ident, $value:ident: $($field:ident)*) => {
        match $key {
            $(stringify!($field) => $into.$field = $value,)*
            _ => {}
        }
    };
}

fn read_pids(files: &mut Files<'_>) -> Result<PidsStat, StatsError> {
    let (current, limit) = (files.number("pids.current", 0)?, files.number("pids.max", u64::MAX)?);
    Ok(PidsStat { current, limit, ..Default::default() })
}

fn read_cpu(files: &mut Files<'_>) -> Result<CPUStat, StatsError> {
    let mut stat = CPUStat { psi: read_pressure(files, "cpu.pressure")?, ..Default::default() };
    files.pairs("cpu.stat", |key, value| {
        set!(stat, key, value: usage_usec user_usec system_usec nr_periods nr_throttled throttled_usec nr_bursts burst_usec);
    })?;
    Ok(stat)
}

fn read_memory(files: &mut Files<'_>) -> Result<MemoryStat, StatsError> {
    let mut stat = MemoryStat {
        usage: files.number("memory.current", 0)?,
        usage_limit: files.number("memory.max", u64::MAX)?,
        max_usage: files.number("memory.peak", 0)?,
        swap_usage: files.number("memory.swap.current", 0)?,
        swap_limit: files.number("memory.swap.max", u64::MAX)?,
        swap_max_usage: files.number("memory.swap.peak", 0)?,
        psi: read_pressure(files, "memory.pressure")?,
        ..Default::default()
    };
    files.pairs("memory.stat", |key, value| {
        set!(stat, key, value:
            anon file kernel_stack slab sock shmem file_mapped file_dirty file_writeback anon_thp
            inactive_anon active_anon inactive_file active_file unevictable slab_reclaimable slab_unreclaimable
            pgfault pgmajfault workingset_refault workingset_activate workingset_nodereclaim
            pgrefill pgscan pgsteal pgactivate pgdeactivate pglazyfree pglazyfreed
            thp_fault_alloc thp_collapse_alloc);
    })?;
    Ok(stat)
}

/// None without the memory controller.
fn read_events(files: &mut Files<'_>) -> Result<Option<MemoryEvents>, StatsError> {
    let mut found = None;
    files.pairs("memory.events", |key, value| {
        let events = found.get_or_insert_with(MemoryEvents::default);
        set!(events, key, value: low high max oom oom_kill oom_group_kill);
    })?;
    Ok(found)
}

fn read_io(files: &mut Files<'_>) -> Result<IOStat, StatsError> {
    let mut usage = Vec::new();
    files.lines("io.stat", |line| {
        usage.extend(parse::io(line));
        true
    })?;
    Ok(IOStat { usage, psi: read_pressure(files, "io.pressure")?, ..Default::default() })
}

fn read_rdma(files: &mut Files<'_>, name: &str) -> Result<Vec<RdmaEntry>, StatsError> {
    let mut entries = Vec::new();
    files.lines(name, |line| {
        if let Some(Rdma { device, hca_handles, hca_objects, .. }) = parse::rdma(line) {
            entries.push(RdmaEntry { device, hca_handles, hca_objects, ..Default::default() });
        }
        true
    })?;
    Ok(entries)
}

/// An entry for each size that the node has, with or without the controller.
fn read_huge_pages(files: &mut Files<'_>, node: &Node) -> Result<Vec<HugeTlbStat>, StatsError> {
    let mut of = |pagesize: &String| {
        let mut failcnt = 0;
        files.pairs(&format!("hugetlb.{pagesize}.events"), |key, value| {
            if key == "max" {
                failcnt = value;
            }
        })?;
        Ok(HugeTlbStat {
            current: files.number(&format!("hugetlb.{pagesize}.current"), 0)?,
            max: files.number(&format!("hugetlb.{pagesize}.max"), u64::MAX)?,
            pagesize: pagesize.clone(),
            failcnt,
            ..Default::default()
        })
    };
    node.huge_pages.iter().map(&mut of).collect()
}

/// None where the kernel does not account for pressure.
fn read_pressure(files: &mut Files<'_>, name: &str) -> Result<MessageField<PSIStats>, StatsError> {
    let mut found = MessageField::<PSIStats>::none();
    files.lines(name, |line| {
        let Some((kind, data)) = parse::pressure(line) else { return false };
        let stats = found.mut_or_insert_default();
        match kind {
            "some" => stats.some = MessageField::some(data),
            "full" => stats.full = MessageField::some(data),
            _ => {}
        }
        true
    })?;
    Ok(found)
}
