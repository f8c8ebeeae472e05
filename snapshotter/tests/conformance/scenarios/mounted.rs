//! Mounts, performed as containerd's client performs them (`core/mount/mount_linux.go`).

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use capsule_proto::containerd::types::Mount;

use super::option;

/// Room for mount options: a page, less what containerd keeps free of it.
const OPTIONS_MAX: usize = 4096 - 512;

/// A mount; unmounted when dropped.
pub struct Mounted(tempfile::TempDir);

/// Lower directories relative to the directory that holds them all, and that directory, when their full names have no
/// room (`compactLowerdirOption`).
fn compact(mount: &Mount) -> (Vec<String>, PathBuf) {
    let options: Vec<String> = mount.options.iter().filter(|option| *option != "rbind").cloned().collect();
    let Some(lower) = option(mount, "lowerdir").filter(|_| options.join(",").len() >= OPTIONS_MAX) else {
        return (options, "/".into());
    };
    let first = Path::new(lower.split(':').next().unwrap());
    let common =
        first.ancestors().find(|at| lower.split(':').all(|path| Path::new(path).starts_with(at))).unwrap();
    let relative: Vec<&str> = lower
        .split(':')
        .map(|path| Path::new(path).strip_prefix(common).unwrap().to_str().unwrap())
        .collect();
    let relative = format!("lowerdir={}", relative.join(":"));
    let shorten = |option: String| if option.starts_with("lowerdir=") { relative.clone() } else { option };
    (options.into_iter().map(shorten).collect(), common.to_owned())
}

impl Mounted {
    pub fn new(mount: &Mount) -> Self {
        let target = tempfile::tempdir().unwrap();
        let mut command = Command::new("mount");
        match mount.r#type.as_str() {
            "bind" => command.arg("--rbind"),
            other => command.args(["-t", other]),
        };
        let (options, directory) = compact(mount);
        // mount(2), as containerd does it: fsconfig(2) takes no string of more than 256 bytes.
        command.env("LIBMOUNT_FORCE_MOUNT2", "always").current_dir(directory);
        let status =
            command.args(["-o", &options.join(","), &mount.source]).arg(target.path()).status().unwrap();
        assert!(status.success(), "mounting {mount:?} needs root: {status}");
        Self(target)
    }

    pub fn root(&self) -> &Path {
        self.0.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted =
            Command::new("umount").arg(self.0.path()).status().is_ok_and(|status| status.success());
        if !unmounted {
            // Removing the directory would remove what is mounted there.
            self.0.disable_cleanup(true);
        }
    }
}
