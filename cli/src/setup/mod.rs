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

use std::path::{Path, PathBuf};

use similar::TextDiff;

pub use self::error::SetupError;
use self::files::Configuration;
pub use self::plan::Edited;
use self::record::{Record, backup_of};
pub use self::section::{ANNOTATIONS, CRI_2, CRI_3, HANDLER, RUNTIME, SHIM, Systemd, TRANSFER, Wanted};

/// What is about to be written.
#[derive(Debug)]
pub struct Prepared {
    main: PathBuf,
    /// Files that change, whole.
    pub edited: Vec<Edited>,
    record: Record,
    /// Of an undo: what stays in each file, in words.
    pub kept: Vec<String>,
    /// Of an undo: the record as it is to be.
    undone: Option<Record>,
}

/// Reads the configuration and plans what has to be changed in it.
///
/// # Errors
/// [`SetupError`].
pub fn prepare(main: &Path, wanted: &Wanted) -> Result<Prepared, SetupError> {
    let configuration = Configuration::read(main)?;
    let main = configuration.files[0].path.clone();
    let edited = plan::plan(&configuration.files, wanted)?;
    for file in &edited {
        configuration.check_not_imported(&backup_of(&main, &file.path))?;
    }
    configuration.check_not_imported(&record::path_of(&main))?;
    let record = Record::read(&main)?;
    Ok(Prepared { main, edited, record, kept: Vec::new(), undone: None })
}

/// Reads what setup has done, and plans how it is taken back.
///
/// # Errors
/// [`SetupError`].
pub fn prepare_undo(main: &Path) -> Result<Prepared, SetupError> {
    let main = files::resolve(main)?;
    let record = Record::read(&main)?;
    let (mut edited, mut kept, mut undone) = (Vec::new(), Vec::new(), Record::default());
    for recorded in &record.files {
        let file = files::read(&recorded.path)?;
        let backup = match &recorded.backup {
            Some(backup) => files::read(backup)?.text,
            None => None,
        };
        let taken_back = recorded.take_back(&file, backup.as_deref());
        let stays = |change: &change::Change| format!("{} in {}", change.name(), file.path.display());
        kept.extend(taken_back.kept.iter().map(stays));
        let left = match &taken_back.edited {
            Some(edited) => edited.after.clone(),
            None => file.text.clone(),
        };
        if !taken_back.kept.is_empty() {
            undone.files.push(recorded.with(taken_back.kept, left.as_deref().unwrap_or_default()));
        }
        edited.extend(taken_back.edited);
    }
    Ok(Prepared { main, edited, record, kept, undone: Some(undone) })
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

    /// The file in which a file is kept as it was before.
    pub fn backup(&self, file: &Edited) -> Option<PathBuf> {
        let is_kept = self.undone.is_none() && file.before.is_some() && self.record.is_new(&file.path);
        is_kept.then(|| backup_of(&self.main, &file.path))
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
        }
        if let Some(mut undone) = self.undone.take() {
            write_files(&self.edited)?;
            undone.write(&self.main)?;
            let mut done = self.record.files.iter().filter(|file| undone.is_new(&file.path));
            return done.try_for_each(|file| files::remove(&backup_of(&self.main, &file.path)));
        }
        for file in &self.edited {
            if let (Some(backup), Some(before)) = (self.backup(file), &file.before) {
                files::write(&backup, before, &file.path)?;
            }
        }
        for file in &self.edited {
            self.record.add(&self.main, file);
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
