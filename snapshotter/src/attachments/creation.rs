//! Devices of a container that is being created, and what its capsules deny: what its spec is to have before there is anything to attach to.

use std::collections::{BTreeMap, BTreeSet};

use tonic::Status;

use super::{
    Attachments,
    devices::{DevicesError, Moment},
    environment::environment,
    error::AttachmentError,
    model::{Attachment, ContainerKey},
    named::parse_named,
    plan,
};
use crate::{
    containerd::PODS,
    devices::{DeviceName, Edits, InvalidName, ResolveError},
    full::one_line,
};

/// How the kubelet's annotations begin, with which device plugins give devices. All others whoever makes a pod writes.
const CDI: &str = "cdi.k8s.io/";

/// What a container that is being created asks for.
#[derive(Debug, Clone, Default)]
pub struct Creation {
    /// Annotations that name devices, by key.
    pub devices: Vec<(String, String)>,
    /// The value of the annotation that names attachments, or nothing.
    pub attachments: String,
    /// Whether it is given attachments before its first process.
    pub takes_attachments: bool,
}

/// What a spec is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AtCreation {
    /// Of the devices that annotations name.
    pub own: Edits,
    /// Of those that attachments bring, each thing once.
    pub attached: Edits,
    /// System calls that attachments deny.
    pub denied: BTreeSet<String>,
}

/// Why a container cannot be created as it asks. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum CreationError {
    /// An annotation names what is no device.
    #[error("annotation {key}: {source}")]
    Name {
        /// The annotation.
        key: String,
        /// What is wrong.
        source: InvalidName,
    },
    /// An annotation names a device that cannot be had.
    #[error("annotation {key}: {}", one_line(.source))]
    Device {
        /// The annotation.
        key: String,
        /// What is wrong.
        source: Box<ResolveError>,
    },
    /// A pod names a device that pods may not.
    #[error(
        "annotation {key}: pods may not name devices of the kind {kind}: add it to devices.pods_may_name in capsuled's configuration, or let a device plugin give it"
    )]
    NotForPods {
        /// The annotation.
        key: String,
        /// The device's kind.
        kind: String,
    },
    /// An attachment cannot be made.
    #[error("{}{}", if *.named { "annotation resourcecapsules.io/attach: " } else { "" }, one_line(.source))]
    Attachment {
        /// There is an annotation that names some.
        named: bool,
        /// Why.
        source: Box<AttachmentError>,
    },
    /// The specs could not be read.
    #[error(transparent)]
    Devices(Box<DevicesError>),
}

impl From<CreationError> for Status {
    fn from(error: CreationError) -> Self {
        let message = error.to_string();
        match error {
            CreationError::Attachment { source, .. } => Self::new(Self::from(*source).code(), message),
            CreationError::Name { .. } => Self::invalid_argument(message),
            CreationError::Device { .. } => Self::failed_precondition(message),
            CreationError::NotForPods { .. } => Self::permission_denied(message),
            CreationError::Devices(_) => Self::internal(message),
        }
    }
}

/// Whether pods may name what an annotation of theirs names. Pure; what is no name is judged elsewhere.
fn check_pods(may_name: &[String], annotations: &[(String, String)]) -> Result<(), CreationError> {
    for (key, value) in annotations.iter().filter(|(key, _)| !key.starts_with(CDI)) {
        let names: Vec<DeviceName> = value.split(',').filter_map(|text| text.trim().parse().ok()).collect();
        if let Some(name) = not_for_pods(may_name, &names) {
            return Err(CreationError::NotForPods { key: key.clone(), kind: name.kind().to_owned() });
        }
    }
    Ok(())
}

/// The first device that pods may not name.
fn not_for_pods<'a>(may_name: &[String], names: &'a [DeviceName]) -> Option<&'a DeviceName> {
    names.iter().find(|name| !may_name.iter().any(|kind| kind == "*" || kind == name.kind()))
}

