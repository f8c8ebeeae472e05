//! The Node service: volumes at paths of the node, which capsuled mounts there.

use capsule_proto::{
    capsule::v1,
    csi::v1::{
        NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
        NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest,
        NodeGetVolumeStatsResponse, NodePublishVolumeRequest, NodePublishVolumeResponse,
        NodeServiceCapability, NodeStageVolumeRequest, NodeStageVolumeResponse, NodeUnpublishVolumeRequest,
        NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, VolumeUsage,
        node_server::Node,
        node_service_capability::{
            Rpc, Type,
            rpc::Type::{GetVolumeStats, SingleNodeMultiWriter, VolumeCondition},
        },
        volume_usage::Unit,
    },
};
use tonic::{Code, Request, Response, Status, async_trait};

use super::{
    Driver,
    calls::Kind,
    capabilities::{Asked, Unfit},
    known_id,
    listing::condition,
    names::VolumeId,
    not_offered, not_there,
    parameters::Parameters,
    required, signed,
};

/// An absolute path in one way of writing it.
fn absolute<'a>(what: &str, path: &'a str) -> Result<&'a str, Status> {
    let whole = required(what, path)?.trim_end_matches('/');
    let is_plain = |part: &str| !matches!(part, "" | "." | "..");
    match whole.strip_prefix('/') {
        Some(rest) if rest.split('/').all(is_plain) => Ok(whole),
        _ => {
            Err(Status::invalid_argument(format!("{what} {path:?} is no absolute path without '.' and '..'")))
        }
    }
}

/// Whether the volume is at the path that was asked about: as it is written, or, where nothing is wrong, by a link.
fn is_at(stat: &v1::StatVolumeResponse, path: &str) -> bool {
    let paths = stat.volume.as_ref().map_or(&[][..], |volume| &volume.paths);
    paths.iter().any(|at| at == path) || !paths.is_empty() && stat.trouble.is_empty()
}

/// One way of looking at what a volume has; 0 of what is only read.
fn usage(unit: Unit, total: u64, available: u64, used: u64) -> VolumeUsage {
    VolumeUsage { total: signed(total), available: signed(available), used: signed(used), unit: unit.into() }
}

impl Driver {
    async fn publish(&self, request: NodePublishVolumeRequest) -> Result<NodePublishVolumeResponse, Status> {
        let id = required("volume_id", &request.volume_id)?;
        let path = absolute("target_path", &request.target_path)?;
        let capability = request.volume_capability.as_ref().ok_or(Unfit::Missing("volume_capability"))?;
        let mut asked = Asked::parse(capability)?;
        let described = Parameters::parse(&request.volume_context)?;
        let id = VolumeId::parse(id).ok_or_else(|| {
            Status::invalid_argument(format!("volume_id {id:?} is not valid: it is {}", VolumeId::FORM))
        })?;
        let _turn = self.turns.of(id.as_str()).await?;
        let stat = self.capsuled.stat(&id, path).await?;
        let is_here = stat.as_ref().is_some_and(|stat| is_at(stat, path));
        let known = stat.and_then(|stat| stat.volume);
        let spec = self.wanted(&id, &described, known.as_ref()).await?;
        // The kubelet asks for a writer of each inline volume; and who asks for less than a volume can have gets that.
        let only_reads = !described.writable && (described.ephemeral || spec.writable);
        asked.read_only |= request.readonly || only_reads;
        asked.fits_here(spec.writable)?;
        let elsewhere = known.iter().flat_map(|known| &known.paths).next();
        if let Some(elsewhere) = elsewhere.filter(|_| asked.is_exclusive() && !is_here) {
            let mode = asked.mode.as_str_name();
            return Err(Status::failed_precondition(format!(
                "volume {id} is at {elsewhere}, and with access mode {mode} it can be at one path alone"
            )));
        }
        let mount = v1::MountVolumeRequest {
            read_only: asked.only_reads() || !spec.writable,
            spec: Some(spec),
            path: path.to_owned(),
            ephemeral: described.ephemeral,
        };
        self.capsuled.mount(mount).await?;
        Ok(NodePublishVolumeResponse {})
    }

