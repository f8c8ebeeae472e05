//! What `start` puts on itself just before it starts the server, which inherits it: the cgroup that was asked for, the
//! OOM score, a core scheduling cookie. The server is never without them.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use overlayfs_utils::in_user_namespace;
use rustix::thread::CoreSchedulingScope;
use thiserror::Error;

/// Where cgroups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";
/// The hierarchy of version 2 on a host that has both, which containerd's own shim leaves alone as well.
const UNIFIED: &str = "unified";
/// `oom_score_adj`'s range ends here (`proc(5)`).
const OOM_SCORE_MAX: i32 = 1000;

/// Something that `start` could not put on itself.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// Not a path in the hierarchy.
    #[error("ShimCgroup {0:?} is not a cgroup path: it begins with / and has no ..")]
    Path(String),
    /// No hierarchy has it.
    #[error("ShimCgroup {0:?} does not exist: it has to be made before")]
    NoCgroup(String),
    /// It cannot be entered.
    #[error("cannot put the shim in cgroup {}", .0.display())]
    Join(PathBuf, #[source] io::Error),
    /// The hierarchies cannot be seen.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// The OOM score.
    #[error("cannot set the OOM score in {}", .0.display())]
    Score(PathBuf, #[source] io::Error),
    /// The cookie.
    #[error("cannot enable core scheduling, which SCHED_CORE asks for")]
    Core(#[source] io::Error),
}

/// Enters the cgroup `asked`, in each hierarchy of version 1 that has it, or in version 2's.
///
/// # Errors
/// [`ConfineError`]; it may have been entered in part of the hierarchies.
pub fn join_cgroup(asked: &str) -> Result<(), ConfineError> {
    let root = Path::new(CGROUPS);
    // Only the root of version 2's hierarchy has this file (cgroups(7)).
    let unified = root.join("cgroup.controllers").exists();
    let files = members(root, asked, unified)?;
    if files.is_empty() {
        return Err(ConfineError::NoCgroup(asked.to_owned()));
    }
    for file in files {
        // 0 is the writer.
        fs::write(&file, "0").map_err(|e| ConfineError::Join(file, e))?;
    }
    Ok(())
}

/// The `cgroup.procs` files of the cgroup `asked` that there are.
fn members(root: &Path, asked: &str, unified: bool) -> Result<Vec<PathBuf>, ConfineError> {
    let path = Path::new(asked);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain {
        return Err(ConfineError::Path(asked.to_owned()));
    }
    let inside = path.strip_prefix("/").unwrap_or(path).join("cgroup.procs");
    let mut hierarchies = vec![root.to_owned()];
    if !unified {
        let read = |e| ConfineError::Read(root.to_owned(), e);
        let entries = fs::read_dir(root).map_err(read)?.collect::<Result<Vec<_>, _>>().map_err(read)?;
        let own = entries.iter().filter(|entry| entry.file_name() != UNIFIED);
        hierarchies = own.map(fs::DirEntry::path).collect();
    }
    let files = hierarchies.into_iter().map(|hierarchy| hierarchy.join(&inside));
    Ok(files.filter(|file| file.exists()).collect())
}

/// One more than containerd's score, so that the kernel ends the shim before containerd, and containers (which the
/// runtime gives theirs) before both when their specs say so. containerd is this process' parent.
///
/// In a user namespace this process may not be allowed to: then it goes without, as containerd's own shim does.
///
/// # Errors
/// [`ConfineError::Score`].
pub fn raise_oom_score() -> Result<(), ConfineError> {
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    let path = PathBuf::from(format!("/proc/{parent}/oom_score_adj"));
    let text = fs::read_to_string(&path).map_err(|e| ConfineError::Score(path.clone(), e))?;
    let score: i32 = text.trim().parse().unwrap_or_default();
    let own = PathBuf::from("/proc/self/oom_score_adj");
    let raised = (score + 1).min(OOM_SCORE_MAX).to_string();
    match fs::write(&own, raised) {
        Err(error) if is_for_root_alone(&error, in_user_namespace().unwrap_or(false)) => {
            log::debug!("the OOM score stays: {error}");
            Ok(())
        }
        written => written.map_err(|e| ConfineError::Score(own, e)),
    }
}

/// Whether an error is what root in a user namespace has to live with.
fn is_for_root_alone(error: &io::Error, rootless: bool) -> bool {
    rootless && error.kind() == io::ErrorKind::PermissionDenied
}

/// Makes a cookie for this process' group, which what it starts inherits (Linux 5.14, `CONFIG_SCHED_CORE`).
///
/// # Errors
/// [`ConfineError::Core`].
pub fn schedule_on_own_cores() -> Result<(), ConfineError> {
    let scope = CoreSchedulingScope::ProcessGroup;
    rustix::thread::create_core_scheduling_cookie(rustix::process::getpid(), scope)
        .map_err(|e| ConfineError::Core(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lack_of_permission_in_a_user_namespace_is_lived_with() {
        use rustix::io::Errno;
        for (errno, rootless, lived_with) in [
            (Errno::ACCESS, true, true),
            (Errno::PERM, true, true),
            (Errno::ACCESS, false, false),
            (Errno::ROFS, true, false),
        ] {
            assert_eq!(is_for_root_alone(&errno.into(), rootless), lived_with, "{errno} {rootless}");
        }
    }

    #[test]
    fn a_cgroup_is_found_in_each_hierarchy_that_has_it() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            fs::create_dir_all(root.path().join(path)).unwrap();
            fs::write(root.path().join(path).join("cgroup.procs"), "").unwrap();
        };
        for path in ["memory/shims", "pids/shims", "cpu", "unified/shims", "shims"] {
            make(path);
        }
        let found = |asked, unified| {
            let mut files = members(root.path(), asked, unified).unwrap();
            files.sort();
            files.iter().map(|file| file.strip_prefix(root.path()).unwrap().to_owned()).collect::<Vec<_>>()
        };
        let expected: Vec<_> =
            ["memory", "pids"].map(|name| PathBuf::from(name).join("shims/cgroup.procs")).into();
        assert_eq!(found("/shims", false), expected);
        assert_eq!(found("/shims", true), [PathBuf::from("shims/cgroup.procs")]);
        assert!(found("/none", false).is_empty());
        for wrong in ["shims", "/a/../shims", ""] {
            assert!(matches!(members(root.path(), wrong, true), Err(ConfineError::Path(_))), "{wrong}");
        }
    }
}
