//! Replaces the device programs of a control group: all that a plan names, or none.

use std::fmt;

use overlayfs_utils::{BpfError, BpfStep, DeviceCgroup, DeviceProgram, ProgramId};

use super::{
    DeviceError,
    plan::{Change, Expected, Situation, Wish, plan_programs, plan_redundant},
    program::NAME,
};

/// How often is looked again when somebody else changes programs at the same time.
const ATTEMPTS: usize = 8;

/// What was done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The programs that are there instead of others.
    pub loaded: Vec<ProgramId>,
    /// Those replaced that were neither ours nor the runtime's. Their rules are kept in ours.
    pub adopted: Vec<Adopted>,
}

/// A program that is kept behind ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    pub id: ProgramId,
    pub name: String,
}

impl Adopted {
    /// Whether it is called as systemd's are (`bpf_devices`): under its driver each container has one.
    pub fn is_systemds(&self) -> bool {
        self.name == "sd_devices"
    }
}

impl fmt::Display for Adopted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.id, self.name)
    }
}

/// Has `cgroup` allow what is wished, and everything else as the programs say that others put there.
///
/// It looks, changes, and looks again until nothing is left to change, so that a program which somebody attaches at the same time
/// is either allowed for or refused. The next call with the same wish does nothing, unless somebody took it away.
/// A process that dies in here leaves each program either replaced or as it was, and the next call goes on.
///
/// # Errors
/// [`DeviceError`]. But for [`DeviceError::Half`], the programs are those from before the call.
pub fn apply(cgroup: &DeviceCgroup, expected: &Expected, wish: Wish<'_>) -> Result<Applied, DeviceError> {
    let (mut done, mut adopted) = (Vec::new(), Vec::new());
    let outcome = replace_until_done(cgroup, expected, wish, &mut done, &mut adopted);
    match outcome {
        Ok(()) => {
            let loaded = done.iter().map(|swap: &Swap| swap.new_id).collect();
            Ok(Applied { loaded, adopted })
        }
        Err(cause) => Err(undo(cgroup, done, cause)),
    }
}

/// A replacement that was made. The program replaced is kept loaded, to be put back itself.
struct Swap {
    old: DeviceProgram,
    new: DeviceProgram,
    new_id: ProgramId,
}

fn replace_until_done(
    cgroup: &DeviceCgroup,
    expected: &Expected,
    wish: Wish<'_>,
    done: &mut Vec<Swap>,
    adopted: &mut Vec<Adopted>,
) -> Result<(), DeviceError> {
    for _ in 0..ATTEMPTS {
        let Some(situation) = gone_is_none(read_situation(cgroup))?.flatten() else { continue };
        let changes = plan_programs(&situation, expected, wish)?;
        if changes.is_empty() {
            remove_redundant(cgroup, &situation);
            return Ok(());
        }
        // All are loaded before one is attached: what the verifier refuses has changed nothing.
        let Some(loaded) = gone_is_none(changes.iter().map(load).collect::<Result<Vec<_>, _>>())? else {
            continue;
        };
        for (swap, change) in loaded.into_iter().zip(changes) {
            if gone_is_none(cgroup.replace(&swap.old, &swap.new))?.is_none() {
                break;
            }
            if change.adopts {
                adopted.extend(
                    situation
                        .own
                        .iter()
                        .filter(|own| own.id == change.replaced)
                        .map(|own| Adopted { id: own.id, name: own.name.clone() }),
                );
            }
            done.push(swap);
        }
    }
    Err(DeviceError::Restless)
}

/// One that stays, or has gone by itself, changes nothing.
fn remove_redundant(cgroup: &DeviceCgroup, situation: &Situation) {
    for id in plan_redundant(situation) {
        let removed = DeviceProgram::open(id).and_then(|program| cgroup.detach(&program));
        if let Err(error) = removed {
            log::debug!("device program {id} stays: {error}");
        }
    }
}

fn load(change: &Change) -> Result<Swap, BpfError> {
    let old = DeviceProgram::open(change.replaced)?;
    let new = DeviceProgram::load(NAME, &change.instructions)?;
    let new_id = new.info()?.id;
    Ok(Swap { old, new, new_id })
}

/// A program that has gone means that somebody else was faster, and a look at what is there now says what is left to do.
fn gone_is_none<T>(result: Result<T, BpfError>) -> Result<Option<T>, BpfError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_gone() && matches!(error.step, BpfStep::Open | BpfStep::Replace) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `None` when somebody changed it while it was read.
fn read_situation(cgroup: &DeviceCgroup) -> Result<Option<Situation>, BpfError> {
    let attached = cgroup.attached()?;
    let mut effective = cgroup.effective()?;
    // What is only in the second of two lists that were not read at once may be of this control group nevertheless.
    if cgroup.attached()? != attached {
        return Ok(None);
    }
    let info = |id: &ProgramId| DeviceProgram::open(*id)?.info();
    let own = attached.programs.iter().map(info).collect::<Result<_, _>>()?;
    for id in &attached.programs {
        // Once each: the same program may be at a control group above too.
        if let Some(index) = effective.iter().position(|other| other == id) {
            effective.remove(index);
        }
    }
    let above = effective.iter().map(info).collect::<Result<_, _>>()?;
    Ok(Some(Situation { own, above, sharing: attached.sharing }))
}

/// Puts back what was replaced, the last first. What somebody else has replaced since stays as they made it.
fn undo(cgroup: &DeviceCgroup, done: Vec<Swap>, cause: DeviceError) -> DeviceError {
    let mut failed = None;
    for swap in done.iter().rev() {
        match cgroup.replace(&swap.new, &swap.old) {
            Ok(()) => {}
            Err(error) if error.is_gone() => {}
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(undo) => DeviceError::Half { cause: Box::new(cause), undo },
        None => cause,
    }
}
