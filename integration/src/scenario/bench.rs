//! What attach, upgrade and detach cost, beside their alternatives, all in one run and in turns, so that whatever else
//! the machine does hits all of them alike.
//!
//! The bare system calls are those that any implementation must make: a detached overlay is built and moved into the
//! container's mount namespace. They are timed on a thread that is in that namespace already, calls only.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use overlayfs_utils::{
    ContainerPath, DetachedMount, LayerDir, LayersBy, Lower, MountId, OverlayPlan, PinnedTask, Unmounted,
    attach, in_mount_namespace, swap, unmount,
};
use serde_json::json;

use super::api::Api;
use super::capsulectl::{publish, tzdata};
use super::ctr::{Container, OURS, REFERENCE, ctr, run as run_program};
use super::world::{World, send_logs};
use crate::event::Reporter;
use crate::images::Image;

const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];
/// Where the bare system calls mount, in the container.
const BARE: &str = "/srv/bare";

/// How often each is done.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    /// Attach, upgrade and detach, through the API and bare.
    pub operations: usize,
    /// The container created anew.
    pub recreations: usize,
    /// `crun mounts add`.
    pub crun: usize,
}

/// Named times, in the order they were first measured.
#[derive(Debug, Default)]
struct Times(Vec<(&'static str, Vec<Duration>)>);

impl Times {
    fn time<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let done = work()?;
        self.add(name, started.elapsed());
        Ok(done)
    }

    fn add(&mut self, name: &'static str, took: Duration) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, times)) => times.push(took),
            None => self.0.push((name, vec![took])),
        }
    }
}

/// Measures and sends one row for each contender.
pub fn run(reporter: &mut Reporter, counts: Counts) -> Result<()> {
    let outcome = measure(reporter, counts);
    if outcome.is_err() {
        send_logs(reporter);
    }
    outcome
}

fn measure(reporter: &mut Reporter, counts: Counts) -> Result<()> {
    let world = World::start(true)?;
    OURS.import()?;
    REFERENCE.import()?;
    let versions = publish()?;
    let mut times = Times::default();
    reporter.must("every operation of the benchmark succeeded", || {
        turns(&mut times, counts, &versions)?;
        Ok(((), String::new()))
    })?;
    if counts.crun > 0 {
        reporter.must("crun mounts add", || Ok(((), crun(&mut times, counts.crun)?)))?;
    }
    let features = overlayfs_utils::probe().context("probe the kernel")?;
    reporter.data("kernel", json!(features.to_string()));
    reporter.data("rows", rows(times));
    world.stop()
}

fn turns(times: &mut Times, counts: Counts, versions: &[String; 2]) -> Result<()> {
    let shop = OURS.start("shop", &[], &SLEEP)?;
    let mut api = Api::connect()?;
    let bare = Bare::prepare(&shop)?;
    let mut old = Some(recreated()?);
    let every = counts.operations / counts.recreations.max(1);
    for turn in 0..counts.operations {
        bare.turn(times)?;
        times.time("capsuled: attach", || api.attach("shop", "tzdata", &versions[0]))?;
        times.time("capsuled: upgrade", || api.upgrade("shop", "tzdata", &versions[1]))?;
        times.time("capsuled: detach", || api.detach("shop", "tzdata"))?;
        if turn % every == 0 {
            // Forgotten, not dropped: what is timed is how a person replaces a container.
            old.take().into_iter().for_each(std::mem::forget);
            old = Some(times.time("ctr task rm + ctr run with a bind mount", || {
                ctr(&["task", "rm", "-f", "recreated"])?.success("ctr task rm")?;
                ctr(&["container", "rm", "recreated"])?.success("ctr container rm")?;
                recreated()
            })?);
        }
    }
    drop(old);
    shop.remove().map(drop)
}

/// A container with the tree of a capsule as a bind mount, as volumes are given today.
fn recreated() -> Result<Container> {
    let [(_, tree), _] = tzdata()?;
    let mount = format!("type=bind,src={},dst=/usr/share/zoneinfo,options=rbind:ro", tree.display());
    let args =
        ["run", "-d", "--null-io", "--runtime", REFERENCE.runtime, "--snapshotter", REFERENCE.snapshotter];
    let mut args = args.to_vec();
    args.extend(["--mount", &mount, Image::Busybox.name(), "recreated"]);
    args.extend(SLEEP);
    ctr(&args)?.success("ctr run -d")?;
    Ok(Container { id: "recreated".to_owned() })
}

/// The bare system calls, on trees of the same content on the same disk as capsuled's.
struct Bare {
    task: PinnedTask,
    layers: [LayerDir; 2],
    empty: LayerDir,
    target: ContainerPath,
}

