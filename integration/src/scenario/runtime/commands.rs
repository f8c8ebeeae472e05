//! The OCI runtime's commands killed before, amid and after their work: what the call answers, in what state the container is,
//! and that the next try works. And commands that do their work and never end.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use capsule_proto::containerd::services::tasks::v1 as api;
use capsule_proto::containerd::v1::types::Status as TaskStatus;
use tonic::Code;

use super::bed::{SLEEP, eventually};
use super::client::{Answer, Client, code, request};
use super::faulty::{Faulty, How};
use super::kills::forgiven;
use super::steps::{LIMIT, Seen, Step, UPDATED};
use super::task::{Stdio, Task};
use super::traces::Traces;
use super::{Bed, Case};

/// The cases.
pub const CASES: &[Case] = &[
    Case::new("runc create that is killed", |bed| Killed::run(bed, "runc", Step::Create)),
    Case::new("runc start that is killed", |bed| Killed::run(bed, "runc", Step::Start)).in_vm(),
    Case::new("runc exec that is killed", |bed| Killed::run(bed, "runc", Step::Exec)).in_vm(),
    Case::new("runc kill that is killed", |bed| Killed::run(bed, "runc", Step::Kill)),
    Case::new("runc pause that is killed", |bed| Killed::run(bed, "runc", Step::Pause)),
    Case::new("runc resume that is killed", |bed| Killed::run(bed, "runc", Step::Resume)),
    Case::new("runc update that is killed", |bed| Killed::run(bed, "runc", Step::Update)),
    Case::new("runc delete that is killed", |bed| Killed::run(bed, "runc", Step::Delete)).in_vm(),
    Case::new("runc ps that is killed", |bed| Killed::run(bed, "runc", Step::Pids)),
    Case::new("crun create that is killed", |bed| Killed::run(bed, "crun", Step::Create)),
    Case::new("crun start that is killed", |bed| Killed::run(bed, "crun", Step::Start)),
    Case::new("crun exec that is killed", |bed| Killed::run(bed, "crun", Step::Exec)),
    Case::new("a start that is done and does not end", |bed| hangs(bed, Step::Start)),
    Case::new("a pause that is done and does not end", |bed| hangs(bed, Step::Pause)),
    Case::new("a resume that is done and does not end", |bed| hangs(bed, Step::Resume)),
];

/// On containerd's own runtime a task that crun has deleted cannot be deleted any more: for it, what crun says of a container
/// that is gone is an error. And what it could not undo stands in the way of the next try.
pub const OWN: &[Case] = &[
    Case::new("crun delete that is killed", |bed| Killed::run(bed, "crun", Step::Delete)),
    Case::new("a create that is killed, and whose undoing does not end", undoing_hangs),
];

/// One container of which one command is killed.
struct Killed<'a> {
    bed: &'a Bed,
    task: Task<'a>,
    faulty: Faulty,
    step: Step,
    before: Seen,
}

impl<'a> Killed<'a> {
    fn run(bed: &'a Bed, runtime: &str, step: Step) -> Result<String> {
        let traces = Traces::of_idle(&bed.world(), bed.stack)?;
        let mut told = Vec::new();
        let mut all = vec![How::Die, How::DoAndDie, How::Cut(5_000)];
        if step == Step::Create {
            // It takes the most steps on its way.
            all.extend([How::Cut(2_000), How::Cut(10_000), How::Cut(20_000)]);
        }
        for how in all {
            let one = Self::prepare(bed, runtime, step, &[]).with_context(|| format!("{how:?}"))?;
            told.push(format!("{how:?}: {}", one.once(how).with_context(|| format!("{how:?}"))?));
            // containerd's own shim leaves the control groups of a half made container.
            let left = if bed.is_reference() { &["cgroup /sys/fs/cgroup/"][..] } else { &[] };
            let fine = [forgiven(bed.stack), left].concat();
            traces.settle(&bed.world(), &fine).with_context(|| format!("{how:?}"))?;
        }
        Ok(told.join(" | "))
    }

    fn prepare(bed: &'a Bed, runtime: &str, step: Step, options: &[&str]) -> Result<Self> {
        let (hint, limit) = (format!("{runtime}-{}", step.command()), LIMIT.to_string());
        let options = [&["--memory-limit", &limit], options].concat();
        let task = Task::container(bed, &hint, &options, &SLEEP)?;
        let faulty = Faulty::new(&task.id, runtime)?;
        step.prepare(&task, &faulty)?;
        let before = Seen::of(&task)?;
        Ok(Self { bed, task, faulty, step, before })
    }

