//! Devices of attachments: by themselves, or those that a capsule declares.
//!
//! What they ask for is settled before anything is on record, and is part of the record: undoing a call, and the container's next task,
//! do what was done, whatever the specs say by then.

use std::{collections::BTreeMap, time::SystemTime};

use tokio::task::spawn_blocking;

use super::{
    Attachments,
    containers::Wanted as WantedContainer,
    error::AttachmentError,
    model::{Attachment, ContainerKey, Content, Devices, Phase},
};
use crate::{
    capsules::{
        Resolved,
        declared::Declared,
        model::{CapsuleName, Digest, Mode, OrNone, Version},
    },
    devices::{DeviceName, Edits, ResolveError},
    fresh_id,
    resources::Resources,
    shims::User,
};

/// Why devices cannot be attached or detached. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// The node has none of the name, or not now.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// They ask for what only a container that is being created can be given.
    #[error(
        "{what} cannot be given to a live container, and {names} asks for it: create the container with its devices"
    )]
    NotLive {
        /// The devices.
        names: String,
        /// What.
        what: String,
    },
    /// They ask for two things at one place.
    #[error(
        "{names} asks for two different things at {path} in the container: see its specs in \"capsulectl devices\""
    )]
    Conflict {
        /// The devices.
        names: String,
        /// The place.
        path: String,
    },
    /// Whoever may make pods asks for it.
    #[error(
        "pods may not name {name}: add {} to devices.pods_may_name in capsuled's configuration, or let a device plugin give it",
        .name.kind()
    )]
    NotForPods {
        /// The device.
        name: DeviceName,
    },
    /// The container has it.
    #[error("{name} is attached to {container} already")]
    Attached {
        /// The container.
        container: ContainerKey,
        /// The device.
        name: DeviceName,
    },
    /// The container has none by itself.
    #[error("{name} is not attached to {container}{}: see \"capsulectl ps\"", with(.capsule))]
    NotAttached {
        /// The container.
        container: ContainerKey,
        /// The device.
        name: DeviceName,
        /// The capsule that has it, if one does.
        capsule: Option<CapsuleName>,
    },
    /// Another version declares other devices.
    #[error(
        "{capsule}@{version} declares other devices ({}) than {label} has ({}): detach it, then attach the other version",
        list(.declared), list(.has)
    )]
    Other {
        /// The capsule.
        capsule: CapsuleName,
        /// The version that was to be.
        version: Version,
        /// The one that is.
        label: String,
        /// What was to be.
        declared: Vec<String>,
        /// What is.
        has: Vec<String>,
    },
    /// The specs could not be read on a thread of their own.
    #[error("cannot read the devices' specs: {0}")]
    Thread(String),
}

/// When a container is given devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// While it runs, or before its first process where its spec has nothing of them.
    Live,
    /// Before its first process, with a spec that has what a live container cannot be given.
    Created,
}

