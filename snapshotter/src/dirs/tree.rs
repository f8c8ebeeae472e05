//! Walking trees that containers wrote: no link is followed, and neither a very deep tree nor one that changes
//! under the walk can exhaust descriptors or the stack.

use std::{collections::HashSet, ffi::CString, io, path::Path};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{
        AtFlags, CWD, Dir, FileType, IFlags, Mode, OFlags, Stat, fstat, ioctl_getflags, ioctl_setflags,
        openat, renameat, statat, unlinkat,
    },
    io::Errno,
};

use crate::snapshots::model::Usage;

/// How deep removal goes before it flattens what is deeper: one descriptor is open per level.
const DEPTH: usize = 32;
/// Unit of `st_blocks` (stat(2)).
const BLOCK: u64 = 512;

const OPEN_DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK);

fn open_directory(at: BorrowedFd<'_>, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    openat(at, name, OPEN_DIRECTORY, Mode::empty())
}

/// Names in a directory, without `.` and `..`.
fn read_names(directory: BorrowedFd<'_>) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

type Inode = (u64, u64);

fn inode(stat: &Stat) -> Inode {
    (stat.st_dev, stat.st_ino)
}

/// Allocated bytes and inodes of a tree, its root included; hard links count once.
///
/// One descriptor is open at a time: the way up is `..`, checked to be the directory that the walk came from.
pub(super) fn measure(root: &Path) -> io::Result<Usage> {
    let mut measured = Measured::default();
    let mut directory = open_directory(CWD, root)?;
    let mut here = fstat(&directory)?;
    measured.add(&here);
    let mut todo = measured.read_level(directory.as_fd())?;
    let mut above: Vec<(Inode, Vec<CString>)> = Vec::new();
    loop {
        if let Some(name) = todo.pop() {
            let below = match open_directory(directory.as_fd(), &name) {
                Ok(below) => below,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue, // replaced since it was listed
                Err(errno) => return Err(errno.into()),
            };
            above.push((inode(&here), todo));
            here = fstat(&below)?;
            directory = below;
            measured.add(&here);
            todo = measured.read_level(directory.as_fd())?;
        } else if let Some((expected, names)) = above.pop() {
            directory = open_directory(directory.as_fd(), c"..")?;
            here = fstat(&directory)?;
            if inode(&here) != expected {
                return Err(io::Error::other("a directory was moved while the tree was being read"));
            }
            todo = names;
        } else {
            return Ok(measured.usage);
        }
    }
}

#[derive(Default)]
struct Measured {
    usage: Usage,
    /// Files with several links that were counted already.
    linked: HashSet<Inode>,
}

impl Measured {
    fn add(&mut self, stat: &Stat) {
        self.usage.inodes += 1;
        self.usage.size += u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK;
    }

    /// Adds all but the directories in `directory`, and gives the names of those.
    fn read_level(&mut self, directory: BorrowedFd<'_>) -> rustix::io::Result<Vec<CString>> {
        let mut directories = Vec::new();
        for name in read_names(directory)? {
            let stat = match statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue, // removed since it was listed
                Err(errno) => return Err(errno),
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                directories.push(name);
            } else if stat.st_nlink <= 1 || self.linked.insert(inode(&stat)) {
                self.add(&stat);
            }
        }
        Ok(directories)
    }
}

/// Removes a directory with all that is in it. That it is not there is a success. One thing that cannot be removed keeps
/// nothing else.
///
/// Deeper than [`DEPTH`], directories are moved to the top first, so a tree of any depth is removed with few
/// descriptors and a shallow stack. What its container has marked as not to be changed (chattr(1), `i` and `a`) is unmarked.
pub(crate) fn remove(root: &Path) -> io::Result<()> {
    let top = match open_directory(CWD, root) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(unlinkat(CWD, root, AtFlags::empty())?),
        Err(errno) => return Err(errno.into()),
    };
    let mut removal = Removal { top: top.as_fd(), moved: 0, failed: None };
    loop {
        let before = removal.moved;
        removal.empty(removal.top, 0)?;
        if removal.moved == before {
            break;
        }
    }
    if let Some(errno) = removal.failed {
        return Err(errno.into());
    }
    let removed = match unlinkat(CWD, root, AtFlags::REMOVEDIR) {
        Err(Errno::PERM) => {
            unmark(top.as_fd());
            unlinkat(CWD, root, AtFlags::REMOVEDIR)
        }
        removed => removed,
    };
    Ok(gone(removed)?)
}

