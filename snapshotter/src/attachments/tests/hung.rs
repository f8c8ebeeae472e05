//! A shim that takes calls and does not answer: a stopped process, or one that waits for a container's own file system.

use std::time::{Duration, Instant};

use super::*;
use crate::attachments::model::Content;

fn key_of(id: &str) -> ContainerKey {
    ContainerKey { namespace: "default".into(), id: id.into() }
}

impl TestNode {
    /// Adds the container `c2`, whose shim never answers, with an attachment on record and a version that drains.
    fn add_hung(&self) -> std::os::unix::net::UnixListener {
        let socket = self.dir.path().join("hung.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let registration = format!(r#"{{"version":1,"address":"{}"}}"#, socket.display());
        std::fs::write(self.dir.path().join("run/tasks/default/c2.json"), registration).unwrap();
        let known = Known { runtime: "io.containerd.capsule.v1".to_owned(), ..Known::default() };
        self.engine.containers.put(&key_of("c2"), known);
        listener
    }
}

#[tokio::test]
async fn a_shim_that_does_not_answer_holds_up_neither_the_start_nor_a_list() {
    let mut node = TestNode::start().await;
    let done = node.attach(&["tzdata@1"]).await.unwrap().remove(0);
    let _listener = node.add_hung();
    let of_hung = Attachment {
        id: "h".into(),
        container: key_of("c2"),
        current: Content { layers: Vec::new(), ..done.current.clone() },
        ..done
    };
    node.write(vec![Change::Put(Box::new(of_hung))]).await;
    let began = Instant::now();
    node.restart().await;
    assert_eq!(node.listed().await, ["tzdata@1", "tzdata@1"]);
    node.upgrade(&["tzdata"]).await.unwrap();
    assert_eq!(node.listed().await, ["tzdata@1", "tzdata@2"]);
    assert_eq!(node.engine.users_of(node.published[1].digest.as_str()).len(), 1);
    // The start and each list have seconds of patience at most; the shim's own deadline is 30.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

#[tokio::test]
async fn until_a_shim_has_said_what_is_draining_nothing_is_removed() {
    let mut node = TestNode::start().await;
    let listener = node.add_hung();
    node.restart().await;
    let name = format!("capsules/2/{}", node.published[2].digest);
    let error = node.snapshots.remove(&name).unwrap_err().to_string();
    assert!(error.contains("default/c2"), "{error}");
    // The shim is gone, and with it what was draining.
    std::fs::remove_file(node.dir.path().join("run/tasks/default/c2.json")).unwrap();
    drop(listener);
    node.engine.settle(&key_of("c2")).await;
    node.snapshots.remove(&name).unwrap();
}

#[tokio::test]
async fn a_record_that_the_shim_does_not_confirm_is_not_taken_for_a_named_attachment() {
    let node = TestNode::start().await;
    let first = node.engine.attach_named(&key(), "tzdata@1", Moment::Live).await.unwrap();
    let again = node.engine.attach_named(&key(), "tzdata@1", Moment::Live).await.unwrap();
    assert_eq!(again, first, "a call that is repeated");
    // A new task of the container, which has nothing.
    node.shim.0.lock().unwrap().mounted.clear();
    node.shim.0.lock().unwrap().refuse.push("list".to_owned());
    let refused = node.engine.attach_named(&key(), "tzdata@1", Moment::Live).await.unwrap_err();
    assert!(matches!(refused, AttachmentError::Unsettled { .. }), "{refused}");
    node.shim.0.lock().unwrap().refuse.clear();
    node.engine.attach_named(&key(), "tzdata@1", Moment::Live).await.unwrap();
    assert_eq!(node.shim.mounted(), ["tzdata@1"]);
}
