//! Snapshots: versions that were made of what was written to volumes.

use capsule_proto::csi::v1::{
    CreateSnapshotRequest, DeleteSnapshotRequest, ListSnapshotsRequest, ListSnapshotsResponse, Snapshot,
    VolumeContentSource,
    controller_server::Controller as _,
    volume_capability::access_mode::Mode,
    volume_content_source::{SnapshotSource, Type},
};
use tonic::Code;

use super::*;

impl World {
    async fn written(&self, name: &str) -> String {
        self.made(asked(name, Mode::SingleNodeWriter, &[("capsule", "tz"), ("version", "1"), ("mode", "rw")]))
            .await
    }

    async fn snapshot(&self, of: &str, name: &str, parameters: &[(&str, &str)]) -> Result<Snapshot, Status> {
        let request = CreateSnapshotRequest {
            source_volume_id: of.to_owned(),
            name: name.to_owned(),
            parameters: map(parameters),
            ..Default::default()
        };
        let made = self.driver.create_snapshot(Request::new(request)).await?;
        Ok(made.into_inner().snapshot.unwrap())
    }

    async fn snapshots(&self, request: ListSnapshotsRequest) -> Result<ListSnapshotsResponse, Status> {
        self.driver.list_snapshots(Request::new(request)).await.map(Response::into_inner)
    }

    async fn delete_snapshot(&self, id: &str) -> Result<(), Status> {
        let request = DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
        self.driver.delete_snapshot(Request::new(request)).await.map(drop)
    }
}

fn ids(list: &ListSnapshotsResponse) -> Vec<&str> {
    list.entries.iter().map(|entry| entry.snapshot.as_ref().unwrap().snapshot_id.as_str()).collect()
}

#[tokio::test]
async fn a_snapshot_is_taken_once() {
    let world = World::new();
    let (one, two) = (world.written("pvc-1").await, world.written("pvc-2").await);
    let made = world.snapshot(&one, "snapshot-1", &[]).await.unwrap();
    assert_eq!((made.snapshot_id.as_str(), made.source_volume_id.as_str()), ("tz@snapshot-1", "pvc-1"));
    assert!(made.ready_to_use && made.creation_time.is_some());
    // It would be a panic of the fake's, if it were committed again.
    assert_eq!(world.snapshot(&one, "snapshot-1", &[]).await.unwrap(), made);
    assert_eq!(refused(world.snapshot(&two, "snapshot-1", &[]).await), Code::AlreadyExists);
    // Nor is it taken for one that was published otherwise.
    assert_eq!(refused(world.snapshot(&one, "s", &[("version", "2")]).await), Code::AlreadyExists);
    let named = world.snapshot(&one, "snapshot-2", &[("version", "3-rc")]).await.unwrap();
    assert_eq!(named.snapshot_id, "tz@3-rc");
}

#[tokio::test]
async fn what_cannot_be_a_snapshot_is_refused() {
    let world = World::new();
    let written = world.written("pvc-1").await;
    let directory = world.made(asked("pvc-2", Mode::SingleNodeWriter, &[])).await;
    for (volume, name, parameters, code) in [
        ("", "s", &[][..], Code::InvalidArgument),
        (&written, "", &[], Code::InvalidArgument),
        (&written, "s", &[("version", "")], Code::InvalidArgument),
        (&written, "s", &[("tag", "x")], Code::InvalidArgument),
        ("none", "s", &[], Code::NotFound),
        (&directory, "s", &[], Code::InvalidArgument),
    ] {
        assert_eq!(refused(world.snapshot(volume, name, parameters).await), code, "{volume:?} {name:?}");
    }
}

#[tokio::test]
async fn snapshots_are_listed_by_what_is_asked() {
    let world = World::new();
    let (one, two) = (world.written("pvc-1").await, world.written("shop-pvc-2").await);
    for (volume, name) in [(&one, "snapshot-1"), (&one, "snapshot-2"), (&two, "snapshot-3")] {
        world.snapshot(volume, name, &[]).await.unwrap();
    }
    let list = ListSnapshotsRequest::default;
    let all = world.snapshots(list()).await.unwrap();
    assert_eq!(ids(&all), ["tz@snapshot-1", "tz@snapshot-2", "tz@snapshot-3"]);
    let of = world.snapshots(ListSnapshotsRequest { source_volume_id: two, ..list() }).await.unwrap();
    assert_eq!(ids(&of), ["tz@snapshot-3"]);
    for (id, found) in [("tz@snapshot-2", 1), ("tz@1", 1), ("tz@9", 0), ("nothing", 0)] {
        let request = ListSnapshotsRequest { snapshot_id: id.to_owned(), ..list() };
        assert_eq!(world.snapshots(request).await.unwrap().entries.len(), found, "{id}");
    }
    let page = world.snapshots(ListSnapshotsRequest { max_entries: 2, ..list() }).await.unwrap();
    let rest = ListSnapshotsRequest { starting_token: page.next_token.clone(), ..list() };
    assert_eq!(ids(&world.snapshots(rest).await.unwrap()), ["tz@snapshot-3"]);
    let bad = ListSnapshotsRequest { starting_token: "bad".to_owned(), ..list() };
    assert_eq!(refused(world.snapshots(bad).await), Code::Aborted);
}

#[tokio::test]
async fn a_snapshot_goes_and_no_version_by_its_tag() {
    let world = World::new();
    let volume = world.written("pvc-1").await;
    let made = world.snapshot(&volume, "snapshot-1", &[]).await.unwrap();
    let tag = world.fake.state.lock().unwrap().versions[&("tz".into(), "snapshot-1".into())].tags[0].clone();
    world.delete_snapshot(&format!("tz@{tag}")).await.unwrap();
    assert_eq!(world.snapshots(ListSnapshotsRequest::default()).await.unwrap().entries.len(), 1);
    assert_eq!(refused(world.delete_snapshot("tz@1").await), Code::FailedPrecondition, "it is in use");
    for id in [made.snapshot_id.as_str(), made.snapshot_id.as_str(), "none", "tz@none"] {
        world.delete_snapshot(id).await.unwrap();
    }
    assert!(world.snapshots(ListSnapshotsRequest::default()).await.unwrap().entries.is_empty());
    assert_eq!(refused(world.delete_snapshot("").await), Code::InvalidArgument);
}

#[tokio::test]
async fn a_volume_is_made_over_a_snapshot() {
    let world = World::new();
    let volume = world.written("pvc-1").await;
    let made = world.snapshot(&volume, "snapshot-1", &[]).await.unwrap();
    let source = Some(VolumeContentSource {
        r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id: made.snapshot_id })),
    });
    let request = asked("pvc-2", Mode::SingleNodeWriter, &[("capsule", "tz"), ("mode", "rw")]);
    let request = CreateVolumeRequest { volume_content_source: source.clone(), ..request };
    let over = world.create(request).await.unwrap().volume.unwrap();
    assert_eq!(over.content_source, source);
    assert_eq!(world.fake.state.lock().unwrap().volumes["pvc-2"].0.version, "snapshot-1");
}
