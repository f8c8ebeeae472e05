//! A capsuled as `capsule.v1` says it is, in memory: what is written down, mounted and published, and nothing on any disk.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
};

use capsule_proto::capsule::v1::{
    self, BuildRequest, BuildResponse, InspectCapsuleRequest, InspectCapsuleResponse, ListCapsulesRequest,
    ListCapsulesResponse, PruneRequest, PruneResponse, ReadMetricsRequest, ReadMetricsResponse,
    RemoveRequest, RemoveResponse, StatVolumeResponse, Version, Volume, VolumeSpec,
    capsules_server::{Capsules, CapsulesServer},
    collector_server::{Collector, CollectorServer},
    metrics_server::{Metrics, MetricsServer},
    volumes_server::{Volumes, VolumesServer},
};
use tokio::{net::UnixListener, sync::oneshot};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming, async_trait, transport::Server};

/// What a volume can hold that asks for nothing.
pub const DEFAULT: u64 = 64 << 20;
/// The largest that there is room for.
pub const ROOM: u64 = 10 << 30;

#[derive(Debug, Default)]
pub struct State {
    pub volumes: BTreeMap<String, (Volume, VolumeSpec)>,
    pub versions: BTreeMap<(String, String), Version>,
    pub mounts: Vec<v1::MountVolumeRequest>,
    /// What is said of every volume.
    pub trouble: String,
}

/// Shared by its services.
#[derive(Debug, Clone, Default)]
pub struct Fake {
    pub state: Arc<Mutex<State>>,
}

impl Fake {
    /// Serves it until the answer is dropped. Connections end then too.
    pub fn serve(&self, socket: &Path) -> oneshot::Sender<()> {
        let listener = UnixListener::bind(socket).unwrap();
        let router = Server::builder()
            .add_service(VolumesServer::new(self.clone()))
            .add_service(CapsulesServer::new(self.clone()))
            .add_service(CollectorServer::new(self.clone()))
            .add_service(MetricsServer::new(self.clone()));
        let (end, ended) = oneshot::channel();
        tokio::spawn(async move {
            let ended = async { drop(ended.await) };
            router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), ended).await.unwrap();
        });
        end
    }

    pub fn publish(&self, capsule: &str, version: &str) {
        let made = version_of(capsule, version, Vec::new());
        self.state.lock().unwrap().versions.insert((capsule.to_owned(), version.to_owned()), made);
    }
}

fn version_of(capsule: &str, version: &str, tags: Vec<String>) -> Version {
    Version {
        capsule: capsule.to_owned(),
        version: version.to_owned(),
        created_at: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
        complete: true,
        tags,
        ..Version::default()
    }
}

impl State {
    fn newest(&self, capsule: &str, version: &str) -> Result<String, Status> {
        let is = |key: &(String, String)| key.0 == capsule && (version.is_empty() || key.1 == version);
        let found = self.versions.keys().rfind(|key| is(key));
        found
            .map(|key| key.1.clone())
            .ok_or_else(|| Status::not_found(format!("{capsule} has no version {version}")))
    }

    fn made(&self, spec: &VolumeSpec, ephemeral: bool) -> Result<Volume, Status> {
        let version =
            if spec.capsule.is_empty() { String::new() } else { self.newest(&spec.capsule, &spec.version)? };
        let size = match (spec.writable, spec.size) {
            (false, _) => 0,
            (true, 0) => DEFAULT,
            (true, size) => size,
        };
        if size > ROOM {
            return Err(Status::resource_exhausted("the disk has less"));
        }
        Ok(Volume {
            id: spec.id.clone(),
            capsule: spec.capsule.clone(),
            version,
            writable: spec.writable,
            size,
            ephemeral,
            ..Volume::default()
        })
    }

    fn volume(&mut self, id: &str) -> Result<&mut Volume, Status> {
        let found = self.volumes.get_mut(id).map(|(volume, _)| volume);
        found.ok_or_else(|| Status::not_found(format!("no volume {id}")))
    }
}

#[async_trait]
impl Volumes for Fake {
    async fn create_volume(
        &self,
        request: Request<v1::CreateVolumeRequest>,
    ) -> Result<Response<v1::CreateVolumeResponse>, Status> {
        let spec = request.into_inner().spec.unwrap();
        let mut state = self.state.lock().unwrap();
        if let Some((volume, before)) = state.volumes.get(&spec.id) {
            let same = VolumeSpec {
                size: if spec.size == volume.size { before.size } else { spec.size },
                ..spec.clone()
            };
            if same != *before {
                return Err(Status::already_exists(format!("volume {} is there, and is not so", spec.id)));
            }
            return Ok(Response::new(v1::CreateVolumeResponse {
                volume: Some(volume.clone()),
                existed: true,
            }));
        }
        let volume = state.made(&spec, false)?;
        state.volumes.insert(spec.id.clone(), (volume.clone(), spec));
        Ok(Response::new(v1::CreateVolumeResponse { volume: Some(volume), existed: false }))
    }

