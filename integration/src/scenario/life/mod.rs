//! The life of capsules at random: operations on a node whose daemons are killed in the middle of them. After each recovery the
//! node has what the model says, as a whole: what was done is done, what was not is not, and nothing is left between.

mod check;
mod left;
mod model;
mod others;
mod written;

use std::collections::BTreeMap;
use std::fs;
use std::thread::{sleep, spawn};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, ensure};

use self::check::{observe, until};
use self::model::{INNER, Node, OUTER, Op, PLAIN, UNION, Vessel};
use self::others::{DRAINS, FILES, Other};
use self::written::Use;
use super::capsulectl::capsulectl;
use super::ctr::{Container, OURS, Output};
use super::reboot::{kill, shim_of};
use super::registry::daemon::{Door, Registry};
use super::world::{World, with_logs};
use crate::event::Reporter;
use crate::power::random::Random;

/// The scenario's name, before its seed.
pub const NAME: &str = "life";
/// As the campaigns of the snapshotter call it.
const SEED: &str = "CAPSULE_TEST_SEED";
const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];
const VESSELS: [&str; 3] = ["v0", "v1", "v2"];
/// How many daemons are killed at least in ten rounds, and how many of these cut a call off.
const KILLS: usize = 300;
const CUT_OFF: usize = 60;
/// In the middle of each of these a daemon is killed.
const CALLS: [&str; 17] = [
    "attach", "build", "commit", "detach", "import", "load", "prune", "pull", "push", "rm", "rollback",
    "save", "sign", "tag", "untag", "upgrade", "uppers",
];
/// How many operations are told of at a time.
const ROUND: usize = 100;

/// How many operations a failure tells of.
const LATELY: usize = 8;

/// How long containerd may take for a call whose caller was killed.
const LATE: Duration = Duration::from_millis(400);

/// How long capsuled may take to list what a containerd that was killed has.
const AWAY: Duration = Duration::from_millis(1600);

/// What is killed in the middle of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Capsuled,
    Containerd,
    Shim,
}

/// The scenario with the seed that `CAPSULE_TEST_SEED` names, or else one that no other run had: the time.
pub fn scenario_of_environment() -> Result<String> {
    let seed = match std::env::var(SEED) {
        Ok(text) => text.parse().with_context(|| format!("{SEED}={text:?} is no number"))?,
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the time")?;
            u64::try_from(now.as_micros()).context("the time")?
        }
    };
    Ok(format!("{NAME}:{seed}"))
}

/// The seed that a scenario of this name has; `None` for another scenario.
pub fn seed_of(scenario: &str) -> Option<u64> {
    scenario.strip_prefix(NAME)?.strip_prefix(':')?.parse().ok()
}

/// Runs `rounds` of a hundred operations, from `seed`. It makes the same choices again; when a kill meets a call, nobody chooses.
pub fn run(reporter: &mut Reporter, seed: u64, rounds: usize) -> Result<()> {
    reporter.say(format!("life: {} operations, {SEED}={seed}", rounds * ROUND));
    let lived = with_logs(reporter, |reporter| rounds_of(reporter, seed, rounds));
    lived.with_context(|| format!("{SEED}={seed}"))
}

fn rounds_of(reporter: &mut Reporter, seed: u64, rounds: usize) -> Result<()> {
    let mut life = reporter.must("three containers, and capsules to begin with", || {
        Ok((Life::start(seed)?, format!("{SEED}={seed}")))
    })?;
    for round in 1..=rounds {
        let name = format!("{} operations, daemons killed in the middle", round * ROUND);
        // What goes wrong once would go wrong ever after.
        reporter.must(&name, || Ok(((), life.round().with_context(|| format!("{SEED}={seed}"))?)))?;
    }
    // As many kills as chance gave are not enough.
    let floor = |least: usize| least * rounds / 10;
    for round in rounds + 1..=2 * rounds {
        if life.killed() >= floor(KILLS) && life.cut_off >= floor(CUT_OFF) {
            break;
        }
        let name = format!("{} operations: more kills are needed", round * ROUND);
        reporter.must(&name, || Ok(((), life.round().with_context(|| format!("{SEED}={seed}"))?)))?;
    }
    reporter.must("enough was done, and enough was killed in the middle", || {
        let (killed, cut_off, done) = (life.killed(), life.cut_off, life.done);
        let said = format!(
            "{done} operations, {killed} kills: {} while the call was under way, {cut_off} of which cut it off",
            life.under_way
        );
        ensure!(done >= rounds * ROUND && killed >= floor(KILLS) && cut_off >= floor(CUT_OFF), "{said}");
        let missing: Vec<_> = CALLS.iter().filter(|name| !life.calls.contains_key(**name)).collect();
        ensure!(rounds < 10 || missing.is_empty(), "nothing was killed in the middle of {missing:?}; {said}");
        let of_each = life.calls.iter().map(|(name, (killed, cut_off))| format!("{name} {killed}/{cut_off}"));
        Ok(((), format!("{said}; {}", of_each.collect::<Vec<_>>().join(", "))))
    })?;
    life.end()
}

