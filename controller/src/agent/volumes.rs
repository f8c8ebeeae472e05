//! Volumes of the node: which are made, moved and removed, and what is said of all that are there. Planning is pure: what is wanted, what was
//! said, and what capsuled has, in; steps, and what to say before them, out.
//!
//! Volumes that nobody asks anything of are said as they are: whoever mounts them is another program.

use std::time::Duration;

use capsule_proto::capsule::v1;
use futures::{StreamExt as _, stream};
use tonic::{Code, Status};

use super::{
    CALM, LATER, SOON,
    node::{Node, is_away},
    plan::Versions,
};
use crate::api::{VolumeDone, VolumeMode, VolumeState, VolumeWanted};

/// How many are worked on at once.
const AT_ONCE: usize = 4;

/// What capsuled has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum There {
    /// All of it.
    Known(Vec<Listed>),
    /// It does not say, and why.
    Unknown(String),
}

/// A volume that capsuled has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub id: String,
    /// Its version; empty where it has none.
    pub version: String,
    /// The digest of that.
    pub digest: String,
    /// At how many paths it is mounted.
    pub mounts: usize,
}

impl From<v1::Volume> for Listed {
    fn from(one: v1::Volume) -> Self {
        Self { id: one.id, version: one.version, digest: one.digest, mounts: one.paths.len() }
    }
}

/// What is to be done about a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Make it, or see that it is as it was to be made: in this version.
    Make(Box<VolumeWanted>, String),
    /// Put this version into it.
    Replace(String),
    /// Remove it.
    Remove,
}

/// A volume, what is said of it before the step, and the step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Its name.
    pub id: String,
    /// To be said before the step is taken; nothing of what is not there.
    pub said: Option<VolumeDone>,
    /// What is to be done.
    pub step: Step,
}

/// Plans for all volumes, by id.
pub fn plan(
    wanted: &[VolumeWanted],
    before: &[VolumeDone],
    there: &There,
    versions: &Versions,
) -> Vec<Planned> {
    let is_wanted = |id: &str| wanted.iter().any(|one| one.id == id);
    let mut planned: Vec<Planned> = match there {
        There::Unknown(why) => {
            let kept = before.iter().filter(|one| !is_wanted(&one.id)).map(|one| rest(one.clone()));
            wanted.iter().map(|one| unknown(one, before, why)).chain(kept).collect()
        }
        There::Known(all) => {
            let others = all.iter().filter(|one| !is_wanted(&one.id)).map(|one| rest(done(one, None)));
            wanted.iter().filter_map(|one| plan_wanted(one, before, all, versions)).chain(others).collect()
        }
    };
    planned.sort_by(|a, b| a.id.cmp(&b.id));
    planned
}

fn rest(said: VolumeDone) -> Planned {
    Planned { id: said.id.clone(), said: Some(said), step: Step::Rest }
}

/// As it is.
fn done(one: &Listed, asked: Option<String>) -> VolumeDone {
    let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    VolumeDone {
        id: one.id.clone(),
        state: VolumeState::Made,
        asked,
        version: some(&one.version),
        digest: some(&one.digest),
        mounts: i32::try_from(one.mounts).unwrap_or(i32::MAX),
        full: false,
        message: None,
    }
}

/// Nothing is taken for gone that capsuled does not say to be.
fn unknown(wanted: &VolumeWanted, before: &[VolumeDone], why: &str) -> Planned {
    let was = before.iter().find(|one| one.id == wanted.id).cloned();
    let was = was.unwrap_or_else(|| none(wanted));
    let state = if wanted.goes { VolumeState::Removing } else { VolumeState::Failed };
    rest(VolumeDone {
        state,
        asked: wanted.version.clone(),
        full: false,
        message: Some(why.to_owned()),
        ..was
    })
}

/// One that could not be made.
fn none(wanted: &VolumeWanted) -> VolumeDone {
    VolumeDone {
        id: wanted.id.clone(),
        state: VolumeState::Failed,
        asked: wanted.version.clone(),
        version: None,
        digest: None,
        mounts: 0,
        full: false,
        message: None,
    }
}

