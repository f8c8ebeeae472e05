//! A capsuled of the tests: serves `capsule.v1` on a temporary socket, keeps what it was asked, gives fixed answers.

mod budgets;
mod devices;
pub mod signatures;
pub mod transfers;
mod trees;
mod uppers;

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use capsule_proto::capsule::v1::attachments_server::{Attachments, AttachmentsServer};
use capsule_proto::capsule::v1::budgets_server::BudgetsServer;
use capsule_proto::capsule::v1::build_request::Part;
use capsule_proto::capsule::v1::capsules_server::{Capsules, CapsulesServer};
use capsule_proto::capsule::v1::collector_server::{Collector, CollectorServer};
use capsule_proto::capsule::v1::devices_server::DevicesServer;
use capsule_proto::capsule::v1::events_server::{Events, EventsServer};
use capsule_proto::capsule::v1::metrics_server::MetricsServer;
use capsule_proto::capsule::v1::signatures_server::SignaturesServer;
use capsule_proto::capsule::v1::tags_server::{Tags, TagsServer};
use capsule_proto::capsule::v1::transfers_server::TransfersServer;
use capsule_proto::capsule::v1::trees_server::TreesServer;
use capsule_proto::capsule::v1::uppers_server::UppersServer;
use capsule_proto::capsule::v1::usage_server::UsageServer;
use capsule_proto::capsule::v1::{self, AttachmentState, Mode};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// A container of this name gets this refusal.
pub const REFUSED: &str = "refused";
pub const REFUSAL: &str = "container `refused` is not running; start it with `ctr task start refused`";
/// A container of this name has devices alone.
pub const DEVICES_ALONE: &str = "gpu-box";
/// A version of this number is refused before its archive is read.
pub const TAKEN: &str = "9.9.9";
/// Seconds since 1970 of every instant in the answers that a JSON test compares.
pub const INSTANT: i64 = 1_700_000_000;

/// What the fake was asked.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)] // a handful at a time
pub enum Asked {
    Build { header: Box<v1::BuildHeader>, tar: Vec<u8>, chunks: usize, whole: bool },
    Ls(v1::ListCapsulesRequest),
    Inspect(v1::InspectCapsuleRequest),
    ListTree(v1::ListTreeRequest),
    Diff(v1::DiffTreesRequest),
    Resolve(v1::ResolveRequest),
    Attach(v1::AttachRequest),
    Upgrade(v1::UpgradeRequest),
    Rollback(v1::RollbackRequest),
    Detach(v1::DetachRequest),
    Ps(v1::ListAttachmentsRequest),
    Watch(v1::WatchRequest),
    Devices(v1::ListDevicesRequest),
    Budgets(v1::ListBudgetsRequest),
    Usage(v1::ListUsageRequest),
    Prune(v1::PruneRequest),
    Remove(v1::RemoveRequest),
    Tag(v1::TagRequest),
    Untag(v1::UntagRequest),
    Pull(v1::PullRequest),
    Push(v1::PushRequest),
    Save(v1::SaveRequest),
    Load(Vec<u8>),
    Import(v1::ImportRequest),
    Sign(v1::SignRequest),
    Signatures(v1::ListSignaturesRequest),
    Commit(v1::CommitRequest),
    RemoveUpper(v1::RemoveUpperRequest),
}

type Log = Arc<Mutex<Vec<Asked>>>;

#[derive(Clone)]
struct Service {
    log: Log,
    follows: Arc<AtomicBool>,
}

impl Service {
    fn heard(&self, asked: Asked) {
        self.log.lock().expect("the log").push(asked);
    }
}

pub fn version() -> v1::Version {
    v1::Version {
        capsule: "tzdata".into(),
        version: "2026.1".into(),
        digest: format!("sha256:{}", "0123456789abcdef".repeat(4)),
        size: 1_572_864,
        created_at: Some(days_ago(3)),
        default_target: "/usr/share/zoneinfo".into(),
        default_mode: Mode::Ro.into(),
        image: "capsule.local/tzdata:2026.1".into(),
        namespace: "capsules".into(),
        complete: true,
        incomplete: String::new(),
        attachments: 1,
        requires: vec!["ca-bundle >=2026".into()],
        environment: [("TZDIR".to_owned(), "/usr/share/zoneinfo".to_owned())].into(),
        resources: [("memory.max".to_owned(), "16M".to_owned())].into(),
        caps: [("pids.max".to_owned(), "9".to_owned())].into(),
        devices: vec!["example.com/clock=rtc".into()],
        seccomp: Some(v1::Seccomp { level: "baseline".into(), deny: vec!["socket".into()] }),
        tags: vec!["next".into(), "stable".into()],
    }
}

