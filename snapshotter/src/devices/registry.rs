//! The specs of a node's directories, read again when they have changed.
//!
//! They are not watched: a directory may not exist yet or be replaced, a watch loses events, and what matters is what is there when a device is
//! asked for. So every question looks at the directories and at each file's identity, times and size (some ten system calls), and reads them again when
//! any differs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use thiserror::Error;

use super::{
    edits::{Edits, NodeError},
    name::{DeviceName, InvalidName},
    spec::{Format, Spec},
};

/// A spec of a node with hundreds of devices has a hundredth of it.
const SIZE_LIMIT: u64 = 8 << 20;
/// Two changes within the clock's tick look like one: what is as young as this is not remembered.
const SETTLED: Duration = Duration::from_millis(100);

/// A file or directory of which something is wrong. Others are not concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file or directory.
    pub path: PathBuf,
    /// What is wrong with it, in one line.
    pub reason: String,
}

/// Why devices could not be had.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ResolveError {
    /// It is no name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// There is none, or two of it.
    #[error("{name}: {reason}")]
    Unknown {
        /// The device.
        name: DeviceName,
        /// What there is instead.
        reason: String,
    },
    /// The node's own device is not as the spec says.
    #[error("device {name} of {} cannot be had", file.display())]
    Node {
        /// The device.
        name: DeviceName,
        /// The spec's file.
        file: PathBuf,
        /// What is wrong.
        source: Box<NodeError>,
    },
}

/// One device, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: DeviceName,
    /// The file of its spec.
    pub file: PathBuf,
    /// What it asks for by itself, without what its spec asks for each device; or why it cannot be had now.
    pub edits: Result<Edits, NodeError>,
}

/// The devices of a node at one instant.
#[derive(Debug, Default)]
pub struct Listing {
    devices: BTreeMap<DeviceName, Arc<Source>>,
    ambiguous: BTreeSet<DeviceName>,
    problems: Vec<Problem>,
}

#[derive(Debug)]
struct Source {
    file: PathBuf,
    spec: Spec,
}

/// The directories, and what was last read there.
#[derive(Debug, Default)]
pub struct Registry {
    directories: Vec<PathBuf>,
    last: Mutex<Option<(Fingerprint, Arc<Listing>)>>,
}

impl Registry {
    /// Specs of these directories. A device of a later one takes the place of its namesake in an earlier one.
    #[must_use]
    pub fn new(directories: Vec<PathBuf>) -> Self {
        Self { directories, last: Mutex::default() }
    }

    /// What is there now. Reads files: not for a thread that must not wait.
    #[must_use]
    pub fn listing(&self) -> Arc<Listing> {
        // The files before their content: what changes in between is read again next time.
        let now = Fingerprint::read(&self.directories);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, listing)) = last.as_ref().filter(|(of, _)| *of == now && of.is_settled()) {
            tracing::trace!(files = of.files.len(), "the CDI specs are as they were");
            return listing.clone();
        }
        let listing = Arc::new(Listing::read(&now));
        *last = Some((now, listing.clone()));
        listing
    }

    /// All that the named devices ask of a container: of each spec what all its devices share, once, and then each device's own,
    /// in the order of the names. A device that is named twice counts once.
    ///
    /// # Errors
    /// [`ResolveError`] for the first name that cannot be had.
    pub fn resolve(&self, names: &[&str]) -> Result<Edits, ResolveError> {
        self.listing().resolve(names)
    }
}

impl Listing {
    fn read(files: &Fingerprint) -> Self {
        let mut listing = Self::default();
        listing.problems.extend(files.problems.iter().cloned());
        for directory in files.directories() {
            let mut sources = Vec::new();
            for file in directory {
                match read_spec(&file.path, file.format, file.size) {
                    Ok(spec) => sources.push(Arc::new(Source { file: file.path.clone(), spec })),
                    Err(problem) => listing.problems.push(problem),
                }
            }
            listing.take(sources);
        }
        for Problem { path, reason } in &listing.problems {
            tracing::warn!(path = %path.display(), reason, "a CDI spec is not used");
        }
        listing
    }

    /// The specs of one directory, over those of the directories before it.
    fn take(&mut self, sources: Vec<Arc<Source>>) {
        let mut found: BTreeMap<DeviceName, Arc<Source>> = BTreeMap::new();
        let mut twice: BTreeMap<DeviceName, Vec<PathBuf>> = BTreeMap::new();
        for source in sources {
            for name in source.spec.devices() {
                if let Some(other) = found.insert(name.clone(), source.clone()) {
                    twice
                        .entry(name.clone())
                        .or_insert_with(|| vec![other.file.clone()])
                        .push(source.file.clone());
                }
            }
        }
        for (name, source) in found {
            self.ambiguous.remove(&name);
            self.devices.insert(name, source);
        }
        for (name, files) in twice {
            self.devices.remove(&name);
            for path in &files {
                let others: Vec<_> =
                    files.iter().filter(|other| *other != path).map(|o| o.display().to_string()).collect();
                let reason = format!("device {name} is also in {}, so neither counts", others.join(" and "));
                self.problems.push(Problem { path: path.clone(), reason });
            }
            self.ambiguous.insert(name);
        }
    }

    /// All devices, by name.
    pub fn devices(&self) -> impl Iterator<Item = Listed> {
        self.devices.iter().map(|(name, source)| Listed {
            name: name.clone(),
            file: source.file.clone(),
            // The name is of this spec.
            edits: source.spec.edits_of(name).map(Option::unwrap_or_default),
        })
    }

