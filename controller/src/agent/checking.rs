//! Moves with a check of health, which may take a minute: each in a task of its own, so that nobody else's pods wait for one. A version that
//! a container was not well with is not tried again, until something else is asked for.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{sync::Notify, task::JoinHandle};
use tonic::{Code, Status};

use super::{
    node::{Node, is_away},
    plan::{Planned, Step},
    signed::Judged,
};
use crate::api::{Done, HealthCheck, State};

/// How many are on their way at once, and how many of one namespace.
const AT_ONCE: usize = 32;
const OF_NAMESPACE: usize = 8;

/// A container of a pod, and who wants something of it.
type Key = (String, String, String);

/// What is on its way, and what was refused.
#[derive(Default)]
pub struct Checking {
    running: BTreeMap<Key, Running>,
    refused: BTreeMap<Key, (Asked, String)>,
    /// Told when one has ended.
    pub ended: Arc<Notify>,
}

/// What a move was asked for.
type Asked = (String, HealthCheck);

struct Running {
    namespace: String,
    asked: Asked,
    task: JoinHandle<Result<String, Status>>,
}

fn key(done: &Done) -> Key {
    (done.owner.uid.clone(), done.pod.uid.clone(), done.container.clone())
}

impl Checking {
    /// Takes over the moves that are to be checked: what is left has no step for them. Containers of which one is on its way are left alone.
    pub async fn take(&mut self, planned: &mut [Planned], node: &Node, judged: &Arc<Judged>) {
        self.take_ended().await;
        self.refused.retain(|known, _| planned.iter().any(|one| key(&one.done) == *known));
        for one in planned {
            if self.is_busy(&one.done) {
                (one.done.state, one.step) = (State::Waiting, Step::Rest);
                continue;
            }
            let Step::Move { version, check: Some(check) } = &one.step else { continue };
            let asked = (version.clone(), check.clone());
            match self.refused.get(&key(&one.done)) {
                Some((refused, why)) if *refused == asked => {
                    (one.done.state, one.done.message) = (State::Failed, Some(why.clone()));
                }
                _ => self.begin(&one.done, asked, node, judged),
            }
            one.step = Step::Rest;
        }
    }

    /// Whether one is on its way in the same container.
    fn is_busy(&self, done: &Done) -> bool {
        self.running.keys().any(|(_, pod, container)| (pod, container) == (&done.pod.uid, &done.container))
    }

    fn begin(&mut self, done: &Done, asked: Asked, node: &Node, judged: &Arc<Judged>) {
        let namespace = &done.owner.namespace;
        let of_namespace = self.running.values().filter(|running| running.namespace == *namespace).count();
        if self.running.len() >= AT_ONCE || of_namespace >= OF_NAMESPACE {
            return;
        }
        let (node, done) = (node.clone(), done.clone());
        let (judged, ended) = (Arc::clone(judged), Arc::clone(&self.ended));
        let (of, namespace, (version, check)) = (key(&done), namespace.clone(), asked.clone());
        let task = tokio::spawn(async move {
            let moved = node.upgrade(&done, &version, Some(&check), &judged).await;
            ended.notify_one();
            moved
        });
        self.running.insert(of, Running { namespace, asked, task });
    }

    async fn take_ended(&mut self) {
        let ended: Vec<Key> = self
            .running
            .iter()
            .filter(|(_, one)| one.task.is_finished())
            .map(|(key, _)| key.clone())
            .collect();
        for key in ended {
            let Some(Running { asked, task, .. }) = self.running.remove(&key) else { continue };
            let outcome = task.await.unwrap_or_else(|error| Err(Status::internal(error.to_string())));
            match outcome {
                Ok(_) => {}
                // Nobody has looked: it is asked again.
                Err(error) if is_away(&error) || error.code() == Code::NotFound => {}
                Err(error) => {
                    tracing::info!(
                        container = key.2,
                        version = asked.0,
                        error = error.message(),
                        "not moved"
                    );
                    self.refused.insert(key, (asked, error.message().to_owned()));
                }
            }
        }
    }
}
