//! The bundle directory that containerd prepares per container: which files are in it, and what the shim needs of
//! the OCI spec. The only place that names files in a bundle, but for hot-plug's journal.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use thiserror::Error;

use crate::options::Options;

/// Annotations that put containers in one shim, in order of preference; the same as the Go shim's.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// The attachments that a container has before its first process runs: NAME[@VERSION][:TARGET[:MODE]], by commas.
pub const ATTACH: &str = "resourcecapsules.io/attach";
/// `false` for a container that is to have no capsules at all.
const ENABLED: &str = "resourcecapsules.io/enabled";
/// Whether a container waits for a slow log (`blocking`, what it does without this) or its output is dropped
/// (`non-blocking`), as Docker's log option `mode`.
const LOG_MODE: &str = "resourcecapsules.io/log-mode";
/// How much output waits for a slow log before it is dropped, as Docker's log option `max-buffer-size`.
const LOG_BUFFER: &str = "resourcecapsules.io/log-max-buffer-size";
/// The same as Docker's.
const DEFAULT_LOG_BUFFER: usize = 1 << 20;
/// The shim's memory is the host's, and whoever writes a pod chooses the size.
const MAX_LOG_BUFFER: usize = 64 << 20;

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
        key: &'static str,
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

/// What the shim needs of `config.json`. Everything else in it is the runtime's business and is never rewritten.
#[derive(Debug, Default, Deserialize)]
pub struct Spec {
    #[serde(default)]
    annotations: HashMap<String, String>,
    #[serde(default)]
    root: Option<Root>,
    #[serde(default)]
    linux: Option<Linux>,
}

#[derive(Debug, Default, Deserialize)]
struct Root {
    #[serde(default)]
    path: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Vec<Namespace>,
    #[serde(default, rename = "cgroupsPath")]
    cgroups_path: String,
}

#[derive(Debug, Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

impl Spec {
    /// Which shim the container belongs to: its pod's or group's, or one of its own.
    pub fn group<'a>(&'a self, id: &'a str) -> &'a str {
        GROUPS.iter().find_map(|label| self.annotations.get(*label)).map_or(id, String::as_str)
    }

    /// Whether capsules may be attached at all.
    ///
    /// # Errors
    /// [`BundleError::Annotation`].
    pub fn takes_capsules(&self) -> Result<bool, BundleError> {
        match self.annotations.get(ENABLED).map(String::as_str) {
            None | Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(other) => Err(BundleError::Annotation {
                key: ENABLED,
                value: other.to_owned(),
                expected: "give true or false",
            }),
        }
    }

    /// What [`ATTACH`] names, if anything.
    pub fn named_attachments(&self) -> Option<&str> {
        self.annotations.get(ATTACH).map(|named| named.trim()).filter(|named| !named.is_empty())
    }

    /// How many bytes of the init's output wait for a slow log before more is dropped; `None` when the container is to
    /// wait instead.
    ///
    /// # Errors
    /// [`BundleError::Annotation`].
    pub fn log_buffer(&self) -> Result<Option<usize>, BundleError> {
        let invalid = |key, expected| {
            let value = self.annotations.get(key).cloned().unwrap_or_default();
            BundleError::Annotation { key, value, expected }
        };
        let size = self.annotations.get(LOG_BUFFER).map(String::as_str);
        match (self.annotations.get(LOG_MODE).map(String::as_str), size) {
            (None | Some("blocking"), None) => Ok(None),
            (None | Some("blocking"), Some(_)) => {
                Err(invalid(LOG_BUFFER, "it is only for resourcecapsules.io/log-mode: non-blocking"))
            }
            (Some("non-blocking"), None) => Ok(Some(DEFAULT_LOG_BUFFER)),
            (Some("non-blocking"), Some(size)) => match parse_size(size) {
                Some(size) if size <= MAX_LOG_BUFFER => Ok(Some(size)),
                _ => Err(invalid(LOG_BUFFER, "give bytes, or a number with k or m, such as 4m: at most 64m")),
            },
            (Some(_), _) => Err(invalid(LOG_MODE, "give blocking or non-blocking")),
        }
    }

    /// Whether processes outlive the container's init because it is not the init of a PID namespace of its own.
    pub fn shares_pid_namespace(&self) -> bool {
        let own = |namespace: &Namespace| namespace.kind == "pid" && namespace.path.is_empty();
        !self.linux.as_ref().is_some_and(|linux| linux.namespaces.iter().any(own))
    }

    /// Its control group as the spec names it: a path, or for systemd `SLICE:PREFIX:NAME`; empty when the runtime chooses.
    pub fn cgroups_path(&self) -> &str {
        self.linux.as_ref().map_or("", |linux| linux.cgroups_path.as_str())
    }

