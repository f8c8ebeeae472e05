//! What runc and crun make of the rules in `config.json` on cgroup v2. Pure.
//!
//! Both add defaults that are not in `config.json`, and both load a program that is a list of conditions of which the first that
//! matches decides. How they get there differs:
//!
//! | | runc (`devices_emulator.go`, `devicefilter.go`) | crun (`cgroup-resources.c`, `ebpf.c`) |
//! | --- | --- | --- |
//! | order | the rules, then the defaults, each changing a set of exceptions; the conditions are sorted | the last rule that matches decides, but the defaults come before all of them |
//! | type `a` | allows or denies everything and forgets the rules before it, whatever numbers it names | as any other, with its numbers and accesses |
//! | to deny a part of what a wildcard allows | refused: the container does not start | denied |
//! | accesses of the same device in several rules | added up | each rule by itself: `r` and `w` in two rules do not allow `O_RDWR` |
//! | `/dev/console` (5:1) | not a default (since 1.0) | a default |
//! | a default with a path that is one of `linux.devices` | left out | kept |
//!
//! Neither's `update` touches the program (cgroupfs; runc 1.3.6 and crun 1.28, tried with updates that fail; runc leaves devices out of it,
//! crun too when no rules are given). Both replace a program when exactly one is attached, and otherwise attach theirs and detach all others.
//!
//! In both, a condition matches an access when it names all of it. So a rule that denies writing alone does not stop `O_RDWR`,
//! which the controller of version 1 did.

use std::collections::BTreeMap;

use thiserror::Error;

use super::rules::{Access, DeviceKind, Rule};

/// An OCI runtime whose programs are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    Runc,
    Crun,
}

/// One condition, and the answer if it matches: the access is within `access`, and the rest is the same where it is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    pub kind: Option<DeviceKind>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: Access,
    pub allow: bool,
}

/// The first condition that matches decides; `otherwise`, when none does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decisions {
    pub conditions: Vec<Condition>,
    pub otherwise: bool,
}

/// Rules with which runc starts no container.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotForRunc {
    #[error("rule {0} takes back a part of what a wildcard before it gives")]
    Hole(usize),
    #[error("rule {0} names no access")]
    NoAccess(usize),
}

/// A rule of the defaults, with the path of the node that it is for.
struct Default {
    path: Option<&'static str>,
    kind: DeviceKind,
    major: Option<u32>,
    minor: Option<u32>,
    access: Access,
}

const fn any(kind: DeviceKind) -> Default {
    Default { path: None, kind, major: None, minor: None, access: Access::MKNOD }
}

const fn node(path: Option<&'static str>, major: u32, minor: Option<u32>) -> Default {
    Default { path, kind: DeviceKind::Char, major: Some(major), minor, access: Access::ALL }
}

/// runc's, in its order (`libcontainer/specconv`, `AllowedDevices`): making nodes, the devices of every container, terminals,
/// and `/dev/net/tun`, which 1.2.0 left out and later ones have again.
const RUNC: [Default; 11] = [
    any(DeviceKind::Char),
    any(DeviceKind::Block),
    node(Some("/dev/null"), 1, Some(3)),
    node(Some("/dev/random"), 1, Some(8)),
    node(Some("/dev/full"), 1, Some(7)),
    node(Some("/dev/tty"), 5, Some(0)),
    node(Some("/dev/zero"), 1, Some(5)),
    node(Some("/dev/urandom"), 1, Some(9)),
    node(None, 136, None),
    node(None, 5, Some(2)),
    node(None, 10, Some(200)),
];

/// crun's, in its order (`default_devices`). It writes the entry that ends its table into the program too, as `c 0:0` with no
/// access, which matches nothing.
const CRUN: [Default; 13] = [
    any(DeviceKind::Char),
    any(DeviceKind::Block),
    node(None, 1, Some(3)),
    node(None, 1, Some(8)),
    node(None, 1, Some(7)),
    node(None, 5, Some(0)),
    node(None, 1, Some(5)),
    node(None, 1, Some(9)),
    node(None, 5, Some(1)),
    node(None, 136, None),
    node(None, 5, Some(2)),
    node(None, 10, Some(200)),
    Default { path: None, kind: DeviceKind::Char, major: Some(0), minor: Some(0), access: Access::NONE },
];

impl Default {
    fn rule(&self) -> Rule {
        Rule { allow: true, kind: Some(self.kind), major: self.major, minor: self.minor, access: self.access }
    }
}

/// What runc decides by `rules`, in a container that has nodes of its own at `paths` (`linux.devices`).
///
/// # Errors
/// [`NotForRunc`].
pub fn decisions_of_runc(rules: &[Rule], paths: &[&str]) -> Result<Decisions, NotForRunc> {
    let theirs = |default: &&Default| default.path.is_none_or(|path| !paths.contains(&path));
    let defaults = RUNC.iter().filter(theirs).map(Default::rule);
    let mut emulator = Emulator::default();
    for (index, rule) in rules.iter().cloned().chain(defaults).enumerate() {
        emulator.take(index, &rule)?;
    }
    let allow = !emulator.otherwise;
    // Sorted as runc sorts them: by major, minor and type, wildcards first.
    let condition =
        |((major, minor, kind), access)| Condition { kind: Some(kind), major, minor, access, allow };
    let conditions = emulator.exceptions.into_iter().map(condition).collect();
    Ok(Decisions { conditions, otherwise: emulator.otherwise })
}

/// Which devices are excepted from what holds otherwise: runc's model of the controller of version 1.
#[derive(Default)]
struct Emulator {
    otherwise: bool,
    exceptions: BTreeMap<(Option<u32>, Option<u32>, DeviceKind), Access>,
}

impl Emulator {
    fn take(&mut self, index: usize, rule: &Rule) -> Result<(), NotForRunc> {
        if rule.access.is_empty() {
            return Err(NotForRunc::NoAccess(index));
        }
        let Some(kind) = rule.kind else {
            *self = Self { otherwise: rule.allow, exceptions: BTreeMap::new() };
            return Ok(());
        };
        let key = (rule.major, rule.minor, kind);
        if rule.allow != self.otherwise {
            let accesses = self.exceptions.entry(key).or_insert(Access::NONE);
            *accesses = accesses.union(rule.access);
            return Ok(());
        }
        let wider = [(None, rule.minor, kind), (rule.major, None, kind), (None, None, kind)];
        let part = |wide: &_| self.exceptions.get(wide).is_some_and(|held| held.overlaps(rule.access));
        if wider.iter().any(|wide| *wide != key && part(wide)) {
            return Err(NotForRunc::Hole(index));
        }
        if let Some(accesses) = self.exceptions.get_mut(&key) {
            *accesses = accesses.without(rule.access);
            if accesses.is_empty() {
                self.exceptions.remove(&key);
            }
        }
        Ok(())
    }
}

/// What crun decides by `rules`.
pub fn decisions_of_crun(rules: &[Rule]) -> Decisions {
    let defaults = CRUN.iter().rev().map(Default::rule);
    let mut conditions = Vec::new();
    for rule in defaults.chain(rules.iter().rev().cloned()) {
        let Rule { allow, kind, major, minor, access } = rule;
        if (kind, major, minor, access) == (None, None, None, Access::ALL) {
            return Decisions { conditions, otherwise: allow };
        }
        conditions.push(Condition { kind, major, minor, access, allow });
    }
    Decisions { conditions, otherwise: false }
}
