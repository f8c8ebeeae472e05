//! Labels: their limits, and how updates change them.

use std::time::SystemTime;

use tonic::Code;

use super::{Subject, code, committed, labels, none};

pub async fn updates_follow_their_field_paths(subject: &mut Subject) {
    committed(subject, "A", "").await;
    subject.prepare("a", "A", none()).await.unwrap();
    subject.view("v", "A", none()).await.unwrap();
    for key in ["A", "a", "v"] {
        let before = subject.stat(key).await.unwrap();
        let three = labels(&[("l1", "v1"), ("l2", "v2"), ("l3", "v3")]);
        let all = subject.update(key, three.clone(), &[]).await.unwrap();
        assert_eq!(all.labels, three);
        assert_eq!((all.created_at, &all.parent, all.kind), (before.created_at, &before.parent, before.kind));
        let time = |info: &capsule_proto::containerd::services::snapshots::v1::Info| {
            SystemTime::try_from(info.updated_at.unwrap()).unwrap()
        };
        assert!(time(&all) > time(&before));
        let some = labels(&[("l1", "updated"), ("l4", "v4")]);
        let some = subject.update(key, some, &["labels.l1", "labels.l2"]).await.unwrap();
        assert_eq!(some.labels, labels(&[("l1", "updated"), ("l3", "v3")]));
        let last = labels(&[("l4", "v4")]);
        assert_eq!(subject.update(key, last.clone(), &["labels"]).await.unwrap().labels, last);
        assert_eq!(subject.stat(key).await.unwrap().labels, last);
    }
}

pub async fn keys_of_labels_may_have_dots(subject: &mut Subject) {
    let all = labels(&[("a.b/c", "1"), ("a.b", "2"), ("a", "3"), ("ü \"q\"", "x\ny, 'z' \\")]);
    subject.prepare("k", "", all.clone()).await.unwrap();
    assert_eq!(subject.stat("k").await.unwrap().labels, all);
    let updated = subject.update("k", labels(&[("a.b", "new")]), &["labels.a.b", "labels.a"]).await.unwrap();
    let expected = labels(&[("a.b/c", "1"), ("a.b", "new"), ("ü \"q\"", "x\ny, 'z' \\")]);
    assert_eq!(
        updated.labels.into_iter().filter(|(_, value)| !value.is_empty()).collect::<super::Labels>(),
        expected
    );
    assert_eq!(subject.stat("k").await.unwrap().labels, expected);
}

pub async fn labels_have_a_size_limit(subject: &mut Subject) {
    let sized = |length: usize| labels(&[("k", "v".repeat(length - 1).as_str())]);
    subject.prepare("a", "", sized(4096)).await.unwrap();
    assert_eq!(code(subject.prepare("b", "", sized(4097)).await), Code::InvalidArgument);
    assert_eq!(code(subject.view("b", "", sized(4097)).await), Code::InvalidArgument);
    assert_eq!(code(subject.update("a", sized(4097), &[]).await), Code::InvalidArgument);
    assert_eq!(code(subject.commit("A", "a", sized(4097)).await), Code::InvalidArgument);
    assert_eq!(subject.stat("a").await.unwrap().labels, sized(4096));
    assert_eq!(code(subject.stat("b").await), Code::NotFound);
}

/// Each label has a limit, and how many there are has none but that of a message.
pub async fn labels_may_be_many(subject: &mut Subject) {
    let label = |n: u32| (format!("containerd.io/snapshot/{n}"), "v".repeat(4000));
    let many: super::Labels = (0..1500).map(label).collect();
    subject.prepare("a", "", many.clone()).await.unwrap();
    assert_eq!(subject.stat("a").await.unwrap().labels, many);
    subject.commit("A", "a", many.clone()).await.unwrap();
    assert_eq!(subject.list_blocks().await.unwrap().concat()[0].labels, many);
}

pub async fn key_and_value_count_together_and_each_label_alone(subject: &mut Subject) {
    let sized = |key: usize, value: usize| (format!("{}k", "K".repeat(key - 1)), "v".repeat(value));
    let fits = [sized(1, 4095), sized(2048, 2048), sized(4095, 1), ("é".repeat(1000), "é".repeat(1048))];
    subject.prepare("fits", "", fits.clone().into()).await.unwrap();
    assert_eq!(subject.stat("fits").await.unwrap().labels, fits.into());
    let long = [sized(1, 4096), sized(2048, 2049), sized(4096, 1), ("é".repeat(1000), "é".repeat(1049))];
    for label in long {
        let key = label.0.clone();
        let labels = || super::Labels::from([label.clone(), ("short".to_owned(), "1".to_owned())]);
        assert_eq!(code(subject.prepare("long", "", labels()).await), Code::InvalidArgument);
        let path = format!("labels.{key}");
        assert_eq!(code(subject.update("fits", labels(), &[&path]).await), Code::InvalidArgument);
        // What the mask does not name is not looked at.
        subject.update("fits", labels(), &["labels.short"]).await.unwrap();
    }
    assert_eq!(subject.list(&[""]).await.unwrap(), ["fits"]);
}

pub async fn labels_without_a_value_are_none(subject: &mut Subject) {
    subject.prepare("a", "", labels(&[("empty", ""), ("l", "1")])).await.unwrap();
    assert_eq!(subject.stat("a").await.unwrap().labels, labels(&[("l", "1")]));
    assert!(subject.list(&["labels.empty"]).await.unwrap().is_empty());
    subject.update("a", labels(&[("l", ""), ("m", "2")]), &["labels.l", "labels.m"]).await.unwrap();
    assert_eq!(subject.stat("a").await.unwrap().labels, labels(&[("m", "2")]));
    subject.commit("A", "a", none()).await.unwrap();
    assert_eq!(subject.stat("A").await.unwrap().labels, none());
}

pub async fn labels_need_a_key(subject: &mut Subject) {
    let nameless = || labels(&[("", "value"), ("l", "1")]);
    // containerd 2.1 stores no such label either, and has no code for the mistake.
    let refused = |code| matches!(code, Code::InvalidArgument | Code::Unknown);
    assert!(refused(code(subject.prepare("a", "", nameless()).await)));
    assert_eq!(code(subject.stat("a").await), Code::NotFound);
    subject.prepare("a", "", labels(&[("", ""), ("l", "1")])).await.unwrap();
    assert!(refused(code(subject.update("a", nameless(), &[]).await)));
    assert!(refused(code(subject.update("a", nameless(), &["labels."]).await)));
    assert!(refused(code(subject.commit("A", "a", nameless()).await)));
    assert_eq!(subject.stat("a").await.unwrap().labels, labels(&[("l", "1")]));
}

pub async fn an_update_looks_for_the_snapshot_first(subject: &mut Subject) {
    let long = || labels(&[("k", "v".repeat(4096).as_str())]);
    for paths in [&[][..], &["labels"], &["labels.k"], &["parent"], &[""]] {
        assert_eq!(code(subject.update("missing", long(), paths).await), Code::NotFound, "{paths:?}");
    }
}
