//! An update of the task: it changes the container's own limits, and nothing that attachments do to them.

use super::{Engine, apply, chain, groups, look_first, put_back, tell};
use crate::{
    hotplug::{Runtime, UpdateError, error::EngineError, scene::Scene},
    limits::{Request, indirect, merge},
};

impl Engine {
    /// Does an update of the task. See [`Given::update`](crate::hotplug::Given::update).
    ///
    /// # Errors
    /// [`UpdateError`].
    pub fn update(
        &self,
        container: &str,
        resources: &[u8],
        runtime: &dyn Runtime,
    ) -> Result<(), UpdateError> {
        let mut done = None;
        let looked = self.with_scene(container, |scene| {
            done = Some(update_in(scene, resources));
            Ok(())
        });
        if let Some(done) = done {
            return done;
        }
        if let Err(error) = looked
            && !error.is_of_ended_task()
        {
            log::warn!("container {container} is updated without a look at attachments: {}", chain(&error));
        }
        Ok(runtime.update(resources)?)
    }
}

fn update_in(scene: &mut Scene, resources: &[u8]) -> Result<(), UpdateError> {
    let kept;
    let resources = match scene.journal.devices.is_empty() {
        true => resources,
        false => {
            kept = without_devices(resources);
            &kept
        }
    };
    if scene.journal.limits.is_empty() {
        return Ok(scene.runtime.update(resources)?);
    }
    look_first(scene);
    let request: Request = serde_json::from_slice(resources).unwrap_or_default();
    let own = scene.journal.limits.own.clone();
    scene.journal.limits.own = merge(&own, &request).map_err(EngineError::from)?;
    if let Err(error) = update_with(scene, &request) {
        scene.journal.limits.own = own;
        if let Err(error) = put_back(scene) {
            log::error!("after an update that failed: {}", chain(&error));
        }
        return Err(error.into());
    }
    Ok(())
}

/// The kubelet's updates repeat the rules of devices that the container was created with (containerd's
/// `internal/cri/server/container_update_resources.go`). runc does not look at them, crun would put a program of them in the place
/// of the one that allows attached devices.
fn without_devices(resources: &[u8]) -> Vec<u8> {
    let mut request: Request = serde_json::from_slice(resources).unwrap_or_default();
    request.remove("devices");
    serde_json::Value::Object(request).to_string().into_bytes()
}

fn update_with(scene: &mut Scene, request: &Request) -> Result<(), EngineError> {
    scene.write_journal()?;
    let (groups, mut wanted) = (groups(scene)?, scene.journal.limits.wanted()?);
    let indirect = indirect(request);
    wanted.retain(|file, _| !indirect.contains(file));
    tell(scene, &groups, request, &wanted)?;
    for file in indirect {
        // What the runtime makes of the request is the container's own: conversions differ by release.
        if scene.journal.limits.own.contains_key(&file) {
            scene.journal.limits.own.insert(file.clone(), groups.read(&file)?);
        }
    }
    apply(scene)
}
