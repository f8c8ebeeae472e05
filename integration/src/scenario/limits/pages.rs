//! Swap and huge pages, of which most nodes have none: on a machine that is given some.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::enforced::take;
use super::{Confined, MIB, start};
use crate::scenario::capsulectl::done;
use crate::scenario::runtime::client::Client;
use crate::scenario::world::until;
use crate::workspace::output_of;

const SWAP: &str = "/dev/zram0";

/// What is granted of either is had, and not more; and what an update says of it in between is the container's own.
pub fn grants() -> Result<String> {
    give_machine()?;
    let mount = "type=hugetlbfs,src=hugetlbfs,dst=/huge,options=rw";
    let bin = start("pages", "crun", false, &["--memory-limit", "50331648", "--mount", mount])?;
    let said = swap(&bin).and_then(|swap| Ok(format!("{swap}; {}", huge(&bin)?)));
    bin.container.remove()?;
    output_of(Command::new("swapoff").arg(SWAP))?;
    said
}

fn give_machine() -> Result<()> {
    for (file, value) in [("drop_caches", "3"), ("compact_memory", "1"), ("nr_hugepages", "8")] {
        fs::write(format!("/proc/sys/vm/{file}"), value).with_context(|| format!("ask for {file}"))?;
    }
    let pages = fs::read_to_string("/proc/sys/vm/nr_hugepages").context("nr_hugepages")?;
    ensure!(pages.trim() == "8", "the machine has {} huge pages, not 8", pages.trim());
    if !Path::new(SWAP).exists() {
        output_of(Command::new("modprobe").args(["zram", "num_devices=1"]))?;
    }
    fs::write("/sys/block/zram0/disksize", "256M").context("the size of a swap")?;
    output_of(Command::new("mkswap").arg(SWAP))?;
    output_of(Command::new("swapon").arg(SWAP)).map(drop)
}

fn swap(bin: &Confined) -> Result<String> {
    let client = Client::connect()?;
    // None of its own.
    bin.update(&client, r#"{"memory": {"limit": 50331648, "swap": 50331648}}"#)?;
    bin.expect("none", &[("memory.swap.max", "0")])?;
    ensure!(take(bin, "none", 80)? != 0, "80 MiB fit in 48 without swap");
    done(&["attach", bin.id(), "one", "--grant", "memory.swap.max=64MiB"])?;
    bin.expect("granted", &[("memory.swap.max", "67108864"), ("memory.max", "50331648")])?;
    ensure!(take(bin, "within", 80)? == 0, "80 MiB do not fit in 48 and 64 of swap");
    let most: u64 = bin.read("memory.swap.peak")?.parse().context("memory.swap.peak")?;
    ensure!(most > 0 && most <= 64 * MIB, "{most} bytes of swap");
    ensure!(take(bin, "past", 160)? != 0, "160 MiB fit in 48 and 64 of swap");
    bin.update(&client, r#"{"memory": {"limit": 50331648, "swap": 58720256}}"#)?;
    bin.expect("updated", &[("memory.swap.max", "75497472")])?;
    done(&["detach", bin.id(), "one"])?;
    bin.expect("detached", &[("memory.swap.max", "8388608"), ("memory.max", "50331648")])?;
    Ok(format!("{} MiB of swap used", most / MIB))
}

fn huge(bin: &Confined) -> Result<String> {
    // How many pages of 2 MiB it gets.
    let pages = |exec: &str| -> Result<String> {
        let script = "n=0; while [ $n -lt 6 ] && fallocate -l 2097152 /huge/$n 2>/dev/null; do n=$((n+1)); done; rm /huge/*; echo $n";
        Ok(bin.container.sh(exec, script)?.trim().to_owned())
    };
    Client::connect().and_then(|client| {
        bin.update(&client, r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#)
    })?;
    bin.expect("own", &[("hugetlb.2MB.max", "4194304")])?;
    let own = pages("own")?;
    done(&["attach", bin.id(), "two@1", "--grant", "hugetlb.2MB.max=2MiB"])?;
    bin.expect("granted", &[("hugetlb.2MB.max", "6291456")])?;
    let granted = pages("granted")?;
    Client::connect().and_then(|client| {
        bin.update(&client, r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 2097152}]}"#)
    })?;
    bin.expect("updated", &[("hugetlb.2MB.max", "4194304")])?;
    done(&["attach", bin.id(), "one", "--cap", "hugetlb.2MB.max=0"])?;
    let capped = pages("capped")?;
    done(&["detach", bin.id(), "one"])?;
    done(&["detach", bin.id(), "two"])?;
    bin.expect("detached", &[("hugetlb.2MB.max", "2097152")])?;
    until("no huge page is in use", || Ok(bin.read("hugetlb.2MB.current")? == "0"))?;
    let said = [own.as_str(), &granted, &capped];
    ensure!(said == ["2", "3", "0"], "{said:?} huge pages");
    Ok(format!("{} huge pages", said.join(", ")))
}
