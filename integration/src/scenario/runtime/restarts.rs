//! Kill -9 of containerd, in each state of a container, and its start anew: tasks are there, their ends are known, and no
//! shim is left that nobody wants.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::bed::{SLEEP, eventually};
use super::faulty::{Faulty, How};
use super::kills::{Beside, args_of, forgiven, kill, wait_until_gone};
use super::traces::Traces;
use super::{Bed, Case};
use crate::scenario::ctr::{Container, ctr};

/// What is tried.
pub const CASES: &[Case] = &[
    Case::new("containerd killed while a container runs", running).in_vm(),
    Case::new("containerd killed while a container is paused", paused),
    Case::new("a container that ends while containerd is away", ended),
    Case::new("containerd killed while the runtime makes a container", |bed| hung(bed, "create", How::Hang))
        .in_vm(),
    Case::new("containerd killed while the runtime makes a container, and does so later", |bed| {
        hung(bed, "create", How::Slow(500_000))
    }),
    Case::new("containerd killed while the runtime starts a container", |bed| hung(bed, "start", How::Hang)),
    Case::new("containerd killed while the runtime starts an exec", |bed| hung(bed, "exec", How::Hang)),
    Case::new("containerd killed while the runtime pauses a container", |bed| hung(bed, "pause", How::Hang)),
    Case::new("containerd killed while the runtime resumes a container", |bed| {
        hung(bed, "resume", How::Hang)
    }),
    Case::new("containerd killed while the runtime kills a container", |bed| hung(bed, "kill", How::Hang)),
    Case::new("containerd killed while the runtime deletes a container", |bed| {
        hung(bed, "delete", How::Hang)
    }),
];

/// With containerd's own runtime a shim and its container stay now and then, for good.
pub const OWN: &[Case] = &[Case::new("containerd killed at any moment", any_time)];

/// Kills containerd, does something while it is away, starts it again.
fn restart(bed: &Bed, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
    bed.world().kill_containerd()?;
    let done = meanwhile();
    bed.world().start_containerd()?;
    done
}

/// Like a [`Container`] that is not removed when it is dropped.
fn container(id: &str) -> std::mem::ManuallyDrop<Container> {
    std::mem::ManuallyDrop::new(Container { id: id.to_owned() })
}

fn running(bed: &Bed) -> Result<String> {
    let before = Traces::of_idle(&bed.world(), bed.stack)?;
    let script = "trap 'exit 7' TERM; while :; do sleep 0.05; done";
    let container = bed.start_container("restart", &["/bin/sh", "-c", script])?;
    container.spawn("long", &["/bin/sleep", "1000"])?;
    let pid = container.pid()?;
    restart(bed, || Ok(()))?;
    ensure!(container.task()? == Some((pid, "RUNNING".to_owned())), "{:?}", container.task()?);
    let out = container.sh("new", "echo hello; exit 0")?;
    ensure!(out == "hello\n", "{out:?}");
    let failed = container.exec("failed", &["/bin/sh", "-c", "exit 3"], b"")?;
    failed.ended_with(3)?;
    let killed = ctr(&["task", "kill", "--exec-id", "long", "-s", "SIGKILL", &container.id])?;
    killed.success("kill an exec of before")?;
    container.kill("SIGTERM")?;
    container.wait_for("STOPPED")?;
    let code = container.remove()?;
    ensure!(code == 7, "exit status {code}");
    before.settle(&bed.world(), forgiven(bed.stack))?;
    Ok(String::new())
}

fn paused(bed: &Bed) -> Result<String> {
    let before = Traces::of_idle(&bed.world(), bed.stack)?;
    let container = bed.start_container("restart", &SLEEP)?;
    ctr(&["task", "pause", &container.id])?.success("pause")?;
    restart(bed, || Ok(()))?;
    container.wait_for("PAUSED")?;
    ctr(&["task", "resume", &container.id])?.success("resume")?;
    container.wait_for("RUNNING")?;
    container.remove()?;
    before.settle(&bed.world(), forgiven(bed.stack))?;
    Ok(String::new())
}

fn ended(bed: &Bed) -> Result<String> {
    let before = Traces::of_idle(&bed.world(), bed.stack)?;
    let wait = "while [ ! -e /go ]; do sleep 0.05; done; exit 7";
    let container = bed.start_container("restart", &["/bin/sh", "-c", wait])?;
    let pid = container.pid()?;
    restart(bed, || {
        std::fs::write(format!("/proc/{pid}/root/go"), "")?;
        eventually("the container to end", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            ensure!(stat.is_empty(), "{stat}");
            Ok(())
        })
    })?;
    // containerd takes the shim of a container that has ended for one that a start has left, and ends it.
    wait_until_gone(&container.id)?;
    container.remove()?;
    before.settle(&bed.world(), forgiven(bed.stack))?;
    Ok(String::new())
}