impl Bare {
    fn prepare(shop: &Container) -> Result<Self> {
        let folder = PathBuf::from("/var/lib/capsule/bench");
        let open = |path: &Path| LayerDir::open(path).with_context(|| format!("open {}", path.display()));
        let copies = tzdata()?.map(|(version, tree)| -> Result<LayerDir> {
            let copy = folder.join(version);
            fs::create_dir_all(&folder).context("create a folder")?;
            let (from, to) = (tree.to_str().context("path")?, copy.to_str().context("path")?);
            run_program("cp", &["-a", from, to], b"")?.success("copy a tree")?;
            open(&copy)
        });
        let [old, new] = copies;
        let empty = folder.join("empty");
        fs::create_dir_all(&empty).context("create an empty folder")?;
        shop.sh("bare", &format!("mkdir -p {BARE}"))?;
        Ok(Self {
            task: PinnedTask::open(i32::try_from(shop.pid()?)?).context("pin the task")?,
            layers: [old?, new?],
            empty: open(&empty)?,
            target: ContainerPath::parse(BARE).context("the target")?,
        })
    }

    fn build(&self, version: usize) -> Result<(DetachedMount, Duration)> {
        let started = Instant::now();
        let plan = OverlayPlan::ro(vec![Lower::Dir(&self.layers[version])], &self.empty).context("plan")?;
        let mount = DetachedMount::overlay(&plan, LayersBy::Descriptor, "bench").context("build")?;
        Ok((mount, started.elapsed()))
    }

    /// Attach, upgrade and detach, once each. Layers are opened in the node's namespace, where they lie; the rest is
    /// done in the container's.
    fn turn(&self, times: &mut Times) -> Result<()> {
        let (first, built_first) = self.build(0)?;
        let (second, built_second) = self.build(1)?;
        let moved = in_mount_namespace(self.task.pidfd(), || -> Result<[Duration; 3]> {
            let started = Instant::now();
            let at = self.task.root().resolve(&self.target).context("resolve")?;
            attach(&first, at.fd(), Path::new(BARE)).context("attach")?;
            let attached = started.elapsed();
            let ids: [MountId; 2] = [first.id()?, second.id()?];
            let started = Instant::now();
            let point = self.task.root().mount_point(&self.target).context("find the mount point")?;
            ensure!(
                swap(&second, &point, ids[0]).context("swap")? == Unmounted::Done,
                "the swap found another mount"
            );
            let swapped = started.elapsed();
            let held: OwnedFd = at.into_fd();
            drop((first, second, held));
            let started = Instant::now();
            ensure!(unmount(&point, ids[1]).context("unmount")? == Unmounted::Done, "the mount is busy");
            Ok([attached, swapped, started.elapsed()])
        });
        let [attached, swapped, unmounted] = moved.context("enter the container")??;
        times.add("bare system calls: attach", built_first + attached);
        times.add("bare system calls: upgrade", built_second + swapped);
        times.add("bare system calls: detach", unmounted);
        Ok(())
    }
}

/// The nearest thing that exists: a bind mount added to a live container of crun's.
fn crun(times: &mut Times, count: usize) -> Result<String> {
    let [(_, tree), _] = tzdata()?;
    let id = "crun";
    let container = REFERENCE.start(id, &["--runc-binary", "/usr/bin/crun"], &SLEEP)?;
    let mount = json!([{
        "destination": "/usr/share/zoneinfo", "type": "bind", "source": tree, "options": ["bind", "ro"],
    }]);
    let file = "/tmp/crun-mount.json";
    fs::write(file, mount.to_string()).context("write a mount")?;
    let root = "--root=/run/containerd/runc/default";
    for _ in 0..count {
        times.time("crun mounts add", || {
            run_program("crun", &[root, "mounts", "add", id, file], b"")?.success("crun mounts add").map(drop)
        })?;
        run_program("crun", &[root, "mounts", "remove", id, file], b"")?.success("crun mounts remove")?;
    }
    container.remove()?;
    Ok(format!("{count} times"))
}

fn rows(times: Times) -> serde_json::Value {
    let rows = times.0.into_iter().map(|(name, mut times)| {
        times.sort_unstable();
        let micros = |percent: usize| {
            let at = (times.len() * percent).div_ceil(100).saturating_sub(1);
            times.get(at).map(Duration::as_nanos).unwrap_or_default() as f64 / 1000.0
        };
        json!({ "name": name, "count": times.len(), "p50_us": micros(50), "p99_us": micros(99) })
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let mut times = Times::default();
        for micros in (1..=100).rev() {
            times.add("a", Duration::from_micros(micros));
        }
        let rows = rows(times);
        assert_eq!(rows[0]["p50_us"], 50.0);
        assert_eq!(rows[0]["p99_us"], 99.0);
        assert_eq!(rows[0]["count"], 100);
    }
}
