//! Volumes at paths of the node.

use capsule_proto::csi::v1::{
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeUnpublishVolumeRequest, node_server::Node as _,
    volume_capability::access_mode::Mode,
};
use tonic::Code;

use super::*;

const INLINE: (&str, &str) = ("csi.storage.k8s.io/ephemeral", "true");

fn published(id: &str, path: &str, mode: Mode, context: &[(&str, &str)]) -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_id: id.to_owned(),
        target_path: path.to_owned(),
        volume_capability: Some(capability(mode)),
        volume_context: map(context),
        ..Default::default()
    }
}

impl World {
    async fn publish(&self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        self.driver.node_publish_volume(Request::new(request)).await.map(drop)
    }

    async fn unpublish(&self, id: &str, path: &str) -> Result<(), Status> {
        let request = NodeUnpublishVolumeRequest { volume_id: id.to_owned(), target_path: path.to_owned() };
        self.driver.node_unpublish_volume(Request::new(request)).await.map(drop)
    }

    /// Whether the last mount is for reading, and whether it is a pod's own.
    fn last(&self) -> (bool, bool) {
        let state = self.fake.state.lock().unwrap();
        state.mounts.last().map(|mount| (mount.read_only, mount.ephemeral)).unwrap()
    }
}

#[tokio::test]
async fn what_is_written_and_what_is_read_is_mounted_so() {
    let world = World::new();
    let id = world.made(asked("pvc-1", Mode::SingleNodeMultiWriter, &[])).await;
    let context = [("mode", "rw")];
    let request = published(&id, "/pods/a", Mode::SingleNodeMultiWriter, &context);
    world.publish(request.clone()).await.unwrap();
    world.publish(request.clone()).await.unwrap();
    assert_eq!(world.last(), (false, false));
    let reads = NodePublishVolumeRequest { readonly: true, target_path: "/pods/b/".to_owned(), ..request };
    world.publish(reads).await.unwrap();
    assert_eq!(world.last(), (true, false));
    assert_eq!(world.fake.state.lock().unwrap().volumes[&id].0.paths, ["/pods/a", "/pods/b"]);
    let read = [("capsule", "tz"), ("version", "1"), ("mode", "ro")];
    world.publish(published("pvc-2", "/pods/c", Mode::MultiNodeReaderOnly, &read)).await.unwrap();
    assert_eq!(world.last(), (true, false));
    // A volume that somebody made by hand, and a PersistentVolume that says nothing of it.
    world.publish(published(&id, "/pods/d", Mode::SingleNodeMultiWriter, &[])).await.unwrap();
    assert_eq!(world.last(), (false, false));
}

#[tokio::test]
async fn inline_volumes_come_and_go_with_their_pods() {
    let world = World::new();
    let pod = ("csi.storage.k8s.io/pod.name", "web");
    let read = [INLINE, pod, ("capsule", "tz")];
    for mode in [Mode::SingleNodeWriter, Mode::SingleNodeMultiWriter] {
        world.publish(published("csi-1", "/pods/a", mode, &read)).await.unwrap();
        assert_eq!(world.last(), (true, true));
    }
    let written = [INLINE, pod, ("size", "5Mi"), ("owner", "1:2")];
    world.publish(published("csi-2", "/pods/b", Mode::SingleNodeWriter, &written)).await.unwrap();
    assert_eq!(world.last(), (false, true));
    assert_eq!(world.fake.state.lock().unwrap().volumes["csi-2"].0.size, 5 << 20);
    for (id, path) in [("csi-1", "/pods/a"), ("csi-2", "/pods/b"), ("csi-2", "/pods/b")] {
        world.unpublish(id, path).await.unwrap();
    }
    assert!(world.fake.state.lock().unwrap().volumes.is_empty());
}