impl Attachments {
    /// Whether pods may name these devices.
    ///
    /// # Errors
    /// [`DevicesError::NotForPods`].
    pub fn check_for_pods(&self, devices: &[DeviceName]) -> Result<(), AttachmentError> {
        match not_for_pods(&self.pods_may_name, devices) {
            Some(name) => Err(DevicesError::NotForPods { name: name.clone() }.into()),
            None => Ok(()),
        }
    }

    /// What the spec of a container that is being created is to have: of the devices that its annotations name, and of those of
    /// attachments that [`Attachments::restore`] and [`Attachments::attach_named`] will make. Changes nothing.
    ///
    /// # Errors
    /// [`CreationError`].
    pub async fn devices_at_creation(
        &self,
        container: &ContainerKey,
        creation: &Creation,
    ) -> Result<AtCreation, CreationError> {
        if container.namespace == PODS {
            check_pods(&self.pods_may_name, &creation.devices)?;
        }
        let own = self.own_devices(&creation.devices).await?;
        let named = !creation.attachments.is_empty();
        let to_come = match creation.takes_attachments {
            true => self.to_come(container, &creation.attachments).await,
            false => Ok(Default::default()),
        };
        let (attached, denied) =
            to_come.map_err(|source| CreationError::Attachment { named, source: Box::new(source) })?;
        Ok(AtCreation { own, attached, denied })
    }

    async fn own_devices(&self, annotations: &[(String, String)]) -> Result<Edits, CreationError> {
        let mut keys: BTreeMap<DeviceName, &str> = BTreeMap::new();
        let mut names = Vec::new();
        for (key, value) in annotations {
            for text in value.split(',').map(str::trim) {
                let name: DeviceName =
                    text.parse().map_err(|source| CreationError::Name { key: key.clone(), source })?;
                names.push(text.to_owned());
                keys.entry(name).or_insert(key);
            }
        }
        if names.is_empty() {
            return Ok(Edits::default());
        }
        self.resolve_edits(names).await.map_err(|error| match error {
            DevicesError::Resolve(source) => {
                let key = match &source {
                    ResolveError::Unknown { name, .. } | ResolveError::Node { name, .. } => keys.get(name),
                    ResolveError::Name(_) => None,
                };
                CreationError::Device { key: (*key.unwrap_or(&"")).to_owned(), source: Box::new(source) }
            }
            other => CreationError::Devices(Box::new(other)),
        })
    }

    /// Of what is on record, as it was; of what the annotation names besides, as the specs say now.
    async fn to_come(
        &self,
        container: &ContainerKey,
        named: &str,
    ) -> Result<(Edits, BTreeSet<String>), AttachmentError> {
        let annotation = if named.is_empty() { Vec::new() } else { parse_named(named)? };
        let mut present = self.records.shown(container);
        if present.iter().any(|a| a.created.is_some()) {
            // Another container may have the id by now.
            self.containers.refresh(container).await?;
        }
        let known = self.containers.known(container);
        present.retain(|a| plan::is_of(a, known.as_ref()) && plan::is_wanted(a, &annotation));
        let specs = self.missing(annotation, &present).await?;
        let mut edits: Vec<Edits> = present.iter().filter_map(edits_of).collect();
        edits.extend(present.iter().map(|attachment| variables(attachment.current.env.clone())));
        let mut denied: BTreeSet<String> =
            present.iter().flat_map(|attachment| attachment.current.denied.clone()).collect();
        if !specs.is_empty() {
            for planned in self.plan_set(&specs, &present).await?.iter().filter(|planned| !planned.present) {
                let declared = planned.version.declared()?;
                let devices = self.devices_of(&declared, Moment::Created).await?;
                edits.extend(devices.map(|devices| devices.edits));
                edits.push(variables(environment(&declared)));
                denied.extend(declared.seccomp.calls());
            }
        }
        let edits = edits.into_iter().fold(Edits::default(), |mut all, more| {
            all.append(more);
            all
        });
        Ok((edits, denied))
    }
}

/// Its first process has the variables of its capsules.
fn variables(env: Vec<String>) -> Edits {
    Edits { env, ..Edits::default() }
}

fn edits_of(attachment: &Attachment) -> Option<Edits> {
    attachment.devices.as_ref().map(|devices| devices.edits.clone())
}
