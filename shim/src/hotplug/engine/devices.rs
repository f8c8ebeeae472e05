//! Devices of an attachment: the device program, nodes, files of the node, hooks. All of it, or nothing.
//!
//! The program comes first, so that a node is never there without its device, and goes first: what is opened afterwards is refused,
//! and only what was open before counts as use. Several attachments may ask for the same node or file, as all devices of one vendor do:
//! it is made once, is in the record of each, and goes with the last.

mod places;
mod taking;

use std::path::Path;

use overlayfs_utils::{DetachedMount, DeviceCgroup, User, attach, in_mount_namespace, mount_at};

use self::{
    places::{Placed, make_nodes, place_all},
    taking::{find_users, remove_files, take_mounts, take_mounts_lazily},
};
use super::{Attached, Detached, Engine, attach::attach_in, detach::detach_in, hooks};
use crate::{
    devices::{self, Aim, Applied, Expected, Wish, parse_rules},
    hotplug::{
        TaskLookupError,
        config::Config,
        edits::{Bind, Edits},
        error::{DevicesError, EngineError},
        journal::{DeviceRecord, State},
        model::{AttachmentId, Spec},
        notices::Kind,
        own,
        scene::Scene,
    },
};

/// Devices that an attachment has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The attachment.
    pub id: AttachmentId,
    /// Everything that was made for it is there.
    pub there: bool,
}

impl Engine {
    /// Gives a container devices, and then attaches the capsule of the same attachment, if it has one; a success when it is
    /// all there already just so.
    ///
    /// # Errors
    /// [`EngineError`]; then nothing changed, but for what hooks have written.
    pub(super) fn attach_with_devices(
        &self,
        scene: &mut Scene,
        container: &str,
        id: &AttachmentId,
        edits: Edits,
        spec: Option<Spec>,
    ) -> Result<Option<Attached>, EngineError> {
        let is_new = match scene.journal.find_devices(id) {
            Some(there) if there.state == State::Attached && *there.asked() == edits => false,
            Some(_) => return Err(EngineError::Conflict(id.clone())),
            None if !scene.takes_capsules => return Err(EngineError::Disabled(container.to_owned())),
            None => true,
        };
        if is_new {
            let record = DeviceRecord::new(id.clone(), edits);
            let applied = give(scene, record, |scene, record| {
                hooks::run_all(scene, container, &record.edits.hooks, self.reaper.as_deref())
            })?;
            self.tell_foreign(container, id, &applied);
        }
        let Some(spec) = spec else { return Ok(None) };
        let attached = attach_in(container, scene, spec);
        if let (true, Err(_), Some(record)) = (is_new, &attached, scene.journal.find_devices(id).cloned()) {
            undo(scene, record);
        }
        attached.map(Some)
    }

    /// The devices of attachments that have no capsule, each with its container: of one container, or of all. Programs that
    /// somebody has taken devices from are put right first.
    ///
    /// # Errors
    /// [`EngineError`] for one container; of all containers, those that cannot be looked at are logged and left out.
    pub fn list_devices(&self, container: Option<&str>) -> Result<Vec<(String, Given)>, EngineError> {
        if let Some(container) = container {
            return self.list_devices_of(container);
        }
        let mut all = Vec::new();
        for id in self.tasks.ids() {
            match self.list_devices_of(&id) {
                Ok(given) => all.extend(given),
                Err(error) => log::warn!("container {id} is left out of a list: {}", chain(&error)),
            }
        }
        Ok(all)
    }

    fn list_devices_of(&self, container: &str) -> Result<Vec<(String, Given)>, EngineError> {
        let listed = self.with_scene(container, |scene| {
            let denied = self.apply_again(scene, container).err().map(|error| chain(&error));
            self.tell_denied(scene, container, denied);
            let alone = |record: &&DeviceRecord| scene.journal.find(&record.id).is_none();
            let given = |record: &DeviceRecord| {
                Ok((container.to_owned(), Given { id: record.id.clone(), there: is_there(scene, record)? }))
            };
            scene.journal.devices.iter().filter(alone).map(given).collect()
        });
        match listed {
            Err(EngineError::Task(TaskLookupError::NotRunning { .. })) => Ok(Vec::new()),
            other => other,
        }
    }

