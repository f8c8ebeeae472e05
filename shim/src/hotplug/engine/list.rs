//! List: what is attached and what drains, checked against the kernel.

use super::{Attached, Drained, Engine, prune_draining};
use crate::hotplug::{TaskLookupError, error::EngineError, journal::Record, scene::Scene};

impl Engine {
    /// What a container has, or all containers of the shim. A container whose task has ended has nothing.
    ///
    /// Draining contents that nobody uses any more are forgotten.
    ///
    /// # Errors
    /// [`EngineError`] for one container; of all containers, those that cannot be looked at are logged and left out.
    pub fn list(&self, container: Option<&str>) -> Result<(Vec<Attached>, Vec<Drained>), EngineError> {
        if let Some(container) = container {
            return self.list_one(container);
        }
        let (mut attached, mut draining) = (Vec::new(), Vec::new());
        for id in self.tasks.ids() {
            match self.list_one(&id) {
                Ok((more, drains)) => {
                    attached.extend(more);
                    draining.extend(drains);
                }
                Err(error) => log::warn!("container {id} is left out of a list: {error}"),
            }
        }
        Ok((attached, draining))
    }

    fn list_one(&self, container: &str) -> Result<(Vec<Attached>, Vec<Drained>), EngineError> {
        let listed = self.with_scene(container, |scene| {
            let users = prune_draining(scene)?;
            let draining = scene.journal.draining.iter().cloned().zip(users);
            let draining = draining.map(|(draining, users)| Drained {
                container: container.to_owned(),
                draining,
                users,
            });
            let draining = draining.collect();
            let records = scene.journal.attachments.clone().into_iter();
            let attached = records
                .map(|record| checked(container, scene, record.to_record()))
                .collect::<Result<_, _>>()?;
            Ok((attached, draining))
        });
        match listed {
            Err(EngineError::Task(TaskLookupError::NotRunning { .. })) => Ok((Vec::new(), Vec::new())),
            other => other,
        }
    }
}

/// An attachment with the kernel's word on whether it is there.
pub(super) fn checked(container: &str, scene: &Scene, record: Record) -> Result<Attached, EngineError> {
    let there = record.mounts.iter().map(|m| scene.is_there(m)).collect::<Result<Vec<_>, _>>()?;
    let devices = scene.journal.find_devices(&record.spec.id);
    let devices = devices.map_or(Ok(true), |devices| super::devices::is_there(scene, devices))?;
    let mounted = devices && there.into_iter().all(|is| is);
    Ok(Attached { container: container.to_owned(), record, mounted })
}
