//! What containers use that have something attached.

use std::collections::BTreeMap;

use super::{
    Attachments,
    error::AttachmentError,
    model::{Attachment, ContainerKey},
};
use crate::containerd::Measured;

/// One container.
#[derive(Debug, Clone)]
pub struct ContainerUsage {
    /// Which.
    pub container: ContainerKey,
    /// Its pod, if it is of one.
    pub pod: Option<String>,
    /// What it has.
    pub attachments: Vec<Attachment>,
    /// What it uses; none of one whose task does not run.
    pub measured: Option<Measured>,
}

impl Attachments {
    /// All containers that have something attached, and what they use: by namespace and id.
    ///
    /// # Errors
    /// containerd's.
    pub async fn usage(&self) -> Result<Vec<ContainerUsage>, AttachmentError> {
        let mut by_namespace: BTreeMap<String, Vec<(ContainerKey, Vec<Attachment>)>> = BTreeMap::new();
        for key in self.records.containers() {
            let attachments = self.records.shown(&key);
            if !attachments.is_empty() {
                by_namespace.entry(key.namespace.clone()).or_default().push((key, attachments));
            }
        }
        let mut all = Vec::new();
        for (namespace, containers) in by_namespace {
            let ids: Vec<&str> = containers.iter().map(|(key, _)| key.id.as_str()).collect();
            let mut measured = self.containerd.namespace(&namespace)?.metrics(&ids).await?;
            for (container, attachments) in containers {
                let pod = self.containers.known(&container).and_then(|known| known.pod);
                let measured = measured.remove(&container.id);
                all.push(ContainerUsage { container, pod, attachments, measured });
            }
        }
        Ok(all)
    }
}
