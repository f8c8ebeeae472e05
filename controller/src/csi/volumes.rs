//! Volumes are made, changed and removed.

use capsule_proto::{
    capsule::v1,
    csi::v1::{
        CapacityRange, ControllerModifyVolumeRequest, ControllerModifyVolumeResponse, CreateVolumeRequest,
        CreateVolumeResponse, DeleteVolumeRequest, DeleteVolumeResponse, TopologyRequirement, Volume,
        volume_content_source,
    },
};
use tonic::{Code, Status};

use super::{
    Driver,
    capabilities::Asked,
    known_id,
    names::{SnapshotId, VolumeId},
    not_there,
    parameters::{Parameters, mutable},
    required, signed,
};

/// The longest name of the specification, in bytes.
const NAME_MAX: usize = 128;

/// The smallest that capsuled makes of what is written to, in bytes: a file system has to fit.
pub const SIZE_MIN: u64 = 4 << 20;

/// How large a volume may be.
#[derive(Debug, Clone, Copy)]
struct Range {
    required: u64,
    limit: u64,
}

impl Range {
    fn parse(sent: Option<&CapacityRange>) -> Result<Self, Status> {
        let (required, limit) = sent.map_or((0, 0), |range| (range.required_bytes, range.limit_bytes));
        let bytes = |what: &str, bytes: i64| {
            u64::try_from(bytes)
                .map_err(|_| Status::invalid_argument(format!("{what} is {bytes}: it cannot be negative")))
        };
        let (required, limit) = (bytes("required_bytes", required)?, bytes("limit_bytes", limit)?);
        if limit > 0 && limit < required {
            return Err(Status::out_of_range(format!(
                "no size is {required} bytes at least and {limit} at most"
            )));
        }
        Ok(Self { required, limit: if limit == 0 { u64::MAX } else { limit } })
    }

    /// The smallest that will do; with a limit alone that one, and the node's default where nothing is said.
    fn asks(self) -> Result<u64, Status> {
        if self.limit < SIZE_MIN {
            let limit = self.limit;
            return Err(Status::out_of_range(format!(
                "no volume is so small as {limit} bytes: {SIZE_MIN} is the least"
            )));
        }
        Ok(match (self.required, self.limit) {
            (0, u64::MAX) => 0,
            (0, limit) => limit,
            (required, _) => required.max(SIZE_MIN),
        })
    }

    fn has(self, size: u64) -> bool {
        (self.required..=self.limit).contains(&size)
    }
}

impl Driver {
    pub(super) async fn create(&self, request: CreateVolumeRequest) -> Result<CreateVolumeResponse, Status> {
        let name = required("name", &request.name)?;
        if name.len() > NAME_MAX || name.chars().any(|c| c.is_control() && !matches!(c, '\t' | '\n' | '\r')) {
            let what = "use at most 128 bytes without control characters";
            return Err(Status::invalid_argument(format!("name {name:?} is not valid: {what}")));
        }
        let asked = Asked::all(&request.volume_capabilities)?;
        let parameters = self.asked_for(&request).await?;
        asked.into_iter().try_for_each(|asked| asked.fits(parameters.writable))?;
        let range = Range::parse(request.capacity_range.as_ref())?;
        let stack = parameters.namespace.as_deref().filter(|_| parameters.writable);
        let id = VolumeId::of_name(name, stack).ok_or_else(|| {
            Status::invalid_argument(format!("{} is the name of no stack", stack.unwrap_or_default()))
        })?;
        let _turn = self.turns.of(id.as_str()).await?;
        let (size, topology) = if parameters.writable {
            self.reaches(request.accessibility_requirements.as_ref())?;
            (self.make(parameters.spec(&id, range.asks()?), &id, range).await?.size, vec![self.topology()])
        } else {
            self.is_free(&id, &parameters).await?;
            (0, Vec::new()) // nothing is kept of it: it is the same on each node
        };
        let volume = Volume {
            capacity_bytes: signed(size),
            volume_id: id.to_string(),
            volume_context: parameters.context(),
            content_source: request.volume_content_source,
            accessible_topology: topology,
        };
        Ok(CreateVolumeResponse { volume: Some(volume) })
    }

