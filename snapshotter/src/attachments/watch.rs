//! Following containerd's events, so that what is in memory stays true.

use std::time::Duration;

use super::{Attachments, error::AttachmentError, model::ContainerKey};
use crate::containerd::Event;

/// How long to wait before containerd is tried again.
const RETRY: Duration = Duration::from_secs(1);

impl Attachments {
    /// Follows containerd until the daemon ends: lists anew after every connect, then keeps up with events.
    /// containerd may be away and come back at any time.
    pub async fn watch(self) {
        let mut said = false;
        loop {
            let followed = self.follow(&mut said).await;
            self.containers.set_followed(false);
            match followed {
                Ok(()) => tracing::info!("containerd ended its event stream; connecting again"),
                Err(error) if !said => {
                    said = true;
                    tracing::warn!(%error, "cannot follow containerd; trying again every second");
                }
                Err(error) => tracing::debug!(%error, "cannot follow containerd"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn follow(&self, said: &mut bool) -> Result<(), AttachmentError> {
        // Subscribe first, list then: nothing falls between.
        let mut events = self.containerd.events(self.capsules.namespace()).await?;
        self.containers.reload().await?;
        self.containers.set_followed(true);
        self.capsules.reload().await?;
        self.capsules.release_stale().await?;
        self.capsules.is_to_sweep();
        let (this, recorded) = (self.clone(), self.records.containers());
        tokio::spawn(async move { this.learn_names(&recorded).await });
        for container in self.records.containers() {
            // Not waited for: a shim that does not answer must not delay the events of other containers.
            let this = self.clone();
            tokio::spawn(async move {
                this.settle_to_the_end(&container).await;
                this.forget_deleted(&container).await;
            });
        }
        *said = false;
        tracing::info!(address = %self.containerd.address().display(), "following containerd");
        while let Some(event) = events.next().await? {
            if let Err(error) = self.take(event).await {
                tracing::warn!(%error, "an event of containerd could not be followed up");
            }
        }
        Ok(())
    }

    async fn take(&self, event: Event) -> Result<(), AttachmentError> {
        match event {
            Event::ContainerChanged { namespace, id } => {
                let key = ContainerKey { namespace, id };
                self.containers.refresh(&key).await?;
                self.learn_name_in_background(&key);
            }
            Event::ContainerDeleted { namespace, id } => {
                let key = ContainerKey { namespace, id };
                self.containers.forget(&key);
                self.task_ended_in_background(key.clone());
                if self.containers.are_dockers(&key.namespace) {
                    self.containers.refresh(&key).await?;
                }
            }
            // The last that is told of a container of Docker's: its lease has gone before.
            Event::SnapshotRemoved { namespace, key } => {
                let key = ContainerKey { namespace, id: key };
                if self.containers.are_dockers(&key.namespace) && self.containers.known(&key).is_some() {
                    self.containers.refresh(&key).await?;
                    let this = self.clone();
                    tokio::spawn(async move { this.forget_deleted(&key).await });
                }
            }
            Event::TaskEnded { namespace, id } => {
                self.task_ended_in_background(ContainerKey { namespace, id });
            }
            Event::OutOfMemory { namespace, id } => self.tell_out_of_memory(&ContainerKey { namespace, id }),
            Event::ImageChanged { namespace, name } if namespace == self.capsules.namespace() => {
                self.capsules.refresh(&name).await?;
            }
            Event::ImageChanged { .. } => {}
        }
        Ok(())
    }

    /// What Docker calls a new container is known by the time something is told of it.
    fn learn_name_in_background(&self, container: &ContainerKey) {
        let is_known = self.containers.known(container).is_none_or(|known| known.name.is_some());
        if self.containers.are_dockers(&container.namespace) && !is_known {
            let containers = self.containers.clone();
            tokio::spawn(async move { containers.learn_names().await });
        }
    }

    /// The shim holds its registration until Delete: one slow task must not delay other events.
    fn task_ended_in_background(&self, container: ContainerKey) {
        let this = self.clone();
        tokio::spawn(async move { this.task_ended(&container).await });
    }
}
