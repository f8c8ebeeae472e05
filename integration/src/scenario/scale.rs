//! How an attach, capsuled's memory and its recovery grow with the number of versions, containers and attachments.
//!
//! Each round is an attach and a detach over capsuled's API: of a version that is named, and of the newest. The figures are those of one machine in one run: what counts is how
//! often they are those of an empty node.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use capsule_proto::capsule::v1::BuildHeader;

use super::api::Api;
use super::capsulectl::json;
use super::ctr::{Container, OURS};
use super::world::{World, with_logs};
use crate::event::Reporter;

const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];
/// Capsules that are attached to every container.
const SHARED: usize = 10;
/// Capsules that one more container has, so that it is crowded.
const CROWD: usize = 100;
/// How much slower an attach may be on a full node.
const RATIO: f64 = 1.5;
/// How much slower into a container that has [`CROWD`] attachments. It is about [`RATIO`], which is the aim: docs/benchmark.md.
const CROWDED_RATIO: f64 = 2.0;
/// What capsuled may take, in KiB.
const MEMORY_KIB: u64 = 96 << 10;
/// How long a capsuled that was killed may take until it serves all of it again.
const RECOVERY: Duration = Duration::from_secs(2);

/// Versions that are published between two looks.
const PART: usize = 2500;

/// How far it grows.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Versions, all of one capsule.
    pub versions: usize,
    /// Containers, with [`SHARED`] attachments each.
    pub containers: usize,
    /// Attaches of which the median is taken.
    pub rounds: usize,
}

/// What a node is to bear.
pub const FULL: Plan = Plan { versions: 10_000, containers: 200, rounds: 400 };
/// A look.
pub const QUICK: Plan = Plan { versions: 500, containers: 20, rounds: 200 };

/// Runs the plan.
pub fn run(reporter: &mut Reporter, plan: Plan) -> Result<()> {
    with_logs(reporter, |reporter| grow(reporter, plan))
}

fn grow(reporter: &mut Reporter, plan: Plan) -> Result<()> {
    let mut world = World::start(true)?;
    OURS.import()?;
    let mut api = Api::connect()?;
    for index in 0..SHARED {
        publish(&mut api, &format!("shared-{index}"), 1)?;
    }
    publish(&mut api, "many", 1)?;
    let mut containers = vec![OURS.start("c0", &[], &SLEEP)?];
    let empty = reporter.must("an attach on an empty node", || {
        let median = best(&mut api, "c0", "1", plan.rounds)?;
        Ok((median, format!("p50 {median:?}; capsuled has {} KiB", memory(&world)?)))
    })?;
    let judge = |api: &mut Api, world: &World| -> Result<String> {
        let named = compare(api, "c0", "1", plan, empty, RATIO).context("a version that is named")?;
        let newest = compare(api, "c0", "", plan, empty, RATIO).context("the newest")?;
        let memory = memory(world)?;
        ensure!(memory <= MEMORY_KIB, "capsuled has {memory} KiB");
        Ok(format!("{named}; the newest: {newest}; capsuled has {memory} KiB"))
    };
    // In parts, so that it is seen to go on.
    for from in (2..=plan.versions).step_by(PART) {
        let to = plan.versions.min(from + PART - 1);
        reporter.must(&format!("with {to} versions"), || {
            let began = Instant::now();
            for version in from..=to {
                publish(&mut api, "many", version)?;
            }
            let each = began.elapsed() / u32::try_from(to - from + 1).unwrap_or(1);
            Ok(((), format!("{}; published in {each:?} each", judge(&mut api, &world)?)))
        })?;
    }
    reporter.must(&format!("and {} containers", plan.containers), || {
        for index in 1..plan.containers {
            containers.push(OURS.start(&format!("c{index}"), &[], &SLEEP)?);
        }
        Ok(((), judge(&mut api, &world)?))
    })?;
    reporter.must(&format!("and {} attachments", (plan.containers - 1) * SHARED), || {
        for container in containers.iter().skip(1) {
            for index in 0..SHARED {
                api.attach(&container.id, &format!("shared-{index}"), "1")?;
            }
        }
        Ok(((), judge(&mut api, &world)?))
    })?;
    reporter.check(&format!("into a container that has {CROWD} attachments"), || {
        containers.push(crowded(&mut api)?);
        compare(&mut api, "crowded", "1", plan, empty, CROWDED_RATIO)
    });
    drop(api);
    reporter.check("capsuled killed: all of it is served again", || recovery(&mut world, plan));
    for container in containers {
        container.remove()?;
    }
    world.stop()
}

