//! The controller: from pods and `CapsuleAttachment`s to what each node is told, and back from what nodes say to what each attachment's
//! status says. One of it works at a time.
//!
//! Whatever changes, all is planned anew from what is known (three reflectors), and only what differs is written. So there is no state to
//! lose, and a change that was missed is made good by the next pass.

mod plan;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream::select_all};
use k8s_openapi::{
    api::core::v1::{Node, Pod},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt as _, reflector, reflector::Store, watcher},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::{sync::Notify, time::timeout};

use self::plan::{Assignments, assign, is_going, owner_of};
use crate::{
    api::{Assigned, CapsuleAttachment, Done, NodeCapsules},
    bounded,
};

/// Who has written a field.
const MANAGER: &str = "capsule-controller";
/// An attachment with it is there until no container has what it brought.
const FINALIZER: &str = "resourcecapsules.io/detached";
/// How long changes are gathered before a pass.
const GATHER: Duration = Duration::from_millis(200);
/// How long until a pass is made in any case.
const CALM: Duration = Duration::from_secs(300);
/// The same after one that could not write all.
const AGAIN: Duration = Duration::from_secs(5);
/// How many objects are written at once.
const AT_ONCE: usize = 16;

/// Serves the cluster until the process ends.
///
/// # Errors
/// A watch has ended.
pub async fn run(client: Client) -> anyhow::Result<()> {
    let changed = Arc::new(Notify::new());
    let (attachments, one) = follow(Api::<CapsuleAttachment>::all(client.clone()), &changed);
    let (nodes, two) = follow(Api::<NodeCapsules>::all(client.clone()), &changed);
    let (pods, three) = follow(Api::<Pod>::all(client.clone()), &changed);
    let controller = Controller { client, attachments, nodes, pods };
    let watching = select_all([one, two, three]).collect::<Vec<()>>();
    tokio::select! {
        _ = watching => anyhow::bail!("a watch has ended"),
        error = controller.work(&changed) => error,
    }
}

type Watch = futures::stream::BoxStream<'static, ()>;

/// All objects of a kind, kept as they are; whoever waits is told of each change.
fn follow<K>(api: Api<K>, changed: &Arc<Notify>) -> (Store<K>, Watch)
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let changed = Arc::clone(changed);
    let events =
        watcher(api, watcher::Config::default()).modify(|object| object.managed_fields_mut().clear());
    let told = events.default_backoff().reflect(writer).map(move |event| match event {
        Ok(_) => changed.notify_one(),
        Err(error) => tracing::warn!(%error, "the API server is away"),
    });
    (store, told.boxed())
}

struct Controller {
    client: Client,
    attachments: Store<CapsuleAttachment>,
    nodes: Store<NodeCapsules>,
    pods: Store<Pod>,
}

impl Controller {
    async fn work(&self, changed: &Notify) -> anyhow::Result<()> {
        self.attachments.wait_until_ready().await?;
        self.nodes.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        let mut pause = GATHER;
        loop {
            // Whichever comes first; then what comes with it.
            let _ = timeout(pause, changed.notified()).await;
            tokio::time::sleep(GATHER).await;
            pause = match self.pass().await {
                Ok(()) => CALM,
                Err(error) => {
                    tracing::warn!(%error, "not all could be written; it is tried again");
                    AGAIN
                }
            };
        }
    }

    async fn pass(&self) -> Result<(), kube::Error> {
        let attachments = self.attachments.state();
        let held = attachments.iter().map(Arc::as_ref).filter(|one| is_held(one));
        let (assignments, unusable) = assign(held, &self.pods.state());
        let nodes = self.nodes.state();
        let mut outcome = Ok(());
        // What is not written now is written by the next pass: one failure keeps nothing else from being tried.
        let mut note =
            |result: Result<(), kube::Error>| outcome = std::mem::replace(&mut outcome, Ok(())).and(result);
        for one in attachments.iter().filter(|one| !is_going(one) && !is_held(one)) {
            note(self.hold(one, true).await);
        }
        let told = self.tell(&assignments, &nodes).await;
        told.into_iter().for_each(&mut note);
        let wanted = status::by_owner(&assignments);
        let mut said = status::Said::new();
        for done in nodes.iter().flat_map(|node| dones(node)) {
            said.entry(done.owner.uid.as_str()).or_default().push(done);
        }
        let told: BTreeSet<&str> =
            nodes.iter().flat_map(|node| &node.spec.attachments).map(|one| one.owner.uid.as_str()).collect();
        let empty = (Vec::new(), Vec::new());
        for one in &attachments {
            let uid = one.uid().unwrap_or_default();
            let wanted = wanted.get(uid.as_str()).unwrap_or(&empty.0);
            let said = said.get(uid.as_str()).unwrap_or(&empty.1);
            if is_going(one) && said.is_empty() && !told.contains(uid.as_str()) {
                if is_held(one) {
                    note(self.hold(one, false).await);
                }
                continue;
            }
            let status = status::status(one, unusable.get(&uid), wanted, said, Timestamp::now());
            if one.status.as_ref() != Some(&status) {
                let patch = json!({
                    "apiVersion": CapsuleAttachment::api_version(&()), "kind": CapsuleAttachment::kind(&()), "status": status,
                });
                let api: Api<CapsuleAttachment> =
                    Api::namespaced(self.client.clone(), &owner_of(one).namespace);
                let params = PatchParams::apply(MANAGER).force();
                note(gone_is_fine(
                    bounded(api.patch_status(&one.name_any(), &params, &Patch::Apply(patch))).await.map(drop),
                ));
            }
        }
        outcome
    }