    /// The container's root as the spec names it, resolved against its bundle.
    pub fn rootfs(&self, bundle: &Bundle) -> PathBuf {
        let path = self.root.as_ref().map(|root| root.path.as_path()).filter(|path| *path != Path::new(""));
        bundle.0.join(path.unwrap_or(Path::new("rootfs")))
    }
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
        self.read_json("config.json")
    }

    /// Keeps the options for the `delete` action, which runs when the shim is gone.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_options(&self, options: &Options) -> Result<(), BundleError> {
        let path = self.0.join(OPTIONS);
        let json = serde_json::to_vec(options).map_err(|e| BundleError::Json(path.clone(), e))?;
        write_private(&path, &json)
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

    fn read_json<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<T, BundleError> {
        let path = self.0.join(name);
        let bytes = fs::read(&path).map_err(|e| BundleError::Read(path.clone(), e))?;
        serde_json::from_slice(&bytes).map_err(|e| BundleError::Json(path, e))
    }
}

/// The name is containerd's.
const ADDRESS: &str = "address";
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

/// A size as Docker writes them (`units.RAMInBytes`): powers of 1024, `b` and `ib` after the unit allowed. Not zero.
fn parse_size(text: &str) -> Option<usize> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(1 << shift).filter(|size| *size > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn groups_come_from_annotations_in_order() {
        for (json, group) in [
            (r#"{}"#, "c1"),
            (r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#, "pod"),
            (
                r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"}}"#,
                "g",
            ),
        ] {
            assert_eq!(spec(json).group("c1"), group);
        }
    }

    #[test]
    fn capsules_are_taken_unless_refused() {
        for (value, takes) in [
            (None, Some(true)),
            (Some("true"), Some(true)),
            (Some("false"), Some(false)),
            (Some("no"), None),
            (Some(""), None),
        ] {
            let annotations = value.map(|value| (ENABLED.to_owned(), value.to_owned()));
            let spec = Spec { annotations: annotations.into_iter().collect(), ..Spec::default() };
            assert_eq!(spec.takes_capsules().ok(), takes, "{value:?}");
        }
    }

    #[test]
    fn logs_are_decoupled_when_asked() {
        for (mode, size, buffer) in [
            (None, None, Some(None)),
            (Some("blocking"), None, Some(None)),
            (Some("non-blocking"), None, Some(Some(1 << 20))),
            (Some("non-blocking"), Some("4096"), Some(Some(4096))),
            (Some("non-blocking"), Some("4m"), Some(Some(4 << 20))),
            (Some("non-blocking"), Some("64 KiB"), Some(Some(64 << 10))),
            (Some("non-blocking"), Some("64m"), Some(Some(64 << 20))),
            (Some("non-blocking"), Some("65537k"), None),
            (Some("non-blocking"), Some("1g"), None),
            (Some("non-blocking"), Some("0"), None),
            (Some("non-blocking"), Some("4x"), None),
            (Some("non-blocking"), Some("99999999999g"), None),
            (None, Some("4m"), None),
            (Some("Non-Blocking"), None, None),
        ] {
            let annotations = [(LOG_MODE, mode), (LOG_BUFFER, size)];
            let annotations =
                annotations.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned())));
            let spec = Spec { annotations: annotations.collect(), ..Spec::default() };
            assert_eq!(spec.log_buffer().ok(), buffer, "{mode:?} {size:?}");
        }
    }

    #[test]
    fn only_an_own_pid_namespace_ends_with_its_init() {
        for (json, shared) in [
            (r#"{}"#, true),
            (r#"{"linux":{"namespaces":[{"type":"mount"}]}}"#, true),
            (r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}"#, true),
            (r#"{"linux":{"namespaces":[{"type":"mount"},{"type":"pid"}]}}"#, false),
        ] {
            assert_eq!(spec(json).shares_pid_namespace(), shared, "{json}");
        }
    }

    #[test]
    fn the_root_is_in_the_bundle_unless_absolute() {
        let bundle = Bundle::new("/b").unwrap();
        for (json, root) in [
            (r#"{}"#, "/b/rootfs"),
            (r#"{"root":{"path":"rootfs"}}"#, "/b/rootfs"),
            (r#"{"root":{"path":"/var/lib/docker/rootfs/x"}}"#, "/var/lib/docker/rootfs/x"),
        ] {
            assert_eq!(spec(json).rootfs(&bundle), Path::new(root));
        }
        assert!(Bundle::new("b").is_err());
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
