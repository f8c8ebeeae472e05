//! Controllers of version 2, handed down to a container.

use std::{fs, io, path::Path};

use super::MOUNT;

/// Has every control group above that of a container hand on all controllers that the node has, as containerd's own shim
/// does: without a controller nothing is counted by it, and runtimes and systemd hand on only those that a container's
/// limits need. Returns what could not be handed on, which is no failure: the container runs and counts less.
pub fn hand_on(cgroup: &Path) -> Vec<(String, io::Error)> {
    let top = Path::new(MOUNT);
    let Ok(below) = cgroup.strip_prefix(top) else { return Vec::new() };
    let controllers = fs::read_to_string(top.join("cgroup.controllers")).unwrap_or_default();
    let mut failed = Vec::new();
    let mut parent = top.to_owned();
    for name in below {
        hand_on_from(&parent, &controllers, &mut failed);
        parent.push(name);
    }
    failed
}

/// One at a time: a write of several does nothing when one of them cannot be.
fn hand_on_from(parent: &Path, controllers: &str, failed: &mut Vec<(String, io::Error)>) {
    let file = parent.join("cgroup.subtree_control");
    let on = fs::read_to_string(&file).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        if on.split_whitespace().all(|name| name != controller)
            && let Err(error) = fs::write(&file, format!("+{controller}"))
        {
            failed.push((format!("{controller} in {}", parent.display()), error));
        }
    }
}