    /// Has a container's programs allow its devices again where somebody has changed them: after an update of the task, for one.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn apply_devices(&self, container: &str) -> Result<Applied, EngineError> {
        self.with_scene(container, |scene| self.apply_again(scene, container))
    }

    fn apply_again(&self, scene: &Scene, container: &str) -> Result<Applied, EngineError> {
        if scene.journal.devices.is_empty() {
            return Ok(Applied::default());
        }
        let applied = apply(scene, Aim::Give)?;
        if !applied.loaded.is_empty() {
            let text = "somebody changed the container's device programs, and they allow its devices again";
            log::warn!("container {container}: {text}");
            for record in &scene.journal.devices {
                let id = record.id.to_string();
                self.notices.add(container, &id, Kind::Repaired, text.to_owned());
                self.tell_foreign(container, &record.id, &applied);
            }
        }
        Ok(applied)
    }

    /// Tells of devices that are denied, once for each reason.
    fn tell_denied(&self, scene: &mut Scene, container: &str, denied: Option<String>) {
        let before = std::mem::replace(&mut scene.kept.denied, denied);
        let Some(why) = scene.kept.denied.as_ref().filter(|why| before.as_ref() != Some(why)) else { return };
        log::error!("container {container}: its devices are denied: {why}");
        for record in &scene.journal.devices {
            self.notices.add(container, &record.id.to_string(), Kind::Denied, why.clone());
        }
    }

    fn tell_foreign(&self, container: &str, id: &AttachmentId, applied: &Applied) {
        let strangers = applied.adopted.iter().filter(|program| !program.is_systemds());
        let programs: Vec<String> = strangers.map(ToString::to_string).collect();
        if programs.is_empty() {
            return;
        }
        let text = format!(
            "device programs that are neither ours nor the runtime's are kept, with the devices before them: {}",
            programs.join(", ")
        );
        log::warn!("container {container}, attachment {id}: {text}");
        self.notices.add(container, &id.to_string(), Kind::ForeignProgram, text);
    }
}

fn chain(error: &EngineError) -> String {
    crate::engine::chain(error)
}

/// Has the control group's programs allow what the journal says.
fn apply(scene: &Scene, aim: Aim) -> Result<Applied, EngineError> {
    let wanted = scene.journal.device_ledger().wanted();
    let Some(path) = scene.cgroup.as_deref() else {
        // What the container has by itself its own rules allow.
        return if wanted.is_empty() { Ok(Applied::default()) } else { Err(DevicesError::NotUnified.into()) };
    };
    let config = Config::read(scene.bundle())?;
    let rules = parse_rules(&config.rules).map_err(DevicesError::Rules)?;
    let expected = Expected::new(&rules, &config.paths());
    let policy = scene.journal.devices.last().map(|record| record.edits.policy).unwrap_or_default();
    let mut all = Applied::default();
    for path in own_cgroups(path) {
        let cgroup = DeviceCgroup::open(path).map_err(devices::DeviceError::from);
        let applied = cgroup
            .and_then(|cgroup| devices::apply(&cgroup, &expected, Wish { wanted: &wanted, policy, aim }));
        let applied = applied.map_err(DevicesError::from)?;
        all.loaded.extend(applied.loaded);
        all.adopted.extend(applied.adopted);
    }
    Ok(all)
}

/// The control groups that are the container's alone, the outermost first. crun with systemd has its own in the scope that systemd
/// made for it, and both have programs.
fn own_cgroups(path: &Path) -> impl Iterator<Item = &Path> {
    let is_inner = path.file_name().is_some_and(|name| name == "container");
    let scope = path.parent().filter(|parent| is_inner && parent.extension().is_some_and(|e| e == "scope"));
    scope.into_iter().chain([path])
}

