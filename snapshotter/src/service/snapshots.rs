//! `containerd.services.snapshots.v1` over the snapshot engine.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use capsule_proto::containerd::{
    services::snapshots::v1::{
        CleanupRequest, CommitSnapshotRequest, Info as WireInfo, Kind as WireKind, ListSnapshotsRequest,
        ListSnapshotsResponse, MountsRequest, MountsResponse, PrepareSnapshotRequest,
        PrepareSnapshotResponse, RemoveSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse,
        UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest, UsageResponse, ViewSnapshotRequest,
        ViewSnapshotResponse,
        snapshots_server::{Snapshots as SnapshotsApi, SnapshotsServer},
    },
    types::Mount as WireMount,
};
use futures::{StreamExt as _, future::ready, stream};
use tokio::{
    runtime::Handle,
    sync::{
        Semaphore,
        mpsc::{self, error::SendTimeoutError},
    },
    task::spawn_blocking,
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status};

use super::error_line;
use crate::{
    filters::{Fields, Filters},
    snapshots::{
        Commit, Create, Mount, SnapshotError, Snapshots,
        model::{Info, Key, Kind, LabelUpdate, Labels, Usage},
    },
};

/// How many snapshots one message of a listing carries, as in containerd (`contrib/snapshotservice`).
const BLOCK: usize = 100;
/// How many messages of a listing may wait for a slow client.
const BLOCKS_AHEAD: usize = 2;
/// How long one may. A listing keeps a thread, and old pages of the store from being used again.
const STALLED: Duration = Duration::from_secs(60);
/// How many listings there are at a time; more of them wait, and no other call does.
const LISTINGS: usize = 64;

/// Largest request: the largest that containerd takes and passes on (`defaults/defaults.go`, `DefaultMaxRecvMsgSize`).
const REQUEST_MAX: usize = 16 << 20;

/// The service.
#[derive(Clone, Debug)]
pub struct SnapshotsService {
    engine: Snapshots,
    listings: Arc<Semaphore>,
}

impl SnapshotsService {
    /// The service over `engine`.
    pub fn new(engine: Snapshots) -> Self {
        Self { engine, listings: Arc::new(Semaphore::new(LISTINGS)) }
    }

    /// The service, to be served.
    pub fn into_server(self) -> SnapshotsServer<Self> {
        SnapshotsServer::new(self).max_decoding_message_size(REQUEST_MAX)
    }

    /// Runs a call of the engine where it may wait for the disk. A caller that goes away does not stop it half-way.
    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Snapshots) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, Status> {
        let engine = self.engine.clone();
        match spawn_blocking(move || call(&engine)).await {
            Ok(result) => result.map_err(status),
            Err(error) => Err(Status::internal(format!("the call did not end: {error}"))),
        }
    }

    /// Runs a call of the engine that only reads metadata, where it is: that takes less time than to wake up another
    /// thread for it.
    fn read<T>(&self, read: impl FnOnce(&Snapshots) -> Result<T, SnapshotError>) -> Result<T, Status> {
        read(&self.engine).map_err(status)
    }
}

/// containerd's codes for the same mistakes (`errdefs`, as `pkg/errgrpc` maps them).
fn code(error: &SnapshotError) -> Code {
    match error {
        SnapshotError::NotFound { .. } => Code::NotFound,
        SnapshotError::AlreadyExists { .. } => Code::AlreadyExists,
        SnapshotError::ParentNotCommitted { .. }
        | SnapshotError::OtherParent { .. }
        | SnapshotError::Invalid(_)
        | SnapshotError::Filter(_) => Code::InvalidArgument,
        SnapshotError::RebaseOnUncommitted { .. }
        | SnapshotError::NotMountable { .. }
        | SnapshotError::NotActive { .. }
        | SnapshotError::HasChildren { .. }
        | SnapshotError::Pinned { .. } => Code::FailedPrecondition,
        SnapshotError::LostDirectory { .. } | SnapshotError::NewerDirectories { .. } => Code::DataLoss,
        SnapshotError::Dirs(error) if error.is_out_of_space() => Code::ResourceExhausted,
        SnapshotError::Store(error) if error.is_out_of_space() => Code::ResourceExhausted,
        SnapshotError::Store(error) if error.has_failed_before() => Code::Unavailable,
        SnapshotError::Store(_) | SnapshotError::Dirs(_) => Code::Internal,
    }
}

fn status(error: impl Into<SnapshotError>) -> Status {
    let error = error.into();
    let message = match &error {
        SnapshotError::Store(error) if error.has_failed_before() => {
            "the metadata store has failed a moment ago and is being opened again: try again".to_owned()
        }
        _ => error_line(&error),
    };
    Status::new(code(&error), message)
}

fn wire_mounts(mounts: Vec<Mount>) -> Vec<WireMount> {
    let wire = |mount: Mount| WireMount {
        r#type: mount.kind.to_owned(),
        source: mount.source,
        target: String::new(),
        options: mount.options,
    };
    mounts.into_iter().map(wire).collect()
}

fn wire_kind(kind: Kind) -> WireKind {
    match kind {
        Kind::View => WireKind::View,
        Kind::Active => WireKind::Active,
        Kind::Committed => WireKind::Committed,
    }
}

fn wire_info(info: Info) -> WireInfo {
    let time = |time: SystemTime| Some(prost_types::Timestamp::from(time));
    WireInfo {
        kind: wire_kind(info.kind).into(),
        created_at: time(info.created),
        updated_at: time(info.updated),
        labels: info.labels.into_map().into_iter().collect(),
        name: info.name,
        parent: info.parent,
    }
}

fn wire_usage(usage: Usage) -> UsageResponse {
    let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    UsageResponse { size: signed(usage.size), inodes: signed(usage.inodes) }
}