/// That something is not there (any more) is a success: another capsuled, which this one was taken over from or by, may
/// remove the same tree.
fn gone(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    result.or_else(|errno| if errno == Errno::NOENT { Ok(()) } else { Err(errno) })
}

/// Lets a file or directory be changed again. Nothing where the file system has no such marks.
fn unmark(file: BorrowedFd<'_>) {
    let marks = IFlags::IMMUTABLE | IFlags::APPEND;
    if let Ok(flags) = ioctl_getflags(file)
        && flags.intersects(marks)
    {
        ioctl_setflags(file, flags - marks).ok();
    }
}

/// Does what the marks of `name` or of the directory that it is in may forbid, and once more without them.
fn insist(
    directory: BorrowedFd<'_>,
    name: &CString,
    change: impl Fn() -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    match change() {
        Err(Errno::PERM) => {}
        done => return done,
    }
    unmark(directory);
    let is_marked = |kind| matches!(kind, FileType::RegularFile | FileType::Directory);
    // Nothing else is opened: a device is one of the node's.
    if let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
        && is_marked(FileType::from_raw_mode(stat.st_mode))
    {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if let Ok(file) = openat(directory, name, flags, Mode::empty()) {
            unmark(file.as_fd());
        }
    }
    change()
}

struct Removal<'a> {
    top: BorrowedFd<'a>,
    /// How many directories were moved to the top.
    moved: u64,
    /// Why the first thing that stays does.
    failed: Option<Errno>,
}