    fn once(self, how: How) -> Result<String> {
        self.faulty.plan(self.step.command(), how)?;
        let answer = self.call();
        let told = match &answer {
            Ok(()) => "done".to_owned(),
            Err(status) => status.message().trim().to_owned(),
        };
        match how {
            How::Die => self.undone(answer)?,
            How::DoAndDie if self.step.counts() && !self.bed.is_reference() => self.done(answer)?,
            How::DoAndDie => self.done_unsaid(answer)?,
            _ => self.cut(answer)?,
        }
        self.end()?;
        Ok(told)
    }

    fn call(&self) -> Answer<()> {
        self.step.call(&self.task, &self.faulty)
    }

    /// The command did nothing: the call fails and says why, all is as before, and the next try works.
    fn undone(&self, answer: Answer<()>) -> Result<()> {
        self.says_killed(answer)?;
        let now = Seen::of(&self.task)?;
        ensure!(now == self.before, "{now:?} instead of {:?}", self.before);
        self.again()
    }

    /// The step is done, and known to be.
    fn done(&self, answer: Answer<()>) -> Result<()> {
        answer.context("what was done failed")?;
        self.is_done()
    }

    /// The command did its work and the call fails: what it did is there, and does not stand in the way of what comes next.
    fn done_unsaid(&self, answer: Answer<()>) -> Result<()> {
        self.says_killed(answer)?;
        match self.step {
            // Nothing is left of it; nor is the task deleted, of which there is more than the runtime has.
            Step::Create | Step::Delete | Step::Pids => {
                let now = Seen::of(&self.task)?;
                ensure!(now == self.before, "{now:?} instead of {:?}", self.before);
                self.again()
            }
            // Its process goes on, as one that the container has started.
            Step::Exec => {
                let now = Seen::of(&self.task)?;
                ensure!(now.processes == self.before.processes + 1, "{now:?} after {:?}", self.before);
                self.again()
            }
            Step::Update => {
                self.is_done()?;
                self.again()
            }
            Step::Kill => {
                self.is_done()?;
                let next = self.call();
                ensure!(code(&next) == Code::NotFound, "{next:?} of a container that has ended");
                Ok(())
            }
            // Only containerd's own shim, which does not know that it is done, nor learns it by the next try.
            Step::Start | Step::Pause | Step::Resume => {
                let now = Seen::of(&self.task)?;
                ensure!(now.status == self.before.status, "{now:?} after {:?}", self.before);
                let next = self.call();
                ensure!(next.is_err(), "the next try works");
                Ok(())
            }
        }
    }

    /// The command was killed somewhere on its way, or had just ended: all is as before or done.
    fn cut(&self, answer: Answer<()>) -> Result<()> {
        if self.bed.is_reference() {
            // It knows less of what was done than can be asserted: it ends without a trace.
            return Ok(());
        }
        if answer.is_ok() {
            return self.is_done();
        }
        self.says_killed(answer)?;
        if self.step == Step::Exec {
            return self.again();
        }
        match self.call() {
            Ok(()) => self.is_done(),
            Err(status) if self.step == Step::Kill && status.code() == Code::NotFound => self.is_done(),
            Err(status) => Err(status).context("the next try"),
        }
    }

    /// The next try works.
    fn again(&self) -> Result<()> {
        if self.step == Step::Exec {
            // One that could not be started is said to wait still; it can only be deleted.
            self.task.expect("e", TaskStatus::Created)?;
            self.task.delete_exec("e").context("delete the exec that failed")?;
        }
        self.call().context("the next try")?;
        self.is_done()
    }

    /// The step has done what it is for.
    fn is_done(&self) -> Result<()> {
        let status = |status| self.task.expect("", status).map(drop);
        match self.step {
            Step::Create => status(TaskStatus::Created),
            Step::Start | Step::Resume => status(TaskStatus::Running),
            Step::Pause => status(TaskStatus::Paused),
            Step::Exec => self.task.expect("e", TaskStatus::Running).map(drop),
            Step::Pids => {
                let (pids, init) = (self.task.pids()?, self.task.get("")?.pid);
                ensure!(pids.iter().any(|process| process.pid == init), "no {init} in {pids:?}");
                Ok(())
            }
            Step::Update => {
                let limit = Seen::of(&self.task)?.limit;
                ensure!(limit == Some(UPDATED), "the limit is {limit:?}");
                Ok(())
            }
            Step::Kill => {
                let exit = self.task.wait("")?.exit_status;
                ensure!(exit == 137, "exit status {exit}");
                Ok(())
            }
            Step::Delete => {
                let now = Seen::of(&self.task)?;
                ensure!(now.status.is_none(), "{now:?}");
                Ok(())
            }
        }
    }

    fn says_killed(&self, answer: Answer<()>) -> Result<()> {
        let words = if self.bed.is_reference() { "exit status 137" } else { "was killed by signal 9" };
        let error = answer.err().with_context(|| format!("{:?} succeeds", self.step))?;
        ensure!(error.message().contains(words), "does not say {words:?}: {error}");
        Ok(())
    }

