//! The last step of a publish: a version and its tags, all of it or none.

use super::*;
use crate::capsules::{declared::Declared, model::CapsuleName, rig::Rig};

fn tags(all: &[&str]) -> Vec<Version> {
    all.iter().map(|tag| tag.parse().unwrap()).collect()
}

/// What a publish of `x@2` does when all of it is stored.
async fn publish(rig: &Rig, all: &[&str]) -> Result<bool, CapsuleError> {
    let digest = rig.fake.blob_of_version("x", "2", &[]);
    let declaration = Declaration {
        name: "x".parse().unwrap(),
        version: "2".parse().unwrap(),
        default_target: None,
        default_mode: None,
        declared: Declared::default(),
        annotations: std::collections::BTreeMap::new(),
    };
    let labels = [(oci::NAME, "x"), (oci::VERSION, "2")];
    let record = ImageRecord {
        name: image_name(&declaration.name, &declaration.version),
        labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        media_type: oci::MANIFEST.to_owned(),
        digest: digest.to_string(),
        size: 1,
        created_at: None,
    };
    let scope = rig.containerd.namespace("capsules").unwrap();
    rig.capsules.name_with_tags(&scope, &record, (&declaration, &digest), &tags(all)).await
}

/// `TAG=VERSION` of each, as containerd has it.
fn stand(rig: &Rig) -> Vec<String> {
    let of = |name: &String| {
        let labels = rig.fake.labels(&format!("localhost/capsules/{name}")).unwrap();
        assert!(labels.keys().all(|key| !key.contains("tagging")), "{name}: {labels:?}");
        labels.get(oci::TAG).map(|tag| format!("{tag}={}", labels[oci::VERSION]))
    };
    rig.fake.images().iter().filter_map(of).collect()
}

#[tokio::test]
async fn a_version_comes_with_its_tags_or_not_at_all() {
    let rig = Rig::start();
    rig.publish(&["x@1"]).await;
    rig.tag("x@1", "stable").await.unwrap();
    for call in ["update localhost/capsules/x:stable", "create localhost/capsules/x:zone"] {
        rig.fake.fail(call);
        publish(&rig, &["next", "stable", "zone"]).await.unwrap_err();
        assert_eq!(rig.fake.images(), ["x:1", "x:stable"], "{call}");
        assert_eq!(stand(&rig), ["stable=1"], "{call}");
        let known = rig.capsules.catalogue().version(&"x".parse().unwrap(), &"2".parse().unwrap());
        assert!(known.is_none(), "{call}");
    }
    rig.fake.fail("nothing");
    assert!(!publish(&rig, &["next", "stable", "zone"]).await.unwrap());
    assert_eq!(stand(&rig), ["next=2", "stable=2", "zone=2"]);
    // Again, with others.
    assert!(publish(&rig, &["next", "new"]).await.unwrap());
    assert_eq!(stand(&rig), ["new=2", "next=2", "stable=2", "zone=2"]);
}

#[tokio::test]
async fn a_tag_that_a_version_took_meanwhile_undoes_all() {
    let rig = Rig::start();
    rig.publish(&["x@1", "x@3"]).await;
    let error = publish(&rig, &["stable", "3"]).await.unwrap_err();
    assert!(matches!(error, CapsuleError::Tag(crate::capsules::TagError::IsVersion { .. })), "{error}");
    assert_eq!(rig.fake.images(), ["x:1", "x:3"]);
}

#[tokio::test]
async fn what_a_killed_capsuled_has_half_tagged_is_finished() {
    let name: CapsuleName = "x".parse().unwrap();
    for (published, all, again) in [
        (false, &["stable"][..], false),
        (false, &["a", "stable"], false),
        (true, &["a", "stable"], false),
        (true, &["a", "stable"], true),
    ] {
        let rig = std::sync::Arc::new(Rig::start());
        rig.publish(&["x@1"]).await;
        rig.tag("x@1", "stable").await.unwrap();
        if published {
            publish(&rig, &[]).await.unwrap();
        }
        let (tagging, _never) = rig.fake.gate("update localhost/capsules/x:stable");
        let call = tokio::spawn({
            let rig = rig.clone();
            async move { publish(&rig, all).await }
        });
        tagging.await.unwrap();
        call.abort();
        call.await.unwrap_err();
        // As in another capsuled, where one may ask for more before it has looked.
        rig.capsules.reload().await.unwrap();
        if again {
            rig.tag("x@2", "a").await.unwrap();
        }
        let scope = rig.containerd.namespace("capsules").unwrap();
        rig.capsules.finish_tags(&scope).await.unwrap();
        let expected: Vec<String> = all.iter().map(|tag| format!("{tag}=2")).collect();
        assert_eq!(stand(&rig), expected, "{published}");
        if again {
            // As containerd's events would let it be.
            rig.capsules.reload().await.unwrap();
        }
        let tagged = rig.capsules.catalogue().tag(&name, &"stable".parse().unwrap()).unwrap();
        assert_eq!(tagged.version.as_str(), "2", "{published}");
    }
}
