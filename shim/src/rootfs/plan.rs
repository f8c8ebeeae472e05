//! From containerd's description of a mount to the calls that make it. Pure.
//!
//! Options are those of containerd's `core/mount`: `fstab` words, and everything else for the file system itself.

use std::{ffi::CString, path::PathBuf};

use overlayfs_utils::{IdMapping, InvalidMapping};
use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags};
use thiserror::Error;

use super::layers::{relative_layers, split_layers};

/// mount(2) reads its options from one page; a byte ends them.
const PAGE: usize = 4096;
/// `fsconfig(2)` takes no longer value.
const VALUE: usize = 255;

/// A mount as containerd's snapshotter describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// The file system's type, or `bind`.
    pub kind: String,
    /// Device, directory, or a word.
    pub source: String,
    /// A path below the root to mount on; the root itself when empty.
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
    /// Not on the root itself.
    #[error("it is to be mounted on {0:?} instead of the root")]
    Target(String),
    /// An option that needs more than a mount.
    #[error("option {0:?} needs a mount handler")]
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
        source: CString,
        /// Read-only and the like.
        flags: MountFlags,
        /// The file system's own options.
        data: CString,
        /// Set last.
        propagation: Option<MountPropagationFlags>,
    },
    /// An overlay, layer by layer.
    Overlay {
        /// Topmost first.
        layers: Vec<PathBuf>,
        /// `upperdir`, `workdir` and the rest.
        parameters: Vec<(String, Option<String>)>,
        /// Read-only and the like.
        flags: MountAttrFlags,
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

impl Plan {
    /// For error messages.
    pub fn describe(&self) -> String {
        match self {
            Self::Bind { source, .. } => source.display().to_string(),
            Self::Options { kind, .. } => kind.to_string_lossy().into_owned(),
            Self::Overlay { layers, .. } => format!("overlay of {} layers", layers.len()),
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
    if !mount.target.is_empty() && mount.target != "/" {
        return Err(PlanError::Target(mount.target.clone()));
    }
    let mut options = Parsed::from(&mount.options)?;
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

fn plan_plain(mount: &Mount, options: Parsed) -> Result<Plan, PlanError> {
    if options.bind || mount.kind == "bind" {
        let (source, Parsed { recursive, flags, propagation, .. }) = (PathBuf::from(&mount.source), options);
        return Ok(Plan::Bind { source, recursive, flags, propagation });
    }
    let data = options.data.join(",");
    if data.len() < PAGE {
        let Parsed { flags, propagation, .. } = options;
        let (kind, source, data) = (c_string(&mount.kind)?, c_string(&mount.source)?, c_string(&data)?);
        return Ok(Plan::Options { kind, source, flags, data, propagation });
    }
    if mount.kind == "overlay" { overlay(options) } else { Err(PlanError::Long(data.len())) }
}

struct Parsed {
    bind: bool,
    recursive: bool,
    flags: MountFlags,
    propagation: Option<MountPropagationFlags>,
    uids: Option<IdMapping>,
    gids: Option<IdMapping>,
    data: Vec<String>,
}

impl Parsed {
    fn from(options: &[String]) -> Result<Self, PlanError> {
        let (bind, recursive, flags, propagation) = (false, false, MountFlags::empty(), None);
        let (uids, gids, data) = (None, None, Vec::new());
        let mut parsed = Self { bind, recursive, flags, propagation, uids, gids, data };
        for option in options {
            parsed.add(option)?;
        }
        Ok(parsed)
    }

    fn add(&mut self, option: &str) -> Result<(), PlanError> {
        match option {
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "loop" => return Err(PlanError::Option(option.into())),
            _ if option.starts_with("X-containerd.") => return Err(PlanError::Option(option.into())),
            _ => {
                if let Some(mapping) = option.strip_prefix("uidmap=") {
                    self.uids = Some(parse_mapping("uidmap", mapping)?);
                } else if let Some(mapping) = option.strip_prefix("gidmap=") {
                    self.gids = Some(parse_mapping("gidmap", mapping)?);
                } else if let Some((clear, flag)) = flag(option) {
                    self.flags.set(flag, !clear);
                } else if let Some(propagation) = propagation(option) {
                    self.propagation = Some(propagation);
                } else if !option.is_empty() {
                    self.data.push(option.to_owned());
                }
            }
        }
        Ok(())
    }
}

fn parse_mapping(option: &'static str, text: &str) -> Result<IdMapping, PlanError> {
    IdMapping::parse(text).map_err(|source| PlanError::Mapping { option, source })
}

/// The flag of an `fstab` word, and whether the word clears it.
fn flag(option: &str) -> Option<(bool, MountFlags)> {
    Some(match option {
        "async" => (true, MountFlags::SYNCHRONOUS),
        "atime" => (true, MountFlags::NOATIME),
        "defaults" => (false, MountFlags::empty()),
        "dev" => (true, MountFlags::NODEV),
        "diratime" => (true, MountFlags::NODIRATIME),
        "dirsync" => (false, MountFlags::DIRSYNC),
        "exec" => (true, MountFlags::NOEXEC),
        "noatime" => (false, MountFlags::NOATIME),
        "nodev" => (false, MountFlags::NODEV),
        "nodiratime" => (false, MountFlags::NODIRATIME),
        "noexec" => (false, MountFlags::NOEXEC),
        "norelatime" => (true, MountFlags::RELATIME),
        "nostrictatime" => (true, MountFlags::STRICTATIME),
        "nosuid" => (false, MountFlags::NOSUID),
        "relatime" => (false, MountFlags::RELATIME),
        "ro" => (false, MountFlags::RDONLY),
        "rw" => (true, MountFlags::RDONLY),
        "strictatime" => (false, MountFlags::STRICTATIME),
        "suid" => (true, MountFlags::NOSUID),
        "sync" => (false, MountFlags::SYNCHRONOUS),
        _ => return None,
    })
}

fn propagation(option: &str) -> Option<MountPropagationFlags> {
    let (recursive, kind) = match option.strip_prefix('r') {
        Some(kind) => (MountPropagationFlags::REC, kind),
        None => (MountPropagationFlags::empty(), option),
    };
    let kind = match kind {
        "private" => MountPropagationFlags::PRIVATE,
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some(kind | recursive)
}

fn overlay(options: Parsed) -> Result<Plan, PlanError> {
    let mut layers = Vec::new();
    let mut parameters = Vec::new();
    for option in options.data {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option.as_str(), None),
        };
        match (key, value) {
            ("lowerdir", Some(value)) => layers = split_layers(value),
            (key, value) => parameters.push((key.to_owned(), value.map(str::to_owned))),
        }
    }
    let too_long = |value: &str| value.len() > VALUE;
    let long = layers.iter().chain(parameters.iter().filter_map(|(_, value)| value.as_ref()));
    if let Some(value) = long.clone().find(|value| too_long(value)) {
        return Err(PlanError::Long(value.len()));
    }
    let layers = layers.into_iter().map(PathBuf::from).collect();
    Ok(Plan::Overlay { layers, parameters, flags: attributes(options.flags) })
}

fn attributes(flags: MountFlags) -> MountAttrFlags {
    let table = [
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (MountFlags::NODIRATIME, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        (MountFlags::STRICTATIME, MountAttrFlags::MOUNT_ATTR_STRICTATIME),
    ];
    table.into_iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, attribute)| attribute).collect()
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
            source: c"overlay".into(),
            flags: MountFlags::RDONLY,
            data: c"index=off,lowerdir=/a:/b".into(),
            propagation: None,
        };
        assert_eq!(plan, expected);
    }

    #[test]
    fn a_long_overlay_goes_layer_by_layer() {
        let layers: Vec<_> = (0..200).map(|i| format!("/var/lib/containerd/snapshots/{i}/fs")).collect();
        let lower = format!("lowerdir={}", layers.join(":"));
        let plan =
            plan(&mount("overlay", "overlay", &["volatile", "upperdir=/u", &lower, "nosuid"])).unwrap();
        let parameters = vec![("volatile".into(), None), ("upperdir".into(), Some("/u".into()))];
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID;
        let layers = layers.into_iter().map(PathBuf::from).collect();
        assert_eq!(plan, Plan::Overlay { layers, parameters, flags });
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let long = "x".repeat(PAGE);
        for (mount, error) in [
            (mount("", "", &[]), PlanError::NoType),
            (Mount { target: "/etc".into(), ..mount("bind", "/s", &[]) }, PlanError::Target("/etc".into())),
            (mount("ext4", "/img", &["loop"]), PlanError::Option("loop".into())),
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
                source: c"overlay".into(),
                flags: MountFlags::empty(),
                data,
                propagation: None,
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