/// A node and its model.
struct Life {
    world: World,
    _registry: Registry,
    node: Node,
    containers: BTreeMap<String, Container>,
    random: Random,
    kills: BTreeMap<Victim, usize>,
    refused: usize,
    /// Operations.
    done: usize,
    /// Kills after which the call had not returned yet.
    under_way: usize,
    /// Kills by which a call failed that the model does not refuse.
    cut_off: usize,
    /// By the call's name: in the middle of how many a daemon was killed, and how many of these were cut off.
    calls: BTreeMap<String, (usize, usize)>,
    /// Every operation, with what was killed in the middle of it.
    lately: Vec<String>,
    /// containerd may not have connected to the capsuled that was started last.
    behind: bool,
}

impl Life {
    fn start(seed: u64) -> Result<Self> {
        let world = World::start(true)?;
        OURS.import()?;
        fs::create_dir_all(FILES).context("create a folder")?;
        capsulectl(&["keygen", &format!("{FILES}/life")])?.success("capsulectl keygen")?;
        left::remember()?;
        let mut life = Self {
            world,
            _registry: Registry::start(5020, Door::Open)?,
            node: Node::default(),
            containers: BTreeMap::new(),
            random: Random::new(seed),
            kills: BTreeMap::new(),
            refused: 0,
            done: 0,
            under_way: 0,
            cut_off: 0,
            calls: BTreeMap::new(),
            lately: Vec::new(),
            behind: false,
        };
        let twice = PLAIN.into_iter().chain(["app", OUTER]).flat_map(|name| [(name, 1), (name, 2)]);
        for (name, version) in twice.chain([(INNER, 1), (DRAINS, 1), (written::CAPSULE, written::BASE)]) {
            let publish = Op::Publish(name.to_owned(), version);
            life.carry_out(&publish)?.success(name)?;
            life.node = life.node.after(&publish).context("a version is published")?;
        }
        for id in VESSELS {
            life.containers.insert(id.to_owned(), vessel(id)?);
            life.node.vessels.insert(id.to_owned(), Vessel { runs: true, ..Vessel::default() });
        }
        Ok(life)
    }

    fn round(&mut self) -> Result<String> {
        let (before, refused) = (self.kills.clone(), self.refused);
        for index in 0..ROUND {
            let op = self.node.choose(&mut self.random, &VESSELS);
            let victim = self.victim(&op);
            self.lately.push(format!("{op:?}, killed: {victim:?}"));
            let step = self.step(&op, victim);
            step.with_context(|| format!("operation {index}: {}", self.told_lately()))?;
            self.done += 1;
            if victim.is_some() || index % 20 == 0 {
                let check = self.check();
                check.with_context(|| format!("after operation {index}: {}", self.told_lately()))?;
            }
        }
        let kills = |victim| {
            self.kills.get(&victim).copied().unwrap_or(0) - before.get(&victim).copied().unwrap_or(0)
        };
        Ok(format!(
            "{} refused; {} kills of capsuled, {} of containerd, {} of shims",
            self.refused - refused,
            kills(Victim::Capsuled),
            kills(Victim::Containerd),
            kills(Victim::Shim)
        ))
    }

    /// The last operations, newest first: what is late is not of the last alone.
    fn told_lately(&self) -> String {
        self.lately.iter().rev().take(LATELY).cloned().collect::<Vec<_>>().join("; before that ")
    }

    fn killed(&self) -> usize {
        self.kills.values().sum()
    }

    fn victim(&mut self, op: &Op) -> Option<Victim> {
        let is_none = matches!(op, Op::Restart(_) | Op::Renew(_) | Op::Written(Use::Write(..)));
        if is_none || matches!(op, Op::Other(Other::Release(_))) || !self.random.percent(44) {
            return None;
        }
        Some(match self.random.below(10) {
            0..2 => Victim::Containerd,
            2..4 if op.vessel().is_some() => Victim::Shim,
            _ => Victim::Capsuled,
        })
    }

