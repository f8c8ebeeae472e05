//! The configuration: what can be set, the defaults, and reading it from `config.toml`.
//!
//! Pure but for [`Config::load`], which reads one file. `configs/config.toml` documents every field for
//! operators and is tested to say what [`Config::default`] says.

mod budgets;
mod collect;
mod devices;
mod parse;
mod remote;
#[cfg(test)]
mod tests;
mod told;

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use capsule_telemetry::Endpoint;

use crate::{
    capsules::model::CapsuleName,
    collect::{Policy, Rules},
    resources::Settings,
    snapshots::{Behaviour, MountOption},
};

/// Where the configuration is looked for unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/capsule/config.toml";

/// All that can be configured, complete and valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Directory of everything that must survive a reboot: metadata and snapshots. Default `/var/lib/capsule`.
    pub root: PathBuf,
    /// Directory of sockets and what else lasts until a reboot. Default `/run/capsule`.
    pub run: PathBuf,
    /// Socket on which the Snapshots API and `capsule.v1` are served. Default `capsuled.sock` in [`Config::run`].
    pub socket: PathBuf,
    /// How long nobody may use a daemon that its socket's unit has started, before it ends. Default 0: for ever.
    pub idle_stop: Duration,
    /// The containerd that this daemon belongs to.
    pub containerd: Containerd,
    /// How snapshots are made, mounted and removed.
    pub snapshots: Snapshots,
    /// Whose versions are used.
    pub verify: Verify,
    /// When versions that nobody needs are removed.
    pub collect: Policy,
    /// How capsules are kept.
    pub capsules: Capsules,
    /// How what is written to attachments is kept.
    pub uppers: Uppers,
    /// Where volumes may be mounted.
    pub volumes: Volumes,
    /// Where the node's devices are described.
    pub devices: Devices,
    /// How much attachments may add to limits. Default: of the node's memory, half granted and a quarter protected.
    pub budgets: Settings,
    /// How clients elsewhere are served, by `capsule-remote`.
    pub remote: Remote,
    /// What is logged.
    pub log: Log,
    /// Where traces of calls go.
    pub traces: Traces,
}

/// How clients elsewhere are served. capsuled reads none of it: another program serves them, and asks capsuled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Where it listens. Default: nowhere, the remote API is off.
    pub address: Option<SocketAddr>,
    /// Its certificate and those between it and the authority, in PEM. Default `/etc/capsule/remote/server.pem`.
    pub certificate: PathBuf,
    /// The certificate's key, in PEM; nobody but root may read it. Default `/etc/capsule/remote/server.key`.
    pub key: PathBuf,
    /// The authorities of clients, in PEM. Default `/etc/capsule/remote/ca.pem`.
    pub client_ca: PathBuf,
    /// How many calls a second each client may make in the long run, 1 to 10,000. Default 20.
    pub calls_per_second: u16,
    /// How many calls each may make at once after a pause, 1 to 10,000. Default 100.
    pub burst: u16,
    /// How many connections there may be, 1 to 10,000. Default 128.
    pub connections: u16,
}

/// Whose versions are used. What is attached already stays, whatever this says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verify {
    /// Files with the public keys of those who are trusted. Default: none.
    pub keys: Vec<PathBuf>,
    /// Which versions need a signature by one of them. Default: none.
    pub require: Require,
}

/// Which versions need a signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Require {
    /// No version.
    None,
    /// Every version.
    All,
    /// The versions of these capsules.
    Only(BTreeSet<CapsuleName>),
}

/// How snapshots are made, mounted and removed: the choices that containerd's own overlayfs has
/// (`plugins/snapshots/overlay/plugin/plugin.go`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshots {
    /// Options for every overlay mount; bind mounts do not get them. Default: none.
    pub mount_options: Vec<MountOption>,
    /// The others. Default: ids are remapped and directories removed by Cleanup; there is no label.
    pub behaviour: Behaviour,
}

/// How capsules are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capsules {
    /// Let containerd collect the layers of a version that was published here, once they are unpacked. Default: false.
    pub discard_unpacked_layers: bool,
}

/// How what is written to attachments is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uppers {
    /// How many bytes what has a name can hold, unless the attach says otherwise. Default 1 GiB.
    pub size: u64,
}

/// Where volumes may be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volumes {
    /// Directories of the node below which they may be. Default `/`.
    pub below: Vec<PathBuf>,
    /// How many bytes one holds at most that goes with its mount. Default 1 GiB.
    pub ephemeral: u64,
}

/// Where the node's devices are described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices {
    /// Directories of CDI specs; later ones have precedence. Default `/etc/cdi` and `/var/run/cdi`.
    pub spec_dirs: Vec<PathBuf>,
    /// Device programs that neither a runtime nor a shim made are left alone, and the devices that they deny are refused, rather
    /// than kept with the devices before them. Default no.
    pub refuse_foreign: bool,
    /// Kinds of devices (`VENDOR/CLASS`), or `*`, that a pod may name in `resourcecapsules.io/devices`: whoever may make a pod may
    /// have them. Default none.
    pub pods_may_name: Vec<String>,
}

