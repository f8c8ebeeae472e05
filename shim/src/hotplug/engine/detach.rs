//! Detach: strict, or lazy.

use std::{path::Path, time::Duration};

use overlayfs_utils::{
    Created, DetachedMount, MountPoint, SuperBlock, Unmounted, clone_at, detach_lazily, in_mount_namespace,
    unmount,
};

use super::{
    Detached, Engine, add_draining, devices::detach_with_devices, limits, replace::reattach, users_of,
};
use crate::hotplug::{
    TaskLookupError,
    entry::Entry,
    error::EngineError,
    journal::{Mounted, Record, State},
    model::AttachmentId,
    scene::{Pins, Scene},
    steps::step,
};

/// How often a strict unmount is tried whose user no process shows: it was closing the file, most likely.
const TRIES: u32 = 3;
/// How often a mount is looked for that the container moves about.
const TRIES_TO_FIND: u32 = 32;
/// How long to wait between two tries.
const PAUSE: Duration = Duration::from_millis(5);

impl Engine {
    /// Takes an attachment away; a success when it is not there, or its task has ended.
    ///
    /// Strict: while a process uses it, nothing changes, and the answer names the users. The kernel is the judge: it is
    /// asked to unmount, and only if it refuses are users looked for. Lazy: it is out of reach at once, and drains. The container
    /// has its limits until then; strict, they are not taken from it below what it uses.
    ///
    /// # Errors
    /// [`EngineError`]; then it is attached as before.
    pub fn detach(&self, container: &str, id: &AttachmentId, lazy: bool) -> Result<Detached, EngineError> {
        let done = self.with_scene(container, |scene| {
            step("limits", || limits::leave(scene, id, lazy))?;
            let done = match scene.journal.find_devices(id).cloned() {
                Some(devices) => step("devices", || detach_with_devices(scene, devices, lazy)),
                None => detach_in(scene, id, lazy),
            };
            if let Err(error) = limits::left(scene, id, done.as_ref().is_ok_and(|done| done.detached)) {
                // It is gone. The journal has what is to be put back, and the next call tries again.
                log::error!(
                    "container {container}: the limits of {id} stay: {}",
                    crate::engine::chain(&error)
                );
            }
            done
        });
        match done {
            // The mounts went with the mount namespace.
            Err(EngineError::Task(TaskLookupError::NotRunning { .. })) => {
                Ok(Detached { detached: true, users: Vec::new() })
            }
            other => other,
        }
    }
}

/// Takes a capsule away.
pub(super) fn detach_in(scene: &mut Scene, id: &AttachmentId, lazy: bool) -> Result<Detached, EngineError> {
    match scene.journal.find(id).cloned() {
        None => Ok(Detached { detached: true, users: Vec::new() }),
        Some(record) if lazy => detach_lazy(scene, record),
        Some(record) => detach_strict(scene, record),
    }
}

/// Refuses when something is mounted inside an attachment, or over it: taking the attachment would take that along.
pub(super) fn check_clear(scene: &Scene, record: &Record) -> Result<(), EngineError> {
    let table = scene.read_mounts()?;
    for mounted in &record.mounts {
        let path: &Path = mounted.path.as_ref();
        if let Some(inside) = table.below(path).next() {
            let shown = inside.mount_point.to_string_lossy().into_owned();
            return Err(EngineError::Nested { path: shown, by: scene.name_mount(inside) });
        }
        match (scene.mount_at(&mounted.path)?, table.top_at(path)) {
            (Some(top), Some(entry)) if top != mounted.id() => {
                let by = format!("the {} mount of {:?}", entry.filesystem, entry.source);
                return Err(EngineError::Covered { path: mounted.path.clone(), by });
            }
            _ => {}
        }
    }
    Ok(())
}

fn begin(scene: &mut Scene, record: &Record) -> Result<(), EngineError> {
    check_clear(scene, record)?;
    scene.journal.put(Record { state: State::Detaching, ..record.clone() });
    scene.write_journal()
}

fn finish(scene: &mut Scene, record: &Record) {
    scene.journal.remove(&record.spec.id);
    remove_created(scene, &record.created);
    write_after(scene);
}

/// Removes directories that were made for an attachment. Those that hold mounts or devices of others are theirs from now on.
pub(super) fn remove_created(scene: &mut Scene, created: &[Created]) {
    let stay = scene.task.root().remove_created(created);
    for made in created.iter().rev().filter(|made| stay.contains(&made.path)) {
        let holds = |record: &&Entry| record.mounts.iter().any(|m| m.path.starts_with(&made.path));
        if let Some(mut heir) = scene.journal.attachments.iter().find(holds).map(Entry::to_record) {
            heir.created.insert(0, made.clone());
            scene.journal.put(heir);
        } else if let Some(heir) = scene.journal.devices.iter_mut().find(|record| record.has_in(&made.path)) {
            heir.created.insert(0, made.clone());
        }
    }
}

/// If this fails the journal says "detaching", and recovery finishes it.
fn write_after(scene: &mut Scene) {
    if let Err(unwritten) = scene.write_journal() {
        log::warn!("after a detach: {unwritten}");
    }
}

