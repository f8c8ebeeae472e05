//! What few nodes have and the metrics tell of: huge pages and RDMA devices, on a machine that is given some.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::group::Group;
use super::message::{all, number};
use super::stats::metrics;
use crate::scenario::runtime::bed::{Bed, SLEEP};
use crate::scenario::runtime::task::{Stdio, Task};
use crate::scenario::runtime::{Case, Need};
use crate::workspace::output_of;

/// The case.
pub const CASES: &[Case] =
    &[Case::new("version 2: huge pages and RDMA devices are what the kernel says", counted)
        .needs(&[Need::UnifiedCgroups, Need::Systemd])];

const PAGE: u64 = 2 << 20;
const DEVICE: &str = "capsule0";

fn counted(bed: &Bed) -> Result<String> {
    give_machine()?;
    let mount = "type=hugetlbfs,src=hugetlbfs,dst=/huge,options=rw";
    let task = Task::container(bed, "devices", &["--mount", mount], &SLEEP)?;
    let group = Group::of(task.create(&Stdio::default())?)?;
    task.start("")?;
    let set = |file: &str, text: &str| {
        let path = group.directory("hugetlb")?.join(file);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    set("hugetlb.2MB.max", &PAGE.to_string())?;
    set("rdma.max", &format!("{DEVICE} hca_handle=3"))?;
    // The second page is over the limit.
    let take = "fallocate -l 2097152 /huge/one && ! fallocate -l 2097152 /huge/two 2>/dev/null";
    task.run_exec("e1", &Stdio::default(), &["/bin/sh", "-c", take])?;
    ensure!(task.wait("e1")?.exit_status == 0, "the container got no huge page, or two");
    task.delete_exec("e1")?;
    let metrics = metrics(bed, &task)?.context("no metrics")?.value;
    let told = pages(&metrics)?;
    let read = |file: &str| group.read("hugetlb", file);
    let fails = read("hugetlb.2MB.events")?.trim_start_matches("max ").parse().context("events")?;
    ensure!(read("hugetlb.2MB.current")? == PAGE.to_string() && fails > 0, "{fails} refused");
    // The library that containerd 2.1 has does not read how many were refused.
    let expected = [PAGE, PAGE, if bed.is_reference() { 0 } else { fails }];
    ensure!(told == expected, "{told:?} instead of {expected:?}");
    let told = devices(&metrics)?;
    let expected = [(DEVICE.to_owned(), 3, u64::from(u32::MAX))];
    ensure!(told == expected, "{told:?}, not {}", read("rdma.max")?);
    task.remove().map(|()| format!("{fails} pages refused; {told:?}"))
}

/// Some huge pages, and an RDMA device of software.
fn give_machine() -> Result<()> {
    fs::write("/proc/sys/vm/nr_hugepages", "8").context("ask for huge pages")?;
    if Path::new("/sys/class/infiniband").join(DEVICE).exists() {
        return Ok(());
    }
    output_of(Command::new("modprobe").arg("rdma_rxe"))?;
    output_of(Command::new("ip").args(["link", "add", "rdma0", "type", "dummy"]))?;
    output_of(Command::new("ip").args(["link", "set", "rdma0", "up"]))?;
    let link = ["link", "add", DEVICE, "type", "rxe", "netdev", "rdma0"];
    output_of(Command::new("rdma").args(link)).map(drop)
}

/// What is used of the pages of 2 MiB, the limit, and how often it was met.
fn pages(metrics: &[u8]) -> Result<[u64; 3]> {
    for entry in all(metrics, 7)? {
        if all(entry, 3)? == [b"2MB"] {
            return Ok([number(entry, &[1])?, number(entry, &[2])?, number(entry, &[4])?]);
        }
    }
    Ok([0; 3])
}

/// The limits of RDMA devices: the name, of handles, of objects.
fn devices(metrics: &[u8]) -> Result<Vec<(String, u64, u64)>> {
    let rdma = all(metrics, 5)?.last().copied().unwrap_or_default();
    let told = |entry: &[u8]| {
        let name = all(entry, 1)?.last().copied().unwrap_or_default();
        Ok((String::from_utf8_lossy(name).into_owned(), number(entry, &[2])?, number(entry, &[3])?))
    };
    all(rdma, 2)?.into_iter().map(told).collect()
}
