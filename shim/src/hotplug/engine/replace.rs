//! Replace: other layers in the place of an attachment's, with no instant at which a path is missing.
//!
//! All new mounts are built before the first is swapped in. Where the new content has other hierarchies than the old, the
//! added ones are attached and the removed ones taken away, in the same transaction.

use std::collections::HashMap;

use overlayfs_utils::{
    ContainerPath, DetachedMount, MountPoint, SuperBlock, Unmounted, attach, clone_at, detach_lazily,
    dissolve, in_mount_namespace, swap,
};

use super::{
    Attached, Engine, MANY_DRAINING, add_draining,
    attach::check_denials,
    build::{Built, Placed, build_all, place, plan},
    detach::check_clear,
    find_record, limits, prune_draining,
};
use crate::{
    hotplug::{
        capsule::Tree,
        error::EngineError,
        journal::{Mounted, Record, State},
        model::{AttachmentId, Content},
        plan::Planned,
        scene::Scene,
        steps::step,
    },
    limits::Change as LimitChange,
};

impl Engine {
    /// Replaces the content of an attachment, and what it does to limits; returns it, and the content it had. The new limits
    /// are in force before the new content is. `undoing`: the content was there a moment ago, and limits are not looked at beside what
    /// is in use.
    ///
    /// # Errors
    /// [`EngineError`]; then the old content is in place.
    pub fn replace_all(
        &self,
        container: &str,
        id: &AttachmentId,
        content: Content,
        change: LimitChange,
        undoing: bool,
    ) -> Result<(Attached, Content), EngineError> {
        self.with_scene(container, |scene| {
            let old = find_record(scene, id)?;
            let replaced = old.spec.content.clone();
            if old.spec.upper.is_some() && replaced != content {
                // Two overlays with one upper directory would not see what the other writes, and the old one drains.
                return Err(EngineError::Writable(id.clone()));
            }
            step("limits", || limits::replace(scene, id, &content, change, undoing))?;
            let record = if replaced == content { Ok(old) } else { replace_content(scene, old, content) };
            limits::replaced(scene, id, record.is_ok());
            Ok((super::list::checked(container, scene, record?)?, replaced))
        })
    }
}

/// What happens at one place.
enum Change {
    /// Old and new content have it.
    Swap { old: Mounted, new: Built, point: MountPoint },
    /// The new content has it.
    Add { new: Built, placed: Box<Placed> },
    /// The old content had it.
    Remove { old: Mounted, point: MountPoint },
}

/// A change that is done, and what puts it back.
enum Done {
    Swapped { old: SuperBlock, point: MountPoint, new: SuperBlock, back: DetachedMount },
    Added(Built),
    Removed { old: SuperBlock, path: ContainerPath, back: DetachedMount },
}

/// Mounts put back have new ids.
type Restored = HashMap<ContainerPath, SuperBlock>;

fn replace_content(scene: &mut Scene, old: Record, content: Content) -> Result<Record, EngineError> {
    check_clear(scene, &old)?;
    check_denials(scene, &content)?;
    if scene.journal.draining.len() >= MANY_DRAINING {
        prune_draining(scene)?;
    }
    let mut spec = old.spec.clone();
    spec.content = content;
    let (planned, built) = step("build", || {
        let tree = Tree::open(&spec.content.layers)?;
        let planned = plan(scene, &spec, &tree, Some(&old))?;
        let built = build_all(scene, &spec, &tree, &planned)?;
        Ok::<_, EngineError>((planned, built))
    })?;
    let mounts: Vec<Mounted> = built.iter().map(|b| b.mounted.clone()).collect();
    let (mut created, mut restored) = (Vec::new(), Restored::new());
    let changed = plan_changes(scene, &old, &planned, built, &mut created).and_then(|changes| {
        let state = State::Replacing { content: spec.content.clone(), mounts: mounts.clone() };
        scene.journal.put(Record { state, ..old.clone() });
        scene.write_journal()?;
        step("mount", || change_all(scene, changes, &mut restored))
    });
    let record = match changed {
        Ok(done) => {
            add_draining(scene, &old, done.into_iter().filter_map(into_pin).collect());
            let created = old.created.into_iter().chain(created).collect();
            Ok(Record { spec, state: State::Attached, mounts, created })
        }
        Err(error) => {
            scene.task.root().remove_created(&created);
            Err((error, with_restored(old, &restored)))
        }
    };
    let (Ok(now) | Err((_, now))) = &record;
    scene.journal.put(now.clone());
    // If this fails the journal says "replacing", and recovery sees which mounts are there.
    if let Err(unwritten) = scene.write_journal() {
        log::warn!("after a replace: {unwritten}");
    }
    record.map_err(|(error, _)| error)
}

