//! Where a mount goes: the root, or something in what was mounted there before.

use std::{
    fmt, fs,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::RootfsError;

/// How often a lookup is repeated that a concurrent rename or mount made inconclusive (`EAGAIN`, `openat2(2)`).
const TRIES: usize = 128;

/// Where a mount goes.
#[derive(Debug, Clone)]
pub struct Place {
    root: PathBuf,
    below: String,
}

/// What a place is at this moment.
#[derive(Debug)]
pub struct Spot {
    path: PathBuf,
    held: Option<OwnedFd>,
}

impl Place {
    /// `below` the directory `root`; the directory itself when that is empty or "/".
    pub fn new(root: &Path, below: &str) -> Self {
        Self { root: root.to_owned(), below: below.trim_matches('/').to_owned() }
    }

    /// The directory that it is in, or is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Finds it, with all that is mounted on it. Links on the way are followed as a process in the root would follow them
    /// (`RESOLVE_IN_ROOT`), and `..` ends at the root: what an image or another container has planted there leads nowhere
    /// else. containerd does the same by path (`continuity/fs`, `RootPath`).
    ///
    /// # Errors
    /// [`RootfsError::Place`]; `ENOENT` where it does not exist, which nothing makes.
    pub fn find(&self) -> Result<Spot, RootfsError> {
        if self.below.is_empty() {
            return Ok(Spot { path: self.root.clone(), held: None });
        }
        let failed = |source| RootfsError::Place { below: self.below.clone(), source };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.root, flags | OFlags::DIRECTORY, Mode::empty()).map_err(failed)?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut found = Err(Errno::AGAIN);
        for _ in 0..TRIES {
            found = rustix::fs::openat2(&root, self.below.as_str(), flags, Mode::empty(), resolve);
            if !matches!(found, Err(Errno::AGAIN | Errno::INTR)) {
                break;
            }
        }
        let held = found.map_err(failed)?;
        Ok(Spot { path: format!("/proc/self/fd/{}", held.as_raw_fd()).into(), held: Some(held) })
    }
}

/// For messages.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.below.as_str() {
            "" => write!(f, "{}", self.root.display()),
            below => write!(f, "{below:?} in {}", self.root.display()),
        }
    }
}

impl Spot {
    /// A path that means it to this process, whatever is renamed meanwhile.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path by which other processes find it, as long as nothing is renamed.
    pub fn name(&self) -> PathBuf {
        let held = self.held.as_ref().and_then(|_| fs::read_link(&self.path).ok());
        held.unwrap_or_else(|| self.path.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_lead_nowhere_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap().join("root");
        fs::create_dir_all(root.join("volumes/one")).unwrap();
        fs::create_dir_all(root.join("usr")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        for (link, to) in [
            ("absolute", "/volumes"),
            ("usr/climbs", "../../../../volumes"),
            ("outside", "../outside"),
            ("around", "/around"),
            ("magic", "/proc/self/root"),
        ] {
            symlink(to, root.join(link)).unwrap();
        }
        for (below, found) in [
            ("", Ok("")),
            ("/", Ok("")),
            ("..", Ok("")),
            ("volumes/one/", Ok("volumes/one")),
            ("/absolute/one", Ok("volumes/one")),
            ("usr/climbs/one", Ok("volumes/one")),
            ("../../volumes/../usr", Ok("usr")),
            ("outside", Err(Errno::LOOP)), // itself, as ".." ends at the root
            ("around", Err(Errno::LOOP)),
            ("magic", Err(Errno::NOENT)),
            ("volumes/two", Err(Errno::NOENT)),
        ] {
            let spot = Place::new(&root, below).find();
            match (spot, found) {
                (Ok(spot), Ok(found)) => {
                    let found = root.join(found);
                    assert_eq!(spot.path().canonicalize().unwrap(), found);
                    assert_eq!(spot.name().components().as_path(), found.components().as_path());
                }
                (Err(RootfsError::Place { source, .. }), Err(errno)) => assert_eq!(source, errno, "{below}"),
                (spot, found) => panic!("{below}: {spot:?} instead of {found:?}"),
            }
        }
    }
}
