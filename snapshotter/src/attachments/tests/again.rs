//! A container's task ends, and another is created.

use super::*;

impl TestNode {
    /// As when a task has ended and the container's next one is created: nothing is mounted any more.
    async fn next_task(&mut self) {
        self.durable().await;
        self.shim.0.lock().unwrap().mounted.clear();
        self.restart().await;
        self.shim.calls();
    }

    fn is_marked(&self) -> bool {
        self.dir.path().join("run/kept/default/c1").exists()
    }
}

#[tokio::test]
async fn a_new_task_has_what_the_last_one_had() {
    let mut node = TestNode::start().await;
    assert!(!node.is_marked());
    node.attach(&["tools@1", "tzdata@1"]).await.unwrap();
    node.upgrade(&["tzdata"]).await.unwrap();
    node.next_task().await;
    assert!(node.is_marked());
    assert_eq!(node.listed().await, ["tools@1", "tzdata@2"]);
    assert!(node.durable().await.iter().all(|a| a.phase == Phase::Waiting));
    let error = node.upgrade(&["tzdata"]).await.unwrap_err().to_string();
    assert!(error.contains("waits for the next start of default/c1"), "{error}");
    let error = node.attach(&["tzdata@1"]).await.unwrap_err().to_string();
    assert!(error.contains("is taken by tzdata@2"), "{error}");
    for calls in [&["attach tools@1", "attach tzdata@2"][..], &[]] {
        node.engine.restore_named(&key(), "").await.unwrap();
        assert_eq!(node.shim.calls(), calls);
    }
    assert_eq!(node.shim.mounted(), ["tools@1", "tzdata@2"]);
    // Once more as before: it can go back, and be detached.
    node.rollback(&["tzdata"]).await.unwrap();
    assert_eq!(node.shim.mounted(), ["tools@1", "tzdata@1"]);
    for capsule in ["tools", "tzdata"] {
        assert!(node.is_marked());
        node.engine.detach(&choice(capsule), false, None).await.unwrap();
    }
    assert!(!node.is_marked());
    assert_eq!(node.durable().await, []);
}

#[tokio::test]
async fn a_set_that_cannot_be_given_back_waits_on_until_it_is_detached() {
    let mut node = TestNode::start().await;
    node.attach(&["tools@1", "tzdata@1"]).await.unwrap();
    node.next_task().await;
    node.shim.0.lock().unwrap().refuse = vec!["attach tzdata@1".into()];
    let error = node.engine.restore_named(&key(), "").await.unwrap_err().to_string();
    for word in ["tzdata@1 at /opt/tzdata", "no attach tzdata@1", "capsulectl detach default/c1 tzdata"] {
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(node.shim.mounted(), Vec::<String>::new());
    assert_eq!(node.listed().await, ["tools@1", "tzdata@1"]);
    node.engine.detach(&choice("tzdata"), false, None).await.unwrap();
    node.engine.restore_named(&key(), "").await.unwrap();
    assert_eq!(node.shim.mounted(), ["tools@1"]);
}

#[tokio::test]
async fn what_an_entry_made_comes_back_while_the_annotation_has_the_entry() {
    let mut node = TestNode::start().await;
    let annotation = "tzdata@1, tools@1";
    node.engine.attach_named(&key(), annotation, Moment::Live).await.unwrap();
    node.attach(&["extra@1"]).await.unwrap();
    // Moved by hand: that is how it comes back, whatever version the entry names.
    node.upgrade(&["tzdata"]).await.unwrap();
    node.next_task().await;
    node.engine.restore_named(&key(), annotation).await.unwrap();
    node.engine.attach_named(&key(), annotation, Moment::Live).await.unwrap();
    assert_eq!(node.shim.mounted(), ["extra@1", "tools@1", "tzdata@2"]);
    // Another entry is another wish.
    node.next_task().await;
    node.engine.attach_named(&key(), "tzdata@1:/opt/tzdata", Moment::Live).await.unwrap();
    assert_eq!(node.shim.mounted(), ["extra@1", "tzdata@1"]);
    assert_eq!(node.durable().await.len(), 2);
}

#[tokio::test]
async fn an_entry_without_a_version_is_the_newest_beside_one_with_another() {
    for annotation in ["tzdata@1:/a, tzdata:/b", "tzdata:/b, tzdata@1:/a"] {
        let node = TestNode::start().await;
        node.engine.attach_named(&key(), annotation, Moment::Live).await.unwrap();
        let mut made: Vec<_> =
            node.durable().await.iter().map(|a| format!("{} {}", a.label(), a.target)).collect();
        made.sort();
        assert_eq!(made, ["tzdata@1 /a", "tzdata@2 /b"], "{annotation}");
    }
}

#[tokio::test]
async fn an_entry_with_a_tag_finds_what_a_person_attached() {
    let mut node = TestNode::start().await;
    node.attach(&["tzdata@2"]).await.unwrap();
    node.next_task().await;
    node.engine.attach_named(&key(), "tzdata@latest", Moment::Live).await.unwrap();
    assert_eq!(node.shim.calls(), ["attach tzdata@2"]);
    assert_eq!(node.durable().await.len(), 1);
}

#[tokio::test]
async fn a_crash_while_it_is_given_back_loses_nothing() {
    let mut node = TestNode::start().await;
    node.attach(&["tools@1", "tzdata@1"]).await.unwrap();
    node.next_task().await;
    let before = node.durable().await;
    node.engine.restore_named(&key(), "").await.unwrap();
    // The shim has mounted both, and nothing of it is on record: capsuled was killed.
    let changes = before.into_iter().map(|a| Change::Put(Box::new(a))).collect();
    node.write(changes).await;
    node.restart().await;
    assert!(node.durable().await.iter().all(|a| a.phase == Phase::Attached));
    node.shim.calls();
    node.engine.restore_named(&key(), "").await.unwrap();
    assert_eq!(node.shim.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn what_can_come_back_is_not_removed() {
    let mut node = TestNode::start().await;
    node.attach(&["tzdata@1"]).await.unwrap();
    node.next_task().await;
    let name = format!("capsules/2/{}", node.published[0].digest);
    assert!(node.snapshots.remove(&name).is_err());
    node.engine.detach(&choice("tzdata"), false, None).await.unwrap();
    node.snapshots.remove(&name).unwrap();
}
