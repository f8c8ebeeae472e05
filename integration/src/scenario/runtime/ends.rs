//! The end of a shim while containerd is away: what it has to tell waits, and is told before it is gone.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use async_trait::async_trait;
use capsule_proto::containerd::types::Envelope;
use containerd_shim::protos::api::{Empty, ForwardRequest};
use containerd_shim::protos::shim_async::{Events, create_events};
use prost_types::Any;
use ttrpc::asynchronous::{Server, TtrpcContext};

use super::Case;
use super::bed::{Bed, PATIENCE, SLEEP, eventually};
use super::events::{Told, lines, parse};
use super::kills::{kill, shim_of, wait_until_gone};
use super::process::signal;
use super::shim::Shim;
use super::task::{Stdio, Task};
use crate::scenario::world::CONTAINERD_SOCKET;

/// The cases. Their shims end at once, with what they had to tell.
pub const CASES: &[Case] = &[
    Case::new("the last container's exit and deletion are told when containerd is back", last_container)
        .in_vm()
        .forgiven("it ends before", &["[] instead of"]),
    Case::new("what a shim that is told to end has to tell is told when containerd is back", terminated)
        .forgiven("it ends before", &["[] instead of"]),
];

/// In which a shim tries in vain to tell something.
const AWAY: Duration = Duration::from_secs(1);

/// What takes events in containerd's place. It does nothing else, so that nothing is told before anybody listens.
struct Sink(Sender<Told>);

#[async_trait]
impl Events for Sink {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap_or_default();
        let event = envelope.event.unwrap_or_default();
        let event = Some(Any { type_url: event.type_url, value: event.value });
        let envelope = Envelope { topic: envelope.topic, event, ..Default::default() };
        if let Ok(Some((_, told))) = parse(&envelope) {
            // Nobody listens any more when all have come.
            let _ = self.0.send(told);
        }
        Ok(Empty::default())
    }
}

/// What is told until so many events have come and the shim is gone.
fn listen(shim: u32, count: usize) -> Result<Vec<Told>> {
    let socket = format!("{CONTAINERD_SOCKET}.ttrpc");
    // Of the containerd that was killed.
    let _ = fs::remove_file(&socket);
    let (sender, told) = mpsc::channel();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.context("start a runtime")?;
    let _inside = runtime.enter();
    let server = Server::new().bind(&format!("unix://{socket}")).context("listen for events")?;
    let mut server = server.register_service(create_events(std::sync::Arc::new(Sink(sender))));
    runtime.block_on(server.start()).context("take events")?;
    let (process, deadline) = (format!("/proc/{shim}"), Instant::now() + PATIENCE);
    let mut all = Vec::new();
    loop {
        let ended = !Path::new(&process).exists();
        all.extend(told.try_iter());
        if ended {
            break;
        }
        ensure!(Instant::now() < deadline, "the shim does not end; it has told {:?}", lines(&all));
        std::thread::sleep(Duration::from_millis(20));
    }
    ensure!(all.len() <= count, "told too much: {:?}", lines(&all));
    let _ = runtime.block_on(server.shutdown());
    let _ = fs::remove_file(&socket);
    Ok(all)
}

/// Has the shim of a task end while containerd is away; what it tells of the task meanwhile must be these kinds and ids.
fn expect_told(
    bed: &Bed,
    task: Task<'_>,
    expected: &[String],
    end: impl FnOnce(&Shim, u32) -> Result<()>,
) -> Result<String> {
    let (shim, pid) = (Shim::of(&task.id)?, shim_of(&task.id)?);
    let mut told = Vec::new();
    bed.world().restart_containerd_after(|| {
        end(&shim, pid)?;
        // containerd's connection is gone too.
        drop(shim);
        std::thread::sleep(AWAY);
        told = listen(pid, expected.len())?;
        Ok(())
    })?;
    wait_until_gone(&task.id)?;
    task.forget()?;
    let seen = lines(&told);
    ensure!(seen == expected, "{seen:?} instead of {expected:?}");
    ensure!(told.iter().all(|event| event.status == 137), "{told:?}");
    Ok(seen.join(", "))
}

fn until_stopped(shim: &Shim, container: &str, exec: &str) -> Result<()> {
    eventually("the process to have ended", || {
        let state = shim.state(container, exec)?;
        if state.exit_status != 137 {
            bail!("{state:?}");
        }
        Ok(())
    })
}

fn last_container(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "last", &Stdio::default(), &SLEEP)?;
    let (id, init) = (task.id.clone(), task.get("")?.pid);
    let expected = [format!("exit {id}"), format!("delete {id}")];
    expect_told(bed, task, &expected, |shim, _| {
        kill(init)?;
        until_stopped(shim, &id, "")?;
        shim.delete(&id)?;
        shim.shutdown(&id)
    })
}

fn terminated(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "terminated", &Stdio::default(), &SLEEP)?;
    let execs = ["one", "two"];
    let mut pids = Vec::new();
    for exec in execs {
        pids.push(task.run_exec(exec, &Stdio::default(), &SLEEP)?);
    }
    let id = task.id.clone();
    expect_told(bed, task, &execs.map(|exec| format!("exit {exec}")), |shim, pid| {
        for (exec, process) in execs.iter().zip(pids) {
            kill(process)?;
            until_stopped(shim, &id, exec)?;
        }
        signal(pid, "-TERM")
    })
}
