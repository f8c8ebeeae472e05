//! Upper directories on disk: the only part of this room that makes, renames and removes.
//!
//! Each is made under another name and renamed into place, and renamed away before it is removed: under its own name it is
//! whole or not there.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::fs::FallocateFlags;

use super::{
    error::{MIN_SIZE, UpperError},
    model::{About, FORMAT, Place, UpperName},
    uses::Key,
};
use crate::dirs::remove_tree;

const OWN: &str = "attachments";
const NAMED: &str = "uppers";
const VOLUMES: &str = "volumes";
/// The stack of volumes that have none: no stack can be called so.
const ALONE: &str = "_";
const ABOUT: &str = "about.json";
const IMAGE: &str = "image";
const NEW: &str = ".new-";
const GONE: &str = ".gone-";

/// The directories of one root.
#[derive(Debug, Clone)]
pub struct Disk {
    root: PathBuf,
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> UpperError {
    let path = path.to_owned();
    move |source| UpperError::Disk { step, path, source }
}

impl Disk {
    /// The directories below `root`, made when they are not there.
    ///
    /// # Errors
    /// [`UpperError::Disk`].
    pub fn open(root: &Path) -> Result<Self, UpperError> {
        let this = Self { root: root.to_owned() };
        for folder in [OWN, NAMED, VOLUMES].map(|name| root.join(name)) {
            DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed("make", &folder))?;
        }
        Ok(this)
    }

    /// What a crash left, to be removed. To be asked before anything is made.
    ///
    /// # Errors
    /// [`UpperError::Disk`].
    pub fn leftovers(&self) -> Result<Vec<Retired>, UpperError> {
        let mut left = Vec::new();
        let folders = [OWN, NAMED].map(|name| self.root.join(name)).into_iter().chain(self.stacks()?);
        for folder in folders {
            for entry in fs::read_dir(&folder).map_err(failed("read", &folder))?.flatten() {
                let name = entry.file_name();
                if name.to_str().is_some_and(|name| name.starts_with(NEW) || name.starts_with(GONE)) {
                    left.push(Retired(entry.path()));
                }
            }
        }
        Ok(left)
    }

    /// The root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where one is.
    pub fn path(&self, key: &Key) -> PathBuf {
        match key {
            Key::Own(id) => self.root.join(OWN).join(id),
            Key::Named(name) => self.root.join(NAMED).join(name.to_string()),
            Key::Volume(id) => self.root.join(VOLUMES).join(id.stack().unwrap_or(ALONE)).join(id.name()),
        }
    }

