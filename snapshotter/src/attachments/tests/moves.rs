//! Sets that move together: all of them, or none.

use std::time::Duration;

use super::*;
use crate::{attachments::HealthCheck, capsules::claim::Claim};

impl TestNode {
    async fn start_listed() -> Self {
        let node = Self::start().await;
        node.list();
        node
    }

    /// As when containerd has been listed.
    fn list(&self) {
        let claims = self.published.iter().map(|one| Claim { version: one.clone(), tag: None });
        self.engine.capsules.catalogue().replace(claims.collect());
    }

    async fn upgrade_checked(&self, to: &[&str]) -> Result<Outcome, AttachmentError> {
        let moves: Vec<Move> = to.iter().map(|text| a_move(text)).collect();
        let check = HealthCheck { args: vec!["/check".into()], timeout: Duration::from_secs(1) };
        self.engine.upgrade(&wanted(), &moves, Some(&check), false).await
    }

    /// The records as they were while the last call was under way, and the shim with what `mounted` says it had made.
    async fn crash_with(&mut self, intents: Vec<Attachment>) {
        let changes = intents.into_iter().map(|a| Change::Put(Box::new(a))).collect();
        self.write(changes).await;
        self.list();
        self.restart().await;
    }
}

#[tokio::test]
async fn what_a_new_version_requires_moves_with_it_and_back() {
    let node = TestNode::start_listed().await;
    node.attach(&["app@1"]).await.unwrap();
    assert_eq!(node.shim.mounted(), ["app@1", "lib@1"]);
    node.shim.calls();
    assert_eq!(node.upgrade(&["app"]).await.unwrap(), ["app 1 2", "lib 1 2", "extra - 1"]);
    let calls = node.shim.calls();
    assert_eq!(calls.last().unwrap(), "replace app@2", "what is required is there first: {calls:?}");
    assert_eq!(node.rollback(&["app"]).await.unwrap(), ["app 2 1", "lib 2 1"]);
    assert_eq!(node.shim.mounted(), ["app@1", "extra@1", "lib@1"]);
    let left: Vec<usize> = node.durable().await.iter().map(|a| a.history.len()).collect();
    assert_eq!(left, [0, 0, 0]);
}

#[tokio::test]
async fn what_can_be_gone_back_to_need_not_be_read_again() {
    let mut node = TestNode::start_listed().await;
    node.attach(&["tzdata@1"]).await.unwrap();
    node.upgrade(&["tzdata"]).await.unwrap();
    // Its manifest is gone, and its record in containerd is not.
    node.published[0].image = Err("its manifest is gone".to_owned());
    node.list();
    assert_eq!(node.rollback(&["tzdata"]).await.unwrap(), ["tzdata 2 1"]);
    assert_eq!(node.shim.mounted(), ["tzdata@1"]);
}

#[tokio::test]
async fn a_set_that_fails_in_the_middle_moves_back() {
    let node = TestNode::start_listed().await;
    node.attach(&["app@1"]).await.unwrap();
    let before = node.durable().await;
    node.shim.0.lock().unwrap().refuse = vec!["replace app@2".into()];
    let error = node.upgrade(&["app"]).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot upgrade app@2 at /opt/app in default/c1: no replace app@2");
    assert_eq!(node.shim.mounted(), ["app@1", "lib@1"]);
    assert_eq!(node.durable().await, before);
    // What only the failed call needed can be removed.
    for index in [3, 5, 7] {
        let name = format!("capsules/2/{}", node.published[index].digest);
        node.snapshots.remove(&name).unwrap();
    }
}

#[tokio::test]
async fn a_container_that_is_not_well_has_what_it_had() {
    let node = TestNode::start_listed().await;
    node.attach(&["app@1"]).await.unwrap();
    let before = node.durable().await;
    // containerd is not there to run the command.
    let error = node.upgrade_checked(&["app"]).await.unwrap_err().to_string();
    assert!(error.contains("default/c1 is not well with that") && error.contains("/check"), "{error}");
    assert_eq!(node.shim.mounted(), ["app@1", "lib@1"]);
    assert_eq!(node.durable().await, before);
}

