//! From Prepare to Remove.

use std::time::SystemTime;

use capsule_proto::containerd::services::snapshots::v1::Kind;
use tonic::Code;

use super::{Subject, code, committed, labels, none, time};

pub async fn a_layer_is_prepared_committed_and_built_upon(subject: &mut Subject) {
    subject.prepare("a", "", none()).await.unwrap();
    let active = subject.stat("a").await.unwrap();
    assert_eq!((active.name.as_str(), active.parent.as_str(), active.kind()), ("a", "", Kind::Active));
    subject.commit("A", "a", none()).await.unwrap();
    assert_eq!(code(subject.stat("a").await), Code::NotFound);
    assert_eq!(subject.stat("A").await.unwrap().kind(), Kind::Committed);
    subject.prepare("b", "A", none()).await.unwrap();
    subject.view("v", "A", none()).await.unwrap();
    assert_eq!(subject.stat("b").await.unwrap().parent, "A");
    let view = subject.stat("v").await.unwrap();
    assert_eq!((view.parent.as_str(), view.kind()), ("A", Kind::View));
    subject.commit("B", "b", none()).await.unwrap();
    assert_eq!(subject.stat("B").await.unwrap().parent, "A");
}

pub async fn a_parent_with_children_stays(subject: &mut Subject) {
    committed(subject, "A", "").await;
    committed(subject, "B", "A").await;
    subject.view("v", "B", none()).await.unwrap();
    assert_eq!(code(subject.remove("A").await), Code::FailedPrecondition);
    assert_eq!(code(subject.remove("B").await), Code::FailedPrecondition);
    for key in ["v", "B", "A"] {
        subject.remove(key).await.unwrap();
    }
    assert!(subject.list(&[""]).await.unwrap().is_empty());
}

pub async fn keys_can_be_used_again(subject: &mut Subject) {
    committed(subject, "A", "").await;
    subject.prepare("k", "A", none()).await.unwrap();
    subject.remove("k").await.unwrap();
    subject.view("k", "A", none()).await.unwrap();
    subject.remove("k").await.unwrap();
    subject.prepare("k", "", none()).await.unwrap();
    subject.remove("A").await.unwrap();
    subject.commit("A", "k", none()).await.unwrap();
    assert_eq!(subject.list(&[""]).await.unwrap(), ["A"]);
}

pub async fn keys_and_names_share_one_space(subject: &mut Subject) {
    committed(subject, "A", "").await;
    subject.prepare("a", "A", none()).await.unwrap();
    assert_eq!(code(subject.prepare("A", "", none()).await), Code::AlreadyExists);
    assert_eq!(code(subject.commit("a", "a", none()).await), Code::AlreadyExists);
    subject.commit("B", "a", none()).await.unwrap();
    subject.prepare("a", "B", none()).await.unwrap();
    assert_eq!(subject.list(&[""]).await.unwrap(), ["A", "B", "a"]);
}

pub async fn keys_may_hold_any_text(subject: &mut Subject) {
    let long = "k".repeat(4000);
    let keys = ["sha256:0123", "a/b//c/", " spaces and\ttabs ", "ключ-鍵-🔑", "..", "%s'\"\\", &long];
    for key in keys {
        let name = format!("{key}-name");
        subject.prepare(key, "", none()).await.unwrap();
        assert_eq!(subject.stat(key).await.unwrap().name, key);
        subject.commit(&name, key, none()).await.unwrap();
        subject.view(key, &name, none()).await.unwrap();
        assert_eq!(subject.stat(key).await.unwrap().parent, name);
    }
    for key in keys {
        subject.remove(key).await.unwrap();
        subject.remove(&format!("{key}-name")).await.unwrap();
    }
    assert!(subject.list(&[""]).await.unwrap().is_empty());
}

pub async fn cleanup_takes_nothing_that_is_known(subject: &mut Subject) {
    committed(subject, "A", "").await;
    subject.prepare("a", "A", none()).await.unwrap();
    subject.view("v", "A", none()).await.unwrap();
    subject.prepare("gone", "A", none()).await.unwrap();
    subject.remove("gone").await.unwrap();
    match subject.cleanup().await {
        // containerd keeps Cleanup for its own garbage collector.
        Err(status) if status.code() == Code::Unimplemented => {}
        done => done.unwrap(),
    }
    assert_eq!(subject.list(&[""]).await.unwrap(), ["A", "a", "v"]);
    subject.commit("B", "a", none()).await.unwrap();
}

pub async fn times_are_those_of_the_calls(subject: &mut Subject) {
    for kind in [Kind::Active, Kind::View] {
        let before = SystemTime::now();
        match kind {
            Kind::View => subject.view("v", "", none()).await.unwrap(),
            _ => subject.prepare("a", "", none()).await.unwrap(),
        };
        let key = if kind == Kind::View { "v" } else { "a" };
        let made = subject.stat(key).await.unwrap();
        assert_eq!(made.created_at, made.updated_at);
        assert!(before <= time(made.created_at) && time(made.created_at) <= SystemTime::now());
        let updated = subject.update(key, labels(&[("l", "1")]), &["labels.l"]).await.unwrap();
        assert_eq!(updated.created_at, made.created_at);
        assert!(time(made.updated_at) < time(updated.updated_at));
        assert!(time(updated.updated_at) <= SystemTime::now());
        assert_eq!(subject.stat(key).await.unwrap(), updated);
    }
}

pub async fn commit_replaces_labels_and_times(subject: &mut Subject) {
    subject.prepare("a", "", labels(&[("old", "1")])).await.unwrap();
    let prepared = subject.stat("a").await.unwrap();
    subject.commit("A", "a", labels(&[("new", "2")])).await.unwrap();
    let committed = subject.stat("A").await.unwrap();
    assert_eq!(committed.labels, labels(&[("new", "2")]));
    assert_eq!(committed.created_at, committed.updated_at);
    assert!(time(committed.created_at) > time(prepared.created_at));
}

pub async fn a_parent_given_at_prepare_stays(subject: &mut Subject) {
    committed(subject, "A", "").await;
    committed(subject, "B", "").await;
    subject.prepare("same", "A", none()).await.unwrap();
    subject.commit_on("S", "same", "A", none()).await.unwrap();
    assert_eq!(subject.stat("S").await.unwrap().parent, "A");
    subject.prepare("other", "A", none()).await.unwrap();
    match subject.commit_on("O", "other", "B", none()).await {
        // containerd's own metadata leaves another parent out of what it asks its snapshotters for.
        Ok(()) => assert!(subject.is_containerd()),
        refused => {
            assert_eq!(code(refused), Code::InvalidArgument);
            subject.commit("O", "other", none()).await.unwrap();
        }
    }
    assert_eq!(subject.stat("O").await.unwrap().parent, "A");
}
