//! Making, changing, listing and removing volumes.

use capsule_proto::csi::v1::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerGetVolumeRequest, ControllerModifyVolumeRequest,
    DeleteVolumeRequest, GetCapacityRequest, ListVolumesRequest, Topology, TopologyRequirement,
    ValidateVolumeCapabilitiesRequest, VolumeContentSource,
    controller_server::Controller as _,
    volume_capability::{AccessType, BlockVolume, access_mode::Mode},
    volume_content_source::{SnapshotSource, Type, VolumeSource},
};
use tonic::Code;

use super::*;
use crate::csi::{
    TOPOLOGY,
    tests::fake::{DEFAULT, ROOM},
};

const GIB: i64 = 1 << 30;

fn sized(name: &str, required_bytes: i64, limit_bytes: i64) -> CreateVolumeRequest {
    let capacity_range = Some(CapacityRange { required_bytes, limit_bytes });
    CreateVolumeRequest { capacity_range, ..asked(name, Mode::SingleNodeWriter, &[]) }
}

#[tokio::test]
async fn a_volume_is_made_once() {
    let world = World::new();
    let made = world.create(sized("pvc-1", GIB, 0)).await.unwrap();
    let volume = made.volume.clone().unwrap();
    assert_eq!((volume.volume_id.as_str(), volume.capacity_bytes), ("pvc-1", GIB));
    assert_eq!(volume.accessible_topology, [world.driver.topology()]);
    assert_eq!(volume.volume_context, map(&[("mode", "rw")]));
    assert_eq!(world.create(sized("pvc-1", GIB, 0)).await.unwrap(), made);
    // One that is there will do where its size is within the range.
    assert_eq!(world.create(sized("pvc-1", 1, 2 * GIB)).await.unwrap(), made);
    assert_eq!(world.create(asked("pvc-1", Mode::SingleNodeWriter, &[])).await.unwrap(), made);
    assert_eq!(refused(world.create(sized("pvc-1", 2 * GIB, 0)).await), Code::AlreadyExists);
    assert_eq!(refused(world.create(sized("pvc-1", 0, GIB / 2)).await), Code::AlreadyExists);
    let other = asked("pvc-1", Mode::SingleNodeWriter, &[("capsule", "tz"), ("mode", "rw")]);
    assert_eq!(refused(world.create(other).await), Code::AlreadyExists);
}

#[tokio::test]
async fn capacities_are_kept_to() {
    let world = World::new();
    let size = async |required, limit| {
        let name = format!("pvc-{required}-{limit}");
        world.create(sized(&name, required, limit)).await.map(|made| made.volume.unwrap().capacity_bytes)
    };
    assert_eq!(size(0, 0).await.unwrap(), i64::try_from(DEFAULT).unwrap());
    assert_eq!(size(0, GIB).await.unwrap(), GIB);
    assert_eq!(size(5, GIB).await.unwrap(), 4 << 20);
    assert_eq!(refused(size(0, 5).await), Code::OutOfRange);
    assert_eq!(refused(size(-1, 0).await), Code::InvalidArgument);
    assert_eq!(refused(size(0, -1).await), Code::InvalidArgument);
    assert_eq!(refused(size(2, 1).await), Code::OutOfRange);
    assert_eq!(refused(size(i64::MAX, 0).await), Code::ResourceExhausted);
}

#[tokio::test]
async fn what_is_only_read_is_made_when_it_is_mounted() {
    let world = World::new();
    let request = asked("pvc-1", Mode::MultiNodeReaderOnly, &[("capsule", "tz"), ("version", "9")]);
    // A claim wants a size; nothing is written.
    let capacity_range = Some(CapacityRange { required_bytes: GIB, limit_bytes: 0 });
    let volume =
        world.create(CreateVolumeRequest { capacity_range, ..request }).await.unwrap().volume.unwrap();
    assert_eq!((volume.capacity_bytes, volume.accessible_topology.len()), (0, 0));
    assert_eq!(volume.volume_context, map(&[("capsule", "tz"), ("version", "9"), ("mode", "ro")]));
    assert!(world.fake.state.lock().unwrap().volumes.is_empty());
    world.made(asked("pvc-2", Mode::SingleNodeWriter, &[])).await;
    let other = asked("pvc-2", Mode::MultiNodeReaderOnly, &[("capsule", "tz")]);
    assert_eq!(refused(world.create(other).await), Code::AlreadyExists);
}

