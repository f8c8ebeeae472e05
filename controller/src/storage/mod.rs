//! Volumes of the cluster: the controller provisions, modifies and reclaims what the driver mounts, and makes what `StorageContract`s
//! promise. There are no sidecars: a volume of capsuled's is made by its node's agent, and all else is objects.
//!
//! ```text
//! claims, classes, PersistentVolumes, contracts, what agents say -> plan (pure) -> what nodes are to do   (NodeCapsules.spec.volumes)
//!                                                                              -> what is written         (write.rs)
//! ```
//!
//! What nodes were told is the memory of what was begun: an entry stays until there is a PersistentVolume of it, or the node has removed it.
//! Nothing that was written is removed before a look at the API server itself, rather than at what was followed of it, says that it is
//! nobody's.

mod parameters;
mod plan;
mod quantity;
mod slim;
mod write;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use k8s_openapi::{
    api::{core::v1::Node, storage::v1::StorageClass},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{events::Recorder, reflector::Store, watcher::Config},
};
use tokio::sync::{Mutex, Notify};

pub use self::plan::Nodes;
use self::{
    plan::{Facts, Note, Plan, modify::CONDITIONS},
    slim::{Claim, Modifier, Namespace, Volume},
    write::Writer,
};
pub use crate::csi::{NAME as DRIVER, TOPOLOGY};
use crate::{
    api::{NodeCapsules, StorageContract},
    bounded,
    cluster::Pod,
    meters::Meters,
    watch::{Watch, follow, follow_what},
};

/// Of a PersistentVolume: the version of its capsule that it is to have now.
pub const VERSION: &str = "csi.resourcecapsules.io/version";
/// A PersistentVolume with it is there until what was written to it is removed.
const FINALIZER: &str = "resourcecapsules.io/volume";
/// The label of what was made for a StorageContract, whose name it is; and the finalizer of the contract.
const CONTRACT: &str = "resourcecapsules.io/contract";
/// Kubernetes' own: who has made a PersistentVolume for a claim, and on which node a claim's pod is to run.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// How long a node is not there until it is gone for good, and what was written on it.
const GONE: Duration = Duration::from_secs(600);
/// How long until something is said again that is still so: events are kept for an hour.
const REPEAT: Duration = Duration::from_secs(1200);
/// How long until the API server is asked again for its kinds.
const AGAIN: Duration = Duration::from_secs(5);

/// All volumes of the cluster.
pub struct Storage {
    client: Client,
    writer: Writer,
    classes: Store<StorageClass>,
    /// None where the cluster has no such kind.
    modifiers: Option<Store<Modifier>>,
    namespaces: Store<Namespace>,
    claims: Store<Claim>,
    volumes: Store<Volume>,
    contracts: Store<StorageContract>,
    seen: Mutex<Seen>,
}

/// What is known beside objects. That it is forgotten is nobody's loss.
#[derive(Default)]
struct Seen {
    /// What the last pass told nodes, which may not be seen yet.
    before: Nodes,
    /// What was said of objects, by uid and reason, and when.
    noted: BTreeMap<(Option<String>, &'static str), (String, Instant)>,
    /// Since when nodes that have something are not there.
    missing: BTreeMap<String, Instant>,
}

/// What became of a pass.
#[derive(Default)]
pub struct Passed {
    /// What nodes are to do; none where it is not known yet: then all is as they were told.
    pub nodes: Option<Nodes>,
    /// Something could not be written, or asked.
    pub failed: Option<kube::Error>,
    /// Time alone may change something, after this.
    pub again: Option<Duration>,
}

impl Storage {
    /// Of this cluster; with what has to be polled for anything to be seen. Waits until the API server says which kinds it has.
    pub async fn new(
        client: Client,
        recorder: Recorder,
        meters: Meters,
        changed: &Arc<Notify>,
    ) -> (Self, Vec<Watch>) {
        let all = Config::default;
        let (classes, one) = follow(Api::<DeserializeGuard<StorageClass>>::all(client.clone()), changed);
        let claims = Api::<DeserializeGuard<Claim>>::all(client.clone());
        let (claims, two) = follow_what(claims, all(), changed, Claim::is_of_use, |_| true);
        let volumes = Api::<DeserializeGuard<Volume>>::all(client.clone());
        let (volumes, three) =
            follow_what(volumes, all(), changed, |volume: &Volume| volume.is_ours, |_| true);
        let namespaces = Api::<DeserializeGuard<Namespace>>::all(client.clone());
        let (namespaces, five) = follow(namespaces, changed);
        let (contracts, four) =
            follow(Api::<DeserializeGuard<StorageContract>>::all(client.clone()), changed);
        let mut watches = vec![one, two, three, four, five];
        let modifiers = has_modifiers(&client).await.then(|| {
            let (store, watch) = follow(Api::<DeserializeGuard<Modifier>>::all(client.clone()), changed);
            watches.push(watch);
            store
        });
        let writer = Writer::new(client.clone(), recorder, meters);
        let storage = Self {
            client,
            writer,
            classes,
            modifiers,
            namespaces,
            claims,
            volumes,
            contracts,
            seen: Mutex::default(),
        };
        (storage, watches)
    }

    /// Whether all has been listed once. Where it cannot be, as by an account of before, nothing else waits for it.
    fn is_known(&self) -> bool {
        let is = |ready: Option<Result<(), _>>| {
            ready.is_some_and(|ready: Result<(), kube::runtime::reflector::store::WriterDropped>| {
                ready.is_ok()
            })
        };
        is(self.classes.wait_until_ready().now_or_never())
            && is(self.namespaces.wait_until_ready().now_or_never())
            && is(self.claims.wait_until_ready().now_or_never())
            && is(self.volumes.wait_until_ready().now_or_never())
            && is(self.contracts.wait_until_ready().now_or_never())
            && self.modifiers.as_ref().is_none_or(|store| is(store.wait_until_ready().now_or_never()))
    }

