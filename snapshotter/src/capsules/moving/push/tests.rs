//! Pushes to a registry that has something already.

use super::*;
use crate::capsules::rig::Rig;

const ZONES: &str = "registry.example/zones";

async fn push(rig: &Rig, label: &str, reference: &str) -> Result<String, CapsuleError> {
    let (name, version) = label.split_once('@').unwrap();
    let (listener, _told) = mpsc::channel(16);
    let version: Version = version.parse().unwrap();
    let which = (&name.parse().unwrap(), Some(&version));
    rig.capsules.push(which, reference, Vec::new(), &listener).await.map(|(_, to)| to)
}

#[tokio::test]
async fn a_version_does_not_change_in_a_registry() {
    let rig = Rig::start();
    rig.publish(&["x@1", "x@2"]).await;
    rig.tag("x@1", "stable").await.unwrap();
    let ours = rig.fake.blob_of_version("x", "1", &[]).to_string();
    let theirs = rig.fake.blob_of_version("x", "1", &["of another node"]);
    let there = |tag: &str| format!("{ZONES}:{tag}");

    // Where there is nothing, and again.
    for _ in 0..2 {
        assert_eq!(push(&rig, "x@1", ZONES).await.unwrap(), there("1"));
        assert_eq!(rig.fake.remote(&there("1")), Some(ours.clone()));
    }
    // Where another node was first: by its own name, by a tag of it, and under the name of another version.
    rig.fake.put_remote(&there("1"), &theirs);
    rig.fake.done();
    for (label, reference) in [("x@1", ZONES), ("x@stable", ZONES), ("x@2", &there("1"))] {
        let error = push(&rig, label, reference).await.unwrap_err();
        assert!(matches!(error, CapsuleError::Move(MoveError::Published { .. })), "{label}: {error}");
        assert!(error.to_string().contains(theirs.as_str()), "{error}");
    }
    assert_eq!(rig.fake.remote(&there("1")), Some(theirs.to_string()));
    assert!(!rig.fake.done().iter().any(|done| done.starts_with("push")));
    // A tag moves.
    rig.fake.put_remote(&there("stable"), &theirs);
    push(&rig, "x@stable", &there("stable")).await.unwrap();
    assert_eq!(rig.fake.remote(&there("stable")), Some(ours));
    assert_eq!(rig.fake.images(), ["x:1", "x:2", "x:stable"], "something is left of a push");
}

#[tokio::test]
async fn signatures_of_others_stay_in_a_registry() {
    let rig = Rig::start();
    rig.publish(&["x@1"]).await;
    let (name, digest): (CapsuleName, _) = ("x".parse().unwrap(), rig.fake.blob_of_version("x", "1", &[]));
    let scope = rig.containerd.namespace("capsules").unwrap();
    let signature = |who: &str| Signature::new(b"the version".to_vec(), who.to_owned());
    let keep = async |who: &str| {
        rig.capsules.keep_signatures(&scope, &name, &digest, &[signature(who)]).await.unwrap();
        rig.capsules.beside(&scope, &name, &digest).await.unwrap().unwrap()
    };
    let beside = format!("{ZONES}:{}", signature_tag(&digest));
    let of_theirs = keep("theirs").await;
    rig.fake.put_remote(&beside, &of_theirs.digest.parse().unwrap());
    scope.delete_image(&of_theirs.name).await.unwrap();
    keep("ours").await;

    push(&rig, "x@1", ZONES).await.unwrap();
    let merged = rig.fake.remote(&beside).unwrap();
    let there = read_signatures(&scope, &merged).await.unwrap();
    assert_eq!(there, [signature("theirs"), signature("ours")]);
    // What has all of ours is not written again.
    rig.fake.done();
    push(&rig, "x@1", ZONES).await.unwrap();
    assert_eq!(rig.fake.remote(&beside), Some(merged));
    assert!(!rig.fake.done().contains(&format!("push {beside}")));
}

#[test]
fn an_images_root_is_known_by_its_name() {
    for (name, root) in [
        ("manifest-sha256:00", Some("sha256:00")),
        ("index-sha256:01", Some("sha256:01")),
        ("layer-sha256:02", None),
        ("config-sha256:03", None),
        ("registry.example/manifest-tools:1", None),
        ("manifest-tools", None),
    ] {
        assert_eq!(root_of(name), root, "{name}");
    }
}
