//! Another version in a volume that is there.

use serde_json::{Value, json};

use super::world::{Disk, World};

/// A capsule of version 1 that two nodes have mounted.
fn world() -> World {
    let mut world = World::new();
    world.class("model", "Immediate", json!({ "capsule": "model", "version": "1" }));
    world.claim("u", "model", "ReadOnlyMany", None);
    world.settle();
    for node in ["n0", "n1"] {
        world.mount(node, "pvc-u", "1");
    }
    world.settle();
    world
}

fn status(world: &World) -> Value {
    world.now.claims["u"]["status"].clone()
}

fn target(world: &mut World, name: Value) {
    world.set("u", &json!({ "spec": { "volumeAttributesClassName": name } }));
}

#[test]
fn all_nodes_that_have_it_mounted_move_it() {
    let mut world = world();
    world.modifier("two", "2");
    target(&mut world, json!("two"));
    world.see();
    world.pass();
    // It is said first.
    assert_eq!(status(&world)["modifyVolumeStatus"]["status"], "InProgress");
    assert_eq!(world.volume("pvc-u").version.as_deref(), Some("1"));
    world.see();
    world.pass();
    assert_eq!(world.volume("pvc-u").version.as_deref(), Some("2"));
    assert!(world.disks.values().all(|disk| disk.version == "1"));
    world.settle();
    assert!(world.disks.values().all(|disk| disk.version == "2"), "{:?}", world.disks);
    assert_eq!(status(&world), json!({ "currentVolumeAttributesClassName": "two" }));
    assert_eq!(world.volume("pvc-u").modifier.as_deref(), Some("two"));
    assert!(world.said("VolumeModifySuccessful").unwrap().contains("two, version 2"));
    // Whoever had mounted it with the one before, and was seen late, moves too.
    world
        .disks
        .insert(("n0".into(), "pvc-u".into()), Disk { version: "1".into(), mounts: 1, written: false });
    world.settle();
    assert!(world.disks.values().all(|disk| disk.version == "2"));
}

#[test]
fn nothing_is_over_before_the_last_node_has_it() {
    let mut world = world();
    world.modifier("two", "2");
    target(&mut world, json!("two"));
    for _ in 0..4 {
        world.see();
        world.pass();
        world.agent("n0");
    }
    assert_eq!(world.disks[&("n0".to_owned(), "pvc-u".to_owned())].version, "2");
    assert_eq!(status(&world)["modifyVolumeStatus"]["status"], "InProgress");
    assert!(world.volume("pvc-u").modifier.is_none());
    // Taken back, what has moved moves back.
    target(&mut world, json!(null));
    world.settle();
    assert!(world.disks.values().all(|disk| disk.version == "1"), "{:?}", world.disks);
    assert_eq!((world.volume("pvc-u").version.as_deref(), status(&world)), (Some("1"), json!({})));
    assert!(world.now.nodes.values().all(|node| node.spec.volumes.is_empty()));
}

#[test]
fn what_is_not_possible_is_said_and_nothing_is_moved() {
    let mut world = world();
    target(&mut world, json!("none"));
    world.settle();
    assert_eq!(status(&world)["modifyVolumeStatus"]["status"], "Pending");
    world.modifiers.insert(
        "other".into(),
        serde_json::from_value(json!({ "metadata": { "name": "other" }, "driverName": "x" })).unwrap(),
    );
    target(&mut world, json!("other"));
    world.settle();
    assert_eq!(
        status(&world)["modifyVolumeStatus"],
        json!({ "status": "Infeasible", "targetVolumeAttributesClassName": "other" })
    );
    assert!(status(&world)["conditions"][0]["message"].as_str().unwrap().contains("is of the driver x"));
    let notes = world.notes.len();
    world.settle();
    assert_eq!((world.notes.len(), world.volume("pvc-u").version.as_deref()), (notes, Some("1")));
    target(&mut world, json!(null));
    world.settle();
    assert_eq!(status(&world), json!({}));
}

#[test]
fn one_that_is_written_to_has_it_from_its_node() {
    let mut world = World::new();
    world.class("code", "WaitForFirstConsumer", json!({ "capsule": "code", "version": "1", "mode": "rw" }));
    world.claim("u", "code", "ReadWriteOnce", Some("n0"));
    world.settle();
    assert_eq!(world.disks.values().next().unwrap().version, "1");
    world.modifier("two", "2");
    target(&mut world, json!("two"));
    world.settle();
    assert_eq!(world.disks.values().next().unwrap().version, "2");
    assert_eq!(status(&world), json!({ "currentVolumeAttributesClassName": "two" }));
    // It goes with its claim as any other.
    world.now.claims.clear();
    world.settle();
    assert!(world.disks.is_empty() && world.now.volumes.is_empty());
}