    /// One look at all, and what is written of it.
    pub async fn pass(
        &self,
        nodes: &[Arc<NodeCapsules>],
        machines: &[Arc<PartialObjectMeta<Node>>],
        pods: &[Arc<Pod>],
    ) -> Passed {
        if !self.is_known() {
            return Passed::default();
        }
        let mut seen = self.seen.lock().await;
        let (classes, claims, volumes) = (self.classes.state(), self.claims.state(), self.volumes.state());
        let namespaces = self.namespaces.state();
        let (contracts, modifiers) =
            (self.contracts.state(), self.modifiers.as_ref().map(Store::state).unwrap_or_default());
        let before = std::mem::take(&mut seen.before);
        let there = machines
            .iter()
            .filter_map(|one| Some((one.metadata.name.as_deref()?, one.labels().contains_key(TOPOLOGY))));
        let mut facts = Facts::new(nodes.iter().map(Arc::as_ref), there.collect(), &before, Timestamp::now());
        facts.classes = by_name(&classes);
        facts.modifiers = by_name(&modifiers);
        facts.volumes = by_name(&volumes);
        facts.namespaces = by_name(&namespaces);
        facts.claims =
            claims.iter().filter_map(|one| Some((one.meta().uid.as_deref()?, one.as_ref()))).collect();
        facts.contracts = contracts.iter().collect();
        for pod in pods {
            for claim in &pod.claims {
                let namespace = pod.meta().namespace.as_deref().unwrap_or_default();
                facts.users.entry((namespace, &**claim)).or_default().insert(&*pod.node);
            }
        }
        let again = seen.miss(&mut facts);
        let mut plan = Plan::of(&facts);
        let unasked = self.confirm(&facts, &mut plan).await;
        let (said, unwritten) = self.writer.all(plan.writes).await;
        plan.notes.extend(said);
        self.note(plan.notes, &mut seen).await;
        drop(facts);
        seen.before.clone_from(&plan.nodes);
        Passed { nodes: Some(plan.nodes), failed: unasked.or(unwritten), again }
    }

    /// Has nodes remove what is nobody's, by the API server itself. What is not certain stays as it was told.
    async fn confirm(&self, facts: &Facts<'_>, plan: &mut Plan) -> Option<kube::Error> {
        let api: Api<Volume> = Api::all(self.client.clone());
        let mut failed = None;
        for candidate in std::mem::take(&mut plan.candidates) {
            let told = facts.told_at_all(&candidate.node, &candidate.wanted.id);
            if told.is_some_and(|told| told.goes) {
                plan.settle(candidate, told, true);
                continue;
            }
            let there = bounded(api.get_metadata_opt(&candidate.volume)).await;
            let version =
                there.as_ref().ok().map(|there| there.as_ref().and_then(kube::ResourceExt::resource_version));
            let is_certain = version.is_some_and(|version| version == candidate.version);
            if is_certain {
                tracing::info!(
                    node = candidate.node,
                    volume = candidate.wanted.id,
                    "it is removed: it is nobody's"
                );
            }
            plan.settle(candidate, told, is_certain);
            failed = failed.or(there.err());
        }
        failed
    }

    /// Says what is so, once.
    async fn note(&self, notes: Vec<Note>, seen: &mut Seen) {
        let now = Instant::now();
        let key = |note: &Note| (note.object.uid.clone(), note.reason);
        let keys: BTreeSet<_> = notes.iter().map(key).collect();
        seen.noted.retain(|key, _| keys.contains(key));
        for note in notes {
            let said = seen.noted.get(&key(&note));
            if said.is_none_or(|(said, at)| *said != note.message || now.duration_since(*at) > REPEAT) {
                self.writer.say(&note).await;
                seen.noted.insert(key(&note), (note.message, now));
            }
        }
    }
}

fn by_name<K: kube::Resource>(all: &[Arc<K>]) -> BTreeMap<&str, &K> {
    all.iter().filter_map(|one| Some((one.meta().name.as_deref()?, one.as_ref()))).collect()
}

impl Seen {
    /// Looks which nodes are gone for good; after how long another may be.
    fn miss<'a>(&mut self, facts: &mut Facts<'a>) -> Option<Duration> {
        let of_volumes = facts.volumes.values().filter_map(|volume| volume.node.as_deref());
        let missing: BTreeSet<&'a str> =
            of_volumes.filter(|node| !facts.machines.contains_key(node)).collect();
        self.missing.retain(|node, _| missing.contains(node.as_str()));
        let mut again = None;
        for node in missing {
            let since = self.missing.entry(node.to_owned()).or_insert_with(Instant::now).elapsed();
            match GONE.checked_sub(since).filter(|left| !left.is_zero()) {
                Some(left) => again = [again, Some(left)].into_iter().flatten().min(),
                None => drop(facts.gone.insert(node)),
            }
        }
        again
    }
}

/// Whether the cluster has VolumeAttributesClasses.
async fn has_modifiers(client: &Client) -> bool {
    loop {
        match bounded(client.list_api_group_resources(Modifier::API_VERSION)).await {
            Ok(all) => return all.resources.iter().any(|one| one.name == Modifier::PLURAL),
            Err(kube::Error::Api(error)) if error.code == 404 => return false,
            Err(error) => tracing::warn!(%error, "the API server does not say which kinds it has"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}
