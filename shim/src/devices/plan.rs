//! Which programs are to be replaced so that the attachments' devices are allowed, and nothing else changes. Pure.
//!
//! The programs themselves say what is so: ours hold what was there before them, whole. So a plan is made from what is attached
//! now and from what is wanted, never from what was done last time, and the same plan attaches, detaches, merges again after
//! a runtime's update has put a program of its own there, and finds nothing to do when all is well.

use overlayfs_utils::{Instruction, ProgramId, ProgramInfo, Sharing};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    ledger::Grants,
    program::{NAME, can_be_loaded, decode_base, encode_decisions, encode_grants},
    rules::{Device, Rule},
    runtime::{Runtime, decisions_of_crun, decisions_of_runc},
    verdict::allows,
};

/// What is done about a program that no runtime made from the container's rules, and that denies a device which is wanted: a
/// device mounter's, a later version's, or the administrator's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// It is kept, with the device before it: everything but that device stays as it decides.
    #[default]
    Merge,
    /// It is left alone, and the device is refused.
    Refuse,
}

/// What a plan is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    /// What is wanted is allowed in the end, or nothing changes.
    Give,
    /// What is not wanted any more is allowed no longer. What others deny of the rest stays denied: it was so before, and a device
    /// that is in the way of another must be one that can be taken.
    Take,
}

/// What is to be so.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// The devices of all attachments.
    pub wanted: &'a Grants,
    /// About programs of others.
    pub policy: Policy,
    /// What happens to devices that cannot be had.
    pub aim: Aim,
}

/// The programs that the container's own rules would give it.
#[derive(Debug, Clone, Default)]
pub struct Expected(Vec<Vec<Instruction>>);

impl Expected {
    /// By the rules of `config.json` and the paths of its `linux.devices`, for each runtime.
    pub fn new(rules: &[Rule], paths: &[&str]) -> Self {
        let runc =
            decisions_of_runc(rules, paths).ok().map(|decisions| encode_decisions(&decisions, Runtime::Runc));
        let crun = encode_decisions(&decisions_of_crun(rules), Runtime::Crun);
        Self(runc.into_iter().chain([crun]).collect())
    }

    fn includes(&self, program: &[Instruction]) -> bool {
        self.0.iter().any(|expected| expected == program)
    }
}

/// The programs that decide for a container now.
#[derive(Debug)]
pub struct Situation {
    /// Those of its control group.
    pub own: Vec<ProgramInfo>,
    /// Those of the control groups above, which are not for us to change.
    pub above: Vec<ProgramInfo>,
    pub sharing: Sharing,
}

/// One program instead of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub replaced: ProgramId,
    pub instructions: Vec<Instruction>,
    /// Whether the program replaced is neither ours nor what the runtime made of the container's rules.
    pub adopts: bool,
}

/// Why a device cannot be had. Nothing has been changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    #[error(
        "device {device} is denied, or not seen to be allowed, by program {program} of a control group above the container's: allow it there first"
    )]
    Above { device: Device, program: ProgramId },
    #[error(
        "device {device} is denied by program {program} ({name:?}), which is neither ours nor the runtime's: allow it there, or have such programs merged"
    )]
    Foreign { device: Device, program: ProgramId, name: String },
    #[error(
        "device program {program} ({name:?}) cannot be read in full, so it cannot be kept beside new devices: remove it first"
    )]
    Opaque { program: ProgramId, name: String },
    #[error(
        "the container's control group has a device program that takes no other beside it: remove it first"
    )]
    NotShared,
}

/// What is to be done so that what is wanted is allowed and all else is as it was. Empty when it is so.
///
/// # Errors
/// [`Refusal`].
pub fn plan_programs(
    situation: &Situation,
    expected: &Expected,
    wish: Wish<'_>,
) -> Result<Vec<Change>, Refusal> {
    let above = situation.above.iter().filter(|_| wish.aim == Aim::Give);
    for program in above {
        let allowed = |device, access| {
            program.instructions.as_deref().and_then(|code| allows(code, device, access)) == Some(true)
        };
        if let Some(denied) = wish.wanted.iter().find(|grant| !allowed(grant.device, grant.access)) {
            return Err(Refusal::Above { device: denied.device, program: program.id });
        }
    }
    let mut changes = Vec::new();
    for program in &situation.own {
        changes.extend(plan_program(program, expected, wish)?);
    }
    if !changes.is_empty() && situation.sharing != Sharing::Shared {
        return Err(Refusal::NotShared);
    }
    Ok(changes)
}

/// Programs that were loaded here and say, word for word, what another one says. Somebody who puts a program there again that
/// was replaced by ours, as systemd does, would leave one more each time.
pub fn plan_redundant(situation: &Situation) -> Vec<ProgramId> {
    let mut redundant = Vec::new();
    for program in situation.own.iter().filter(|program| program.name == NAME && program.map_count == 0) {
        let says_it_too = |other: &&ProgramInfo| {
            other.id != program.id
                && !redundant.contains(&other.id)
                && other.map_count == 0
                && other.instructions.is_some()
                && other.instructions == program.instructions
        };
        if situation.own.iter().any(|other| says_it_too(&other)) {
            redundant.push(program.id);
        }
    }
    redundant
}

fn plan_program(
    program: &ProgramInfo,
    expected: &Expected,
    wish: Wish<'_>,
) -> Result<Option<Change>, Refusal> {
    let Wish { wanted, policy, aim } = wish;
    let opaque = || Refusal::Opaque { program: program.id, name: program.name.clone() };
    let Some(present) = program.instructions.as_deref() else {
        // One of ours may allow what is to be taken.
        let nothing_of_ours = program.name != NAME && (wanted.is_empty() || aim == Aim::Take);
        return if nothing_of_ours { Ok(None) } else { Err(opaque()) };
    };
    let own = decode_base(&program.name, present);
    if own.is_none() && aim == Aim::Take {
        return Ok(None);
    }
    let base = own.unwrap_or(present);
    // What the base allows by itself needs no help, and nothing is taken back of it later.
    let denied = |grant: &_| {
        let super::Grant { device, access } = *grant;
        allows(base, device, access) != Some(true)
    };
    let needed: Grants = wanted.iter().filter(denied).collect();
    let target = match needed.is_empty() {
        true => base.to_vec(),
        false => encode_grants(&needed, base),
    };
    if target == present {
        return Ok(None);
    }
    let adopts = own.is_none() && !expected.includes(base);
    if let (true, Policy::Refuse, Some(grant)) = (adopts, policy, needed.iter().next()) {
        let (program, name) = (program.id, program.name.clone());
        return Err(Refusal::Foreign { device: grant.device, program, name });
    }
    if program.map_count > 0 || !can_be_loaded(base) {
        return Err(opaque());
    }
    Ok(Some(Change { replaced: program.id, instructions: target, adopts }))
}