    /// What the parameters and the source say together.
    async fn asked_for(&self, request: &CreateVolumeRequest) -> Result<Parameters, Status> {
        let mut sent = request.parameters.clone();
        if let Some(version) = mutable(&request.mutable_parameters)? {
            sent.insert("version".to_owned(), version);
        }
        let parameters = Parameters::parse(&sent)?;
        if parameters.size.is_some() {
            return Err(Status::invalid_argument("parameter size is of inline volumes: ask for a capacity"));
        }
        let Some(source) = &request.volume_content_source else { return Ok(parameters) };
        match &source.r#type {
            None => Err(Status::invalid_argument("the type of volume_content_source is missing")),
            Some(volume_content_source::Type::Volume(_)) => Err(Status::invalid_argument(
                "a volume is made from no other volume: make a snapshot of that",
            )),
            Some(volume_content_source::Type::Snapshot(snapshot)) => {
                let sent = required("snapshot_id", &snapshot.snapshot_id)?;
                let there = || Status::not_found(format!("there is no snapshot {sent} on this node"));
                let id = SnapshotId::parse(sent).ok_or_else(there)?;
                self.capsuled.version(&id).await?.ok_or_else(there)?;
                parameters.over(&id)
            }
        }
    }

    /// Whether a volume of this node is where it has to be.
    fn reaches(&self, requirement: Option<&TopologyRequirement>) -> Result<(), Status> {
        let requisite = requirement.map_or(&[][..], |requirement| &requirement.requisite);
        if requisite.is_empty() || requisite.iter().any(|topology| self.is_here(topology)) {
            return Ok(());
        }
        Err(Status::resource_exhausted(format!("a volume that is made here is on node {} alone", self.node)))
    }

    /// Makes what a volume is written to, if it is not there as it is asked for.
    async fn make(&self, spec: v1::VolumeSpec, id: &VolumeId, range: Range) -> Result<v1::Volume, Status> {
        let refused = match self.capsuled.create(spec.clone()).await {
            Err(status) if status.code() == Code::AlreadyExists => status,
            made => return self.expect(made?, id, range).await,
        };
        // One of another size may be within the range: then all the rest has to be the same.
        let there = self.capsuled.stat(id, "").await?.and_then(|stat| stat.volume);
        match there.map(|there| there.size) {
            Some(size) if size != spec.size && range.has(size) => {
                self.expect(self.capsuled.create(v1::VolumeSpec { size, ..spec }).await?, id, range).await
            }
            _ => Err(refused),
        }
    }

    /// The volume, if its size is within the range.
    async fn expect(
        &self,
        made: v1::CreateVolumeResponse,
        id: &VolumeId,
        range: Range,
    ) -> Result<v1::Volume, Status> {
        let volume = made.volume.ok_or_else(|| Status::internal("capsuled does not say what it made"))?;
        if range.has(volume.size) {
            return Ok(volume);
        }
        let size = volume.size;
        if made.existed {
            return Err(Status::already_exists(format!("volume {id} is there, and has {size} bytes")));
        }
        self.capsuled.remove(id).await?;
        Err(Status::out_of_range(format!(
            "a volume of this node would have {size} bytes: ask for another size"
        )))
    }

    /// Nothing else has the id of a volume that is only read.
    async fn is_free(&self, id: &VolumeId, parameters: &Parameters) -> Result<(), Status> {
        let there = self.capsuled.stat(id, "").await?.and_then(|stat| stat.volume);
        let is_other =
            |there: &v1::Volume| there.writable || Some(&there.capsule) != parameters.capsule.as_ref();
        match there.filter(is_other) {
            None => Ok(()),
            Some(_) => Err(Status::already_exists(format!("volume {id} is there, and is another"))),
        }
    }

    pub(super) async fn delete(&self, request: DeleteVolumeRequest) -> Result<DeleteVolumeResponse, Status> {
        let sent = required("volume_id", &request.volume_id)?;
        if let Some(id) = VolumeId::parse(sent) {
            let _turn = self.turns.of(sent).await?;
            self.capsuled.remove(&id).await?;
        }
        Ok(DeleteVolumeResponse {})
    }

    pub(super) async fn modify(
        &self,
        request: ControllerModifyVolumeRequest,
    ) -> Result<ControllerModifyVolumeResponse, Status> {
        let id = known_id(&request.volume_id)?;
        let version = mutable(&request.mutable_parameters)?
            .ok_or_else(|| Status::invalid_argument("mutable_parameters is missing: version can change"))?;
        let _turn = self.turns.of(id.as_str()).await?;
        let there = self.capsuled.stat(&id, "").await?.and_then(|stat| stat.volume);
        if there.ok_or_else(|| not_there(id.as_str()))?.capsule.is_empty() {
            return Err(Status::invalid_argument(format!("volume {id} is of no capsule: it has no version")));
        }
        // The volume is there: what is not known is the version.
        self.capsuled.replace(&id, &version).await.map_err(unknown_version)?;
        Ok(ControllerModifyVolumeResponse {})
    }
}

/// `NOT_FOUND` is of the volume, to who speaks CSI.
fn unknown_version(status: Status) -> Status {
    match status.code() {
        Code::NotFound => Status::invalid_argument(status.message()),
        _ => status,
    }
}