fn plan_wanted(
    wanted: &VolumeWanted,
    before: &[VolumeDone],
    all: &[Listed],
    versions: &Versions,
) -> Option<Planned> {
    let was = before.iter().find(|one| one.id == wanted.id);
    let there = all.iter().find(|one| one.id == wanted.id);
    let planned = |said: Option<VolumeDone>, step| Some(Planned { id: wanted.id.clone(), said, step });
    let is_written = wanted.mode == VolumeMode::Rw;
    match there {
        Some(there) if wanted.goes => {
            let message =
                was.filter(|was| was.state == VolumeState::Removing).and_then(|was| was.message.clone());
            let said = VolumeDone { state: VolumeState::Removing, message, ..done(there, None) };
            planned(Some(said), Step::Remove)
        }
        // One that is only read is made by whoever mounts it.
        None if wanted.goes || !is_written => None,
        None => {
            let said = was.filter(|was| was.state == VolumeState::Failed).cloned();
            planned(said, Step::Make(Box::new(wanted.clone()), wanted.version.clone().unwrap_or_default()))
        }
        // What was there before anybody asked may be another: capsuled says so.
        Some(there)
            if is_written
                && wanted.size.is_some()
                && was.is_none_or(|was| was.state != VolumeState::Made) =>
        {
            let said = was.filter(|was| was.state == VolumeState::Failed).cloned();
            planned(said, Step::Make(Box::new(wanted.clone()), there.version.clone()))
        }
        Some(there) => {
            let (said, step) = plan_version(wanted, there, versions);
            planned(Some(said), step)
        }
    }
}

/// Whether it has the version that is asked for.
fn plan_version(wanted: &VolumeWanted, there: &Listed, versions: &Versions) -> (VolumeDone, Step) {
    let (Some(capsule), Some(asked)) = (&wanted.capsule, &wanted.version) else {
        return (done(there, None), Step::Rest);
    };
    match versions.get(&(capsule.clone(), asked.clone())) {
        Some(Ok(version)) if *version == there.version => (done(there, Some(asked.clone())), Step::Rest),
        Some(Err(why)) => {
            let message = Some(why.clone());
            (
                VolumeDone { state: VolumeState::Failed, message, ..done(there, Some(asked.clone())) },
                Step::Rest,
            )
        }
        // Until it is moved, what is said is what it was.
        _ => (done(there, None), Step::Replace(asked.clone())),
    }
}

/// The versions that volumes are to have, by capsule.
pub fn asked(wanted: &[VolumeWanted]) -> impl Iterator<Item = (&str, &str)> {
    wanted
        .iter()
        .filter(|one| !one.goes)
        .filter_map(|one| Some((one.capsule.as_deref()?, one.version.as_deref()?)))
}

/// Takes the steps; what is left to say.
pub async fn take(planned: Vec<Planned>, node: &Node) -> Vec<VolumeDone> {
    let work = planned.into_iter().map(|one| take_one(one, node));
    stream::iter(work).buffered(AT_ONCE).filter_map(async |done| done).collect().await
}

async fn take_one(Planned { id, said, step }: Planned, node: &Node) -> Option<VolumeDone> {
    let (failed, outcome) = match &step {
        Step::Rest => return said,
        Step::Make(wanted, version) => {
            let made = node.create_volume(wanted, version).await;
            // One that was there may have another version: that is seen in a moment.
            let asked = wanted.version.clone().filter(|asked| asked == version);
            (none(wanted), made.map(|made| Some(done(&made, asked))))
        }
        Step::Replace(version) => {
            let was = said.clone()?;
            let moved = node.replace_volume(&id, version).await;
            let moved = moved.map(|(moved, left)| {
                if left > 0 {
                    // It is tried again by capsuled, until they have ended.
                    tracing::warn!(
                        volume = id,
                        version,
                        left,
                        "mounts in containers have the version before"
                    );
                }
                Some(VolumeDone { mounts: was.mounts, ..done(&moved, Some(version.clone())) })
            });
            (VolumeDone { state: VolumeState::Failed, asked: Some(version.clone()), ..was }, moved)
        }
        Step::Remove => (said.clone()?, node.remove_volume(&id).await.map(|()| None)),
    };
    outcome.unwrap_or_else(|error| {
        tracing::info!(volume = id, error = error.message(), "not done");
        if is_away(&error) { said } else { Some(told(failed, &error)) }
    })
}

fn told(failed: VolumeDone, error: &Status) -> VolumeDone {
    let full = error.code() == Code::ResourceExhausted && failed.state == VolumeState::Failed;
    VolumeDone { full, message: Some(error.message().to_owned()), ..failed }
}

/// How long until all is looked at again: where all is as it is wanted, where something is about to be, and where something cannot be.
pub fn pause(wanted: &[VolumeWanted], said: &[VolumeDone]) -> Duration {
    let of_one = |wanted: &VolumeWanted| match said.iter().find(|one| one.id == wanted.id) {
        Some(said) if wanted.goes || said.state != VolumeState::Made => LATER,
        Some(said) if said.asked == wanted.version => CALM,
        None if wanted.goes => CALM,
        _ => SOON,
    };
    wanted.iter().map(of_one).min().unwrap_or(CALM)
}

#[cfg(test)]
mod tests;
