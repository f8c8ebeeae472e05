//! What attachments do to a container's limits, as part of their calls.
//!
//! The journal holds the container's own limits and what each attachment does to them; what is to be in force follows from that, so
//! every change is: note it, apply. An attachment's limits are in force before anything of it is seen, and until nothing of it is.

mod list;
mod update;

pub use list::Limited;

use super::Engine;
use crate::{
    hotplug::{
        error::EngineError,
        journal::State,
        limited::LimitRecord,
        model::{AttachmentId, Content},
        scene::Scene,
    },
    limits::{Amounts, Change, File, Groups, LimitError, Request, Value, Words, is_told, patch},
};

/// How often the kernel is asked to take memory back: it may stop before it has what it could have.
const RECLAIMS: u32 = 3;

fn chain(error: &EngineError) -> String {
    crate::engine::chain(error)
}

fn groups(scene: &Scene) -> Result<Groups, LimitError> {
    scene.cgroup.as_deref().map(Groups::new).ok_or(LimitError::NotUnified)
}

/// A change in the files that the kernel has. Without control groups it is refused later, if it is one.
fn adapted(scene: &Scene, change: Change) -> Change {
    match groups(scene) {
        Ok(groups) => groups.adapt(change),
        Err(_) => change,
    }
}

/// Whether the journal has something else of an attachment.
fn has_more(scene: &Scene, id: &AttachmentId) -> bool {
    scene.journal.find(id).is_some() || scene.journal.find_devices(id).is_some()
}

/// Puts what an attachment does to limits in force, until [`settle`] or [`undo`]. False when it was there already.
///
/// # Errors
/// [`EngineError`]; then nothing has changed.
pub(super) fn give(
    scene: &mut Scene,
    container: &str,
    id: &AttachmentId,
    change: Change,
    undoing: bool,
) -> Result<bool, EngineError> {
    let change = adapted(scene, change);
    match scene.journal.limits.find(id) {
        Some(there) if there.change == change => {
            look_first(scene);
            return Ok(false);
        }
        None if change.is_empty() => return Ok(false),
        None if !has_more(scene, id) => {}
        _ => return Err(EngineError::Conflict(id.clone())),
    }
    if !scene.takes_capsules {
        return Err(EngineError::Disabled(container.to_owned()));
    }
    let record = LimitRecord { id: id.clone(), change, next: None, state: State::Attaching };
    put_in_force(scene, record, undoing)?;
    tell_lower_above(scene, id);
    Ok(true)
}

/// Notes that an attachment is there, with its limits.
pub(super) fn settle(scene: &mut Scene, id: &AttachmentId) {
    if let Some(record) = scene.journal.limits.records.iter_mut().find(|record| record.id == *id) {
        record.state = State::Attached;
        write_after(scene);
    }
}

/// Takes back what was given. What cannot be is told: the call has failed already.
pub(super) fn undo(scene: &mut Scene, id: &AttachmentId) {
    scene.journal.limits.remove(id);
    if let Err(error) = put_back(scene) {
        log::error!("undoing the limits of {id}: {}", chain(&error));
    }
}

/// Notes that an attachment is to go; its limits stay until [`left`]. Unless `lazy`, not when more is in use than would then be
/// allowed.
///
/// # Errors
/// [`EngineError`]; then nothing has changed.
pub(super) fn leave(scene: &mut Scene, id: &AttachmentId, lazy: bool) -> Result<(), EngineError> {
    let Some(mut record) = scene.journal.limits.find(id).cloned() else { return Ok(()) };
    look_first(scene);
    record.state = State::Detaching;
    scene.journal.limits.put(record.clone());
    let checked = if lazy { Ok(()) } else { check_use(scene) };
    checked.and_then(|()| scene.write_journal()).inspect_err(|_| {
        record.state = State::Attached;
        scene.journal.limits.put(record);
    })
}

/// Takes the limits of an attachment back that is gone, or keeps them for one that is not.
///
/// # Errors
/// [`EngineError`]; then the next call tries again.
pub(super) fn left(scene: &mut Scene, id: &AttachmentId, is_gone: bool) -> Result<(), EngineError> {
    if scene.journal.limits.find(id).is_none() {
        return Ok(());
    }
    if !is_gone {
        settle(scene, id);
        return Ok(());
    }
    scene.journal.limits.remove(id);
    put_back(scene)
}

/// Puts what an attachment with other content is to do in force, instead of what it does.
///
/// # Errors
/// [`EngineError`]; then nothing has changed.
pub(super) fn replace(
    scene: &mut Scene,
    id: &AttachmentId,
    content: &Content,
    change: Change,
    undoing: bool,
) -> Result<(), EngineError> {
    let change = adapted(scene, change);
    let there = scene.journal.limits.find(id).cloned();
    let now = there.as_ref().map(|record| record.change.clone()).unwrap_or_default();
    if now == change {
        return Ok(());
    }
    let record = there.unwrap_or(LimitRecord {
        id: id.clone(),
        change: Change::default(),
        next: None,
        state: State::Attached,
    });
    put_in_force(scene, LimitRecord { next: Some((content.clone(), change)), ..record }, undoing)?;
    tell_lower_above(scene, id);
    Ok(())
}

