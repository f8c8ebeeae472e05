//! Mappings of ids, and the user namespaces that the kernel wants them as.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::fd::OwnedFd,
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
};
use thiserror::Error;

use crate::sys;

/// A text that is no mapping.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no mapping of ids: use CONTAINER:HOST:LENGTH, several with commas between them")]
pub struct InvalidMapping(String);

/// Which ids inside are which outside (user_namespaces(7)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMapping {
    /// As `/proc/PID/uid_map` takes it: a line for each run of ids.
    lines: String,
}

impl IdMapping {
    /// Takes `CONTAINER:HOST:LENGTH`, several with commas between them, as containerd writes them (`core/mount`,
    /// `parseIDMappingList`). Runs that overlap are left to the kernel, which refuses them.
    ///
    /// # Errors
    /// [`InvalidMapping`] when it is not of numbers, or a run is empty.
    pub fn parse(text: &str) -> Result<Self, InvalidMapping> {
        let invalid = || InvalidMapping(text.to_owned());
        let mut lines = String::new();
        for run in text.split(',') {
            let numbers: Vec<u32> =
                run.split(':').map(str::parse).collect::<Result<_, _>>().map_err(|_| invalid())?;
            match numbers[..] {
                [inside, outside, length] if length > 0 => lines += &format!("{inside} {outside} {length}\n"),
                _ => return Err(invalid()),
            }
        }
        Ok(Self { lines })
    }

    /// The same and, where it has nothing outside that is root, one more: root outside is inside an id that nothing else has.
    ///
    /// For upper directories of overlays: overlayfs makes its work directory, and what it copies up, as whoever mounts it, and
    /// without an id for that one mounts read-only (`EOVERFLOW`, seen on Linux 6.18).
    #[must_use]
    pub fn with_root_outside(mut self) -> Self {
        let is_root = |line: &str| line.split_whitespace().nth(1) == Some("0");
        if !self.lines.lines().any(is_root) {
            self.lines += &format!("{NOBODY_ELSE} 0 1\n");
        }
        self
    }

    /// As the kernel shows it in `/proc/PID/uid_map`.
    pub(crate) fn of_map(text: &str) -> Self {
        let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n";
        Self { lines: text.lines().map(line).collect() }
    }
}

/// The last id but one that means none: no tool gives it to a user.
const NOBODY_ELSE: u32 = u32::MAX - 1;

/// Whether this process is in another user namespace than the initial one: its `root` is some user of the host then, and the
/// kernel gives it neither `trusted.*` attributes nor mounts without the flags that they have (user_namespaces(7)).
///
/// # Errors
/// When `/proc/self/uid_map` cannot be read.
pub fn in_user_namespace() -> io::Result<bool> {
    Ok(!is_initial(&fs::read_to_string("/proc/self/uid_map")?))
}

/// Whether a map is that of the initial user namespace: every id is itself.
fn is_initial(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Why there is no user namespace.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum UserNamespaceError {
    /// `clone3`: no process for it. `ENOSPC` at the limit of `user.max_user_namespaces`, `EPERM` in a chroot.
    #[error("cannot start a process in a new user namespace (clone3)")]
    Clone(#[source] Errno),
    /// Its mapping.
    #[error("cannot write {path}: {lines:?}")]
    Map {
        /// The file.
        path: String,
        /// What was written.
        lines: String,
        /// The kernel's refusal: `EINVAL` for runs that overlap, `EPERM` for ids that the caller may not give.
        #[source]
        source: io::Error,
    },
    /// Its descriptor.
    #[error("cannot open the new user namespace {0}")]
    Open(String, #[source] Errno),
}

/// A new user namespace with these mappings, in which nobody is: what [`Tree::id_mapped`](crate::Tree::id_mapped) takes.
///
/// For the making a child process exists for a moment, which runs no code but a wait for its end, and says nothing to the
/// caller when it ends (no `SIGCHLD`).
///
/// # Errors
/// [`UserNamespaceError`], by step.
pub fn new_user_namespace(uids: &IdMapping, gids: &IdMapping) -> Result<OwnedFd, UserNamespaceError> {
    let child = sys::IdleChild::in_new_user_namespace().map_err(UserNamespaceError::Clone)?;
    for (file, mapping) in [("uid_map", uids), ("gid_map", gids)] {
        let path = format!("/proc/{}/{file}", child.pid());
        // The kernel takes a mapping in one write only.
        let written = OpenOptions::new().write(true).open(&path);
        written.and_then(|mut file| file.write_all(mapping.lines.as_bytes())).map_err(|source| {
            let lines = mapping.lines.clone();
            UserNamespaceError::Map { path, lines, source }
        })?;
    }
    let path = format!("/proc/{}/ns/user", child.pid());
    rustix::fs::openat(CWD, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| UserNamespaceError::Open(path, errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_outside_has_an_id_inside() {
        let shown = IdMapping::of_map("         0     100000      65536\n     65536          7          1\n");
        assert_eq!(shown.lines, "0 100000 65536\n65536 7 1\n");
        assert_eq!(shown.with_root_outside().lines, "0 100000 65536\n65536 7 1\n4294967294 0 1\n");
        let whole = IdMapping::parse("0:0:65536").unwrap();
        assert_eq!(whole.clone().with_root_outside(), whole);
    }

    #[test]
    fn mappings_are_of_numbers() {
        let lines = |text| IdMapping::parse(text).map(|mapping| mapping.lines);
        assert_eq!(lines("0:100000:65536").unwrap(), "0 100000 65536\n");
        assert_eq!(lines("0:1000:1,1:100000:9").unwrap(), "0 1000 1\n1 100000 9\n");
        for bad in ["", "0:1", "0:1:2:3", "0:1:0", "-1:0:1", "0:1:2,", "a:b:c", "0:1:99999999999"] {
            assert!(lines(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_the_full_identity_map_is_the_initial_user_namespace() {
        assert!(is_initial("         0          0 4294967295\n"));
        assert!(!is_initial("0 1000 1\n"));
        assert!(!is_initial("0 0 4294967295\n5 5 1\n"));
    }

    #[test]
    fn privileged_a_user_namespace_has_the_mapping_and_no_process() {
        let mapping = IdMapping::parse("0:100000:65536").unwrap();
        let namespace = new_user_namespace(&mapping, &mapping).expect("run this as root");
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&namespace));
        let target = fs::read_link(link).unwrap();
        assert!(target.to_str().unwrap().starts_with("user:["), "{target:?}");
        assert_ne!(target, fs::read_link("/proc/self/ns/user").unwrap());
        let overlapping = IdMapping::parse("0:100000:5,3:100100:5").unwrap();
        let error = new_user_namespace(&overlapping, &mapping).unwrap_err();
        assert!(error.to_string().contains("uid_map"), "{error}");
    }
}
