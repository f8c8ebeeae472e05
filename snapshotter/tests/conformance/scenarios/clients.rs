//! Several clients at once.

use tonic::{Code, Status};

use super::{Subject, committed, layer, none, option};

pub async fn many_clients_at_once_lose_nothing(subject: &mut Subject) {
    let clients = (0..16).map(|client| {
        let mut subject = subject.clone();
        tokio::spawn(async move {
            let mut parent = String::new();
            for depth in 0..5 {
                let name = format!("c{client}-{depth}");
                layer(&mut subject, &name, &parent, |_| ()).await;
                parent = name;
            }
            subject.view(&format!("v{client}"), &parent, none()).await.unwrap();
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    assert_eq!(subject.list(&["kind==committed"]).await.unwrap().len(), 80);
    for client in 0..16 {
        let mounts = subject.mounts(&format!("v{client}")).await.unwrap();
        assert_eq!(option(&mounts[0], "lowerdir").unwrap().split(':').count(), 5);
    }
}

/// Runs `call` for that many clients at once.
async fn at_once<T: Send + 'static, F>(
    subject: &Subject,
    clients: usize,
    call: impl Fn(usize, Subject) -> F,
) -> Vec<Result<T, Status>>
where
    F: Future<Output = Result<T, Status>> + Send + 'static,
{
    let calls: Vec<_> = (0..clients).map(|client| tokio::spawn(call(client, subject.clone()))).collect();
    let mut results = Vec::new();
    for call in calls {
        results.push(call.await.unwrap());
    }
    results
}

/// One client won, and all others were told that it is taken.
fn one_won<T>(results: &[Result<T, Status>]) {
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    for status in results.iter().filter_map(|result| result.as_ref().err()) {
        assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    }
}

pub async fn of_many_that_prepare_one_key_one_wins(subject: &mut Subject) {
    committed(subject, "A", "").await;
    for round in 0..5 {
        let key = format!("k{round}");
        let results = at_once(subject, 8, |client, mut subject| {
            let key = key.clone();
            async move {
                match client % 2 {
                    0 => subject.prepare(&key, "A", none()).await,
                    _ => subject.view(&key, "A", none()).await,
                }
            }
        });
        one_won(&results.await);
    }
    assert_eq!(subject.list(&[""]).await.unwrap().len(), 6);
}

pub async fn of_many_that_commit_one_name_one_wins(subject: &mut Subject) {
    for client in 0..8 {
        subject.prepare(&format!("k{client}"), "", none()).await.unwrap();
    }
    let results = at_once(subject, 8, |client, mut subject| async move {
        subject.commit("A", &format!("k{client}"), none()).await
    });
    one_won(&results.await);
    assert_eq!(subject.list(&["kind==committed"]).await.unwrap(), ["A"]);
    assert_eq!(subject.list(&["kind==active"]).await.unwrap().len(), 7);
}

pub async fn a_parent_is_removed_or_built_upon_and_not_both(subject: &mut Subject) {
    for round in 0..10 {
        let (parent, child) = (format!("P{round}"), format!("c{round}"));
        committed(subject, &parent, "").await;
        let results = at_once(subject, 2, |client, mut subject| {
            let (parent, child) = (parent.clone(), child.clone());
            async move {
                match client {
                    0 => subject.remove(&parent).await,
                    _ => subject.prepare(&child, &parent, none()).await.map(drop),
                }
            }
        });
        let codes: Vec<Code> =
            results.await.iter().map(|result| result.as_ref().err().map_or(Code::Ok, Status::code)).collect();
        match codes[..] {
            [Code::Ok, Code::NotFound] => assert!(subject.stat(&parent).await.is_err()),
            [Code::FailedPrecondition, Code::Ok] => {
                assert_eq!(subject.stat(&child).await.unwrap().parent, parent);
            }
            _ => panic!("remove and prepare ended with {codes:?}"),
        }
    }
}
