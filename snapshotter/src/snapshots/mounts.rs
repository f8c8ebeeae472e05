//! Which mounts show a snapshot: pure, but for finding out where we run.
//!
//! The same as containerd's overlayfs gives (`plugins/snapshots/overlay/overlay.go`, `mounts`): a bind mount
//! where one directory is all there is, an overlay otherwise.

use std::{fs, io, path::Path};

use super::model::Kind;
use crate::dirs::Dirs;

/// One mount, as containerd's clients perform it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `bind` or `overlay`.
    pub kind: &'static str,
    /// What is mounted.
    pub source: String,
    /// Options, as mount(8) has them.
    pub options: Vec<String>,
}

/// What the kernel and the place we run in ask of every overlay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverlayOptions {
    /// Say `index=off`: one upper directory may be used by several mounts in turn.
    pub index_off: bool,
    /// Say `userxattr`: we run in a user namespace, where `trusted.*` attributes cannot be written.
    pub userxattr: bool,
}

/// Is there only if the kernel's overlayfs can be asked to turn its index off.
const INDEX_PARAMETER: &str = "/sys/module/overlay/parameters/index";
/// How ids of this user namespace map to its parent's (user_namespaces(7)).
const UID_MAP: &str = "/proc/self/uid_map";

impl OverlayOptions {
    /// Finds out what is needed where this process runs.
    ///
    /// # Errors
    /// When `/proc/self/uid_map` cannot be read.
    pub fn read() -> io::Result<Self> {
        Ok(Self {
            index_off: Path::new(INDEX_PARAMETER).exists(),
            userxattr: !is_initial_user_namespace(&fs::read_to_string(UID_MAP)?),
        })
    }
}

/// Whether a uid map is that of the initial user namespace: every id is itself.
fn is_initial_user_namespace(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// The mounts of snapshot `id` over `parents` (topmost first).
pub fn plan_mounts(dirs: &Dirs, overlay: OverlayOptions, kind: Kind, id: u64, parents: &[u64]) -> Vec<Mount> {
    let writable = kind == Kind::Active;
    let mount = match parents {
        [] => bind(&dirs.upper(id), writable),
        [only] if !writable => bind(&dirs.upper(*only), false),
        _ => Mount {
            kind: "overlay",
            source: "overlay".to_owned(),
            options: overlay_options(dirs, overlay, writable.then_some(id), parents),
        },
    };
    vec![mount]
}

fn bind(source: &Path, writable: bool) -> Mount {
    let mode = if writable { "rw" } else { "ro" };
    Mount {
        kind: "bind",
        source: source.display().to_string(),
        options: vec![mode.to_owned(), "rbind".to_owned()],
    }
}

fn overlay_options(dirs: &Dirs, overlay: OverlayOptions, upper: Option<u64>, parents: &[u64]) -> Vec<String> {
    let mut options = Vec::new();
    if let Some(id) = upper {
        options.push(format!("workdir={}", dirs.work(id).display()));
        options.push(format!("upperdir={}", dirs.upper(id).display()));
    }
    let lower: Vec<String> = parents.iter().map(|id| dirs.upper(*id).display().to_string()).collect();
    options.push(format!("lowerdir={}", lower.join(":")));
    if overlay.userxattr {
        options.push("userxattr".to_owned());
    }
    if overlay.index_off {
        options.push("index=off".to_owned());
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(kind: Kind, parents: &[u64]) -> Mount {
        let overlay = OverlayOptions { index_off: true, userxattr: false };
        let mut mounts = plan_mounts(&Dirs::new("/r"), overlay, kind, 9, parents);
        assert_eq!(mounts.len(), 1);
        mounts.remove(0)
    }

    #[test]
    fn one_directory_is_bound() {
        let cases: [(Kind, &[u64], &str, &str); 3] = [
            (Kind::Active, &[], "/r/snapshots/9/fs", "rw"),
            (Kind::View, &[], "/r/snapshots/9/fs", "ro"),
            (Kind::View, &[4], "/r/snapshots/4/fs", "ro"),
        ];
        for (kind, parents, source, mode) in cases {
            let mount = plan(kind, parents);
            assert_eq!((mount.kind, mount.source.as_str()), ("bind", source));
            assert_eq!(mount.options, [mode, "rbind"]);
        }
    }

    #[test]
    fn only_the_full_identity_map_is_the_initial_user_namespace() {
        assert!(is_initial_user_namespace("         0          0 4294967295\n"));
        assert!(!is_initial_user_namespace("0 1000 1\n"));
        assert!(!is_initial_user_namespace("0 0 4294967295\n5 5 1\n"));
    }

    #[test]
    fn more_are_an_overlay() {
        let active = plan(Kind::Active, &[4, 2]);
        assert_eq!(active.kind, "overlay");
        assert_eq!(
            active.options,
            [
                "workdir=/r/snapshots/9/work",
                "upperdir=/r/snapshots/9/fs",
                "lowerdir=/r/snapshots/4/fs:/r/snapshots/2/fs",
                "index=off"
            ]
        );
        let view = plan(Kind::View, &[4, 2]);
        assert_eq!(view.options, ["lowerdir=/r/snapshots/4/fs:/r/snapshots/2/fs", "index=off"]);
    }
}
