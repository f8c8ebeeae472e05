//! The agent of a node: has its capsuled do what the node's [`NodeCapsules`] says, and says what became of it.
//!
//! It follows that one object and no other. While the API server is away it goes on with what it knows, and says what it did when it is back.

mod checking;
mod devices;
mod fetch;
mod fetching;
mod node;
mod plan;
mod signed;
mod volumes;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;
use tokio::{sync::watch, time::timeout};
use tonic::Code;

use self::{
    checking::Checking,
    fetching::Fetching,
    node::{Node, is_away},
    plan::{Planned, Step, plan},
    signed::{Judged, Signed},
};
use crate::{
    api::{Done, FetchState, Fetched, NodeCapsules, NodeCapsulesStatus, State, VolumeDone, VolumeState, at},
    bounded,
    meters::Meters,
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
pub async fn run(client: Client, settings: Settings, meters: Meters) -> anyhow::Result<()> {
    let api: Api<NodeCapsules> = Api::all(client);
    let (sender, mut seen) = watch::channel(None);
    let only = watcher::Config::default().fields(&format!("metadata.name={}", settings.node));
    let following = tokio::spawn(follow(api.clone(), only, sender));
    let node = Node::new(settings.socket);
    let mut agent = Agent::new(api, settings.node, node, meters);
    let (fetched, checked) = (Arc::clone(&agent.fetching.ended), Arc::clone(&agent.checking.ended));
    loop {
        let latest = seen.borrow_and_update().clone();
        let began = Instant::now();
        let pause = match &latest {
            Some(object) => agent.reconcile(object).await,
            None => {
                agent.meters.set_ready(agent.node.present().await.is_ok());
                CALM
            }
        };
        agent.meters.passed(began.elapsed(), agent.is_good);
        tokio::select! {
            () = fetched.notified() => {}
            () = checked.notified() => {}
            // A watch that has ended says so by its error.
            seen = timeout(pause, seen.changed()) => if let Ok(Err(_)) = seen {
                return Ok(following.await?);
            },
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

/// All that is said of the node.
#[derive(Debug, Clone, Default)]
struct Said {
    done: Vec<Done>,
    fetched: Vec<Fetched>,
    volumes: Vec<VolumeDone>,
}

/// What capsuled has, and what is asked for stands for.
struct Looked {
    present: Vec<plan::Present>,
    held: Vec<devices::Held>,
    versions: plan::Versions,
    volumes: volumes::There,
    there: fetch::There,
    judged: Arc<Judged>,
}

struct Agent {
    api: Api<NodeCapsules>,
    name: String,
    node: Node,
    fetching: Fetching,
    checking: Checking,
    signed: Signed,
    /// What it has done; from the object's status when it starts.
    said: Option<Said>,
    /// Which object was told.
    uid: Option<String>,
    /// The status that the API server has taken last.
    told: Option<NodeCapsulesStatus>,
    /// The last look: capsuled and the API server have answered, and nothing has failed.
    is_good: bool,
    meters: Meters,
}

impl Agent {
    fn new(api: Api<NodeCapsules>, name: String, node: Node, meters: Meters) -> Self {
        Self {
            api,
            name,
            node,
            fetching: Fetching::default(),
            checking: Checking::default(),
            signed: Signed::default(),
            said: None,
            uid: None,
            told: None,
            is_good: true,
            meters,
        }
    }

    /// Does what is to be done; how long until it is to look again.
    async fn reconcile(&mut self, object: &NodeCapsules) -> Duration {
        if self.uid != object.uid() {
            // Another of its name: nothing was said to it yet.
            (self.uid, self.told) = (object.uid(), None);
        }
        let status = object.status.clone().unwrap_or_default();
        let of_object = || Said {
            done: status.attachments.clone(),
            fetched: status.capsules.clone(),
            volumes: status.volumes.clone(),
        };
        let before = self.said.get_or_insert_with(of_object).clone();
        let looked = self.look(object, &before).await;
        self.meters.set_ready(looked.is_ok());
        let looked = match looked {
            Ok(looked) => looked,
            Err(error) => {
                tracing::warn!(error = error.message(), "capsuled does not answer");
                self.is_good = false;
                return SOON;
            }
        };
        let (wanted, there) = (&object.spec.capsules, &looked.there);
        let fetches = self.fetching.plan(wanted, &before.fetched, there, &looked.judged.unsigned).await;
        let mut planned =
            plan(&object.spec.attachments, &before.done, &looked.present, &looked.held, &looked.versions);
        let to_do = &object.spec.volumes;
        let volumes = volumes::plan(to_do, &before.volumes, &looked.volumes, &looked.versions);
        self.checking.take(&mut planned, &self.node, &looked.judged).await;
        for one in &mut planned {
            stamp(&mut one.done, &before.done);
        }
        let said = Said {
            done: planned.iter().map(|one| one.done.clone()).collect(),
            fetched: fetches.iter().map(|(said, _)| said.clone()).collect(),
            volumes: volumes.iter().filter_map(|one| one.said.clone()).collect(),
        };
        let is_known = self.is_known(object, &planned, &said.fetched);
        self.said = Some(said);
        if !is_known && !self.tell(object, true).await {
            self.is_good = false;
            return SOON;
        }
        let fetched = self.fetching.take(fetches, &self.node).await;
        let work = planned.into_iter().map(|one| take(&self.node, one, &looked.judged));
        let work = stream::iter(work).buffered(AT_ONCE).filter_map(async |done| done).collect();
        let (mut done, volumes): (Vec<Done>, _) = tokio::join!(work, volumes::take(volumes, &self.node));
        let pause = pause_after(&done).min(pause_of(&fetched)).min(volumes::pause(to_do, &volumes));
        for one in &mut done {
            stamp(one, &before.done);
        }
        let has_failed = done.iter().any(|one| one.state == State::Failed)
            || volumes.iter().any(|one| one.state == VolumeState::Failed);
        self.said = Some(Said { done, fetched, volumes });
        let is_told = self.tell(object, false).await;
        self.is_good = is_told && !has_failed;
        if is_told { pause } else { SOON }
    }

    /// Nothing is attached or fetched that nobody could know to be this agent's, by what the API server has.
    fn is_known(&self, object: &NodeCapsules, planned: &[Planned], fetched: &[Fetched]) -> bool {
        let none = NodeCapsulesStatus::default();
        let known = self.told.as_ref().or(object.status.as_ref()).unwrap_or(&none);
        let said = |one: &Planned| known.attachments.iter().find(|done| is_of(done, &one.done));
        let is_own = |one: &Planned, devices: &[String]| {
            said(one).is_some_and(|done| devices.iter().all(|device| done.devices.contains(device)))
        };
        let is_step_known = |one: &Planned| match &one.step {
            Step::Attach(wanted) => said(one).is_some_and(|done| !done.found) && is_own(one, &wanted.devices),
            Step::Devices(devices) => is_own(one, devices),
            _ => true,
        };
        let is_fetched = |one: &Fetched| {
            known.capsules.iter().any(|other| other.own && fetch::key(other) == fetch::key(one))
        };
        planned.iter().all(is_step_known) && fetched.iter().filter(|one| one.own).all(is_fetched)
    }

    async fn look(&mut self, object: &NodeCapsules, before: &Said) -> Result<Looked, tonic::Status> {
        let wanted = &object.spec.capsules;
        let there = match wanted.is_empty() && before.fetched.is_empty() {
            true => fetch::There::default(),
            false => self.node.there().await?,
        };
        let judged = self.signed.look(wanted, &there, &self.node).await?;
        let attachments = object.spec.attachments.iter();
        let asked = attachments.map(|one| (one.capsule.as_str(), one.version.as_deref().unwrap_or_default()));
        let (present, held) = self.node.present().await?;
        let asked = asked.chain(volumes::asked(&object.spec.volumes));
        let mut versions = self.node.versions(asked).await?;
        for ((capsule, _), found) in &mut versions {
            let key = found.as_ref().ok().map(|version| (capsule.clone(), version.clone()));
            if let Some(Err(why)) = key.map(|key| judged.allow(&key)) {
                *found = Err(why);
            }
        }
        let volumes = self.node.list_volumes().await?;
        Ok(Looked { present, held, versions, volumes, there, judged: Arc::new(judged) })
    }

    /// Says how far all is; with `first`, of no other than this state of the object, so that whoever sees a later one has heard it. Whether
    /// the API server has taken it, or had it.
    async fn tell(&mut self, object: &NodeCapsules, first: bool) -> bool {
        let Said { done, fetched, volumes } = self.said.clone().unwrap_or_default();
        let status = NodeCapsulesStatus {
            observed_generation: object.metadata.generation,
            attachments: done,
            capsules: fetched,
            volumes,
        };
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
        let written = bounded(self.api.patch_status(&name, &params, &Patch::Apply(patch))).await;
        self.meters.wrote("NodeCapsules/status", written.is_ok());
        match written {
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

/// Whether capsuled was against it, before it did anything.
fn is_refusal(error: &tonic::Status) -> bool {
    matches!(error.code(), Code::InvalidArgument | Code::NotFound | Code::PermissionDenied)
}

/// Whether there is no such container, rather than no such device.
fn is_gone(error: &tonic::Status, devices: &[String]) -> bool {
    let is_about = |device: &String| error.message().contains(&format!("{device}: "));
    error.code() == Code::NotFound && !devices.iter().any(is_about)
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

/// What is on its way says so itself when it is there.
fn pause_of(fetched: &[Fetched]) -> Duration {
    let is_calm = |one: &Fetched| one.state == FetchState::Present;
    if fetched.iter().all(is_calm) { CALM } else { LATER }
}

/// Says since when it is in this state, with what was asked for.
fn stamp(done: &mut Done, before: &[Done]) {
    let last = before.iter().find(|last| is_of(last, done));
    let same = last
        .filter(|last| (last.state, &last.asked, &last.version) == (done.state, &done.asked, &done.version));
    done.since = same.and_then(|last| last.since.clone()).or_else(|| Some(at(Timestamp::now())));
}

fn is_of(one: &Done, other: &Done) -> bool {
    (&one.owner, &one.pod, &one.container) == (&other.owner, &other.pod, &other.container)
}

/// Takes a step. What is left to say of it; nothing of what is gone.
async fn take(node: &Node, planned: Planned, judged: &Judged) -> Option<Done> {
    let Planned { mut done, step } = planned;
    let outcome = match &step {
        Step::Rest => return Some(done),
        Step::Attach(wanted) => node.attach(wanted, judged).await.map(|(version, target)| {
            (done.version, done.target) = (Some(version), Some(target));
        }),
        Step::Move { version, .. } => {
            node.upgrade(&done, version, None, judged).await.map(|version| done.version = Some(version))
        }
        Step::Devices(devices) => node.attach_devices(&done, devices).await,
        Step::Detach { capsule, devices } => match node.detach(&done, *capsule, devices).await {
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
            let devices = match &step {
                Step::Attach(wanted) => Some(&wanted.devices),
                Step::Devices(devices) => Some(devices),
                _ => None,
            };
            let waits = devices.is_some_and(|devices| no_task || is_gone(&error, devices));
            if !waits && !matches!(step, Step::Detach { .. }) {
                done.state = State::Failed;
                // capsuled has refused all of it: who attaches such a device now keeps it. What has failed otherwise may come still.
                let refused = devices.filter(|_| is_refusal(&error));
                done.devices.retain(|device| refused.is_none_or(|refused| !refused.contains(device)));
            }
            done.message = (!waits && !is_away(&error)).then(|| error.message().to_owned());
        }
    }
    Some(done)
}
