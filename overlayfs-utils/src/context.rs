//! A filesystem context (`fsopen`), and the log that the kernel keeps in it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags},
};

use crate::error::{MountError, Step};

/// Longest message the kernel returns from one read of a context (`fs/fsopen.c` copies what fits).
const MESSAGE: usize = 1024;

/// An overlay being configured. Dropped without [`Self::mount`], nothing was mounted.
#[derive(Debug)]
pub(crate) struct Context(OwnedFd);

impl Context {
    pub(crate) fn open(filesystem: &str) -> Result<Self, MountError> {
        rustix::mount::fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC)
            .map(Self)
            .map_err(|errno| MountError::new(Step::OpenContext, filesystem, errno))
    }

    pub(crate) fn set_flag(&self, key: &str) -> Result<(), MountError> {
        let set = rustix::mount::fsconfig_set_flag(&self.0, key);
        self.explain(set, Step::SetOption, || key.to_owned())
    }

    pub(crate) fn set_string(&self, key: &str, value: &str) -> Result<(), MountError> {
        let set = rustix::mount::fsconfig_set_string(&self.0, key, value);
        self.explain(set, Step::SetOption, || format!("{key}={value}"))
    }

    /// Sets an option to a file or directory (Linux 6.13 for those of overlayfs).
    pub(crate) fn set_fd(&self, key: &str, fd: BorrowedFd<'_>, name: &str) -> Result<(), MountError> {
        let set = rustix::mount::fsconfig_set_fd(&self.0, key, fd);
        self.explain(set, Step::SetOption, || format!("{key} {name}"))
    }

    /// Adds the layer that `fd` refers to (Linux 6.13; detached trees and `O_PATH` descriptors later still: probed).
    pub(crate) fn add_layer_fd(&self, fd: BorrowedFd<'_>, name: &str) -> Result<(), MountError> {
        let set = rustix::mount::fsconfig_set_fd(&self.0, "lowerdir+", fd);
        self.explain(set, Step::AddLayer, || format!("layer {name}"))
    }

    /// Adds a layer by path (Linux 6.7). The path is taken as it is: unlike in `lowerdir`, no character is special.
    pub(crate) fn add_layer_path(&self, path: &str, name: &str) -> Result<(), MountError> {
        let set = rustix::mount::fsconfig_set_string(&self.0, "lowerdir+", path);
        self.explain(set, Step::AddLayer, || format!("layer {name}"))
    }

    /// Sets all layers at once, by paths with colons between them. More than 255 bytes are `EINVAL` (`fsconfig(2)`).
    pub(crate) fn set_layers(&self, paths: &str, names: &str) -> Result<(), MountError> {
        let set = rustix::mount::fsconfig_set_string(&self.0, "lowerdir", paths);
        self.explain(set, Step::AddLayer, || {
            format!("layers {names} (255 bytes of paths at most: only Linux 6.7 takes more)")
        })
    }

    /// Makes the superblock and a detached mount of it.
    pub(crate) fn mount(self, attributes: MountAttrFlags, name: &str) -> Result<OwnedFd, MountError> {
        let created = rustix::mount::fsconfig_create(&self.0);
        self.explain(created, Step::CreateSuperblock, || name.to_owned())?;
        let mounted = rustix::mount::fsmount(&self.0, FsMountFlags::FSMOUNT_CLOEXEC, attributes);
        self.explain(mounted, Step::Mount, || name.to_owned())
    }

    fn explain<T>(
        &self,
        result: Result<T, Errno>,
        step: Step,
        object: impl FnOnce() -> String,
    ) -> Result<T, MountError> {
        result.map_err(|errno| MountError::new(step, object(), errno).with_log(self.read_log()))
    }

    /// Reads the kernel's messages ("e …", "w …", "i …"): one a read, `ENODATA` when there are no more.
    fn read_log(&self) -> Vec<String> {
        let mut buffer = [0_u8; MESSAGE];
        let mut log = Vec::new();
        while let Ok(n) = rustix::io::read(self.0.as_fd(), &mut buffer) {
            if n == 0 {
                break;
            }
            log.push(parse_message(&buffer[..n]));
        }
        log
    }
}

/// The text of one log message, without its level prefix.
fn parse_message(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let text = text.trim_end();
    ["e ", "w ", "i "].iter().find_map(|p| text.strip_prefix(p)).unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_lose_their_level_and_line_end() {
        for (raw, text) in [
            (&b"e overlay: too many\n"[..], "overlay: too many"),
            (b"w overlay: odd", "overlay: odd"),
            (b"no level", "no level"),
            (b"e \xff", "\u{fffd}"),
        ] {
            assert_eq!(parse_message(raw), text);
        }
    }
}