    /// Whatever was done: the container can be ended and removed.
    fn end(self) -> Result<()> {
        let task = self.task;
        if Seen::of(&task)?.status == Some(TaskStatus::Paused) {
            // Not paused, if the command that was to resume it had done so.
            let _ = task.resume();
        }
        match task.get("") {
            Ok(_) => task.remove(),
            Err(_) => task.forget(),
        }
    }
}

/// How long the client of a command that hangs waits for it.
const DEADLINE: Duration = Duration::from_secs(8);
/// And how long a create may take of which nothing can be undone.
const UNDONE: Duration = Duration::from_secs(100);

/// A command does its work and hangs: no other container of the shim waits for it, it is killed when its client's deadline has
/// passed, and what it did counts.
fn hangs(bed: &Bed, step: Step) -> Result<String> {
    let traces = Traces::of_idle(&bed.world(), bed.stack)?;
    let group = format!("io.containerd.runc.v2.group={}", bed.id("group"));
    let options = ["--annotation", group.as_str()];
    let other = Task::container(bed, "other", &options, &SLEEP)?;
    other.create(&Stdio::default())?;
    other.start("")?;
    let stuck = Killed::prepare(bed, "runc", step, &options)?;
    stuck.faulty.plan(step.command(), How::DoAndHang)?;
    let (began, client, id) = (Instant::now(), bed.client(), stuck.task.id.as_str());
    let (answer, hung) = std::thread::scope(|scope| {
        let caller = scope.spawn(move || call_within(client, step, id));
        let hung = format!("/proc/{}", stuck.faulty.hung()?);
        other.run_exec("e", &Stdio::default(), &["/bin/true"])?;
        ensure!(other.wait("e")?.exit_status == 0, "an exec of another container failed");
        other.pause()?;
        other.resume()?;
        ensure!(began.elapsed() < DEADLINE, "the other container waited, {:?}", began.elapsed());
        ensure!(Path::new(&hung).exists(), "the command does not hang");
        Ok((caller.join().map_err(|_| anyhow!("the caller panicked"))?, hung))
    })?;
    // Whether this client or containerd gives up first, and so the code, is chance.
    ensure!(answer.is_err() && began.elapsed() >= DEADLINE, "{answer:?} after {:?}", began.elapsed());
    eventually("the command to be killed", || {
        ensure!(!Path::new(&hung).exists(), "{hung} is there");
        Ok(())
    })?;
    let killed = began.elapsed();
    if bed.is_reference() {
        // As after one that was killed, when the shim has noticed: until then it says that it pauses.
        let before = stuck.before.status.context("no task")?;
        eventually("the step to be given up", || stuck.task.expect("", before).map(drop))?;
    } else {
        eventually("the step to be done", || stuck.is_done())?;
    }
    stuck.end()?;
    other.remove()?;
    traces.settle(&bed.world(), forgiven(bed.stack))?;
    Ok(format!("killed after {killed:?}"))
}

/// The command that takes away what a create has left never ends: the create is answered all the same, and nothing is left.
fn undoing_hangs(bed: &Bed) -> Result<String> {
    let traces = Traces::of_idle(&bed.world(), bed.stack)?;
    let one = Killed::prepare(bed, "runc", Step::Create, &[])?;
    one.faulty.plan("create", How::DoAndDie)?;
    one.faulty.plan("delete", How::Hang)?;
    let began = Instant::now();
    let answer = one.call();
    let answered = began.elapsed();
    one.says_killed(answer)?;
    ensure!(answered < UNDONE, "answered after {answered:?}");
    let hung = format!("/proc/{}", one.faulty.hung()?);
    eventually("the command to be killed", || {
        ensure!(!Path::new(&hung).exists(), "{hung} is there");
        Ok(())
    })?;
    let killed = began.elapsed();
    one.again()?;
    one.end()?;
    traces.settle(&bed.world(), forgiven(bed.stack))?;
    Ok(format!("answered after {answered:.1?}, killed after {killed:.1?}"))
}

fn call_within(client: &Client, step: Step, id: &str) -> Answer<()> {
    let (mut tasks, id) = (client.tasks(), id.to_owned());
    match step {
        Step::Pause => {
            let mut pause = request(api::PauseTaskRequest { container_id: id });
            pause.set_timeout(DEADLINE);
            client.call(tasks.pause(pause))
        }
        Step::Resume => {
            let mut resume = request(api::ResumeTaskRequest { container_id: id });
            resume.set_timeout(DEADLINE);
            client.call(tasks.resume(resume))
        }
        _ => {
            let mut start = request(api::StartRequest { container_id: id, ..Default::default() });
            start.set_timeout(DEADLINE);
            client.call(tasks.start(start)).map(drop)
        }
    }
}
