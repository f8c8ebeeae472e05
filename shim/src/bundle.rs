//! The bundle directory that containerd prepares per container: which files are in it, and (`spec`) what the shim needs of
//! the OCI spec. The only place that names files in a bundle, but for hot-plug's journal.

mod spec;

use std::{
    env, fs, io,
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::Deserialize;
pub use spec::{ATTACH, Spec};
use thiserror::Error;

use crate::{creation::Given, options::Options};

/// A bundle directory: owned by the host, out of the container's reach.
#[derive(Debug, Clone)]
pub struct Bundle(PathBuf);

/// A file of the bundle that cannot be used.
#[derive(Debug, Error)]
pub enum BundleError {
    /// Not an absolute path.
    #[error("bundle {0:?} is not an absolute path")]
    Path(String),
    /// A file cannot be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// A file cannot be written.
    #[error("cannot write {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
    /// A file is not what it should be.
    #[error("cannot understand {}", .0.display())]
    Json(PathBuf, #[source] serde_json::Error),
    /// An annotation of ours that cannot be understood.
    #[error("annotation {key}: {value:?} is not valid: {expected}")]
    Annotation {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
        /// What it could be.
        expected: &'static str,
    },
    /// A pid file without a pid.
    #[error("{} holds no pid: {text:?}", path.display())]
    Pid {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
}

impl Bundle {
    /// # Errors
    /// [`BundleError::Path`] unless the path is absolute.
    pub fn new(path: &str) -> Result<Self, BundleError> {
        if Path::new(path).is_absolute() {
            Ok(Self(path.into()))
        } else {
            Err(BundleError::Path(path.to_owned()))
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where the snapshot's mounts go.
    pub fn rootfs(&self) -> PathBuf {
        self.0.join("rootfs")
    }

    /// Where containerd lets a task keep large files: a link to a directory on disk, removed with the bundle.
    pub fn work(&self) -> PathBuf {
        self.0.join("work")
    }

    /// Where the runtime writes the pid of the container's init.
    pub fn init_pid_file(&self) -> PathBuf {
        self.0.join("init.pid")
    }

    /// The files of one exec. `exec_id` is a validated id, so the names stay in the bundle.
    pub fn exec_file(&self, exec_id: &str, suffix: &str) -> PathBuf {
        self.0.join(format!("exec-{exec_id}.{suffix}"))
    }

    /// The runtime's log of making the init process.
    pub fn init_log(&self) -> PathBuf {
        self.0.join("log.json")
    }

    /// # Errors
    /// When `config.json` is missing or malformed.
    pub fn read_spec(&self) -> Result<Spec, BundleError> {
        self.read_json(CONFIG)
    }

    /// All of `config.json`, for who needs more of it than is kept.
    ///
    /// # Errors
    /// As [`Bundle::read_spec`].
    pub fn read_config(&self) -> Result<serde_json::Value, BundleError> {
        self.read_json(CONFIG)
    }

    /// Keeps the options for the `delete` action, which runs when the shim is gone, and that this program is the one to run
    /// it.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_options(&self, options: &Options) -> Result<(), BundleError> {
        let path = self.0.join(OPTIONS);
        let json = serde_json::to_vec(options).map_err(|e| BundleError::Json(path.clone(), e))?;
        write_private(&path, &json)?;
        // As `start` was called, links and all: it does not change when the file is replaced by a newer one.
        let program = env::args_os().next().map(PathBuf::from).filter(|program| program.is_absolute());
        program.map_or(Ok(()), |program| self.note_program(&program))
    }

    /// containerd notes the program of each shim that it starts. Of a member of a pod that it adds by itself (2.x) it would
    /// take, when it has been started anew, the program that the runtime's name stands for, which may be another shim's: with
    /// CRI's `runtime_path` the name is that of containerd's own.
    fn note_program(&self, program: &Path) -> Result<(), BundleError> {
        let path = self.0.join(PROGRAM);
        let noted = path.try_exists().map_err(|e| BundleError::Read(path.clone(), e))?;
        if noted { Ok(()) } else { write_private(&path, program.as_os_str().as_bytes()) }
    }

    /// The kept options; nothing when Create never came so far, or the container has been deleted: the runtime has nothing
    /// of it.
    ///
    /// # Errors
    /// When the file is there and cannot be understood.
    pub fn read_options(&self) -> Result<Option<Options>, BundleError> {
        match self.read_json(OPTIONS) {
            Err(BundleError::Read(_, e)) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            result => result.map(Some),
        }
    }

    /// Says that the runtime has nothing of the container any more. A file that stays makes `delete` look, no more.
    pub fn forget_options(&self) {
        let _ = fs::remove_file(self.0.join(OPTIONS));
    }

    /// Writes where the container's shim listens: containerd 1.7 reads it when it is started anew.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_address(&self, address: &str) -> Result<(), BundleError> {
        write_private(&self.0.join(ADDRESS), address.as_bytes())
    }

    /// Where the container's shim listens.
    ///
    /// # Errors
    /// When the file is not there, or not text.
    pub fn read_address(&self) -> Result<String, BundleError> {
        let path = self.0.join(ADDRESS);
        fs::read_to_string(&path).map_err(|e| BundleError::Read(path, e))
    }

    /// Writes `config.json`: a reader sees the old or the new one, whole.
    ///
    /// # Errors
    /// When it cannot be written; then the old one stands.
    pub fn write_config(&self, config: &serde_json::Value) -> Result<(), BundleError> {
        let (path, new) = (self.0.join(CONFIG), self.0.join(".config.json.new"));
        write_private(&new, config.to_string().as_bytes())?;
        fs::rename(&new, &path).map_err(|e| BundleError::Write(path, e))
    }

    /// Keeps what devices gave the container when it was created.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_given(&self, given: &Given) -> Result<(), BundleError> {
        let path = self.0.join(GIVEN);
        let json = serde_json::to_vec(given).map_err(|e| BundleError::Json(path.clone(), e))?;
        write_private(&path, &json)
    }

    /// What devices gave the container when it was created, if they gave something.
    ///
    /// # Errors
    /// When the file is there and cannot be understood.
    pub fn read_given(&self) -> Result<Option<Given>, BundleError> {
        match self.read_json(GIVEN) {
            Err(BundleError::Read(_, e)) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            result => result.map(Some),
        }
    }

    fn read_json<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<T, BundleError> {
        let path = self.0.join(name);
        let bytes = fs::read(&path).map_err(|e| BundleError::Read(path.clone(), e))?;
        serde_json::from_slice(&bytes).map_err(|e| BundleError::Json(path, e))
    }
}

/// The name is containerd's.
const ADDRESS: &str = "address";
/// Likewise.
const PROGRAM: &str = "shim-binary-path";
const CONFIG: &str = "config.json";
const GIVEN: &str = "capsule-devices.json";
const OPTIONS: &str = "capsule-options.json";

/// Writes a file that only root can read.
///
/// # Errors
/// When it cannot be written.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), BundleError> {
    let write = || {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        io::Write::write_all(&mut file, content)
    };
    write().map_err(|e| BundleError::Write(path.to_owned(), e))
}

/// Reads a pid file that the runtime wrote.
///
/// # Errors
/// When it is missing or holds no positive number.
pub fn read_pid_file(path: &Path) -> Result<i32, BundleError> {
    let text = fs::read_to_string(path).map_err(|e| BundleError::Read(path.to_owned(), e))?;
    match text.trim().parse() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(BundleError::Pid { path: path.to_owned(), text }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_containerd_has_noted_stays() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::new(dir.path().to_str().unwrap()).unwrap();
        for program in ["/usr/bin/shim", "/usr/local/bin/other"] {
            bundle.note_program(Path::new(program)).unwrap();
            assert_eq!(fs::read_to_string(dir.path().join(PROGRAM)).unwrap(), "/usr/bin/shim");
        }
    }

    #[test]
    fn options_are_kept_for_the_delete_action() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::new(dir.path().to_str().unwrap()).unwrap();
        assert_eq!(bundle.read_options().unwrap(), None);
        let options = Options { root: "/r".into(), ..Default::default() };
        bundle.write_options(&options).unwrap();
        assert_eq!(bundle.read_options().unwrap(), Some(options));
        bundle.forget_options();
        bundle.forget_options();
        assert_eq!(bundle.read_options().unwrap(), None);
    }

    #[test]
    fn pid_files_hold_a_positive_number() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, pid) in [("12", Some(12)), ("12\n", Some(12)), ("", None), ("0", None), ("-4", None)] {
            fs::write(file.path(), text).unwrap();
            assert_eq!(read_pid_file(file.path()).ok(), pid, "{text:?}");
        }
    }
}