#[tokio::test]
async fn what_can_be_at_one_path_is_at_one_path() {
    let world = World::new();
    let id = world.made(asked("pvc-1", Mode::SingleNodeWriter, &[])).await;
    for mode in [Mode::SingleNodeWriter, Mode::SingleNodeSingleWriter, Mode::SingleNodeReaderOnly] {
        world.publish(published(&id, "/pods/a", mode, &[])).await.unwrap();
        world.publish(published(&id, "/pods/a", mode, &[])).await.unwrap();
        assert_eq!(
            refused(world.publish(published(&id, "/pods/b", mode, &[])).await),
            Code::FailedPrecondition
        );
        world.unpublish(&id, "/pods/a").await.unwrap();
    }
    world.publish(published(&id, "/pods/b", Mode::SingleNodeSingleWriter, &[])).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_mounted_is_refused() {
    let world = World::new();
    let id = world.made(asked("pvc-1", Mode::SingleNodeWriter, &[])).await;
    let good = || published(&id, "/pods/a", Mode::SingleNodeWriter, &[]);
    let with = |volume_id: &str| NodePublishVolumeRequest { volume_id: volume_id.to_owned(), ..good() };
    let at = |path: &str| NodePublishVolumeRequest { target_path: path.to_owned(), ..good() };
    let told = |context: &[(&str, &str)]| NodePublishVolumeRequest { volume_context: map(context), ..good() };
    for (wrong, code) in [
        (with(""), Code::InvalidArgument),
        (with("No Volume"), Code::InvalidArgument),
        (with("none"), Code::NotFound),
        (at(""), Code::InvalidArgument),
        (at("pods/a"), Code::InvalidArgument),
        (at("/pods/../a"), Code::InvalidArgument),
        (at("/"), Code::InvalidArgument),
        (NodePublishVolumeRequest { volume_capability: None, ..good() }, Code::InvalidArgument),
        (published("pvc-9", "/a", Mode::MultiNodeMultiWriter, &[("capsule", "tz")]), Code::InvalidArgument),
        (told(&[("what", "ever")]), Code::InvalidArgument),
        (told(&[("capsule", "tz")]), Code::InvalidArgument),
        (published("pvc-9", "/a", Mode::SingleNodeWriter, &[("capsule", "tz")]), Code::InvalidArgument),
        (published("pvc-9", "/a", Mode::MultiNodeReaderOnly, &[("capsule", "no")]), Code::NotFound),
    ] {
        assert_eq!(refused(world.publish(wrong.clone()).await), code, "{wrong:?}");
    }
    assert!(world.fake.state.lock().unwrap().mounts.is_empty());
    for (id, path, code) in [
        ("", "/a", Code::InvalidArgument),
        (&id, "", Code::InvalidArgument),
        (&id, "a", Code::InvalidArgument),
    ] {
        assert_eq!(refused(world.unpublish(id, path).await), code);
    }
    world.unpublish(&id, "/never").await.unwrap();
    world.unpublish("No Volume", "/never").await.unwrap();
}

#[tokio::test]
async fn statistics_are_of_a_volume_at_its_path() {
    let world = World::new();
    let id = world.made(asked("pvc-1", Mode::SingleNodeWriter, &[])).await;
    world.publish(published(&id, "/pods/a", Mode::SingleNodeWriter, &[])).await.unwrap();
    let stats = async |id: &str, path: &str| {
        let request = NodeGetVolumeStatsRequest {
            volume_id: id.to_owned(),
            volume_path: path.to_owned(),
            ..Default::default()
        };
        world.driver.node_get_volume_stats(Request::new(request)).await.map(Response::into_inner)
    };
    let good = stats(&id, "/pods/a").await.unwrap();
    assert_eq!(good.usage.len(), 2);
    assert_eq!(good.usage[0].total, i64::try_from(fake::DEFAULT).unwrap());
    assert!(!good.volume_condition.unwrap().abnormal);
    world.fake.state.lock().unwrap().trouble = "its mount has gone".to_owned();
    let condition = stats(&id, "/pods/a").await.unwrap().volume_condition.unwrap();
    assert!(condition.abnormal && condition.message == "its mount has gone");
    for (id, path, code) in [
        ("", "/pods/a", Code::InvalidArgument),
        (&id, "", Code::InvalidArgument),
        (&id, "/pods/b", Code::NotFound),
        ("none", "/pods/a", Code::NotFound),
    ] {
        assert_eq!(refused(stats(id, path).await), code, "{id:?} {path:?}");
    }
}
