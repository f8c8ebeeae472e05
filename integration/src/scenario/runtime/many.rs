//! Many containers at once, in as many shims and in one: nothing is left of them, and none waits for another.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, anyhow, ensure};

use super::bed::{SLEEP, processes_named};
use super::faulty::{Faulty, How};
use super::kills::{Beside, args_of, forgiven, kill, wait_until_gone};
use super::traces::Traces;
use super::{Bed, Case};
use crate::scenario::ctr::{Container, Stack, ctr};

/// Each counts what is left on the node.
pub const CASES: &[Case] = &[
    Case::new("200 containers of 16 clients", |bed| containers(bed, 200, 16)).forgiven(
        "its output is lost now and then when the machine is busy",
        &[" wrote Output { out: \"\","],
    ),
    Case::new("50 containers in one shim, of 8 clients", |bed| group(bed, 50, 8)),
    Case::new("a runtime that hangs while it starts a container holds up no other", |bed| hung(bed, "start")),
    Case::new("a runtime that hangs while it kills a container holds up no other", |bed| hung(bed, "kill")),
    Case::new("a runtime that hangs while it deletes a container holds up no other", |bed| {
        hung(bed, "delete")
    }),
];

/// containerd's own shim waits: it makes one container at a time.
pub const OWN: &[Case] =
    &[Case::new("a runtime that hangs while it makes a container holds up no other", |bed| {
        hung(bed, "create")
    })];

/// Has `clients` threads do `step` for each number below `count`.
fn at_once(count: u32, clients: u32, step: impl Fn(u32) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicU32::new(0);
    let client = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            step(number)?;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a client panicked"))?)
    })
}

fn containers(bed: &Bed, count: u32, clients: u32) -> Result<String> {
    let stack = bed.stack;
    let before = Traces::of_idle(&bed.world(), stack)?;
    at_once(count, clients, |number| {
        let (id, code) = (format!("many-{number}"), i32::try_from(number % 7)?);
        let script = format!("echo {id}; exit {code}");
        let output = stack.run_once(&id, &["/bin/sh", "-c", &script], b"")?.ended_with(code)?;
        ensure!(output.out == format!("{id}\n"), "{id} wrote {output:?}");
        Ok(())
    })?;
    before.settle(&bed.world(), forgiven(stack))?;
    Ok(String::new())
}

/// The annotation that puts containers of one value into one shim.
fn start_in(stack: Stack, group: &str, id: &str, options: &[String]) -> Result<()> {
    let annotation = format!("io.containerd.runc.v2.group={group}");
    let mut args = vec!["run", "-d", "--null-io", "--annotation", &annotation];
    args.extend(args_of(stack, options, id, &SLEEP));
    ctr(&args)?.success("ctr run -d").map(drop)
}

fn end(id: &str) -> Result<()> {
    let container = std::mem::ManuallyDrop::new(Container { id: id.to_owned() });
    container.kill("SIGKILL")?;
    container.wait_for("STOPPED")?;
    ctr(&["task", "rm", id])?.success("ctr task rm")?;
    ctr(&["container", "rm", id])?.success("ctr container rm").map(drop)
}

fn group(bed: &Bed, count: u32, clients: u32) -> Result<String> {
    let stack = bed.stack;
    let before = Traces::of_idle(&bed.world(), stack)?;
    let group = bed.id("group");
    let id = |number: u32| format!("{group}-{number}");
    start_in(stack, &group, &id(0), &[])?;
    at_once(count - 1, clients, |number| start_in(stack, &group, &id(number + 1), &[]))?;
    let shims = processes_named("containerd-shim")?;
    ensure!(shims.len() == 1, "{} shims: {shims:?}", shims.len());
    at_once(count, clients, |number| {
        let container = std::mem::ManuallyDrop::new(Container { id: id(number) });
        let output = container.exec("e", &["/bin/sh", "-c", "exit 5"], b"")?;
        output.ended_with(5).map(drop)
    })?;
    at_once(count, clients, |number| end(&id(number)))?;
    before.settle(&bed.world(), forgiven(stack))?;
    Ok(String::new())
}

/// One container's runtime hangs; another one of the same shim is started, used and removed meanwhile.
fn hung(bed: &Bed, step: &str) -> Result<String> {
    let stack = bed.stack;
    let before = Traces::of_idle(&bed.world(), stack)?;
    let group = bed.id(&format!("hung-{step}"));
    let (first, stuck, other) =
        (format!("{group}-first"), format!("{group}-stuck"), format!("{group}-other"));
    let faulty = Faulty::new(&group, "runc")?;
    let options = faulty.options(stack)?;
    start_in(stack, &group, &first, &[])?;
    let annotation = format!("io.containerd.runc.v2.group={group}");
    let mut run = vec!["run", "-d", "--null-io", "--annotation", &annotation];
    run.extend(args_of(stack, &options, &stuck, &SLEEP));
    let container = std::mem::ManuallyDrop::new(Container { id: stuck.clone() });
    if !matches!(step, "create" | "start") {
        ctr(&run)?.success("ctr run -d")?;
    }
    if step == "delete" {
        container.kill("SIGKILL")?;
        container.wait_for("STOPPED")?;
    }
    faulty.plan(step, How::Hang)?;
    let client = match step {
        "kill" => Beside::ctr(&["task", "kill", "-s", "SIGKILL", &stuck])?,
        "delete" => Beside::ctr(&["task", "rm", &stuck])?,
        _ => Beside::ctr(&run)?,
    };
    let hung = faulty.hung()?;
    start_in(stack, &group, &other, &[])?;
    let fine = std::mem::ManuallyDrop::new(Container { id: other.clone() });
    fine.exec("e", &["/bin/sh", "-c", "exit 5"], b"")?.ended_with(5)?;
    ctr(&["task", "pause", &other])?.success("pause")?;
    ctr(&["task", "resume", &other])?.success("resume")?;
    end(&other)?;
    kill(hung)?;
    client.end()?;
    // What a command that was killed has left undone is done by the next.
    let _ = ctr(&["task", "rm", "-f", &stuck])?;
    wait_until_gone(&stuck)?;
    let _ = ctr(&["container", "rm", &stuck])?;
    end(&first)?;
    before.settle(&bed.world(), forgiven(stack))?;
    Ok(String::new())
}
