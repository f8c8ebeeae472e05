//! Versions on their way to the node: each in a task of its own, so that nothing else waits for one.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::Notify, task::JoinHandle};

use super::{
    fetch::{Key, Step, There, Unsigned, key, plan},
    node::Node,
    signed,
};
use crate::api::{FetchState, Fetched, Wanted};

/// How many are on their way at once.
const AT_ONCE: usize = 2;
/// How long until one that failed is tried again; twice as long each time.
const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);

/// What is on its way, and what has failed.
#[derive(Default)]
pub struct Fetching {
    running: BTreeMap<Key, JoinHandle<Result<(), String>>>,
    failed: BTreeMap<Key, Failure>,
    /// Told when one has ended.
    pub ended: Arc<Notify>,
}

struct Failure {
    why: String,
    again: Instant,
    pause: Duration,
}

impl Fetching {
    /// What is to be said before anything is done, with the steps.
    pub async fn plan(
        &mut self,
        wanted: &[Wanted],
        before: &[Fetched],
        there: &There,
        unsigned: &Unsigned,
    ) -> Vec<(Fetched, Step)> {
        self.take_ended().await;
        let mut planned = plan(wanted, before, there, unsigned);
        for (said, step) in &mut planned {
            if let (Some(failed), Step::Fetch { .. }) = (self.failed.get(&key(said)), step) {
                said.state = FetchState::Failed;
                said.message = Some(failed.why.clone());
            }
        }
        self.failed.retain(|key, _| planned.iter().any(|(said, _)| self::key(said) == *key));
        planned
    }

    async fn take_ended(&mut self) {
        let ended: Vec<Key> =
            self.running.iter().filter(|(_, task)| task.is_finished()).map(|(key, _)| key.clone()).collect();
        for key in ended {
            let Some(task) = self.running.remove(&key) else { continue };
            match task.await.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(()) => drop(self.failed.remove(&key)),
                Err(why) => {
                    let pause = self.failed.get(&key).map_or(FIRST, |failed| (failed.pause * 2).min(LONGEST));
                    tracing::warn!(capsule = key.0, version = key.1, why, "not fetched");
                    self.failed.insert(key, Failure { why, again: Instant::now() + pause, pause });
                }
            }
        }
    }

    /// Takes the steps, or begins them. What is left to say.
    pub async fn take(&mut self, planned: Vec<(Fetched, Step)>, node: &Node) -> Vec<Fetched> {
        let mut said = Vec::with_capacity(planned.len());
        for (mut one, step) in planned {
            let done = match step {
                Step::Rest => Ok(()),
                Step::Fetch { reference, keys } => {
                    self.begin(&one, reference, keys, node);
                    Ok(())
                }
                Step::Tag(channels) => node.tag(&one.name, &one.version, &channels).await.map(|()| {
                    one.state = FetchState::Present;
                    one.channels.extend(channels);
                    one.channels.sort();
                }),
                Step::Remove => match node.remove(&one.name, &one.version).await {
                    Ok(()) => continue,
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = done {
                one.message = Some(error.message().to_owned());
            }
            said.push(one);
        }
        said
    }

    fn begin(&mut self, one: &Fetched, reference: String, keys: Vec<String>, node: &Node) {
        let key = key(one);
        let waits = self.failed.get(&key).is_some_and(|failed| failed.again > Instant::now());
        if waits || self.running.len() >= AT_ONCE || self.running.contains_key(&key) {
            return;
        }
        let (node, ended, (name, version)) = (node.clone(), Arc::clone(&self.ended), key.clone());
        let task = tokio::spawn(async move {
            let fetched = fetch(&node, (name, version), &reference, &keys).await;
            ended.notify_one();
            fetched
        });
        self.running.insert(key, task);
    }
}

/// Fetches a version with its signatures, of which one is to be by one of these keys.
async fn fetch(node: &Node, of: Key, reference: &str, keys: &[String]) -> Result<(), String> {
    let told = |error: tonic::Status| error.message().to_owned();
    node.pull(&of.0, &of.1, reference).await.map_err(told)?;
    if keys.is_empty() {
        return Ok(());
    }
    let (digest, signatures) = node.signatures(&of).await.map_err(told)?;
    signed::judge(keys, &of, &digest, &signatures)
}
