//! The Controller service, of this node alone: each call as it comes, over [`super::volumes`], [`super::listing`] and [`super::snapshots`].

use capsule_proto::csi::v1::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetCapabilitiesRequest,
    ControllerGetCapabilitiesResponse, ControllerGetVolumeRequest, ControllerGetVolumeResponse,
    ControllerModifyVolumeRequest, ControllerModifyVolumeResponse, ControllerPublishVolumeRequest,
    ControllerPublishVolumeResponse, ControllerServiceCapability, ControllerUnpublishVolumeRequest,
    ControllerUnpublishVolumeResponse, CreateSnapshotRequest, CreateSnapshotResponse, CreateVolumeRequest,
    CreateVolumeResponse, DeleteSnapshotRequest, DeleteSnapshotResponse, DeleteVolumeRequest,
    DeleteVolumeResponse, GetCapacityRequest, GetCapacityResponse, ListSnapshotsRequest,
    ListSnapshotsResponse, ListVolumesRequest, ListVolumesResponse, ValidateVolumeCapabilitiesRequest,
    ValidateVolumeCapabilitiesResponse,
    controller_server::Controller,
    controller_service_capability::{
        Rpc, Type,
        rpc::Type::{
            CreateDeleteSnapshot, CreateDeleteVolume, GetCapacity, GetVolume, ListSnapshots, ListVolumes,
            ModifyVolume, SingleNodeMultiWriter, VolumeCondition,
        },
    },
};
use tonic::{Request, Response, Status, async_trait};

use super::{Driver, calls::Kind, not_offered};

#[async_trait]
impl Controller for Driver {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let (this, request) = (self.clone(), request.into_inner());
        let about = request.name.clone();
        let work = async move { this.create(request).await };
        self.call(Kind::Changes, "CreateVolume", &about, work).await
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let (this, request) = (self.clone(), request.into_inner());
        let about = request.volume_id.clone();
        let work = async move { this.delete(request).await };
        self.call(Kind::Changes, "DeleteVolume", &about, work).await
    }

    async fn controller_publish_volume(
        &self,
        request: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        let work = async { Err(not_offered("PUBLISH_UNPUBLISH_VOLUME")) };
        self.call(Kind::Changes, "ControllerPublishVolume", &request.get_ref().volume_id, work).await
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        let work = async { Err(not_offered("PUBLISH_UNPUBLISH_VOLUME")) };
        self.call(Kind::Changes, "ControllerUnpublishVolume", &request.get_ref().volume_id, work).await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let (this, request) = (self.clone(), request.into_inner());
        let about = request.volume_id.clone();
        let work = async move { this.validate(request).await };
        self.call(Kind::Asks, "ValidateVolumeCapabilities", &about, work).await
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let (this, request) = (self.clone(), request.into_inner());
        let work = async move { this.volumes(request).await };
        self.call(Kind::Asks, "ListVolumes", "", work).await
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        let (this, request) = (self.clone(), request.into_inner());
        let work = async move { this.capacity(request).await };
        self.call(Kind::Asks, "GetCapacity", "", work).await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let capabilities = [
            CreateDeleteVolume,
            ListVolumes,
            GetCapacity,
            CreateDeleteSnapshot,
            ListSnapshots,
            VolumeCondition,
            GetVolume,
            SingleNodeMultiWriter,
            ModifyVolume,
        ];
        let of = |kind| ControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind })) };
        let capabilities = capabilities.into_iter().map(|kind| of(kind.into())).collect();
        let answer = ControllerGetCapabilitiesResponse { capabilities };
        self.call(Kind::Asks, "ControllerGetCapabilities", "", async { Ok(answer) }).await
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        let (this, request) = (self.clone(), request.into_inner());
        let about = request.source_volume_id.clone();
        let work = async move { this.take_snapshot(request).await };
        self.call(Kind::Changes, "CreateSnapshot", &about, work).await
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        let (this, request) = (self.clone(), request.into_inner());
        let about = request.snapshot_id.clone();
        let work = async move { this.remove_snapshot(request).await };
        self.call(Kind::Changes, "DeleteSnapshot", &about, work).await
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        let (this, request) = (self.clone(), request.into_inner());
        let work = async move { this.snapshots(request).await };
        self.call(Kind::Asks, "ListSnapshots", "", work).await
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        let work = async { Err(not_offered("EXPAND_VOLUME")) };
        self.call(Kind::Changes, "ControllerExpandVolume", &request.get_ref().volume_id, work).await
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        let (this, request) = (self.clone(), request.into_inner());
        let about = request.volume_id.clone();
        let work = async move { this.get_volume(request).await };
        self.call(Kind::Asks, "ControllerGetVolume", &about, work).await
    }

    async fn controller_modify_volume(
        &self,
        request: Request<ControllerModifyVolumeRequest>,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        let (this, request) = (self.clone(), request.into_inner());
        let about = request.volume_id.clone();
        let work = async move { this.modify(request).await };
        self.call(Kind::Changes, "ControllerModifyVolume", &about, work).await
    }
}
