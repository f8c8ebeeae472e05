//! The calls: attach and detach. Those that move attachments are in [`super::moves`], what lists them in [`super::listing`].
//!
//! Each runs to its end once begun, whatever becomes of the caller: `service` spawns it.

use std::time::SystemTime;

use overlayfs_utils::ContainerPath;

use super::{
    Attachments,
    containers::Wanted as WantedContainer,
    devices::Moment,
    effects::{is_refusal, removals},
    environment::environment,
    error::AttachmentError,
    model::{Attachment, ContainerKey, Content, Phase},
    plan,
    records::{Locked, OfContainer},
    restore::is_waiting,
    set::Planned,
};
use crate::{
    capsules::model::{CapsuleName, Digest, Mode, Version},
    devices::DeviceName,
    events::{Event, Kind},
    fresh_id,
    metrics::Step,
    resources::Wanted,
    shims::{ShimError, User},
    uppers::{self, model::Fate},
};

/// One capsule to attach, as asked for.
#[derive(Debug, Clone)]
pub struct AttachSpec {
    /// The capsule.
    pub capsule: CapsuleName,
    /// The newest when `None`.
    pub version: Option<Version>,
    /// The capsule's default when `None`.
    pub target: Option<String>,
    /// The capsule's default, or `ro`, when `None`.
    pub mode: Option<Mode>,
    /// Refused unless the version has this digest.
    pub digest: Option<Digest>,
    /// Where the container has this version, it is not attached once more.
    pub unless_present: bool,
    /// What it is to write to; read-only when `None`.
    pub writable: Option<uppers::Wanted>,
    /// What it is to do to the container's limits, over what the capsule says.
    pub resources: Wanted,
    /// The entry of the container's annotation that this is; none when a person asks.
    pub named: Option<String>,
}

/// The attachments of one capsule in one container that a call is about.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The container.
    pub container: WantedContainer,
    /// The capsule.
    pub capsule: CapsuleName,
    /// Only the one at this target.
    pub target: Option<String>,
}

impl Attachments {
    /// Makes a set of attachments: all of them or none.
    pub async fn attach(
        &self,
        container: &WantedContainer,
        specs: &[AttachSpec],
    ) -> Result<Vec<Attachment>, AttachmentError> {
        self.attach_with(container, specs, &[]).await
    }

    /// The same with devices, each an attachment by itself. There need be no capsule.
    pub async fn attach_with(
        &self,
        container: &WantedContainer,
        specs: &[AttachSpec],
        devices: &[DeviceName],
    ) -> Result<Vec<Attachment>, AttachmentError> {
        self.attach_at(container, specs, devices, Moment::Live).await
    }

    pub(super) async fn attach_at(
        &self,
        container: &WantedContainer,
        specs: &[AttachSpec],
        devices: &[DeviceName],
        moment: Moment,
    ) -> Result<Vec<Attachment>, AttachmentError> {
        let key = self.find_hotpluggable(container).await?;
        let mut reservation = self.budgets.open();
        for name in specs.iter().filter_map(|spec| spec.writable.as_ref()?.name.as_ref()) {
            self.look_whether_it_drains(name).await;
        }
        let mut existing = self.records.lock(&key).await;
        let alone = specs.is_empty() && !devices.is_empty();
        let planning = async { if alone { Ok(Vec::new()) } else { self.plan_set(specs, &existing).await } };
        let mut planned = self.timed(Step::Plan, planning).await?;
        planned.retain(|one| !one.present);
        let taken: Vec<(ContainerPath, String)> = planned
            .iter()
            .map(|one| (one.target.clone(), format!("{}@{}", one.version.name, one.version.version)))
            .collect();
        plan::plan_free(&key, &existing, &taken)?;

        let preparing = self.intend_set(&key, &existing, planned, devices, moment);
        let intents = self.timed(Step::Prepare, preparing).await?;
        if let Err(error) = self.take_budget(&mut reservation, &intents).await {
            self.end(&intents);
            return Err(error);
        }
        self.carry_out(&key, &mut existing, intents, "attach", None).await
    }

    /// What is to be written down of a set; on a failure nothing is held for it.
    async fn intend_set(
        &self,
        key: &ContainerKey,
        existing: &Locked,
        planned: Vec<Planned>,
        devices: &[DeviceName],
        moment: Moment,
    ) -> Result<Vec<Attachment>, AttachmentError> {
        let mut intents = self.intend_devices(key, existing, devices).await?;
        for one in planned {
            match self.intend(key, one, moment).await {
                Ok(intent) => intents.push(intent),
                Err(error) => {
                    self.end(&intents);
                    return Err(error);
                }
            }
        }
        Ok(intents)
    }

