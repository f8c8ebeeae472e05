//! The files of a configuration, read in the order in which containerd reads them, and written so that a crash leaves the
//! old file or the new one.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Component, Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};

use super::document::Parsed;
use super::error::SetupError;
use super::plan::ConfigFile;

/// A configuration as it is read.
#[derive(Debug)]
pub struct Configuration {
    /// The main file first, then what it imports; each once.
    pub files: Vec<ConfigFile>,
    /// All that is imported, as patterns of absolute paths.
    pub imports: Vec<String>,
}

impl Configuration {
    /// Reads the main file and what it imports (containerd's `cmd/containerd/server/config`). A main file that is not there is an
    /// empty one.
    ///
    /// # Errors
    /// [`SetupError`], for a file that cannot be read or is no TOML.
    pub fn read(main: &Path) -> Result<Self, SetupError> {
        let main = resolve(main)?;
        let mut found = Self { files: Vec::new(), imports: Vec::new() };
        let mut pending = VecDeque::from([main.clone()]);
        while let Some(path) = pending.pop_front() {
            if found.files.iter().any(|file| file.path == path) {
                continue;
            }
            let file = read(&path)?;
            if file.text.is_none() && path != main {
                let gone = io::Error::from(io::ErrorKind::NotFound);
                return Err(SetupError::file("read what is imported,", &path)(gone));
            }
            let patterns = patterns(&path, file.text.as_deref().unwrap_or_default())?;
            for pattern in patterns {
                pending.extend(matches(&path, &pattern)?);
                found.imports.push(pattern);
            }
            found.files.push(file);
        }
        Ok(found)
    }

    /// Checks that a file which setup writes is not read as configuration.
    ///
    /// # Errors
    /// [`SetupError::Imported`].
    pub fn check_not_imported(&self, file: &Path) -> Result<(), SetupError> {
        for pattern in &self.imports {
            if matcher(pattern).is_ok_and(|matcher| matcher.is_match(file)) {
                return Err(SetupError::Imported { pattern: pattern.clone(), file: file.to_owned() });
            }
        }
        Ok(())
    }
}

/// Reads one file, which may be absent.
///
/// # Errors
/// [`SetupError::File`].
pub fn read(path: &Path) -> Result<ConfigFile, SetupError> {
    let text = absent(path, fs::read_to_string(path))?;
    Ok(ConfigFile { path: path.to_owned(), text })
}

/// Reads one file, which may be absent and may be no text.
///
/// # Errors
/// [`SetupError::File`].
pub fn read_bytes(path: &Path) -> Result<Option<Vec<u8>>, SetupError> {
    absent(path, fs::read(path))
}

/// Whether this is what a file holds.
///
/// # Errors
/// [`SetupError::File`].
pub fn is_text(path: &Path, text: &str) -> Result<bool, SetupError> {
    Ok(read_bytes(path)?.is_some_and(|bytes| bytes == text.as_bytes()))
}

fn absent<T>(path: &Path, read: io::Result<T>) -> Result<Option<T>, SetupError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SetupError::file("read", path)(source)),
    }
}

/// The path from the root. A link stays one: what it imports is relative to where it is.
///
/// # Errors
/// [`SetupError::File`].
pub fn resolve(path: &Path) -> Result<PathBuf, SetupError> {
    let path = std::path::absolute(path).map_err(SetupError::file("find", path))?;
    Ok(clean(&path))
}

/// As Go's `filepath.Clean`: without `.` and, by their names alone, without `..`.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(clean.pop()),
            other => clean.push(other),
        }
    }
    clean
}

/// What a file imports, as patterns of absolute paths.
fn patterns(file: &Path, text: &str) -> Result<Vec<String>, SetupError> {
    let syntax = |message| SetupError::Syntax { file: file.to_owned(), message };
    let parsed = Parsed::parse(text).map_err(syntax)?;
    let Some(imports) = parsed.meaning().get("imports") else { return Ok(Vec::new()) };
    let folder = file.parent().unwrap_or(Path::new("/"));
    let no_list = || SetupError::Pattern { file: file.to_owned(), message: "not a list of paths".to_owned() };
    let texts = imports.as_array().ok_or_else(no_list)?.iter().map(toml::Value::as_str);
    let absolute = |text: Option<&str>| {
        Ok(clean(&folder.join(text.ok_or_else(no_list)?)).to_string_lossy().into_owned())
    };
    texts.map(absolute).collect()
}

/// As Go's `filepath.Match`: `*` and `?` do not match a slash.
fn matcher(pattern: &str) -> Result<GlobMatcher, globset::Error> {
    Ok(GlobBuilder::new(pattern).literal_separator(true).build()?.compile_matcher())
}

/// The files that a pattern matches, sorted. Without a `*` it is a path (containerd's rule), whether there is one or not.
fn matches(file: &Path, pattern: &str) -> Result<Vec<PathBuf>, SetupError> {
    if !pattern.contains('*') {
        return Ok(vec![PathBuf::from(pattern)]);
    }
    let failed =
        |error: globset::Error| SetupError::Pattern { file: file.to_owned(), message: error.to_string() };
    let matcher = matcher(pattern).map_err(failed)?;
    let depth = Path::new(pattern).components().count();
    // Down from the part without a wildcard.
    let is_plain = |part: &Component<'_>| !part.as_os_str().to_string_lossy().contains(['*', '?', '[', '\\']);
    let root: PathBuf = Path::new(pattern).components().take_while(is_plain).collect();
    let mut folders = vec![root];
    for level in folders[0].components().count()..depth {
        let inner = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
        let paths: Vec<PathBuf> = inner.filter_map(|entry| Some(entry.ok()?.path())).collect();
        if level + 1 == depth {
            let mut found: Vec<PathBuf> = paths.into_iter().filter(|path| matcher.is_match(path)).collect();
            found.sort();
            return Ok(found);
        }
        folders = paths;
    }
    Ok(Vec::new())
}

/// Writes a file, with the mode and owner of the file that is `like` it, if there is one, and 0644 otherwise: on disk when this
/// returns, and whole at any time. Its folder is made.
///
/// # Errors
/// [`SetupError::File`].
pub fn write(path: &Path, text: &str, like: &Path) -> Result<(), SetupError> {
    // Where it is a link, the file that it leads to is replaced.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(SetupError::file("make the folder of", path))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = folder.join(format!(".{name}.part-{}", std::process::id()));
    let written = write_part(like, &part, text.as_bytes()).and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part); // the first failure is told
    }
    written.and_then(|()| sync_folder(folder)).map_err(SetupError::file("write", path))
}

fn write_part(like: &Path, part: &Path, text: &[u8]) -> io::Result<()> {
    let present = match fs::metadata(like) {
        Ok(present) => Some(present),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let mut file = File::create_new(part)?;
    if let Some(present) = &present {
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != (present.uid(), present.gid()) {
            fchown(&file, Some(present.uid()), Some(present.gid()))?;
        }
    }
    let mode = present.map_or(0o644, |present| present.permissions().mode());
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(text)?;
    file.sync_all()
}

/// Removes a file, if it is there: on disk when this returns.
///
/// # Errors
/// [`SetupError::File`].
pub fn remove(path: &Path) -> Result<(), SetupError> {
    let gone = match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_folder(path.parent().unwrap_or(Path::new("/"))),
    };
    gone.map_err(SetupError::file("remove", path))
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
