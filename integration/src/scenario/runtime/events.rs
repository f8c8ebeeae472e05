//! What containerd publishes of a task: every event, in its order, with pids and exit statuses that agree with the answers.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use capsule_proto::containerd::events as wire;
use capsule_proto::containerd::services::events::v1::{PublishRequest, SubscribeRequest};
use capsule_proto::containerd::types::Envelope;
use prost::Message as _;
use prost_types::{Any, Timestamp};

use super::Case;
use super::bed::{Bed, PATIENCE, SLEEP};
use super::client::{Client, request};
use super::task::{NO_TIME, Stdio, Task};

/// The cases.
pub const CASES: &[Case] = &[
    Case::new("create, start, exit and delete, with the same pid and exit", whole_life).in_vm(),
    Case::new("an exec: added, started, exit", exec_life),
    Case::new("an init's exit comes after its execs' exits", exits_in_order).in_vm(),
    Case::new("pause and resume", pause_and_resume).needs(&[super::Need::Cgroups]),
    Case::new("a task that is deleted before its start", never_started),
    Case::new("an exec that cannot be started", exec_not_started),
    Case::new("a create that fails tells nothing", failed_create),
];

/// An event of one task, in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The topic's last part: `create`, `start`, `exec-added`, `exec-started`, `exit`, `delete`, `paused`, `resumed`,
    /// `checkpointed`, `oom`.
    pub what: String,
    /// The exec, or the container itself for its init.
    pub id: String,
    /// 0 where the event has none.
    pub pid: u32,
    /// The same.
    pub status: u32,
    /// Of an exit.
    pub at: Option<Timestamp>,
}

/// What is told of a container from now on.
#[derive(Debug)]
pub struct Log {
    container: String,
    received: Receiver<Envelope>,
}

const MARK: &str = "/capsule/mark";

impl Log {
    /// Listens; returns once containerd tells.
    pub fn of(client: &Client, container: &str) -> Result<Self> {
        let (sender, received) = mpsc::channel();
        let mut events = client.events();
        client.spawn(async move {
            let Ok(stream) = events.subscribe(SubscribeRequest { filters: Vec::new() }).await else { return };
            let mut stream = stream.into_inner();
            while let Ok(Some(envelope)) = stream.message().await {
                if sender.send(envelope).is_err() {
                    return;
                }
            }
        });
        // containerd's answer begins with the first event.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let event = Some(Any { type_url: "capsule.test/mark".to_owned(), value: Vec::new() });
            let mark = PublishRequest { topic: MARK.to_owned(), event };
            client.call(client.events().publish(request(mark))).context("publish a mark")?;
            match received.recv_timeout(Duration::from_millis(50)) {
                Ok(_) => return Ok(Self { container: container.to_owned(), received }),
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(error) => bail!("containerd tells no events: {error}"),
            }
        }
    }

    /// A container with a task that runs, and what is told of it from then on. It is listened to from before: a client has
    /// its answer before the event is told.
    pub fn started<'a>(
        bed: &'a Bed,
        hint: &str,
        options: &[&str],
        command: &[&str],
    ) -> Result<(Task<'a>, Self)> {
        let task = Task::container(bed, hint, options, command)?;
        let log = Self::of(bed.client(), &task.id)?;
        task.create(&Stdio::default())?;
        task.start("")?;
        log.until("start")?;
        Ok((task, log))
    }

    /// The next event of the container.
    pub fn next(&self) -> Result<Told> {
        self.next_before(Instant::now() + PATIENCE)?.context("no further event came")
    }

    fn next_before(&self, deadline: Instant) -> Result<Option<Told>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let envelope = match self.received.recv_timeout(left) {
                Ok(envelope) => envelope,
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(error) => return Err(error).context("containerd ended the stream of events"),
            };
            if let Some((container, told)) = parse(&envelope)?
                && container == self.container
            {
                return Ok(Some(told));
            }
        }
    }

    /// All events of the container until the one of this kind, with it.
    pub fn until(&self, what: &str) -> Result<Vec<Told>> {
        let mut all = Vec::new();
        loop {
            let told = self.next().with_context(|| format!("waiting for {what:?} after {all:?}"))?;
            let last = told.what == what;
            all.push(told);
            if last {
                return Ok(all);
            }
        }
    }

    /// All events of the container up to that of its task's deletion. containerd's own shim loses that one when it ends
    /// before it is sent (2 of 5, measured); ours must not.
    pub fn to_deletion(&self, bed: &Bed) -> Result<Vec<Told>> {
        if !bed.is_reference() {
            return self.until("delete");
        }
        let mut all = Vec::new();
        while all.last().is_none_or(|told: &Told| told.what != "delete") {
            let deadline = Instant::now() + Duration::from_secs(2);
            match self.next_before(deadline)? {
                Some(told) => all.push(told),
                None => break,
            }
        }
        Ok(all)
    }

    /// No event of the container comes for a while.
    pub fn expect_silence(&self, long: Duration) -> Result<()> {
        let deadline = Instant::now() + long;
        match self.next_before(deadline)? {
            Some(told) => bail!("one event too many: {told:?}"),
            None => Ok(()),
        }
    }
}

