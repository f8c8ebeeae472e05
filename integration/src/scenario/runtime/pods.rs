//! Pods as CRI of containerd 2 makes them: it starts a shim for the first container alone, and sends the others' calls to its
//! address by itself.

use anyhow::{Context as _, Result, ensure};
use capsule_proto::containerd::services::containers::v1::Container as Record;
use containerd_shim::api::Options;

use super::asked::Asked;
use super::bed::{Bed, SLEEP, eventually, processes_named};
use super::kills::{forgiven, kill, shim_of, wait_until_gone};
use super::shim::Shim;
use super::task::{Stdio, Task};
use super::traces::Traces;
use super::{Case, Need};
use crate::scenario::ctr::{Container, REFERENCE};

/// The cases.
pub const CASES: &[Case] = &[
    Case::new("members of a pod are in its shim, also after a restart of containerd", |bed| life(bed, ""))
        .needs(&[Need::Containerd2])
        .in_vm(),
    Case::new("members of a pod whose shim is killed after a restart of containerd", |bed| killed(bed, ""))
        .needs(&[Need::Containerd2]),
];

const PROGRAM: &str = "/payload/bin/containerd-shim-capsule-v1";

/// The cases of what only ours does.
pub const OWN_CASES: &[Case] = &[
    Case::new("a pod under the name of containerd's own runtime", |bed| life(bed, PROGRAM))
        .needs(&[Need::Containerd2]),
    Case::new("a pod under that name whose shim is killed", |bed| killed(bed, PROGRAM))
        .needs(&[Need::Containerd2]),
];

/// `containerd.services.sandbox.v1.StoreCreateRequest`: that there is a sandbox, not what it is.
#[derive(Clone, PartialEq, prost::Message)]
struct StoreCreate {
    #[prost(message, optional, tag = "1")]
    sandbox: Option<StoredSandbox>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredSandbox {
    #[prost(string, tag = "1")]
    sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    runtime: Option<StoredRuntime>,
    #[prost(string, tag = "10")]
    sandboxer: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredRuntime {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoreDelete {
    #[prost(string, tag = "1")]
    sandbox_id: String,
}

/// A pod's first container, which runs, and what names it for the others.
struct Pod<'a> {
    bed: &'a Bed,
    /// The runtime that records name.
    runtime: &'static str,
    program: String,
    first: Task<'a>,
}

impl<'a> Pod<'a> {
    /// With a `program`, under the name of containerd's own runtime.
    fn start(bed: &'a Bed, program: &str) -> Result<Self> {
        let runtime = if program.is_empty() { bed.stack.runtime } else { REFERENCE.runtime };
        let first = Task::container_as(bed, "pause", &SLEEP, |record| name_runtime(record, runtime))?;
        let program = program.to_owned();
        first.create_as(&Stdio::default(), Asked { program: program.clone(), ..Asked::default() })?;
        first.start("")?;
        let sandbox = StoredSandbox {
            sandbox_id: first.id.clone(),
            runtime: Some(StoredRuntime { name: runtime.to_owned() }),
            sandboxer: "podsandbox".to_owned(),
        };
        let create = StoreCreate { sandbox: Some(sandbox) };
        let stored = bed.client().ask::<()>("/containerd.services.sandbox.v1.Store/Create", create);
        stored.context("store a sandbox")?;
        Ok(Self { bed, runtime, program, first })
    }

    /// One more container, which runs.
    fn member(&self) -> Result<Task<'a>> {
        let member = Task::container_as(self.bed, "member", &SLEEP, |record| {
            name_runtime(record, self.runtime);
            record.sandbox = self.first.id.clone();
        })?;
        let (address, version) = Shim::noted(&self.first.id)?;
        let options = Options {
            binary_name: "crun".to_owned(),
            task_api_address: format!("ttrpc+{address}"),
            task_api_version: version,
            ..Default::default()
        };
        let asked = Asked { program: self.program.clone(), ..Asked::with(&options)? };
        member.create_as(&Stdio::default(), asked).context("create a member")?;
        member.start("").context("start a member")?;
        Ok(member)
    }

    fn expect_one_shim(&self) -> Result<()> {
        let shims = processes_named("containerd-shim")?;
        ensure!(shims.len() == 1, "{shims:?}");
        Ok(())
    }

    fn forget(&self) -> Result<()> {
        let delete = StoreDelete { sandbox_id: self.first.id.clone() };
        let forgotten = self.bed.client().ask::<()>("/containerd.services.sandbox.v1.Store/Delete", delete);
        forgotten.context("forget a sandbox")
    }
}

fn name_runtime(record: &mut Record, name: &str) {
    record.runtime.get_or_insert_default().name = name.to_owned();
}

fn expect_exec(task: &Task<'_>, exec: &str) -> Result<()> {
    task.run_exec(exec, &Stdio::default(), &["/bin/sh", "-c", "exit 5"])?;
    let exit = task.wait(exec)?.exit_status;
    ensure!(exit == 5, "the exec ended with {exit}");
    task.delete_exec(exec).context("delete an exec").map(drop)
}

fn life(bed: &Bed, program: &str) -> Result<String> {
    let pod = Pod::start(bed, program)?;
    let (one, two) = (pod.member()?, pod.member()?);
    pod.expect_one_shim()?;
    expect_exec(&one, "x")?;
    ensure!(two.end()? == 137, "another exit status");
    bed.world().restart_containerd()?;
    let container = std::mem::ManuallyDrop::new(Container { id: one.id.clone() });
    container.wait_for("RUNNING")?;
    pod.expect_one_shim()?;
    expect_exec(&one, "y")?;
    expect_exec(&pod.first, "y")?;
    // containerd may have removed it, in which it found no process.
    if two.get("").is_ok() {
        two.delete().context("delete what had ended")?;
    }
    two.forget()?;
    let three = pod.member()?;
    one.remove().context("remove a member")?;
    expect_exec(&three, "x")?;
    three.remove().context("remove the last member")?;
    pod.expect_one_shim()?;
    pod.forget()?;
    pod.first.remove()?;
    eventually("the shim to end", || {
        let shims = processes_named("containerd-shim")?;
        ensure!(shims.is_empty(), "{shims:?}");
        Ok(())
    })?;
    Ok(String::new())
}

fn killed(bed: &Bed, program: &str) -> Result<String> {
    let before = Traces::of_idle(&bed.world(), bed.stack)?;
    let pod = Pod::start(bed, program)?;
    let member = pod.member()?;
    bed.world().restart_containerd()?;
    kill(shim_of(&pod.first.id)?)?;
    for id in [&pod.first.id, &member.id] {
        wait_until_gone(id)?;
    }
    pod.forget()?;
    member.forget()?;
    pod.first.forget()?;
    before.settle(&bed.world(), forgiven(bed.stack))?;
    Ok(String::new())
}
