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
    /// Other flags and options for what is mounted there.
    Remount {
        /// Read-only and the like; with `BIND`, of the mount alone.
        flags: MountFlags,
        /// The file system's own options.
        data: CString,
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
            Self::Remount { .. } => "what is mounted".to_owned(),
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
        // The files of what is mounted already keep their owners.
        (Some(_), Some(_)) if options.remount => Err(PlanError::Option("remount".into())),
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
    options.bind |= mount.kind == "bind";
    if options.remount {
        return plan_remount(&options);
    }
    if options.bind {
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

/// containerd's own shim follows it only for binds and where the file system has options of its own, and leaves what was to
/// be read-only writable otherwise.
fn plan_remount(options: &Parsed) -> Result<Plan, PlanError> {
    let Parsed { flags, propagation, .. } = *options;
    if options.bind {
        return Ok(Plan::Remount { flags: flags | MountFlags::BIND, data: CString::default(), propagation });
    }
    match options.data.join(",") {
        data if data.len() < PAGE => Ok(Plan::Remount { flags, data: c_string(&data)?, propagation }),
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
mod tests;
