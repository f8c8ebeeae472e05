//! The control groups of a task, as a test finds them: by the kernel's own words about its init.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

const MOUNT: &str = "/sys/fs/cgroup";

/// The control groups of a process.
#[derive(Debug, Clone)]
pub struct Group {
    /// `/proc/PID/cgroup`.
    text: String,
    /// There is one hierarchy, of version 2.
    pub unified: bool,
}

impl Group {
    /// Those in which the process is now.
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/cgroup");
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        Ok(Self { text, unified: Path::new(MOUNT).join("cgroup.controllers").exists() })
    }

    /// Where the files of a controller are.
    pub fn directory(&self, controller: &str) -> Result<PathBuf> {
        let path = self.text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (names, path) = (fields.next()?, fields.next()?);
            let found =
                if self.unified { names.is_empty() } else { names.split(',').any(|n| n == controller) };
            found.then(|| path.trim_start_matches('/').to_owned())
        });
        let path = path.with_context(|| format!("no control group of {controller}: {}", self.text))?;
        let mount = if self.unified { PathBuf::from(MOUNT) } else { Path::new(MOUNT).join(controller) };
        Ok(mount.join(path))
    }

    /// What a file holds, without the blanks around it.
    pub fn read(&self, controller: &str, file: &str) -> Result<String> {
        let path = self.directory(controller)?.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    /// All directories of it that are there.
    pub fn left(&self) -> Vec<PathBuf> {
        let controllers = self.text.lines().filter_map(|line| line.split(':').nth(1)?.split(',').next());
        let directories = controllers.filter_map(|controller| self.directory(controller).ok());
        directories.filter(|path| path.exists()).collect()
    }
}
