//! Contracts.

use std::sync::Arc;

use serde_json::{Value, json};

use super::world::{Disk, World};
use crate::{
    api::{DirectoryState, StorageContract},
    storage::slim::Phase,
};

fn contract(world: &mut World, name: &str, directories: Value) {
    let before = world.contracts.get(name);
    let metadata = before.map_or_else(
        || json!({ "name": name, "uid": format!("uid-{name}"), "generation": 1 }),
        |before| serde_json::to_value(&before.metadata).unwrap(),
    );
    let one = json!({ "metadata": metadata, "spec": { "nodeName": "n0", "directories": directories } });
    let mut one: StorageContract = serde_json::from_value(one).unwrap();
    one.status = before.and_then(|before| before.status.clone());
    world.contracts.insert(name.to_owned(), Arc::new(one));
}

fn go(world: &mut World, name: &str) {
    let mut one = world.contracts[name].as_ref().clone();
    one.metadata.deletion_timestamp = serde_json::from_value(json!("1970-01-01T00:00:00Z")).unwrap();
    world.contracts.insert(name.to_owned(), Arc::new(one));
}

fn ready(world: &World, name: &str) -> (String, Vec<DirectoryState>) {
    let status = world.contracts[name].status.clone().unwrap();
    let condition = &status.conditions[0];
    (
        format!("{} {} {}", condition.status, condition.reason, condition.message),
        status.directories.iter().map(|one| one.state).collect(),
    )
}

fn bind(world: &mut World, volume: &str, uid: &str) {
    world.claim(uid, "shop", "ReadWriteOnce", None);
    let claim = json!({ "namespace": "shop", "name": format!("claim-{uid}"), "uid": uid });
    world.now.volumes.get_mut(volume).unwrap()["spec"]["claimRef"] = claim;
    world.settle();
}

#[test]
fn directories_are_made_and_found_again_by_another_cluster() {
    let mut world = World::new();
    let directories = json!([
        { "name": "db", "size": "1Gi", "owner": { "user": 70, "group": 70 }, "permissions": "0700" },
        { "name": "web", "path": "files", "size": "2Gi", "accessModes": ["ReadWriteMany"], "storageClassName": "fast" },
    ]);
    contract(&mut world, "shop", directories.clone());
    world.settle();
    assert_eq!(ready(&world, "shop").0, "True Provided 2 directories are there");
    let class = &world.classes["shop"];
    assert_eq!(
        (class.reclaim_policy.as_deref(), class.provisioner.as_str()),
        (Some("Retain"), "csi.resourcecapsules.io")
    );
    let volume = world.volume("shop-files");
    assert_eq!((&*volume.handle, volume.node.as_deref(), &*volume.class), ("shop/files", Some("n0"), "fast"));
    assert!(!volume.is_deleted && !volume.is_provisioned && !volume.is_held());
    assert_eq!(world.volume("shop-db").attributes["permissions"], "0700");
    assert!(world.now.nodes["n0"].spec.volumes.is_empty());
    // A class that is not the contract's is left as it is, and said.
    let status = world.contracts["shop"].status.clone().unwrap();
    assert_eq!(
        (status.conditions[1].reason.as_str(), world.classes["fast"].reclaim_policy.as_deref()),
        ("NotOurs", Some("Delete"))
    );

    world.disks.values_mut().for_each(|disk| disk.written = true);
    let mut again = World::new();
    again.disks.clone_from(&world.disks);
    contract(&mut again, "shop", directories);
    again.settle();
    assert_eq!(ready(&again, "shop").1, [DirectoryState::Available, DirectoryState::Available]);
    assert_eq!(again.disks, world.disks);
}

#[test]
fn nothing_removes_what_was_written() {
    let mut world = World::new();
    contract(&mut world, "shop", json!([{ "name": "a", "size": "1Gi" }, { "name": "b", "size": "1Gi" }]));
    world.settle();
    bind(&mut world, "shop-a", "u");
    // A directory that is not listed any more.
    contract(&mut world, "shop", json!([]));
    world.settle();
    assert_eq!(world.now.volumes.keys().collect::<Vec<_>>(), ["shop-a"]);
    assert_eq!(ready(&world, "shop").1, [DirectoryState::Unlisted]);
    go(&mut world, "shop");
    world.settle();
    assert!(world.contracts.is_empty() && world.classes.contains_key("shop"));
    assert!(world.said("VolumesStay").unwrap().contains("shop-a"));
    world.now.claims.clear();
    world.now.volumes.get_mut("shop-a").unwrap()["spec"]["persistentVolumeReclaimPolicy"] = json!("Delete");
    world.settle();
    assert_eq!((world.disks.len(), world.removed.len()), (2, 0));
}

#[test]
fn what_nobody_has_goes_with_the_contract() {
    let mut world = World::new();
    contract(&mut world, "shop", json!([{ "name": "a", "size": "1Gi" }]));
    contract(&mut world, "two", json!([{ "name": "a", "size": "1Gi", "storageClassName": "shop" }]));
    world.settle();
    go(&mut world, "shop");
    world.settle();
    assert_eq!(world.now.volumes.keys().collect::<Vec<_>>(), ["two-a"]);
    assert!(world.classes.contains_key("shop"), "the other contract uses it");
    go(&mut world, "two");
    world.settle();
    assert!(
        world.now.volumes.is_empty()
            && !world.classes.contains_key("shop")
            && world.classes.contains_key("fast")
    );
    assert_eq!(world.disks.len(), 2);
}

