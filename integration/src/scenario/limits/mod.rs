//! Limits of containers that run, changed by what is attached to them: runc and crun, with both drivers of control groups; and what the
//! kernel then does with processes that want more.

mod enforced;
mod pages;
mod pods;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::capsulectl::{capsulectl, done, refused};
use super::ctr::{Container, OURS};
use super::reboot::{kill, shim_of};
use super::runtime::cgroups::group::Group;
use super::runtime::client::Client;
use super::sets::publish;
use super::world::{World, with_logs};
use crate::event::Reporter;
use crate::workspace::output_of;

const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];
const FILES: &str = "/tmp/limits";
const MIB: u64 = 1 << 20;
const READ: [&str; 10] = [
    "memory.max",
    "memory.high",
    "memory.low",
    "memory.swap.max",
    "pids.max",
    "cpu.max",
    "cpu.weight",
    "cpuset.cpus",
    "io.weight",
    "io.max",
];

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let mut world = World::start(true)?;
    reporter.must("an image and capsules are there", || {
        OURS.import()?;
        fs::create_dir_all(FILES).context("a folder")?;
        for label in ["one@1", "two@1", "two@2"] {
            publish(label, &[])?;
        }
        Ok(((), String::new()))
    })?;
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        reporter.check("on control groups of version 1 it is refused, and said why", refused_on_version_1);
        return world.stop();
    }
    for (binary, systemd) in [("runc", false), ("crun", false), ("runc", true), ("crun", true)] {
        let driver = if systemd { "systemd" } else { "files" };
        let case = format!("{binary} with {driver}: exact after each step, and as before at the end");
        reporter.check(&case, || exact(binary, systemd));
    }
    reporter.check("memory past a grant is the container's own end, and of no other", enforced::memory);
    reporter.check("a fork bomb stops at its cap, and its neighbour forks", enforced::forks);
    reporter.check("reading a capsule is slowed to its cap, and its neighbour's is not", enforced::reading);
    reporter.check("swap and huge pages are had as granted", pages::grants);
    reporter
        .check("what a pod's budget has not is refused, and nothing changes", || pods::budgets(&mut world));
    reporter.check("what the kernel has not is refused, and nothing changes", mistakes);
    reporter.check("limits are there again for the next task, also after the shim was killed", again);
    world.stop()
}

/// A container of a runtime and a driver.
fn start(id: &str, binary: &str, systemd: bool, options: &[&str]) -> Result<Confined> {
    let toml = format!("{FILES}/{id}.toml");
    fs::write(&toml, format!("BinaryName = {binary:?}\nSystemdCgroup = {systemd}\n")).context("options")?;
    let cgroup = format!("system.slice:capsule:{id}");
    let mut all = [&["--runtime-config-path", &toml], options].concat();
    if systemd {
        // crun speaks to systemd over the system's bus.
        output_of(Command::new("systemctl").args(["start", "dbus.socket"]))?;
        all.extend(["--cgroup", &cgroup]);
    }
    Confined::of(OURS.start(id, &all, &SLEEP)?)
}

/// A container and its control groups, the inner one first: crun with systemd has two.
struct Confined {
    container: Container,
    groups: Vec<PathBuf>,
}

impl Confined {
    fn of(container: Container) -> Result<Self> {
        let inner = Group::of(container.pid()?)?.directory("memory")?;
        let scope = inner.parent().filter(|parent| parent.extension().is_some_and(|e| e == "scope"));
        let groups = [&inner].into_iter().map(PathBuf::from).chain(scope.map(PathBuf::from)).collect();
        Ok(Self { container, groups })
    }

    fn id(&self) -> &str {
        &self.container.id
    }

    fn read(&self, file: &str) -> Result<String> {
        Ok(read(&self.groups[0], file))
    }

    /// Every limit of every group.
    fn all(&self) -> BTreeMap<String, String> {
        let of = |group: &PathBuf| {
            let group = group.clone();
            READ.map(|file| (format!("{} {file}", group.display()), read(&group, file)))
        };
        self.groups.iter().flat_map(of).collect()
    }

    /// Each of these in each group.
    fn expect(&self, when: &str, limits: &[(&str, &str)]) -> Result<()> {
        for group in &self.groups {
            for (file, value) in limits {
                let seen = read(group, file);
                ensure!(seen == *value, "{when}: {file} is {seen}, not {value}, in {}", group.display());
            }
        }
        Ok(())
    }

