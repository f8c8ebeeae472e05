//! The agent of a node: has its capsuled do what the node's [`NodeCapsules`] says, and says what became of it.
//!
//! It sees that one object and no other. While the API server is away it goes on with what it knows, and says what it did when it is back.

mod node;
mod plan;

use std::{path::PathBuf, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;
use tokio::{sync::watch, time::timeout};
use tonic::Code;

use self::{
    node::{Node, is_away},
    plan::{Planned, Step, plan},
};
use crate::{
    api::{Done, NodeCapsules, NodeCapsulesStatus, State},
    bounded,
};

/// Who has written a field.
const MANAGER: &str = "capsule-agent";
/// How long until all is looked at again, where all is well and where something is not.
const CALM: Duration = Duration::from_secs(15);
const SOON: Duration = Duration::from_secs(2);
const LATER: Duration = Duration::from_secs(10);
/// How many containers are worked on at once.
const AT_ONCE: usize = 8;

/// What an agent is told when it starts.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The node's name in the cluster.
    pub node: String,
    /// capsuled's socket.
    pub socket: PathBuf,
}

/// Serves a node until the process ends.
///
/// # Errors
/// The watch has ended.
pub async fn run(client: Client, settings: Settings) -> anyhow::Result<()> {
    let api: Api<NodeCapsules> = Api::all(client);
    let (sender, mut seen) = watch::channel(None);
    let only = watcher::Config::default().fields(&format!("metadata.name={}", settings.node));
    let following = tokio::spawn(follow(api.clone(), only, sender));
    let node = Node::new(settings.socket);
    let mut agent = Agent { api, name: settings.node, node, done: None, uid: None, told: None };
    loop {
        let latest = seen.borrow_and_update().clone();
        let pause = match &latest {
            Some(object) => agent.reconcile(object).await,
            None => CALM,
        };
        // A watch that has ended says so by its error.
        if let Ok(Err(_)) = timeout(pause, seen.changed()).await {
            return Ok(following.await?);
        }
    }
}

async fn follow(api: Api<NodeCapsules>, only: watcher::Config, sender: watch::Sender<Option<NodeCapsules>>) {
    let mut objects = std::pin::pin!(watcher(api, only).default_backoff().applied_objects());
    loop {
        match objects.try_next().await {
            Ok(Some(object)) => {
                sender.send_replace(Some(object));
            }
            Ok(None) => return,
            Err(error) => tracing::warn!(%error, "the API server is away: going on with what is known"),
        }
    }
}

struct Agent {
    api: Api<NodeCapsules>,
    name: String,
    node: Node,
    /// What it has done; from the object's status when it starts.
    done: Option<Vec<Done>>,
    /// Which object was told.
    uid: Option<String>,
    /// The status that the API server has taken last.
    told: Option<NodeCapsulesStatus>,
}

impl Agent {
    /// Does what is to be done; how long until it is to look again.
    async fn reconcile(&mut self, object: &NodeCapsules) -> Duration {
        if self.uid != object.uid() {
            // Another of its name: nothing was said to it yet.
            (self.uid, self.told) = (object.uid(), None);
        }
        let of_object = || object.status.as_ref().map(|s| s.attachments.clone()).unwrap_or_default();
        let before = self.done.get_or_insert_with(of_object).clone();
        let assigned = &object.spec.attachments;
        let (present, versions) = match self.look(object).await {
            Ok(looked) => looked,
            Err(error) => {
                tracing::warn!(error = error.message(), "capsuled does not answer");
                return SOON;
            }
        };
        let planned = plan(assigned, &before, &present, &versions);
        self.done = Some(planned.iter().map(|one| one.done.clone()).collect());
        // Nothing is attached that nobody could know to be this agent's, by what the API server has.
        let known =
            self.told.as_ref().or(object.status.as_ref()).map_or(&[][..], |status| &status.attachments);
        let is_new = |one: &Planned| {
            let is_own = |done: &&Done| is_of(done, &one.done) && !done.found;
            matches!(one.step, Step::Attach(_)) && !known.iter().any(|done| is_own(&done))
        };
        if planned.iter().any(is_new) && !self.tell(object, true).await {
            return SOON;
        }
        let work = planned.into_iter().map(|one| take(&self.node, one));
        let done: Vec<Done> =
            stream::iter(work).buffered(AT_ONCE).filter_map(async |done| done).collect().await;
        let pause = pause_after(&done);
        self.done = Some(done);
        if self.tell(object, false).await { pause } else { SOON }
    }