    /// Does it, with `victim` killed in the middle, and finds what became of it.
    fn step(&mut self, op: &Op, victim: Option<Victim>) -> Result<()> {
        let after = self.node.after(op);
        let Some(victim) = victim else {
            let output = self.carry_out(op)?;
            ensure!((output.code == 0) == after.is_some(), "{output:?}, and the model says {after:?}");
            self.refused += usize::from(after.is_none());
            self.node = after.unwrap_or_else(|| self.node.clone());
            let allowed = [self.node.clone()];
            return self.agree(&allowed, op);
        };
        *self.kills.entry(victim).or_default() += 1;
        let output = self.interrupted(op, victim)?;
        let is_cut_off = usize::from(output.code != 0 && after.is_some());
        self.cut_off += is_cut_off;
        let name = op.words().and_then(|words| words.into_iter().find(|word| CALLS.contains(&word.as_str())));
        let (killed, cut_off) = self.calls.entry(name.unwrap_or_else(|| "build".to_owned())).or_default();
        *killed += 1;
        *cut_off += is_cut_off;
        let mut allowed = vec![self.node.clone()];
        match (output.code, after) {
            // What was acknowledged is there.
            (0, Some(after)) => allowed = vec![after],
            (0, None) => return Err(anyhow!("{output:?}, and the model refuses it")),
            (_, after) => {
                allowed.extend(after);
                if let Op::Written(what) = op {
                    allowed.extend(written::made_in_vain(&self.node, what));
                }
            }
        }
        if let (Victim::Shim, Some(id)) = (victim, op.vessel()) {
            self.start_again(id)?;
            for vessel in allowed.iter_mut().filter_map(|node| node.vessel(id)) {
                vessel.draining.clear();
            }
        }
        if op.vessel().is_none() || matches!(op, Op::Other(Other::Commit(..))) {
            // containerd may still be about a call that nobody waits for any more, and capsuled looks for a containerd
            // that was killed each second.
            sleep(if victim == Victim::Containerd { AWAY } else { LATE });
        }
        self.agree(&allowed, op)
    }

    /// The node is one of `allowed`; of a removal or a publish that was broken off, anything between.
    fn agree(&mut self, allowed: &[Node], op: &Op) -> Result<()> {
        let mut seen = None;
        let agreed = until(|| {
            let now = observe()?;
            let matching = allowed.iter().find(|node| now.is(node));
            let between = || match op {
                Op::Prune(_) | Op::Publish(..) => now.between(allowed.first()?, allowed.last()?),
                _ => None,
            };
            let found = matching.cloned().or_else(between);
            seen = Some(now);
            Ok(found)
        })?;
        self.node = agreed.ok_or_else(|| anyhow!("the node has {seen:?}\nand may have {allowed:?}"))?;
        Ok(())
    }

    fn carry_out(&mut self, op: &Op) -> Result<Output> {
        match op {
            Op::Publish(name, version) => {
                self.wait_for_snapshotter()?;
                publish_both(name, *version)
            }
            Op::Restart(id) => {
                let container = self.containers.get(id).context("a container")?;
                container.kill("SIGKILL")?;
                container.wait_for("STOPPED")?;
                self.start_again(id)?;
                Ok(done())
            }
            Op::Renew(id) => {
                self.wait_for_snapshotter()?;
                self.containers.remove(id).context("a container")?.remove()?;
                self.containers.insert(id.clone(), vessel(id)?);
                Ok(done())
            }
            Op::Written(Use::Write(id, number)) => {
                let container = self.containers.get(id).context("a container")?;
                let script = format!("test -e /opt/w/version && echo {number} > /opt/w/t{number}");
                container.exec("write", &["/bin/sh", "-c", &script], b"")
            }
            Op::Other(Other::Release(id)) => {
                let script = "kill -9 $(cat /dev/shm/holders); rm /dev/shm/holders";
                let container = self.containers.get(id).context("a container")?;
                container.exec("release", &["/bin/sh", "-c", script], b"")?;
                Ok(done())
            }
            other => {
                self.prepare(other)?;
                command(other)
            }
        }
    }

