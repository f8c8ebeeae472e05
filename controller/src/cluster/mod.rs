//! The controller: from pods and `CapsuleAttachment`s to what each node is told, and back from what nodes say to what each attachment's
//! status says. One of it works at a time.
//!
//! Whatever changes, all is planned anew from what is known (reflectors), and only what differs is written. So there is no state to lose, and
//! a change that was missed is made good by the next pass.

mod capsules;
mod plan;
mod pod;
mod said;
mod status;
mod write;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream::select_all};
use hyper::Uri;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt as _,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{
        events::{Recorder, Reporter},
        reflector::Store,
        watcher,
        watcher::Config,
    },
};
use tokio::{sync::Notify, time::timeout};

pub use self::{plan::Assignments, pod::Pod};
use self::{
    plan::{assign, is_going},
    said::{Said, said},
    write::Writer,
};
use crate::{
    api::{Capsule, CapsuleAttachment, CapsuleRollout, Done, NodeCapsules},
    meters::Meters,
    rollout::{Facts, Rollouts},
    storage::Storage,
    watch::{follow, follow_what},
};

/// An attachment with it is there until no container has what it brought.
const FINALIZER: &str = "resourcecapsules.io/detached";
/// How long changes are gathered before a pass.
const GATHER: Duration = Duration::from_millis(200);
/// How long until a pass is made in any case.
const CALM: Duration = Duration::from_secs(300);
/// The same after one that could not write all.
const AGAIN: Duration = Duration::from_secs(5);

/// Serves the cluster until the process ends.
///
/// # Errors
/// A watch has ended.
pub async fn run(client: Client, prometheus: Option<Uri>, meters: Meters) -> anyhow::Result<()> {
    let changed = Arc::new(Notify::new());
    let (attachments, one) =
        follow(Api::<DeserializeGuard<CapsuleAttachment>>::all(client.clone()), &changed);
    let (rollouts, two) = follow(Api::<DeserializeGuard<CapsuleRollout>>::all(client.clone()), &changed);
    let (nodes, three) = follow(Api::<DeserializeGuard<NodeCapsules>>::all(client.clone()), &changed);
    // Those that are on a node, and have not ended.
    let living = Config::default().fields("spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed");
    let (pods, four) =
        follow_what(Api::<DeserializeGuard<Pod>>::all(client.clone()), living, &changed, |_| true, |_| true);
    let (capsules, five) = follow(Api::<DeserializeGuard<Capsule>>::all(client.clone()), &changed);
    let machines = Api::<DeserializeGuard<Machine>>::all(client.clone());
    let (machines, six) = follow_what(machines, Config::default(), &changed, |_| true, other_labels());
    let reporter = Reporter { controller: "resourcecapsules.io/controller".to_owned(), instance: None };
    let recorder = Recorder::new(client.clone(), reporter);
    let rollouts = Rollouts::new(
        client.clone(),
        rollouts,
        prometheus,
        recorder.clone(),
        meters.clone(),
        Arc::clone(&changed),
    );
    let (storage, others) = Storage::new(client.clone(), recorder.clone(), meters.clone(), &changed).await;
    let writer = Writer::new(client, recorder, meters.clone());
    let told = Mutex::default();
    let controller =
        Controller { writer, rollouts, storage, attachments, capsules, nodes, machines, pods, meters, told };
    let watching =
        select_all([one, two, three, four, five, six].into_iter().chain(others)).collect::<Vec<()>>();
    tokio::select! {
        _ = watching => anyhow::bail!("a watch has ended"),
        error = controller.work(&changed) => error,
    }
}

type Machine = PartialObjectMeta<Node>;

/// A node says how it is every few minutes, and each time it is another object. Its labels are all that counts here.
fn other_labels() -> impl FnMut(&watcher::Event<Machine>) -> bool + Send + 'static {
    let mut seen = BTreeMap::new();
    move |event| match event {
        watcher::Event::Apply(node) => {
            let labels = node.labels().clone();
            seen.insert(node.name_any(), labels.clone()).is_none_or(|before| before != labels)
        }
        watcher::Event::Delete(node) => seen.remove(&node.name_any()).is_some(),
        _ => true,
    }
}

