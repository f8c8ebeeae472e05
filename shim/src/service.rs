//! The Task API (`containerd.task.v3.Task`, and `v2`): from the wire to the engine and back. No decision is made here.

mod sandbox;
mod status;

use std::{collections::HashMap, path::Path, sync::Arc};

use async_trait::async_trait;
use containerd_shim::{
    Task, TtrpcContext, TtrpcResult,
    api::{
        CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
        CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
        PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest,
        StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
        UpdateTaskRequest, WaitRequest, WaitResponse,
    },
    protos::{
        events::task::{TaskCreate, TaskIO},
        shim::oci::ProcessDetails,
        shim_async::create_task,
        types::task::{ProcessInfo, Status as WireStatus},
    },
};
use containerd_shim_protos::sandbox_async::create_sandbox;
use protobuf::{EnumOrUnknown, MessageField};
use sandbox::SandboxService;
use status::wire;

use crate::{
    bundle::Bundle,
    caller,
    engine::{
        Checkpoint, Container, Create, CreateEvent, Engine, EngineError, Id,
        state::{Exit, Status},
    },
    events::{no_time, timestamp},
    io::Stdio,
    message::{self, RUNC},
    options::{CheckpointOptions, Options},
    rootfs::Mount,
};

/// What the server serves: the Sandbox service, and one Task service under both of its names. Version 3 is version 2 with another package name
/// (`api/runtime/task/v2/shim.proto` and `v3` differ in nothing else, up to containerd 2.4).
pub fn all(engine: &Arc<Engine>) -> HashMap<String, ttrpc::asynchronous::Service> {
    let task = || create_task(Arc::new(Service(engine.clone())));
    let older = task().into_values().map(|service| (TASK_V2.to_owned(), service));
    let sandbox = create_sandbox(Arc::new(SandboxService(engine.clone())));
    task().into_iter().chain(older).chain(sandbox).collect()
}

const TASK_V2: &str = "containerd.task.v2.Task";

/// The Task service over an engine.
struct Service(Arc<Engine>);

impl Service {
    fn container(&self, id: &str) -> TtrpcResult<Arc<Container>> {
        self.0.container(id).map_err(wire)
    }
}

/// Runs a step to its end even when the client gives up: half a step is worse than one that nobody waits for. See
/// [`caller`] for one that has no end.
async fn to_end<T: Send + 'static>(
    step: impl Future<Output = Result<T, EngineError>> + Send + 'static,
) -> TtrpcResult<T> {
    match caller::to_end(step).await {
        Ok(result) => result.map_err(wire),
        Err(error) => Err(ttrpc::Error::Others(format!("the step ended early: {error}"))),
    }
}