    async fn mount_volume(
        &self,
        request: Request<v1::MountVolumeRequest>,
    ) -> Result<Response<v1::MountVolumeResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state.lock().unwrap();
        let spec = request.spec.clone().unwrap();
        if !state.volumes.contains_key(&spec.id) {
            if spec.writable && !request.ephemeral {
                return Err(Status::not_found(format!("nobody made volume {}", spec.id)));
            }
            let volume = state.made(&spec, request.ephemeral)?;
            state.volumes.insert(spec.id.clone(), (volume, spec.clone()));
        }
        state.mounts.push(request.clone());
        let volume = state.volume(&spec.id)?;
        if !volume.paths.contains(&request.path) {
            volume.paths.push(request.path);
        }
        Ok(Response::new(v1::MountVolumeResponse { volume: Some(volume.clone()) }))
    }

    async fn unmount_volume(
        &self,
        request: Request<v1::UnmountVolumeRequest>,
    ) -> Result<Response<v1::UnmountVolumeResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state.lock().unwrap();
        if let Ok(volume) = state.volume(&request.id) {
            volume.paths.retain(|path| *path != request.path);
            if volume.paths.is_empty() && (volume.ephemeral || !volume.writable) {
                state.volumes.remove(&request.id);
            }
        }
        Ok(Response::new(v1::UnmountVolumeResponse {}))
    }

    async fn replace_volume(
        &self,
        request: Request<v1::ReplaceVolumeRequest>,
    ) -> Result<Response<v1::ReplaceVolumeResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state.lock().unwrap();
        let capsule = state.volume(&request.id)?.capsule.clone();
        let version = state.newest(&capsule, &request.version)?;
        let volume = state.volume(&request.id)?;
        if volume.writable && !volume.paths.is_empty() {
            return Err(Status::failed_precondition("it is written to while it is mounted"));
        }
        volume.version = version;
        Ok(Response::new(v1::ReplaceVolumeResponse::default()))
    }

    async fn remove_volume(
        &self,
        request: Request<v1::RemoveVolumeRequest>,
    ) -> Result<Response<v1::RemoveVolumeResponse>, Status> {
        let id = request.into_inner().id;
        let mut state = self.state.lock().unwrap();
        if !state.volume(&id)?.paths.is_empty() {
            return Err(Status::failed_precondition(format!("volume {id} is mounted")));
        }
        state.volumes.remove(&id);
        Ok(Response::new(v1::RemoveVolumeResponse::default()))
    }

    async fn commit_volume(
        &self,
        request: Request<v1::CommitVolumeRequest>,
    ) -> Result<Response<v1::CommitVolumeResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state.lock().unwrap();
        let capsule = state.volume(&request.id)?.capsule.clone();
        let made = version_of(&capsule, &request.version, request.tags);
        let before = state.versions.insert((capsule, request.version), made.clone());
        assert_eq!(before, None, "two versions under one name");
        Ok(Response::new(v1::CommitVolumeResponse { version: Some(made), ..Default::default() }))
    }

    async fn list_volumes(
        &self,
        _: Request<v1::ListVolumesRequest>,
    ) -> Result<Response<v1::ListVolumesResponse>, Status> {
        let state = self.state.lock().unwrap();
        let volumes = state.volumes.values().map(|(volume, _)| volume.clone()).collect();
        Ok(Response::new(v1::ListVolumesResponse { volumes }))
    }

    async fn stat_volume(
        &self,
        request: Request<v1::StatVolumeRequest>,
    ) -> Result<Response<StatVolumeResponse>, Status> {
        let mut state = self.state.lock().unwrap();
        let request = request.into_inner();
        let volume = state.volume(&request.id)?.clone();
        let is_elsewhere = !request.path.is_empty() && !volume.paths.contains(&request.path);
        let trouble = if is_elsewhere { "it is not mounted there".to_owned() } else { state.trouble.clone() };
        let total_bytes = volume.size;
        Ok(Response::new(StatVolumeResponse {
            volume: Some(volume),
            total_bytes,
            trouble,
            ..Default::default()
        }))
    }
}

#[async_trait]
impl Capsules for Fake {
    async fn build(&self, _: Request<Streaming<BuildRequest>>) -> Result<Response<BuildResponse>, Status> {
        Err(Status::unimplemented("nobody builds here"))
    }

    async fn list_capsules(
        &self,
        _: Request<ListCapsulesRequest>,
    ) -> Result<Response<ListCapsulesResponse>, Status> {
        let versions = self.state.lock().unwrap().versions.values().cloned().collect();
        Ok(Response::new(ListCapsulesResponse { versions }))
    }

    /// By a tag too.
    async fn inspect_capsule(
        &self,
        request: Request<InspectCapsuleRequest>,
    ) -> Result<Response<InspectCapsuleResponse>, Status> {
        let request = request.into_inner();
        let state = self.state.lock().unwrap();
        let is = |v: &&Version| {
            v.capsule == request.name && (v.version == request.version || v.tags.contains(&request.version))
        };
        let version =
            Some(state.versions.values().find(is).cloned().ok_or_else(|| Status::not_found("none"))?);
        Ok(Response::new(InspectCapsuleResponse { version, ..Default::default() }))
    }
}

#[async_trait]
impl Collector for Fake {
    async fn prune(&self, _: Request<PruneRequest>) -> Result<Response<PruneResponse>, Status> {
        Err(Status::unimplemented("nobody prunes here"))
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<RemoveResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state.lock().unwrap();
        let is_used =
            |(v, _): &(Volume, VolumeSpec)| v.capsule == request.name && v.version == request.version;
        if state.volumes.values().any(is_used) {
            return Err(Status::failed_precondition("in use"));
        }
        let gone = state.versions.remove(&(request.name, request.version));
        gone.map(|_| Response::new(RemoveResponse::default())).ok_or_else(|| Status::not_found("none"))
    }
}

#[async_trait]
impl Metrics for Fake {
    async fn read_metrics(
        &self,
        _: Request<ReadMetricsRequest>,
    ) -> Result<Response<ReadMetricsResponse>, Status> {
        let text = format!(
            "# TYPE capsuled_disk_available_bytes gauge\ncapsuled_disk_available_bytes {ROOM}\n# EOF\n"
        );
        Ok(Response::new(ReadMetricsResponse { text }))
    }
}