struct Controller {
    writer: Writer,
    rollouts: Rollouts,
    storage: Storage,
    attachments: Store<CapsuleAttachment>,
    capsules: Store<Capsule>,
    nodes: Store<NodeCapsules>,
    machines: Store<Machine>,
    pods: Store<Pod>,
    meters: Meters,
    /// What the last pass told nodes, which may not have been seen yet.
    told: Mutex<Arc<Assignments>>,
}

impl Controller {
    async fn work(&self, changed: &Notify) -> anyhow::Result<()> {
        self.attachments.wait_until_ready().await?;
        self.rollouts.are_known().await?;
        self.capsules.wait_until_ready().await?;
        self.nodes.wait_until_ready().await?;
        self.machines.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        let mut pause = GATHER;
        loop {
            // Whichever comes first; then what comes with it.
            let _ = timeout(pause, changed.notified()).await;
            tokio::time::sleep(GATHER).await;
            let began = Instant::now();
            let passed = self.pass().await;
            self.meters.passed(began.elapsed(), passed.is_ok());
            self.meters.set_ready(passed.is_ok());
            pause = match passed {
                Ok(again) => again.unwrap_or(CALM).min(CALM),
                Err(error) => {
                    tracing::warn!(%error, "not all could be written; it is tried again");
                    AGAIN
                }
            };
        }
    }

    /// One look at all, and what follows from it. What is not written now is written by the next: one failure keeps nothing else from being
    /// tried. After how long time alone may change something.
    async fn pass(&self) -> Result<Option<Duration>, kube::Error> {
        let (attachments, nodes, pods) = (self.attachments.state(), self.nodes.state(), self.pods.state());
        let held = attachments.iter().map(Arc::as_ref).filter(|one| is_held(one));
        let (mut assignments, unusable) = assign(held, &pods);
        let before = Arc::clone(&self.told.lock().unwrap_or_else(PoisonError::into_inner));
        let told = nodes.iter().flat_map(|node| &node.spec.attachments).chain(before.values().flatten());
        let facts = Facts::new(
            attachments.iter().map(Arc::as_ref),
            pods.iter().map(Arc::as_ref),
            told,
            nodes.iter().flat_map(|node| dones(node).map(|done| (node.name_any(), done))),
        );
        let rolled = self.rollouts.pass(&mut assignments, &facts).await;
        let assignments = Arc::new(assignments);
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&assignments);

        let mut failed = rolled.failed;
        let mut note = |results: Vec<Result<(), kube::Error>>| {
            for error in results.into_iter().filter_map(Result::err) {
                failed.get_or_insert(error);
            }
        };
        let new = attachments.iter().filter(|one| !is_going(one) && !is_held(one));
        note(self.writer.hold(new.map(|one| (Arc::clone(one), true)).collect()).await);
        let capsules = self.capsules.state();
        let machines = self.machines.state();
        let (fetches, useless) = capsules::fetches(&capsules, &machines);
        let stored = self.storage.pass(&nodes, &machines, &pods).await;
        note(stored.failed.map(Err).into_iter().collect());
        let known = nodes.iter().map(|node| (node.name_any(), node.as_ref())).collect();
        note(self.writer.tell(&assignments, &fetches, stored.nodes.as_ref(), &known).await);
        let Said { statuses, gone } = said(&attachments, &nodes, &assignments, &unusable, &before, &facts);
        note(self.writer.statuses(statuses).await);
        note(self.writer.capsules(capsules::statuses(&capsules, &useless, &fetches, &known)).await);
        note(self.writer.hold(gone.into_iter().map(|one| (one, false)).collect()).await);
        let again = [rolled.again, stored.again].into_iter().flatten().min();
        failed.map_or(Ok(again), Err)
    }
}

fn dones(node: &NodeCapsules) -> impl Iterator<Item = &Done> {
    node.status.iter().flat_map(|status| &status.attachments)
}

fn is_held(one: &CapsuleAttachment) -> bool {
    one.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
}
