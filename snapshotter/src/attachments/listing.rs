//! What is attached, as it is asked for: by containers, and by versions.

use std::{collections::HashMap, time::Duration};

use futures::future::{join, join_all};
use tokio::time::timeout;

use super::{
    Attachments,
    containers::Wanted as WantedContainer,
    error::AttachmentError,
    model::{Attachment, ContainerKey},
};
use crate::{
    capsules::model::{CapsuleName, Digest},
    shims::{Draining, ShimError},
};

/// How long a list waits for a container's shim: longer than any healthy one takes, bearable for a person.
const PATIENCE: Duration = Duration::from_secs(2);

/// What [`Attachments::list`] finds.
#[derive(Debug, Clone)]
pub enum Listed {
    /// Attached, and the capsules in the container that require it.
    Attached(Box<Attachment>, Vec<CapsuleName>),
    /// Draining, in this container.
    Draining(ContainerKey, Box<Draining>),
}

impl Attachments {
    /// What is attached and what is draining, in one container or in all; by container.
    pub async fn list(&self, container: Option<&WantedContainer>) -> Result<Vec<Listed>, AttachmentError> {
        let keys = match container {
            Some(wanted) => vec![self.containers.find(wanted).await?],
            None => {
                let served = self.served();
                let mut keys = self.records.containers();
                keys.extend(served);
                keys.sort();
                keys.dedup();
                keys
            }
        };
        let listed = join_all(keys.iter().map(|key| self.list_one(key)));
        let (listed, ()) = join(listed, self.learn_names(&keys)).await;
        Ok(listed.into_iter().flatten().collect())
    }

    /// What one container has. If its shim takes long over this or another call, what is on record will do.
    async fn list_one(&self, key: &ContainerKey) -> Vec<Listed> {
        let asked = timeout(PATIENCE, async {
            let attached = self.records.lock(key).await;
            let draining = match self.shims.list(key, true).await {
                Ok(report) => report.draining,
                // A container without a shim has nothing that drains.
                Err(ShimError::NoShim(_)) => Vec::new(),
                Err(error) => {
                    tracing::warn!(container = %key, %error, "the shim cannot say what is draining");
                    return (attached.clone(), Vec::new());
                }
            };
            self.hold(key, &draining);
            (attached.clone(), draining)
        });
        let (attached, draining) = asked.await.unwrap_or_else(|_| {
            tracing::warn!(container = %key, "the shim takes long: what is draining is not listed");
            (self.records.shown(key), Vec::new())
        });
        self.records.tidy(key);
        let requirers = self.requirers(&attached);
        let attached = attached.into_iter().zip(requirers).map(|(a, by)| Listed::Attached(Box::new(a), by));
        attached.chain(draining.into_iter().map(|d| Listed::Draining(key.clone(), Box::new(d)))).collect()
    }

    /// Who has each version on record: to be mounted, mounted, or to be gone back to.
    pub fn holders(&self) -> HashMap<Digest, String> {
        let all = self.records.containers().into_iter().flat_map(|key| self.records.shown(&key));
        let of_one = |a: Attachment| {
            let owner = a.pin_owner();
            a.contents().map(|content| (content.digest.clone(), owner.clone())).collect::<Vec<_>>()
        };
        all.flat_map(of_one).collect()
    }

    /// The attachments that use a version, draining ones not counted.
    pub fn users_of(&self, digest: &str) -> Vec<Attachment> {
        let all = self.records.containers().into_iter().flat_map(|key| self.records.shown(&key));
        all.filter(|a| a.current.digest.as_str() == digest).collect()
    }
}
