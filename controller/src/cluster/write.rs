//! What the controller writes: many objects at once, each in its own call.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::events::Recorder,
};
use serde_json::json;

use super::{
    FINALIZER,
    capsules::Fetches,
    plan::{Assignments, owner_of},
};
use crate::{
    api::{
        Capsule, CapsuleAttachment, CapsuleAttachmentStatus, CapsuleStatus, NodeCapsules, NodeCapsulesSpec,
        VolumeWanted,
    },
    bounded, events, merged_by,
    meters::Meters,
    storage::Nodes,
};

/// Who has written a field.
const MANAGER: &str = "capsule-controller";
/// How many objects are written at once.
const AT_ONCE: usize = 16;
/// As many as the definition of `NodeCapsules` has room for.
const VOLUMES: usize = 1000;

type Written = Vec<Result<(), kube::Error>>;

/// Writes to the API server.
pub struct Writer {
    client: Client,
    recorder: Recorder,
    meters: Meters,
}

impl Writer {
    /// With this client.
    pub fn new(client: Client, recorder: Recorder, meters: Meters) -> Self {
        Self { client, recorder, meters }
    }

    async fn all(
        &self,
        kind: &str,
        writes: impl IntoIterator<Item = impl Future<Output = Result<(), kube::Error>>>,
    ) -> Written {
        let written: Written =
            stream::iter(writes).buffer_unordered(AT_ONCE).map(overtaken_is_fine).collect().await;
        for one in &written {
            self.meters.wrote(kind, one.is_ok());
        }
        written
    }

    /// Tells nodes what they are to have, where that is not what they were told: a node that is not named is to have nothing.
    pub async fn tell(
        &self,
        assignments: &Assignments,
        fetches: &Fetches,
        volumes: Option<&Nodes>,
        known: &BTreeMap<String, &NodeCapsules>,
    ) -> Written {
        let of_volumes = volumes.into_iter().flat_map(Nodes::keys);
        let names: BTreeSet<&String> =
            assignments.keys().chain(fetches.keys()).chain(of_volumes).chain(known.keys()).collect();
        // In a large cluster nearly all are as they should be: nothing of them is copied.
        let writes = names.into_iter().filter_map(|name| {
            let attachments = assignments.get(name).map_or(&[][..], Vec::as_slice);
            let capsules = fetches.get(name).map_or(&[][..], Vec::as_slice);
            let there = known.get(name);
            let (told, fetched, to_do) = there.map_or((&[][..], &[][..], &[][..]), |node| {
                (&node.spec.attachments, &node.spec.capsules, &node.spec.volumes)
            });
            // Where volumes are not known yet all is as it was told.
            let wanted_of = |all: &Nodes| all.get(name).map_or_else(Vec::new, first);
            let volumes = volumes.map_or_else(|| to_do.to_vec(), wanted_of);
            let is_told = there.is_some() && attachments == told && capsules == fetched && volumes == to_do;
            let version = there.map(|node| node.resource_version());
            (!is_told).then(|| {
                let (attachments, capsules) = (attachments.to_vec(), capsules.to_vec());
                self.tell_node(name.clone(), NodeCapsulesSpec { attachments, capsules, volumes }, version)
            })
        });
        self.all("NodeCapsules", writes.collect::<Vec<_>>()).await
    }