impl Removal<'_> {
    fn empty(&mut self, directory: BorrowedFd<'_>, depth: usize) -> rustix::io::Result<()> {
        for name in read_names(directory)? {
            let removed = match insist(directory, &name, || unlinkat(directory, &name, AtFlags::empty())) {
                Err(Errno::ISDIR) => self.remove_directory(directory, &name, depth),
                done => gone(done),
            };
            if let Err(errno) = removed {
                self.failed.get_or_insert(errno);
            }
        }
        Ok(())
    }

    fn remove_directory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CString,
        depth: usize,
    ) -> rustix::io::Result<()> {
        // Most are empty: those of containers that wrote nothing, and the work directories.
        let remove = || insist(parent, name, || unlinkat(parent, name, AtFlags::REMOVEDIR));
        match remove() {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            done => return gone(done),
        }
        if depth == DEPTH {
            return self.move_to_top(parent, name);
        }
        let directory = match open_directory(parent, name) {
            Err(Errno::NOENT) => return Ok(()),
            opened => opened?,
        };
        self.empty(directory.as_fd(), depth + 1)?;
        match remove() {
            // What is left in it has said why.
            Err(Errno::NOTEMPTY | Errno::EXIST) if self.failed.is_some() => Ok(()),
            done => gone(done),
        }
    }

    fn move_to_top(&mut self, parent: BorrowedFd<'_>, name: &CString) -> rustix::io::Result<()> {
        loop {
            let free = format!("deep-{}", self.moved + 1);
            match insist(parent, name, || renameat(parent, name, self.top, &free)) {
                // The container chose that name too.
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => self.moved += 1,
                Ok(()) => {
                    self.moved += 1;
                    return Ok(());
                }
                done => return gone(done),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::{MetadataExt, symlink},
    };

    use super::*;

    fn make_deep(root: &Path, depth: usize) {
        let mut here = open_directory(CWD, root).unwrap();
        for _ in 0..depth {
            rustix::fs::mkdirat(&here, "d", Mode::RWXU).unwrap();
            here = open_directory(here.as_fd(), c"d").unwrap();
        }
    }

    #[test]
    fn hard_links_count_once_and_holes_do_not() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::write(at("file"), vec![1; 100_000]).unwrap();
        fs::hard_link(at("file"), at("link")).unwrap();
        fs::create_dir(at("dir")).unwrap();
        fs::hard_link(at("file"), at("dir/link")).unwrap();
        File::create(at("sparse")).unwrap().set_len(1 << 30).unwrap();
        symlink("/proc", at("dir/out")).unwrap();
        let blocks = |name: &str| fs::symlink_metadata(at(name)).unwrap().blocks() * 512;
        let expected = blocks("") + blocks("file") + blocks("dir") + blocks("sparse") + blocks("dir/out");
        assert_eq!(measure(root.path()).unwrap(), Usage { inodes: 5, size: expected });
    }

    #[test]
    fn trees_deeper_than_paths_and_descriptors_are_measured_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("tree");
        fs::create_dir(&tree).unwrap();
        make_deep(&tree, 5000);
        fs::create_dir(tree.join("deep-1")).unwrap();
        fs::write(tree.join("deep-1/in-the-way"), "").unwrap();
        assert_eq!(measure(&tree).unwrap().inodes, 5003);
        remove(&tree).unwrap();
        assert!(!tree.exists());
    }

    /// Of a container that may set attributes.
    #[test]
    fn privileged_what_must_not_be_changed_goes_too_and_nothing_holds_up_the_rest() {
        use rustix::fs::IFlags;
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("tree");
        fs::create_dir_all(tree.join("a/sub")).unwrap();
        make_deep(&tree.join("a/sub"), 70);
        let deep = tree.join(format!("a/sub{}", "/d".repeat(60)));
        for file in ["a/immutable", "a/sub/append", "z"] {
            fs::write(tree.join(file), "").unwrap();
        }
        let set = |path: &Path, flags| {
            ioctl_setflags(File::open(path).unwrap(), flags).expect("run this as root");
        };
        for (path, flags) in [
            ("a/immutable", IFlags::IMMUTABLE),
            ("a/sub/append", IFlags::APPEND),
            ("a/sub", IFlags::APPEND),
            ("a", IFlags::IMMUTABLE),
        ] {
            set(&tree.join(path), flags);
        }
        set(&deep, IFlags::IMMUTABLE);
        set(&tree, IFlags::APPEND);
        remove(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn privileged_what_cannot_be_removed_holds_up_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("tree");
        fs::create_dir_all(tree.join("a/busy")).unwrap();
        let files = (0..20).flat_map(|n| [format!("a/{n}"), format!("{n}")]);
        files.for_each(|file| fs::write(tree.join(file), "").unwrap());
        overlayfs_utils::in_new_mount_namespace(|| {
            use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            mount("tmpfs", tree.join("a/busy"), "tmpfs", MountFlags::empty(), None)
                .expect("run this as root");
            fs::write(tree.join("a/busy/kept"), "").unwrap();
            let refused = remove(&tree).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(Errno::BUSY.raw_os_error()), "{refused}");
        })
        .unwrap();
        let left = |path| fs::read_dir(path).unwrap().count();
        assert_eq!((left(tree.clone()), left(tree.join("a"))), (1, 1));
        remove(&tree).unwrap();
    }

    #[test]
    fn removal_follows_no_link() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        let tree = root.path().join("tree");
        fs::create_dir(&tree).unwrap();
        symlink(&outside, tree.join("link")).unwrap();
        remove(&tree).unwrap();
        symlink(&outside, &tree).unwrap();
        remove(&tree).unwrap();
        assert!(outside.join("kept").exists());
        assert!(fs::symlink_metadata(&tree).is_err());
        remove(&tree).unwrap();
    }
}