#[test]
fn a_directory_is_for_the_next_claim_of_its_name_and_for_nobody_elses() {
    let mut world = World::new();
    let claim = json!({ "namespace": "shop", "name": "claim-u" });
    contract(
        &mut world,
        "shop",
        json!([{ "name": "a", "size": "1Gi", "claim": claim }, { "name": "b", "size": "1Gi" }]),
    );
    world.settle();
    assert_eq!(world.now.volumes["shop-a"]["spec"]["claimRef"]["name"], "claim-u");
    bind(&mut world, "shop-a", "u");
    bind(&mut world, "shop-b", "v");
    assert_eq!(ready(&world, "shop").0, "True Provided 2 directories are there");
    world.now.claims.clear();
    world.settle();
    assert_eq!(ready(&world, "shop").1, [DirectoryState::Available, DirectoryState::Released]);
    assert!(
        ready(&world, "shop").0.contains("delete the PersistentVolume shop-b"),
        "{:?}",
        ready(&world, "shop")
    );
    assert!(world.now.volumes["shop-a"]["spec"]["claimRef"]["uid"].is_null());
    // An administrator gives it to whoever is next.
    world.delete("shop-b", None);
    world.settle();
    assert_eq!(
        (world.volume("shop-b").phase, world.volume("shop-b").claim.clone()),
        (Phase::Available, None)
    );
    assert_eq!(world.disks.len(), 2);
    // Who it is for may change while nobody has it.
    contract(
        &mut world,
        "shop",
        json!([{ "name": "a", "size": "1Gi" }, { "name": "b", "size": "1Gi", "claim": claim }]),
    );
    world.settle();
    assert_eq!(world.volume("shop-a").claim, None);
    assert_eq!(&*world.volume("shop-b").claim.unwrap().name, "claim-u");
}

#[test]
fn what_is_lost_is_said_and_not_made_anew() {
    let mut world = World::new();
    contract(&mut world, "shop", json!([{ "name": "a", "size": "1Gi" }]));
    world.settle();
    bind(&mut world, "shop-a", "u");
    world.disks.clear();
    world.settle();
    assert!(world.disks.is_empty());
    let (line, states) = ready(&world, "shop");
    assert!(line.starts_with("False Lost a: the node n0 has no shop/a any more"), "{line}");
    assert_eq!(states, [DirectoryState::Lost]);
    world.disks.insert(("n0".into(), "shop/a".into()), Disk::default());
    world.settle();
    assert_eq!(ready(&world, "shop").1, [DirectoryState::Bound]);
}

#[test]
fn what_cannot_be_made_is_said() {
    let mut world = World::new();
    world.full.insert("n0".to_owned());
    contract(&mut world, "shop", json!([{ "name": "a", "size": "1Gi" }]));
    world.settle();
    assert_eq!(ready(&world, "shop").0, "False Failed a: the disk is full");
    world.full.clear();
    world.settle();
    assert!(ready(&world, "shop").0.starts_with("True"));
    // Two contracts whose volumes would have the same name.
    contract(&mut world, "shop-a", json!([{ "name": "b", "size": "1Gi" }]));
    contract(&mut world, "shop", json!([{ "name": "a", "size": "1Gi" }, { "name": "a-b", "size": "1Gi" }]));
    world.settle();
    let lines = [ready(&world, "shop").0, ready(&world, "shop-a").0];
    assert_eq!(lines.iter().filter(|line| line.starts_with("False Failed")).count(), 1, "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("is there, and is")), "{lines:?}");
    world.machines.remove("n0");
    contract(&mut world, "new", json!([{ "name": "a", "size": "1Gi" }]));
    world.settle();
    assert_eq!(ready(&world, "new").0, "False Failed a: there is no node n0");
}

#[test]
fn a_claim_that_no_directory_suits_is_told_and_has_none_made() {
    let mut world = World::new();
    contract(&mut world, "shop", json!([{ "name": "a", "size": "1Gi" }]));
    world.settle();
    world.claim("u", "shop", "ReadWriteOnce", Some("n0"));
    world.settle();
    assert!(world.said("ProvisioningFailed").unwrap().contains("list one in the StorageContract shop"));
    assert_eq!(world.disks.len(), 1);
}

#[test]
fn another_version_below_a_directory_is_the_contracts_to_say() {
    let mut world = World::new();
    let of = |version: &str| json!([{ "name": "a", "size": "1Gi", "capsule": { "name": "code", "version": version } }]);
    contract(&mut world, "shop", of("1"));
    world.settle();
    assert_eq!(world.disks.values().next().unwrap().version, "1");
    contract(&mut world, "shop", of("2"));
    world.settle();
    assert_eq!(world.disks.values().next().unwrap().version, "2");
    bind(&mut world, "shop-a", "u");
    world.modifier("three", "3");
    world.set("u", &json!({ "spec": { "volumeName": "shop-a", "volumeAttributesClassName": "three" } }));
    world.settle();
    assert_eq!(world.now.claims["u"]["status"]["modifyVolumeStatus"]["status"], "Infeasible");
    assert_eq!(world.disks.values().next().unwrap().version, "2");
}