    /// The directories of stacks that have volumes.
    fn stacks(&self) -> Result<Vec<PathBuf>, UpperError> {
        let folder = self.root.join(VOLUMES);
        let entries = fs::read_dir(&folder).map_err(failed("read", &folder))?.flatten();
        Ok(entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
    }

    /// All volumes that are there.
    fn volumes(&self) -> Result<Vec<Key>, UpperError> {
        let mut keys = Vec::new();
        for folder in self.stacks()? {
            let stack = folder.file_name().and_then(|name| name.to_str()).filter(|name| *name != ALONE);
            for entry in fs::read_dir(&folder).map_err(failed("read", &folder))?.flatten() {
                let Ok(name) = entry.file_name().into_string() else { continue };
                let id = stack.map_or_else(|| name.clone(), |stack| format!("{stack}/{name}"));
                match id.parse() {
                    _ if name.starts_with('.') => {}
                    Ok(id) => keys.push(Key::Volume(id)),
                    Err(_) => {
                        tracing::warn!(path = ?entry.path(), "is in the folder of volumes, and is none")
                    }
                }
            }
        }
        Ok(keys)
    }

    /// Whether it is there.
    pub fn has(&self, key: &Key) -> bool {
        self.path(key).exists()
    }

    /// What overlayfs can be given of it.
    pub fn place(&self, key: &Key) -> Place {
        let path = self.path(key);
        let image = path.join(IMAGE);
        if image.exists() { Place::Image(image) } else { Place::Directory(path) }
    }

    /// All that are there.
    ///
    /// # Errors
    /// [`UpperError::Disk`].
    pub fn list(&self) -> Result<Vec<Key>, UpperError> {
        let mut keys = Vec::new();
        for (folder, is_named) in [(OWN, false), (NAMED, true)] {
            let folder = self.root.join(folder);
            for entry in fs::read_dir(&folder).map_err(failed("read", &folder))?.flatten() {
                let Ok(name) = entry.file_name().into_string() else { continue };
                match name.parse::<UpperName>() {
                    _ if name.starts_with('.') => {}
                    Ok(name) if is_named => keys.push(Key::Named(name)),
                    _ if !is_named => keys.push(Key::Own(name)),
                    _ => tracing::warn!(name, "is in the folder of what is kept by name, and has none"),
                }
            }
        }
        keys.extend(self.volumes()?);
        Ok(keys)
    }

    /// Makes one, of a fixed size where `about` has one. When this returns, it is durable.
    ///
    /// # Errors
    /// [`UpperError`]; then nothing is there.
    pub fn make(&self, key: &Key, about: &About) -> Result<(), UpperError> {
        let path = self.path(key);
        let new = self.beside(&path, NEW, &about.attachment);
        if let (Key::Volume(_), Some(stack)) = (key, path.parent()) {
            DirBuilder::new().recursive(true).mode(0o700).create(stack).map_err(failed("make", stack))?;
            stack.parent().map_or(Ok(()), sync)?;
        }
        let made = self.fill(&new, about).and_then(|()| rename(&new, &path));
        if made.is_err() {
            // What stays goes at the next start.
            remove_tree(&new).ok();
        }
        made
    }

    fn fill(&self, new: &Path, about: &About) -> Result<(), UpperError> {
        DirBuilder::new().mode(0o700).create(new).map_err(failed("make", new))?;
        if let Some(size) = about.limit {
            make_image(&new.join(IMAGE), size)?;
        }
        write_about(new, about)?;
        sync(new)
    }

    fn beside(&self, path: &Path, prefix: &str, id: &str) -> PathBuf {
        path.with_file_name(format!("{prefix}{id}"))
    }

    /// What is said of it.
    ///
    /// # Errors
    /// [`UpperError::Disk`], [`UpperError::About`].
    pub fn about(&self, key: &Key) -> Result<About, UpperError> {
        let path = self.path(key).join(ABOUT);
        let text = fs::read(&path).map_err(failed("read", &path))?;
        let damaged = |reason: String| UpperError::About { path: path.clone(), reason };
        let about: About = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
        if about.format != FORMAT {
            return Err(damaged(format!("its format is {}, and {FORMAT} is known", about.format)));
        }
        Ok(about)
    }

    /// Says something else of it.
    ///
    /// # Errors
    /// [`UpperError::Disk`]; then what was said before stands.
    pub fn tell(&self, key: &Key, about: &About) -> Result<(), UpperError> {
        write_about(&self.path(key), about)
    }

    /// Gives what an attachment has written a name. Done already, it is a success.
    ///
    /// # Errors
    /// [`UpperError::Exists`], [`UpperError::Disk`]; then it has none.
    pub fn keep(&self, id: &str, name: &UpperName) -> Result<(), UpperError> {
        let (from, to) = (self.path(&Key::Own(id.to_owned())), self.path(&Key::Named(name.clone())));
        if !from.exists() && self.about(&Key::Named(name.clone())).is_ok_and(|about| about.attachment == id) {
            return Ok(());
        }
        if to.exists() {
            return Err(UpperError::Exists(name.clone()));
        }
        rename(&from, &to)?;
        sync(&self.root.join(OWN))
    }

    /// Undoes [`Disk::keep`].
    ///
    /// # Errors
    /// [`UpperError::Disk`].
    pub fn keep_no_more(&self, id: &str, name: &UpperName) -> Result<(), UpperError> {
        rename(&self.path(&Key::Named(name.clone())), &self.path(&Key::Own(id.to_owned())))
    }

    /// Whether what the attachment of this id has written has a name now.
    pub fn was_kept(&self, id: &str) -> bool {
        if self.has(&Key::Own(id.to_owned())) {
            return false;
        }
        let is_it = |key: &Key| self.about(key).is_ok_and(|about| about.attachment == id);
        self.list().unwrap_or_default().iter().any(|key| matches!(key, Key::Named(_)) && is_it(key))
    }

    /// Takes the name from one that is to be removed; nothing when it is not there. It goes at the next start at the latest, and
    /// a power cut does not bring the name back.
    ///
    /// # Errors
    /// [`UpperError::Disk`].
    pub fn retire(&self, key: &Key, id: &str) -> Result<Option<Retired>, UpperError> {
        let path = self.path(key);
        let gone = self.beside(&path, GONE, id);
        match fs::rename(&path, &gone) {
            Ok(()) => {
                gone.parent().map_or(Ok(()), sync)?;
                Ok(Some(Retired(gone)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("rename", &path)(error)),
        }
    }
}

/// One that is to be removed, and has no name any more.
#[derive(Debug)]
pub struct Retired(PathBuf);

impl Retired {
    /// Removes it. There may be millions of files.
    ///
    /// # Errors
    /// [`UpperError::Disk`]; then it goes at the next start.
    pub fn remove(self) -> Result<(), UpperError> {
        remove_tree(&self.0).map_err(failed("remove", &self.0))
    }
}

/// With all of its bytes reserved: what is written to it never meets a disk that is full.
fn make_image(path: &Path, size: u64) -> Result<(), UpperError> {
    if size < MIN_SIZE {
        return Err(UpperError::TooSmall(size));
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(failed("make", path))?;
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size) {
        Ok(()) => {}
        Err(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT | rustix::io::Errno::FBIG) => {
            return Err(UpperError::DiskFull { size, path: path.to_owned() });
        }
        // A file system that reserves nothing: then it is bounded, and not promised.
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(size).map_err(failed("make", path))?,
        Err(errno) => return Err(failed("reserve space for", path)(errno.into())),
    }
    let made = Command::new("mkfs.ext4")
        // Nothing is kept back for root. All is written now: what the kernel zeroes later it gives back to the disk (loop
        // devices punch holes), and then it is reserved no more. Smaller inodes have times in seconds, by which a publish
        // could not tell what was written to.
        .args(["-q", "-F", "-m", "0", "-I", "256", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"])
        .arg(path)
        .output();
    let reason = match made {
        Ok(output) if output.status.success() => return file.sync_all().map_err(failed("write", path)),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("mkfs.ext4 (package e2fsprogs): {error}"),
    };
    Err(UpperError::MakeFileSystem { path: path.to_owned(), reason })
}

fn write_about(dir: &Path, about: &About) -> Result<(), UpperError> {
    let (path, new) = (dir.join(ABOUT), dir.join(format!(".{ABOUT}.new")));
    let text = serde_json::to_vec_pretty(about)
        .map_err(|e| UpperError::About { path: path.clone(), reason: e.to_string() })?;
    let written = File::create(&new).and_then(|mut file| {
        file.write_all(&text)?;
        file.sync_all()
    });
    written.map_err(failed("write", &new))?;
    fs::rename(&new, &path).map_err(failed("write", &path))?;
    sync(dir)
}

fn rename(from: &Path, to: &Path) -> Result<(), UpperError> {
    fs::rename(from, to).map_err(failed("rename", from))?;
    to.parent().map_or(Ok(()), sync)
}

fn sync(dir: &Path) -> Result<(), UpperError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("flush", dir))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use rustix::fs::{Mode, OFlags};

    use super::{super::model::Over, *};
    use crate::capsules::model::Digest;

    fn about(id: &str, limit: Option<u64>) -> About {
        About {
            format: FORMAT,
            over: Some(Over {
                capsule: "tools".parse().unwrap(),
                version: "1".parse().unwrap(),
                digest: Digest::from_sha256(&[1; 32]),
            }),
            attachment: id.into(),
            limit,
            pending: false,
            since: SystemTime::UNIX_EPOCH,
            owner: None,
            permissions: None,
            ephemeral: false,
        }
    }

    #[test]
    fn what_is_made_is_whole_and_what_a_crash_left_goes() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path()).unwrap();
        let own = Key::Own("1".into());
        disk.make(&own, &about("1", None)).unwrap();
        assert_eq!(disk.place(&own), Place::Directory(root.path().join("attachments/1")));
        assert_eq!(disk.about(&own).unwrap(), about("1", None));
        for left in ["attachments/.new-2", "attachments/.gone-3", "uppers/.gone-4"] {
            fs::create_dir_all(root.path().join(left).join("upper")).unwrap();
        }
        let disk = Disk::open(root.path()).unwrap();
        assert_eq!(disk.list().unwrap(), std::slice::from_ref(&own));
        for one in disk.leftovers().unwrap() {
            one.remove().unwrap();
        }
        assert_eq!(fs::read_dir(root.path().join("attachments")).unwrap().count(), 1);
        let name: UpperName = "notes".parse().unwrap();
        for _ in 0..2 {
            disk.keep("1", &name).unwrap();
        }
        assert_eq!(disk.list().unwrap(), [Key::Named(name.clone())]);
        disk.make(&Key::Own("2".into()), &about("2", None)).unwrap();
        assert!(matches!(disk.keep("2", &name), Err(UpperError::Exists(_))));
        for _ in 0..2 {
            disk.retire(&Key::Named(name.clone()), "x").unwrap().map_or(Ok(()), Retired::remove).unwrap();
        }
        assert_eq!(disk.list().unwrap(), [Key::Own("2".into())]);
    }

    #[test]
    fn volumes_lie_in_the_directories_of_their_stacks() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path()).unwrap();
        let [data, alone] = ["shop/data", "alone"].map(|id| Key::Volume(id.parse().unwrap()));
        // Of no capsule, and of one; what is said of either is read again.
        let directory =
            About { over: None, owner: Some((1, 2)), permissions: Some(0o750), ..about("1", None) };
        disk.make(&data, &directory).unwrap();
        disk.make(&alone, &About { ephemeral: true, ..about("2", None) }).unwrap();
        assert_eq!(disk.path(&data), root.path().join("volumes/shop/data"));
        assert_eq!(disk.path(&alone), root.path().join("volumes/_/alone"));
        assert_eq!(disk.about(&data).unwrap(), directory);
        assert!(disk.about(&alone).unwrap().ephemeral);
        for left in ["shop/.new-3", "_/.gone-4"] {
            fs::create_dir_all(root.path().join("volumes").join(left).join("upper")).unwrap();
        }
        let mut listed = disk.list().unwrap();
        listed.sort();
        assert_eq!(listed, [alone, data.clone()]);
        assert_eq!(disk.leftovers().unwrap().len(), 2);
        disk.retire(&data, "x").unwrap().unwrap().remove().unwrap();
        assert!(!disk.has(&data));
    }

    #[test]
    fn what_was_said_before_there_were_volumes_is_read() {
        let text = r#"{"format":1,"capsule":"tools","version":"1","digest":"sha256:0101010101010101010101010101010101010101010101010101010101010101","attachment":"1","limit":null,"since":{"secs_since_epoch":0,"nanos_since_epoch":0}}"#;
        assert_eq!(serde_json::from_str::<About>(text).unwrap(), about("1", None));
        let now: serde_json::Value = serde_json::to_value(about("1", None)).unwrap();
        let old: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(now["capsule"], old["capsule"]);
    }

    /// Deeper than descriptors and the stack last.
    fn scribble(below: &Path, depth: usize) {
        let mut here = File::from(rustix::fs::open(below, OFlags::DIRECTORY, Mode::empty()).unwrap());
        for _ in 0..depth {
            rustix::fs::mkdirat(&here, "d", Mode::RWXU).unwrap();
            here = rustix::fs::openat(&here, "d", OFlags::DIRECTORY, Mode::empty()).unwrap().into();
        }
    }

    #[test]
    fn a_tree_of_any_depth_goes_at_once_and_after_a_crash() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path()).unwrap();
        let own = Key::Own("1".into());
        disk.make(&own, &about("1", None)).unwrap();
        scribble(&disk.path(&own), 15_000);
        disk.retire(&own, "1").unwrap().unwrap().remove().unwrap();
        let left = root.path().join("attachments/.gone-2");
        fs::create_dir(&left).unwrap();
        scribble(&left, 1_100);
        for one in disk.leftovers().unwrap() {
            one.remove().unwrap();
        }
        assert_eq!(fs::read_dir(root.path().join("attachments")).unwrap().count(), 0);
    }

    #[test]
    fn an_image_has_its_size_or_is_not_there() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path()).unwrap();
        let own = Key::Own("1".into());
        let small = disk.make(&own, &about("1", Some(1 << 20))).unwrap_err();
        assert!(matches!(small, UpperError::TooSmall(_)), "{small}");
        let full = disk.make(&own, &about("1", Some(1 << 50))).unwrap_err();
        assert!(matches!(full, UpperError::DiskFull { .. }), "{full}");
        assert_eq!(fs::read_dir(root.path().join("attachments")).unwrap().count(), 0);
        disk.make(&own, &about("1", Some(8 << 20))).unwrap();
        let Place::Image(image) = disk.place(&own) else { panic!("it is an image") };
        assert_eq!(fs::metadata(image).unwrap().len(), 8 << 20);
    }

    #[test]
    fn what_is_damaged_or_newer_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::open(root.path()).unwrap();
        let own = Key::Own("1".into());
        disk.make(&own, &about("1", None)).unwrap();
        disk.tell(&own, &About { format: 2, ..about("1", None) }).unwrap();
        assert!(matches!(disk.about(&own), Err(UpperError::About { .. })));
        fs::write(disk.path(&own).join(ABOUT), "{").unwrap();
        assert!(matches!(disk.about(&own), Err(UpperError::About { .. })));
    }
}
