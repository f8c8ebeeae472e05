//! Attach: all mounts of an attachment, or none.

use overlayfs_utils::{attach, dissolve, in_mount_namespace, mount_at};

use super::{
    Attached, Engine,
    build::{Built, Placed, build_all, place, plan},
    limits, prune_draining,
};
use crate::{
    creation,
    hotplug::{
        capsule::Tree,
        edits::Edits,
        error::EngineError,
        execs,
        journal::{Record, State},
        model::{AttachmentId, Content, Spec},
        plan::Planned,
        scene::Scene,
        steps::step,
    },
    limits::Change,
};

impl Engine {
    /// Attaches what is wanted; a success when it is there already just so. The attachment, if it has a capsule.
    ///
    /// Limits are changed first, and devices are given before the capsule is attached.
    ///
    /// # Errors
    /// [`EngineError`]; then nothing changed, but for what hooks have written.
    pub fn attach_all(
        &self,
        container: &str,
        id: &AttachmentId,
        wanted: Wanted,
    ) -> Result<Option<Attached>, EngineError> {
        self.with_scene(container, |scene| {
            let is_new =
                step("limits", || limits::give(scene, container, id, wanted.change, wanted.undoing))?;
            let attached = match (wanted.devices, wanted.spec) {
                (Some(edits), spec) => {
                    step("devices", || self.attach_with_devices(scene, container, id, edits, spec))
                }
                (None, Some(spec)) => attach_in(container, scene, spec).map(Some),
                (None, None) => Ok(None),
            };
            match (is_new, &attached) {
                (true, Ok(_)) => limits::settle(scene, id),
                (true, Err(_)) => limits::undo(scene, id),
                (false, _) => {}
            }
            attached
        })
    }
}

/// What an attachment is to be: at least one of the three.
#[derive(Debug, Default)]
pub struct Wanted {
    /// A capsule.
    pub spec: Option<Spec>,
    /// Devices.
    pub devices: Option<Edits>,
    /// What it does to limits.
    pub change: Change,
    /// It was there a moment ago: limits are not looked at beside what is in use.
    pub undoing: bool,
}

/// Whether what a content denies can be denied: to processes that are started later, and to the first one, where that does not run yet.
pub(super) fn check_denials(scene: &Scene, content: &Content) -> Result<(), EngineError> {
    if content.denied.is_empty() {
        return Ok(());
    }
    if !scene.has_begun {
        let given = creation::given(scene.bundle()).unwrap_or_default().unwrap_or_default();
        if !given.denied.has_all(&content.denied) {
            return Err(EngineError::NotCreatedWith(content.to_string()));
        }
    }
    let mut all = execs::denied(&scene.journal.attachments);
    all.extend(&content.denied);
    let checked = scene.runtime.check_denials(&all);
    checked.map_err(|source| EngineError::Denials { content: content.to_string(), source })
}

/// Whether processes of the container still have what an attachment of this id had.
fn drains(scene: &mut Scene, id: &AttachmentId) -> Result<bool, EngineError> {
    prune_draining(scene)?;
    Ok(scene.journal.draining.iter().any(|draining| draining.id == *id))
}

pub(super) fn attach_in(container: &str, scene: &mut Scene, spec: Spec) -> Result<Attached, EngineError> {
    let record = match scene.journal.find(&spec.id) {
        Some(there) if there.spec == spec => there.clone(),
        Some(_) => return Err(EngineError::Conflict(spec.id)),
        None if !scene.takes_capsules => return Err(EngineError::Disabled(container.to_owned())),
        None => attach_new(scene, spec)?,
    };
    super::list::checked(container, scene, record)
}

fn attach_new(scene: &mut Scene, spec: Spec) -> Result<Record, EngineError> {
    // Two overlays that write to one directory ruin it; the kernel only warns.
    if spec.upper.is_some() && drains(scene, &spec.id)? {
        return Err(EngineError::StillWritten(spec.id));
    }
    check_denials(scene, &spec.content)?;
    let (planned, built) = step("build", || {
        let tree = Tree::open(&spec.content.layers)?;
        let planned = plan(scene, &spec, &tree, None)?;
        let built = build_all(scene, &spec, &tree, &planned)?;
        Ok::<_, EngineError>((planned, built))
    })?;
    let mounts = built.iter().map(|b| b.mounted.clone()).collect();
    let mut record = Record { spec, state: State::Attaching, mounts, created: Vec::new() };
    let done = attach_built(scene, &mut record, &planned, &built);
    if let Err(error) = done {
        scene.task.root().remove_created(&record.created);
        scene.journal.remove(&record.spec.id);
        if let Err(unwritten) = scene.write_journal() {
            log::warn!("after a failed attach: {unwritten}");
        }
        return Err(error);
    }
    record.state = State::Attached;
    scene.journal.put(record.clone());
    // If this fails the journal says "attaching", and recovery sees that all mounts are there.
    if let Err(unwritten) = scene.write_journal() {
        log::warn!("after an attach: {unwritten}");
    }
    Ok(record)
}

fn attach_built(
    scene: &mut Scene,
    record: &mut Record,
    planned: &[Planned],
    built: &[Built],
) -> Result<(), EngineError> {
    let mut places = Vec::with_capacity(planned.len());
    for planned in planned {
        places.push(place(scene, planned, &mut record.created)?);
    }
    scene.journal.put(record.clone());
    scene.write_journal()?;
    put_all(scene, built, places)
}

/// Attaches each mount at its place, in the container's mount namespace; on a failure takes away those that are there.
pub(super) fn put_all(scene: &Scene, built: &[Built], places: Vec<Placed>) -> Result<(), EngineError> {
    let put_each = || {
        for (n, (built_one, placed)) in built.iter().zip(places).enumerate() {
            if let Err(error) = put(built_one, placed) {
                for done in built[..n].iter().rev() {
                    // Nothing better can be done about a failure here than to report the first one.
                    let _ = dissolve(&done.mount);
                }
                return Err(error);
            }
        }
        Ok(())
    };
    step("mount", || in_mount_namespace(scene.task.pidfd(), put_each))?
}

/// Attaches a mount at its place.
pub(super) fn put(built: &Built, placed: Placed) -> Result<(), EngineError> {
    let Placed { dir, point } = placed;
    attach(&built.mount, dir.fd(), point.path())?;
    // The directory may have been moved since it was found: then the mount is elsewhere, and comes off again.
    if mount_at(&point)? == Some(built.mounted.id()) {
        return Ok(());
    }
    dissolve(&built.mount)?;
    Err(EngineError::Raced(built.mounted.path.clone()))
}
