//! What setup has done to a configuration, kept beside it until it is undone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

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
    /// The file as it was before; `None` when it was not there, or what it was is not known any more.
    pub backup: Option<PathBuf>,
    /// Whether setup has made the file.
    created: bool,
    /// In the order in which they were made.
    pub changes: Vec<Change>,
}

/// A file that is taken back, and what of it is not.
#[derive(Debug)]
pub struct TakenBack {
    /// The file as it is to be; nothing where nothing is to be changed.
    pub edited: Option<Edited>,
    /// Changes that stay: somebody has changed what they had left.
    pub kept: Vec<Change>,
}

/// Where the record of a configuration is.
pub fn path_of(main: &Path) -> PathBuf {
    beside(main, "capsule-setup.json")
}

/// Where a file is kept as it was before: beside the main one, and under a name that `*.toml` does not match.
pub fn backup_of(main: &Path, file: &Path) -> PathBuf {
    if main == file {
        return beside(main, "before-capsule");
    }
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    beside(main, &format!("{name}.before-capsule"))
}

fn beside(main: &Path, suffix: &str) -> PathBuf {
    let name = main.file_name().unwrap_or_default().to_string_lossy();
    main.with_file_name(format!("{name}.{suffix}"))
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
        let text = match fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(SetupError::file("read", &file)(source)),
        };
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

    /// Adds what is about to be done to a file. What is there of an earlier time stays the file as it was before, if nobody else
    /// has changed it since.
    pub fn add(&mut self, main: &Path, edited: &Edited) {
        let after = edited.after.as_deref().unwrap_or_default();
        let left = digest(after);
        let known = self.files.iter_mut().find(|recorded| recorded.path == edited.path);
        let present = edited.before.as_deref().map(digest);
        match known {
            Some(recorded) => {
                if present.as_ref() != Some(&recorded.left) {
                    recorded.backup = None;
                }
                recorded.left = left;
                recorded.changes.extend(edited.changes.iter().cloned());
            }
            None => self.files.push(Recorded {
                path: edited.path.clone(),
                left,
                backup: present.is_some().then(|| backup_of(main, &edited.path)),
                created: present.is_none(),
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
        let untouched = digest(text) == self.left;
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

    /// The same file, with these changes alone.
    pub fn with(&self, kept: Vec<Change>, left: &str) -> Self {
        Self { changes: kept, left: digest(left), backup: None, ..self.clone() }
    }
}
