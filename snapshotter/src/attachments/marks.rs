//! One empty file for each container that has records: `/run/capsule/kept/NAMESPACE/CONTAINER`.
//!
//! A shim looks for it before a container's first process runs. A container without one starts without capsuled, and as
//! fast as if there were none; one that has it waits for capsuled. The file is there before the first record is written
//! and goes after the last one, so a crash leaves one too many at worst: then a start asks for nothing, once.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::model::ContainerKey;

/// The folder's name in the run directory. The shim knows it too.
const FOLDER: &str = "kept";

/// The marks: cheap to clone.
#[derive(Debug, Clone)]
pub struct Marks {
    folder: PathBuf,
}

impl Marks {
    /// The marks below the run directory `run`.
    pub fn new(run: &Path) -> Self {
        Self { folder: run.join(FOLDER) }
    }

    /// Where a container's mark is. Ids and namespaces are containerd's, which takes no path for one.
    pub fn path(&self, container: &ContainerKey) -> PathBuf {
        self.folder.join(&container.namespace).join(&container.id)
    }

    /// Marks a container; fine if it is marked.
    ///
    /// # Errors
    /// The kernel's, a full `/run` for one.
    pub fn set(&self, container: &ContainerKey) -> io::Result<()> {
        let path = self.path(container);
        let make = || OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map(drop);
        match (make(), path.parent()) {
            (Err(error), Some(folder)) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
                make()
            }
            (made, _) => made,
        }
    }

    /// Takes a container's mark away; fine if it has none. One that stays costs a start a question.
    pub fn clear(&self, container: &ContainerKey) {
        match fs::remove_file(self.path(container)) {
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                tracing::warn!(%container, %error, "cannot take the mark away that it has attachments");
            }
            _ => {}
        }
    }

    /// Takes away the marks of all containers but those that are `wanted`: what a crash left.
    pub fn clear_but(&self, wanted: impl Fn(&ContainerKey) -> bool) {
        for namespace in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            for mark in fs::read_dir(namespace.path()).into_iter().flatten().flatten() {
                if let (Ok(namespace), Ok(id)) =
                    (namespace.file_name().into_string(), mark.file_name().into_string())
                {
                    let container = ContainerKey { namespace, id };
                    if !wanted(&container) {
                        self.clear(&container);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_come_and_go() {
        let run = tempfile::tempdir().unwrap();
        let marks = Marks::new(run.path());
        let key = |namespace: &str, id: &str| ContainerKey { namespace: namespace.into(), id: id.into() };
        let [web, db, other] = [key("default", "web"), key("default", "db"), key("k8s.io", "web")];
        marks.clear(&web);
        for container in [&web, &web, &db, &other] {
            marks.set(container).unwrap();
        }
        assert!(run.path().join("kept/default/web").exists());
        marks.clear(&web);
        marks.clear_but(|container| *container == other);
        assert_eq!([&web, &db, &other].map(|c| marks.path(c).exists()), [false, false, true]);
    }
}
