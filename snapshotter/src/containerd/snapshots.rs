//! Snapshots as containerd names them, and applying layers to them.
//!
//! capsuled is the snapshotter behind these calls. They go through containerd all the same: it keeps the names per
//! namespace and protects what its own metadata refers to.

use std::collections::HashMap;

use capsule_proto::containerd::{
    services::{
        diff::v1::{ApplyRequest, diff_client::DiffClient},
        snapshots::v1::{
            CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
            snapshots_client::SnapshotsClient,
        },
    },
    types::{Descriptor, Mount},
};
use tonic::Code;

use super::{ContainerdError, Scope};

impl Scope {
    /// True if the namespace has a snapshot of this key or name.
    pub async fn has_snapshot(&self, snapshotter: &str, key: &str) -> Result<bool, ContainerdError> {
        let request = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
        match SnapshotsClient::new(self.channel()).stat(self.request(request)).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(self.failed(&format!("look up the snapshot {key}"), status)),
        }
    }

    /// Prepares an active snapshot on `parent` (empty: on nothing).
    pub async fn prepare_snapshot(
        &self,
        snapshotter: &str,
        key: &str,
        parent: &str,
    ) -> Result<Vec<Mount>, ContainerdError> {
        let request = PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        };
        let reply = SnapshotsClient::new(self.channel())
            .prepare(self.request(request))
            .await
            .map_err(|e| self.failed(&format!("prepare the snapshot {key}"), e))?;
        Ok(reply.into_inner().mounts)
    }

    /// Commits the active snapshot `key` as `name`. False if a snapshot of that name is there already: `key` is
    /// then still active.
    pub async fn commit_snapshot(
        &self,
        snapshotter: &str,
        key: &str,
        name: &str,
    ) -> Result<bool, ContainerdError> {
        let request = CommitSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            name: name.to_owned(),
            ..Default::default()
        };
        match SnapshotsClient::new(self.channel()).commit(self.request(request)).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::AlreadyExists => Ok(false),
            Err(status) => Err(self.failed(&format!("commit the snapshot {name}"), status)),
        }
    }

    /// Removes a snapshot; one that is not there is a success.
    pub async fn remove_snapshot(&self, snapshotter: &str, key: &str) -> Result<(), ContainerdError> {
        let request = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
        match SnapshotsClient::new(self.channel()).remove(self.request(request)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(self.failed(&format!("remove the snapshot {key}"), status)),
        }
    }

    /// Unpacks the blob of a layer into mounts, and returns the digest of its uncompressed tar.
    pub async fn apply_layer(
        &self,
        media_type: &str,
        digest: &str,
        size: u64,
        mounts: Vec<Mount>,
    ) -> Result<String, ContainerdError> {
        let what = format!("unpack the layer {digest}");
        let diff = Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.to_owned(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            ..Default::default()
        };
        let request = ApplyRequest { diff: Some(diff), mounts, ..Default::default() };
        let reply = DiffClient::new(self.channel())
            .apply(self.request(request))
            .await
            .map_err(|e| self.failed(&what, e))?;
        let applied = reply.into_inner().applied;
        Ok(applied.ok_or(ContainerdError::Incomplete { what, missing: "a descriptor" })?.digest)
    }
}
