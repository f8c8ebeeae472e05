//! Single lines and words of the control groups' files. Pure.

use containerd_shim::protos::{
    cgroups::metrics::{BlkIOEntry, RdmaEntry},
    cgroups_v2::metrics::{IOEntry, PSIData},
};

/// A count. One below zero is none, as containerd reads it: a count of a CPU that went away can be.
pub fn number(text: &str) -> Option<u64> {
    match text.strip_prefix('-') {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => Some(0),
        Some(_) => None,
        None => text.parse().ok(),
    }
}

/// A line of a pressure file, `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and its first word.
pub fn pressure(line: &str) -> Option<(&str, PSIData)> {
    let (kind, values) = line.split_once(' ')?;
    let mut data = PSIData::default();
    for pair in values.split_ascii_whitespace() {
        let (key, value) = pair.split_once('=')?;
        match key {
            "avg10" => data.avg10 = value.parse().ok()?,
            "avg60" => data.avg60 = value.parse().ok()?,
            "avg300" => data.avg300 = value.parse().ok()?,
            "total" => data.total = value.parse().ok()?,
            _ => {}
        }
    }
    Some((kind, data))
}

/// A line of `io.stat`: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`. None for a device that has no numbers, as
/// blk-cgroup writes for one without a disk, and for one that has counted nothing.
pub fn io(line: &str) -> Option<IOEntry> {
    let mut words = line.split_ascii_whitespace();
    let (major, minor) = device(words.next()?)?;
    let mut entry = IOEntry { major, minor, ..Default::default() };
    let mut counted = false;
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        counted = true;
        let Some(value) = number(value) else { continue };
        match key {
            "rbytes" => entry.rbytes = value,
            "wbytes" => entry.wbytes = value,
            "rios" => entry.rios = value,
            "wios" => entry.wios = value,
            _ => {}
        }
    }
    counted.then_some(entry)
}

/// A line of `rdma.current` or `rdma.max`: `mlx4_0 hca_handle=2 hca_object=max`.
pub fn rdma(line: &str) -> Option<RdmaEntry> {
    let mut words = line.split_ascii_whitespace();
    let mut entry = RdmaEntry { device: words.next()?.to_owned(), ..Default::default() };
    for word in words {
        let (key, value) = word.split_once('=')?;
        let value = if value == "max" { u32::MAX } else { value.parse().ok()? };
        match key {
            "hca_handle" => entry.hca_handles = value,
            "hca_object" => entry.hca_objects = value,
            _ => {}
        }
    }
    Some(entry)
}

/// A line of a `blkio` file: `8:0 Read 4096`, or without the operation. `Some(None)` for the total at the end.
pub fn blkio(line: &str, name_of: impl Fn(u64, u64) -> String) -> Option<Option<BlkIOEntry>> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let (at, op, value) = match words[..] {
        ["Total", _] => return Some(None),
        [at, value] => (at, "", value),
        [at, op, value] => (at, op, value),
        _ => return None,
    };
    let (major, minor) = device(at)?;
    let value = number(value)?;
    let (op, device) = (op.to_owned(), name_of(major, minor));
    Some(Some(BlkIOEntry { op, device, major, minor, value, ..Default::default() }))
}

/// A block device's name in `/proc/partitions`: `   8        0  500107608 sda`. None for its first two lines.
pub fn partition(line: &str) -> Option<((u64, u64), &str)> {
    let mut words = line.split_ascii_whitespace();
    let numbers = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some((numbers, words.nth(1)?))
}

/// The size of huge pages as the controller's files have it (`hugetlb_cgroup.c`), from the name of a directory in
/// `/sys/kernel/mm/hugepages`: `hugepages-2048kB` is `2MB`.
pub fn huge_page_size(directory: &str) -> Option<String> {
    let kilobytes: u64 = directory.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    Some(match kilobytes {
        0x10_0000.. => format!("{}GB", kilobytes >> 20),
        0x400.. => format!("{}MB", kilobytes >> 10),
        _ => format!("{kilobytes}KB"),
    })
}

fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