    /// Update of the Task API.
    fn update(&self, client: &Client, resources: &str) -> Result<()> {
        client.update_task(self.id(), resources).context("Update")
    }
}

/// What a file holds; what is not there holds nothing.
fn read(group: &Path, file: &str) -> String {
    fs::read_to_string(group.join(file)).unwrap_or_default().trim().to_owned()
}

fn refused_on_version_1() -> Result<String> {
    let container = OURS.start("box", &[], &SLEEP)?;
    let mounts = container.mounts()?;
    let line = refused(&["attach", "box", "one", "--cap", "pids.max=20"], &["version 1", "version 2"])?;
    ensure!(container.mounts()? == mounts, "something is mounted");
    container.remove()?;
    Ok(line)
}

fn reload() -> Result<()> {
    output_of(Command::new("systemctl").arg("daemon-reload")).map(drop)
}

const OWN: [&str; 6] = ["--memory-limit", "134217728", "--cpu-quota", "50000", "--cpu-period", "100000"];
const ONE: [&str; 9] = [
    "one",
    "--grant",
    "memory.max=64MiB",
    "--grant",
    "cpu.max=0.5cpus",
    "--cap",
    "pids.max=40",
    "--grant",
    "memory.low=8MiB",
];
const TWO: [&str; 13] = [
    "two@1",
    "--grant",
    "memory.max=32MiB",
    "--grant",
    "cpu.weight=50",
    "--cap",
    "pids.max=20",
    "--cap",
    "cpuset.cpus=0",
    "--cap",
    "memory.high=150MiB",
    "--cap",
    "io.max=store rbps=100M",
];

