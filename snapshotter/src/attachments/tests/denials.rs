//! System calls that capsules deny, as shims are told of them.

use super::{node::TestNode, *};
use crate::attachments::creation::Creation;

/// What the shim was told last that processes are denied.
fn told(node: &TestNode, label: &str) -> Vec<String> {
    let state = node.shim.0.lock().unwrap();
    let (name, version) = label.split_once('@').unwrap();
    let is_it = |r: &&wire::AttachRequest| r.content.capsule == name && r.content.version == version;
    state.mounted.values().find(is_it).unwrap().content.denied_calls.clone()
}

#[tokio::test]
async fn what_is_denied_goes_with_the_version() {
    let mut node = TestNode::start().await;
    node.publish_declared("tools", "8", &[("seccomp", r#"{"deny":["socket","bind"]}"#)]);
    node.publish_declared("tools", "9", &[("seccomp", r#"{"level":"baseline","deny":["socket"]}"#)]);
    node.attach(&["tools@8"]).await.unwrap();
    assert_eq!(told(&node, "tools@8"), ["bind", "socket", "socketcall"]);
    node.upgrade(&["tools@9"]).await.unwrap();
    let all = told(&node, "tools@9");
    assert!(["mount", "socket"].iter().all(|call| all.contains(&(*call).to_owned())), "{all:?}");
    node.rollback(&["tools"]).await.unwrap();
    assert_eq!(told(&node, "tools@8"), ["bind", "socket", "socketcall"]);
    // A container that is created with it, and one whose last task had it.
    let creation = |named: &str| Creation {
        attachments: named.to_owned(),
        takes_attachments: true,
        ..Creation::default()
    };
    let other = ContainerKey { id: "c9".to_owned(), ..key() };
    let made = node.engine.devices_at_creation(&other, &creation("tools@9")).await.unwrap();
    assert_eq!(made.denied.len(), all.len());
    let again = node.engine.devices_at_creation(&key(), &creation("")).await.unwrap();
    assert_eq!(again.denied.into_iter().collect::<Vec<_>>(), ["bind", "socket", "socketcall"]);
}

#[tokio::test]
async fn an_older_shim_is_not_taken_for_one_that_denies() {
    let mut node = TestNode::start().await;
    node.publish_declared("tools", "8", &[]);
    node.publish_declared("tools", "9", &[("seccomp", r#"{"deny":["socket"]}"#)]);
    node.shim.0.lock().unwrap().old = true;
    let error = node.attach(&["tools@9"]).await.unwrap_err();
    assert!(error.to_string().contains("denies no system calls"), "{error}");
    assert_eq!(node.shim.mounted(), Vec::<String>::new());
    node.attach(&["tools@8"]).await.unwrap();
    let error = node.upgrade(&["tools@9"]).await.unwrap_err();
    assert!(error.to_string().contains("denies no system calls"), "{error}");
    assert_eq!(
        (node.shim.mounted(), node.listed().await),
        (vec!["tools@8".to_owned()], vec!["tools@8".to_owned()])
    );
}

#[tokio::test]
async fn what_is_not_known_here_is_not_attached_with_less() {
    let mut node = TestNode::start().await;
    node.publish_declared("tools", "9", &[("seccomp", r#"{"level":"strictest"}"#)]);
    let error = node.attach(&["tools@9"]).await.unwrap_err();
    assert!(error.to_string().contains("resourcecapsules.io/seccomp"), "{error}");
    assert_eq!((node.shim.calls().len(), node.durable().await.len()), (0, 0));
}
