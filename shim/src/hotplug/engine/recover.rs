//! Calls that were cut off half-way: the journal says what was meant, the kernel what is there.

use super::{add_draining, detach::detach_lazy};
use crate::hotplug::{
    entry::Entry,
    error::EngineError,
    journal::{Mounted, Record, State},
    scene::{Pins, Scene},
};

/// Finishes or undoes what the journal shows half done. Costs nothing when all is well.
pub(super) fn recover(scene: &mut Scene) -> Result<(), EngineError> {
    let all = scene.journal.attachments.iter();
    let unfinished: Vec<Record> = all.filter(|r| r.state != State::Attached).map(Entry::to_record).collect();
    for record in unfinished {
        log::warn!("attachment {} was left half done: {:?}", record.spec.id, record.state);
        recover_one(scene, record)?;
    }
    super::devices::recover(scene)?;
    super::limits::recover(scene);
    Ok(())
}

fn recover_one(scene: &mut Scene, record: Record) -> Result<(), EngineError> {
    match record.state.clone() {
        State::Attaching if all_there(scene, &record.mounts)? => settle(scene, record),
        // Nobody was told of it, so it goes.
        State::Attaching => undo_attach(scene, record),
        // The caller wanted it gone.
        State::Detaching => detach_lazy(scene, record).map(drop),
        State::Replacing { content, mounts } if all_there(scene, &mounts)? => {
            add_draining(scene, &record, Pins::new());
            let mut record = record;
            record.spec.content = content;
            record.mounts = mounts;
            settle(scene, record)
        }
        State::Replacing { mounts, .. } => settle_mixed(scene, record, mounts),
        State::Attached => Ok(()),
    }
}

fn undo_attach(scene: &mut Scene, record: Record) -> Result<(), EngineError> {
    let _ = super::detach::take_lazily(scene, &record)?;
    scene.journal.remove(&record.spec.id);
    super::detach::remove_created(scene, &record.created);
    scene.write_journal()
}

/// Some places have the old content, some the new one: as it is said to be the old, a repeated replace swaps them all.
fn settle_mixed(scene: &mut Scene, mut record: Record, new: Vec<Mounted>) -> Result<(), EngineError> {
    for mounted in new {
        if scene.is_there(&mounted)? {
            record.mounts.retain(|m| m.path != mounted.path);
            record.mounts.push(mounted);
        }
    }
    settle(scene, record)
}

fn settle(scene: &mut Scene, mut record: Record) -> Result<(), EngineError> {
    record.state = State::Attached;
    scene.journal.put(record);
    scene.write_journal()
}

fn all_there(scene: &Scene, mounts: &[Mounted]) -> Result<bool, EngineError> {
    for mounted in mounts {
        if !scene.is_there(mounted)? {
            return Ok(false);
        }
    }
    Ok(!mounts.is_empty())
}
