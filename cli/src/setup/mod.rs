//! `setup`: containerd's configuration, so that capsules work with it, and back.
//!
//! The rooms: `document` (a file's text and what it means) and `change` (one change that can be taken back) → `section` (what is
//! to be there) → `plan` (what has to be changed for that): all pure. `files` reads and writes, `record` is what is kept for
//! `--undo`; here they are put together. Whoever calls this shows the difference and asks.

mod change;
mod document;
mod error;
mod files;
mod plan;
mod record;
mod section;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use similar::TextDiff;

pub use self::error::SetupError;
use self::files::Configuration;
pub use self::files::write as write_file;
pub use self::plan::Edited;
use self::record::{Backup, Record, free_backup};
pub use self::section::{
    ANNOTATIONS, CRI_2, CRI_3, CRI_IMAGES, HANDLER, RUNTIME, SHIM, Systemd, TRANSFER, Wanted,
};

/// What is about to be written.
#[derive(Debug)]
pub struct Prepared {
    main: PathBuf,
    /// Files that change, whole.
    pub edited: Vec<Edited>,
    record: Record,
    /// Where each file is kept as it was before that is not kept yet.
    backups: BTreeMap<PathBuf, PathBuf>,
    /// Of an undo: what stays in each file, in words.
    pub kept: Vec<String>,
    /// Of an undo: what else is left, in words.
    pub notes: Vec<String>,
    /// Of an undo: how it ends.
    undone: Option<Undone>,
}

/// What is left of setup after an undo.
#[derive(Debug, Default)]
struct Undone {
    /// The record as it is to be.
    record: Record,
    /// Backups that are of no use any more.
    spent: Vec<PathBuf>,
}

/// Reads the configuration and plans what has to be changed in it.
///
/// # Errors
/// [`SetupError`].
pub fn prepare(main: &Path, wanted: &Wanted) -> Result<Prepared, SetupError> {
    let configuration = Configuration::read(main)?;
    let main = configuration.files[0].path.clone();
    let edited = plan::plan(&configuration.files, wanted)?;
    let record = Record::read(&main)?;
    let mut backups = BTreeMap::new();
    for file in edited.iter().filter(|file| record.is_new(&file.path)) {
        let Some(before) = &file.before else { continue };
        let backup = free_backup(&main, &file.path, before)?;
        configuration.check_not_imported(&backup)?;
        backups.insert(file.path.clone(), backup);
    }
    configuration.check_not_imported(&record::path_of(&main))?;
    Ok(Prepared { main, edited, record, backups, kept: Vec::new(), notes: Vec::new(), undone: None })
}

/// Reads what setup has done, and plans how it is taken back.
///
/// # Errors
/// [`SetupError`].
pub fn prepare_undo(main: &Path) -> Result<Prepared, SetupError> {
    let main = files::resolve(main)?;
    let record = Record::read(&main)?;
    let (mut edited, mut kept, mut notes, mut undone) =
        (Vec::new(), Vec::new(), Vec::new(), Undone::default());
    for recorded in &record.files {
        let file = files::read(&recorded.path)?;
        let before = recorded.backup.as_ref().map(Backup::read).transpose()?.flatten();
        let taken_back = recorded.take_back(&file, before.as_deref());
        let stays = |change: &change::Change| format!("{} in {}", change.name(), file.path.display());
        kept.extend(taken_back.kept.iter().filter(|change| !change.is_version()).map(stays));
        let left = match &taken_back.edited {
            Some(edited) => edited.after.clone(),
            None => file.text.clone(),
        };
        if !taken_back.kept.is_empty() {
            undone.record.files.push(recorded.with(taken_back.kept, left.as_deref().unwrap_or_default()));
        } else if let Some(Backup { path, .. }) = &recorded.backup {
            match (&file.text, before) {
                (Some(_), Some(_)) => undone.spent.push(path.clone()),
                (_, before) => notes.extend(left_over(&file.path, path, before.is_some())?),
            }
        }
        edited.extend(taken_back.edited);
    }
    Ok(Prepared { main, edited, record, backups: BTreeMap::new(), kept, notes, undone: Some(undone) })
}

/// What is said of a backup that stays; nothing if there is none.
fn left_over(file: &Path, backup: &Path, is_intact: bool) -> Result<Option<String>, SetupError> {
    let (file, name) = (file.display(), backup.display());
    if is_intact {
        return Ok(Some(format!("{file} is gone; as it was before setup: {name}")));
    }
    let is_there = files::read_bytes(backup)?.is_some();
    Ok(is_there.then(|| format!("{name} is not what setup has kept of {file} there any more, and stays")))
}

impl Prepared {
    /// Whether setup has ever changed this configuration, as far as is on record.
    pub fn has_record(&self) -> bool {
        !self.record.files.is_empty()
    }

    /// What changes, as `diff -u` shows it.
    pub fn diff(&self) -> String {
        self.edited.iter().map(difference).collect()
    }

    /// The file in which a file is kept as it was before; `None` when it is kept already, or was not there.
    pub fn backup(&self, file: &Path) -> Option<&Path> {
        self.backups.get(file).map(PathBuf::as_path)
    }

    /// Writes it: what is needed to take it back first, then the files, each whole or not at all.
    ///
    /// # Errors
    /// [`SetupError`]. With [`SetupError::Changed`], nothing is written.
    pub fn write(mut self) -> Result<(), SetupError> {
        for file in &self.edited {
            if files::read(&file.path)?.text != file.before {
                return Err(SetupError::Changed { file: file.path.clone() });
            }
            if let (Some(backup), Some(before)) = (self.backup(&file.path), &file.before)
                && free_backup(&self.main, &file.path, before)? != backup
            {
                return Err(SetupError::Changed { file: backup.to_owned() });
            }
        }
        if let Some(Undone { mut record, spent }) = self.undone.take() {
            write_files(&self.edited)?;
            record.write(&self.main)?;
            return spent.iter().try_for_each(|backup| files::remove(backup));
        }
        for file in &self.edited {
            if let (Some(backup), Some(before)) = (self.backup(&file.path), &file.before) {
                files::write(backup, before, &file.path)?;
            }
        }
        for file in &self.edited {
            self.record.add(file, self.backups.remove(&file.path));
        }
        self.record.write(&self.main)?;
        write_files(&self.edited)
    }
}

fn write_files(edited: &[Edited]) -> Result<(), SetupError> {
    edited.iter().try_for_each(|file| match &file.after {
        Some(after) => files::write(&file.path, after, &file.path),
        None => files::remove(&file.path),
    })
}

/// The text of a file; `None` when it is not there.
///
/// # Errors
/// [`SetupError::File`].
pub fn read_file(path: &Path) -> Result<Option<String>, SetupError> {
    files::read(path).map(|file| file.text)
}

/// What changes in one file, as `diff -u` shows it.
pub fn difference(file: &Edited) -> String {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let name = |text: &Option<String>| match text {
        Some(_) => file.path.display().to_string(),
        None => "/dev/null".to_owned(),
    };
    let (before, after) = (text(&file.before), text(&file.after));
    let diff = TextDiff::from_lines(before.as_str(), after.as_str());
    diff.unified_diff().header(&name(&file.before), &name(&file.after)).to_string()
}
