//! What is asked of every snapshot here: by the machine, and by the operator's configuration. Pure but for
//! [`OverlayOptions::read`].

use std::{fmt, io, path::Path};

/// What the kernel, the place we run in and the operator ask of every overlay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverlayOptions {
    /// Say `index=off`: one upper directory may be used by several mounts in turn.
    pub index_off: bool,
    /// Say `userxattr`: we run in a user namespace, where `trusted.*` attributes cannot be written.
    pub userxattr: bool,
    /// And these, as configured.
    pub configured: Vec<MountOption>,
}

/// Is there only if the kernel's overlayfs can be asked to turn its index off.
const INDEX_PARAMETER: &str = "/sys/module/overlay/parameters/index";

impl OverlayOptions {
    /// Finds out what is needed where this process runs; nothing is configured.
    ///
    /// # Errors
    /// When `/proc/self/uid_map` cannot be read.
    pub fn read() -> io::Result<Self> {
        Ok(Self {
            index_off: Path::new(INDEX_PARAMETER).exists(),
            userxattr: overlayfs_utils::in_user_namespace()?,
            configured: Vec::new(),
        })
    }

    /// The options that follow the directories.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let userxattr = self.userxattr.then_some("userxattr");
        let index = self.index_off.then_some("index=off");
        self.configured.iter().map(MountOption::as_str).chain(userxattr).chain(index)
    }

    /// Those of them that are parameters of overlayfs itself, name and value: mount(8)'s own words are left out.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let parameter = |option: &'_ str| !MOUNT_FLAGS.contains(&option);
        self.iter().filter(move |option| parameter(option)).map(|option| match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        })
    }
}

/// What the operator chose for all snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behaviour {
    /// Answer a request for mapped ids with the mount options `uidmap=` and `gidmap=`. Without it only the root
    /// directory gets its owner.
    pub remap_ids: bool,
    /// Tell each snapshot's own directory in a label.
    pub upperdir_label: bool,
    /// Leave the directories of removed snapshots to Cleanup, as long as space is not scarce.
    pub async_remove: bool,
}

/// Words for flags of any mount, which containerd and the shims take out of the options before the file system sees
/// them (containerd, `core/mount/mount_linux.go`, `parseMountOptions`).
const MOUNT_FLAGS: [&str; 22] = [
    "async",
    "atime",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "relatime",
    "ro",
    "rw",
    "strictatime",
    "suid",
    "sync",
];

/// Options that capsuled sets itself, or that its overlays cannot have.
const OWN: [&str; 10] = [
    "lowerdir",
    "lowerdir+",
    "datadir+",
    "upperdir",
    "workdir",
    "uidmap",
    "gidmap",
    "index",
    "userxattr",
    "nfs_export",
];

/// Why a text is no mount option to be configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountOptionError {
    /// It is not one option.
    #[error("it must be one option of overlayfs, as NAME or NAME=VALUE, without spaces and commas")]
    Syntax,
    /// It would contradict what is set anyway.
    #[error("capsuled sets {name} itself, as each snapshot and this machine need it: leave it out")]
    Own {
        /// The option's name.
        name: &'static str,
    },
}

/// One option for every overlay mount, as mount(8) has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOption(String);

impl MountOption {
    /// Takes an option from the configuration. Whether the kernel knows it is found when it is mounted first.
    ///
    /// # Errors
    /// When it is not exactly one option, or one that is not the operator's to set.
    pub fn parse(text: &str) -> Result<Self, MountOptionError> {
        let name = text.split('=').next().unwrap_or_default();
        let foreign = |char: char| char == ',' || char.is_whitespace() || char.is_control();
        if name.is_empty() || text.contains(foreign) {
            return Err(MountOptionError::Syntax);
        }
        match OWN.into_iter().find(|own| *own == name) {
            Some(name) => Err(MountOptionError::Own { name }),
            None => Ok(Self(text.to_owned())),
        }
    }

    /// The option itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MountOption {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_what_overlayfs_itself_gets() {
        let configured =
            ["volatile", "nodev", "metacopy=on"].map(|option| MountOption::parse(option).unwrap());
        let options = OverlayOptions { index_off: true, userxattr: true, configured: configured.into() };
        let parameters =
            [("volatile", None), ("metacopy", Some("on")), ("userxattr", None), ("index", Some("off"))];
        assert!(options.parameters().eq(parameters));
    }

    #[test]
    fn options_are_one_each_and_not_ours() {
        for text in ["volatile", "metacopy=on", "fsync=volatile", "xino=auto", "noatime"] {
            assert_eq!(MountOption::parse(text).unwrap().as_str(), text);
        }
        for text in ["", "=on", "volatile,metacopy=on", "meta copy=on", "volatile\n", "a=\0"] {
            assert_eq!(MountOption::parse(text), Err(MountOptionError::Syntax), "{text:?}");
        }
        for name in OWN {
            assert_eq!(MountOption::parse(&format!("{name}=x")), Err(MountOptionError::Own { name }));
            assert_eq!(MountOption::parse(name), Err(MountOptionError::Own { name }));
        }
    }
}
