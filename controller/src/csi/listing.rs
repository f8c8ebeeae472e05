//! What the Controller service only asks: which volumes there are, how they are, and what could be.

use std::collections::HashMap;

use capsule_proto::{
    capsule::v1,
    csi::v1::{
        ControllerGetVolumeRequest, ControllerGetVolumeResponse, GetCapacityRequest, GetCapacityResponse,
        ListVolumesRequest, ListVolumesResponse, ValidateVolumeCapabilitiesRequest,
        ValidateVolumeCapabilitiesResponse, Volume, VolumeCondition, controller_get_volume_response,
        list_volumes_response::{Entry, VolumeStatus},
        validate_volume_capabilities_response::Confirmed,
    },
};
use tonic::Status;

use super::{
    Driver,
    capabilities::{Asked, Unfit},
    known_id,
    names::VolumeId,
    not_there,
    pages::page,
    parameters::{Parameters, mutable},
    signed,
    volumes::SIZE_MIN,
};

/// How a volume is, for people.
pub fn condition(stat: &v1::StatVolumeResponse) -> VolumeCondition {
    let abnormal = !stat.trouble.is_empty();
    let message = if abnormal { stat.trouble.clone() } else { "it is as it should be".to_owned() };
    VolumeCondition { abnormal, message }
}

impl Driver {
    /// As CSI has it. The context of one that is only read is known to who made it alone: which version was asked for.
    fn volume(&self, volume: &v1::Volume) -> Volume {
        let capsule = Some(volume.capsule.clone()).filter(|capsule| !capsule.is_empty());
        let written = Parameters { capsule, writable: true, ..Parameters::default() };
        let (volume_context, accessible_topology) = if volume.writable {
            (written.context(), vec![self.topology()])
        } else {
            (HashMap::new(), Vec::new())
        };
        Volume {
            capacity_bytes: signed(volume.size),
            volume_id: volume.id.clone(),
            volume_context,
            content_source: None,
            accessible_topology,
        }
    }

    /// Inline volumes are left out: they are their pods', and nobody's to make or remove.
    pub(super) async fn volumes(&self, request: ListVolumesRequest) -> Result<ListVolumesResponse, Status> {
        let mut all = self.capsuled.list().await?;
        all.retain(|volume| !volume.ephemeral);
        all.sort_by(|a, b| a.id.cmp(&b.id));
        let (volumes, next_token) =
            page(all, |volume| volume.id.clone(), request.max_entries, &request.starting_token)?;
        let mut entries = Vec::with_capacity(volumes.len());
        for volume in volumes {
            let Some(id) = VolumeId::parse(&volume.id) else { continue };
            // Removed meanwhile.
            let Some(stat) = self.capsuled.stat(&id, "").await? else { continue };
            let volume_condition = Some(condition(&stat));
            let status = VolumeStatus { volume_condition, ..VolumeStatus::default() };
            entries.push(Entry { volume: Some(self.volume(&volume)), status: Some(status) });
        }
        Ok(ListVolumesResponse { entries, next_token })
    }

    pub(super) async fn get_volume(
        &self,
        request: ControllerGetVolumeRequest,
    ) -> Result<ControllerGetVolumeResponse, Status> {
        let id = known_id(&request.volume_id)?;
        let stat = self.capsuled.stat(&id, "").await?.ok_or_else(|| not_there(id.as_str()))?;
        let volume = stat.volume.as_ref().map(|volume| self.volume(volume));
        let status = controller_get_volume_response::VolumeStatus {
            volume_condition: Some(condition(&stat)),
            ..Default::default()
        };
        Ok(ControllerGetVolumeResponse { volume, status: Some(status) })
    }

    /// A volume that is only read is also there by its context alone: nothing is kept of it before it is mounted.
    pub(super) async fn validate(
        &self,
        request: ValidateVolumeCapabilitiesRequest,
    ) -> Result<ValidateVolumeCapabilitiesResponse, Status> {
        let id = known_id(&request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(Unfit::Missing("volume capability").into());
        }
        let described = Parameters::parse(&request.volume_context);
        let writable = match self.capsuled.stat(&id, "").await?.and_then(|stat| stat.volume) {
            Some(volume) => volume.writable,
            None if described.is_ok_and(|described| !described.writable) => false,
            None => return Err(not_there(id.as_str())),
        };
        for capability in &request.volume_capabilities {
            match Asked::parse(capability).and_then(|asked| asked.fits(writable)) {
                Ok(()) => (),
                Err(Unfit::Unsupported(message)) => return Ok(unconfirmed(message)),
                Err(missing) => return Err(missing.into()),
            }
        }
        let parameters = Parameters::parse(&request.parameters).map(drop);
        if let Err(status) = parameters.and_then(|()| mutable(&request.mutable_parameters).map(drop)) {
            return Ok(unconfirmed(status.message().to_owned()));
        }
        let confirmed = Confirmed {
            volume_context: request.volume_context,
            volume_capabilities: request.volume_capabilities,
            parameters: request.parameters,
            mutable_parameters: request.mutable_parameters,
        };
        Ok(ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() })
    }

    /// What the disk has left. Volumes that are only read take nothing of it.
    pub(super) async fn capacity(&self, request: GetCapacityRequest) -> Result<GetCapacityResponse, Status> {
        let parameters = Parameters::parse(&request.parameters)?;
        let fits = |capability| Asked::parse(capability).and_then(|asked| asked.fits(parameters.writable));
        let is_possible = request.volume_capabilities.iter().all(|capability| fits(capability).is_ok());
        let is_here = request.accessible_topology.is_none_or(|topology| self.is_here(&topology));
        let available = if is_possible && is_here { signed(self.capsuled.available().await?) } else { 0 };
        let minimum_volume_size = parameters.writable.then_some(signed(SIZE_MIN));
        Ok(GetCapacityResponse { available_capacity: available, minimum_volume_size, ..Default::default() })
    }
}

fn unconfirmed(message: String) -> ValidateVolumeCapabilitiesResponse {
    ValidateVolumeCapabilitiesResponse { confirmed: None, message }
}
