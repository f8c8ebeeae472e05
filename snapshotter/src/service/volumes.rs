//! `capsule.v1.Volumes`: capsules, and directories that are written to, at paths of the node.

use capsule_proto::capsule::v1 as wire;
use overlayfs_utils::ContainerPath;
use tokio::task::spawn_blocking;
use tonic::{Request, Response, Status};

use super::{CapsulesService, convert, to_the_end};
use crate::{
    capsules::{Capsules, model::Version},
    uppers::{Readable, Uppers},
    volumes::{
        VolumeError, Volumes,
        model::{Spec, Volume, VolumeId},
    },
};

/// The service.
#[derive(Clone)]
pub struct VolumesService {
    capsules: Capsules,
    uppers: Uppers,
    volumes: Volumes,
    describing: CapsulesService,
}

impl VolumesService {
    /// Over the engines, and the service that describes versions.
    pub fn new(capsules: Capsules, uppers: Uppers, volumes: Volumes, describing: CapsulesService) -> Self {
        Self { capsules, uppers, volumes, describing }
    }
}

#[tonic::async_trait]
impl wire::volumes_server::Volumes for VolumesService {
    async fn create_volume(
        &self,
        request: Request<wire::CreateVolumeRequest>,
    ) -> Result<Response<wire::CreateVolumeResponse>, Status> {
        let spec = parse_spec(request.into_inner().spec)?;
        let volumes = self.volumes.clone();
        let (volume, existed) = to_the_end(async move { volumes.create(&spec).await }).await?;
        Ok(Response::new(wire::CreateVolumeResponse { volume: Some(describe(volume)), existed }))
    }

    async fn mount_volume(
        &self,
        request: Request<wire::MountVolumeRequest>,
    ) -> Result<Response<wire::MountVolumeResponse>, Status> {
        let wire::MountVolumeRequest { spec, path, read_only, ephemeral } = request.into_inner();
        let (spec, path) = (parse_spec(spec)?, parse_path(&path)?);
        let volumes = self.volumes.clone();
        let mounted = to_the_end(async move { volumes.mount(&spec, &path, read_only, ephemeral).await });
        Ok(Response::new(wire::MountVolumeResponse { volume: Some(describe(mounted.await?)) }))
    }

    async fn unmount_volume(
        &self,
        request: Request<wire::UnmountVolumeRequest>,
    ) -> Result<Response<wire::UnmountVolumeResponse>, Status> {
        let wire::UnmountVolumeRequest { id, path } = request.into_inner();
        let (id, path) = (parse_id(&id)?, parse_path(&path)?);
        let volumes = self.volumes.clone();
        to_the_end(async move { volumes.unmount(&id, &path).await }).await?;
        Ok(Response::new(wire::UnmountVolumeResponse {}))
    }

