//! Which attachments change limits, and whether these are in force. The look itself puts right what is not.

use super::{Engine, chain, groups, has_more, look_first};
use crate::{
    hotplug::{TaskLookupError, error::EngineError, limited::LimitRecord, model::AttachmentId, scene::Scene},
    limits::File,
};

/// The limits of an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limited {
    /// The container.
    pub container: String,
    /// The attachment.
    pub id: AttachmentId,
    /// Its limits are in force.
    pub in_force: bool,
    /// It has neither a capsule nor devices.
    pub alone: bool,
}

impl Engine {
    /// The attachments that change limits: of one container, or of all. Limits that somebody else has set since are taken for the
    /// container's own, with the changes on top.
    ///
    /// # Errors
    /// [`EngineError`] for one container; of all containers, those that cannot be looked at are logged and left out.
    pub fn list_limits(&self, container: Option<&str>) -> Result<Vec<Limited>, EngineError> {
        if let Some(container) = container {
            return self.list_limits_of(container);
        }
        let mut all = Vec::new();
        for id in self.tasks.ids() {
            match self.list_limits_of(&id) {
                Ok(limited) => all.extend(limited),
                Err(error) => log::warn!("container {id} is left out of a list: {}", chain(&error)),
            }
        }
        Ok(all)
    }

    /// Whether limits that no attachment changes any more are still to be put back, of one container or of any. The look itself tries.
    ///
    /// # Errors
    /// As [`Self::list_limits`].
    pub fn has_limits_left(&self, container: Option<&str>) -> Result<bool, EngineError> {
        if let Some(container) = container {
            return match self.with_scene(container, |scene| Ok(scene.journal.limits.has_left())) {
                Err(EngineError::Task(TaskLookupError::NotRunning { .. })) => Ok(false),
                other => other,
            };
        }
        // Those that cannot be looked at were logged by the list.
        Ok(self.tasks.ids().iter().any(|id| self.has_limits_left(Some(id)).unwrap_or(false)))
    }

    fn list_limits_of(&self, container: &str) -> Result<Vec<Limited>, EngineError> {
        let listed = self.with_scene(container, |scene| {
            if scene.journal.limits.is_empty() {
                return Ok(Vec::new());
            }
            look_first(scene);
            // What cannot be read is not in force, and is no reason to say nothing of the rest.
            let differing = differing(scene).inspect_err(|error| {
                log::error!("container {container}: its limits cannot be looked at: {}", chain(error));
            });
            let holds = |file: &File| differing.as_ref().is_ok_and(|differing| !differing.contains(file));
            let one = |record: &LimitRecord| Limited {
                container: container.to_owned(),
                id: record.id.clone(),
                in_force: record.change.files().all(holds),
                alone: !has_more(scene, &record.id),
            };
            Ok(scene.journal.limits.records.iter().map(one).collect())
        });
        match listed {
            Err(EngineError::Task(TaskLookupError::NotRunning { .. })) => Ok(Vec::new()),
            other => other,
        }
    }
}

fn differing(scene: &Scene) -> Result<Vec<File>, EngineError> {
    Ok(groups(scene)?.differing(&scene.journal.limits.wanted()?)?)
}
