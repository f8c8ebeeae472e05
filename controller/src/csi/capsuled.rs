//! This node's capsuled, over its socket: what this driver asks of it.
//!
//! A status is capsuled's, without what is only between the two; `UNAVAILABLE` when it does not answer.

use std::{error::Error, path::PathBuf, time::Duration};

use capsule_proto::capsule::v1::{
    self, StatVolumeResponse, Version, Volume, VolumeSpec, capsules_client::CapsulesClient,
    collector_client::CollectorClient, metrics_client::MetricsClient, volumes_client::VolumesClient,
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint, Uri},
};

use super::names::{SnapshotId, VolumeId};

/// Listings of a large node are larger than gRPC's usual 4 MiB.
const MAX_ANSWER: usize = 64 << 20;
/// How long capsuled may take for a call. The kubelet waits for two minutes.
const DEADLINE: Duration = Duration::from_secs(90);
/// The same for what reads all that was written.
const LONG: Duration = Duration::from_secs(1800);
/// How long it may take to say that it is there.
const SOON: Duration = Duration::from_secs(5);
/// What capsuled calls the bytes that its disk has left (docs/metrics.md).
const AVAILABLE: &str = "capsuled_disk_available_bytes ";

/// capsuled. The connection is made when it is first needed, and again where it breaks.
#[derive(Debug, Clone)]
pub struct Capsuled {
    channel: Channel,
    socket: PathBuf,
}

impl Capsuled {
    /// Of this socket.
    pub fn new(socket: PathBuf) -> Self {
        let at = socket.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let at = at.clone();
            async move { UnixStream::connect(at).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://capsuled").connect_with_connector_lazy(connector);
        Self { channel, socket }
    }

    fn volumes(&self) -> VolumesClient<Channel> {
        VolumesClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    fn capsules(&self) -> CapsulesClient<Channel> {
        CapsulesClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// The answer to a call that takes no longer than that.
    async fn within<T>(
        &self,
        patience: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        match timeout(patience, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            // What has a source is this side's: nothing was answered.
            Ok(Err(status)) if status.source().is_some() => {
                let (socket, why) = (self.socket.display(), cause(&status));
                Err(Status::unavailable(format!("capsuled does not answer at {socket}: {why}")))
            }
            Ok(Err(status)) => Err(Status::new(status.code(), status.message())),
            Err(_) => Err(Status::deadline_exceeded(format!("capsuled has not answered in {patience:?}"))),
        }
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// It does not, or it knows no volumes.
    pub async fn answers(&self) -> Result<(), Status> {
        let call = async { self.volumes().list_volumes(v1::ListVolumesRequest {}).await };
        self.within(SOON, call).await.map(drop)
    }

    /// All volumes, by id.
    ///
    /// # Errors
    /// capsuled's, as of all calls.
    pub async fn list(&self) -> Result<Vec<Volume>, Status> {
        let call = async { self.volumes().list_volumes(v1::ListVolumesRequest {}).await };
        Ok(self.within(DEADLINE, call).await?.volumes)
    }

    /// What a volume is; none where there is none.
    pub async fn stat(&self, id: &VolumeId, path: &str) -> Result<Option<StatVolumeResponse>, Status> {
        let request = v1::StatVolumeRequest { id: id.to_string(), path: path.to_owned() };
        there(self.within(DEADLINE, async { self.volumes().stat_volume(request).await }).await)
    }

    /// Makes what a volume is written to.
    pub async fn create(&self, spec: VolumeSpec) -> Result<v1::CreateVolumeResponse, Status> {
        let request = v1::CreateVolumeRequest { spec: Some(spec) };
        self.within(DEADLINE, async { self.volumes().create_volume(request).await }).await
    }

    /// Mounts a volume at a path of the node.
    pub async fn mount(&self, request: v1::MountVolumeRequest) -> Result<(), Status> {
        self.within(DEADLINE, async { self.volumes().mount_volume(request).await }).await.map(drop)
    }

    /// Takes it away from there.
    pub async fn unmount(&self, id: &VolumeId, path: &str) -> Result<(), Status> {
        let request = v1::UnmountVolumeRequest { id: id.to_string(), path: path.to_owned() };
        self.within(DEADLINE, async { self.volumes().unmount_volume(request).await }).await.map(drop)
    }

    /// Puts another version into a volume.
    pub async fn replace(&self, id: &VolumeId, version: &str) -> Result<(), Status> {
        let request = v1::ReplaceVolumeRequest { id: id.to_string(), version: version.to_owned() };
        self.within(DEADLINE, async { self.volumes().replace_volume(request).await }).await.map(drop)
    }

    /// Removes a volume. That there is none is no error.
    pub async fn remove(&self, id: &VolumeId) -> Result<(), Status> {
        let request = v1::RemoveVolumeRequest { id: id.to_string() };
        there(self.within(DEADLINE, async { self.volumes().remove_volume(request).await }).await).map(drop)
    }

    /// Publishes what was written to a volume, with a tag.
    pub async fn commit(&self, id: &VolumeId, version: &str, tag: String) -> Result<Version, Status> {
        let request =
            v1::CommitVolumeRequest { id: id.to_string(), version: version.to_owned(), tags: vec![tag] };
        let made = self.within(LONG, async { self.volumes().commit_volume(request).await }).await?;
        made.version.ok_or_else(|| Status::internal("capsuled does not say what it published"))
    }

    /// A version, and none where there is only a tag of this name, or nothing.
    pub async fn version(&self, id: &SnapshotId) -> Result<Option<Version>, Status> {
        let request = v1::InspectCapsuleRequest { name: id.capsule.clone(), version: id.version.clone() };
        let found = self.within(DEADLINE, async { self.capsules().inspect_capsule(request).await }).await;
        let found = match found {
            // What is no name of a capsule or a version is the name of none.
            Err(status) if status.code() == Code::InvalidArgument => None,
            found => there(found)?,
        };
        Ok(found.and_then(|found| found.version).filter(|found| found.version == id.version))
    }

    /// All versions of all capsules.
    pub async fn versions(&self) -> Result<Vec<Version>, Status> {
        let call = async { self.capsules().list_capsules(v1::ListCapsulesRequest::default()).await };
        Ok(self.within(DEADLINE, call).await?.versions)
    }

    /// Removes a version that nobody needs. That there is none is no error.
    pub async fn remove_version(&self, id: &SnapshotId) -> Result<(), Status> {
        let request = v1::RemoveRequest { name: id.capsule.clone(), version: id.version.clone() };
        let call = async { CollectorClient::new(self.channel.clone()).remove(request).await };
        there(self.within(DEADLINE, call).await).map(drop)
    }

    /// Bytes that its disk has left.
    pub async fn available(&self) -> Result<u64, Status> {
        let client = MetricsClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        let call = async { { client }.read_metrics(v1::ReadMetricsRequest {}).await };
        let text = self.within(DEADLINE, call).await?.text;
        let line = text.lines().find_map(|line| line.strip_prefix(AVAILABLE));
        let bytes = line.and_then(|bytes| bytes.trim().parse().ok());
        bytes.ok_or_else(|| {
            Status::unavailable("capsuled does not know yet what its disk has left: ask again")
        })
    }
}

/// What is behind all else.
fn cause(error: &dyn Error) -> &dyn Error {
    error.source().map_or(error, cause)
}

/// Nothing, where it is not there.
fn there<T>(answer: Result<T, Status>) -> Result<Option<T>, Status> {
    match answer {
        Err(status) if status.code() == Code::NotFound => Ok(None),
        answer => answer.map(Some),
    }
}
