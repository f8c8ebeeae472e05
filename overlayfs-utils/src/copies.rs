//! Copies of a mount, in whatever mount namespaces they are: container runtimes bind what they are given, and each container
//! has a copy of its own then, which no propagation reaches.
//!
//! The kernel lists the mount namespaces that have no process to nobody who could not list their processes, and a runtime that makes a
//! container copies in between: look again until nothing is found.

use std::{collections::HashSet, fs, io, sync::Arc};

use rustix::fs::{AtFlags, CWD, StatxFlags};

use crate::{mountinfo::MountEntry, task::PinnedTask};

/// One mount as a process sees it.
#[derive(Debug, Clone)]
pub struct MountCopy {
    /// A process of the mount namespace, to whose root `entry` is relative.
    pub task: Arc<PinnedTask>,
    /// The mount.
    pub entry: MountEntry,
}

/// All mounts for which `is_one` holds, of all processes that `/proc` shows, each once. What a process that ends meanwhile saw is left out.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn find_copies(is_one: impl Fn(&MountEntry) -> bool) -> io::Result<Vec<MountCopy>> {
    let (mut seen, mut known, mut copies) = (HashSet::new(), HashSet::new(), Vec::new());
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // One process for each view: a namespace from a root.
        let Some(view) = view_of(pid) else { continue };
        if seen.contains(&view) {
            continue;
        }
        let Ok(task) = PinnedTask::open(pid) else { continue };
        let (Ok(namespace), Ok(mounts)) = (task.mount_namespace(), task.read_mounts()) else { continue };
        // One that has ended meanwhile hides nothing: another process of the view is asked.
        seen.insert(view);
        let task = Arc::new(task);
        for entry in mounts.entries().iter().filter(|entry| is_one(entry)) {
            if known.insert((namespace, entry.id)) {
                copies.push(MountCopy { task: Arc::clone(&task), entry: entry.clone() });
            }
        }
    }
    Ok(copies)
}

/// What the kernel knows will do: a root that a container serves itself could hold the scan up.
fn view_of(pid: i32) -> Option<[u64; 3]> {
    let look = |name: &str| {
        rustix::fs::statx(CWD, format!("/proc/{pid}/{name}"), AtFlags::STATX_DONT_SYNC, StatxFlags::INO).ok()
    };
    let (namespace, root) = (look("ns/mnt")?, look("root")?);
    let device = (u64::from(root.stx_dev_major) << 32) | u64::from(root.stx_dev_minor);
    Some([namespace.stx_ino, device, root.stx_ino])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_this_process_are_found_once() {
        let root = find_copies(|entry| entry.mount_point.as_os_str() == "/").unwrap();
        let own = PinnedTask::open(i32::try_from(std::process::id()).unwrap()).unwrap();
        let own = own.mount_namespace().unwrap();
        let of_own = root.iter().filter(|copy| copy.task.mount_namespace().is_ok_and(|other| other == own));
        let ids: Vec<u64> = of_own.map(|copy| copy.entry.id).collect();
        assert!(!ids.is_empty());
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len(), "{ids:?}");
    }
}
