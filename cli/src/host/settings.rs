//! What of capsuled's configuration others have to agree with. capsuled alone judges the file; here it is only read.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// Where capsuled looks for its configuration.
pub const DEFAULT_SETTINGS: &str = "/etc/capsule/config.toml";

/// Settings, with capsuled's defaults where the file says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Directory of what survives a reboot.
    pub root: PathBuf,
    /// Directory of sockets.
    pub run: PathBuf,
    /// capsuled's socket.
    pub socket: PathBuf,
    /// containerd's socket.
    pub containerd: PathBuf,
    /// The snapshotter's name in containerd's configuration.
    pub snapshotter: String,
    /// Whether mounts have their ids mapped.
    pub remap_ids: bool,
    /// Directories of CDI specs.
    pub spec_dirs: Vec<PathBuf>,
}

impl Settings {
    /// Reads the file; one that is not there or is no TOML means the defaults.
    pub fn read(file: &Path) -> Self {
        Self::of(&std::fs::read_to_string(file).unwrap_or_default().parse().unwrap_or_default())
    }

    fn of(table: &Table) -> Self {
        let text = |keys: &[&str]| -> Option<&str> { value(table, keys)?.as_str() };
        let run = PathBuf::from(text(&["run"]).unwrap_or("/run/capsule"));
        let dirs = value(table, &["devices", "spec_dirs"]).and_then(Value::as_array);
        let dirs = dirs.map(|dirs| dirs.iter().filter_map(Value::as_str).map(PathBuf::from).collect());
        Self {
            root: text(&["root"]).unwrap_or("/var/lib/capsule").into(),
            socket: text(&["socket"]).map_or_else(|| run.join("capsuled.sock"), PathBuf::from),
            run,
            containerd: text(&["containerd", "address"]).unwrap_or("/run/containerd/containerd.sock").into(),
            snapshotter: text(&["containerd", "snapshotter"]).unwrap_or("capsule").to_owned(),
            remap_ids: value(table, &["snapshots", "remap_ids"]).and_then(Value::as_bool).unwrap_or(true),
            spec_dirs: dirs.unwrap_or_else(|| vec!["/etc/cdi".into(), "/var/run/cdi".into()]),
        }
    }
}

fn value<'a>(table: &'a Table, keys: &[&str]) -> Option<&'a Value> {
    let (first, rest) = keys.split_first()?;
    rest.iter().try_fold(table.get(*first)?, |value, key| value.get(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As it is shipped: every key with its default.
    const SHIPPED: &str = include_str!("../../../configs/config.toml");

    #[test]
    fn the_defaults_are_capsuleds() {
        let defaults = Settings::of(&Table::new());
        assert_eq!(defaults, Settings::of(&SHIPPED.parse().unwrap()));
        assert_eq!(defaults, Settings::read("/no/such/file".as_ref()));
    }

    #[test]
    fn what_the_file_says_is_read() {
        let text = "run = '/run/x'\n[containerd]\naddress = '/c.sock'\nsnapshotter = 'mine'\n[snapshots]\nremap_ids = false\n\
                    [devices]\nspec_dirs = ['/a']\n";
        let settings = Settings::of(&text.parse().unwrap());
        assert_eq!(settings.socket, Path::new("/run/x/capsuled.sock"));
        assert_eq!((settings.snapshotter.as_str(), settings.remap_ids), ("mine", false));
        assert_eq!((settings.containerd, settings.spec_dirs), ("/c.sock".into(), vec!["/a".into()]));
    }
}