/// Starts a client whose call needs a step of the runtime, which then does as it is planned; what the step needs comes before.
fn call(faulty: &Faulty, step: &str, how: How, run: &[&str], id: &str) -> Result<Beside> {
    let container = container(id);
    if !matches!(step, "create" | "start") {
        ctr(run)?.success("ctr run -d")?;
    }
    match step {
        "delete" => {
            container.kill("SIGKILL")?;
            container.wait_for("STOPPED")?;
        }
        "resume" => ctr(&["task", "pause", id])?.success("pause").map(drop)?,
        _ => {}
    }
    faulty.plan(step, how)?;
    match step {
        "exec" => Beside::ctr(&["task", "exec", "--exec-id", "e", id, "/bin/sleep", "1000"]),
        "delete" => Beside::ctr(&["task", "rm", id]),
        "kill" => Beside::ctr(&["task", "kill", "-s", "SIGKILL", id]),
        "pause" | "resume" => Beside::ctr(&["task", step, id]),
        _ => Beside::ctr(run),
    }
}

/// Kills containerd while a command of the runtime hangs, or takes its time. What containerd finds is a container as it was
/// before the step, or none.
fn hung(bed: &Bed, step: &str, how: How) -> Result<String> {
    let stack = bed.stack;
    let before = Traces::of_idle(&bed.world(), stack)?;
    let id = bed.id(&format!("restart-{step}"));
    let faulty = Faulty::new(&id, "runc")?;
    let options = faulty.options(stack)?;
    let mut run = vec!["run", "-d", "--null-io"];
    run.extend(args_of(stack, &options, &id, &SLEEP));
    let (client, container) = (call(&faulty, step, how, &run, &id)?, container(&id));
    let hung = faulty.hung()?;
    restart(bed, || Ok(()))?;
    let failed = client.end()?;
    ensure!(failed.code != 0, "{failed:?}");
    let found = container.task()?.map_or("no task".to_owned(), |(_, status)| status);
    if matches!(step, "exec" | "pause" | "kill") {
        let out = container.sh("next", "echo hello")?;
        ensure!(out == "hello\n", "{out:?}");
    }
    if how == How::Hang {
        // The command is killed by the time; a hung one that is not holds up its own container alone.
        let _ = kill(hung);
    } else {
        eventually("the runtime to have done it", || {
            ensure!(!Path::new("/proc").join(hung.to_string()).exists(), "{hung} is there");
            Ok(())
        })?;
    }
    if step == "resume" {
        ctr(&["task", "resume", &id])?.success("resume it after all")?;
    }
    if container.task()?.is_some() {
        ctr(&["task", "rm", "-f", &id])?.success("ctr task rm -f")?;
    }
    wait_until_gone(&id)?;
    ctr(&["container", "rm", &id])?.success("ctr container rm")?;
    before.settle(&bed.world(), forgiven(stack))?;
    let out = stack.run_once(&id, &["/bin/echo", "again"], b"")?.success("run again")?;
    ensure!(out == "again\n", "{out:?}");
    Ok(found)
}

/// Whenever containerd is killed while a client starts, uses and removes a container, nothing is left that cannot be
/// removed afterwards.
fn any_time(bed: &Bed) -> Result<String> {
    const ROUNDS: u32 = 12;
    let stack = bed.stack;
    let before = Traces::of_idle(&bed.world(), stack)?;
    let mut tasks = 0;
    for round in 0..ROUNDS {
        let id = format!("when-{round}");
        let mut run = vec!["run", "--rm", "--null-io"];
        run.extend(args_of(stack, &[], &id, &["/bin/sleep", "0.05"]));
        let client = Beside::ctr(&run)?;
        let began = Instant::now();
        while super::kills::shim_of(&id).is_err() && began.elapsed() < Duration::from_secs(30) {}
        std::thread::sleep(Duration::from_millis(u64::from(round * 240 / ROUNDS)));
        restart(bed, || Ok(()))?;
        client.end()?;
        tasks += u32::from(container(&id).task()?.is_some());
        let _ = ctr(&["task", "rm", "-f", &id])?;
        wait_until_gone(&id)?;
        let _ = ctr(&["container", "rm", &id])?;
        let _ = ctr(&["snapshots", "--snapshotter", stack.snapshotter, "rm", &id])?;
    }
    before.settle(&bed.world(), forgiven(stack))?;
    Ok(format!("{tasks} of {ROUNDS} tasks were found again"))
}