fn with_restored(mut record: Record, restored: &Restored) -> Record {
    for mounted in &mut record.mounts {
        if let Some(block) = restored.get(&mounted.path) {
            mounted.block = *block;
        }
    }
    record
}

fn plan_changes(
    scene: &Scene,
    old: &Record,
    planned: &[Planned],
    built: Vec<Built>,
    created: &mut Vec<overlayfs_utils::Created>,
) -> Result<Vec<Change>, EngineError> {
    let mut changes = Vec::new();
    let mut there: HashMap<ContainerPath, Mounted> = HashMap::new();
    for mounted in &old.mounts {
        // Keyed by where it is: one that the container moved is taken away there, and the new one goes to its place.
        if let Some(path) = scene.locate(mounted)? {
            there.insert(path, mounted.clone());
        }
    }
    for (planned, new) in planned.iter().zip(built) {
        changes.push(match there.remove(&planned.at) {
            Some(old) => Change::Swap { point: point_of(scene, &planned.at)?, old, new },
            None => Change::Add { placed: Box::new(place(scene, planned, created)?), new },
        });
    }
    for (path, old) in there {
        changes.push(Change::Remove { point: point_of(scene, &path)?, old });
    }
    Ok(changes)
}

fn point_of(scene: &Scene, path: &ContainerPath) -> Result<MountPoint, EngineError> {
    Ok(scene.task.root().mount_point(path)?)
}

fn change_all(
    scene: &Scene,
    changes: Vec<Change>,
    restored: &mut Restored,
) -> Result<Vec<Done>, EngineError> {
    in_mount_namespace(scene.task.pidfd(), || {
        let mut done = Vec::with_capacity(changes.len());
        for change in changes {
            match apply(change) {
                Ok(step) => done.push(step),
                Err(error) => {
                    *restored = undo(scene, done);
                    return Err(error);
                }
            }
        }
        Ok(done)
    })?
}

fn apply(change: Change) -> Result<Done, EngineError> {
    match change {
        Change::Swap { old, new, point } => {
            let back = clone_back(&point, &old)?;
            expect_done(swap(&new.mount, &point, old.id())?, &old.path)?;
            Ok(Done::Swapped { old: old.block, point, new: new.mounted.block, back })
        }
        Change::Add { new, placed } => {
            super::attach::put(&new, *placed)?;
            Ok(Done::Added(new))
        }
        Change::Remove { old, point } => {
            let back = clone_back(&point, &old)?;
            expect_done(detach_lazily(&point, old.id())?, &old.path)?;
            Ok(Done::Removed { old: old.block, path: old.path, back })
        }
    }
}

fn clone_back(point: &MountPoint, old: &Mounted) -> Result<DetachedMount, EngineError> {
    clone_at(point, old.id())?.ok_or_else(|| EngineError::Raced(old.path.clone()))
}

/// What puts an old mount back is what keeps its filesystem alive once it need not be put back.
fn into_pin(done: Done) -> Option<(SuperBlock, DetachedMount)> {
    match done {
        Done::Swapped { old, back, .. } | Done::Removed { old, back, .. } => Some((old, back)),
        Done::Added(_) => None,
    }
}

fn expect_done(outcome: Unmounted, path: &ContainerPath) -> Result<(), EngineError> {
    match outcome {
        Unmounted::Done => Ok(()),
        Unmounted::Busy | Unmounted::NotThere => Err(EngineError::Raced(path.clone())),
    }
}

/// Puts back what was done, the last first. What cannot be put back is logged: the first error is the one to report.
fn undo(scene: &Scene, done: Vec<Done>) -> Restored {
    let mut restored = Restored::new();
    for step in done.into_iter().rev() {
        match undo_one(scene, step) {
            Ok(back) => restored.extend(back),
            Err(error) => log::error!("undoing a replace: {error}"),
        }
    }
    restored
}

fn undo_one(scene: &Scene, step: Done) -> Result<Option<(ContainerPath, SuperBlock)>, EngineError> {
    match step {
        Done::Added(new) => Ok(dissolve(&new.mount).map(|()| None)?),
        Done::Swapped { point, new, back, .. } => {
            let path = ContainerPath::parse(&point.path().to_string_lossy())
                .map_err(crate::hotplug::model::InvalidRequest::from)?;
            expect_done(swap(&back, &point, new.mount)?, &path)?;
            Ok(Some((path, SuperBlock::of(back.fd())?)))
        }
        Done::Removed { path, back, .. } => reattach(scene, &path, &back).map(|block| Some((path, block))),
    }
}

/// Attaches a clone of a mount where the mount was.
pub(super) fn reattach(
    scene: &Scene,
    path: &ContainerPath,
    back: &DetachedMount,
) -> Result<SuperBlock, EngineError> {
    let dir = scene.task.root().resolve_plain(path)?;
    attach(back, dir.fd(), path.as_ref())?;
    Ok(SuperBlock::of(back.fd())?)
}
