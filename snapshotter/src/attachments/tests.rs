//! The controller over the real store and snapshot engine, with a shim that does as it is told.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
};

use capsule_proto::hotplug::{self as wire, Hotplug, create_hotplug};
use tempfile::TempDir;
use ttrpc::r#async::TtrpcContext;

use super::{
    AttachmentError, Attachments, Choice, Ledger, Listed, Moment, Move, Moved, Outcome,
    containers::{Known, Name, Wanted},
    controller::AttachSpec,
    model::{Attachment, Call, ContainerKey, Phase},
};
use crate::{
    capsules::{
        Capsules, Published,
        model::{Digest, Version},
        oci,
    },
    containerd::Containerd,
    devices::Registry,
    dirs::Dirs,
    snapshots::{
        Behaviour, Commit, Create, Environment, OverlayOptions, Snapshots,
        model::{Key, Labels},
    },
    store::{
        Store,
        attachments::{Change, Journal, read_all},
    },
    uppers::Uppers,
};

mod again;
mod denials;
mod devices;
mod drains;
mod hung;
mod limits;
mod moves;
mod node;
mod shim;
mod written;

use self::{node::TestNode, shim::FakeShim};

fn key() -> ContainerKey {
    ContainerKey { namespace: "default".into(), id: "c1".into() }
}

fn wanted() -> Wanted {
    Wanted { name: Name::Id("c1".into()), namespace: String::new() }
}

fn spec(text: &str) -> AttachSpec {
    let (name, version) = text.split_once('@').unwrap();
    AttachSpec {
        capsule: name.parse().unwrap(),
        version: Some(version.parse().unwrap()),
        target: None,
        mode: None,
        digest: None,
        unless_present: false,
        writable: None,
        resources: Default::default(),
        named: None,
    }
}

fn a_move(text: &str) -> Move {
    let (name, version) = text.split_once('@').map_or((text, None), |(name, version)| (name, Some(version)));
    Move { capsule: name.parse().unwrap(), version: version.map(|v| v.parse().unwrap()), target: None }
}

fn moved(done: &[Moved]) -> Vec<String> {
    let from =
        |version: &Option<Version>| version.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    done.iter().map(|(a, version)| format!("{} {} {}", a.capsule, from(version), a.current.version)).collect()
}

fn choice(capsule: &str) -> Choice {
    Choice { container: wanted(), capsule: capsule.parse().unwrap(), target: None }
}

#[tokio::test]
async fn a_capsule_lives_through_attach_upgrade_rollback_and_detach() {
    let node = TestNode::start().await;
    let attached = node.attach(&["tzdata@1"]).await.unwrap();
    assert_eq!(attached[0].target, "/opt/tzdata");
    assert_eq!(node.listed().await, ["tzdata@1"]);
    let up = node.upgrade(&["tzdata"]).await.unwrap();
    assert_eq!(up, ["tzdata 1 2"]);
    assert_eq!(node.shim.mounted(), ["tzdata@2"]);
    let down = node.rollback(&["tzdata"]).await.unwrap();
    assert_eq!(down, ["tzdata 2 1"]);
    assert_eq!(node.durable().await.len(), 1);
    node.engine.detach(&choice("tzdata"), false, None).await.unwrap();
    assert_eq!(node.shim.mounted(), Vec::<String>::new());
    assert_eq!(node.durable().await, []);
    assert_eq!(node.listed().await, Vec::<String>::new());
}

#[tokio::test]
async fn capsules_that_were_never_listed_are_not_none() {
    let node = TestNode::start().await;
    let error = node.engine.capsules.listed().await.unwrap_err();
    assert!(error.to_string().contains("no-containerd.sock"), "{error}");
}