    /// Takes a capsule's attachments in a container away: all of them or none. Beside each, who still uses it.
    pub async fn detach(
        &self,
        choice: &Choice,
        lazy: bool,
        fate: Option<&Fate>,
    ) -> Result<Vec<(Attachment, Vec<User>)>, AttachmentError> {
        let key = self.containers.find(&choice.container).await?;
        let existing = self.records.lock(&key).await;
        let target = choice.target.as_deref().map(ContainerPath::parse).transpose()?;
        let chosen = plan::plan_chosen(&key, &existing, &choice.capsule, target.as_ref())?;
        self.detach_chosen(key, existing, chosen, lazy, fate).await
    }

    /// Takes these away: all of them or none.
    pub(super) async fn detach_chosen(
        &self,
        key: ContainerKey,
        existing: Locked,
        chosen: Vec<Attachment>,
        lazy: bool,
        fate: Option<&Fate>,
    ) -> Result<Vec<(Attachment, Vec<User>)>, AttachmentError> {
        let detached = self.detach_all(key, existing, chosen.clone(), lazy, fate).await;
        detached.map_err(|error| error.of("detach", &chosen))
    }

    async fn detach_all(
        &self,
        key: ContainerKey,
        mut existing: Locked,
        chosen: Vec<Attachment>,
        lazy: bool,
        fate: Option<&Fate>,
    ) -> Result<Vec<(Attachment, Vec<User>)>, AttachmentError> {
        let gone: Vec<_> = chosen.iter().map(|a| (a, None)).collect();
        self.check_requirements(&existing, &gone, &[])?;
        let chosen = plan::plan_fates(&key, &chosen, fate)?;
        let intent = |(a, fate): &(Attachment, Option<Fate>)| {
            let phase = Phase::Detaching { lazy, fate: fate.clone() };
            Attachment { phase, ..a.clone() }
        };
        let mut intents: Vec<Attachment> = chosen.iter().map(intent).collect();
        let reserved = self.reserve(&intents).await?;
        let chosen: Vec<Attachment> = chosen.into_iter().map(|(attachment, _)| attachment).collect();
        plan::plan_call(&mut intents, &fresh_id(), false);
        self.timed(Step::Intend, self.ledger.intend(&intents)).await?;
        let unmounting = self.unmount(&key, &mut existing, &chosen, lazy);
        let draining = self.timed(Step::Unmount, unmounting).await?;
        if let Err(error) = self.keep_written(&intents).await {
            self.put_back(&mut existing, &chosen, &chosen).await;
            return Err(error);
        }
        if let Err(error) = self.timed(Step::Keep, self.ledger.keep_no_more(&chosen)).await {
            self.keep_no_more(&intents).await;
            self.put_back(&mut existing, &chosen, &chosen).await;
            return Err(error.into());
        }
        reserved.stay();
        let done = self.ledger.done(removals(&chosen), detached(&chosen, &draining));
        self.timed(Step::Record, done).await;
        existing.retain(|a| !chosen.iter().any(|c| c.id == a.id));
        self.look_after_limits(&key, &chosen);
        let may_drain = chosen.iter().any(|a| a.replaced) || draining.iter().any(|users| !users.is_empty());
        if may_drain {
            self.hold_draining(&key).await;
        }
        self.end(&chosen);
        drop(existing);
        self.records.tidy(&key);
        Ok(chosen.into_iter().zip(draining).collect())
    }

    /// Has the shim unmount all of them, or none. For each, who still uses it.
    async fn unmount(
        &self,
        key: &ContainerKey,
        existing: &mut OfContainer,
        chosen: &[Attachment],
        lazy: bool,
    ) -> Result<Vec<Vec<User>>, AttachmentError> {
        let mut draining = Vec::with_capacity(chosen.len());
        // Newest first: a later attachment may lie on an earlier one.
        for (done, attachment) in chosen.iter().rev().enumerate() {
            if is_waiting(attachment) {
                draining.push(Vec::new());
                continue;
            }
            let mut unsure = false;
            let failed = match self.shims.detach(attachment, lazy).await {
                Ok((true, users)) => {
                    draining.push(users);
                    continue;
                }
                Ok((false, users)) => AttachmentError::InUse {
                    container: key.clone(),
                    label: attachment.label(),
                    target: attachment.target.clone(),
                    users,
                },
                Err(error) => {
                    unsure = !is_refusal(&error);
                    self.settle_if_unsure(key, &error);
                    self.explain(key, error).await.of("detach", std::slice::from_ref(attachment))
                }
            };
            let gone = &chosen[chosen.len() - done..];
            self.put_back(existing, gone, chosen).await;
            if unsure {
                self.undo_when_known(existing, attachment, lazy);
            }
            return Err(failed);
        }
        draining.reverse();
        Ok(draining)
    }