/// The containerd that this daemon belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Containerd {
    /// Its gRPC socket. Default `/run/containerd/containerd.sock`.
    pub address: PathBuf,
    /// The containerd namespace that holds capsules. Default `capsules`.
    pub namespace: String,
    /// The name under which containerd's configuration lists this snapshotter. Default `capsule`.
    pub snapshotter: String,
    /// Its directory of registry hosts, for pull and push. Default `/etc/containerd/certs.d`.
    pub hosts: PathBuf,
    /// The namespaces in which dockerd has its containers. Default: `moby`.
    pub docker_namespaces: BTreeSet<String>,
    /// The sockets of their dockerds, which are asked for the names of containers. Default: `/run/docker.sock`.
    pub docker_sockets: Vec<PathBuf>,
}

/// What is logged, on standard error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`. Default `info`.
    pub level: Level,
    /// How lines look. Default: text.
    pub format: Format,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// Where traces of calls go (OTLP over gRPC).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces {
    /// The collector. Default: none, and nothing is traced.
    pub endpoint: Option<Endpoint>,
    /// How many of the traces that begin at this daemon, in percent. Default 100. Those that a caller began are traced as it says.
    pub percent: u8,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Failures only.
    Error,
    /// And what an operator should look at.
    Warn,
    /// And what changes.
    Info,
    /// And every call.
    Debug,
    /// And every step of a call.
    Trace,
}

impl Level {
    /// All levels by the names that the configuration uses.
    pub const NAMES: [(&'static str, Self); 5] = [
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
    ];
}

impl From<Level> for tracing::Level {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => Self::ERROR,
            Level::Warn => Self::WARN,
            Level::Info => Self::INFO,
            Level::Debug => Self::DEBUG,
            Level::Trace => Self::TRACE,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/capsule".into(),
            run: "/run/capsule".into(),
            socket: "/run/capsule/capsuled.sock".into(),
            idle_stop: Duration::ZERO,
            containerd: Containerd {
                address: "/run/containerd/containerd.sock".into(),
                namespace: "capsules".to_owned(),
                snapshotter: "capsule".to_owned(),
                hosts: "/etc/containerd/certs.d".into(),
                docker_namespaces: BTreeSet::from(["moby".to_owned()]),
                docker_sockets: vec!["/run/docker.sock".into()],
            },
            snapshots: Snapshots {
                mount_options: Vec::new(),
                behaviour: Behaviour { remap_ids: true, upperdir_label: false, async_remove: true },
            },
            verify: Verify { keys: Vec::new(), require: Require::None },
            collect: Policy {
                interval: Duration::ZERO,
                rules: Rules {
                    keep_last: 3,
                    keep_tagged: true,
                    older_than: Some(Duration::from_secs(7 * 24 * 3600)),
                },
                watermarks: None,
            },
            capsules: Capsules::default(),
            uppers: Uppers { size: 1 << 30 },
            volumes: Volumes { below: vec!["/".into()], ephemeral: 1 << 30 },
            devices: Devices {
                spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
                refuse_foreign: false,
                pods_may_name: Vec::new(),
            },
            budgets: Settings::default(),
            remote: Remote {
                address: None,
                certificate: "/etc/capsule/remote/server.pem".into(),
                key: "/etc/capsule/remote/server.key".into(),
                client_ca: "/etc/capsule/remote/ca.pem".into(),
                calls_per_second: 20,
                burst: 100,
                connections: 128,
            },
            log: Log { level: Level::Info, format: Format::Text },
            traces: Traces { endpoint: None, percent: 100 },
        }
    }
}

/// One mistake in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong and what would be right.
    pub message: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("read configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file has mistakes: all of them, in the order of their lines.
    #[error("{}", Listed { path, mistakes })]
    Invalid {
        /// The file.
        path: PathBuf,
        /// At least one.
        mistakes: Vec<Mistake>,
    },
}

struct Listed<'a> {
    path: &'a Path,
    mistakes: &'a [Mistake],
}

impl fmt::Display for Listed<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.mistakes.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            write!(out, "{}:{}: {}", self.path.display(), mistake.line, mistake.message)?;
        }
        Ok(())
    }
}

impl Config {
    /// Reads the file at `path`. With `required` unset, a file that is not there means the defaults.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] lists every mistake of the file, not only the first.
    pub fn load(path: &Path, required: bool) -> Result<Self, ConfigError> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text)
                .map_err(|mistakes| ConfigError::Invalid { path: path.to_owned(), mistakes }),
            Err(source) if source.kind() == io::ErrorKind::NotFound && !required => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
        }
    }

    /// Parses the text of a configuration file; what it does not mention is the default.
    ///
    /// # Errors
    /// Every mistake, in the order of their lines.
    pub fn parse(text: &str) -> Result<Self, Vec<Mistake>> {
        parse::parse_config(text)
    }
}
