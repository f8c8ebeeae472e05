//! From containerd's description of a mount to the calls that make it. Pure.
//!
//! Options are those of containerd's `core/mount`: `fstab` words, and everything else for the file system itself.

use std::{ffi::CString, path::PathBuf};

use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags};
use thiserror::Error;

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
}

impl Plan {
    /// For error messages.
    pub fn describe(&self) -> String {
        match self {
            Self::Bind { source, .. } => source.display().to_string(),
            Self::Options { kind, .. } => kind.to_string_lossy().into_owned(),
            Self::Overlay { layers, .. } => format!("overlay of {} layers", layers.len()),
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
    let options = Parsed::from(&mount.options)?;
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
    data: Vec<String>,
}

impl Parsed {
    fn from(options: &[String]) -> Result<Self, PlanError> {
        let (bind, recursive, flags, propagation) = (false, false, MountFlags::empty(), None);
        let mut parsed = Self { bind, recursive, flags, propagation, data: Vec::new() };
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
            _ if option.starts_with("uidmap=")
                || option.starts_with("gidmap=")
                || option.starts_with("X-containerd.") =>
            {
                return Err(PlanError::Option(option.into()));
            }
            _ => {
                if let Some((clear, flag)) = flag(option) {
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

/// Splits at the colons that no backslash precedes, and takes the backslashes away, as overlayfs does.
fn split_layers(value: &str) -> Vec<String> {
    let mut layers = vec![String::new()];
    let mut rest = value.chars();
    while let Some(c) = rest.next() {
        match (c, layers.last_mut()) {
            (':', _) => layers.push(String::new()),
            ('\\', Some(last)) => last.extend(rest.next()),
            (c, Some(last)) => last.push(c),
            (_, None) => {}
        }
    }
    layers
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
    fn layers_are_split_as_overlayfs_does() {
        assert_eq!(split_layers(r"/a\:b:/c\\d:/e"), ["/a:b", r"/c\d", "/e"]);
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let long = "x".repeat(PAGE);
        for (mount, error) in [
            (mount("", "", &[]), PlanError::NoType),
            (Mount { target: "/etc".into(), ..mount("bind", "/s", &[]) }, PlanError::Target("/etc".into())),
            (mount("ext4", "/img", &["loop"]), PlanError::Option("loop".into())),
            (mount("overlay", "", &["uidmap=0:1:2"]), PlanError::Option("uidmap=0:1:2".into())),
            (mount("tmpfs", "a\0b", &[]), PlanError::Nul("a\0b".into())),
            (mount("ext4", "/dev/x", &[&long]), PlanError::Long(PAGE)),
        ] {
            assert_eq!(plan(&mount), Err(error));
        }
    }
}
