//! A capsule's tree: its layers merged as overlayfs merges them, read without mounting anything.
//!
//! Layers are foreign: their links are read, never followed by the kernel.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use overlayfs_utils::{ContainerPath, LayerDir, in_user_namespace};
use rustix::{
    fs::{AtFlags, Dir, FileType},
    io::Errno,
};

use super::{
    error::EngineError,
    plan::{Capsule, Entry},
};

/// Marks a directory that hides those of the layers below (`Documentation/filesystems/overlayfs.rst`).
const OPAQUE: &str = "trusted.overlay.opaque";
/// The same in a user namespace, where nobody may read the other: images are unpacked with it there.
const USER_OPAQUE: &str = "user.overlay.opaque";
/// Links followed before a chain counts as a loop, as in the kernel.
const MAX_LINKS: usize = 40;

/// The open layers of a capsule, topmost first.
#[derive(Debug)]
pub struct Tree {
    layers: Vec<LayerDir>,
    userxattr: bool,
}

impl Tree {
    /// Opens the layers.
    ///
    /// # Errors
    /// [`EngineError::Layer`] when one is missing.
    pub fn open(layers: &[PathBuf]) -> Result<Self, EngineError> {
        let userxattr = in_user_namespace().map_err(|e| read_failed(Path::new("/proc/self/uid_map"), e))?;
        let layers = layers.iter().map(|l| LayerDir::open(l)).collect::<Result<_, _>>()?;
        Ok(Self { layers, userxattr })
    }

    /// Whether an overlay of the layers is to read `user.overlay.*` attributes.
    pub fn userxattr(&self) -> bool {
        self.userxattr
    }

    /// The directories that make up `path`, topmost first; none when the capsule has no directory there.
    ///
    /// # Errors
    /// [`EngineError`] when a layer cannot be read.
    pub fn dirs(&self, path: &ContainerPath) -> Result<Vec<LayerDir>, EngineError> {
        let mut here: Vec<LayerDir> = self.layers.iter().map(reopen).collect::<Result<_, _>>()?;
        for name in path.as_str().split('/').filter(|n| !n.is_empty()) {
            here = self.merge(&here, name)?;
        }
        Ok(here)
    }

    /// The directories `name` of `dirs` that are seen: down to an opaque one, or to what is no directory.
    fn merge(&self, dirs: &[LayerDir], name: &str) -> Result<Vec<LayerDir>, EngineError> {
        let mut merged = Vec::new();
        for dir in dirs {
            match read_entry(dir, name)? {
                Found::Missing => {}
                Found::Whiteout | Found::Entry(Entry::Link(_) | Entry::Other) => break,
                Found::Entry(Entry::Dir) => {
                    let Some(below) = dir.open_below(name.as_ref())? else { break };
                    let opaque = self.is_opaque(&below);
                    merged.push(below);
                    if opaque {
                        break;
                    }
                }
            }
        }
        Ok(merged)
    }

    fn is_opaque(&self, dir: &LayerDir) -> bool {
        let name = if self.userxattr { USER_OPAQUE } else { OPAQUE };
        let mut value = [0_u8; 4];
        matches!(rustix::fs::fgetxattr(dir.fd(), name, &mut value), Ok(1)) && value[0] == b'y'
    }

    /// What is at `path`, whose parent must be a directory of the capsule.
    fn entry(&self, path: &ContainerPath) -> Result<Option<Entry>, EngineError> {
        let Some((parent, name)) = path.split() else { return Ok(Some(Entry::Dir)) };
        for dir in self.dirs(&parent)? {
            match read_entry(&dir, name)? {
                Found::Missing => {}
                Found::Whiteout => return Ok(None),
                Found::Entry(entry) => return Ok(Some(entry)),
            }
        }
        Ok(None)
    }
}

impl Capsule for Tree {
    type Error = EngineError;

    fn entries(&self, dir: &ContainerPath) -> Result<Vec<(String, Entry)>, EngineError> {
        let mut seen: BTreeMap<String, Found> = BTreeMap::new();
        for layer in self.dirs(dir)? {
            let failed = |source: Errno| read_error(&layer, source);
            for entry in Dir::read_from(layer.fd()).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if name != "." && name != ".." && !seen.contains_key(&name) {
                    let found = read_entry(&layer, &name)?;
                    seen.insert(name, found);
                }
            }
        }
        let entries = seen.into_iter().filter_map(|(name, found)| match found {
            Found::Entry(entry) => Some((name, entry)),
            Found::Missing | Found::Whiteout => None,
        });
        Ok(entries.collect())
    }

    fn resolve_dir(&self, path: &ContainerPath) -> Result<Option<ContainerPath>, EngineError> {
        let mut done: Vec<String> = Vec::new();
        let mut todo: Vec<String> = components(path.as_str());
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == ".." {
                done.pop();
                continue;
            }
            done.push(name);
            let here = absolute(&done)?;
            match self.entry(&here)? {
                Some(Entry::Dir) => {}
                Some(Entry::Link(text)) if links < MAX_LINKS => {
                    links += 1;
                    done.pop();
                    if text.starts_with('/') {
                        done.clear();
                    }
                    todo.extend(components(&text));
                }
                Some(Entry::Link(_) | Entry::Other) | None => return Ok(None),
            }
        }
        absolute(&done).map(Some)
    }
}