fn exact(binary: &str, systemd: bool) -> Result<String> {
    let id = format!("exact-{binary}-{}", if systemd { "systemd" } else { "files" });
    let (bin, client) = (start(&id, binary, systemd, &OWN)?, Client::connect()?);
    let before = bin.all();
    let attach = |what: &[&str]| done(&[&["attach", &id], what].concat());
    attach(&ONE)?;
    let low = ("memory.low", "8388608");
    bin.expect("one", &[("memory.max", "201326592"), ("cpu.max", "100000 100000"), ("pids.max", "40"), low])?;
    attach(&TWO)?;
    let both = [("memory.max", "234881024"), ("pids.max", "20"), ("cpuset.cpus", "0"), ("cpu.weight", "150")];
    bin.expect("both", &both)?;
    bin.expect("both", &[("memory.high", "157286400"), ("cpu.max", "100000 100000"), low])?;
    ensure!(bin.read("io.max")?.contains("rbps=104857600 wbps=max"), "io.max: {}", bin.read("io.max")?);

    let began = Instant::now();
    bin.update(&client, r#"{"memory": {"limit": 268435456}, "pids": {"limit": 30}}"#)?;
    let took = began.elapsed();
    let updated =
        [("memory.max", "369098752"), ("pids.max", "20"), ("cpuset.cpus", "0"), ("cpu.weight", "150")];
    bin.expect("update", &updated)?;
    bin.expect("update", &[("memory.high", "157286400"), ("cpu.max", "100000 100000"), low])?;
    if systemd {
        let held = bin.all();
        reload()?;
        ensure!(bin.all() == held, "daemon-reload: {:?} instead of {held:?}", bin.all());
    }
    // Behind the shim's back, by hand: the container's own limit from now on, once somebody looks.
    by_hand(bin.id(), binary, systemd, "25")?;
    done(&["ps", &id])?;
    bin.expect("by hand", &updated)?;

    // Whatever comes first goes first.
    done(&["detach", &id, "one"])?;
    bin.expect(
        "without one",
        &[("memory.max", "301989888"), ("cpu.max", "50000 100000"), ("pids.max", "20")],
    )?;
    done(&["upgrade", &id, "two@2"])?;
    done(&["detach", &id, "two"])?;
    let mut want = before;
    for (key, value) in &mut want {
        match key.rsplit_once(' ') {
            Some((_, "memory.max")) => "268435456".clone_into(value),
            Some((_, "pids.max")) => "25".clone_into(value),
            _ => {}
        }
    }
    same(&bin.all(), &want, "at the end")?;
    if systemd {
        reload()?;
        let mut now = bin.all();
        // systemd knows of a list that is no list only as one of all.
        for (key, value) in &mut now {
            if key.ends_with("cpuset.cpus") && *value == all_cpus()? {
                value.clear();
            }
        }
        same(&now, &want, "after a last daemon-reload")?;
    }
    bin.container.remove()?;
    Ok(format!("update took {took:?}"))
}

fn all_cpus() -> Result<String> {
    let text = fs::read_to_string("/sys/fs/cgroup/cpuset.cpus.effective").context("all CPUs")?;
    Ok(text.trim().to_owned())
}

/// Every limit of every group is as it should be.
fn same(seen: &BTreeMap<String, String>, want: &BTreeMap<String, String>, when: &str) -> Result<()> {
    for (file, value) in want {
        let found = &seen[file];
        ensure!(found == value, "{when}: {file} is {found:?}, not {value:?}");
    }
    Ok(())
}

fn by_hand(id: &str, binary: &str, systemd: bool, pids: &str) -> Result<()> {
    let root = format!("/run/containerd/{binary}/default");
    let root = if Path::new(&root).exists() { root } else { "/run/containerd/runc/default".to_owned() };
    let mut update = Command::new(binary);
    update.args(["--root", &root]);
    if systemd {
        update.arg("--systemd-cgroup");
    }
    output_of(update.args(["update", "--pids-limit", pids, id])).map(drop)
}

fn mistakes() -> Result<String> {
    let bin = start("wrong", "crun", false, &["--memory-limit", "134217728"])?;
    let (before, mounts) = (bin.all(), bin.container.mounts()?);
    let mut told = Vec::new();
    for (limit, words) in [
        (["--cap", "cpuset.cpus=4000"], &["cpuset.cpus", "4000"][..]),
        (["--cap", "memory.max=1MiB"], &["memory.max would become 1048576", "uses"]),
        (["--cap", "hugetlb.3MB.max=3M"], &["hugetlb.3MB.max"]),
        (["--cap", "io.max=9:250 rbps=1M"], &["9:250"]),
    ] {
        bin.container.sh("touch", "dd if=/dev/zero of=/dev/shm/held bs=1M count=4 2>/dev/null")?;
        let attach =
            [&["attach", "wrong", "one", "--grant", "pids.max=7", "--grant", "memory.max=1M"], &limit[..]];
        told.push(refused(&attach.concat(), words)?);
        ensure!(bin.all() == before && bin.container.mounts()? == mounts, "{limit:?} changed something");
    }
    bin.container.remove()?;
    Ok(told.join(" | "))
}

/// The next task of a container.
fn next(bin: Confined) -> Result<Confined> {
    bin.container.start_again()?;
    Confined::of(bin.container)
}

fn again() -> Result<String> {
    let bin = start("again", "runc", true, &["--memory-limit", "134217728"])?;
    done(&["attach", "again", "one", "--grant", "memory.max=64MiB", "--cap", "pids.max=40"])?;
    bin.container.kill("SIGKILL")?;
    let mut bin = next(bin)?;
    bin.expect("next task", &[("memory.max", "201326592"), ("pids.max", "40")])?;
    let mut seen = [0; 2];
    for round in 0..3_u64 {
        let caller =
            std::thread::spawn(|| capsulectl(&["attach", "again", "two@1", "--grant", "memory.max=32MiB"]));
        std::thread::sleep(Duration::from_millis(150 * round));
        kill(shim_of(&bin.container)?)?;
        caller.join().map_err(|_| anyhow::anyhow!("the caller's thread"))??;
        bin = next(bin)?;
        let is = done(&["ps", "again"])?.contains("two");
        let want = if is { "234881024" } else { "201326592" };
        bin.expect("after the shim", &[("memory.max", want), ("pids.max", "40")])?;
        seen[usize::from(is)] += 1;
        if is {
            done(&["detach", "again", "two"])?;
            bin.expect("two is gone", &[("memory.max", "201326592")])?;
        }
    }
    done(&["detach", "again", "one"])?;
    bin.expect("the end", &[("memory.max", "134217728")])?;
    bin.container.remove()?;
    Ok(format!("{} before, {} after", seen[0], seen[1]))
}
