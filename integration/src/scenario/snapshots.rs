//! Snapshots, as `ctr` drives them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use super::ctr::{ctr, run, run_raw};
use crate::images::Image;
use crate::workspace::hex;

/// A snapshot's only mount, as a snapshotter describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `bind` or `overlay`.
    pub kind: String,
    /// The directory of a bind mount.
    pub source: PathBuf,
    /// In the order given.
    pub options: Vec<String>,
}

impl Mount {
    /// Of a snapshot that is active or a view.
    pub fn of(snapshotter: &str, key: &str) -> Result<Self> {
        let line = ctr(&["snapshots", "--snapshotter", snapshotter, "mounts", "/target", key])?;
        Self::parse(line.success("ctr snapshots mounts")?.trim_end())
    }

    /// From the command that `ctr` prints: `mount -t TYPE SOURCE TARGET -o OPTIONS`.
    fn parse(line: &str) -> Result<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["mount", "-t", kind, source, "/target", "-o", options] => Ok(Self {
                kind: kind.to_owned(),
                source: PathBuf::from(source),
                options: options.split(',').map(str::to_owned).collect(),
            }),
            _ => anyhow::bail!("not one mount: {line:?}"),
        }
    }

    fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
    }

    /// The directories of its layers, uppermost first, its own not among them.
    pub fn lower(&self) -> Vec<PathBuf> {
        match self.option("lowerdir") {
            Some(lower) => lower.split(':').map(PathBuf::from).collect(),
            None => vec![self.source.clone()],
        }
    }

    /// The directory of what was changed.
    pub fn upper(&self) -> Result<PathBuf> {
        Ok(PathBuf::from(self.option("upperdir").context("it has no upper directory")?))
    }

    /// Mounts the layers below it, as containerd mounts them: their directories' names are relative to the one they
    /// are all in, for the system call takes a page of options. Unmounted when what is returned is dropped.
    pub fn mount_lower(&self, target: &Path) -> Result<impl Drop + use<>> {
        let lower = self.lower();
        let base = lower
            .first()
            .and_then(|lower| lower.ancestors().nth(2))
            .context("a directory without parents")?;
        let relative: Option<Vec<&str>> =
            lower.iter().map(|lower| lower.strip_prefix(base).ok()?.to_str()).collect();
        let options = format!("ro,lowerdir={}", relative.context("a directory elsewhere")?.join(":"));
        // busybox uses the old system call, which reads the directories' names when it is called.
        let script = "cd \"$0\" && exec busybox mount -t overlay -o \"$1\" overlay \"$2\"";
        let [base, at] = [base, target].map(|path| path.to_str().unwrap_or_default());
        run("sh", &["-c", script, base, &options, at], b"")?.success("mount a view")?;
        Ok(Unmount(target.to_owned()))
    }

    /// Everything but directories.
    pub fn shape(&self) -> (String, Vec<String>) {
        let directory = |option: &str| {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            if value.starts_with('/') { name.to_owned() } else { option.to_owned() }
        };
        let mut options: Vec<String> = self.options.iter().map(|option| directory(option)).collect();
        options.sort();
        (self.kind.clone(), options)
    }
}

/// Unmounts when dropped.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::empty());
    }
}

/// An image mounted by `ctr images mount`, read-only; unmounted and its snapshot removed when this is dropped.
#[derive(Debug)]
pub struct Mounted {
    snapshotter: &'static str,
    target: PathBuf,
}

impl Mounted {
    /// Mounts an image that is unpacked.
    pub fn image(snapshotter: &'static str, image: Image) -> Result<Self> {
        let target = Path::new("/tmp").join(format!("{snapshotter}-{}", image.file()));
        std::fs::create_dir_all(&target).with_context(|| format!("create {}", target.display()))?;
        let mounted = Self { snapshotter, target };
        ctr(&["images", "mount", "--snapshotter", snapshotter, image.name(), mounted.key()?])?
            .success("ctr images mount")?;
        Ok(mounted)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// How it was mounted.
    pub fn mount(&self) -> Result<Mount> {
        Mount::of(self.snapshotter, self.key()?)
    }

    /// `ctr` calls the snapshot after the target.
    fn key(&self) -> Result<&str> {
        self.target.to_str().context("a path that is no text")
    }

    /// Unmounts it and removes its snapshot.
    pub fn unmount(self) -> Result<()> {
        let outcome = self.unmount_now();
        std::mem::forget(self);
        outcome
    }

    fn unmount_now(&self) -> Result<()> {
        ctr(&["images", "unmount", "--snapshotter", self.snapshotter, "--rm", self.key()?])?
            .success("ctr images unmount")
            .map(drop)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.unmount_now();
    }
}

/// Every snapshot's key or name.
pub fn list(snapshotter: &str) -> Result<Vec<String>> {
    let list = ctr(&["snapshots", "--snapshotter", snapshotter, "ls"])?.success("ctr snapshots ls")?;
    Ok(list.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

/// Makes an active snapshot. (`ctr` leaves a view to the collector, which takes it at any time.)
pub fn prepare(snapshotter: &str, key: &str, parent: &str) -> Result<()> {
    ctr(&["snapshots", "--snapshotter", snapshotter, "prepare", key, parent])?
        .success("ctr snapshots prepare")
        .map(drop)
}

/// Removes a snapshot.
pub fn remove(snapshotter: &str, key: &str) -> Result<()> {
    ctr(&["snapshots", "--snapshotter", snapshotter, "rm", key])?.success("ctr snapshots rm").map(drop)
}

/// Commits an active snapshot.
pub fn commit(snapshotter: &str, name: &str, key: &str) -> Result<()> {
    ctr(&["snapshots", "--snapshotter", snapshotter, "commit", name, key])?
        .success("ctr snapshots commit")
        .map(drop)
}

/// The digest of what a snapshot changes in its parent, as containerd writes it as a layer.
pub fn diff(snapshotter: &str, key: &str) -> Result<String> {
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    let args = ["snapshots", "--snapshotter", snapshotter, "diff", "--media-type", media_type, key];
    // Whiteouts are of the time at which they are written, unless one is set; times after it are set to it too.
    let args: Vec<&str> = ["SOURCE_DATE_EPOCH=1600000000", "ctr"].iter().chain(&args).copied().collect();
    let output = run_raw("env", &args, b"")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ctr snapshots diff: {}", error.trim());
    ensure!(output.stdout.len() > 1024, "the diff of {key} is empty");
    Ok(format!("sha256:{} of {} bytes", hex(&Sha256::digest(&output.stdout)), output.stdout.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_from_what_ctr_prints() {
        let overlay =
            Mount::parse("mount -t overlay overlay /target -o index=off,lowerdir=/b/2/fs:/b/1/fs").unwrap();
        assert_eq!(overlay.lower(), [Path::new("/b/2/fs"), Path::new("/b/1/fs")]);
        assert_eq!(
            overlay.shape(),
            ("overlay".to_owned(), vec!["index=off".to_owned(), "lowerdir".to_owned()])
        );
        assert!(overlay.upper().is_err());
        let bind = Mount::parse("mount -t bind /b/1/fs /target -o ro,rbind").unwrap();
        assert_eq!(bind.lower(), [Path::new("/b/1/fs")]);
        assert!(Mount::parse("").is_err());
    }
}
