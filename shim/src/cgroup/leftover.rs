//! Control groups that a runtime made and knows nothing of: its command was killed before it had written what it made.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::time::sleep;

use super::below;

/// How long a process takes to end whose parent, the runtime's command, was killed.
const ENDING: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(10);

/// Removes the control group `named` (the specification's `cgroupsPath`) from every hierarchy where nothing is in it.
/// The kernel refuses to remove one that is used, so a control group of anyone else stays. One that systemd is to make
/// is systemd's to remove.
///
/// What the killed command had started ends by itself, a moment later: so long this waits.
pub async fn remove(named: &str) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut left = plan(named, &mounts);
    let began = Instant::now();
    loop {
        left.retain(|path| match fs::remove_dir(path) {
            Ok(()) => {
                log::info!("removed the control group {}, in which nothing was", path.display());
                false
            }
            Err(error) => error.kind() == ErrorKind::ResourceBusy,
        });
        if left.is_empty() || began.elapsed() > ENDING {
            return;
        }
        sleep(LOOK).await;
    }
}

/// Where it may be; nothing unless it is an absolute path of plain names.
fn plan(named: &str, mounts: &str) -> Vec<PathBuf> {
    let Some(relative) = below(Path::new(named), Path::new("/")).filter(|path| *path != Path::new("")) else {
        return Vec::new();
    };
    let of = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let kind = right.split(' ').next()?;
        let mount_point = left.split(' ').nth(4)?;
        matches!(kind, "cgroup" | "cgroup2").then(|| Path::new(mount_point).join(relative))
    };
    mounts.lines().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hierarchy_is_looked_through() {
        let mounts = "31 25 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      32 31 0:28 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n\
                      33 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let both = ["/sys/fs/cgroup/unified/default/c1", "/sys/fs/cgroup/cpu/default/c1"];
        assert_eq!(plan("/default/c1", mounts), both.map(PathBuf::from));
        for other in ["", "/", "default/c1", "/default/../c1", "system.slice:cri:c1"] {
            assert!(plan(other, mounts).is_empty(), "{other:?}");
        }
    }
}