/// Gives devices: `finally` is done once they are there. On an error nothing is left.
fn give(
    scene: &mut Scene,
    mut record: DeviceRecord,
    finally: impl FnOnce(&Scene, &DeviceRecord) -> Result<(), EngineError>,
) -> Result<Applied, EngineError> {
    let left = own::without_own(record.asked(), &Config::read(scene.bundle())?);
    if left != *record.asked() {
        record.asked = Some(std::mem::replace(&mut record.edits, left));
    }
    // Variables and groups of later processes ask nothing of the kernel.
    let makes_something =
        !(record.edits.nodes.is_empty() && record.edits.mounts.is_empty() && record.edits.hooks.is_empty());
    if makes_something && scene.cgroup.is_none() {
        return Err(DevicesError::NotUnified.into());
    }
    if makes_something && scene.task.user_namespace()?.is_some() {
        return Err(DevicesError::UserNamespace.into());
    }
    // Whatever the node lacks is found out before anything is changed.
    let binds = build_all(&record.edits.mounts)?;
    scene.journal.put_devices(record.clone());
    let done = scene.write_journal().and_then(|()| give_all(scene, &mut record, binds));
    let done = done.and_then(|applied| finally(scene, &record).map(|()| applied));
    match done {
        Ok(applied) => {
            record.state = State::Attached;
            scene.journal.put_devices(record);
            write_after(scene);
            Ok(applied)
        }
        Err(error) => {
            undo(scene, record);
            Err(error)
        }
    }
}

fn give_all(
    scene: &mut Scene,
    record: &mut DeviceRecord,
    binds: Vec<DetachedMount>,
) -> Result<Applied, EngineError> {
    let applied = apply(scene, Aim::Give)?;
    let config = Config::read(scene.bundle())?;
    let made = make_nodes(scene, record, config.user);
    // What was made before an error is to be taken back, too.
    scene.journal.put_devices(record.clone());
    made?;
    let placed = place_all(scene, record, binds);
    scene.journal.put_devices(record.clone());
    scene.write_journal()?;
    mount_placed(scene, &placed?)?;
    Ok(applied)
}

fn build_all(mounts: &[Bind]) -> Result<Vec<DetachedMount>, EngineError> {
    let build = |bind: &Bind| match DetachedMount::bind(&bind.source, bind.options) {
        Err(_) if !bind.source.exists() => Err(DevicesError::NoFile(bind.source.clone()).into()),
        built => Ok(built?),
    };
    mounts.iter().map(build).collect()
}

fn mount_placed(scene: &Scene, placed: &[Placed]) -> Result<(), EngineError> {
    in_mount_namespace(scene.task.pidfd(), || {
        for Placed { mount, point, target, mounted } in placed {
            attach(mount, target.fd(), mounted.path.as_ref())?;
            // The file may have been moved since it was found: the mount is elsewhere then, and is found by its id.
            if mount_at(point)? != Some(mounted.id()) {
                return Err(EngineError::Raced(mounted.path.clone()));
            }
        }
        Ok(())
    })?
}

/// Takes back what was done. What cannot be is told: the call has failed already. As long as a program may allow what was given,
/// the record stays, and each later call tries again.
fn undo(scene: &mut Scene, mut record: DeviceRecord) {
    record.state = State::Detaching;
    scene.journal.put_devices(record.clone());
    if let Err(error) = take_mounts_lazily(scene, &record) {
        log::error!("undoing devices of {}: {}", record.id, chain(&error));
    }
    match apply(scene, Aim::Take) {
        Ok(_) => scene.journal.remove_devices(&record.id),
        Err(error) => log::error!("undoing devices of {}: {}", record.id, chain(&error)),
    }
    remove_files(scene, &record);
    write_after(scene);
}

