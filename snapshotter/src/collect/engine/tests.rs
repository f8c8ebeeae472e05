//! Removal beside calls that come meanwhile, over a containerd that does as it is told.

use super::*;
use crate::{
    attachments::Ledger,
    capsules::rig::Rig,
    store::{Store, attachments::Journal},
    uppers::Uppers,
};

struct Node {
    rig: Rig,
    collector: Collector,
}

impl Node {
    async fn start() -> Self {
        let rig = Rig::start();
        let path = |name: &str| rig.dir.path().join(name);
        let kept = Store::open(&path("lib/kept.redb")).unwrap();
        let ledger = Ledger::new(rig.journal.clone(), Journal::start(kept).unwrap());
        let uppers = Uppers::open(&path("root"), 8 << 20, &Default::default()).unwrap();
        let (containerd, capsules) = (rig.containerd.clone(), rig.capsules.clone());
        let (snapshots, run) = (rig.snapshots.clone(), path("run"));
        let attachments =
            Attachments::new(containerd.clone(), capsules.clone(), snapshots, ledger, uppers, &run);
        Self { collector: Collector::new(containerd, capsules, attachments), rig }
    }

    /// What a prune makes of each version, by [`KEEP_TAGGED`].
    async fn prune(&self) -> Vec<String> {
        told(&self.collector.prune(&[], &KEEP_TAGGED, false).await.unwrap())
    }
}

const KEEP_TAGGED: Rules = Rules { keep_last: 0, keep_tagged: true, older_than: None };

fn told(judged: &[Judged]) -> Vec<String> {
    let line = |one: &Judged| match &one.verdict {
        Verdict::Remove => one.label(),
        Verdict::Keep(why) => format!("{} stays: {why}", one.label()),
    };
    judged.iter().map(line).collect()
}

/// While the first of three is being removed, `meanwhile` is done; what becomes of each then.
async fn pruned_while<F: Future<Output = ()> + Send + 'static>(
    node: &Node,
    meanwhile: impl FnOnce() -> F,
) -> Vec<String> {
    node.rig.publish(&["x@1", "x@2", "x@3"]).await;
    let (removing, go_on) = node.rig.fake.gate("delete localhost/capsules/x:3");
    let collector = node.collector.clone();
    let prune = tokio::spawn(async move { told(&collector.prune(&[], &KEEP_TAGGED, false).await.unwrap()) });
    removing.await.unwrap();
    let meanwhile = tokio::spawn(meanwhile());
    // It has asked for what it wants by the time that the removal goes on.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    go_on.send(()).unwrap();
    meanwhile.await.unwrap();
    prune.await.unwrap()
}

#[tokio::test]
async fn what_is_tagged_during_a_prune_stays() {
    let node = Node::start().await;
    let capsules = node.rig.capsules.clone();
    let told = pruned_while(&node, || async move {
        let (name, version) = ("x".parse().unwrap(), "1".parse().unwrap());
        capsules.tag(&name, Some(&version), &["stable".parse().unwrap()]).await.unwrap();
    })
    .await;
    assert_eq!(told, ["x@3", "x@2", "x@1 stays: tagged stable"]);
    assert_eq!(node.rig.fake.images(), ["x:1", "x:stable"]);
}

#[tokio::test]
async fn what_is_leased_or_pinned_during_a_prune_stays() {
    let node = Node::start().await;
    let fake = node.rig.fake.clone();
    let told = pruned_while(&node, || async move {
        let two = fake.publish("x", "2", &[]);
        fake.lease("backup", "content", two.as_str());
        let one = fake.publish("x", "1", &[]);
        fake.put_image(
            "localhost/capsules/x:1",
            &one,
            &[
                ("io.cri-containerd.pinned", "pinned"),
                ("resourcecapsules.io/name", "x"),
                ("resourcecapsules.io/version", "1"),
            ],
        );
    })
    .await;
    assert_eq!(
        told,
        [
            "x@3",
            "x@2 stays: in use: the lease backup of containerd",
            "x@1 stays: in use: pinned by the label io.cri-containerd.pinned",
        ]
    );
}

#[tokio::test]
async fn an_image_that_is_leased_by_its_name_stays() {
    let node = Node::start().await;
    node.rig.publish(&["x@1", "x@2"]).await;
    node.rig.fake.lease("backup", "images", "localhost/capsules/x:1");
    assert_eq!(node.prune().await, ["x@2", "x@1 stays: in use: the lease backup of containerd"]);
}

#[tokio::test]
async fn what_somebody_requires_by_now_stays() {
    let node = Node::start().await;
    node.rig.fake.publish("lib", "1", &[]);
    let app = node.rig.fake.publish("app", "1", &["x =1"]);
    node.rig.fake.lease("here-before", "content", app.as_str());
    let (fake, zoo) = (node.rig.fake.clone(), node.rig.fake.publish("zoo", "1", &["x =2"]));
    let told = pruned_while(&node, || async move { fake.lease("new", "content", zoo.as_str()) }).await;
    assert!(told.contains(&"x@2 stays: required by zoo@1, which is in use".to_owned()), "{told:?}");
    assert!(told.contains(&"x@1 stays: required by app@1, which is in use".to_owned()), "{told:?}");
    assert!(told.contains(&"lib@1".to_owned()), "{told:?}");
}

#[tokio::test]
async fn room_is_made_until_the_disk_is_not_full_any_more() {
    let node = Node::start().await;
    // Not in the order of their names.
    node.rig.publish(&["x@3", "y@1", "x@1", "x@4", "x@2"]).await;
    node.rig.tag("x@3", "stable").await.unwrap();
    let left = |most: usize| {
        let fake = node.rig.fake.clone();
        move || fake.images().len() > most
    };
    assert_eq!(node.collector.make_room(left(6)).await.unwrap(), 0);
    assert_eq!(node.collector.make_room(left(5)).await.unwrap(), 1);
    assert_eq!(node.rig.fake.images(), ["x:2", "x:3", "x:4", "x:stable", "y:1"]);
    // What is left is tagged, or the newest of its capsule.
    assert_eq!(node.collector.make_room(|| true).await.unwrap(), 1);
    assert_eq!(node.rig.fake.images(), ["x:3", "x:4", "x:stable", "y:1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_was_given_is_never_taken_by_a_prune() {
    let node = Node::start().await;
    for round in 0..30 {
        let versions = ["x@1", "x@2", "x@3", "x@4"];
        node.rig.publish(&versions).await;
        let tags = versions.map(|version| node.rig.tag(version, "stable"));
        let (told, given) = tokio::join!(node.prune(), futures::future::join_all(tags));
        // The last one that was given it has it: the others' went when it moved.
        let stands = node.rig.fake.images().contains(&"x:stable".to_owned());
        let is_given = given.iter().any(Result::is_ok);
        assert_eq!(stands, is_given, "{round}: {told:?} {given:?} {:?}", node.rig.fake.images());
        for error in given.into_iter().filter_map(Result::err) {
            let gone =
                matches!(error, CapsuleError::UnknownVersion { .. } | CapsuleError::UnknownCapsule { .. });
            assert!(gone, "{error}");
        }
        node.rig.capsules.untag(&"x".parse().unwrap(), &"stable".parse().unwrap()).await.ok();
    }
}
