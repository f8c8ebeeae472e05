//! The files of one control group.

use std::{fs::File, io, io::Read, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{Mode, OFlags, open, openat},
    io::Errno,
};

use super::StatsError;

/// An open control group whose files are read one after the other, into the same memory.
///
/// A file that is not there is no error, as each kernel has its own set; nor is one of a group that is being removed, or
/// of an accounting that is switched off (`psi=0`).
pub struct Files<'a> {
    path: &'a Path,
    directory: OwnedFd,
    text: String,
}

impl<'a> Files<'a> {
    /// Opens the control group; none when it is gone.
    ///
    /// # Errors
    /// When it is there and cannot be opened.
    pub fn open(path: &'a Path) -> Result<Option<Self>, StatsError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match open(path, flags, Mode::empty()) {
            Ok(directory) => Ok(Some(Self { path, directory, text: String::new() })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(StatsError::Read(path.to_owned(), error.into())),
        }
    }

    /// What a file holds.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&mut self, name: &str) -> Result<Option<&str>, StatsError> {
        match self.read_now(name) {
            Ok(()) => Ok(Some(&self.text)),
            Err(error) if is_absence(&error) => Ok(None),
            Err(error) => Err(StatsError::Read(self.path.join(name), error)),
        }
    }

    fn read_now(&mut self, name: &str) -> io::Result<()> {
        let file = openat(&self.directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        self.text.clear();
        File::from(file).read_to_string(&mut self.text).map(drop)
    }

    /// Hands the lines of a file to `take`, which returns whether it understood. Nothing for a file that is not there.
    ///
    /// # Errors
    /// [`StatsError::Line`], naming the first line that was not understood.
    pub fn lines(&mut self, name: &str, mut take: impl FnMut(&str) -> bool) -> Result<(), StatsError> {
        let Some(text) = self.read(name)? else { return Ok(()) };
        match text.lines().find(|line| !take(line)).map(str::to_owned) {
            Some(line) => Err(StatsError::Line { file: self.path.join(name), line }),
            None => Ok(()),
        }
    }

    /// Hands the pairs of a flat keyed file to `take`. A value that is no number is not understood; a line that is no pair
    /// is of a newer kernel, and skipped.
    ///
    /// # Errors
    /// [`StatsError`].
    pub fn pairs(&mut self, name: &str, mut take: impl FnMut(&str, u64)) -> Result<(), StatsError> {
        self.lines(name, |line| {
            let mut words = line.split_ascii_whitespace();
            let (Some(key), Some(value), None) = (words.next(), words.next(), words.next()) else {
                return true;
            };
            super::parse::number(value).map(|value| take(key, value)).is_some()
        })
    }

    /// The number that is all of a file, `max` for the word; 0 when the file is not there.
    ///
    /// # Errors
    /// [`StatsError`].
    pub fn number(&mut self, name: &str, max: u64) -> Result<u64, StatsError> {
        let mut found = 0;
        self.lines(name, |line| {
            let number = if line.trim() == "max" { Some(max) } else { super::parse::number(line.trim()) };
            number.map(|number| found = number).is_some()
        })?;
        Ok(found)
    }
}

fn is_absence(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP))
}