fn incomplete() -> v1::Version {
    v1::Version {
        version: "2024.2".into(),
        complete: false,
        incomplete: "layer sha256:11 is missing".into(),
        default_target: String::new(),
        default_mode: Mode::Unspecified.into(),
        attachments: 0,
        size: 10,
        created_at: None,
        tags: Vec::new(),
        ..version()
    }
}

pub fn attachment(state: AttachmentState) -> v1::Attachment {
    v1::Attachment {
        id: "a1".into(),
        container: "web".into(),
        namespace: "default".into(),
        capsule: "tzdata".into(),
        version: "2026.1".into(),
        digest: version().digest,
        target: "/usr/share/zoneinfo".into(),
        mode: Mode::Ro.into(),
        state: state.into(),
        since: Some(prost_types::Timestamp { seconds: INSTANT, nanos: 0 }),
        previous_version: "2024.2".into(),
        ..v1::Attachment::default()
    }
}

fn devices_alone(container: Option<&v1::ContainerRef>) -> Option<v1::Attachment> {
    let container = container.filter(|container| container.id == DEVICES_ALONE)?;
    Some(v1::Attachment {
        id: "d1".into(),
        container: container.id.clone(),
        namespace: "default".into(),
        state: AttachmentState::Attached.into(),
        devices: vec!["nvidia.com/gpu=0".into()],
        ..v1::Attachment::default()
    })
}

fn draining() -> v1::Attachment {
    let user = |pid, how: &str| v1::User {
        pid,
        command: "cat".into(),
        path: "/usr/share/zoneinfo/\x1b[2JUTC".into(),
        how: how.into(),
    };
    let users = vec![user(41, "fd 3"), user(42, "cwd")];
    let attachment = attachment(AttachmentState::Draining);
    v1::Attachment { previous_version: String::new(), users, since: Some(days_ago(4)), ..attachment }
}

/// A few hours more, so that the number of days is the same however long the test takes.
fn days_ago(days: u64) -> prost_types::Timestamp {
    (SystemTime::now() - Duration::from_secs(days * 86_400 + 7_200)).into()
}

fn refuse(container: Option<&v1::ContainerRef>) -> Result<(), Status> {
    match container {
        Some(c) if c.id == REFUSED => Err(Status::failed_precondition(REFUSAL)),
        _ => Ok(()),
    }
}

