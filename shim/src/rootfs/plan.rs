//! From containerd's description of a mount to the calls that make it. Pure.
//!
//! Options are those of containerd's `core/mount`: `fstab` words, and everything else for the file system itself.

use std::{
    ffi::CString,
    path::{Path, PathBuf},
};

use overlayfs_utils::{IdMapping, InvalidMapping};
use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags};
use thiserror::Error;

use super::{
    layers::{by_layer, relative_layers},
    options::Parsed,
};

/// mount(2) reads its options from one page; a byte ends them.
const PAGE: usize = 4096;

/// A mount as containerd's snapshotter describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// The file system's type, or `bind`.
    pub kind: String,
    /// Device, directory, or a word.
    pub source: String,
    /// What to mount on, below the root; the root itself when empty.
    pub target: String,
    /// In `fstab`'s words.
    pub options: Vec<String>,
}

/// What a mount needs that this shim does not do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlanError {
    /// No type.
    #[error("it has no type")]
    NoType,
    /// An option that means nothing for such a mount, or is for somebody else: containerd's mount manager (2.2) takes
    /// those that begin with `X-containerd.` away before a shim sees them.
    #[error("option {0:?} is nothing that a shim can do for a mount of this type")]
    Option(String),
    /// A mapping of ids that is none.
    #[error("option {option:?}")]
    Mapping {
        /// The option's name.
        option: &'static str,
        /// What is wrong.
        #[source]
        source: InvalidMapping,
    },
    /// Half a mapping.
    #[error("uidmap and gidmap are only taken together")]
    HalfMapping,
    /// Layers that cannot be mapped by one mount.
    #[error("its layers are in no directory together but the root, so their ids cannot be mapped")]
    Apart,
    /// A byte that no path may have.
    #[error("{0:?} has a NUL byte")]
    Nul(String),
    /// Options longer than a page where the file system has no other way.
    #[error("options of {0} bytes are longer than the kernel takes")]
    Long(usize),
    /// Neither do the layers fit in a page, nor each of them in an option of its own.
    #[error(
        "its layers need options of {length} bytes, the kernel takes a page, or by layer 255, and {value:?} is longer: \
         put the snapshotter's directory on a shorter path"
    )]
    Layer {
        /// Of all options.
        length: usize,
        /// The one that is too long.
        value: String,
    },
}

/// The calls that make a mount.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// A bind, then a remount for the flags.
    Bind {
        /// The directory.
        source: PathBuf,
        /// With what is mounted below it.
        recursive: bool,
        /// Read-only and the like.
        flags: MountFlags,
        /// Set last.
        propagation: Option<MountPropagationFlags>,
    },
    /// One mount(2).
    Options {
        /// The file system.
        kind: CString,
        /// Its source.
        source: Source,
        /// Read-only and the like.
        flags: MountFlags,
        /// The file system's own options.
        data: CString,
        /// Set last.
        propagation: Option<MountPropagationFlags>,
        /// What the layers in `data` are relative to, if they are.
        directory: Option<PathBuf>,
    },
    /// An overlay, layer by layer.
    Overlay {
        /// What the layers are relative to, if they are.
        directory: Option<PathBuf>,
        /// `lowerdir+` for each layer, topmost first, `upperdir`, `workdir` and the rest.
        parameters: Vec<(String, Option<String>)>,
        /// Read-only and the like.
        flags: MountAttrFlags,
        /// Set last.
        propagation: Option<MountPropagationFlags>,
    },
    /// A mount whose files' owners are mapped.
    Mapped {
        /// User ids.
        uids: IdMapping,
        /// Group ids.
        gids: IdMapping,
        /// For an overlay, the directory in which all its layers are: they are mapped, not the overlay itself, whose
        /// upper directory holds what is seen. The layers of `inner` are relative to it.
        layers: Option<PathBuf>,
        /// The mount itself.
        inner: Box<Plan>,
    },
}

/// What a file system is mounted from.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// A device or a word.
    Named(PathBuf),
    /// A file, by a loop device.
    File {
        /// The file.
        path: PathBuf,
        /// Past the page cache, where that can be.
        direct: bool,
    },
}

impl Source {
    /// The device, word or file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Named(path) | Self::File { path, .. } => path,
        }
    }
}

impl Plan {
    /// For error messages.
    pub fn describe(&self) -> String {
        match self {
            Self::Bind { source, .. } => source.display().to_string(),
            Self::Options { kind, .. } => kind.to_string_lossy().into_owned(),
            Self::Overlay { .. } => "overlay".to_owned(),
            Self::Mapped { inner, .. } => format!("id-mapped {}", inner.describe()),
        }
    }
}

