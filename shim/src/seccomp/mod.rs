//! System calls that attached capsules deny: to a container that is created with them, and to processes that are started later.
//!
//! Denials come on top of the container's own filter (`linux.seccomp` of the OCI runtime specification): nothing is ever allowed
//! that it denies, and a denied call gets an error, EPERM but for `clone3`, which gets ENOSYS: at that glibc asks with `clone`.
//!
//! No runtime takes a filter for one more process: it has the container's, from the runtime's own record. So such a process is
//! made by a runtime that is shown a copy of that record ([`Narrowed`]).
//!
//! | runtime | its record | where the filter is |
//! | --- | --- | --- |
//! | runc 1.1 to 1.3 | `state.json` | `config.seccomp`, by names: [`profile`] |
//! | crun 1.21 to 1.28 | `status`, `config.json`, `seccomp.bpf` | `seccomp.bpf`, the kernel's program ([`program`]); `config.json` has no say any more |

mod profile;
mod program;
mod record;

use std::collections::BTreeSet;

pub use profile::{ProfileError, narrow_spec};
pub use program::ProgramError;
pub use record::{Narrowed, RecordError, check};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// Names of system calls, as the kernel's tables have them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Denied(BTreeSet<String>);

impl Denied {
    /// Validates names.
    ///
    /// # Errors
    /// The first that no table has that is known here.
    pub fn parse(names: Vec<String>) -> Result<Self, String> {
        match names.iter().find(|name| !program::is_call(name)) {
            Some(unknown) => Err(unknown.clone()),
            None => Ok(Self(names.into_iter().collect())),
        }
    }

    /// Adds others.
    pub fn extend(&mut self, others: &Self) {
        self.0.extend(others.0.iter().cloned());
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The names, in the order of the alphabet.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether it has all of others.
    pub fn has_all(&self, others: &Self) -> bool {
        others.0.is_subset(&self.0)
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

/// What a denied call gets.
fn errno_of(name: &str) -> u32 {
    let errno = if name == "clone3" { Errno::NOSYS } else { Errno::PERM };
    errno.raw_os_error().unsigned_abs()
}

#[cfg(test)]
pub(crate) fn denied(names: &[&str]) -> Denied {
    Denied::parse(names.iter().map(|name| (*name).to_owned()).collect()).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_kernels() {
        let names = |all: &[&str]| Denied::parse(all.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(
            names(&["ptrace", "mount", "ptrace"]).unwrap().names().collect::<Vec<_>>(),
            ["mount", "ptrace"]
        );
        // Of another table than the node's own.
        assert!(names(&["umount"]).is_ok());
        assert_eq!(names(&["mount", "mounts"]), Err("mounts".to_owned()));
        assert_eq!((errno_of("mount"), errno_of("clone3")), (1, 38));
    }
}
