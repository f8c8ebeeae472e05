//! One container's task, driven through containerd's Tasks service: a method per call, with containerd's own answers.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow, ensure};
use capsule_proto::containerd::services::containers::v1::{
    Container, CreateContainerRequest, DeleteContainerRequest, GetContainerRequest, UpdateContainerRequest,
};
use capsule_proto::containerd::services::snapshots::v1::MountsRequest;
use capsule_proto::containerd::services::tasks::v1 as api;
use capsule_proto::containerd::types::Mount;
use capsule_proto::containerd::v1::types::{Process, ProcessInfo, Status as TaskStatus};
use prost_types::{Any, FieldMask, Timestamp};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tonic::Code;

use super::asked::Asked;
use super::bed::{Bed, FILES};
use super::client::{Answer, Client, code, request};
use crate::images::Image;
use crate::scenario::ctr::ctr;

/// What containerd answers for a time that there is none of: Go's zero time.
pub const NO_TIME: Option<Timestamp> = Some(Timestamp { seconds: -62_135_596_800, nanos: 0 });

/// A container; its task and itself are removed when this is dropped.
#[derive(Debug)]
pub struct Task<'a> {
    /// As containerd knows it.
    pub id: String,
    client: &'a Client,
    snapshotter: &'static str,
    /// The key of its root file system.
    key: String,
}

/// Where a process' streams go, in containerd's words.
#[derive(Debug, Clone, Default)]
pub struct Stdio {
    /// A FIFO, or nothing.
    pub stdin: String,
    /// A FIFO or a log URI, or nothing.
    pub stdout: String,
    /// The same.
    pub stderr: String,
    /// Whether the process has a terminal.
    pub terminal: bool,
}

impl Stdio {
    /// FIFOs in a directory of their own, for those of `stdin`, `stdout` and `stderr` that the case deals with. An output
    /// that it does not deal with is read all the same: containerd's own shim wants both or none.
    pub fn fifos(bed: &Bed, names: &[&str]) -> Result<Self> {
        let directory = make_directory(bed)?;
        let stdin = if names.contains(&"stdin") { make_fifo(&directory, "stdin")? } else { String::new() };
        let output = |name| -> Result<String> {
            let path = make_fifo(&directory, name)?;
            if !names.contains(&name) {
                read_all(&path);
            }
            Ok(path)
        };
        Ok(Self { stdin, stdout: output("stdout")?, stderr: output("stderr")?, terminal: false })
    }

    /// FIFOs of a terminal.
    pub fn terminal(bed: &Bed) -> Result<Self> {
        let directory = make_directory(bed)?;
        let (stdin, stdout) = (make_fifo(&directory, "stdin")?, make_fifo(&directory, "stdout")?);
        Ok(Self { stdin, stdout, stderr: String::new(), terminal: true })
    }
}

fn make_directory(bed: &Bed) -> Result<PathBuf> {
    let directory = PathBuf::from(format!("{FILES}/{}", bed.id("io")));
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    Ok(directory)
}

fn make_fifo(directory: &Path, name: &str) -> Result<String> {
    let path = directory.join(name);
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
        .with_context(|| format!("make {}", path.display()))?;
    Ok(path.display().to_string())
}

/// Reads a FIFO from its first to its last byte, on a thread of its own, as a client does.
pub fn read_all(fifo: &str) -> JoinHandle<Result<Vec<u8>>> {
    let fifo = fifo.to_owned();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut file = File::open(&fifo).with_context(|| format!("open {fifo}"))?;
        file.read_to_end(&mut bytes).with_context(|| format!("read {fifo}"))?;
        Ok(bytes)
    })
}

/// What such a thread has read.
pub fn text_of(reader: JoinHandle<Result<Vec<u8>>>) -> Result<String> {
    let bytes = reader.join().map_err(|_| anyhow!("the reader panicked"))??;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The OCI process of an exec.
pub fn process(command: &[&str], terminal: bool) -> Any {
    let process = serde_json::json!({
        "terminal": terminal,
        "user": { "uid": 0, "gid": 0 },
        "args": command,
        "env": ["PATH=/bin:/sbin", "TERM=xterm"],
        "cwd": "/",
    });
    Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
        value: process.to_string().into_bytes(),
    }
}

impl<'a> Task<'a> {
    /// A container without a task, with `options` of `ctr container create`.
    pub fn container(bed: &'a Bed, hint: &str, options: &[&str], command: &[&str]) -> Result<Self> {
        let (id, stack) = (bed.id(hint), bed.stack);
        let mut args =
            vec!["container", "create", "--runtime", stack.runtime, "--snapshotter", stack.snapshotter];
        args.extend(options);
        args.extend([Image::Busybox.name(), &id]);
        args.extend(command);
        ctr(&args)?.success("ctr container create")?;
        let task = Self { key: id.clone(), id, client: bed.client(), snapshotter: stack.snapshotter };
        if !bed.facts().cgroups.own {
            task.change_spec(|spec| spec["linux"]["cgroupsPath"] = "".into())?;
        }
        Ok(task)
    }