/// # Errors
/// [`PlanError`] when the mount needs what this shim does not do.
pub fn plan(mount: &Mount) -> Result<Plan, PlanError> {
    if mount.kind.is_empty() {
        return Err(PlanError::NoType);
    }
    without_nul(&mount.target)?;
    let mut options = Parsed::parse(&mount.options)?;
    match (options.uids.take(), options.gids.take()) {
        (None, None) => plan_plain(mount, options),
        (Some(uids), Some(gids)) => {
            let layers =
                if mount.kind == "overlay" { Some(relative_layers(&mut options.data)?) } else { None };
            Ok(Plan::Mapped { uids, gids, layers, inner: Box::new(plan_plain(mount, options)?) })
        }
        // containerd's own shim would mount it without a mapping, with owners that nobody asked for.
        (Some(_), None) | (None, Some(_)) => Err(PlanError::HalfMapping),
    }
}

fn plan_plain(mount: &Mount, mut options: Parsed) -> Result<Plan, PlanError> {
    if options.bind || mount.kind == "bind" {
        if options.looped {
            return Err(PlanError::Option("loop".into()));
        }
        let (source, Parsed { recursive, flags, propagation, .. }) = (PathBuf::from(&mount.source), options);
        return Ok(Plan::Bind { source, recursive, flags, propagation });
    }
    let source = if options.looped {
        Source::File { path: without_nul(&mount.source)?.into(), direct: options.take_direct() }
    } else {
        Source::Named(without_nul(&mount.source)?.into())
    };
    match options.data.join(",") {
        data if data.len() < PAGE => plan_page(mount, source, &options, &data, None),
        _ if mount.kind == "overlay" => plan_many_layers(mount, source, options),
        data => Err(PlanError::Long(data.len())),
    }
}

/// An overlay of more layers than a page holds with their whole paths: from the directory that all are in, which is one way
/// for all kernels. Only of some hundred layers the page holds not even those.
fn plan_many_layers(mount: &Mount, source: Source, mut options: Parsed) -> Result<Plan, PlanError> {
    // Those that are in no directory together, or relative already, stay as they are.
    let directory = relative_layers(&mut options.data).ok();
    match options.data.join(",") {
        data if data.len() < PAGE => plan_page(mount, source, &options, &data, directory),
        data => by_layer(options, data.len(), directory),
    }
}

fn plan_page(
    mount: &Mount,
    source: Source,
    options: &Parsed,
    data: &str,
    directory: Option<PathBuf>,
) -> Result<Plan, PlanError> {
    let (kind, data) = (c_string(&mount.kind)?, c_string(data)?);
    let Parsed { flags, propagation, .. } = *options;
    Ok(Plan::Options { kind, source, flags, data, propagation, directory })
}

fn without_nul(text: &str) -> Result<&str, PlanError> {
    if text.contains('\0') { Err(PlanError::Nul(text.to_owned())) } else { Ok(text) }
}