    async fn replace_volume(
        &self,
        request: Request<wire::ReplaceVolumeRequest>,
    ) -> Result<Response<wire::ReplaceVolumeResponse>, Status> {
        let wire::ReplaceVolumeRequest { id, version } = request.into_inner();
        let id = parse_id(&id)?;
        let version: Version = version.parse().map_err(convert::from_model)?;
        let volumes = self.volumes.clone();
        let done = to_the_end(async move { volumes.replace(&id, &version).await }).await?;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Response::new(wire::ReplaceVolumeResponse {
            volume: Some(describe(done.volume)),
            from_version: done.from.map(|version| version.to_string()).unwrap_or_default(),
            mounts: count(done.mounts),
            left: count(done.left),
        }))
    }

    async fn remove_volume(
        &self,
        request: Request<wire::RemoveVolumeRequest>,
    ) -> Result<Response<wire::RemoveVolumeResponse>, Status> {
        let id = parse_id(&request.into_inner().id)?;
        let volumes = self.volumes.clone();
        let removed = to_the_end(async move { volumes.remove(&id).await }).await?;
        Ok(Response::new(wire::RemoveVolumeResponse { volume: Some(describe(removed)) }))
    }

    async fn commit_volume(
        &self,
        request: Request<wire::CommitVolumeRequest>,
    ) -> Result<Response<wire::CommitVolumeResponse>, Status> {
        let wire::CommitVolumeRequest { id, version, tags } = request.into_inner();
        let id = parse_id(&id)?;
        let volume = self.volumes.known(&id).await?;
        if volume.over.is_none() {
            return Err(VolumeError::NoCapsule(id).into());
        }
        if !volume.writable {
            return Err(VolumeError::Spec { id, what: "only read: there is nothing of it to publish" }.into());
        }
        let with = (&self.capsules, &self.uppers, &self.describing);
        let (version, existed, from_version) =
            super::publish_written(with, &Readable::Volume(&id), &version, &tags).await?;
        let version = Some(version);
        Ok(Response::new(wire::CommitVolumeResponse { version, existed, from_version }))
    }

    async fn list_volumes(
        &self,
        _: Request<wire::ListVolumesRequest>,
    ) -> Result<Response<wire::ListVolumesResponse>, Status> {
        let volumes = self.volumes.clone();
        let listed = blocking(move || volumes.list()).await?;
        Ok(Response::new(wire::ListVolumesResponse { volumes: listed.into_iter().map(describe).collect() }))
    }

    async fn stat_volume(
        &self,
        request: Request<wire::StatVolumeRequest>,
    ) -> Result<Response<wire::StatVolumeResponse>, Status> {
        let wire::StatVolumeRequest { id, path } = request.into_inner();
        let id = parse_id(&id)?;
        let path = (!path.is_empty()).then(|| parse_path(&path)).transpose()?;
        let volumes = self.volumes.clone();
        let (volume, room, trouble) = blocking(move || volumes.stat(&id, path.as_ref())).await?;
        let ([total_bytes, available_bytes, used_bytes], [total_files, available_files, used_files]) =
            (room.bytes, room.files);
        Ok(Response::new(wire::StatVolumeResponse {
            volume: Some(describe(volume)),
            total_bytes,
            available_bytes,
            used_bytes,
            total_files,
            available_files,
            used_files,
            trouble: trouble.unwrap_or_default(),
        }))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, Status> {
    let done = spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))?;
    Ok(done?)
}

fn parse_id(text: &str) -> Result<VolumeId, Status> {
    Ok(text.parse::<VolumeId>()?)
}

fn parse_path(path: &str) -> Result<ContainerPath, Status> {
    Ok(ContainerPath::parse(path).map_err(|source| VolumeError::Path { path: path.to_owned(), source })?)
}

fn parse_spec(spec: Option<wire::VolumeSpec>) -> Result<Spec, Status> {
    let spec = spec.ok_or_else(|| convert::malformed("which volume is meant"))?;
    let filled = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let parsed = Spec {
        id: parse_id(&spec.id)?,
        capsule: filled(&spec.capsule).map(|name| name.parse()).transpose().map_err(convert::from_model)?,
        version: filled(&spec.version).map(|text| text.parse()).transpose().map_err(convert::from_model)?,
        writable: spec.writable,
        size: (spec.size > 0).then_some(spec.size),
        owner: spec.owner.map(|owner| (owner.uid, owner.gid)),
        permissions: spec.permissions,
    };
    Ok(parsed.check()?)
}

fn describe(volume: Volume) -> wire::Volume {
    let over =
        volume.over.map(|over| [over.capsule.to_string(), over.version.to_string(), over.digest.to_string()]);
    let [capsule, version, digest] = over.unwrap_or_default();
    wire::Volume {
        id: volume.id.to_string(),
        capsule,
        version,
        digest,
        writable: volume.writable,
        size: volume.size.unwrap_or_default(),
        ephemeral: volume.ephemeral,
        created_at: Some(volume.since.into()),
        paths: volume.paths.iter().map(ToString::to_string).collect(),
        draining: volume.draining.iter().map(ToString::to_string).collect(),
    }
}