    /// The same with a record that `ctr` cannot write.
    pub fn container_as(
        bed: &'a Bed,
        hint: &str,
        command: &[&str],
        change: impl FnOnce(&mut Container),
    ) -> Result<Self> {
        // It is replaced by one under another id: there is no moment at which none holds its root file system.
        let mut task = Self::container(bed, hint, &[], command)?;
        let (client, mut containers) = (bed.client(), bed.client().containers());
        let get = GetContainerRequest { id: task.id.clone() };
        let mut container = client.call(containers.get(request(get)))?.container.context("no container")?;
        container.id = bed.id(hint);
        change(&mut container);
        let id = container.id.clone();
        let create = CreateContainerRequest { container: Some(container) };
        client.call(containers.create(request(create))).context("write a container's record")?;
        let forget = DeleteContainerRequest { id: std::mem::replace(&mut task.id, id) };
        client.call(containers.delete(request(forget))).context("remove a container's record")?;
        Ok(task)
    }

    /// Changes the spec of the container, of whose task there is none yet, beyond what `ctr` has options for.
    pub fn change_spec(&self, change: impl FnOnce(&mut serde_json::Value)) -> Result<()> {
        let mut containers = self.client.containers();
        let get = GetContainerRequest { id: self.id.clone() };
        let container = self.client.call(containers.get(request(get)))?.container;
        let mut container = container.context("no container")?;
        let spec = container.spec.as_mut().context("no spec")?;
        let mut json = serde_json::from_slice(&spec.value).context("parse the spec")?;
        change(&mut json);
        spec.value = json.to_string().into_bytes();
        let update_mask = Some(FieldMask { paths: vec!["spec".to_owned()] });
        let update = UpdateContainerRequest { container: Some(container), update_mask };
        self.client.call(containers.update(request(update))).map(drop).context("change the spec")
    }

    /// A container with a task that waits to be started.
    pub fn created(bed: &'a Bed, hint: &str, stdio: &Stdio, command: &[&str]) -> Result<Self> {
        let options: &[&str] = if stdio.terminal { &["--tty"] } else { &[] };
        let task = Self::container(bed, hint, options, command)?;
        task.create(stdio).context("create the task")?;
        Ok(task)
    }

    /// A container with a task that runs.
    pub fn started(bed: &'a Bed, hint: &str, stdio: &Stdio, command: &[&str]) -> Result<Self> {
        let task = Self::created(bed, hint, stdio, command)?;
        task.start("").context("start the task")?;
        Ok(task)
    }

    /// Create; the pid.
    pub fn create(&self, stdio: &Stdio) -> Answer<u32> {
        self.create_as(stdio, Asked::default())
    }

    /// The same, with what is asked beyond that.
    pub fn create_as(&self, stdio: &Stdio, asked: Asked) -> Answer<u32> {
        let key = MountsRequest { snapshotter: self.snapshotter.to_owned(), key: self.key.clone() };
        let mounts = self.client.call(self.client.snapshots().mounts(request(key)))?;
        self.create_with(mounts.mounts, stdio, asked)
    }

    /// Create with these mounts for a root; the pid.
    pub fn create_on(&self, rootfs: Vec<Mount>, stdio: &Stdio) -> Answer<u32> {
        self.create_with(rootfs, stdio, Asked::default())
    }

