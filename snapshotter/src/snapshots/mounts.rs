//! Which mounts show a snapshot. Pure.
//!
//! The same as containerd's overlayfs gives (`plugins/snapshots/overlay/overlay.go`, `mounts`): a bind mount
//! where one directory is all there is, an overlay otherwise.

use std::path::Path;

use super::{idmap::IdMaps, model::Kind, options::OverlayOptions};
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

/// A snapshot that is to be mounted.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Active or a view.
    pub kind: Kind,
    /// Names its own directories.
    pub id: u64,
    /// Those below it, topmost first.
    pub parents: Vec<u64>,
    /// The mapping of ids that is asked of whoever performs the mount.
    pub ids: IdMaps,
}

/// The mounts that show a snapshot.
pub fn plan_mounts(dirs: &Dirs, overlay: &OverlayOptions, layout: &Layout) -> Vec<Mount> {
    let writable = layout.kind == Kind::Active;
    let mut options: Vec<String> = layout.ids.options().collect();
    let mount = match layout.parents.as_slice() {
        [] => bind(&dirs.upper(layout.id), writable, options),
        [only] if !writable => bind(&dirs.upper(*only), false, options),
        parents => {
            let upper = writable.then_some(layout.id);
            options.extend(directories(dirs, upper, parents));
            options.extend(overlay.iter().map(str::to_owned));
            Mount { kind: "overlay", source: "overlay".to_owned(), options }
        }
    };
    vec![mount]
}

fn bind(source: &Path, writable: bool, mut options: Vec<String>) -> Mount {
    let mode = if writable { "rw" } else { "ro" };
    options.extend([mode.to_owned(), "rbind".to_owned()]);
    Mount { kind: "bind", source: source.display().to_string(), options }
}

fn directories(dirs: &Dirs, upper: Option<u64>, parents: &[u64]) -> Vec<String> {
    let mut options = Vec::new();
    if let Some(id) = upper {
        options.push(format!("workdir={}", dirs.work(id).display()));
        options.push(format!("upperdir={}", dirs.upper(id).display()));
    }
    let lower: Vec<String> = parents.iter().map(|id| dirs.upper(*id).display().to_string()).collect();
    options.push(format!("lowerdir={}", lower.join(":")));
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshots::{
        idmap::{GID_LABEL, UID_LABEL},
        model::Labels,
        options::MountOption,
    };

    fn plan(kind: Kind, parents: &[u64]) -> Mount {
        plan_mapped(kind, parents, IdMaps::default())
    }

    fn plan_mapped(kind: Kind, parents: &[u64], ids: IdMaps) -> Mount {
        let configured = vec![MountOption::parse("volatile").unwrap()];
        let overlay = OverlayOptions { index_off: true, userxattr: false, configured };
        let layout = Layout { kind, id: 9, parents: parents.to_vec(), ids };
        let mut mounts = plan_mounts(&Dirs::new("/r"), &overlay, &layout);
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
    fn more_are_an_overlay() {
        let active = plan(Kind::Active, &[4, 2]);
        assert_eq!(active.kind, "overlay");
        assert_eq!(
            active.options,
            [
                "workdir=/r/snapshots/9/work",
                "upperdir=/r/snapshots/9/fs",
                "lowerdir=/r/snapshots/4/fs:/r/snapshots/2/fs",
                "volatile",
                "index=off"
            ]
        );
        let view = plan(Kind::View, &[4, 2]);
        assert_eq!(view.options, ["lowerdir=/r/snapshots/4/fs:/r/snapshots/2/fs", "volatile", "index=off"]);
    }

    #[test]
    fn mapped_ids_are_asked_for_first_in_every_mount() {
        let labels = [(UID_LABEL, "0:1000:1"), (GID_LABEL, "0:2000:1")];
        let labels = labels.map(|(label, value)| (label.to_owned(), value.to_owned()));
        let ids = IdMaps::of(&Labels::parse(labels).unwrap()).unwrap();
        let bottom = plan_mapped(Kind::Active, &[], ids.clone());
        assert_eq!(bottom.options, ["uidmap=0:1000:1", "gidmap=0:2000:1", "rw", "rbind"]);
        let active = plan_mapped(Kind::Active, &[4], ids);
        assert_eq!(
            active.options[..3],
            ["uidmap=0:1000:1", "gidmap=0:2000:1", "workdir=/r/snapshots/9/work"]
        );
    }
}