#[tonic::async_trait]
impl Capsules for Service {
    async fn build(
        &self,
        request: Request<Streaming<v1::BuildRequest>>,
    ) -> Result<Response<v1::BuildResponse>, Status> {
        let mut messages = request.into_inner();
        let Some(v1::BuildRequest { part: Some(Part::Header(header)) }) = messages.message().await? else {
            return Err(Status::invalid_argument("the first message is not a header"));
        };
        if header.version == TAKEN {
            return Err(Status::already_exists(
                "tzdata@9.9.9 exists with another digest; publish a new version",
            ));
        }
        let (mut tar, mut chunks) = (Vec::new(), 0);
        let whole = loop {
            match messages.message().await {
                Ok(Some(v1::BuildRequest { part: Some(Part::Tar(chunk)) })) => {
                    tar.extend(chunk);
                    chunks += 1;
                }
                Ok(Some(_)) => return Err(Status::invalid_argument("a second header")),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        let existed = header.annotations.contains_key("again");
        self.heard(Asked::Build { header: Box::new(header), tar, chunks, whole });
        Ok(Response::new(v1::BuildResponse { version: Some(version()), existed }))
    }

    async fn list_capsules(
        &self,
        request: Request<v1::ListCapsulesRequest>,
    ) -> Result<Response<v1::ListCapsulesResponse>, Status> {
        self.heard(Asked::Ls(request.into_inner()));
        Ok(Response::new(v1::ListCapsulesResponse { versions: vec![version(), incomplete()] }))
    }

    async fn inspect_capsule(
        &self,
        request: Request<v1::InspectCapsuleRequest>,
    ) -> Result<Response<v1::InspectCapsuleResponse>, Status> {
        self.heard(Asked::Inspect(request.into_inner()));
        let layer = v1::Layer {
            digest: "sha256:aa".into(),
            diff_id: "sha256:aa".into(),
            media_type: "application/vnd.oci.image.layer.v1.tar".into(),
            size: 2048,
            snapshot: "sha256:aa".into(),
        };
        Ok(Response::new(v1::InspectCapsuleResponse {
            version: Some(version()),
            layers: vec![layer],
            annotations: [("team".to_owned(), "time".to_owned())].into(),
            attachments: vec![draining()],
        }))
    }
}

fn planned(capsule: &str, present: bool, by: &[&str]) -> v1::Planned {
    v1::Planned {
        capsule: capsule.into(),
        version: "1.5".into(),
        digest: version().digest,
        target: format!("/opt/{capsule}"),
        mode: Mode::Ro.into(),
        present,
        required_by: by.iter().map(|name| (*name).to_owned()).collect(),
        from_version: String::new(),
    }
}

#[tonic::async_trait]
impl Tags for Service {
    async fn tag(&self, request: Request<v1::TagRequest>) -> Result<Response<v1::TagResponse>, Status> {
        self.heard(Asked::Tag(request.into_inner()));
        Ok(Response::new(v1::TagResponse { version: Some(version()) }))
    }

    async fn untag(&self, request: Request<v1::UntagRequest>) -> Result<Response<v1::UntagResponse>, Status> {
        let request = request.into_inner();
        let version = (request.tag == "stable").then(version);
        self.heard(Asked::Untag(request));
        Ok(Response::new(v1::UntagResponse { version }))
    }
}

#[tonic::async_trait]
impl Attachments for Service {
    async fn attach(
        &self,
        request: Request<v1::AttachRequest>,
    ) -> Result<Response<v1::AttachResponse>, Status> {
        let request = request.into_inner();
        refuse(request.container.as_ref())?;
        let alone = devices_alone(request.container.as_ref());
        let resources = request.specs.first().and_then(|spec| spec.resources.clone());
        self.heard(Asked::Attach(request));
        if let Some(attachment) = alone {
            return Ok(Response::new(v1::AttachResponse { attachments: vec![attachment] }));
        }
        let attached = v1::Attachment { resources, ..attachment(AttachmentState::Attached) };
        Ok(Response::new(v1::AttachResponse { attachments: vec![attached] }))
    }

    async fn upgrade(
        &self,
        request: Request<v1::UpgradeRequest>,
    ) -> Result<Response<v1::UpgradeResponse>, Status> {
        let request = request.into_inner();
        let from = if request.specs[0].version == "2026.1" { "2026.1" } else { "2024.2" };
        let (dry_run, brings) = (request.dry_run, request.specs[0].capsule == "app");
        self.heard(Asked::Upgrade(request));
        if dry_run {
            let planned = vec![
                v1::Planned { from_version: from.into(), ..planned("tool", false, &["app"]) },
                planned("lib", false, &["app"]),
                v1::Planned { from_version: "1.4".into(), ..planned("app", false, &[]) },
            ];
            return Ok(Response::new(v1::UpgradeResponse { planned, ..Default::default() }));
        }
        let mut answer = v1::UpgradeResponse {
            attachments: vec![attachment(AttachmentState::Attached)],
            from_versions: vec![from.into()],
            planned: Vec::new(),
        };
        if brings {
            let extra = v1::Attachment { capsule: "extra".into(), ..attachment(AttachmentState::Attached) };
            answer.attachments.push(extra);
            answer.from_versions.push(String::new());
        }
        Ok(Response::new(answer))
    }

    async fn rollback(
        &self,
        request: Request<v1::RollbackRequest>,
    ) -> Result<Response<v1::RollbackResponse>, Status> {
        self.heard(Asked::Rollback(request.into_inner()));
        Ok(Response::new(v1::RollbackResponse {
            attachments: vec![attachment(AttachmentState::Attached)],
            from_versions: vec!["2026.2".into()],
        }))
    }

    async fn detach(
        &self,
        request: Request<v1::DetachRequest>,
    ) -> Result<Response<v1::DetachResponse>, Status> {
        let request = request.into_inner();
        let answer = match (devices_alone(request.container.as_ref()), request.lazy) {
            (None, false) => attachment(AttachmentState::Attached),
            (None, true) => draining(),
            (Some(alone), false) => alone,
            (Some(alone), true) => {
                let (command, path, how) = ("python".into(), "/dev/nvidia0".into(), "fd 9".into());
                let users = vec![v1::User { pid: 7, command, path, how }];
                v1::Attachment { state: AttachmentState::Draining.into(), users, ..alone }
            }
        };
        self.heard(Asked::Detach(request));
        Ok(Response::new(v1::DetachResponse { attachments: vec![answer] }))
    }

    async fn resolve(
        &self,
        request: Request<v1::ResolveRequest>,
    ) -> Result<Response<v1::ResolveResponse>, Status> {
        self.heard(Asked::Resolve(request.into_inner()));
        let planned = vec![
            planned("lib", true, &["app", "tool"]),
            planned("tool", false, &["app"]),
            planned("app", false, &[]),
        ];
        Ok(Response::new(v1::ResolveResponse { planned }))
    }

    async fn list_attachments(
        &self,
        request: Request<v1::ListAttachmentsRequest>,
    ) -> Result<Response<v1::ListAttachmentsResponse>, Status> {
        let request = request.into_inner();
        let alone = devices_alone(request.container.as_ref());
        self.heard(Asked::Ps(request));
        if let Some(attachment) = alone {
            return Ok(Response::new(v1::ListAttachmentsResponse { attachments: vec![attachment] }));
        }
        let since = Some(days_ago(5));
        let attached = v1::Attachment { since, ..attachment(AttachmentState::Attached) };
        let elsewhere = v1::Attachment {
            namespace: "k8s.io".into(),
            container: "3f2a".into(),
            pod: "shop/cart".into(),
            pod_container: "app".into(),
            ..attached.clone()
        };
        Ok(Response::new(v1::ListAttachmentsResponse { attachments: vec![attached, elsewhere, draining()] }))
    }
}

fn judged(version: &str, reason: &str) -> v1::Judged {
    v1::Judged {
        capsule: "tzdata".into(),
        version: version.into(),
        digest: self::version().digest,
        size: 2048,
        removed: reason.is_empty(),
        reason: reason.into(),
    }
}

#[tonic::async_trait]
impl Collector for Service {
    async fn prune(&self, request: Request<v1::PruneRequest>) -> Result<Response<v1::PruneResponse>, Status> {
        self.heard(Asked::Prune(request.into_inner()));
        let judged = vec![judged("2", "in use: somebody"), judged("1", "")];
        Ok(Response::new(v1::PruneResponse { judged }))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveRequest>,
    ) -> Result<Response<v1::RemoveResponse>, Status> {
        let request = request.into_inner();
        let version = request.version.clone();
        self.heard(Asked::Remove(request));
        if version == TAKEN {
            return Err(Status::failed_precondition("tzdata@9.9.9 cannot be removed: in use: somebody"));
        }
        Ok(Response::new(v1::RemoveResponse { removed: Some(judged(&version, "")) }))
    }
}

#[tonic::async_trait]
impl Events for Service {
    type WatchStream = tokio_stream::Iter<std::vec::IntoIter<Result<v1::WatchResponse, Status>>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let after = request.after.unwrap_or(100);
        self.heard(Asked::Watch(request.clone()));
        if after == 7 {
            return Err(Status::out_of_range("events after 7 are no longer kept"));
        }
        // As it was asked for: by a pod, by Docker's name, by an id.
        let [container_name, pod, pod_container] =
            match (request.container.as_str(), request.namespace.as_str()) {
                ("pod/shop/cart/app", _) => ["", "shop/cart", "app"],
                (name, "moby") => [name, "", ""],
                _ => ["", "", ""],
            }
            .map(str::to_owned);
        let event = v1::Event {
            sequence: after + 1,
            at: Some(prost_types::Timestamp { seconds: INSTANT, nanos: 0 }),
            kind: v1::EventKind::Upgraded.into(),
            container: "web".into(),
            namespace: "default".into(),
            attachment_id: "a1".into(),
            target: "/t".into(),
            capsule: "tzdata".into(),
            version: "2".into(),
            from_version: "1".into(),
            digest: "sha256:00".into(),
            message: "all \x1b[31mwell".into(),
            tag: String::new(),
            container_name,
            pod,
            pod_container,
        };
        Ok(Response::new(tokio_stream::iter(vec![
            Ok(v1::WatchResponse { event: None, sequence: after }),
            Ok(v1::WatchResponse { event: Some(event), sequence: after + 1 }),
        ])))
    }
}

#[tonic::async_trait]
impl Health for Service {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        assert!(["", "capsule.v1.Attachments"].contains(&service.as_str()), "{service}");
        let follows = service.is_empty() || self.follows.load(Ordering::Acquire);
        let status = if follows { ServingStatus::Serving } else { ServingStatus::NotServing };
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    type WatchStream = tokio_stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }
}

