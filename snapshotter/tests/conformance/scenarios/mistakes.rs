//! Every call and every mistake that can be made with it: containerd's code, and nothing changed.

use tonic::Code;

use super::{Subject, code, committed, labels, none};

/// A committed snapshot, an active one and a view on it.
async fn three(subject: &mut Subject) {
    committed(subject, "A", "").await;
    subject.prepare("a", "A", labels(&[("l", "1")])).await.unwrap();
    subject.view("v", "A", none()).await.unwrap();
}

async fn still_three(subject: &mut Subject) {
    assert_eq!(subject.list(&[""]).await.unwrap(), ["A", "a", "v"]);
    assert_eq!(subject.list(&["kind==active,labels.l==1"]).await.unwrap(), ["a"]);
}

pub async fn nothing_is_found_where_nothing_is(subject: &mut Subject) {
    three(subject).await;
    assert_eq!(code(subject.prepare("x", "missing", none()).await), Code::NotFound);
    assert_eq!(code(subject.view("x", "missing", none()).await), Code::NotFound);
    assert_eq!(code(subject.commit("x", "missing", none()).await), Code::NotFound);
    for missing in ["missing", "x", "A-key", "A/", "a ", ""] {
        assert_eq!(code(subject.mounts(missing).await), Code::NotFound, "{missing}");
        assert_eq!(code(subject.stat(missing).await), Code::NotFound, "{missing}");
        assert_eq!(code(subject.usage(missing).await), Code::NotFound, "{missing}");
        assert_eq!(code(subject.remove(missing).await), Code::NotFound, "{missing}");
    }
    for paths in [&[][..], &["labels"], &["labels.l"]] {
        assert_eq!(code(subject.update("missing", none(), paths).await), Code::NotFound);
    }
    still_three(subject).await;
}

pub async fn what_is_taken_stays_taken(subject: &mut Subject) {
    three(subject).await;
    for taken in ["a", "v", "A"] {
        for parent in ["", "A"] {
            assert_eq!(code(subject.prepare(taken, parent, none()).await), Code::AlreadyExists);
            assert_eq!(code(subject.view(taken, parent, none()).await), Code::AlreadyExists);
        }
        assert_eq!(code(subject.commit(taken, "a", none()).await), Code::AlreadyExists);
    }
    still_three(subject).await;
}

pub async fn parents_must_be_committed(subject: &mut Subject) {
    three(subject).await;
    for parent in ["a", "v"] {
        assert_eq!(code(subject.prepare("x", parent, none()).await), Code::InvalidArgument);
        assert_eq!(code(subject.view("x", parent, none()).await), Code::InvalidArgument);
    }
    still_three(subject).await;
}

pub async fn only_active_snapshots_are_committed(subject: &mut Subject) {
    three(subject).await;
    for key in ["v", "A"] {
        assert_eq!(code(subject.commit("x", key, none()).await), Code::FailedPrecondition);
    }
    still_three(subject).await;
}

pub async fn committed_snapshots_have_no_mounts(subject: &mut Subject) {
    three(subject).await;
    assert_eq!(code(subject.mounts("A").await), Code::FailedPrecondition);
    subject.mounts("a").await.unwrap();
    subject.mounts("v").await.unwrap();
}

/// containerd refuses them too, with whatever its database says.
pub async fn empty_keys_are_refused(subject: &mut Subject) {
    three(subject).await;
    subject.prepare("", "", none()).await.unwrap_err();
    subject.view("", "A", none()).await.unwrap_err();
    subject.commit("", "a", none()).await.unwrap_err();
    subject.commit("x", "", none()).await.unwrap_err();
    subject.update("", none(), &[]).await.unwrap_err();
    still_three(subject).await;
}

pub async fn only_labels_can_be_updated(subject: &mut Subject) {
    three(subject).await;
    let new = || labels(&[("l", "2")]);
    for path in ["parent", "name", "kind", "created_at", "updated_at", "Labels", "label", "labels-l", "", "."]
    {
        for paths in [&[path][..], &["labels", path], &[path, "labels.l"]] {
            let refused = subject.update("a", new(), paths).await;
            assert_eq!(code(refused), Code::InvalidArgument, "{paths:?}");
        }
    }
    still_three(subject).await;
}

pub async fn malformed_filters_are_refused(subject: &mut Subject) {
    three(subject).await;
    let malformed = [
        "name=x",
        "name===x",
        "name<x",
        "name==",
        "==x",
        ",",
        "name==x,",
        ",name==x",
        "name==x name==y",
        "kind==view ,labels.l",
        "labels.",
        ".l",
        "labels.l=~x",
        "name==\"x",
        "labels.\"l==1",
        "na-me==x",
        "name==/x/",
        "!name",
        "name~x",
    ];
    for filter in malformed {
        let Err(refused) = subject.list_exactly(filter).await else { panic!("{filter} is understood") };
        // containerd 2.1 means InvalidArgument too, and forgets to say so in its listing.
        assert!(matches!(refused.code(), Code::InvalidArgument | Code::Unknown), "{filter}: {refused}");
    }
    still_three(subject).await;
}
