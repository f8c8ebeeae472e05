//! Control groups as kernels wrote them: Linux 6.12 (version 2) and 6.18 (version 1).

use std::{collections::HashMap, fs};

use containerd_shim::protos::{cgroups::metrics as m1, cgroups_v2::metrics as m2};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const V2: &[(&str, &str)] = &[
    ("cgroup.controllers", "cpuset cpu io memory hugetlb pids rdma misc\n"),
    ("pids.current", "3\n"),
    ("pids.max", "max\n"),
    (
        "cpu.stat",
        "usage_usec 184421\nuser_usec 103214\nsystem_usec 81207\nnice_usec 0\ncore_sched.force_idle_usec 0\nnr_periods 12\n\
         nr_throttled 5\nthrottled_usec 40213\nnr_bursts 1\nburst_usec 77\n",
    ),
    (
        "cpu.pressure",
        "some avg10=1.50 avg60=0.25 avg300=0.07 total=51234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n",
    ),
    ("memory.current", "2539520\n"),
    ("memory.max", "67108864\n"),
    ("memory.peak", "66584576\n"),
    ("memory.swap.current", "4096\n"),
    ("memory.swap.max", "max\n"),
    ("memory.swap.peak", "8192\n"),
    (
        "memory.stat",
        "anon 57344\nfile 1\nkernel 442368\nkernel_stack 16384\npagetables 53248\nsec_pagetables 0\npercpu 1344\nsock 2\n\
         vmalloc 0\nshmem 3\nzswap 0\nfile_mapped 4\nfile_dirty 5\nfile_writeback 6\nswapcached 0\nanon_thp 7\nfile_thp 0\n\
         inactive_anon 53248\nactive_anon 4096\ninactive_file 8\nactive_file 9\nunevictable 10\nslab_reclaimable 196272\n\
         slab_unreclaimable 130608\nslab 326880\nworkingset_refault_anon 0\nworkingset_refault_file 11\npgfault 900\n\
         pgmajfault 12\npgrefill 13\npgscan 14\npgsteal 15\npgactivate 16\npgdeactivate 17\npglazyfree 18\npglazyfreed 19\n\
         thp_fault_alloc 20\nthp_collapse_alloc 21\n",
    ),
    ("memory.events", "low 1\nhigh 2\nmax 34\noom 5\noom_kill 6\noom_group_kill 7\n"),
    ("memory.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"),
    (
        "io.stat",
        "254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n7:1 \n8:16 rbytes=1 wbytes=0 rios=1 wios=0\n",
    ),
    (
        "io.pressure",
        "some avg10=0.00 avg60=0.01 avg300=0.00 total=321\nfull avg10=0.00 avg60=0.01 avg300=0.00 total=300\n",
    ),
    ("rdma.current", "mlx4_0 hca_handle=2 hca_object=2000\n"),
    ("rdma.max", "mlx4_0 hca_handle=max hca_object=3000\n"),
    ("hugetlb.2MB.current", "2097152\n"),
    ("hugetlb.2MB.max", "max\n"),
    ("hugetlb.2MB.events", "max 3\n"),
];

const V1: &[(&str, &str)] = &[
    ("pids.current", "1\n"),
    ("pids.max", "max\n"),
    ("cpu.stat", "nr_periods 12\nnr_throttled 3\nthrottled_time 4000\nnr_bursts 0\nburst_time 0\n"),
    ("cpuacct.stat", "user 12\nsystem 6\n"),
    ("cpuacct.usage", "187718688\n"),
    ("cpuacct.usage_percpu", "7995241 179723447 \n"),
    ("memory.usage_in_bytes", "503808\n"),
    ("memory.max_usage_in_bytes", "3047424\n"),
    ("memory.failcnt", "2\n"),
    ("memory.limit_in_bytes", "67108864\n"),
    ("memory.memsw.usage_in_bytes", "585728\n"),
    ("memory.memsw.limit_in_bytes", "9223372036854771712\n"),
    ("memory.kmem.usage_in_bytes", "438272\n"),
    ("memory.kmem.tcp.limit_in_bytes", "9223372036854771712\n"),
    (
        "memory.stat",
        "cache 1\nrss 57344\nrss_huge 2\nshmem 9\nmapped_file 3\ndirty 4\nwriteback 5\nworkingset_refault_anon 0\nswap 0\n\
         pgpgin 591\npgpgout 577\npgfault 908\npgmajfault 6\ninactive_anon 53248\nactive_anon 4096\ninactive_file 7\n\
         active_file 8\nunevictable 10\nhierarchical_memory_limit 67108864\nhierarchical_memsw_limit 9223372036854771712\n\
         total_cache 11\ntotal_rss 57344\ntotal_rss_huge 12\ntotal_mapped_file 13\ntotal_dirty 14\ntotal_writeback 15\n\
         total_pgpgin 591\ntotal_pgpgout 577\ntotal_pgfault 908\ntotal_pgmajfault 16\ntotal_inactive_anon 53248\n\
         total_active_anon 4096\ntotal_inactive_file 17\ntotal_active_file 18\ntotal_unevictable 19\n",
    ),
    ("memory.oom_control", "oom_kill_disable 0\nunder_oom 1\noom_kill 4\n"),
    ("blkio.throttle.io_serviced", "254:0 Read 14\n254:0 Write 3\n254:0 Total 17\n99:1 Read 1\nTotal 17\n"),
    ("blkio.throttle.io_service_bytes", "254:0 Read 57344\nTotal 57344\n"),
    ("hugetlb.2MB.usage_in_bytes", "2097152\n"),
    ("hugetlb.2MB.max_usage_in_bytes", "4194304\n"),
    ("hugetlb.2MB.failcnt", "1\n"),
    ("rdma.current", "mlx4_0 hca_handle=2 hca_object=2000\n"),
    ("rdma.max", "mlx4_0 hca_handle=max hca_object=3000\n"),
];