/// Has the container keep its devices over an update of its limits: with systemd's driver, that has systemd put its own program
/// back.
pub(super) fn keep(scene: &Scene) {
    if scene.journal.devices.is_empty() {
        return;
    }
    if let Err(error) = apply(scene, Aim::Give) {
        log::error!("after an update of the container's limits, its devices: {}", chain(&error));
    }
}

/// If this fails the journal says "detaching" or "attaching", and recovery finishes it.
fn write_after(scene: &mut Scene) {
    if let Err(unwritten) = scene.write_journal() {
        log::warn!("after a change of devices: {unwritten}");
    }
}

/// Takes an attachment with devices away, the capsule of it last.
pub(super) fn detach_with_devices(
    scene: &mut Scene,
    record: DeviceRecord,
    lazy: bool,
) -> Result<Detached, EngineError> {
    let id = record.id.clone();
    let users = take(scene, record.clone(), lazy)?;
    if !lazy && !users.is_empty() {
        return Ok(Detached { detached: false, users });
    }
    match detach_in(scene, &id, lazy) {
        Ok(done) if done.detached => {
            let users = users.into_iter().chain(done.users).collect();
            Ok(Detached { detached: true, users })
        }
        refused => {
            // Hooks have done their work.
            if let Err(error) =
                give(scene, DeviceRecord::new(id.clone(), record.asked().clone()), |_, _| Ok(()))
            {
                log::error!("undoing a detach, devices of {id}: {}", chain(&error));
            }
            refused
        }
    }
}

/// Takes devices away; unless `lazy`, not while a process has one of them or of their files open: then the answer is who, and
/// nothing has changed.
fn take(scene: &mut Scene, mut record: DeviceRecord, lazy: bool) -> Result<Vec<User>, EngineError> {
    record.state = State::Detaching;
    scene.journal.put_devices(record.clone());
    if !lazy {
        // Whoever uses a device is not denied it until that is found out. Who opens one from here on is found below.
        let users = find_users(scene, &record);
        if !users.as_ref().is_ok_and(Vec::is_empty) {
            scene.journal.put_devices(DeviceRecord { state: State::Attached, ..record });
            return users;
        }
    }
    scene.write_journal()?;
    let taken = apply(scene, Aim::Take).and_then(|_| find_users(scene, &record));
    let taken = taken.and_then(|users| match (lazy, users.is_empty()) {
        (false, false) => Ok((users, false)),
        (true, _) => take_mounts_lazily(scene, &record).map(|()| (users, true)),
        (false, true) => take_mounts(scene, &mut record),
    });
    match taken {
        Ok((users, true)) => {
            scene.journal.remove_devices(&record.id);
            remove_files(scene, &record);
            write_after(scene);
            Ok(users)
        }
        refused => {
            record.state = State::Attached;
            scene.journal.put_devices(record.clone());
            write_after(scene);
            if let Err(error) = apply(scene, Aim::Give) {
                log::error!("undoing a detach, devices of {}: {}", record.id, chain(&error));
            }
            refused.map(|(users, _)| users)
        }
    }
}

/// Whether everything that was made for the devices is there, and nobody was seen to deny them.
pub(super) fn is_there(scene: &Scene, record: &DeviceRecord) -> Result<bool, EngineError> {
    if scene.kept.denied.is_some() {
        return Ok(false);
    }
    let nodes = record.nodes.iter().all(|node| scene.task.root().has_file(node));
    let mounts = record.mounts.iter().map(|m| scene.is_there(m)).collect::<Result<Vec<_>, _>>()?;
    Ok(nodes && mounts.into_iter().all(|is| is))
}

/// Finishes or undoes what the journal shows half done.
pub(super) fn recover(scene: &mut Scene) -> Result<(), EngineError> {
    let unfinished = scene.journal.devices.iter().filter(|r| r.state != State::Attached);
    for record in unfinished.cloned().collect::<Vec<_>>() {
        log::warn!("devices of {} were left half done: {:?}", record.id, record.state);
        undo(scene, record);
    }
    Ok(())
}
