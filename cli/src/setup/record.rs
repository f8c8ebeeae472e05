//! What setup has done to a configuration, kept beside it until it is undone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use toml::Table;

use super::change::Change;
use super::error::SetupError;
use super::files;
use super::plan::{ConfigFile, Edited};

/// Of this format.
const FORMAT: u32 = 1;

/// What was done.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    format: u32,
    /// Each file once.
    pub files: Vec<Recorded>,
}

/// What was done to a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of the text that setup has left.
    left: String,
    /// The file as it was before; `None` when it was not there.
    pub backup: Option<Backup>,
    /// Whether setup has made the file. It is removed then when nothing is left in it.
    created: bool,
    /// Whether all that setup has left is its own or was there before. Once others have written something in between it is not,
    /// and neither removing the file nor the backup would take back setup's changes alone.
    alone: bool,
    /// In the order in which they were made.
    pub changes: Vec<Change>,
}

/// Where a file is kept as it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// The file in which it is.
    pub path: PathBuf,
    /// SHA-256 of the text.
    sha256: String,
}

/// A file that is taken back, and what of it is not.
#[derive(Debug)]
pub struct TakenBack {
    /// The file as it is to be; nothing where nothing is to be changed.
    pub edited: Option<Edited>,
    /// Changes that stay: somebody has changed what they had left. The file's version is with them, if setup has written it.
    pub kept: Vec<Change>,
}

/// Where the record of a configuration is.
pub fn path_of(main: &Path) -> PathBuf {
    with_suffix(main, "capsule-setup.json")
}

/// Where a file is kept as it was before: beside the main one, under a name that `*.toml` does not match and that no other file's
/// backup has. Nothing that is there already is written over: the name has a number then. A backup of the same text is that of
/// a setup which was interrupted.
///
/// # Errors
/// [`SetupError::File`].
pub fn free_backup(main: &Path, file: &Path, text: &str) -> Result<PathBuf, SetupError> {
    let name = backup_of(main, file);
    let mut path = name.clone();
    for number in 2_u64.. {
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(source) => return Err(SetupError::file("look for", &path)(source)),
            Ok(there) if there.is_file() && files::is_text(&path, text)? => break,
            Ok(_) => path = with_suffix(&name, &number.to_string()),
        }
    }
    Ok(path)
}

/// The first choice for it. Imported files may have the same name in different folders.
fn backup_of(main: &Path, file: &Path) -> PathBuf {
    const SUFFIX: &str = "before-capsule";
    if main == file {
        return with_suffix(main, SUFFIX);
    }
    let folder = digest(&file.to_string_lossy());
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    with_suffix(main, &format!("{name}.{}.{SUFFIX}", &folder[..12]))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.{suffix}"))
}

/// A text's digest.
pub fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Record {
    /// Reads the record of the configuration whose main file this is; an empty one if there is none.
    ///
    /// # Errors
    /// [`SetupError::Record`], [`SetupError::File`].
    pub fn read(main: &Path) -> Result<Self, SetupError> {
        let file = path_of(main);
        let Some(text) = files::read_bytes(&file)? else { return Ok(Self::default()) };
        let wrong = |message: String| SetupError::Record { file: file.clone(), message };
        let record: Self = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        match record.format {
            FORMAT => Ok(record),
            other => Err(wrong(format!("it is of format {other}, of a later capsulectl"))),
        }
    }

    /// Writes it, or removes it when nothing is in it.
    ///
    /// # Errors
    /// [`SetupError::File`].
    pub fn write(&mut self, main: &Path) -> Result<(), SetupError> {
        let file = path_of(main);
        if self.files.is_empty() {
            return files::remove(&file);
        }
        self.format = FORMAT;
        // Strings, numbers and lists: there is always JSON of them.
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        files::write(&file, &(text + "\n"), main)
    }

    /// Adds what is about to be done to a file, which is kept as it was in `backup`, if it is new here and was there. What was done
    /// to a file that is gone is gone with it.
    pub fn add(&mut self, edited: &Edited, backup: Option<PathBuf>) {
        let left = digest(edited.after.as_deref().unwrap_or_default());
        let present = edited.before.as_deref().map(digest);
        if present.is_none() {
            self.files.retain(|recorded| recorded.path != edited.path);
        }
        match self.files.iter_mut().find(|recorded| recorded.path == edited.path) {
            Some(recorded) => {
                recorded.alone &= present.as_ref() == Some(&recorded.left);
                recorded.left = left;
                recorded.changes.extend(edited.changes.iter().cloned());
            }
            None => self.files.push(Recorded {
                path: edited.path.clone(),
                left,
                created: present.is_none(),
                alone: true,
                backup: backup.zip(present).map(|(path, sha256)| Backup { path, sha256 }),
                changes: edited.changes.clone(),
            }),
        }
    }

    /// Whether the file as it was before has to be kept now: it is not yet.
    pub fn is_new(&self, file: &Path) -> bool {
        !self.files.iter().any(|recorded| recorded.path == file)
    }
}

impl Recorded {
    /// Takes back what was done to the file: as it was before, to the byte, if nobody has changed it since, and else change by
    /// change, without those that are not as they were left. Pure; `backup` is the text of the file as it was before.
    pub fn take_back(&self, file: &ConfigFile, backup: Option<&str>) -> TakenBack {
        let Some(text) = &file.text else {
            return TakenBack { edited: None, kept: Vec::new() }; // it is gone, and all that was done with it
        };
        let untouched = self.alone && digest(text) == self.left;
        let edited = |after: Option<String>| {
            let edited =
                Edited { path: file.path.clone(), before: file.text.clone(), after, changes: Vec::new() };
            Some(edited).filter(|edited| edited.before != edited.after)
        };
        if untouched && self.created {
            return TakenBack { edited: edited(None), kept: Vec::new() };
        }
        if let Some(backup) = backup.filter(|_| untouched) {
            return TakenBack { edited: edited(Some(backup.to_owned())), kept: Vec::new() };
        }
        let (mut text, mut kept) = (text.clone(), Vec::new());
        for change in self.changes.iter().rev() {
            match change.take_back(&text) {
                // It stays for what others have written below it, but is no matter by itself.
                Some(without) if change.is_version() && says_something(&without) => {
                    kept.extend((!kept.is_empty()).then(|| change.clone()));
                }
                Some(without) => text = without,
                // A setup that was interrupted has not made it at all.
                None if change.is_absent(&text) => {}
                None => kept.push(change.clone()),
            }
        }
        kept.reverse();
        let is_empty = self.created && kept.is_empty() && text.trim().is_empty();
        TakenBack { edited: edited((!is_empty).then_some(text)), kept }
    }

    /// The same file, with these changes alone, of which others have changed something.
    pub fn with(&self, kept: Vec<Change>, left: &str) -> Self {
        Self { changes: kept, left: digest(left), alone: false, ..self.clone() }
    }
}

/// Whether a file says anything, comments aside.
fn says_something(text: &str) -> bool {
    text.parse::<Table>().is_ok_and(|table| !table.is_empty())
}

impl Backup {
    /// The text that was kept; `None` if it is not there any more, or another is.
    ///
    /// # Errors
    /// [`SetupError::File`].
    pub fn read(&self) -> Result<Option<String>, SetupError> {
        let bytes = files::read_bytes(&self.path)?;
        let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        Ok(text.filter(|text| digest(text) == self.sha256))
    }
}
