//! The model behind the API's own trait, so that a client can call it.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex},
};

use capsule_proto::containerd::services::snapshots::v1::{
    CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, ListSnapshotsResponse, MountsRequest,
    MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse, RemoveSnapshotRequest,
    StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest,
    UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse, snapshots_server::Snapshots,
};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status};

use super::{Kind, Labels, Reference, Refusal, Snapshot};

/// The model, served. Clones are one model.
#[derive(Clone, Debug, Default)]
pub struct Served(Arc<Mutex<Reference>>);

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::NotFound => Code::NotFound,
            Refusal::AlreadyExists => Code::AlreadyExists,
            Refusal::FailedPrecondition => Code::FailedPrecondition,
            Refusal::InvalidArgument => Code::InvalidArgument,
        };
        Self::new(code, "refused by the model")
    }
}

fn sorted(labels: HashMap<String, String>) -> Labels {
    labels.into_iter().collect()
}

fn info(name: &str, snapshot: &Snapshot) -> Info {
    Info {
        name: name.to_owned(),
        parent: snapshot.parent.clone(),
        kind: snapshot.kind.into(),
        created_at: Some(snapshot.created.into()),
        updated_at: Some(snapshot.updated.into()),
        labels: snapshot.labels.clone().into_iter().collect(),
    }
}

impl Served {
    /// One call, alone.
    fn call<T>(
        &self,
        call: impl FnOnce(&mut Reference) -> Result<T, Refusal>,
    ) -> Result<Response<T>, Status> {
        Ok(Response::new(call(&mut self.0.lock().unwrap())?))
    }
}

#[tonic::async_trait]
impl Snapshots for Served {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        self.call(|model| {
            model.create(Kind::Active, &key, &parent, sorted(labels))?;
            Ok(PrepareSnapshotResponse::default())
        })
    }

    async fn view(
        &self,
        request: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        let ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        self.call(|model| {
            model.create(Kind::View, &key, &parent, sorted(labels))?;
            Ok(ViewSnapshotResponse::default())
        })
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Result<Response<MountsResponse>, Status> {
        self.call(|model| model.mounts(&request.into_inner().key).map(|()| MountsResponse::default()))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let CommitSnapshotRequest { name, key, parent, labels, .. } = request.into_inner();
        self.call(|model| model.commit(&name, &key, &parent, sorted(labels)))
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        self.call(|model| model.remove(&request.into_inner().key))
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let key = request.into_inner().key;
        self.call(|model| Ok(StatSnapshotResponse { info: Some(info(&key, model.stat(&key)?)) }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let UpdateSnapshotRequest { info: given, update_mask, .. } = request.into_inner();
        let (given, paths) = (given.unwrap_or_default(), update_mask.unwrap_or_default().paths);
        self.call(|model| {
            let snapshot = model.update(&given.name, sorted(given.labels), &paths)?;
            Ok(UpdateSnapshotResponse { info: Some(info(&given.name, snapshot)) })
        })
    }

    type ListStream = Pin<Box<dyn Stream<Item = Result<ListSnapshotsResponse, Status>> + Send>>;

    async fn list(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filters = request.into_inner().filters;
        self.call(|model| {
            let found: Vec<Info> =
                model.list(&filters)?.into_iter().map(|(name, snapshot)| info(name, snapshot)).collect();
            let blocks: Vec<_> =
                found.chunks(100).map(|block| Ok(ListSnapshotsResponse { info: block.to_vec() })).collect();
            Ok(Box::pin(tokio_stream::iter(blocks)) as Self::ListStream)
        })
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        self.call(|model| model.usage(&request.into_inner().key).map(|()| UsageResponse::default()))
    }

    async fn cleanup(&self, _request: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }
}