    async fn look(
        &self,
        object: &NodeCapsules,
    ) -> Result<(Vec<plan::Present>, plan::Versions), tonic::Status> {
        Ok((self.node.present().await?, self.node.versions(&object.spec.attachments).await?))
    }

    /// Says how far all is; with `first`, of no other than this state of the object, so that whoever sees a later one has heard it. Whether
    /// the API server has taken it, or had it.
    async fn tell(&mut self, object: &NodeCapsules, first: bool) -> bool {
        let attachments = self.done.clone().unwrap_or_default();
        let status = NodeCapsulesStatus { observed_generation: object.metadata.generation, attachments };
        if self.told.as_ref().or(object.status.as_ref()) == Some(&status) {
            return true;
        }
        let mut patch = json!({
            "apiVersion": NodeCapsules::api_version(&()), "kind": NodeCapsules::kind(&()),
            "metadata": { "name": self.name, "uid": object.uid() }, "status": status,
        });
        if first {
            patch["metadata"]["resourceVersion"] = json!(object.resource_version());
        }
        let (name, params) = (object.name_any(), PatchParams::apply(MANAGER).force());
        match bounded(self.api.patch_status(&name, &params, &Patch::Apply(patch))).await {
            Ok(_) => self.told = Some(status),
            // It has changed, and is seen in a moment.
            Err(kube::Error::Api(error)) if first && error.code == 409 => return false,
            Err(error) => {
                tracing::warn!(%error, "the API server does not take the status");
                return false;
            }
        }
        true
    }
}

/// What is not there yet may be in a moment; what cannot be will not be soon.
fn pause_after(done: &[Done]) -> Duration {
    let worst = done.iter().map(|done| match done.state {
        State::Attached => CALM,
        State::Failed => LATER,
        State::Waiting | State::Detaching => SOON,
    });
    worst.min().unwrap_or(CALM)
}

fn is_of(one: &Done, other: &Done) -> bool {
    (&one.owner, &one.pod, &one.container) == (&other.owner, &other.pod, &other.container)
}

/// Takes a step. What is left to say of it; nothing of what is gone.
async fn take(node: &Node, planned: Planned) -> Option<Done> {
    let Planned { mut done, step } = planned;
    let outcome = match &step {
        Step::Rest => return Some(done),
        Step::Attach(wanted) => node.attach(wanted).await.map(|(version, target)| {
            (done.version, done.target) = (Some(version), Some(target));
        }),
        Step::Move { version } => {
            node.upgrade(&done, version).await.map(|version| done.version = Some(version))
        }
        Step::Detach => match node.detach(&done).await {
            Ok(()) => return None,
            Err(error) => Err(error),
        },
    };
    match outcome {
        Ok(()) => done.state = State::Attached,
        Err(error) => {
            let (pod, container, capsule) = (&done.pod.name, &done.container, &done.capsule);
            tracing::info!(pod, container, capsule, error = error.message(), "not done");
            // Its container is not there yet, or does not run, or not any more; nobody need be told.
            let no_task = error.code() == Code::FailedPrecondition && error.message().contains("not running");
            let waits = matches!(step, Step::Attach(_)) && (error.code() == Code::NotFound || no_task);
            if !waits && step != Step::Detach {
                done.state = State::Failed;
            }
            done.message = (!waits && !is_away(&error)).then(|| error.message().to_owned());
        }
    }
    Some(done)
}