    /// Marks the container, pins the version's directories and writes down what is to be attached, in memory.
    pub(super) async fn intend(
        &self,
        key: &ContainerKey,
        planned: Planned,
        moment: Moment,
    ) -> Result<Attachment, AttachmentError> {
        let marked = self.mark(key);
        let Planned { version, target, mode, writable, resources: asked, named, .. } = planned;
        let declared = version.declared()?;
        let (wanted, resources) = self.resources_of(&version, &declared, &asked)?;
        let devices = self.devices_of(&declared, moment).await?;
        let mut intent = Attachment {
            id: fresh_id(),
            container: key.clone(),
            created: self.containers.known(key).and_then(|known| known.created),
            named,
            capsule: version.name.clone(),
            devices,
            target: target.as_str().to_owned(),
            mode,
            upper: None,
            asked: asked.record(),
            current: Content {
                version: version.version.clone(),
                digest: version.digest.clone(),
                layers: Vec::new(),
                since: SystemTime::now(),
                wanted,
                resources,
                env: environment(&declared),
                denied: declared.seccomp.calls(),
            },
            history: Vec::new(),
            replaced: false,
            phase: Phase::Attaching,
            call: None,
        };
        marked.map_err(|error| error.of("attach", std::slice::from_ref(&intent)))?;
        match self.capsules.pin_published(&version, &intent.pin_owner()).await {
            Ok(layers) => intent.current.layers = layers,
            Err(error) => {
                self.snapshots.unpin(&intent.pin_owner());
                return Err(error.into());
            }
        }
        if let Some(wanted) = writable {
            match self.claim(wanted, &intent, &version).await {
                Ok(upper) => intent.upper = Some(upper),
                Err(error) => {
                    self.snapshots.unpin(&intent.pin_owner());
                    return Err(error.of("attach", std::slice::from_ref(&intent)));
                }
            }
        }
        Ok(intent)
    }

    /// Has the container's next start ask for its attachments.
    pub(super) fn mark(&self, key: &ContainerKey) -> Result<(), AttachmentError> {
        self.marks.set(key).map_err(|source| AttachmentError::Mark { path: self.marks.path(key), source })
    }

    /// The container that is meant, if a shim of ours serves it.
    pub(super) async fn find_hotpluggable(
        &self,
        wanted: &WantedContainer,
    ) -> Result<ContainerKey, AttachmentError> {
        let key = self.containers.find(wanted).await?;
        if self.shims.serves(&key) {
            self.containers.refresh_unless_followed(&key).await;
            return Ok(key);
        }
        Err(self.explain(&key, ShimError::NoShim(key.clone())).await)
    }

    /// Says why a container has no shim; other errors speak for themselves.
    pub(super) async fn explain(&self, key: &ContainerKey, error: ShimError) -> AttachmentError {
        match error {
            ShimError::NoShim(_) => match self.why_no_shim(key).await {
                Ok(reason) | Err(reason) => reason,
            },
            other => other.into(),
        }
    }

    async fn why_no_shim(&self, key: &ContainerKey) -> Result<AttachmentError, AttachmentError> {
        self.containers.refresh(key).await?;
        let runtime = match self.containers.known(key) {
            Some(known) if known.stopped => {
                return Ok(AttachmentError::NotRunning {
                    container: key.clone(),
                    state: "not there".to_owned(),
                });
            }
            Some(known) => known.runtime,
            None => {
                let (id, namespace) = (key.id.clone(), key.namespace.clone());
                return Ok(AttachmentError::UnknownContainer { id, namespace, unanswered: None });
            }
        };
        if runtime != RUNTIME {
            return Ok(AttachmentError::OtherRuntime { container: key.clone(), runtime });
        }
        let state = self.containerd.namespace(&key.namespace)?.task_state(&key.id).await?;
        let state = state.unwrap_or_else(|| "not there".to_owned());
        Ok(AttachmentError::NotRunning { container: key.clone(), state })
    }
}

/// What is told of attachments that are detached, and who still uses each.
fn detached(all: &[Attachment], users: &[Vec<User>]) -> Vec<Event> {
    let told = |(attachment, users): (&Attachment, &Vec<User>)| {
        let event = Event::of(attachment, Kind::Detached);
        if users.is_empty() { event } else { event.because(format!("draining: {} users", users.len())) }
    };
    all.iter().zip(users).map(told).collect()
}

/// The runtime that can hot-plug.
const RUNTIME: &str = "io.containerd.capsule.v1";