#[async_trait]
impl Task for Service {
    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> TtrpcResult<CreateTaskResponse> {
        let create = parse_create(&request).map_err(wire)?;
        let engine = self.0.clone();
        let pid = to_end(async move { engine.create(create, Created(request)).await }).await?;
        Ok(CreateTaskResponse { pid: pid.cast_unsigned(), ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> TtrpcResult<StartResponse> {
        let container = self.container(&request.id)?;
        let pid = to_end(async move { container.start(&request.exec_id).await }).await?;
        Ok(StartResponse { pid: pid.cast_unsigned(), ..Default::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> TtrpcResult<DeleteResponse> {
        let engine = self.0.clone();
        let state = to_end(async move {
            if request.exec_id.is_empty() {
                engine.delete(&request.id).await
            } else {
                engine.container(&request.id)?.delete_exec(&request.exec_id).await
            }
        })
        .await?;
        let (exit_status, exited_at) = exit(state.exit());
        Ok(DeleteResponse { pid: state.pid().cast_unsigned(), exit_status, exited_at, ..Default::default() })
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> TtrpcResult<Empty> {
        let add = || {
            let id = Id::parse(&request.exec_id)?;
            let stdio = Stdio::parse(&request.stdin, &request.stdout, &request.stderr, request.terminal)?;
            self.0.container(&request.id)?.add_exec(&id, stdio, &request.spec.value)
        };
        add().map_err(wire)?;
        Ok(Empty::default())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> TtrpcResult<Empty> {
        let process = self.container(&request.id)?.process(&request.exec_id).map_err(wire)?;
        let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
        process.resize(cells(request.width), cells(request.height)).map_err(wire)?;
        Ok(Empty::default())
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> TtrpcResult<StateResponse> {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id).map_err(wire)?;
        let (state, stdio) = (process.state(), process.stdio());
        let (exit_status, exited_at) = exit(state.exit());
        let [stdin, stdout, stderr] = stdio.asked.clone();
        // As containerd's own shim tells it.
        let process_id = if request.exec_id.is_empty() { request.id } else { request.exec_id.clone() };
        Ok(StateResponse {
            id: process_id,
            bundle: container.bundle().path().display().to_string(),
            pid: state.pid().cast_unsigned(),
            status: EnumOrUnknown::new(task_status(container.status(&process))),
            stdin,
            stdout,
            stderr,
            terminal: stdio.terminal,
            exit_status,
            exited_at,
            exec_id: request.exec_id,
            ..Default::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> TtrpcResult<Empty> {
        let container = self.container(&request.id)?;
        to_end(async move { container.pause().await }).await?;
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> TtrpcResult<Empty> {
        let container = self.container(&request.id)?;
        to_end(async move { container.resume().await }).await?;
        Ok(Empty::default())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> TtrpcResult<Empty> {
        let container = self.container(&request.id)?;
        to_end(async move { container.kill(&request.exec_id, request.signal, request.all).await }).await?;
        Ok(Empty::default())
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> TtrpcResult<PidsResponse> {
        let container = self.container(&request.id)?;
        let pids = to_end(async move { container.pids().await }).await?;
        let processes =
            pids.into_iter().map(|(pid, exec)| process_info(pid, exec)).collect::<Result<_, _>>()?;
        Ok(PidsResponse { processes, ..Default::default() })
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> TtrpcResult<Empty> {
        let process = self.container(&request.id)?.process(&request.exec_id).map_err(wire)?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(Empty::default())
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> TtrpcResult<Empty> {
        let container = self.container(&request.id)?;
        let options = CheckpointOptions::from_any(request.options.as_ref());
        let options = options.map_err(|e| wire(e.into()))?;
        to_end(async move { container.checkpoint(Path::new(&request.path), &options).await }).await?;
        Ok(Empty::default())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> TtrpcResult<Empty> {
        let engine = self.0.clone();
        to_end(async move { engine.update(&request.id, &request.resources.value).await }).await?;
        Ok(Empty::default())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> TtrpcResult<WaitResponse> {
        let process = self.container(&request.id)?.process(&request.exec_id).map_err(wire)?;
        let (exit_status, exited_at) = exit(process.wait().await);
        Ok(WaitResponse { exit_status, exited_at, ..Default::default() })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> TtrpcResult<StatsResponse> {
        let stats = self.container(&request.id)?.metrics().map_err(wire)?;
        Ok(StatsResponse { stats: MessageField::some(stats), ..Default::default() })
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> TtrpcResult<ConnectResponse> {
        let task_pid = self.0.container(&request.id).map_or(0, |container| container.init().state().pid());
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: task_pid.cast_unsigned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> TtrpcResult<Empty> {
        if request.id.is_empty() {
            // Of the `delete` action. containerd names a container.
            let engine = self.0.clone();
            tokio::spawn(async move { engine.shutdown_if_idle().await });
        } else {
            self.0.shutdown();
        }
        Ok(Empty::default())
    }
}

fn parse_create(request: &CreateTaskRequest) -> Result<Create, EngineError> {
    let path = |path: &str| (!path.is_empty()).then(|| path.into());
    let checkpoint =
        path(&request.checkpoint).map(|image| Checkpoint { image, parent: path(&request.parent_checkpoint) });
    let mount = |mount: &containerd_shim::protos::types::mount::Mount| Mount {
        kind: mount.type_.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        options: mount.options.clone(),
    };
    Ok(Create {
        id: Id::parse(&request.id)?,
        bundle: Bundle::new(&request.bundle)?,
        rootfs: request.rootfs.iter().map(mount).collect(),
        stdio: Stdio::parse(&request.stdin, &request.stdout, &request.stderr, request.terminal)?,
        options: Options::from_any(request.options.as_ref())?,
        checkpoint,
    })
}

/// The event of a creation repeats the request.
struct Created(CreateTaskRequest);

impl CreateEvent for Created {
    type Event = TaskCreate;

    fn with_pid(self, pid: i32) -> TaskCreate {
        let CreateTaskRequest { id, bundle, rootfs, terminal, stdin, stdout, stderr, checkpoint, .. } =
            self.0;
        TaskCreate {
            container_id: id,
            bundle,
            rootfs,
            io: MessageField::some(TaskIO { stdin, stdout, stderr, terminal, ..Default::default() }),
            checkpoint,
            pid: pid.cast_unsigned(),
            ..Default::default()
        }
    }
}

fn process_info(pid: u32, exec: Option<String>) -> TtrpcResult<ProcessInfo> {
    let details = |exec_id| message::wrap(RUNC, &ProcessDetails { exec_id, ..Default::default() });
    let info = exec.map(details).transpose().map_err(|e| ttrpc::Error::Others(e.to_string()))?;
    Ok(ProcessInfo { pid, info: info.into(), ..Default::default() })
}

fn task_status(status: Status) -> WireStatus {
    match status {
        Status::Created => WireStatus::CREATED,
        Status::Running => WireStatus::RUNNING,
        Status::Pausing => WireStatus::PAUSING,
        Status::Paused => WireStatus::PAUSED,
        Status::Stopped => WireStatus::STOPPED,
    }
}

fn exit(exit: Option<Exit>) -> (u32, MessageField<protobuf::well_known_types::timestamp::Timestamp>) {
    let (status, at) = exit.map_or_else(|| (0, no_time()), |exit| (exit.status, timestamp(exit.at)));
    (status, MessageField::some(at))
}