    /// What capsuled is to mount: what it knows of the volume, and what is said of it.
    async fn wanted(
        &self,
        id: &VolumeId,
        described: &Parameters,
        known: Option<&v1::Volume>,
    ) -> Result<v1::VolumeSpec, Status> {
        let mut spec = described.spec(id, described.size.unwrap_or_default());
        if let Some(known) = known {
            let is_other = !spec.capsule.is_empty()
                && (spec.capsule != known.capsule || spec.writable && !known.writable);
            if is_other {
                return Err(Status::invalid_argument(format!(
                    "volume {id} is there, and is not what volume_context says"
                )));
            }
            (spec.capsule, spec.writable) = (known.capsule.clone(), known.writable);
        }
        let current = self.current.as_ref().filter(|_| !described.ephemeral && !spec.capsule.is_empty());
        let Some(current) = current else { return Ok(spec) };
        if known.is_some_and(|known| !known.paths.is_empty()) {
            return Ok(spec); // it keeps its version while it is mounted
        }
        let Some(version) = current.version(id.name()).await else { return Ok(spec) };
        if known.is_some_and(|known| known.writable) {
            self.capsuled.replace(id, &version).await?;
        }
        spec.version = version;
        Ok(spec)
    }

    async fn unpublish(
        &self,
        request: NodeUnpublishVolumeRequest,
    ) -> Result<NodeUnpublishVolumeResponse, Status> {
        let sent = required("volume_id", &request.volume_id)?;
        let path = absolute("target_path", &request.target_path)?;
        // What has not the form is no volume's, and so is nowhere.
        if let Some(id) = VolumeId::parse(sent) {
            let _turn = self.turns.of(sent).await?;
            self.capsuled.unmount(&id, path).await?;
        }
        Ok(NodeUnpublishVolumeResponse {})
    }

    async fn stats(&self, request: NodeGetVolumeStatsRequest) -> Result<NodeGetVolumeStatsResponse, Status> {
        let id = known_id(&request.volume_id)?;
        let path = absolute("volume_path", &request.volume_path)?;
        let elsewhere = || Status::not_found(format!("volume {id} is not at {path}"));
        let stat = match self.capsuled.stat(&id, path).await {
            // There is no way to the path.
            Err(status) if status.code() == Code::FailedPrecondition => return Err(elsewhere()),
            stat => stat?.ok_or_else(|| not_there(id.as_str()))?,
        };
        if !is_at(&stat, path) {
            return Err(elsewhere());
        }
        let usage = vec![
            usage(Unit::Bytes, stat.total_bytes, stat.available_bytes, stat.used_bytes),
            usage(Unit::Inodes, stat.total_files, stat.available_files, stat.used_files),
        ];
        Ok(NodeGetVolumeStatsResponse { usage, volume_condition: Some(condition(&stat)) })
    }
}

#[async_trait]
impl Node for Driver {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let work = async { Err(not_offered("STAGE_UNSTAGE_VOLUME")) };
        self.call(Kind::Changes, "NodeStageVolume", &request.get_ref().volume_id, work).await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let work = async { Err(not_offered("STAGE_UNSTAGE_VOLUME")) };
        self.call(Kind::Changes, "NodeUnstageVolume", &request.get_ref().volume_id, work).await
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let (this, request) = (self.clone(), request.into_inner());
        let about = request.volume_id.clone();
        let work = async move { this.publish(request).await };
        self.call(Kind::Changes, "NodePublishVolume", &about, work).await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let (this, request) = (self.clone(), request.into_inner());
        let about = request.volume_id.clone();
        let work = async move { this.unpublish(request).await };
        self.call(Kind::Changes, "NodeUnpublishVolume", &about, work).await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let (this, request) = (self.clone(), request.into_inner());
        let about = request.volume_id.clone();
        let work = async move { this.stats(request).await };
        self.call(Kind::Asks, "NodeGetVolumeStats", &about, work).await
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let work = async { Err(not_offered("EXPAND_VOLUME")) };
        self.call(Kind::Changes, "NodeExpandVolume", &request.get_ref().volume_id, work).await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let of = |kind| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind })) };
        let capabilities = [GetVolumeStats, VolumeCondition, SingleNodeMultiWriter];
        let capabilities = capabilities.into_iter().map(|kind| of(kind.into())).collect();
        let answer = NodeGetCapabilitiesResponse { capabilities };
        self.call(Kind::Asks, "NodeGetCapabilities", "", async { Ok(answer) }).await
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let answer = NodeGetInfoResponse {
            node_id: self.node.clone(),
            accessible_topology: Some(self.topology()),
            ..Default::default()
        };
        self.call(Kind::Asks, "NodeGetInfo", "", async { Ok(answer) }).await
    }
}