#[tokio::test]
async fn what_is_asked_for_wrongly_is_refused() {
    let world = World::new();
    let good = || asked("pvc-1", Mode::SingleNodeWriter, &[]);
    let mut block = good();
    block.volume_capabilities[0].access_type = Some(AccessType::Block(BlockVolume {}));
    let source = |r#type| Some(VolumeContentSource { r#type });
    let volume = Some(Type::Volume(VolumeSource { volume_id: "pvc-0".to_owned() }));
    for (wrong, words) in [
        (CreateVolumeRequest { name: String::new(), ..good() }, "name is missing"),
        (CreateVolumeRequest { name: "a\u{7}".to_owned(), ..good() }, "control"),
        (CreateVolumeRequest { name: "a".repeat(129), ..good() }, "128"),
        (CreateVolumeRequest { volume_capabilities: Vec::new(), ..good() }, "capability is missing"),
        (block, "no block volumes"),
        (asked("a", Mode::MultiNodeMultiWriter, &[]), "ReadWriteOnce"),
        (asked("a", Mode::SingleNodeWriter, &[("capsule", "tz")]), "ReadOnlyMany"),
        (asked("a", Mode::SingleNodeWriter, &[("fsType", "ext4")]), "fsType"),
        (
            asked("a", Mode::SingleNodeWriter, &[("csi.storage.k8s.io/ephemeral", "true"), ("size", "1Gi")]),
            "capacity",
        ),
        (CreateVolumeRequest { volume_content_source: source(volume), ..good() }, "snapshot"),
        (CreateVolumeRequest { volume_content_source: source(None), ..good() }, "type"),
        (CreateVolumeRequest { mutable_parameters: map(&[("mode", "rw")]), ..good() }, "mode"),
    ] {
        let status = world.create(wrong).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(words), "{words}: {status}");
    }
    assert!(world.fake.state.lock().unwrap().volumes.is_empty());
}

#[tokio::test]
async fn the_claims_namespace_is_the_stack_of_what_is_written() {
    let world = World::new();
    let namespace = ("csi.storage.k8s.io/pvc/namespace", "shop");
    assert_eq!(world.made(asked("pvc-1", Mode::SingleNodeWriter, &[namespace])).await, "shop/pvc-1");
    let read = asked("pvc-2", Mode::MultiNodeReaderOnly, &[namespace, ("capsule", "tz")]);
    assert_eq!(world.made(read).await, "pvc-2");
    let longest = world.made(asked(&"x".repeat(128), Mode::SingleNodeWriter, &[namespace])).await;
    assert_eq!(longest.len(), 128);
    let owned = [("owner", "1000:1000"), ("permissions", "0770")];
    world.made(asked("pvc-3", Mode::SingleNodeWriter, &owned)).await;
    let state = world.fake.state.lock().unwrap();
    let (_, spec) = &state.volumes["pvc-3"];
    assert_eq!((spec.owner.unwrap().uid, spec.permissions), (1000, Some(0o770)));
}

#[tokio::test]
async fn a_volume_is_made_where_it_can_be_reached() {
    let world = World::new();
    let on = |nodes: &[(&str, &str)]| {
        let requisite = nodes.iter().map(|node| Topology { segments: map(&[*node]) }).collect();
        Some(TopologyRequirement { requisite, preferred: Vec::new() })
    };
    let ask = async |name: &str, nodes: &[(&str, &str)]| {
        let request = asked(name, Mode::SingleNodeWriter, &[]);
        world.create(CreateVolumeRequest { accessibility_requirements: on(nodes), ..request }).await
    };
    ask("a", &[(TOPOLOGY, "n0"), (TOPOLOGY, "n1")]).await.unwrap();
    ask("b", &[(&TOPOLOGY.to_uppercase(), "n1")]).await.unwrap();
    assert_eq!(refused(ask("c", &[(TOPOLOGY, "n0")]).await), Code::ResourceExhausted);
    assert!(!world.fake.state.lock().unwrap().volumes.contains_key("c"));
}