#[tokio::test]
async fn a_set_that_fails_in_the_middle_is_taken_back_in_reverse_order() {
    let node = TestNode::start().await;
    node.shim.0.lock().unwrap().refuse = vec!["attach extra@1".into()];
    let error = node.attach(&["tzdata@1", "tools@1", "extra@1"]).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot attach extra@1 at /opt/extra in default/c1: no attach extra@1");
    assert_eq!(
        node.shim.calls(),
        ["attach tzdata@1", "attach tools@1", "attach extra@1", "detach tools", "detach tzdata"]
    );
    assert_eq!(node.shim.mounted(), Vec::<String>::new());
    assert_eq!(node.durable().await, []);
    assert_eq!(node.listed().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_call_that_may_have_been_done_after_its_deadline_is_undone() {
    let node = TestNode::start().await;
    node.shim.0.lock().unwrap().late = vec!["attach tools@1".into()];
    let error = node.attach(&["tzdata@1", "tools@1"]).await.unwrap_err();
    assert!(error.to_string().contains("does not answer"), "{error}");
    assert_eq!(node.shim.mounted(), Vec::<String>::new());
    assert_eq!(node.listed().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_detach_of_which_the_answer_is_lost_is_undone() {
    let node = TestNode::start().await;
    node.attach(&["tools@1", "tzdata@1"]).await.unwrap();
    node.shim.0.lock().unwrap().late = vec!["detach".into()];
    let error = node.engine.detach(&choice("tools"), false, None).await.unwrap_err();
    assert!(error.to_string().contains("does not answer"), "{error}");
    assert!(node.engine.settle(&key()).await);
    assert_eq!(node.shim.mounted(), ["tools@1", "tzdata@1"]);
    let records = node.durable().await;
    assert!(records.iter().all(|a| a.phase == Phase::Attached && a.call.is_none()), "{records:?}");
    node.shim.0.lock().unwrap().late.clear();
    node.engine.detach(&choice("tools"), false, None).await.unwrap();
    assert_eq!(node.listed().await, ["tzdata@1"]);
}

#[tokio::test]
async fn the_intent_is_durable_before_the_shim_is_asked() {
    let mut node = TestNode::start().await;
    // The shim did its work, and capsuled died before it could say so: the record is still the intent.
    let done = node.attach(&["tzdata@1"]).await.unwrap().remove(0);
    let intent = Attachment { phase: Phase::Attaching, ..done };
    node.write(vec![Change::Put(Box::new(intent.clone()))]).await;
    node.restart().await;
    assert_eq!(node.listed().await, ["tzdata@1"]);
    node.upgrade(&["tzdata"]).await.unwrap();
    node.engine.detach(&choice("tzdata"), false, None).await.unwrap();

    // It died before the shim was asked: nothing is mounted, and nothing stays on record.
    node.write(vec![Change::Put(Box::new(intent))]).await;
    node.restart().await;
    assert_eq!(node.listed().await, Vec::<String>::new());
    assert_eq!(node.durable().await, []);
}

#[tokio::test]
async fn after_a_crash_the_record_follows_what_is_mounted() {
    let mut node = TestNode::start().await;
    node.attach(&["tzdata@1"]).await.unwrap();
    node.upgrade(&["tzdata"]).await.unwrap();
    let record = node.durable().await.remove(0);
    let before = record.history[0].clone();
    // Half-done rollback, of which the shim did nothing.
    let phase = Phase::Replacing { current: before.clone(), history: vec![] };
    let intent = Attachment { phase: phase.clone(), ..record.clone() };
    node.write(vec![Change::Put(Box::new(intent.clone()))]).await;
    node.restart().await;
    assert_eq!(node.listed().await, ["tzdata@2"]);
    // Half-done rollback, which the shim did.
    node.rollback(&["tzdata"]).await.unwrap();
    node.write(vec![Change::Put(Box::new(intent))]).await;
    node.restart().await;
    assert_eq!(node.listed().await, ["tzdata@1"]);
    assert_eq!(node.durable().await[0].phase, Phase::Attached);
    // Half-done detach, of which the shim did nothing.
    let intent =
        Attachment { phase: Phase::Detaching { lazy: false, fate: None }, ..node.durable().await.remove(0) };
    node.write(vec![Change::Put(Box::new(intent))]).await;
    node.restart().await;
    assert_eq!(node.listed().await, ["tzdata@1"]);
    node.engine.detach(&choice("tzdata"), false, None).await.unwrap();
}

#[tokio::test]
async fn a_busy_attachment_stays_unless_detached_lazily() {
    let node = TestNode::start().await;
    node.attach(&["tzdata@1"]).await.unwrap();
    node.shim.0.lock().unwrap().busy = true;
    let error = node.engine.detach(&choice("tzdata"), false, None).await.unwrap_err();
    assert!(error.to_string().contains("process 7 (cat) has /t/x (fd 3)"), "{error}");
    assert_eq!(node.listed().await, ["tzdata@1"]);
    assert_eq!(node.durable().await[0].phase, Phase::Attached);
    node.engine.detach(&choice("tzdata"), true, None).await.unwrap();
    assert_eq!(node.listed().await, Vec::<String>::new());
}

#[tokio::test]
async fn what_is_attached_or_can_be_rolled_back_to_is_not_removed() {
    let node = TestNode::start().await;
    node.attach(&["tzdata@1"]).await.unwrap();
    node.upgrade(&["tzdata"]).await.unwrap();
    let name = |i: usize| format!("capsules/2/{}", node.published[i].digest);
    for i in 0..2 {
        let error = node.snapshots.remove(&name(i)).unwrap_err().to_string();
        assert!(error.contains("tzdata"), "{error}");
    }
    node.engine.detach(&choice("tzdata"), false, None).await.unwrap();
    for i in 0..2 {
        node.snapshots.remove(&name(i)).unwrap();
    }
}

#[tokio::test]
async fn refused_calls_change_nothing() {
    let node = TestNode::start().await;
    node.attach(&["tzdata@1"]).await.unwrap();
    node.shim.calls();
    let before = node.durable().await;
    let refused = [
        node.attach(&["tzdata@2"]).await.unwrap_err(),
        node.attach(&["tools@1", "tools@1"]).await.unwrap_err(),
        node.attach(&[]).await.unwrap_err(),
        node.rollback(&["tzdata"]).await.unwrap_err(),
        node.rollback(&["tools"]).await.unwrap_err(),
        node.engine.detach(&choice("tools"), true, None).await.unwrap_err(),
    ];
    let messages = refused.map(|e| e.to_string());
    assert!(messages[0].contains("/opt/tzdata in default/c1 is taken by tzdata@1"), "{messages:?}");
    assert!(messages[3].contains("no earlier version"), "{messages:?}");
    assert!(messages[5].contains("tools is not attached to default/c1"), "{messages:?}");
    // An upgrade to the version that is there is done already.
    node.upgrade(&["tzdata@1"]).await.unwrap();
    assert_eq!(node.shim.calls(), Vec::<String>::new());
    assert_eq!(node.durable().await, before);
}

#[tokio::test]
async fn records_are_kept_while_the_shim_cannot_be_asked() {
    let mut node = TestNode::start().await;
    node.attach(&["tzdata@1"]).await.unwrap();
    node.durable().await;
    let registration = node.dir.path().join("run/tasks/default/c1.json");
    let text = std::fs::read_to_string(&registration).unwrap();
    std::fs::write(&registration, r#"{"version":1,"address":"/nowhere.sock"}"#).unwrap();
    node.restart().await;
    assert_eq!(node.durable().await.len(), 1);
    std::fs::write(&registration, text).unwrap();
    node.engine.detach(&choice("tzdata"), false, None).await.unwrap();
    // Without a registration the task is gone, and its mounts with it: the record waits for the next task.
    node.attach(&["tzdata@1"]).await.unwrap();
    node.durable().await;
    std::fs::remove_file(&registration).unwrap();
    node.restart().await;
    assert_eq!(node.durable().await[0].phase, Phase::Waiting);
}
