//! Claims, from the first to the last.

use serde_json::json;

use super::world::World;
use crate::storage::{FINALIZER, SELECTED_NODE, VERSION, slim::Phase};

#[test]
fn what_is_written_to_is_made_by_its_node_first_and_removed_by_it_last() {
    let mut world = World::new();
    world.claim("u", "fast", "ReadWriteOnce", Some("n0"));
    world.see();
    world.pass();
    assert_eq!(world.now.nodes["n0"].spec.volumes[0].size, Some(1 << 30));
    assert!(world.now.volumes.is_empty() && world.disks.is_empty());
    world.settle();
    let volume = world.volume("pvc-u");
    assert_eq!(
        (volume.phase, &*volume.handle, volume.node.as_deref()),
        (Phase::Bound, "shop/pvc-u", Some("n0"))
    );
    assert!(volume.is_provisioned && volume.is_held() && volume.is_written() && volume.is_deleted);
    assert_eq!(volume.attributes["size"], (1_u64 << 30).to_string());
    assert_eq!(world.now.volumes["pvc-u"]["spec"]["capacity"]["storage"], "1Gi");
    // Nothing is to be done about it any more.
    assert!(world.now.nodes["n0"].spec.volumes.is_empty());
    assert_eq!(world.said("ProvisioningSucceeded"), Some("it has the volume pvc-u"));

    world.disks.values_mut().for_each(|disk| disk.mounts = 1);
    world.now.claims.clear();
    world.settle();
    assert_eq!((world.disks.len(), world.now.volumes.len()), (1, 1));
    world.disks.values_mut().for_each(|disk| disk.mounts = 0);
    world.settle();
    assert!(
        world.disks.is_empty()
            && world.now.volumes.is_empty()
            && world.now.nodes["n0"].spec.volumes.is_empty()
    );
}

#[test]
fn what_is_only_read_is_an_object_and_nothing_else() {
    let mut world = World::new();
    world.class("model", "Immediate", json!({ "capsule": "model", "version": "stable" }));
    world.claim("u", "model", "ReadOnlyMany", None);
    world.settle();
    let volume = world.volume("pvc-u");
    assert_eq!(
        (&*volume.handle, volume.node.as_deref(), volume.version.as_deref()),
        ("pvc-u", None, Some("stable"))
    );
    assert!(!volume.is_held() && world.disks.is_empty());
    assert_eq!(world.now.volumes["pvc-u"]["spec"]["csi"]["readOnly"], true);
    // Every node with the driver says what it has mounted.
    assert_eq!(world.now.nodes.keys().collect::<Vec<_>>(), ["n0", "n1"]);
    world.now.claims.clear();
    world.settle();
    assert!(world.now.volumes.is_empty());
}

#[test]
fn what_is_retained_stays_and_so_does_what_nobody_has_asked_for() {
    let mut world = World::new();
    world.claim("u", "fast", "ReadWriteOnce", Some("n0"));
    world.claim("other", "nobodys", "ReadWriteOnce", Some("n0"));
    world.settle();
    world.now.volumes.get_mut("pvc-u").unwrap()["spec"]["persistentVolumeReclaimPolicy"] = json!("Retain");
    world.now.claims.clear();
    world.settle();
    assert_eq!((world.disks.len(), world.now.volumes.len()), (1, 1));
    world.delete("pvc-u", None);
    world.settle();
    assert_eq!((world.disks.len(), world.now.volumes.len()), (1, 0));
    // A claim that is not this driver's to provision.
    world.claim("x", "fast", "ReadWriteOnce", Some("n0"));
    world.set(
        "x",
        &json!({ "metadata": { "annotations": { "volume.kubernetes.io/storage-provisioner": "other" } } }),
    );
    world.settle();
    assert!(world.now.volumes.is_empty());
}

#[test]
fn a_node_without_room_or_without_the_driver_is_not_tried_for_ever() {
    let mut world = World::new();
    world.full.insert("n0".to_owned());
    world.claim("u", "fast", "ReadWriteOncePod", Some("n0"));
    world.settle();
    assert!(world.now.claims["u"]["metadata"]["annotations"].get(SELECTED_NODE).is_none());
    assert!(
        world.said("ProvisioningFailed").unwrap().contains("the node n0 could not make it: the disk is full")
    );
    assert!(world.now.nodes["n0"].spec.volumes.is_empty());
    world.machines.insert("n1".to_owned(), false);
    world.set("u", &json!({ "metadata": { "annotations": { SELECTED_NODE: "n1" } } }));
    world.settle();
    assert!(world.said("ProvisioningFailed").unwrap().contains("the node n1 has no csi.resourcecapsules.io"));
    world.set("u", &json!({ "metadata": { "annotations": { SELECTED_NODE: "n9" } } }));
    world.settle();
    assert!(world.said("ProvisioningFailed").unwrap().contains("there is no node n9"));
    world.full.clear();
    world.set("u", &json!({ "metadata": { "annotations": { SELECTED_NODE: "n0" } } }));
    world.settle();
    assert_eq!(world.volume("pvc-u").phase, Phase::Bound);
}