/// The components of a path, the last first.
fn components(path: &str) -> Vec<String> {
    path.split('/').rev().filter(|c| !c.is_empty() && *c != ".").map(str::to_owned).collect()
}

fn absolute(parts: &[String]) -> Result<ContainerPath, EngineError> {
    ContainerPath::parse(&format!("/{}", parts.join("/")))
        .map_err(|e| EngineError::Invalid(super::model::InvalidRequest::Target(e)))
}

enum Found {
    Missing,
    Whiteout,
    Entry(Entry),
}

fn read_entry(dir: &LayerDir, name: &str) -> Result<Found, EngineError> {
    let stat = match rustix::fs::statat(dir.fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(Found::Missing),
        Err(errno) => return Err(read_error(dir, errno)),
    };
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Found::Entry(Entry::Dir),
        FileType::CharacterDevice if stat.st_rdev == 0 => Found::Whiteout,
        FileType::Symlink => {
            let text = rustix::fs::readlinkat(dir.fd(), name, Vec::new()).map_err(|e| read_error(dir, e))?;
            Found::Entry(Entry::Link(text.to_string_lossy().into_owned()))
        }
        _ => Found::Entry(Entry::Other),
    })
}

fn reopen(dir: &LayerDir) -> Result<LayerDir, EngineError> {
    let fd = dir.fd().try_clone_to_owned().map_err(|source| read_failed(dir.path(), source))?;
    Ok(LayerDir::from_fd(fd, dir.path().to_owned()))
}

fn read_error(dir: &LayerDir, errno: Errno) -> EngineError {
    read_failed(dir.path(), errno.into())
}

fn read_failed(path: &Path, source: io::Error) -> EngineError {
    EngineError::ReadLayer { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn path(path: &str) -> ContainerPath {
        ContainerPath::parse(path).unwrap()
    }

    #[test]
    fn layers_are_merged_topmost_first() {
        let dir = tempfile::tempdir().unwrap();
        let [top, low] = ["top", "low"].map(|n| dir.path().join(n));
        fs::create_dir_all(top.join("usr/bin")).unwrap();
        fs::create_dir_all(low.join("usr/lib64")).unwrap();
        fs::create_dir_all(low.join("opt/x")).unwrap();
        fs::write(top.join("opt"), "a file hides a directory").unwrap();
        symlink("usr/lib64", top.join("lib64")).unwrap();
        symlink("/../usr/./bin", low.join("bin")).unwrap();
        symlink("loop", low.join("loop")).unwrap();
        symlink("/etc", low.join("out")).unwrap();
        let tree = Tree::open(&[top, low]).unwrap();
        let names: Vec<_> = tree.entries(&path("/")).unwrap().into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["bin", "lib64", "loop", "opt", "out", "usr"]);
        assert_eq!(tree.dirs(&path("/usr")).unwrap().len(), 2);
        assert_eq!(tree.dirs(&path("/usr/bin")).unwrap().len(), 1);
        assert!(tree.dirs(&path("/opt/x")).unwrap().is_empty());
        for (asked, found) in [
            ("/lib64", Some("/usr/lib64")),
            ("/bin", Some("/usr/bin")),
            ("/usr", Some("/usr")),
            ("/loop", None),
            ("/out", None),
            ("/opt", None),
            ("/missing", None),
        ] {
            assert_eq!(tree.resolve_dir(&path(asked)).unwrap(), found.map(path), "{asked}");
        }
    }

    #[test]
    fn privileged_whiteouts_and_opaque_directories_hide_what_is_below() {
        for (mark, userxattr) in [(OPAQUE, false), (USER_OPAQUE, true)] {
            let dir = tempfile::tempdir().unwrap();
            let [top, low] = ["top", "low"].map(|n| dir.path().join(n));
            fs::create_dir_all(top.join("usr")).unwrap();
            fs::create_dir_all(low.join("usr/old")).unwrap();
            fs::create_dir_all(low.join("gone")).unwrap();
            rustix::fs::setxattr(top.join("usr"), mark, b"y", rustix::fs::XattrFlags::empty())
                .expect("trusted.* attributes need root: run the privileged tests as root");
            let mode = rustix::fs::Mode::empty();
            rustix::fs::mknodat(rustix::fs::CWD, top.join("gone"), FileType::CharacterDevice, mode, 0)
                .unwrap();
            let open = |userxattr| Tree { userxattr, ..Tree::open(&[top.clone(), low.clone()]).unwrap() };
            let tree = open(userxattr);
            assert_eq!(tree.entries(&path("/")).unwrap(), [("usr".to_owned(), Entry::Dir)]);
            assert!(tree.dirs(&path("/gone")).unwrap().is_empty());
            assert!(tree.entries(&path("/usr")).unwrap().is_empty());
            // The other kind of mark is nothing but an attribute.
            assert_eq!(open(!userxattr).entries(&path("/usr")).unwrap().len(), 1);
        }
    }
}