#[tokio::test]
async fn a_volume_is_removed_once_and_for_all() {
    let world = World::new();
    let delete = async |id: &str| {
        let request = DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        world.driver.delete_volume(Request::new(request)).await
    };
    let id = world.made(asked("pvc-1", Mode::SingleNodeWriter, &[])).await;
    world.fake.state.lock().unwrap().volumes.get_mut(&id).unwrap().0.paths.push("/p".to_owned());
    assert_eq!(refused(delete(&id).await), Code::FailedPrecondition);
    world.fake.state.lock().unwrap().volumes.get_mut(&id).unwrap().0.paths.clear();
    delete(&id).await.unwrap();
    delete(&id).await.unwrap();
    delete("No Volume").await.unwrap();
    assert_eq!(refused(delete("").await), Code::InvalidArgument);
}

#[tokio::test]
async fn capabilities_are_confirmed_or_explained() {
    let world = World::new();
    let id = world.made(asked("pvc-1", Mode::SingleNodeWriter, &[])).await;
    let validate = async |id: &str, modes: &[Mode], context: &[(&str, &str)]| {
        let request = ValidateVolumeCapabilitiesRequest {
            volume_id: id.to_owned(),
            volume_capabilities: modes.iter().map(|mode| capability(*mode)).collect(),
            volume_context: map(context),
            ..Default::default()
        };
        let answer = world.driver.validate_volume_capabilities(Request::new(request)).await;
        answer.map(Response::into_inner)
    };
    let good = validate(&id, &[Mode::SingleNodeWriter], &[]).await.unwrap();
    assert_eq!(good.confirmed.unwrap().volume_capabilities, [capability(Mode::SingleNodeWriter)]);
    let bad = validate(&id, &[Mode::SingleNodeWriter, Mode::MultiNodeMultiWriter], &[]).await.unwrap();
    assert!(bad.confirmed.is_none() && bad.message.contains("MULTI_NODE_MULTI_WRITER"), "{bad:?}");
    let read = [("capsule", "tz"), ("mode", "ro")];
    assert!(validate("pvc-2", &[Mode::MultiNodeReaderOnly], &read).await.unwrap().confirmed.is_some());
    for (id, modes, code) in [
        ("", &[Mode::SingleNodeWriter][..], Code::InvalidArgument),
        (&id, &[], Code::InvalidArgument),
        (&id, &[Mode::Unknown], Code::InvalidArgument),
        ("none", &[Mode::SingleNodeWriter], Code::NotFound),
        ("No Volume", &[Mode::SingleNodeWriter], Code::NotFound),
    ] {
        assert_eq!(refused(validate(id, modes, &[]).await), code, "{id}");
    }
}