    /// Tells nodes what they are to have, where that is not what they were told.
    async fn tell(
        &self,
        assignments: &Assignments,
        nodes: &[Arc<NodeCapsules>],
    ) -> Vec<Result<(), kube::Error>> {
        let empty = Vec::new();
        let known: BTreeMap<String, &NodeCapsules> =
            nodes.iter().map(|node| (node.name_any(), node.as_ref())).collect();
        let names: BTreeSet<&String> = assignments.keys().chain(known.keys()).collect();
        let differ = names.into_iter().filter_map(|name| {
            let wanted = assignments.get(name).unwrap_or(&empty);
            let there = known.get(name);
            let same = there.map_or(wanted.is_empty(), |node| node.spec.attachments == *wanted);
            (!same).then(|| (name.clone(), wanted.clone(), there.is_none()))
        });
        let writes = differ.map(|(name, wanted, is_new)| self.tell_node(name, wanted, is_new));
        futures::stream::iter(writes).buffer_unordered(AT_ONCE).collect().await
    }

    /// It goes with the node.
    async fn tell_node(&self, name: String, wanted: Vec<Assigned>, is_new: bool) -> Result<(), kube::Error> {
        let api: Api<NodeCapsules> = Api::all(self.client.clone());
        if !is_new {
            // What is applied at its creation, its owner, stays as it is.
            let only = json!({ "spec": { "attachments": wanted } });
            let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
            return gone_is_fine(bounded(api.patch(&name, &params, &Patch::Merge(only))).await.map(drop));
        }
        let Some(node) = bounded(Api::<Node>::all(self.client.clone()).get_metadata_opt(&name)).await? else {
            // A pod may say so of a node that is gone.
            return Ok(());
        };
        let owner = json!({ "apiVersion": "v1", "kind": "Node", "name": name, "uid": node.metadata.uid });
        let patch = json!({
            "apiVersion": NodeCapsules::api_version(&()), "kind": NodeCapsules::kind(&()),
            "metadata": { "name": name, "ownerReferences": [owner] }, "spec": { "attachments": wanted },
        });
        bounded(api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(patch))).await.map(drop)
    }

    /// Keeps an attachment from going before it is detached everywhere, or lets it go.
    async fn hold(&self, one: &CapsuleAttachment, is_held: bool) -> Result<(), kube::Error> {
        let mut finalizers: Vec<String> =
            one.finalizers().iter().filter(|f| *f != FINALIZER).cloned().collect();
        finalizers.extend(is_held.then(|| FINALIZER.to_owned()));
        // Of this very state: another's finalizer may have come since.
        let patch =
            json!({ "metadata": { "finalizers": finalizers, "resourceVersion": one.resource_version() } });
        let api: Api<CapsuleAttachment> = Api::namespaced(self.client.clone(), &owner_of(one).namespace);
        gone_is_fine(
            bounded(api.patch(&one.name_any(), &PatchParams::default(), &Patch::Merge(patch)))
                .await
                .map(drop),
        )
    }
}

fn dones(node: &NodeCapsules) -> impl Iterator<Item = &Done> {
    node.status.iter().flat_map(|status| &status.attachments)
}

fn is_held(one: &CapsuleAttachment) -> bool {
    one.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
}

fn gone_is_fine(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(error)) if error.code == 404 => Ok(()),
        result => result,
    }
}