/// Keeps what [`replace`] has put in force, or takes it back.
pub(super) fn replaced(scene: &mut Scene, id: &AttachmentId, is_done: bool) {
    let Some(mut record) = scene.journal.limits.find(id).cloned() else { return };
    let Some((_, next)) = record.next.take() else { return };
    if is_done {
        record.change = next;
    }
    if record.change.is_empty() {
        scene.journal.limits.remove(id);
    } else {
        scene.journal.limits.put(record);
    }
    if let Err(error) = put_back(scene) {
        log::error!("after a replace, the limits of {id}: {}", chain(&error));
    }
}

/// Finishes or undoes what the journal shows half done.
pub(super) fn recover(scene: &mut Scene) {
    let mut all = scene.journal.limits.clone();
    for record in &scene.journal.limits.records {
        let mut record = record.clone();
        let (is_there, content) = (has_more(scene, &record.id), scene.journal.find(&record.id));
        if let Some((wanted, next)) = record.next.take()
            && content.is_some_and(|there| there.spec.content == wanted)
        {
            record.change = next;
        }
        if (record.state != State::Attached && !is_there) || record.change.is_empty() {
            all.remove(&record.id);
        } else {
            record.state = State::Attached;
            all.put(record);
        }
    }
    if all == scene.journal.limits && !all.has_left() {
        return;
    }
    log::warn!("the limits of the container were left half changed");
    scene.journal.limits = all;
    // The next call tries again; this one is about something else.
    if let Err(error) = put_back(scene) {
        log::error!("the limits of the container stay half changed: {}", chain(&error));
    }
}

/// Puts a record in the journal and what follows in force. When something is undone, whatever is in use: the kernel then takes back
/// what it can.
fn put_in_force(scene: &mut Scene, record: LimitRecord, undoing: bool) -> Result<(), EngineError> {
    look_again(scene)?;
    let (groups, before) = (groups(scene)?, scene.journal.limits.clone());
    let next = record.next.as_ref().map(|(_, next)| next);
    for file in next.unwrap_or(&record.change).files() {
        if !scene.journal.limits.own.contains_key(file) {
            let own = groups.read(file)?;
            scene.journal.limits.own.insert(file.clone(), own);
        }
    }
    // With memory, runtimes are told of swap: an update that names it must be kept, too.
    if scene.journal.limits.own.contains_key(&File::MemoryMax)
        && !scene.journal.limits.own.contains_key(&File::MemorySwapMax)
        && let Ok(own) = groups.read(&File::MemorySwapMax)
    {
        scene.journal.limits.own.insert(File::MemorySwapMax, own);
    }
    let grants_memory = next.unwrap_or(&record.change).grants.contains_key(&File::MemoryMax);
    scene.journal.limits.put(record);
    let check = || {
        check_cpus(scene, &groups)?;
        check_use(scene)?;
        if grants_memory { check_above(scene, &groups) } else { Ok(()) }
    };
    let checked = if undoing { Ok(()) } else { check() };
    if let Err(refused) = checked {
        scene.journal.limits = before;
        return Err(refused);
    }
    if let Err(error) = apply(scene) {
        // Files that were not changed before are put back, too.
        scene.journal.limits.records = before.records;
        if let Err(error) = put_back(scene) {
            log::error!("undoing a change of limits: {}", chain(&error));
        }
        return Err(error);
    }
    Ok(())
}

/// CPUs that the node has not, or a group above does not let it have, are none.
fn check_cpus(scene: &Scene, groups: &Groups) -> Result<(), EngineError> {
    let wanted = scene.journal.limits.wanted()?;
    if let (Some(Value::Cpus(wanted)), Some(Value::Cpus(all))) =
        (wanted.get(&File::CpusetCpus), groups.all_cpus())
        && !wanted.is_empty()
        && wanted.is_disjoint(&all)
    {
        let (cap, granted) = (Value::Cpus(wanted.clone()).to_string(), Value::Cpus(all).to_string());
        return Err(LimitError::NoCpus { granted, cap }.into());
    }
    Ok(())
}

/// Refuses memory that the groups above have not: it would be taken from neighbours, of which the kernel would kill one.
fn check_above(scene: &Scene, groups: &Groups) -> Result<(), EngineError> {
    let mut wanted = scene.journal.limits.wanted()?;
    wanted.retain(|file, _| *file == File::MemoryMax);
    let Some(Value::Number(Some(memory))) = wanted.get(&File::MemoryMax) else { return Ok(()) };
    match groups.lower_above(&wanted).into_iter().next() {
        Some((path, above)) => {
            Err(LimitError::Above { wanted: *memory, path, above: above.to_string() }.into())
        }
        None => Ok(()),
    }
}