/// Kinds and ids, to be compared with what they should be: `exit web`.
pub fn lines(told: &[Told]) -> Vec<String> {
    told.iter().map(|told| format!("{} {}", told.what, told.id)).collect()
}

/// An event of a task with its container; nothing for others.
pub(super) fn parse(envelope: &Envelope) -> Result<Option<(String, Told)>> {
    let Some(what) = envelope.topic.strip_prefix("/tasks/") else { return Ok(None) };
    let bytes = envelope.event.as_ref().map(|event| event.value.as_slice()).unwrap_or_default();
    let told = |container: String, id: String, pid, status, at| {
        let id = if id.is_empty() { container.clone() } else { id };
        (container, Told { what: what.to_owned(), id, pid, status, at })
    };
    let none = String::new;
    Ok(Some(match what {
        "create" => {
            let event = wire::TaskCreate::decode(bytes)?;
            told(event.container_id, none(), event.pid, 0, None)
        }
        "start" => {
            let event = wire::TaskStart::decode(bytes)?;
            told(event.container_id, none(), event.pid, 0, None)
        }
        "exec-added" => {
            let event = wire::TaskExecAdded::decode(bytes)?;
            told(event.container_id, event.exec_id, 0, 0, None)
        }
        "exec-started" => {
            let event = wire::TaskExecStarted::decode(bytes)?;
            told(event.container_id, event.exec_id, event.pid, 0, None)
        }
        "exit" => {
            let event = wire::TaskExit::decode(bytes)?;
            told(event.container_id, event.id, event.pid, event.exit_status, event.exited_at)
        }
        "delete" => {
            let event = wire::TaskDelete::decode(bytes)?;
            told(event.container_id, event.id, event.pid, event.exit_status, event.exited_at)
        }
        "paused" => told(wire::TaskPaused::decode(bytes)?.container_id, none(), 0, 0, None),
        "resumed" => told(wire::TaskResumed::decode(bytes)?.container_id, none(), 0, 0, None),
        "oom" => told(wire::TaskOom::decode(bytes)?.container_id, none(), 0, 0, None),
        "checkpointed" => told(wire::TaskCheckpointed::decode(bytes)?.container_id, none(), 0, 0, None),
        other => bail!("an unknown event of a task: {other}"),
    }))
}

/// What was told must be these kinds and ids in this order, where `.` is the container.
fn expect_order(bed: &Bed, told: &[Told], container: &str, expected: &[&str]) -> Result<()> {
    let mut seen: Vec<String> = lines(told).iter().map(|line| line.replace(container, ".")).collect();
    let deleted = "delete .";
    if bed.is_reference()
        && expected.last() == Some(&deleted)
        && seen.last().is_none_or(|last| last != deleted)
    {
        // See `Log::to_deletion`.
        seen.push(deleted.to_owned());
    }
    ensure!(seen == expected, "{seen:?} instead of {expected:?}");
    Ok(())
}

fn whole_life(bed: &Bed) -> Result<String> {
    let task = Task::container(bed, "life", &[], &["/bin/sh", "-c", "exit 7"])?;
    let log = Log::of(bed.client(), &task.id)?;
    let pid = task.create(&Stdio::default())?;
    ensure!(task.start("")? == pid, "Start answers another pid than Create");
    let waited = task.wait("")?;
    let deleted = task.delete()?;
    let told = log.to_deletion(bed)?;
    expect_order(bed, &told, &task.id, &["create .", "start .", "exit .", "delete ."])?;
    ensure!(told.iter().all(|told| told.pid == pid), "not all of {pid}: {told:?}");
    ensure!(
        deleted.pid == pid && deleted.exit_status == 7 && waited.exit_status == 7,
        "{deleted:?} {waited:?}"
    );
    ensure!(told[2..].iter().all(|told| told.status == 7), "{told:?}");
    ensure!(told[2].at.is_some() && told[2..].iter().all(|last| last.at == told[2].at), "{told:?}");
    ensure!(
        deleted.exited_at == waited.exited_at && waited.exited_at == told[2].at,
        "{told:?} {deleted:?} {waited:?}"
    );
    task.forget().map(|()| lines(&told).join(", "))
}

