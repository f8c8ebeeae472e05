//! Rollouts: which pods of a `CapsuleAttachment` have another version than it says. What one attachment is, and what nodes are told, is
//! [`cluster`](crate::cluster)'s; this changes versions in what it has assigned, and nothing else.

mod facts;
mod plan;
mod prometheus;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use hyper::Uri;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{events::Recorder, reflector::Store},
};
use serde_json::json;
use tokio::sync::Notify;

pub use self::facts::Facts;
use self::{
    plan::{Decision, Known, Member, decide},
    prometheus::Prometheus,
};
use crate::{
    api::{CapsuleAttachment, CapsuleRollout, Phase},
    bounded,
    cluster::Assignments,
    events, merged_by,
    meters::Meters,
};

/// Who has written a field.
const MANAGER: &str = "capsule-rollout";

/// All rollouts of the cluster.
pub struct Rollouts {
    client: Client,
    store: Store<CapsuleRollout>,
    prometheus: Prometheus,
    recorder: Recorder,
    meters: Meters,
}

/// What became of a pass.
#[derive(Debug, Default)]
pub struct Passed {
    /// Something could not be written.
    pub failed: Option<kube::Error>,
    /// Time alone may change something, after this.
    pub again: Option<Duration>,
}

impl Rollouts {
    /// Of these, with the Prometheus of this address.
    pub fn new(
        client: Client,
        store: Store<CapsuleRollout>,
        server: Option<Uri>,
        recorder: Recorder,
        meters: Meters,
        changed: Arc<Notify>,
    ) -> Self {
        Self { client, store, prometheus: Prometheus::new(server, changed), recorder, meters }
    }

    /// Waits until they have been listed.
    ///
    /// # Errors
    /// Their watch has ended.
    pub async fn are_known(&self) -> anyhow::Result<()> {
        Ok(self.store.wait_until_ready().await?)
    }

    /// Changes the versions of what is assigned as the rollouts want it, and says how far they are.
    pub async fn pass(&self, assignments: &mut Assignments, facts: &Facts<'_>) -> Passed {
        let mut rollouts = self.store.state();
        rollouts.retain(|one| !one.status.as_ref().is_some_and(|status| status.phase.is_over()));
        self.prometheus.keep(|uid| rollouts.iter().any(|one| one.metadata.uid.as_deref() == Some(uid)));
        let places = facts.places(assignments, &rollouts);
        let (mut passed, mut decided) = (Passed::default(), Vec::new());
        for group in groups(rollouts).values() {
            for (turn, rollout) in group.iter().enumerate() {
                let other = group.first().filter(|_| turn > 0).map(|other| other.name_any());
                let pods = facts.members(rollout, assignments, &places);
                let updated = self.step(rollout, other.as_deref(), &pods, facts, &mut passed).await;
                decided.push((Arc::clone(rollout), updated));
            }
        }
        for (rollout, updated) in decided {
            facts.give(assignments, &rollout, &updated, &places);
        }
        passed
    }

    /// Decides for one, and writes down what was decided before anything is done: the pods that have the version, by uid. Where it cannot be
    /// written, all is as it was told.
    async fn step(
        &self,
        rollout: &CapsuleRollout,
        other: Option<&str>,
        pods: &BTreeMap<String, Member>,
        facts: &Facts<'_>,
        passed: &mut Passed,
    ) -> BTreeSet<String> {
        let attachment = facts.attachment(rollout);
        let uid = rollout.uid().unwrap_or_default();
        // Who has to wait for something else asks nothing.
        let is_next = other.is_none() && attachment.is_some();
        let query = rollout.spec.health.prometheus.as_ref().filter(|_| is_next);
        let answer = query.and_then(|query| self.prometheus.answer(&uid, &query.query));
        let known = Known {
            version: attachment.map(|one| one.spec.version.as_deref().unwrap_or_default()),
            other,
            pods,
            answer: answer.as_ref().map(|answer| answer.as_ref().copied().map_err(String::as_str)),
            now: Timestamp::now(),
        };
        let decision = decide(rollout, &known);
        let written = self.write(rollout, attachment, &decision).await;
        let written = written.unwrap_or_else(|error| {
            passed.failed.get_or_insert(error);
            false
        });
        let again = if written { decision.again } else { Some(Duration::from_secs(1)) };
        passed.again = [passed.again, again].into_iter().flatten().min();
        if written { decision.updated } else { plan::before(rollout, pods) }
    }