    /// What is wrong with files and directories.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    fn resolve(&self, names: &[&str]) -> Result<Edits, ResolveError> {
        let (mut all, mut specs, mut done) = (Edits::default(), Vec::new(), BTreeSet::new());
        for name in names {
            let name: DeviceName = name.parse()?;
            let Some(source) = self.devices.get(&name) else {
                let reason = self.why_unknown(&name);
                return Err(ResolveError::Unknown { name, reason });
            };
            if !done.insert(name.clone()) {
                continue;
            }
            let failed = |error| ResolveError::Node {
                name: name.clone(),
                file: source.file.clone(),
                source: Box::new(error),
            };
            if !specs.iter().any(|other| Arc::ptr_eq(other, source)) {
                specs.push(source.clone());
                all.append(source.spec.shared_edits().map_err(failed)?);
            }
            all.append(source.spec.edits_of(&name).map_err(failed)?.unwrap_or_default());
        }
        Ok(all)
    }

    fn why_unknown(&self, name: &DeviceName) -> String {
        if self.ambiguous.contains(name) {
            return "two specs of one directory have it, so neither counts: see `capsulectl devices`"
                .to_owned();
        }
        let same: Vec<_> = self
            .devices
            .keys()
            .filter(|other| other.kind() == name.kind())
            .map(ToString::to_string)
            .collect();
        let known = match same.len() {
            0 => format!("this node has no devices of {}", name.kind()),
            1..=8 => format!("this node has {}", same.join(", ")),
            more => format!("this node has {more} others of {}", name.kind()),
        };
        match self.problems.len() {
            0 => known,
            _ => format!("{known}; some specs could not be used: see `capsulectl devices`"),
        }
    }
}

impl Edits {
    /// With all that `other` asks for besides.
    pub fn append(&mut self, other: Self) {
        self.env.extend(other.env);
        self.nodes.extend(other.nodes);
        self.net_devices.extend(other.net_devices);
        self.mounts.extend(other.mounts);
        self.hooks.extend(other.hooks);
        self.additional_gids.extend(other.additional_gids);
        self.intel_rdt = other.intel_rdt.or(self.intel_rdt.take());
    }
}

fn read_spec(path: &Path, format: Format, size: u64) -> Result<Spec, Problem> {
    let problem = |reason: String| Problem { path: path.to_owned(), reason: one_line(&reason) };
    if size > SIZE_LIMIT {
        return Err(problem(format!("it has {size} bytes, and a spec may have {SIZE_LIMIT}")));
    }
    let data = fs::read(path).map_err(|error| problem(error.to_string()))?;
    Spec::parse(&data, format).map_err(|error| problem(error.to_string()))
}

/// A parser's message may quote lines of the file.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The files of all directories, by what changes with their content.
#[derive(Debug, PartialEq, Eq)]
struct Fingerprint {
    files: Vec<File>,
    problems: Vec<Problem>,
}

#[derive(Debug, PartialEq, Eq)]
struct File {
    /// Which directory it is in.
    directory: usize,
    path: PathBuf,
    format: Format,
    size: u64,
    /// Device, inode, and the times of the last change of content and of the file itself.
    identity: (u64, u64, i64, i64, i64, i64),
}

impl Fingerprint {
    fn read(directories: &[PathBuf]) -> Self {
        let mut all = Self { files: Vec::new(), problems: Vec::new() };
        for (index, directory) in directories.iter().enumerate() {
            match read_directory(index, directory) {
                Ok(files) => {
                    for file in files {
                        match file {
                            Ok(file) => all.files.push(file),
                            Err(problem) => all.problems.push(problem),
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    all.problems.push(Problem { path: directory.clone(), reason: error.to_string() })
                }
            }
        }
        all.files.sort_by(|a, b| (a.directory, &a.path).cmp(&(b.directory, &b.path)));
        all
    }

    fn directories(&self) -> impl Iterator<Item = &[File]> {
        self.files.chunk_by(|a, b| a.directory == b.directory)
    }

    /// Whether the last change is long enough ago to be told from a next one.
    fn is_settled(&self) -> bool {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(SETTLED);
        let changed = |file: &File| {
            let (.., seconds, nanoseconds) = file.identity;
            let (seconds, nanoseconds) = (u64::try_from(seconds), u32::try_from(nanoseconds));
            Duration::new(seconds.unwrap_or(0), nanoseconds.unwrap_or(0))
        };
        self.files.iter().all(|file| changed(file) < since)
    }
}

fn read_directory(index: usize, directory: &Path) -> io::Result<Vec<Result<File, Problem>>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        // Other files are no specs, whatever they are (CDI's `scanSpecDirs`).
        let format = match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => Format::Json,
            Some("yaml") => Format::Yaml,
            _ => continue,
        };
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => {}
            Ok(found) if found.is_file() => {
                let identity = (
                    found.dev(),
                    found.ino(),
                    found.mtime(),
                    found.mtime_nsec(),
                    found.ctime(),
                    found.ctime_nsec(),
                );
                files.push(Ok(File { directory: index, path, format, size: found.len(), identity }));
            }
            // To open a FIFO would wait for its other end.
            Ok(_) => files.push(Err(Problem { path, reason: "it is no file".to_owned() })),
            // Removed while the directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() => {}
            Err(error) => files.push(Err(Problem { path, reason: error.to_string() })),
        }
    }
    Ok(files)
}