fn exec_life(bed: &Bed) -> Result<String> {
    let (task, log) = Log::started(bed, "exec", &[], &SLEEP)?;
    let pid = task.run_exec("e1", &Stdio::default(), &["/bin/sh", "-c", "exit 5"])?;
    let waited = task.wait("e1")?;
    let deleted = task.delete_exec("e1")?;
    task.end()?;
    task.delete()?;
    let told = log.to_deletion(bed)?;
    expect_order(
        bed,
        &told,
        &task.id,
        &["exec-added e1", "exec-started e1", "exit e1", "exit .", "delete ."],
    )?;
    ensure!(told[1].pid == pid && told[2].pid == pid && deleted.pid == pid, "not all of {pid}: {told:?}");
    ensure!(
        told[2].status == 5 && waited.exit_status == 5 && deleted.exit_status == 5,
        "{told:?} {waited:?}"
    );
    ensure!(
        told[2].at == waited.exited_at && told[2].at == deleted.exited_at,
        "{told:?} {waited:?} {deleted:?}"
    );
    ensure!(told[3].status == 137, "{told:?}");
    task.forget().map(|()| lines(&told).join(", "))
}

fn exits_in_order(bed: &Bed) -> Result<String> {
    let (task, log) = Log::started(bed, "order", &[], &SLEEP)?;
    for n in 0..5 {
        task.run_exec(&format!("e{n}"), &Stdio::default(), &SLEEP)?;
    }
    task.end()?;
    task.delete()?;
    let told = log.to_deletion(bed)?;
    let exits: Vec<&Told> = told.iter().filter(|told| told.what == "exit").collect();
    ensure!(exits.len() == 6 && exits[5].id == task.id, "{told:?}");
    ensure!(exits.iter().all(|exit| exit.status == 137), "{exits:?}");
    task.forget().map(|()| String::new())
}

fn pause_and_resume(bed: &Bed) -> Result<String> {
    let (task, log) = Log::started(bed, "pause", &[], &SLEEP)?;
    task.pause()?;
    task.resume()?;
    task.end()?;
    let told = log.until("exit")?;
    expect_order(bed, &told, &task.id, &["paused .", "resumed .", "exit ."])?;
    task.remove().map(|()| String::new())
}

/// Beside another container of the same shim: containerd's own shim that has no other ends before it has told all.
fn never_started(bed: &Bed) -> Result<String> {
    let other = Task::started(bed, "other", &Stdio::default(), &SLEEP)?;
    let group = format!("io.containerd.runc.v2.group={}", other.id);
    let task = Task::container(bed, "never", &["--annotation", &group], &SLEEP)?;
    let log = Log::of(bed.client(), &task.id)?;
    let pid = task.create(&Stdio::default())?;
    let deleted = task.delete()?;
    // It had to be killed for that, but who deletes it is not told so.
    ensure!(deleted.pid == pid && deleted.exit_status == 0 && deleted.exited_at == NO_TIME, "{deleted:?}");
    let mut told = (0..3).map(|_| log.next()).collect::<Result<Vec<_>>>()?;
    let detail = lines(&told).join(", ");
    if bed.is_reference() {
        // It may tell of the deletion before the exit.
        told[1..].sort_by_key(|told| told.what == "delete");
    }
    expect_order(bed, &told, &task.id, &["create .", "exit .", "delete ."])?;
    ensure!(told.iter().all(|told| told.pid == pid), "{told:?}");
    ensure!(told[1].status == 137 && told[2].status == 0 && told[2].at == NO_TIME, "{told:?}");
    // containerd's own shim has forgotten the process by then, and says year 1.
    ensure!(bed.is_reference() || told[1].at != NO_TIME, "{told:?}");
    task.forget()?;
    other.remove().map(|()| detail)
}

fn exec_not_started(bed: &Bed) -> Result<String> {
    let (task, log) = Log::started(bed, "broken", &[], &SLEEP)?;
    let refused = task.run_exec("e1", &Stdio::default(), &["/no/such/program"]);
    let error = refused.err().context("a program that is not there was started")?;
    ensure!(format!("{error:#}").contains("/no/such/program"), "does not name the program: {error:#}");
    let deleted = task.delete_exec("e1")?;
    task.end()?;
    task.delete()?;
    let told = log.to_deletion(bed)?;
    expect_order(bed, &told, &task.id, &["exec-added e1", "exit .", "delete ."])?;
    ensure!(deleted.pid == 0 && deleted.exit_status == 0 && deleted.exited_at == NO_TIME, "{deleted:?}");
    task.forget().map(|()| lines(&told).join(", "))
}

fn failed_create(bed: &Bed) -> Result<String> {
    let task = Task::container(bed, "fails", &[], &["/no/such/program"])?;
    let log = Log::of(bed.client(), &task.id)?;
    let refused = task.create(&Stdio::default()).err().context("a program that is not there was taken")?;
    log.expect_silence(Duration::from_millis(500))?;
    task.forget().map(|()| refused.message().to_owned())
}
