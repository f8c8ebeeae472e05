//! What containers use that have something attached.

use std::time::Duration;

use capsule_proto::containerd::cgroups::Metrics;
use tokio::{sync::watch, time::timeout};

use super::{
    Attachments,
    called::{self, Called},
    containers::Wanted,
    error::AttachmentError,
    model::{Attachment, ContainerKey},
};
use crate::containerd::Measured;

/// How long containerd may take to measure the tasks of one namespace.
const PATIENCE: Duration = Duration::from_secs(3);

/// One container.
#[derive(Debug, Clone)]
pub struct ContainerUsage {
    /// Which.
    pub container: ContainerKey,
    /// Its pod, if it is of one.
    pub pod: Option<String>,
    /// The name that its client calls it by, if it has one beside its id.
    pub name: Option<String>,
    /// What it has.
    pub attachments: Vec<Attachment>,
    /// What it uses; none of one whose task does not run.
    pub measured: Option<Measured>,
}

impl ContainerUsage {
    /// What was measured, if it was.
    pub fn metrics(&self) -> Option<&Metrics> {
        self.measured.as_ref()?.metrics.as_ref()
    }
}

impl Attachments {
    /// All containers that have something attached, and what they use: by namespace and id.
    ///
    /// # Errors
    /// containerd's.
    pub async fn usage(&self) -> Result<Vec<ContainerUsage>, AttachmentError> {
        self.learn_names(&self.records.containers()).await;
        let mut all = self.unmeasured();
        for of_namespace in all.chunk_by_mut(|a, b| a.container.namespace == b.container.namespace) {
            let namespace = of_namespace[0].container.namespace.clone();
            let ids: Vec<String> = of_namespace.iter().map(|one| one.container.id.clone()).collect();
            let measured = self.containerd.namespace(&namespace)?;
            // A shim that hangs holds up containerd's answer: the others' containers are told without.
            let Ok(measured) = timeout(PATIENCE, measured.metrics(&ids)).await else {
                tracing::warn!(namespace, "containerd takes long to measure what its tasks use");
                continue;
            };
            let mut measured = measured?;
            for one in of_namespace {
                one.measured = measured.remove(&one.container.id);
            }
        }
        Ok(all)
    }

    /// The same without what they use.
    pub fn unmeasured(&self) -> Vec<ContainerUsage> {
        let containers = self.records.containers().into_iter();
        let all = containers.map(|key| (self.records.shown(&key), key)).filter(|(has, _)| !has.is_empty());
        all.map(|(attachments, container)| {
            let known = self.containers.known(&container).unwrap_or_default();
            let (pod, name) = (known.member.map(|member| member.pod), known.name);
            ContainerUsage { container, pod, name, attachments, measured: None }
        })
        .collect()
    }

    /// What people call a container, or called it when it was there last.
    pub fn called(&self, container: &ContainerKey) -> Called {
        self.containers.called(container)
    }

    /// The text with containers named as people name them, where it has their ids.
    pub fn in_words(&self, text: &str) -> String {
        called::in_words(text, |key| self.containers.called(key).place(key))
    }

    /// The container that is called so, by its client or in a pod, and by no whole id. containerd is not asked.
    pub async fn by_name(&self, wanted: &Wanted) -> Option<ContainerKey> {
        self.containers.by_name(wanted).await
    }

    /// Has dockerd say what its containers are called, where one of these is Docker's.
    pub(super) async fn learn_names(&self, shown: &[ContainerKey]) {
        if shown.iter().any(|key| self.containers.are_dockers(&key.namespace)) {
            self.containers.learn_names().await;
        }
    }

    /// Whether containerd's events are followed.
    pub fn is_following(&self) -> bool {
        self.containers.is_followed()
    }

    /// The same, and each change of it.
    pub fn following(&self) -> watch::Receiver<bool> {
        self.containers.followed()
    }
}