#[test]
fn what_cannot_be_is_refused_with_what_to_do() {
    let cases = [
        (
            json!({ "spec": { "accessModes": ["ReadWriteMany"] } }),
            "fast",
            "ReadWriteOnce or ReadWriteOncePod",
        ),
        (
            json!({ "spec": { "accessModes": ["ReadWriteOnce"] } }),
            "model",
            "only read, so it is ReadOnlyMany",
        ),
        (json!({ "spec": { "volumeMode": "Block" } }), "fast", "directories alone"),
        (json!({ "spec": { "dataSource": { "name": "x" } } }), "fast", "not filled from others"),
        (json!({ "spec": { "selector": {} } }), "fast", "no labels to choose by"),
        (json!({ "spec": { "resources": { "requests": { "storage": "0" } } } }), "fast", "no size"),
        (json!({ "spec": { "volumeAttributesClassName": "v2" } }), "fast", "has no version"),
        (json!({}), "now", "needs volumeBindingMode WaitForFirstConsumer"),
        (json!({}), "wrong", "the parameter iops is none of"),
        (json!({}), "noexec", "the mount option noexec"),
        (json!({}), "none", "no StorageClass none of csi"),
    ];
    for (change, class, says) in cases {
        let mut world = World::new();
        world.class("model", "Immediate", json!({ "capsule": "model" }));
        world.class("now", "Immediate", json!({}));
        world.class("wrong", "WaitForFirstConsumer", json!({ "iops": "1" }));
        world.class("noexec", "WaitForFirstConsumer", json!({}));
        world.classes.get_mut("noexec").unwrap().mount_options = Some(vec!["ro".into(), "noexec".into()]);
        world.claim("u", class, "ReadWriteOnce", (class != "now").then_some("n0"));
        world.set("u", &change);
        world.settle();
        let why = world.said("ProvisioningFailed").unwrap_or_default();
        assert!(why.contains(says), "{class} {change}: {why:?}");
        assert!(world.now.volumes.is_empty() && world.disks.is_empty());
    }
}

#[test]
fn a_node_that_is_gone_for_good_takes_what_was_written_with_it() {
    let mut world = World::new();
    world.claim("u", "fast", "ReadWriteOnce", Some("n0"));
    world.settle();
    world.machines.remove("n0");
    world.now.nodes.remove("n0");
    world.now.claims.clear();
    world.settle();
    assert!(world.volume("pvc-u").is_held(), "it may come back");
    world.gone.insert("n0".to_owned());
    world.settle();
    assert!(world.now.volumes.is_empty());
    assert!(world.said("VolumeLost").unwrap().contains("the node n0 is gone"));
}

#[test]
fn a_claim_that_goes_while_it_is_provisioned_leaves_nothing() {
    let mut world = World::new();
    world.claim("u", "fast", "ReadWriteOnce", Some("n0"));
    world.see();
    world.pass();
    world.agent("n0");
    assert_eq!(world.disks.len(), 1);
    world.now.claims.clear();
    world.settle();
    assert!(
        world.disks.is_empty()
            && world.now.volumes.is_empty()
            && world.now.nodes["n0"].spec.volumes.is_empty()
    );
    // Nor does one that goes on another node in the end.
    world.claim("v", "fast", "ReadWriteOnce", Some("n0"));
    world.see();
    world.pass();
    world.agent("n0");
    world.set("v", &json!({ "metadata": { "annotations": { SELECTED_NODE: "n1" } } }));
    world.settle();
    assert_eq!(world.disks.keys().map(|(node, _)| node.as_str()).collect::<Vec<_>>(), ["n1"]);
    assert_eq!(world.volume("pvc-v").node.as_deref(), Some("n1"));
}

#[test]
fn a_volume_that_is_not_seen_yet_is_not_taken_for_nobodys() {
    let mut world = World::new();
    world.claim("u", "fast", "ReadWriteOnce", Some("n0"));
    world.see();
    world.pass();
    world.agent("n0");
    world.see();
    world.pass();
    assert!(world.now.volumes.contains_key("pvc-u"));
    // The claim is seen to be gone, and that there is a PersistentVolume is not.
    world.now.claims.clear();
    world.seen.claims.clear();
    world.pass();
    assert!(!world.now.nodes["n0"].spec.volumes[0].goes);
    assert_eq!(world.now.volumes["pvc-u"]["metadata"]["finalizers"], json!([FINALIZER]));
}

#[test]
fn a_class_of_attributes_counts_from_the_beginning() {
    let mut world = World::new();
    world.class("model", "Immediate", json!({ "capsule": "model", "version": "1" }));
    world.claim("u", "model", "ReadOnlyMany", None);
    world.set("u", &json!({ "spec": { "volumeAttributesClassName": "two" } }));
    world.settle();
    assert_eq!(world.said("ProvisioningFailed"), Some("there is no VolumeAttributesClass two"));
    world.modifier("two", "2");
    world.settle();
    let volume = world.volume("pvc-u");
    assert_eq!((volume.version.as_deref(), volume.modifier.as_deref()), (Some("2"), Some("two")));
    assert_eq!(world.now.volumes["pvc-u"]["metadata"]["annotations"][VERSION], "2");
}