#[tokio::test]
async fn volumes_are_listed_in_pages_with_how_they_are() {
    let world = World::new();
    for n in 0..5 {
        world.made(asked(&format!("pvc-{n}"), Mode::SingleNodeWriter, &[])).await;
    }
    world.fake.state.lock().unwrap().volumes.get_mut("pvc-4").unwrap().0.ephemeral = true;
    world.fake.state.lock().unwrap().trouble = "its image is damaged".to_owned();
    let list = async |max_entries, token: &str| {
        let request = ListVolumesRequest { max_entries, starting_token: token.to_owned() };
        world.driver.list_volumes(Request::new(request)).await.map(Response::into_inner)
    };
    let first = list(3, "").await.unwrap();
    let second = list(3, &first.next_token).await.unwrap();
    let ids: Vec<_> = first
        .entries
        .iter()
        .chain(&second.entries)
        .map(|e| e.volume.as_ref().unwrap().volume_id.clone())
        .collect();
    assert_eq!(ids, ["pvc-0", "pvc-1", "pvc-2", "pvc-3"]);
    assert_eq!(second.next_token, "");
    let status = first.entries[0].status.clone().unwrap().volume_condition.unwrap();
    assert!(status.abnormal && status.message == "its image is damaged");
    assert_eq!(refused(list(0, "invalid-token").await), Code::Aborted);
    assert_eq!(refused(list(-1, "").await), Code::InvalidArgument);
    let get = async |id: &str| {
        let request = ControllerGetVolumeRequest { volume_id: id.to_owned() };
        world.driver.controller_get_volume(Request::new(request)).await.map(Response::into_inner)
    };
    assert_eq!(get("pvc-0").await.unwrap().volume, first.entries[0].volume);
    assert_eq!(refused(get("none").await), Code::NotFound);
    assert_eq!(refused(get("").await), Code::InvalidArgument);
}

#[tokio::test]
async fn a_volume_gets_another_version() {
    let world = World::new();
    let over = [("capsule", "tz"), ("version", "1"), ("mode", "rw")];
    let id = world.made(asked("pvc-1", Mode::SingleNodeWriter, &over)).await;
    let directory = world.made(asked("pvc-2", Mode::SingleNodeWriter, &[])).await;
    let modify = async |id: &str, parameters: &[(&str, &str)]| {
        let request = ControllerModifyVolumeRequest {
            volume_id: id.to_owned(),
            mutable_parameters: map(parameters),
            ..Default::default()
        };
        world.driver.controller_modify_volume(Request::new(request)).await
    };
    modify(&id, &[("version", "2")]).await.unwrap();
    assert_eq!(world.fake.state.lock().unwrap().volumes[&id].0.version, "2");
    for (id, parameters, code) in [
        ("", &[("version", "1")][..], Code::InvalidArgument),
        (&id, &[], Code::InvalidArgument),
        (&id, &[("mode", "ro")], Code::InvalidArgument),
        (&directory, &[("version", "1")], Code::InvalidArgument),
        ("none", &[("version", "1")], Code::NotFound),
        (&id, &[("version", "9")], Code::InvalidArgument),
    ] {
        assert_eq!(refused(modify(id, parameters).await), code, "{id} {parameters:?}");
    }
}

#[tokio::test]
async fn capacity_is_this_nodes() {
    let world = World::new();
    let ask = async |node: &str, modes: &[Mode]| {
        let request = GetCapacityRequest {
            volume_capabilities: modes.iter().map(|mode| capability(*mode)).collect(),
            accessible_topology: Some(Topology { segments: map(&[(TOPOLOGY, node)]) }),
            ..Default::default()
        };
        world.driver.get_capacity(Request::new(request)).await.unwrap().into_inner().available_capacity
    };
    let room = i64::try_from(ROOM).unwrap();
    assert_eq!(ask("n1", &[Mode::SingleNodeWriter]).await, room);
    assert_eq!(ask("n1", &[]).await, room);
    assert_eq!(ask("n2", &[]).await, 0);
    assert_eq!(ask("n1", &[Mode::MultiNodeMultiWriter]).await, 0);
}

#[tokio::test]
async fn what_is_not_offered_is_not_implemented() {
    let world = World::new();
    let expand =
        world.driver.controller_expand_volume(Request::new(ControllerExpandVolumeRequest::default())).await;
    assert_eq!(refused(expand), Code::Unimplemented);
    let source = Some(VolumeContentSource {
        r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id: "tz@9".to_owned() })),
    });
    let request = asked("a", Mode::SingleNodeWriter, &[]);
    let missing = world.create(CreateVolumeRequest { volume_content_source: source, ..request }).await;
    assert_eq!(refused(missing), Code::NotFound);
}