fn parse_create(
    key: String,
    parent: String,
    labels: impl IntoIterator<Item = (String, String)>,
) -> Result<Create, Status> {
    let key = Key::parse(key).map_err(status)?;
    Ok(Create { key, parent, labels: Labels::parse(labels).map_err(status)? })
}

/// What filters can ask about a snapshot (`core/snapshots/storage/bolt.go`, `adaptSnapshot`).
impl Fields for Info {
    fn field(&self, path: &[Vec<u8>]) -> Option<&str> {
        match path.first()?.as_slice() {
            b"kind" => Some(match self.kind {
                Kind::View => "view",
                Kind::Active => "active",
                Kind::Committed => "committed",
            }),
            b"name" => Some(&self.name),
            b"parent" => Some(&self.parent),
            b"labels" => {
                let key = path[1..].join(&b'.');
                self.labels.as_map().get(std::str::from_utf8(&key).ok()?).map(String::as_str)
            }
            _ => None,
        }
    }
}

type Block = Result<ListSnapshotsResponse, Status>;

/// A listing under way.
struct Listing {
    blocks: mpsc::Sender<Block>,
    /// Set when it ends before its end, which the client must not take for the end.
    stalled: Arc<AtomicBool>,
}

impl Listing {
    /// A listing, and what its client reads.
    fn new() -> (Self, impl Stream<Item = Block> + Send + use<>) {
        let (blocks, receiver) = mpsc::channel(BLOCKS_AHEAD);
        let listing = Self { blocks, stalled: Arc::default() };
        let stalled = listing.stalled.clone();
        let last = stream::once(async move {
            let text = format!("the listing was not read for {} s: ask again", STALLED.as_secs());
            stalled.load(Ordering::SeqCst).then(|| Err(Status::deadline_exceeded(text)))
        });
        (listing, ReceiverStream::new(receiver).chain(last.filter_map(ready)))
    }

    /// Sends what matches, a block at a time; stops when the client is gone or reads nothing. Blocks the thread.
    fn run(self, engine: &Snapshots, filters: &Filters) {
        let mut block = Vec::new();
        let walked = engine.walk(|info| {
            if filters.matches(&info) {
                block.push(wire_info(info));
            }
            block.len() < BLOCK || self.send(Ok(std::mem::take(&mut block)))
        });
        match walked {
            Ok(()) if block.is_empty() => {}
            Ok(()) => _ = self.send(Ok(block)),
            Err(error) => _ = self.send(Err(error)),
        }
    }

    fn send(&self, block: Result<Vec<WireInfo>, SnapshotError>) -> bool {
        let block = block.map(|info| ListSnapshotsResponse { info }).map_err(status);
        let sent = Handle::current().block_on(async { self.blocks.send_timeout(block, STALLED).await });
        if let Err(SendTimeoutError::Timeout(_)) = sent {
            self.stalled.store(true, Ordering::SeqCst);
        }
        sent.is_ok()
    }
}

#[tonic::async_trait]
impl SnapshotsApi for SnapshotsService {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let request = request.into_inner();
        let create = parse_create(request.key, request.parent, request.labels)?;
        let mounts = self.call(move |engine| engine.prepare(&create)).await?;
        Ok(Response::new(PrepareSnapshotResponse { mounts: wire_mounts(mounts) }))
    }

    async fn view(
        &self,
        request: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        let request = request.into_inner();
        let create = parse_create(request.key, request.parent, request.labels)?;
        let mounts = self.call(move |engine| engine.view(&create)).await?;
        Ok(Response::new(ViewSnapshotResponse { mounts: wire_mounts(mounts) }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Result<Response<MountsResponse>, Status> {
        let key = request.into_inner().key;
        let mounts = self.read(|engine| engine.mounts(&key))?;
        Ok(Response::new(MountsResponse { mounts: wire_mounts(mounts) }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let commit = Commit {
            name: Key::parse(request.name).map_err(status)?,
            key: request.key,
            parent: request.parent,
            labels: Labels::parse(request.labels).map_err(status)?,
        };
        self.call(move |engine| engine.commit(&commit)).await.map(Response::new)
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let key = request.into_inner().key;
        self.call(move |engine| engine.remove(&key)).await.map(Response::new)
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let key = request.into_inner().key;
        let info = self.read(|engine| engine.stat(&key))?;
        Ok(Response::new(StatSnapshotResponse { info: Some(wire_info(info)) }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let request = request.into_inner();
        let info = request.info.unwrap_or_default();
        let paths = request.update_mask.unwrap_or_default().paths;
        let update = LabelUpdate { given: info.labels.into_iter().collect(), paths };
        let info = self.call(move |engine| engine.update(&info.name, &update)).await?;
        Ok(Response::new(UpdateSnapshotResponse { info: Some(wire_info(info)) }))
    }

    type ListStream = Pin<Box<dyn Stream<Item = Block> + Send>>;

    async fn list(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filters = Filters::parse(&request.into_inner().filters).map_err(status)?;
        let engine = self.engine.clone();
        let turn = self.listings.clone().acquire_owned().await;
        let turn = turn.map_err(|error| Status::internal(error.to_string()))?;
        let (listing, read) = Listing::new();
        spawn_blocking(move || {
            listing.run(&engine, &filters);
            drop(turn);
        });
        Ok(Response::new(Box::pin(read)))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        let key = request.into_inner().key;
        let usage = self.call(move |engine| engine.usage(&key)).await?;
        Ok(Response::new(wire_usage(usage)))
    }

    async fn cleanup(&self, _request: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        self.call(Snapshots::cleanup).await.map(Response::new)
    }
}