    /// It goes with the node.
    async fn tell_node(
        &self,
        name: String,
        wanted: NodeCapsulesSpec,
        there: Option<Option<String>>,
    ) -> Result<(), kube::Error> {
        let api: Api<NodeCapsules> = Api::all(self.client.clone());
        if let Some(version) = there {
            // What is applied at its creation, its owner, stays as it is. Lists are replaced, and an empty one is written out. Of this
            // very state: one that does not lead any more, and does not know it, changes nothing.
            let only = json!({
                "metadata": { "resourceVersion": version },
                "spec": { "attachments": wanted.attachments, "capsules": wanted.capsules, "volumes": wanted.volumes },
            });
            let params = merged_by(MANAGER);
            return bounded(api.patch(&name, &params, &Patch::Merge(only))).await.map(drop);
        }
        let Some(node) = bounded(Api::<Node>::all(self.client.clone()).get_metadata_opt(&name)).await? else {
            // A pod may say so of a node that is gone.
            return Ok(());
        };
        let owner = json!({ "apiVersion": "v1", "kind": "Node", "name": name, "uid": node.metadata.uid });
        let patch = json!({
            "apiVersion": NodeCapsules::api_version(&()), "kind": NodeCapsules::kind(&()),
            "metadata": { "name": name, "ownerReferences": [owner] }, "spec": wanted,
        });
        bounded(api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(patch))).await.map(drop)
    }

    /// Keeps attachments from going before they are detached everywhere, or lets them go.
    pub async fn hold(&self, all: Vec<(Arc<CapsuleAttachment>, bool)>) -> Written {
        let hold = async |(one, is_held): (Arc<CapsuleAttachment>, bool)| {
            let mut finalizers: Vec<String> =
                one.finalizers().iter().filter(|f| *f != FINALIZER).cloned().collect();
            finalizers.extend(is_held.then(|| FINALIZER.to_owned()));
            // Of this very state: another's finalizer may have come since.
            let patch = json!({ "metadata": { "finalizers": finalizers, "resourceVersion": one.resource_version() } });
            let (api, params) = (self.of(&one), PatchParams::default());
            bounded(api.patch(&one.name_any(), &params, &Patch::Merge(patch))).await.map(drop)
        };
        self.all("CapsuleAttachment", all.into_iter().map(hold)).await
    }

    /// Says how far attachments are.
    pub async fn statuses(&self, all: Vec<(Arc<CapsuleAttachment>, CapsuleAttachmentStatus)>) -> Written {
        let write = async |(one, status): (Arc<CapsuleAttachment>, CapsuleAttachmentStatus)| {
            let patch = json!({
                "apiVersion": CapsuleAttachment::api_version(&()), "kind": CapsuleAttachment::kind(&()), "status": status,
            });
            let (api, params) = (self.of(&one), PatchParams::apply(MANAGER).force());
            bounded(api.patch_status(&one.name_any(), &params, &Patch::Apply(patch))).await?;
            self.event(&one, &status).await;
            Ok(())
        };
        self.all("CapsuleAttachment/status", all.into_iter().map(write)).await
    }

    /// Says how far capsules are.
    pub async fn capsules(&self, all: Vec<(Arc<Capsule>, CapsuleStatus)>) -> Written {
        let api: Api<Capsule> = Api::all(self.client.clone());
        let write = async |(one, status): (Arc<Capsule>, CapsuleStatus)| {
            let patch = json!({ "apiVersion": Capsule::api_version(&()), "kind": Capsule::kind(&()), "status": status });
            let params = PatchParams::apply(MANAGER).force();
            bounded(api.patch_status(&one.name_any(), &params, &Patch::Apply(patch))).await.map(drop)
        };
        self.all("Capsule/status", all.into_iter().map(write)).await
    }

    fn of(&self, one: &CapsuleAttachment) -> Api<CapsuleAttachment> {
        Api::namespaced(self.client.clone(), &owner_of(one).namespace)
    }

    /// An event where it is ready or not for another reason than before.
    async fn event(&self, one: &CapsuleAttachment, status: &CapsuleAttachmentStatus) {
        let reason = |status: &CapsuleAttachmentStatus| status.conditions.first().map(|c| c.reason.clone());
        let before = one.status.as_ref().and_then(reason);
        let Some(now) = status.conditions.first().filter(|now| before.as_ref() != Some(&now.reason)) else {
            return;
        };
        let is_bad = matches!(now.reason.as_str(), "Failed" | "Unusable");
        events::publish(&self.recorder, one, "Attach", &now.reason, &now.message, is_bad).await;
    }
}

/// What a node is told of volumes at once; the rest when some are done.
fn first(all: &BTreeMap<String, VolumeWanted>) -> Vec<VolumeWanted> {
    all.values().take(VOLUMES).cloned().collect()
}

/// Whoever is gone needs no word; what has changed meanwhile is seen in a moment, and planned anew.
fn overtaken_is_fine(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(error)) if matches!(error.code, 404 | 409) => Ok(()),
        result => result,
    }
}