pub(super) fn detach_lazy(scene: &mut Scene, record: Record) -> Result<Detached, EngineError> {
    begin(scene, &record)?;
    let pins = match take_lazily(scene, &record) {
        Ok(pins) => pins,
        Err(error) => {
            keep(scene, &record);
            return Err(error);
        }
    };
    add_draining(scene, &record, pins);
    finish(scene, &record);
    let users = super::prune_draining(scene)?;
    let ours = scene.journal.draining.iter().zip(users).filter(|(draining, _)| draining.id == record.spec.id);
    let ours = ours.flat_map(|(_, users)| users).collect();
    Ok(Detached { detached: true, users: ours })
}

/// Takes every mount away, the last first, wherever the container has moved it; returns what keeps them alive.
pub(super) fn take_lazily(scene: &Scene, record: &Record) -> Result<Pins, EngineError> {
    let take_each = || {
        let mut pins = Pins::new();
        for mounted in record.mounts.iter().rev() {
            let (_, pin) = take(scene, mounted, |point| {
                let pin = clone_at(point, mounted.id())?;
                Ok((detach_lazily(point, mounted.id())?, pin))
            })?;
            pins.extend(pin.map(|pin| (mounted.block, pin)));
        }
        Ok(pins)
    };
    step("unmount", || in_mount_namespace(scene.task.pidfd(), take_each))?
}

/// Finds one mount and lets `act` take it away. A container that renames directories in a loop can win the race between
/// the two; then it is tried again.
fn take<T: Default>(
    scene: &Scene,
    mounted: &Mounted,
    act: impl Fn(&MountPoint) -> Result<(Unmounted, T), EngineError>,
) -> Result<(Unmounted, T), EngineError> {
    for _ in 0..TRIES_TO_FIND {
        let Some(path) = scene.locate(mounted)? else { return Ok((Unmounted::NotThere, T::default())) };
        let Ok(point) = scene.task.root().mount_point(&path) else { continue };
        match act(&point)? {
            (Unmounted::NotThere, _) => {}
            done => return Ok(done),
        }
    }
    Err(EngineError::Raced(mounted.path.clone()))
}

fn detach_strict(scene: &mut Scene, record: Record) -> Result<Detached, EngineError> {
    begin(scene, &record)?;
    let mut record = record;
    for attempt in 1..=TRIES {
        let take = || in_mount_namespace(scene.task.pidfd(), || take_strictly(scene, &mut record));
        let outcome = step("unmount", take).map_err(EngineError::from).and_then(|taken| taken);
        match outcome {
            Ok(Taken::All) => {
                finish(scene, &record);
                return Ok(Detached { detached: true, users: Vec::new() });
            }
            Ok(Taken::Busy) => {
                let users = find_all_users(scene, &record);
                if users.as_ref().is_ok_and(Vec::is_empty) && attempt < TRIES {
                    std::thread::sleep(PAUSE);
                    continue;
                }
                keep(scene, &record);
                return match users? {
                    users if users.is_empty() => Err(EngineError::Busy(record.spec.id)),
                    users => Ok(Detached { detached: false, users }),
                };
            }
            Err(error) => {
                keep(scene, &record);
                return Err(error);
            }
        }
    }
    Err(EngineError::Busy(record.spec.id))
}

/// Notes that the attachment is there still, with the mount ids that it has now.
fn keep(scene: &mut Scene, record: &Record) {
    scene.journal.put(Record { state: State::Attached, ..record.clone() });
    write_after(scene);
}

fn find_all_users(scene: &Scene, record: &Record) -> Result<Vec<overlayfs_utils::User>, EngineError> {
    let blocks: Vec<SuperBlock> = record.mounts.iter().map(|m| m.block).collect();
    let mut users: Vec<_> = users_of(scene, &blocks)?.into_iter().flatten().collect();
    users.dedup();
    Ok(users)
}

enum Taken {
    All,
    Busy,
}

/// Unmounts every mount, the last first; if one is busy, puts back those taken before it.
fn take_strictly(scene: &Scene, record: &mut Record) -> Result<Taken, EngineError> {
    let undoable = record.mounts.len() > 1;
    let mut taken: Vec<(usize, DetachedMount)> = Vec::new();
    for n in (0..record.mounts.len()).rev() {
        let outcome = take_one(scene, &record.mounts[n], undoable);
        match outcome {
            Ok((Unmounted::Done, Some(back))) => taken.push((n, back)),
            Ok((Unmounted::Done | Unmounted::NotThere, _)) => {}
            Ok((Unmounted::Busy, _)) => {
                put_back(scene, &mut record.mounts, taken);
                return Ok(Taken::Busy);
            }
            Err(error) => {
                put_back(scene, &mut record.mounts, taken);
                return Err(error);
            }
        }
    }
    Ok(Taken::All)
}

fn take_one(
    scene: &Scene,
    mounted: &Mounted,
    undoable: bool,
) -> Result<(Unmounted, Option<DetachedMount>), EngineError> {
    take(scene, mounted, |point| {
        let back = if undoable { clone_at(point, mounted.id())? } else { None };
        Ok((unmount(point, mounted.id())?, back))
    })
}

fn put_back(scene: &Scene, mounts: &mut [Mounted], taken: Vec<(usize, DetachedMount)>) {
    for (n, back) in taken.into_iter().rev() {
        match reattach(scene, &mounts[n].path, &back) {
            Ok(block) => mounts[n].block = block,
            Err(error) => log::error!("undoing a detach of {}: {error}", mounts[n].path),
        }
    }
}