fn c_string(text: &str) -> Result<CString, PlanError> {
    CString::new(text).map_err(|_| PlanError::Nul(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        let options = options.iter().map(|o| (*o).to_owned()).collect();
        Mount { kind: kind.into(), source: source.into(), options, ..Default::default() }
    }

    #[test]
    fn binds_keep_their_flags_for_the_remount() {
        let expected =
            |recursive, flags, propagation| Plan::Bind { source: "/s".into(), recursive, flags, propagation };
        for (options, plan_) in [
            (&["rbind", "ro"][..], expected(true, MountFlags::RDONLY, None)),
            (&["bind", "rw"], expected(false, MountFlags::empty(), None)),
            (&["rbind", "rprivate", "nosuid"], {
                let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                expected(true, MountFlags::NOSUID, Some(private))
            }),
        ] {
            assert_eq!(plan(&mount("bind", "/s", options)), Ok(plan_));
        }
    }

    #[test]
    fn a_short_overlay_is_one_call() {
        let plan = plan(&mount("overlay", "overlay", &["index=off", "ro", "lowerdir=/a:/b"])).unwrap();
        let expected = Plan::Options {
            kind: c"overlay".into(),
            source: Source::Named("overlay".into()),
            flags: MountFlags::RDONLY,
            data: c"index=off,lowerdir=/a:/b".into(),
            propagation: None,
            directory: None,
        };
        assert_eq!(plan, expected);
    }

    #[test]
    fn a_file_is_mounted_by_a_loop_device() {
        for (options, direct, flags, data) in [
            (&["loop"][..], false, MountFlags::empty(), c""),
            (&["direct-io", "ro", "noload", "loop"], true, MountFlags::RDONLY, c"noload"),
        ] {
            let source = Source::File { path: "/img".into(), direct };
            let (kind, data, propagation, directory) = (c"ext4".into(), data.into(), None, None);
            let expected = Plan::Options { kind, source, flags, data, propagation, directory };
            assert_eq!(plan(&mount("ext4", "/img", options)), Ok(expected));
        }
        // Without a loop device it is the file system's own.
        let plain = plan(&mount("ext4", "/dev/x", &["direct-io"])).unwrap();
        assert!(matches!(plain, Plan::Options { data, .. } if data.as_c_str() == c"direct-io"));
    }

    fn lower(layers: impl Iterator<Item = String>) -> String {
        format!("lowerdir={}", layers.collect::<Vec<_>>().join(":"))
    }

    #[test]
    fn many_layers_are_relative_to_the_directory_that_they_are_in() {
        let lower = lower((0..140).map(|i| format!("/var/lib/containerd/snapshots/{i}/fs")));
        let planned = plan(&mount("overlay", "overlay", &["index=off", "upperdir=/u", &lower, "nosuid"]));
        let relative = lower.replace("/var/lib/containerd/snapshots/", "");
        let expected = Plan::Options {
            kind: c"overlay".into(),
            source: Source::Named("overlay".into()),
            flags: MountFlags::NOSUID,
            data: CString::new(format!("index=off,upperdir=/u,{relative}")).unwrap(),
            propagation: None,
            directory: Some("/var/lib/containerd/snapshots".into()),
        };
        assert_eq!(planned, Ok(expected));
    }

    #[test]
    fn what_no_page_holds_goes_layer_by_layer() {
        for (prefix, directory) in [("/s", Some("/s")), ("", None)] {
            let lower = lower((0..450).map(|i| format!("{prefix}/{i:0>20}")));
            let options = ["volatile", "upperdir=/u", &format!("{lower}::{prefix}/data"), "nosuid"];
            let planned = plan(&mount("overlay", "overlay", &options));
            let relative = if directory.is_some() { "" } else { "/" };
            let mut parameters = vec![("volatile".into(), None), ("upperdir".into(), Some("/u".into()))];
            let layer = |i| ("lowerdir+".into(), Some(format!("{relative}{i:0>20}")));
            parameters.extend((0..450).map(layer));
            parameters.push(("datadir+".into(), Some(format!("{relative}data"))));
            let (flags, propagation) = (MountAttrFlags::MOUNT_ATTR_NOSUID, None);
            let directory = directory.map(PathBuf::from);
            assert_eq!(planned, Ok(Plan::Overlay { directory, parameters, flags, propagation }));
        }
    }

    #[test]
    fn a_layer_that_fits_nowhere_is_named() {
        let long = "l".repeat(250);
        let lower = lower((0..20).map(|i| format!("/{i}/{long}/fs")));
        let error = plan(&mount("overlay", "overlay", &[&lower])).unwrap_err();
        assert_eq!(error, PlanError::Layer { length: lower.len(), value: format!("/0/{long}/fs") });
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let long = "x".repeat(PAGE);
        for (mount, error) in [
            (mount("", "", &[]), PlanError::NoType),
            (Mount { target: "/a\0b".into(), ..mount("bind", "/s", &[]) }, PlanError::Nul("/a\0b".into())),
            (mount("bind", "/s", &["loop"]), PlanError::Option("loop".into())),
            (
                mount("ext4", "/s", &["X-containerd.mkfs.fs=ext4"]),
                PlanError::Option("X-containerd.mkfs.fs=ext4".into()),
            ),
            (mount("overlay", "", &["uidmap=0:1:2"]), PlanError::HalfMapping),
            (
                mount("overlay", "", &["uidmap=0:1:2", "gidmap=0:1:2", "lowerdir=/a/fs:/b/fs"]),
                PlanError::Apart,
            ),
            (mount("overlay", "", &["uidmap=0:1:2", "gidmap=0:1:2"]), PlanError::Apart),
            (mount("tmpfs", "a\0b", &[]), PlanError::Nul("a\0b".into())),
            (mount("ext4", "/dev/x", &[&long]), PlanError::Long(PAGE)),
        ] {
            assert_eq!(plan(&mount), Err(error));
        }
    }

    #[test]
    fn the_layers_of_a_mapped_overlay_are_relative_to_what_is_mapped() {
        let maps = ["uidmap=0:100000:65536", "gidmap=0:100000:65536"];
        let mapping = || IdMapping::parse("0:100000:65536").unwrap();
        for (layers, common, relative) in [
            ("/s/7/fs", "/s/7", "fs"),
            ("/s/12/fs:/s/1/fs", "/s", "12/fs:1/fs"),
            (r"/s\:/1/f\\s:/s\:/2/fs", "/s:", r"1/f\\s:2/fs"),
        ] {
            let lower = format!("lowerdir={layers}");
            let planned = plan(&mount("overlay", "overlay", &[&maps[..], &[&lower, "upperdir=/u"]].concat()));
            let data = CString::new(format!("lowerdir={relative},upperdir=/u")).unwrap();
            let inner = Plan::Options {
                kind: c"overlay".into(),
                source: Source::Named("overlay".into()),
                flags: MountFlags::empty(),
                data,
                propagation: None,
                directory: None,
            };
            let (uids, gids, layers) = (mapping(), mapping(), Some(PathBuf::from(common)));
            assert_eq!(planned, Ok(Plan::Mapped { uids, gids, layers, inner: Box::new(inner) }));
        }
        let bind = plan(&mount("bind", "/s/1/fs", &[&maps[..], &["rbind", "ro"]].concat())).unwrap();
        let inner = plan(&mount("bind", "/s/1/fs", &["rbind", "ro"])).unwrap();
        let (uids, gids) = (mapping(), mapping());
        assert_eq!(bind, Plan::Mapped { uids, gids, layers: None, inner: Box::new(inner) });
    }
}