    /// What is to be so before it is done.
    fn prepare(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Publish(..) => self.wait_for_snapshotter(),
            Op::Other(what) if what.unpacks() => self.wait_for_snapshotter(),
            Op::Other(Other::Drain(id)) if self.node.vessels[id].held.contains_key(DRAINS) => {
                let container = self.containers.get(id).context("a container")?;
                let before = container.exec("held", &["/bin/sh", "-c", "wc -l </dev/shm/holders"], b"")?.out;
                let hold =
                    format!("exec 3</opt/{DRAINS}/version; echo $$ >>/dev/shm/holders; exec sleep 100000");
                container.spawn(&format!("holder-{}", self.done), &["/bin/sh", "-c", &hold])?;
                let more = until(|| {
                    let now = container.exec("held", &["/bin/sh", "-c", "wc -l </dev/shm/holders"], b"")?.out;
                    Ok((now.trim() != before.trim() && !now.trim().is_empty()).then_some(()))
                })?;
                more.context("nobody uses what is to drain")
            }
            _ => Ok(()),
        }
    }

    /// Does it in another thread, kills `victim` after a moment, and starts it again.
    fn interrupted(&mut self, op: &Op, victim: Victim) -> Result<Output> {
        self.prepare(op)?;
        let pid = match (victim, op.vessel()) {
            (Victim::Shim, Some(id)) => Some(shim_of(self.containers.get(id).context("a container")?)?),
            _ => None,
        };
        let wait = Duration::from_micros(self.random.number() % 25_000);
        let caller = spawn({
            let op = op.clone();
            move || match &op {
                Op::Publish(name, version) => publish_both(name, *version),
                other => command(other),
            }
        });
        sleep(wait);
        match (victim, pid) {
            (Victim::Shim, Some(pid)) => {
                kill(pid)?;
                self.under_way += usize::from(!caller.is_finished());
            }
            (Victim::Containerd, _) => {
                self.world.kill_containerd()?;
                self.under_way += usize::from(!caller.is_finished());
                self.world.start_containerd()?;
            }
            _ => {
                self.world.kill_capsuled()?;
                self.under_way += usize::from(!caller.is_finished());
                self.world.restart_capsuled_alone()?;
                self.behind = true;
            }
        }
        caller.join().map_err(|_| anyhow!("the caller's thread"))?
    }

    /// Starts a container's next task, once the last one is gone.
    fn start_again(&mut self, id: &str) -> Result<()> {
        self.wait_for_snapshotter()?;
        self.containers.get(id).context("a container")?.start_again()
    }

    /// containerd waits before it connects again to a snapshotter that was away.
    fn wait_for_snapshotter(&mut self) -> Result<()> {
        if std::mem::take(&mut self.behind) {
            self.world.wait_for_snapshotter()?;
        }
        Ok(())
    }

    /// Looks behind what capsuled says.
    fn check(&mut self) -> Result<()> {
        self.wait_for_snapshotter()?;
        check::mounts(&self.node, &self.containers)?;
        check::nothing_left(&self.node)
    }

    fn end(mut self) -> Result<()> {
        for (_, container) in std::mem::take(&mut self.containers) {
            container.remove()?;
        }
        self.world.stop()
    }
}

/// What each version requires is published before it.
fn publish_both(name: &str, version: u32) -> Result<Output> {
    let publish = |name: &str, more: &[&str]| publish(name, version, more);
    let published = match name {
        "app" => {
            publish("lib", &[]).and_then(|()| publish("app", &["--require", &format!("lib ={version}")]))
        }
        UNION => publish(name, &["--mode", "union"]),
        name => publish(name, &[]),
    };
    Ok(match published {
        Ok(()) => done(),
        Err(error) => Output { code: 1, out: String::new(), err: format!("{error:#}") },
    })
}

/// Publishes a tree of a file that holds the version, one that no other has, one that all have, and a place for another capsule.
fn publish(name: &str, version: u32, more: &[&str]) -> Result<()> {
    let tree = format!("{FILES}/{name}@{version}");
    fs::create_dir_all(format!("{tree}/sub")).with_context(|| format!("create {tree}"))?;
    let number = version.to_string();
    for (file, content) in
        [("version", number.clone()), ("label", tree.clone()), ("common", "c".repeat(5000))]
    {
        fs::write(format!("{tree}/{file}"), content).with_context(|| format!("write {file}"))?;
    }
    let target = check::target(name);
    let args = ["build", &tree, "--name", name, "--version", &number, "--target", &target];
    capsulectl(&[&args[..], more].concat())?.success("capsulectl build").map(drop)
}

/// A container that has something itself where a union goes.
fn vessel(id: &str) -> Result<Container> {
    let container = OURS.start(id, &[], &SLEEP)?;
    let target = check::target(UNION);
    container.sh("own", &format!("mkdir -p {target} && printf own >{target}/own"))?;
    Ok(container)
}

fn command(op: &Op) -> Result<Output> {
    let words = op.words().context("not for capsulectl")?;
    capsulectl(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

fn done() -> Output {
    Output { code: 0, out: String::new(), err: String::new() }
}
