//! Thousands of execs in one container: each one's output and exit status are right, and the shim does not grow.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::kills::{shim_any_time, shim_of};
use super::task::{Stdio, Task, read_all, text_of};
use super::{Bed, Case, Choice};
use crate::event::Reporter;
use crate::scenario::ctr::{OURS, RUNC_1_1};

/// A part of the soak that is short enough for each run of the tests; `make soak` has all of it.
pub const CASES: &[Case] = &[Case::new("400 execs in one container", |bed| execs(bed, 400))
    .forgiven("the output of an exec is lost now and then", &[" wrote \"\" and ", " and \"\""])];

/// How many execs the whole soak has.
const ALL: u32 = 5000;
/// Before the first measurement: what is made once is made.
const WARM: u32 = 100;
/// How much private memory may grow by chance, in KiB: an allocator's caches, not what each exec leaves. 5,000 execs that leave
/// a descriptor's worth of state each would be more.
const SLACK: u64 = 512;
/// How many descriptors may come by chance.
const CHANCE: usize = 2;
/// The same of the Go shim, which lets some go only when it collects garbage: one in a hundred execs was seen to stay so long.
const GARBAGE: usize = 30;
/// The whole soak, on the runtimes of `choice`.
pub fn run(reporter: &mut Reporter, choice: &Choice) -> Result<()> {
    let mut bed = Bed::start(reporter, choice.stacks.contains(&OURS))?;
    for stack in &choice.stacks {
        bed.use_stack(reporter, *stack)?;
        reporter.check(&format!("{}: {ALL} execs in one container", stack.name), || execs(&bed, ALL));
        // Neither runtime always comes through this one clean: containerd may drop the bundle before it has it cleaned up.
        let killed = shim_any_time(&bed).unwrap_or_else(|error| format!("{error:#}"));
        reporter.say(format!("{}: a shim that is killed at any moment: {killed}", stack.name));
    }
    bed.stop()
}

/// What a shim has.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Size {
    descriptors: usize,
    zombies: usize,
    /// In KiB, as `/proc/PID/smaps_rollup` has it.
    memory: BTreeMap<&'static str, u64>,
}

impl Size {
    fn of(pid: u32) -> Result<Self> {
        let rollup =
            fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("read the shim's memory")?;
        let field = |name: &'static str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let value = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
            Ok((name, value.with_context(|| format!("no {name} in {rollup}"))?))
        };
        let memory = ["Rss", "Pss", "Anonymous"].map(field).into_iter().collect::<Result<_>>()?;
        let descriptors =
            fs::read_dir(format!("/proc/{pid}/fd")).context("read the shim's descriptors")?.count();
        Ok(Self { descriptors, zombies: zombies_of(pid)?, memory })
    }
}

fn zombies_of(parent: u32) -> Result<usize> {
    let entries = fs::read_dir("/proc").context("read /proc")?.filter_map(Result::ok);
    let is = |entry: &fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        Some(fields.next()? == "Z" && fields.next()?.parse() == Ok(parent))
    };
    Ok(entries.filter(|entry| is(entry) == Some(true)).count())
}

fn execs(bed: &Bed, count: u32) -> Result<String> {
    let task = Task::started(bed, "soak", &Stdio::default(), &super::bed::SLEEP)?;
    let shim = shim_of(&task.id)?;
    let mut stdio = Stdio::fifos(bed, &["stdout", "stderr"])?;
    let (mut before, mut again) = (None, 0);
    for number in 0..count {
        if number == WARM {
            before = Some(Size::of(shim)?);
        }
        match exec(&task, &stdio, &format!("e{number}"), number % 7) {
            Err(error) if again == 0 && format!("{error:#}").contains(RUNC_1_1) => {
                again += 1;
                // The readers of that one may still be at the end of its FIFOs.
                stdio = Stdio::fifos(bed, &["stdout", "stderr"])?;
                exec(&task, &stdio, &format!("again{number}"), number % 7)?;
            }
            outcome => outcome?,
        }
    }
    let (before, after) = (before.context("too few execs")?, Size::of(shim)?);
    let seen = format!("after {WARM}: {before:?}; after {count}: {after:?}; {again} failed in runc 1.1");
    let chance = if bed.is_reference() { GARBAGE } else { CHANCE };
    ensure!(after.descriptors <= before.descriptors + chance, "descriptors are left: {seen}");
    ensure!(after.zombies == 0, "zombies are left: {seen}");
    if !bed.is_reference() {
        let anonymous = |size: &Size| size.memory.get("Anonymous").copied().unwrap_or_default();
        ensure!(anonymous(&after) <= anonymous(&before) + SLACK, "the shim grows: {seen}");
    }
    task.remove()?;
    Ok(seen)
}

fn exec(task: &Task<'_>, stdio: &Stdio, id: &str, code: u32) -> Result<()> {
    let readers = [read_all(&stdio.stdout), read_all(&stdio.stderr)];
    let script = format!("echo {id}; echo error >&2; exit {code}");
    task.run_exec(id, stdio, &["/bin/sh", "-c", &script])?;
    let exit = task.wait(id).with_context(|| format!("wait for {id}"))?;
    ensure!(exit.exit_status == code, "{id} ended with {} instead of {code}", exit.exit_status);
    let deleted = task.delete_exec(id).with_context(|| format!("delete {id}"))?;
    ensure!(deleted.exit_status == code, "{id} was deleted with {}", deleted.exit_status);
    let [out, err] = readers.map(text_of);
    let (out, err) = (out?, err?);
    ensure!(out == format!("{id}\n") && err == "error\n", "{id} wrote {out:?} and {err:?}");
    Ok(())
}
