//! Snapshots: what was written to a volume, as a version of its capsule. They outlive the volume, and are attached, moved to registries
//! and removed as any version.

use std::collections::HashMap;

use capsule_proto::{
    capsule::v1::Version,
    csi::v1::{
        CreateSnapshotRequest, CreateSnapshotResponse, DeleteSnapshotRequest, DeleteSnapshotResponse,
        ListSnapshotsRequest, ListSnapshotsResponse, Snapshot, list_snapshots_response::Entry,
    },
};
use tonic::Status;

use super::{
    Driver, known_id,
    names::{SnapshotId, VolumeId, version_of},
    not_there,
    pages::page,
    required,
};

/// Of a version. A volume over it needs no room for what is in it, so its size is left open.
fn snapshot(version: &Version) -> Snapshot {
    let id = SnapshotId { capsule: version.capsule.clone(), version: version.version.clone() };
    let source = id.source(&version.tags);
    Snapshot {
        snapshot_id: id.to_string(),
        source_volume_id: source.map(|id| id.to_string()).unwrap_or_default(),
        creation_time: version.created_at,
        ready_to_use: version.complete,
        ..Snapshot::default()
    }
}

/// The version that is asked for, if any.
fn asked_version(parameters: &HashMap<String, String>) -> Result<Option<&String>, Status> {
    let ours = parameters.iter().filter(|(key, _)| !key.starts_with("csi.storage.k8s.io/"));
    let mut version = None;
    for (key, value) in ours {
        match key.as_str() {
            "version" if !value.is_empty() => version = Some(value),
            "version" => {
                return Err(Status::invalid_argument("parameter version is empty: leave it out instead"));
            }
            key => {
                let known = "a snapshot has version alone";
                return Err(Status::invalid_argument(format!("parameter {key:?} is not known: {known}")));
            }
        }
    }
    Ok(version)
}

impl Driver {
    pub(super) async fn take_snapshot(
        &self,
        request: CreateSnapshotRequest,
    ) -> Result<CreateSnapshotResponse, Status> {
        let name = required("name", &request.name)?;
        required("source_volume_id", &request.source_volume_id)?;
        let asked = asked_version(&request.parameters)?;
        let volume = known_id(&request.source_volume_id)?;
        let _turn = self.turns.of(volume.as_str()).await?;
        let stat = self.capsuled.stat(&volume, "").await?;
        let there = stat.and_then(|stat| stat.volume).ok_or_else(|| not_there(volume.as_str()))?;
        if there.capsule.is_empty() || !there.writable {
            let what = if there.writable {
                "is of no capsule, of which a snapshot would be a version"
            } else {
                "is only read: what it has is a version already"
            };
            return Err(Status::invalid_argument(format!("volume {volume} {what}")));
        }
        let version = asked.cloned().unwrap_or_else(|| version_of(name));
        let id = SnapshotId { capsule: there.capsule, version };
        let found = match self.taken(&id, &volume, asked.is_none()).await? {
            Some(found) => found,
            None => {
                let tag = id.tag(&volume).ok_or_else(|| {
                    Status::invalid_argument(format!(
                        "the id of volume {volume} is too long for the tag of a snapshot"
                    ))
                })?;
                self.capsuled.commit(&volume, &id.version, tag).await?
            }
        };
        Ok(CreateSnapshotResponse { snapshot: Some(snapshot(&found)) })
    }

    /// The snapshot, where it was taken already; an error where another is called so: with `by_name`, of any capsule.
    async fn taken(&self, id: &SnapshotId, of: &VolumeId, by_name: bool) -> Result<Option<Version>, Status> {
        let all = if by_name {
            self.capsuled.versions().await?
        } else {
            self.capsuled.version(id).await?.into_iter().collect()
        };
        let mut own = None;
        for found in all.into_iter().filter(|found| found.version == id.version) {
            let other = SnapshotId { capsule: found.capsule.clone(), ..id.clone() };
            match other.source(&found.tags) {
                Some(source) if source == *of => own = Some(found),
                None if other != *id => (),
                source => {
                    let of = source.map_or("no volume".to_owned(), |source| format!("volume {source}"));
                    return Err(Status::already_exists(format!(
                        "{other} is there, and is a snapshot of {of}"
                    )));
                }
            }
        }
        Ok(own)
    }

    pub(super) async fn remove_snapshot(
        &self,
        request: DeleteSnapshotRequest,
    ) -> Result<DeleteSnapshotResponse, Status> {
        // What has not the form is no snapshot's, and so has gone.
        if let Some(id) = SnapshotId::parse(required("snapshot_id", &request.snapshot_id)?) {
            let _turn = self.turns.of(&request.snapshot_id).await?;
            if self.capsuled.version(&id).await?.is_some() {
                self.capsuled.remove_version(&id).await?;
            }
        }
        Ok(DeleteSnapshotResponse {})
    }

    /// All that were taken of volumes. By its id any version is found: from each a volume can be made.
    pub(super) async fn snapshots(
        &self,
        request: ListSnapshotsRequest,
    ) -> Result<ListSnapshotsResponse, Status> {
        let versions = match (request.snapshot_id.as_str(), SnapshotId::parse(&request.snapshot_id)) {
            ("", _) => self.capsuled.versions().await?,
            (_, Some(id)) => self.capsuled.version(&id).await?.into_iter().collect(),
            (_, None) => Vec::new(),
        };
        let mut found: Vec<Snapshot> = versions.iter().map(snapshot).collect();
        let is_any = |found: &Snapshot| !found.source_volume_id.is_empty() || !request.snapshot_id.is_empty();
        let of = request.source_volume_id.as_str();
        found.retain(|found| is_any(found) && (of.is_empty() || found.source_volume_id == of));
        found.sort_by(|a, b| a.snapshot_id.cmp(&b.snapshot_id));
        let (found, next_token) =
            page(found, |found| found.snapshot_id.clone(), request.max_entries, &request.starting_token)?;
        let entries = found.into_iter().map(|snapshot| Entry { snapshot: Some(snapshot) }).collect();
        Ok(ListSnapshotsResponse { entries, next_token })
    }
}