#[tokio::test]
async fn a_crash_in_the_middle_of_a_set_leaves_all_of_it_or_none() {
    for (trial, made, expected) in [
        (false, &["lib"][..], &["app@1", "lib@1"][..]),
        (false, &["lib", "extra"], &["app@1", "lib@1"]),
        (false, &["lib", "extra", "app"], &["app@2", "extra@1", "lib@2"]),
        (true, &["lib", "extra", "app"], &["app@1", "lib@1"]),
    ] {
        let mut node = TestNode::start_listed().await;
        node.attach(&["app@1"]).await.unwrap();
        let before = node.durable().await;
        node.upgrade(&["app"]).await.unwrap();
        let after = node.durable().await;
        // As if not all had been made.
        for record in after.iter().filter(|a| !made.contains(&a.capsule.as_str())) {
            let mut shim = node.shim.0.lock().unwrap();
            match before.iter().find(|a| a.id == record.id) {
                None => drop(shim.mounted.remove(&record.id)),
                Some(old) => {
                    let content = &mut shim.mounted.get_mut(&record.id).unwrap().content;
                    content.as_mut().unwrap().version = old.current.version.to_string();
                    content.as_mut().unwrap().digest = old.current.digest.to_string();
                }
            }
        }
        let call = Some(Call { id: "call".into(), trial });
        let intent = |a: &Attachment| match before.iter().find(|old| old.id == a.id) {
            None => Attachment { phase: Phase::Attaching, call: call.clone(), ..a.clone() },
            Some(old) => {
                let (current, history) = (a.current.clone(), a.history.clone());
                Attachment { phase: Phase::Replacing { current, history }, call: call.clone(), ..old.clone() }
            }
        };
        node.crash_with(after.iter().map(intent).collect()).await;
        assert_eq!(node.shim.mounted(), expected, "{trial} {made:?}");
        assert_eq!(node.listed().await, expected, "{trial} {made:?}");
        assert!(node.durable().await.iter().all(|a| a.phase == Phase::Attached && a.call.is_none()));
    }
}

#[tokio::test]
async fn a_crash_in_the_middle_of_a_detach_puts_back_what_went() {
    let mut node = TestNode::start_listed().await;
    let mut specs = [spec("tools@1"), spec("tools@1")];
    specs[1].target = Some("/elsewhere".into());
    node.engine.attach(&wanted(), &specs).await.unwrap();
    let records = node.durable().await;
    node.shim.0.lock().unwrap().mounted.remove(&records[0].id);
    let call = Some(Call { id: "call".into(), trial: false });
    let phase = Phase::Detaching { lazy: false, fate: None };
    let intents =
        records.iter().map(|a| Attachment { phase: phase.clone(), call: call.clone(), ..a.clone() });
    node.crash_with(intents.collect()).await;
    assert_eq!(node.shim.mounted(), ["tools@1", "tools@1"]);
    assert_eq!(node.durable().await, records);
}

#[tokio::test]
async fn a_plan_changes_nothing() {
    let node = TestNode::start_listed().await;
    node.attach(&["app@1"]).await.unwrap();
    let before = node.durable().await;
    node.shim.calls();
    let outcome = node.engine.upgrade(&wanted(), &[a_move("app")], None, true).await.unwrap();
    let Outcome::Planned(planned) = outcome else { panic!("{outcome:?}") };
    let from = |p: &crate::attachments::Planned| p.from.as_ref().map_or("-".to_owned(), ToString::to_string);
    let planned: Vec<String> =
        planned.iter().map(|p| format!("{} {} {}", p.version.name, from(p), p.version.version)).collect();
    assert_eq!(planned, ["lib 1 2", "extra - 1", "app 1 2"]);
    assert_eq!(node.shim.calls(), Vec::<String>::new());
    assert_eq!(node.durable().await, before);
    let error = node.upgrade(&["lib"]).await.unwrap_err().to_string();
    for fact in ["the container has app@1", "app@1 requires lib <2", "lib@2 is asked for"] {
        assert!(error.contains(fact), "{error}");
    }
}
