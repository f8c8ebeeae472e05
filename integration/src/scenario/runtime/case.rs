//! One behaviour as the suite has it: its name, what it needs, and how containerd's own runtime may fail it.

use anyhow::Result;

use super::Bed;

/// One behaviour.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// What is asserted, as a sentence; unique in its room.
    pub name: &'static str,
    /// What a machine must have for it to mean anything. A case that needs nothing is run on every machine.
    pub needs: &'static [Need],
    /// Whether an emulated machine, where a container takes seconds, runs it although any other can.
    pub in_vm: bool,
    /// How containerd's own runtime may fail it, as it does now and then. Ours never may.
    pub forgiven: Option<Forgiven>,
    /// Does and asserts it; what was seen, for a person who reads along. It leaves nothing behind.
    pub run: fn(&Bed) -> Result<String>,
}

impl Case {
    /// A case of every machine.
    pub const fn new(name: &'static str, run: fn(&Bed) -> Result<String>) -> Self {
        Self { name, needs: &[], in_vm: false, forgiven: None, run }
    }

    /// Only VMs have what it needs.
    pub(super) fn needs_vm(&self) -> bool {
        self.needs.iter().any(|need| matches!(need, Need::UnifiedCgroups | Need::Systemd))
    }

    /// The same, on machines that have all of this.
    pub const fn needs(mut self, needs: &'static [Need]) -> Self {
        self.needs = needs;
        self
    }

    /// The same, on emulated machines too. (A case that needs what only they have is run there anyhow, and any case that
    /// `TEST_CASES` names.)
    pub const fn in_vm(mut self) -> Self {
        self.in_vm = true;
        self
    }

    /// The same, which containerd's own runtime is known to fail, now and then or always, with an error that holds one of
    /// these `texts`. Any other error of it is one.
    pub const fn forgiven(mut self, reason: &'static str, texts: &'static [&'static str]) -> Self {
        self.forgiven = Some(Forgiven { reason, texts });
        self
    }
}

/// A fault of containerd's own runtime that a case finds.
#[derive(Debug, Clone, Copy)]
pub struct Forgiven {
    /// What is wrong with it.
    pub(super) reason: &'static str,
    /// What an error that comes of it says.
    texts: &'static [&'static str],
}

impl Forgiven {
    /// Whether an error comes of it.
    pub(super) fn covers(&self, error: &str) -> bool {
        self.texts.iter().any(|text| error.contains(text))
    }
}

/// What not every machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The speed of a machine that is not emulated.
    Native,
    /// Control groups of containers' own, which can be frozen.
    Cgroups,
    /// The same with controllers.
    Controllers,
    /// Unified cgroups, with controllers.
    UnifiedCgroups,
    /// Cgroups of version 1.
    LegacyCgroups,
    /// systemd as the first process.
    Systemd,
    /// containerd 2.
    Containerd2,
    /// The rights of the host's root.
    Root,
    /// Not these: root in a user namespace.
    Rootless,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_that_is_known_forgives_no_other() {
        let case = Case::new("x", |_| Ok(String::new())).forgiven("it leaks", &["left after", "never came"]);
        let known = case.forgiven.unwrap();
        assert!(known.covers("runc: left after 30s: a socket") && known.covers("the event never came"));
        assert!(!known.covers("cannot connect") && !known.covers(""));
    }
}
