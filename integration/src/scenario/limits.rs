//! Limits of containers that run, changed by what is attached to them: runc and crun, with both drivers of control groups; and what the
//! kernel then does with processes that want more.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use capsule_proto::containerd::services::tasks::v1::UpdateTaskRequest;
use prost_types::Any;

use super::capsulectl::{capsulectl, done, refused};
use super::ctr::{Container, OURS, ctr};
use super::reboot::{kill, shim_of};
use super::runtime::cgroups::group::Group;
use super::runtime::client::{Client, request};
use super::sets::publish;
use super::world::{World, until, with_logs};
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
    let world = World::start(true)?;
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
    reporter.check("memory past a grant is the container's own end, and of no other", memory);
    reporter.check("a fork bomb stops at its cap, and its neighbour forks", forks);
    reporter.check("reading is slowed to its cap", reading);
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
        let resources = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
            value: resources.as_bytes().to_vec(),
        };
        let update = UpdateTaskRequest {
            container_id: self.id().to_owned(),
            resources: Some(resources),
            ..Default::default()
        };
        client.call(client.tasks().update(request(update))).context("Update").map(drop)
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

/// How often the kernel killed for memory in a group.
fn kills(bin: &Confined) -> Result<u64> {
    let events = bin.read("memory.events")?;
    let line = events.lines().find_map(|line| line.strip_prefix("oom_kill ")).context("oom_kill")?;
    line.parse().context("oom_kill")
}

/// Takes so much memory at once.
fn take(bin: &Confined, exec: &str, mib: u64) -> Result<i32> {
    let script = format!("dd if=/dev/zero of=/dev/null bs={mib}M count=1");
    Ok(bin.container.exec(exec, &["/bin/sh", "-c", &script], b"")?.code)
}

fn memory() -> Result<String> {
    let limit = (48 * MIB).to_string();
    let bin = start("eats", "runc", true, &["--memory-limit", &limit])?;
    let beside = start("beside", "crun", false, &["--memory-limit", &limit])?;
    ensure!(take(&bin, "before", 80)? != 0 && kills(&bin)? > 0, "80 MiB fit in 48");
    done(&["attach", "eats", "one", "--grant", "memory.max=64MiB"])?;
    let killed = kills(&bin)?;
    ensure!(take(&bin, "within", 80)? == 0 && kills(&bin)? == killed, "80 MiB do not fit in 112");
    ensure!(take(&bin, "past", 150)? != 0 && kills(&bin)? > killed, "150 MiB fit in 112");
    until("that is told of the attachment", || {
        let told = done(&["events", "--all", "--no-follow", "--container", "eats"])?;
        Ok(told.lines().any(|line| line.contains("out-of-memory") && line.contains("one")))
    })?;
    let killed = kills(&bin)?;
    bin.container.wait_for("RUNNING")?;
    ensure!(kills(&beside)? == 0 && take(&beside, "small", 20)? == 0, "the neighbour was hurt");

    // What is in use is not taken.
    bin.container.sh("hold", "dd if=/dev/zero of=/dev/shm/held bs=1M count=56 2>/dev/null")?;
    let line = refused(&["detach", "eats", "one"], &["memory.max", "50331648", "lazy"])?;
    bin.expect("refused", &[("memory.max", "117440512")])?;
    bin.container.sh("still", "cat /opt/one/version")?;
    // Caches are.
    bin.container.sh(
        "cache",
        "rm /dev/shm/held; dd if=/dev/zero of=/cache bs=1M count=60 2>/dev/null; sync; cat /cache > /dev/null",
    )?;
    let used: u64 = bin.read("memory.current")?.parse().context("memory.current")?;
    done(&["detach", "eats", "one"])?;
    bin.expect("detached", &[("memory.max", limit.as_str())])?;
    ensure!(kills(&bin)? == killed, "a detach killed");
    bin.container.remove()?;
    beside.container.remove()?;
    Ok(format!("{line} | detached with {} MiB in use before", used / MIB))
}

fn forks() -> Result<String> {
    let (bin, beside) = (start("bomb", "crun", true, &[])?, start("beside", "runc", false, &[])?);
    done(&["attach", "bomb", "one", "--cap", "pids.max=20"])?;
    let bomb = "i=0; while [ $i -lt 60 ]; do sleep 500 & i=$((i+1)); done; wait";
    bin.container.spawn("bomb", &["/bin/sh", "-c", bomb])?;
    until("no more processes fit", || Ok(bin.read("pids.events")?.trim() != "max 0"))?;
    let count: u64 = bin.read("pids.current")?.parse().context("pids.current")?;
    ensure!(count <= 20, "{count} processes");
    beside.container.sh("fork", "for i in 1 2 3 4 5 6 7 8 9; do sleep 0 & done; wait")?;
    bin.container.remove()?;
    beside.container.remove()?;
    Ok(format!("{count} processes"))
}

/// How long a file takes to be read that no cache has, by the container's clock: to start an exec takes longer.
fn time_to_read(bin: &Confined, exec: &str) -> Result<Duration> {
    fs::write("/proc/sys/vm/drop_caches", "3").context("drop caches")?;
    let script = "read a x < /proc/uptime; cat /file > /dev/null; read b x < /proc/uptime; echo $a $b";
    let said = bin.container.sh(exec, script)?;
    let mut times = said.split_ascii_whitespace().map(str::parse::<f64>);
    let (Some(Ok(began)), Some(Ok(ended))) = (times.next(), times.next()) else { bail!("{said:?}") };
    Duration::try_from_secs_f64(ended - began).context("a time")
}

fn reading() -> Result<String> {
    let bin = start("reads", "runc", false, &[])?;
    bin.container.sh("write", "dd if=/dev/urandom of=/file bs=1M count=16 2>/dev/null; sync")?;
    let free = time_to_read(&bin, "free")?;
    done(&["attach", "reads", "one", "--cap", "io.max=store rbps=2M"])?;
    let capped = time_to_read(&bin, "capped")?;
    done(&["detach", "reads", "one"])?;
    let again = time_to_read(&bin, "again")?;
    let said = format!("16 MiB: {free:.1?}, at 2 MiB/s {capped:.1?}, then {again:.1?}");
    ensure!(capped > Duration::from_secs(6) && capped < Duration::from_secs(12), "{said}");
    ensure!(capped > 2 * free && capped > 2 * again, "{said}");
    ensure!(bin.read("io.max")?.is_empty(), "io.max: {}", bin.read("io.max")?);
    bin.container.remove()?;
    Ok(said)
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

/// The next task of a container whose task has ended; containerd removes that of a shim that is killed.
fn next(bin: Confined) -> Result<Confined> {
    let has_ended = || Ok(bin.container.task()?.is_none_or(|(_, status)| status == "STOPPED"));
    until("its task has ended", has_ended)?;
    if bin.container.task()?.is_some() {
        ctr(&["task", "rm", bin.id()])?;
    }
    ctr(&["task", "start", "-d", "--null-io", bin.id()])?.success("ctr task start")?;
    bin.container.wait_for("RUNNING")?;
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
