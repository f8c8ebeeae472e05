//! What is written to, while the version below it changes and while processes still use what was detached.

use super::*;
use crate::uppers::{
    UpperError, Wanted as Writable,
    model::{About, Fate},
};

impl TestNode {
    async fn write_over(&self, capsule: &str, name: Option<&str>) -> Result<Attachment, AttachmentError> {
        let writable = Some(Writable { name: name.map(|name| name.parse().unwrap()), size: None });
        let attached = self.engine.attach(&wanted(), &[AttachSpec { writable, ..spec(capsule) }]).await;
        attached.map(|mut all| all.remove(0))
    }

    fn about(&self, name: &str) -> Result<About, UpperError> {
        self.engine.uppers().find(&name.parse().unwrap())
    }

    /// Once what goes in the background has no name any more.
    async fn is_gone(&self, path: &str) -> bool {
        let path = self.dir.path().join("root").join(path);
        for _ in 0..500 {
            if !path.exists() {
                return true;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        false
    }

    fn refuse(&self, calls: &[&str]) {
        self.shim.0.lock().unwrap().refuse = calls.iter().map(|call| (*call).to_owned()).collect();
    }
}

#[tokio::test]
async fn the_version_below_is_that_of_the_last_attachment_that_was_made() {
    let mut node = TestNode::start().await;
    node.write_over("tzdata@1", Some("notes")).await.unwrap();
    assert!(!node.about("notes").unwrap().pending);
    node.engine.detach(&choice("tzdata"), false, None).await.unwrap();
    node.refuse(&["attach tzdata@2"]);
    node.write_over("tzdata@2", Some("notes")).await.unwrap_err();
    let version = |about: &About| about.over.as_ref().map(|over| over.version.to_string());
    assert_eq!(version(&node.about("notes").unwrap()).as_deref(), Some("1"));
    node.refuse(&[]);
    let second = node.write_over("tzdata@2", Some("notes")).await.unwrap();
    let about = node.about("notes").unwrap();
    assert_eq!((version(&about).as_deref(), &about.attachment), (Some("2"), &second.id));

    // A crash once it is mounted: it is there, and what is below it is known.
    node.engine.detach(&choice("tzdata"), false, None).await.unwrap();
    let third = node.write_over("tzdata@1", Some("notes")).await.unwrap();
    let path = node.dir.path().join("root/uppers/notes/about.json");
    std::fs::write(&path, serde_json::to_vec(&about).unwrap()).unwrap();
    let phase = Phase::Attaching;
    node.write(vec![Change::Put(Box::new(Attachment { phase, ..third.clone() }))]).await;
    node.restart().await;
    assert_eq!(node.about("notes").unwrap().attachment, third.id);
}

#[tokio::test]
async fn a_name_of_an_attach_of_which_nothing_is_on_record_is_free_again() {
    let mut node = TestNode::start().await;
    let attached = node.write_over("tzdata@1", Some("notes")).await.unwrap();
    node.shim.0.lock().unwrap().mounted.clear();
    let about = About { pending: true, ..node.about("notes").unwrap() };
    let path = node.dir.path().join("root/uppers/notes/about.json");
    std::fs::write(&path, serde_json::to_vec(&about).unwrap()).unwrap();
    node.write(vec![Change::Remove(attached.id)]).await;
    node.restart().await;
    assert!(node.is_gone("uppers/notes").await);
    assert!(matches!(node.about("notes"), Err(UpperError::Unknown(_))));
}

#[tokio::test]
async fn what_may_drain_stays_while_the_shim_does_not_say() {
    let node = TestNode::start().await;
    let attached = node.write_over("tzdata@1", None).await.unwrap();
    node.shim.0.lock().unwrap().drains = true;
    node.refuse(&["list"]);
    let gone = node.engine.detach(&choice("tzdata"), true, Some(&Fate::Drop)).await.unwrap();
    assert_eq!(gone[0].1.len(), 1);
    let own = node.dir.path().join("root/attachments").join(&attached.id);
    assert!(own.exists());
    // It says so: what drains stays, and goes with the last that uses it.
    node.refuse(&[]);
    assert!(node.engine.settle(&key()).await);
    assert!(own.exists());
    node.shim.0.lock().unwrap().draining.clear();
    assert!(node.engine.settle(&key()).await);
    assert!(node.is_gone(&format!("attachments/{}", attached.id)).await);
}