    fn create_with(&self, rootfs: Vec<Mount>, stdio: &Stdio, asked: Asked) -> Answer<u32> {
        let create = api::CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs,
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            terminal: stdio.terminal,
            options: asked.options,
            runtime_path: asked.program,
            ..Default::default()
        };
        self.client.call(self.client.tasks().create(request(create))).map(|answer| answer.pid)
    }

    /// Start of the init (no `exec`) or an exec; the pid.
    pub fn start(&self, exec: &str) -> Answer<u32> {
        let start = api::StartRequest { container_id: self.id.clone(), exec_id: exec.to_owned() };
        self.client.call(self.client.tasks().start(request(start))).map(|answer| answer.pid)
    }

    /// Delete of the task.
    pub fn delete(&self) -> Answer<api::DeleteResponse> {
        let delete = api::DeleteTaskRequest { container_id: self.id.clone() };
        self.client.call(self.client.tasks().delete(request(delete)))
    }

    /// Delete of an exec.
    pub fn delete_exec(&self, exec: &str) -> Answer<api::DeleteResponse> {
        let delete = api::DeleteProcessRequest { container_id: self.id.clone(), exec_id: exec.to_owned() };
        self.client.call(self.client.tasks().delete_process(request(delete)))
    }

    /// Exec: adds a process, which does not run yet.
    pub fn exec(&self, exec: &str, stdio: &Stdio, command: &[&str]) -> Answer<()> {
        self.exec_spec(exec, stdio, process(command, stdio.terminal))
    }

    /// The same with any description of a process.
    pub fn exec_spec(&self, exec: &str, stdio: &Stdio, spec: Any) -> Answer<()> {
        let exec = api::ExecProcessRequest {
            container_id: self.id.clone(),
            exec_id: exec.to_owned(),
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            terminal: stdio.terminal,
            spec: Some(spec),
        };
        self.client.call(self.client.tasks().exec(request(exec))).map(drop)
    }

    /// An exec that runs; its pid.
    pub fn run_exec(&self, exec: &str, stdio: &Stdio, command: &[&str]) -> Result<u32> {
        self.exec(exec, stdio, command).with_context(|| format!("add exec {exec}"))?;
        self.start(exec).with_context(|| format!("start exec {exec}"))
    }

    /// Kill.
    pub fn kill(&self, exec: &str, signal: u32, all: bool) -> Answer<()> {
        let kill = api::KillRequest { container_id: self.id.clone(), exec_id: exec.to_owned(), signal, all };
        self.client.call(self.client.tasks().kill(request(kill)))
    }

    /// Wait: returns at the end of the process.
    pub fn wait(&self, exec: &str) -> Answer<api::WaitResponse> {
        let wait = api::WaitRequest { container_id: self.id.clone(), exec_id: exec.to_owned() };
        self.client.call(self.client.tasks().wait(request(wait)))
    }

    /// Get: the process as the shim's State has it.
    pub fn get(&self, exec: &str) -> Answer<Process> {
        let get = api::GetRequest { container_id: self.id.clone(), exec_id: exec.to_owned() };
        let answer = self.client.call(self.client.tasks().get(request(get)))?;
        answer.process.ok_or_else(|| tonic::Status::internal("the answer names no process"))
    }

    /// Fails unless the process has this status.
    pub fn expect(&self, exec: &str, status: TaskStatus) -> Result<Process> {
        let process = self.get(exec)?;
        ensure!(process.status() == status, "{} {exec}: {process:?} is not {status:?}", self.id);
        Ok(process)
    }

    /// ListPids.
    pub fn pids(&self) -> Answer<Vec<ProcessInfo>> {
        let list = api::ListPidsRequest { container_id: self.id.clone() };
        self.client.call(self.client.tasks().list_pids(request(list))).map(|answer| answer.processes)
    }

    /// Pause.
    pub fn pause(&self) -> Answer<()> {
        let pause = api::PauseTaskRequest { container_id: self.id.clone() };
        self.client.call(self.client.tasks().pause(request(pause)))
    }

    /// Resume.
    pub fn resume(&self) -> Answer<()> {
        let resume = api::ResumeTaskRequest { container_id: self.id.clone() };
        self.client.call(self.client.tasks().resume(request(resume)))
    }

    /// ResizePty.
    pub fn resize(&self, exec: &str, width: u32, height: u32) -> Answer<()> {
        let resize =
            api::ResizePtyRequest { container_id: self.id.clone(), exec_id: exec.to_owned(), width, height };
        self.client.call(self.client.tasks().resize_pty(request(resize)))
    }

    /// CloseIO of standard input.
    pub fn close_stdin(&self, exec: &str) -> Answer<()> {
        let close =
            api::CloseIoRequest { container_id: self.id.clone(), exec_id: exec.to_owned(), stdin: true };
        self.client.call(self.client.tasks().close_io(request(close)))
    }

    /// Update with OCI's `LinuxResources` as JSON.
    pub fn update(&self, resources: &str) -> Answer<()> {
        self.client.update_task(&self.id, resources)
    }

    /// Metrics of this task: how many there are.
    pub fn metrics(&self) -> Answer<usize> {
        let metrics = api::MetricsRequest { filters: vec![format!("id=={}", self.id)] };
        self.client.call(self.client.tasks().metrics(request(metrics))).map(|answer| answer.metrics.len())
    }

    /// Kills the init, if it has not ended, and waits for its end; its exit status.
    pub fn end(&self) -> Result<u32> {
        let killed = self.kill("", 9, false);
        // One whose end is not told yet is there, and the runtime knows that it has ended.
        if code(&killed) != Code::NotFound {
            killed.context("kill the init")?;
        }
        Ok(self.wait("").context("wait for the init")?.exit_status)
    }

    /// Removes the container, whose task is gone.
    pub fn forget(self) -> Result<()> {
        ctr(&["container", "rm", &self.id])?.success("ctr container rm")?;
        std::mem::forget(self);
        Ok(())
    }

    /// Ends and removes the task and the container.
    pub fn remove(self) -> Result<()> {
        if self.get("").is_ok_and(|process| process.status() != TaskStatus::Stopped) {
            self.end()?;
        }
        self.delete().context("delete the task")?;
        self.forget()
    }
}

impl Drop for Task<'_> {
    fn drop(&mut self) {
        if self.get("").is_ok_and(|process| process.status() == TaskStatus::Paused) {
            let _ = self.resume();
        }
        if self.kill("", 9, true).is_ok() {
            let _ = self.wait("");
        }
        let _ = self.delete();
        let _ = ctr(&["container", "rm", &self.id]);
    }
}