fn group(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn node() -> Node {
    let partitions =
        "major minor  #blocks  name\n\n 254        0  268435456 vda\n   8       16          1 sdb\n";
    Node { partitions: partitions.to_owned(), huge_pages: vec!["2MB".to_owned(), "1GB".to_owned()] }
}

/// The directory of every controller of version 1, which are one here.
fn all(dir: &TempDir) -> Vec<(&'static str, PathBuf)> {
    let names = ["blkio", "cpu", "cpuacct", "hugetlb", "memory", "pids", "rdma"];
    names.into_iter().map(|name| (name, dir.path().to_owned())).collect()
}

#[test]
fn version_2_is_complete() {
    let dir = group(V2);
    let metrics = v2::read(dir.path(), &node()).unwrap();
    assert_eq!((metrics.pids.current, metrics.pids.limit), (3, u64::MAX));
    let cpu = &metrics.cpu;
    assert_eq!((cpu.usage_usec, cpu.user_usec, cpu.system_usec), (184_421, 103_214, 81_207));
    assert_eq!((cpu.nr_periods, cpu.nr_throttled, cpu.throttled_usec), (12, 5, 40_213));
    assert_eq!((cpu.nr_bursts, cpu.burst_usec), (1, 77));
    assert_eq!((cpu.psi.some.avg10, cpu.psi.some.avg60, cpu.psi.some.avg300), (1.5, 0.25, 0.07));
    assert_eq!((cpu.psi.some.total, cpu.psi.full.total), (51_234, 9));
    let memory = &metrics.memory;
    assert_eq!((memory.usage, memory.usage_limit, memory.max_usage), (2_539_520, 67_108_864, 66_584_576));
    assert_eq!((memory.swap_usage, memory.swap_limit, memory.swap_max_usage), (4096, u64::MAX, 8192));
    assert!(memory.psi.some.is_some() && memory.psi.full.is_none());
    // The numbers in the file are distinct, so their sum shows that each went somewhere; the rest are named below.
    assert_eq!((memory.anon, memory.slab, memory.pgfault), (57_344, 326_880, 900));
    assert_eq!((memory.kernel_stack, memory.inactive_anon, memory.active_anon), (16_384, 53_248, 4096));
    assert_eq!((memory.slab_reclaimable, memory.slab_unreclaimable), (196_272, 130_608));
    let counted = [
        memory.file,
        memory.sock,
        memory.shmem,
        memory.file_mapped,
        memory.file_dirty,
        memory.file_writeback,
        memory.anon_thp,
        memory.inactive_file,
        memory.active_file,
        memory.unevictable,
    ];
    assert_eq!(counted, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    let paging = [
        memory.pgmajfault,
        memory.pgrefill,
        memory.pgscan,
        memory.pgsteal,
        memory.pgactivate,
        memory.pgdeactivate,
        memory.pglazyfree,
        memory.pglazyfreed,
        memory.thp_fault_alloc,
        memory.thp_collapse_alloc,
    ];
    assert_eq!(paging, [12, 13, 14, 15, 16, 17, 18, 19, 20, 21]);
    let events = &metrics.memory_events;
    let events = [events.low, events.high, events.max, events.oom, events.oom_kill, events.oom_group_kill];
    assert_eq!(events, [1, 2, 34, 5, 6, 7]);
}

#[test]
fn version_2_has_devices_and_huge_pages() {
    let dir = group(V2);
    let metrics = v2::read(dir.path(), &node()).unwrap();
    let io = metrics.io.usage.iter().map(|e| [e.major, e.minor, e.rbytes, e.wbytes, e.rios, e.wios]);
    assert_eq!(io.collect::<Vec<_>>(), [[254, 0, 4096, 8192, 1, 2], [8, 16, 1, 0, 1, 0]]);
    assert_eq!(metrics.io.psi.full.total, 300);
    let rdma = |entries: &[m2::RdmaEntry]| {
        entries.iter().map(|e| (e.device.clone(), e.hca_handles, e.hca_objects)).collect::<Vec<_>>()
    };
    assert_eq!(rdma(&metrics.rdma.current), [("mlx4_0".to_owned(), 2, 2000)]);
    assert_eq!(rdma(&metrics.rdma.limit), [("mlx4_0".to_owned(), u32::MAX, 3000)]);
    let pages = metrics.hugetlb.iter().map(|e| (e.pagesize.as_str(), e.current, e.max, e.failcnt));
    assert_eq!(pages.collect::<Vec<_>>(), [("2MB", 2_097_152, u64::MAX, 3), ("1GB", 0, 0, 0)]);
}

#[test]
fn version_2_without_controllers_has_empty_parts() {
    let dir = group(&[("cgroup.controllers", "\n")]);
    let metrics = v2::read(dir.path(), &Node::default()).unwrap();
    let expected = m2::Metrics {
        pids: Some(m2::PidsStat::default()).into(),
        cpu: Some(m2::CPUStat::default()).into(),
        memory: Some(m2::MemoryStat::default()).into(),
        io: Some(m2::IOStat::default()).into(),
        rdma: Some(m2::RdmaStat::default()).into(),
        ..Default::default()
    };
    assert_eq!(metrics, expected);
    let gone = dir.path().join("gone");
    assert!(matches!(v2::read(&gone, &Node::default()), Err(StatsError::Gone(path)) if path == gone));
}

#[test]
fn version_1_is_complete() {
    let dir = group(V1);
    let metrics = v1::read(&all(&dir), &node()).unwrap();
    assert_eq!((metrics.pids.current, metrics.pids.limit), (1, 0));
    let usage = &metrics.cpu.usage;
    assert_eq!((usage.total, usage.user, usage.kernel), (187_718_688, 120_000_000, 60_000_000));
    assert_eq!(usage.per_cpu, [7_995_241, 179_723_447]);
    let throttling = &metrics.cpu.throttling;
    assert_eq!((throttling.periods, throttling.throttled_periods, throttling.throttled_time), (12, 3, 4000));
    let memory = &metrics.memory;
    let entry = |entry: &m1::MemoryEntry| [entry.usage, entry.max, entry.failcnt, entry.limit];
    assert_eq!(entry(&memory.usage), [503_808, 3_047_424, 2, 67_108_864]);
    assert_eq!(entry(&memory.swap), [585_728, 0, 0, 9_223_372_036_854_771_712]);
    assert_eq!(entry(&memory.kernel), [438_272, 0, 0, 0]);
    assert_eq!(entry(&memory.kernel_tcp), [0, 0, 0, 9_223_372_036_854_771_712]);
    assert_eq!((memory.rss, memory.pg_pg_in, memory.pg_pg_out, memory.pg_fault), (57_344, 591, 577, 908));
    assert_eq!((memory.inactive_anon, memory.active_anon), (53_248, 4096));
    assert_eq!(memory.hierarchical_memory_limit, 67_108_864);
    assert_eq!(memory.hierarchical_swap_limit, 9_223_372_036_854_771_712);
    let own = [
        memory.cache,
        memory.rss_huge,
        memory.mapped_file,
        memory.dirty,
        memory.writeback,
        memory.pg_maj_fault,
        memory.inactive_file,
        memory.active_file,
        memory.unevictable,
    ];
    assert_eq!(own, [1, 2, 3, 4, 5, 6, 7, 8, 10]);
    let total = [
        memory.total_cache,
        memory.total_rss_huge,
        memory.total_mapped_file,
        memory.total_dirty,
        memory.total_writeback,
        memory.total_pg_maj_fault,
        memory.total_inactive_file,
        memory.total_active_file,
        memory.total_unevictable,
    ];
    assert_eq!(total, [11, 12, 13, 14, 15, 16, 17, 18, 19]);
    let control = &metrics.memory_oom_control;
    assert_eq!((control.oom_kill_disable, control.under_oom, control.oom_kill), (0, 1, 4));
}

#[test]
fn version_1_has_devices_and_huge_pages() {
    let dir = group(V1);
    let metrics = v1::read(&all(&dir), &node()).unwrap();
    let serviced = metrics.blkio.io_serviced_recursive.iter();
    let serviced: Vec<_> =
        serviced.map(|e| (e.device.as_str(), e.major, e.minor, e.op.as_str(), e.value)).collect();
    assert_eq!(
        serviced,
        [
            ("/dev/vda", 254, 0, "Read", 14),
            ("/dev/vda", 254, 0, "Write", 3),
            ("/dev/vda", 254, 0, "Total", 17),
            ("", 99, 1, "Read", 1),
        ]
    );
    assert_eq!(metrics.blkio.io_service_bytes_recursive.len(), 1);
    let pages = metrics.hugetlb.iter().map(|e| (e.pagesize.as_str(), e.usage, e.max, e.failcnt));
    assert_eq!(pages.collect::<Vec<_>>(), [("1GB", 0, 0, 0), ("2MB", 2_097_152, 4_194_304, 1)]);
    assert_eq!((metrics.rdma.current.len(), metrics.rdma.limit[0].hca_handles), (1, u32::MAX));
    // A disk scheduler that counts comes first.
    fs::write(dir.path().join("blkio.io_serviced_recursive"), "8:16 Read 5\nTotal 5\n").unwrap();
    fs::write(dir.path().join("blkio.sectors_recursive"), "8:16 77\n").unwrap();
    let blkio = v1::read(&all(&dir), &node()).unwrap().blkio.unwrap();
    assert_eq!(blkio.io_serviced_recursive[0].value, 5);
    let sectors = &blkio.sectors_recursive[0];
    assert_eq!((sectors.device.as_str(), sectors.op.as_str(), sectors.value), ("/dev/sdb", "", 77));
}

#[test]
fn version_1_that_is_gone_has_its_cpu_part_alone() {
    let gone: Vec<_> = all(&group(&[]));
    let metrics = v1::read(&gone, &node()).unwrap();
    assert!(metrics.cpu.usage.is_some() && metrics.cpu.throttling.is_some());
    assert!(metrics.memory.is_none() && metrics.pids.is_none() && metrics.hugetlb.is_empty());
}

#[test]
fn a_number_that_is_none_is_an_error_that_names_it() {
    let dir = group(&[("memory.current", "many\n")]);
    let error = v2::read(dir.path(), &Node::default()).unwrap_err();
    let expected = format!("cannot understand the line \"many\" of {}/memory.current", dir.path().display());
    assert_eq!(error.to_string(), expected);
}

#[test]
fn words_become_numbers_as_containerd_reads_them() {
    for (text, number) in [
        ("0", Some(0)),
        ("18446744073709551615", Some(u64::MAX)),
        ("18446744073709551616", None),
        ("-1", Some(0)),
        ("-99999999999999999999", Some(0)),
        ("-", None),
        ("max", None),
        ("", None),
    ] {
        assert_eq!(parse::number(text), number, "{text:?}");
    }
    for (directory, size) in [
        ("hugepages-64kB", Some("64KB")),
        ("hugepages-2048kB", Some("2MB")),
        ("hugepages-1048576kB", Some("1GB")),
        ("hugepages-2M", None),
        ("2048kB", None),
    ] {
        assert_eq!(parse::huge_page_size(directory).as_deref(), size, "{directory:?}");
    }
}

proptest! {
    /// Whatever a kernel writes: an answer or an error, and only numbers that are there.
    #[test]
    fn no_line_is_too_strange(name in 0..V2.len(), text in "[ -~\n]{0,80}") {
        let dir = group(&[(V2[name].0, &text)]);
        if let Ok(metrics) = v2::read(dir.path(), &node()) {
            let words: HashMap<&str, ()> = text.split(|c: char| !c.is_ascii_digit()).map(|w| (w, ())).collect();
            for entry in &metrics.io.usage {
                prop_assert!(entry.rbytes == 0 || words.keys().any(|w| w.parse() == Ok(entry.rbytes)));
            }
        }
        let dir = group(&[(V1[name % V1.len()].0, &text)]);
        let _ = v1::read(&all(&dir), &node());
    }

    #[test]
    fn devices_are_read_as_they_are_written(major: u64, minor: u64, rbytes: u64, wbytes: u64, rios: u64, wios: u64) {
        let line = format!("{major}:{minor} rbytes={rbytes} wbytes={wbytes} rios={rios} wios={wios} cost.usage=1");
        let expected = m2::IOEntry { major, minor, rbytes, wbytes, rios, wios, ..Default::default() };
        prop_assert_eq!(parse::io(&line), Some(expected));
    }
}