/// Refuses what would be less than what is in use, once the kernel has taken back what it can.
fn check_use(scene: &Scene) -> Result<(), EngineError> {
    let (groups, wanted) = (groups(scene)?, scene.journal.limits.wanted()?);
    for (file, value) in wanted {
        let Value::Number(Some(limit)) = value else { continue };
        let is_lower = |now: Value| matches!(now, Value::Number(now) if now.is_none_or(|now| limit < now));
        if !matches!(file, File::MemoryMax | File::PidsMax) || !is_lower(groups.read(&file)?) {
            continue;
        }
        let over = || groups.used(&file).filter(|used| *used > limit);
        for _ in 0..RECLAIMS {
            if let (File::MemoryMax, Some(used)) = (&file, over()) {
                groups.reclaim(used - limit);
            }
        }
        if let Some(used) = over() {
            return Err(LimitError::InUse { file, limit, used }.into());
        }
    }
    Ok(())
}

/// Takes limits that somebody else has set for the container's own, and has the changes of attachments on top again.
fn look_again(scene: &mut Scene) -> Result<(), EngineError> {
    if scene.journal.limits.is_empty() {
        return Ok(());
    }
    let (groups, wanted) = (groups(scene)?, scene.journal.limits.wanted()?);
    for (file, written) in scene.journal.limits.written.clone() {
        let found = groups.read(&file)?;
        let expected = wanted.get(&file).is_some_and(|wanted| groups.is_same(&file, wanted, &found));
        if !expected && !groups.is_same(&file, &written, &found) {
            log::warn!(
                "{file} of the container was {written}, and somebody has set it to {found}: that is the container's own limit from now on"
            );
            scene.journal.limits.own.insert(file, found);
        }
    }
    if groups.differing(&scene.journal.limits.wanted()?)?.is_empty() { Ok(()) } else { apply(scene) }
}

/// The same, before something that is to be done whatever comes of it.
fn look_first(scene: &mut Scene) {
    if let Err(error) = look_again(scene) {
        log::error!("the limits of the container may not be in force: {}", chain(&error));
    }
}

/// Has the files hold what follows from the journal, which is written first.
fn apply(scene: &mut Scene) -> Result<(), EngineError> {
    scene.write_journal()?;
    let (groups, wanted) = (groups(scene)?, scene.journal.limits.wanted()?);
    if groups.differing(&wanted)?.iter().any(is_told) {
        tell(scene, &groups, &Request::new(), &wanted)?;
    }
    finish(scene, &groups, &wanted)
}

fn tell(scene: &Scene, groups: &Groups, request: &Request, wanted: &Amounts) -> Result<(), EngineError> {
    let now = groups.read_some(&[File::MemoryMax, File::MemorySwapMax]);
    let all_cpus = groups.all_cpus().map(|cpus| cpus.to_string()).unwrap_or_default();
    let words = Words { all_cpus: &all_cpus, no_quota: &|period| groups.no_quota(period) };
    let told = serde_json::Value::Object(patch(request, wanted, &now, &words)).to_string();
    let updated = scene.runtime.update(told.as_bytes()).map_err(EngineError::Runtime);
    super::devices::keep(scene);
    updated
}

/// Writes what the runtime has left, and notes what the files hold.
fn finish(scene: &mut Scene, groups: &Groups, wanted: &Amounts) -> Result<(), EngineError> {
    groups.write(wanted)?;
    let files: Vec<File> = wanted.keys().cloned().collect();
    scene.journal.limits.written = groups.read_some(&files);
    write_after(scene);
    Ok(())
}

/// As [`apply`], when a change is taken back: by the files where the runtime does not do it.
fn put_back(scene: &mut Scene) -> Result<(), EngineError> {
    if let Err(error) = apply(scene) {
        log::error!("limits are put back without the runtime: {}", chain(&error));
        let (groups, wanted) = (groups(scene)?, scene.journal.limits.wanted()?);
        finish(scene, &groups, &wanted)?;
    }
    scene.journal.limits.prune();
    write_after(scene);
    Ok(())
}

/// Tells of grants that a group above makes nothing of.
fn tell_lower_above(scene: &Scene, id: &AttachmentId) {
    let (Some(record), Ok(groups)) = (scene.journal.limits.find(id), groups(scene)) else { return };
    let change = record.next.as_ref().map_or(&record.change, |(_, next)| next);
    let mut wanted = scene.journal.limits.wanted().unwrap_or_default();
    wanted.retain(|file, _| change.grants.contains_key(file));
    for (path, lower) in groups.lower_above(&wanted) {
        log::info!("attachment {id}: its grant has no effect beyond {lower} in {}", path.display());
    }
}

/// If this fails, recovery finishes what the journal says.
fn write_after(scene: &mut Scene) {
    if let Err(unwritten) = scene.write_journal() {
        log::warn!("after a change of limits: {unwritten}");
    }
}