/// The fake, listening.
pub struct Fake {
    dir: tempfile::TempDir,
    log: Log,
    follows: Arc<AtomicBool>,
}

impl Fake {
    /// Listens when it returns. The thread that serves ends with the test's process.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let service = Service { log: Log::default(), follows: Arc::new(AtomicBool::new(true)) };
        let (log, follows) = (service.log.clone(), service.follows.clone());
        let socket = dir.path().join("capsuled.sock");
        let (ready, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = UnixListener::bind(socket).expect("a socket");
                ready.send(()).expect("the test waits");
                tonic::transport::Server::builder()
                    .add_service(CapsulesServer::new(service.clone()))
                    .add_service(TagsServer::new(service.clone()))
                    .add_service(SignaturesServer::new(service.clone()))
                    .add_service(TransfersServer::new(service.clone()))
                    .add_service(TreesServer::new(service.clone()))
                    .add_service(UppersServer::new(service.clone()))
                    .add_service(AttachmentsServer::new(service.clone()))
                    .add_service(CollectorServer::new(service.clone()))
                    .add_service(BudgetsServer::new(service.clone()))
                    .add_service(UsageServer::new(service.clone()))
                    .add_service(MetricsServer::new(service.clone()))
                    .add_service(DevicesServer::new(service.clone()))
                    .add_service(HealthServer::new(service.clone()))
                    .add_service(EventsServer::new(service))
                    .serve_with_incoming(UnixListenerStream::new(listener))
                    .await
                    .expect("served");
            });
        });
        wait.recv().expect("the socket");
        Self { dir, log, follows }
    }

    /// Says from now on whether it follows containerd.
    #[allow(dead_code)] // only metrics ask
    pub fn follow(&self, follows: bool) {
        self.follows.store(follows, Ordering::Release);
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("capsuled.sock")
    }

    /// Runs the real capsulectl against the fake.
    pub fn run(&self, args: &[&str]) -> Ran {
        capsulectl(&self.socket(), args)
    }

    /// What was asked since the last call.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.log.lock().expect("the log"))
    }
}

/// What a run of capsulectl left.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the real capsulectl.
pub fn capsulectl(socket: &std::path::Path, args: &[&str]) -> Ran {
    finish(&mut command(socket, args))
}

/// The real capsulectl, not started yet.
pub fn command(socket: &std::path::Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_capsulectl"));
    command.args(args).env("CAPSULE_ADDRESS", socket).env_remove("SOURCE_DATE_EPOCH");
    command.stdin(Stdio::null());
    command
}

/// None here takes a second. One that waits for what does not come is a failure, not a run without an end.
const LONGEST: Duration = Duration::from_secs(60);

/// Runs it to its end; one that has none is killed, and has no code.
pub fn finish(command: &mut Command) -> Ran {
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("capsulectl runs");
    let stdout = text_of(child.stdout.take().expect("it is piped"));
    let stderr = text_of(child.stderr.take().expect("it is piped"));
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("it is a child") {
            break status;
        }
        if begun.elapsed() > LONGEST {
            child.kill().expect("it can be killed");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let text = |reader: JoinHandle<String>| reader.join().expect("UTF-8");
    Ran { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

fn text_of(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).expect("UTF-8");
        text
    })
}
