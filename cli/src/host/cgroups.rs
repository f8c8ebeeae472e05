//! Control groups of the machine, and who manages them.

use std::fs;
use std::path::Path;

/// Where control groups are mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// Where systemd says that it runs the machine (`sd_booted(3)`).
const SYSTEMD: &str = "/run/systemd/system";
/// Where kubeadm puts the kubelet's configuration.
const KUBELET: &str = "/var/lib/kubelet/config.yaml";

/// How control groups are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cgroups {
    /// Version 2 alone, with these controllers.
    Unified(Vec<String>),
    /// Version 1 for controllers, with version 2 beside it for systemd.
    Hybrid,
    /// Version 1.
    Old,
    /// Not at all.
    Nowhere,
}

impl Cgroups {
    /// Looks at what is mounted.
    pub fn read() -> Self {
        let root = Path::new(ROOT);
        if let Ok(controllers) = fs::read_to_string(root.join("cgroup.controllers")) {
            return Self::Unified(controllers.split_whitespace().map(str::to_owned).collect());
        }
        if root.join("unified/cgroup.controllers").exists() {
            return Self::Hybrid;
        }
        let mut folders = fs::read_dir(root).into_iter().flatten().filter_map(Result::ok);
        if folders.any(|folder| folder.path().join("cgroup.procs").exists()) {
            Self::Old
        } else {
            Self::Nowhere
        }
    }
}

/// Who manages the control groups of containers, as far as the machine says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Driver {
    /// Whether the kubelet has systemd do it; `None` where no kubelet is configured.
    pub kubelet: Option<bool>,
    /// Whether systemd runs the machine.
    pub systemd: bool,
}

impl Driver {
    /// Looks at the kubelet's configuration, and for systemd.
    pub fn read() -> Self {
        let kubelet = fs::read_to_string(KUBELET).ok().map(|text| kubelet_driver(&text));
        Self { kubelet, systemd: Path::new(SYSTEMD).exists() }
    }

    /// What `SystemdCgroup` should be.
    pub fn fits(self) -> bool {
        self.kubelet.unwrap_or(self.systemd)
    }
}

/// From the kubelet's configuration; it takes `cgroupfs` when nothing is said.
fn kubelet_driver(text: &str) -> bool {
    let value = text.lines().find_map(|line| line.strip_prefix("cgroupDriver:"));
    value.is_some_and(|value| value.trim().trim_matches(['"', '\'']) == "systemd")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelet_says_who_manages() {
        for (text, systemd) in [
            ("kind: KubeletConfiguration\ncgroupDriver: systemd\n", true),
            ("cgroupDriver: \"systemd\"\n", true),
            ("cgroupDriver: cgroupfs\n", false),
            ("a:\n  cgroupDriver: systemd\n", false),
            ("", false),
        ] {
            assert_eq!(kubelet_driver(text), systemd, "{text:?}");
        }
        assert!(Driver { kubelet: None, systemd: true }.fits());
        assert!(!Driver { kubelet: Some(false), systemd: true }.fits());
    }
}