/// A container that has many attachments.
fn crowded(api: &mut Api) -> Result<Container> {
    let container = OURS.start("crowded", &[], &SLEEP)?;
    for index in 0..CROWD {
        publish(api, &format!("crowd-{index}"), 1)?;
        api.attach("crowded", &format!("crowd-{index}"), "1")?;
    }
    Ok(container)
}

/// How often an attach takes the time of one on an empty node; at most so often.
fn compare(
    api: &mut Api,
    container: &str,
    version: &str,
    plan: Plan,
    empty: Duration,
    most: f64,
) -> Result<String> {
    let now = best(api, container, version, plan.rounds)?;
    let ratio = now.as_secs_f64() / empty.as_secs_f64();
    // What is beside it on a machine of tests changes from one measure to the next.
    let most = if plan.versions == QUICK.versions { 3.0 * most } else { most };
    ensure!(ratio <= most, "p50 {now:?} is {ratio:.2} times that of an empty node, {empty:?}");
    Ok(format!("p50 {now:?}, {ratio:.2} times that of an empty node"))
}

/// The time until all attachments are listed, and one more is made.
fn recovery(world: &mut World, plan: Plan) -> Result<String> {
    let wanted = (plan.containers - 1) * SHARED + CROWD;
    world.kill_capsuled()?;
    let began = Instant::now();
    world.restart_capsuled_alone()?;
    let mut api = Api::connect()?;
    api.attach("c0", "shared-0", "1")?;
    let served = began.elapsed();
    let listed = json(&["ps"])?["attachments"].as_array().context("attachments")?.len();
    let all = began.elapsed();
    ensure!(listed == wanted + 1, "{listed} attachments instead of {}", wanted + 1);
    let most = if plan.versions == QUICK.versions { 15 * RECOVERY } else { RECOVERY };
    ensure!(all <= most, "an attach after {served:?}, and a list of all after {all:?}");
    api.detach("c0", "shared-0")?;
    let memory = memory(world)?;
    ensure!(memory <= MEMORY_KIB, "capsuled has {memory} KiB");
    Ok(format!("an attach after {served:?}, and a list of all after {all:?}; capsuled has {memory} KiB"))
}

/// Publishes a version of one small file, over the API.
fn publish(api: &mut Api, name: &str, version: usize) -> Result<()> {
    let content = format!("{name} {version}\n");
    let mut header = tar::Header::new_ustar();
    header.set_path("version").context("a path")?;
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    let mut archive = tar::Builder::new(Vec::new());
    archive.append(&header, content.as_bytes()).context("append")?;
    let header = BuildHeader {
        name: name.to_owned(),
        version: version.to_string(),
        default_target: format!("/opt/{name}"),
        ..BuildHeader::default()
    };
    let tar = archive.into_inner().context("a tar")?;
    api.build(header, tar).with_context(|| format!("publish {name}@{version}"))
}

/// The best of three medians: what others do on the machine is not meant.
fn best(api: &mut Api, container: &str, version: &str, rounds: usize) -> Result<Duration> {
    let medians = (0..3).map(|_| median(api, container, version, rounds)).collect::<Result<Vec<_>>>()?;
    medians.into_iter().min().context("a median")
}

/// The median of attaches to a container; of the newest version where none is named.
fn median(api: &mut Api, container: &str, version: &str, rounds: usize) -> Result<Duration> {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let began = Instant::now();
        api.attach(container, "many", version)?;
        times.push(began.elapsed());
        api.detach(container, "many")?;
    }
    times.sort();
    times.get(rounds / 2).copied().context("no round")
}

/// capsuled's memory that is its own or its share of what others have too, in KiB.
fn memory(world: &World) -> Result<u64> {
    let pid = world.pid("capsuled").context("capsuled does not run")?;
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
    line.trim().trim_end_matches(" kB").parse().context("a number")
}