    /// Writes down what was decided, of the very state that it was decided from. Whether it is.
    async fn write(
        &self,
        rollout: &CapsuleRollout,
        attachment: Option<&CapsuleAttachment>,
        decision: &Decision,
    ) -> Result<bool, kube::Error> {
        let namespace = rollout.namespace().unwrap_or_default();
        if rollout.status.as_ref() != Some(&decision.status) {
            // Applied, so that what is not said any more is gone.
            let patch = json!({
                "apiVersion": CapsuleRollout::api_version(&()), "kind": CapsuleRollout::kind(&()),
                "metadata": { "resourceVersion": rollout.resource_version() }, "status": decision.status,
            });
            let api: Api<CapsuleRollout> = Api::namespaced(self.client.clone(), &namespace);
            let params = PatchParams::apply(MANAGER).force();
            let written = bounded(api.patch_status(&rollout.name_any(), &params, &Patch::Apply(patch))).await;
            self.meters.wrote("CapsuleRollout/status", written.is_ok());
            if !taken(written.map(drop))? {
                return Ok(false);
            }
            if rollout.status.as_ref().map(|before| before.phase) != Some(decision.status.phase) {
                self.tell(rollout, decision).await;
            }
        }
        let Some(attachment) = attachment.filter(|_| decision.is_done) else { return Ok(true) };
        let patch = json!({
            "metadata": { "resourceVersion": attachment.resource_version() },
            "spec": { "version": rollout.spec.version },
        });
        let api: Api<CapsuleAttachment> = Api::namespaced(self.client.clone(), &namespace);
        let params = merged_by(MANAGER);
        let written = bounded(api.patch(&attachment.name_any(), &params, &Patch::Merge(patch))).await;
        // Where it has changed meanwhile, that is seen in a moment: what pods were told stays.
        taken(written.map(drop)).map(|_| true)
    }

    async fn tell(&self, rollout: &CapsuleRollout, decision: &Decision) {
        let phase = decision.status.phase;
        let is_bad = matches!(phase, Phase::RollingBack | Phase::Stopped | Phase::Superseded);
        let note = status::message(&decision.status).unwrap_or_default();
        events::publish(&self.recorder, rollout, "Rollout", &format!("{phase:?}"), &note, is_bad).await;
    }
}

/// By namespace and attachment, those first that have begun, then the oldest.
fn groups(rollouts: Vec<Arc<CapsuleRollout>>) -> BTreeMap<(String, String), Vec<Arc<CapsuleRollout>>> {
    let mut groups: BTreeMap<_, Vec<Arc<CapsuleRollout>>> = BTreeMap::new();
    for rollout in rollouts {
        let key = (rollout.namespace().unwrap_or_default(), rollout.spec.attachment.clone());
        groups.entry(key).or_default().push(rollout);
    }
    for group in groups.values_mut() {
        group.sort_by_key(|one| {
            let status = one.status.as_ref();
            let has_begun = status.is_some_and(|status| status.from.is_some());
            let created = one.creation_timestamp().map(|time| time.0);
            (!has_begun, created, one.name_any())
        });
    }
    groups
}

/// Whether it was taken: not where the object has changed or is gone.
fn taken(written: Result<(), kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(()) => Ok(true),
        Err(kube::Error::Api(error)) if matches!(error.code, 404 | 409) => Ok(false),
        Err(error) => Err(error),
    }
}