fn with(capsule: &Option<CapsuleName>) -> String {
    capsule.as_ref().map(|capsule| format!(" by itself, but with {capsule}")).unwrap_or_default()
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

impl Attachments {
    /// Takes devices away that were attached by themselves: all of them or none. Beside each, who still has it open.
    ///
    /// # Errors
    /// As [`Attachments::detach`]; [`DevicesError::NotAttached`].
    pub async fn detach_devices(
        &self,
        container: &WantedContainer,
        names: &[DeviceName],
        lazy: bool,
    ) -> Result<Vec<(Attachment, Vec<User>)>, AttachmentError> {
        let key = self.containers.find(container).await?;
        let existing = self.records.lock(&key).await;
        let chosen = names.iter().map(|name| plan_alone(&key, &existing, name).cloned());
        let mut chosen = chosen.collect::<Result<Vec<_>, _>>()?;
        // In the order in which they came, or the last would not go first.
        chosen.sort_by_key(|a| existing.iter().position(|other| other.id == a.id));
        self.detach_chosen(key, existing, chosen, lazy, None).await
    }

    /// All attachments that have devices, in any container.
    pub fn with_any_devices(&self) -> Vec<Attachment> {
        let all = self.records.containers().into_iter().flat_map(|key| self.records.shown(&key));
        all.filter(|attachment| attachment.devices.is_some()).collect()
    }

    /// Settles what is to be attached of devices by themselves, in memory.
    pub(super) async fn intend_devices(
        &self,
        key: &ContainerKey,
        existing: &[Attachment],
        names: &[DeviceName],
    ) -> Result<Vec<Attachment>, AttachmentError> {
        let mut intents = Vec::with_capacity(names.len());
        for name in names {
            if plan_alone(key, existing, name).is_ok() {
                return Err(DevicesError::Attached { container: key.clone(), name: name.clone() }.into());
            }
            let devices = self.resolve_devices(vec![name.to_string()], Moment::Live).await?;
            intents.push(self.intend_device(key, devices));
        }
        if !intents.is_empty() {
            self.mark(key)?;
        }
        Ok(intents)
    }

    fn intend_device(&self, key: &ContainerKey, devices: Devices) -> Attachment {
        Attachment {
            id: fresh_id(),
            container: key.clone(),
            created: self.containers.known(key).and_then(|known| known.created),
            named: None,
            capsule: CapsuleName::none(),
            devices: Some(devices),
            target: String::new(),
            mode: Mode::Ro,
            upper: None,
            asked: Resources::default(),
            current: Content {
                version: Version::none(),
                digest: Digest::none(),
                layers: Vec::new(),
                since: SystemTime::now(),
                wanted: Resources::default(),
                resources: Resources::default(),
                env: Vec::new(),
                denied: Vec::new(),
            },
            history: Vec::new(),
            replaced: false,
            phase: Phase::Attaching,
            call: None,
        }
    }

    /// What the devices that a version declares ask for; nothing when it declares none.
    pub(super) async fn devices_of(
        &self,
        declared: &Declared,
        moment: Moment,
    ) -> Result<Option<Devices>, AttachmentError> {
        let names = declared.devices.clone();
        if names.is_empty() { Ok(None) } else { self.resolve_devices(names, moment).await.map(Some) }
    }

    async fn resolve_devices(&self, names: Vec<String>, moment: Moment) -> Result<Devices, AttachmentError> {
        let edits = self.resolve_edits(names.clone()).await?;
        if moment == Moment::Live {
            check_live(&names, &edits)?;
        }
        let edits = plan_places(&names, edits)?;
        Ok(Devices { names, edits, refuse_foreign: self.refuse_foreign })
    }

    /// What devices ask for.
    pub(super) async fn resolve_edits(&self, names: Vec<String>) -> Result<Edits, DevicesError> {
        let registry = self.registry.clone();
        // Reads files, and looks at nodes of the host.
        let resolved = spawn_blocking(move || {
            let texts: Vec<&str> = names.iter().map(String::as_str).collect();
            registry.resolve(&texts)
        });
        let resolved = resolved.await.map_err(|error| DevicesError::Thread(error.to_string()))?;
        Ok(resolved?)
    }
}

/// Refuses to move an attachment to a version that declares other devices: they would have to change with no instant at which one is
/// missing, which nothing here can do.
pub(super) fn check_same_devices(
    attachment: &Attachment,
    to: &Resolved,
    declared: &Declared,
) -> Result<(), AttachmentError> {
    if declared.devices == attachment.device_names() {
        return Ok(());
    }
    let other = DevicesError::Other {
        capsule: to.name.clone(),
        version: to.version.clone(),
        label: attachment.label(),
        declared: declared.devices.clone(),
        has: attachment.device_names().to_vec(),
    };
    Err(other.into())
}

/// The attachment of a device by itself.
fn plan_alone<'a>(
    container: &ContainerKey,
    existing: &'a [Attachment],
    name: &DeviceName,
) -> Result<&'a Attachment, DevicesError> {
    let text = name.to_string();
    let has = |attachment: &&Attachment| attachment.device_names().contains(&text);
    existing.iter().filter(has).find(|attachment| !attachment.has_capsule()).ok_or_else(|| {
        let capsule = existing.iter().find(has).map(|attachment| attachment.capsule.clone());
        DevicesError::NotAttached { container: container.clone(), name: name.clone(), capsule }
    })
}

/// Refuses what a live container cannot be given.
fn check_live(names: &[String], edits: &Edits) -> Result<(), DevicesError> {
    let not_live = |what: String| DevicesError::NotLive { names: list(names), what };
    if let Some(device) = edits.net_devices.first() {
        return Err(not_live(format!("the network interface {}", device.host_interface)));
    }
    if edits.intel_rdt.is_some() {
        return Err(not_live("a class of Intel's resource director".to_owned()));
    }
    if let Some(hook) = edits.hooks.iter().find(|hook| !hook.is_for_live()) {
        return Err(not_live(format!("a hook of the point {} ({})", hook.point.name(), hook.path)));
    }
    if let Some(mount) = edits.mounts.iter().find(|mount| !mount.is_bind()) {
        return Err(not_live(format!("a mount of type {} at {}", mount.kind, mount.container_path)));
    }
    Ok(())
}

/// What devices ask for, each thing once.
fn plan_places(names: &[String], mut edits: Edits) -> Result<Edits, DevicesError> {
    let conflict = |path: &str| DevicesError::Conflict { names: list(names), path: path.to_owned() };
    edits.nodes = once(edits.nodes, |node| &node.path).map_err(|path| conflict(&path))?;
    edits.mounts = once(edits.mounts, |mount| &mount.container_path).map_err(|path| conflict(&path))?;
    let taken = edits.nodes.iter().find(|node| edits.mounts.iter().any(|m| m.container_path == node.path));
    if let Some(node) = taken {
        return Err(conflict(&node.path));
    }
    let hooks = std::mem::take(&mut edits.hooks);
    for hook in hooks {
        if !edits.hooks.contains(&hook) {
            edits.hooks.push(hook);
        }
    }
    Ok(edits)
}

/// What is asked for twice, once. The key of what is asked for in two ways.
fn once<T: PartialEq, K: Ord + Clone>(all: Vec<T>, key: impl Fn(&T) -> &K) -> Result<Vec<T>, K> {
    let mut places: BTreeMap<K, usize> = BTreeMap::new();
    let mut kept: Vec<T> = Vec::with_capacity(all.len());
    for one in all {
        match places.get(key(&one)) {
            Some(at) if kept[*at] == one => {}
            Some(_) => return Err(key(&one).clone()),
            None => {
                places.insert(key(&one).clone(), kept.len());
                kept.push(one);
            }
        }
    }
    Ok(kept)
}
