//! containerd: what it says of itself, and how it was started.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use capsule_proto::containerd::services::introspection::v1 as wire;
use capsule_proto::containerd::services::introspection::v1::introspection_client::IntrospectionClient;
use capsule_proto::containerd::services::version::v1::version_client::VersionClient;
use tokio::net::UnixStream;
use tonic::Status;

use super::{Release, find, own_path, run};
use crate::client::channel;

/// Where containerd's configuration is unless it was started with another.
pub const DEFAULT_CONFIG: &str = "/etc/containerd/config.toml";
/// A containerd that does not answer for so long hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A containerd that answers.
#[derive(Debug, Clone)]
pub struct Daemon {
    /// As it calls itself: `v2.1.9`.
    pub version: String,
    /// What it has loaded, or has tried to.
    pub plugins: Vec<Plugin>,
    /// Its process; `None` where it is in another PID namespace than this one.
    pub pid: Option<u64>,
}

/// One of its plugins.
#[derive(Debug, Clone, Default)]
pub struct Plugin {
    /// As `io.containerd.snapshotter.v1`.
    pub kind: String,
    /// As `overlayfs`.
    pub id: String,
    /// The socket of a proxy plugin.
    pub address: Option<String>,
    /// What its configuration says that it can do.
    pub capabilities: Vec<String>,
    /// Why it does not work.
    pub error: Option<String>,
}

/// Why containerd says nothing.
#[derive(Debug)]
pub enum Silent {
    /// Nobody listens, or we may not ask.
    Connect(io::Error),
    /// It listens and does not answer.
    Call(String),
}

impl Daemon {
    /// The plugin of this kind and name.
    pub fn plugin(&self, kind: &str, id: &str) -> Option<&Plugin> {
        self.plugins.iter().find(|plugin| plugin.kind == kind && plugin.id == id)
    }
}

/// Asks the containerd that listens on a socket.
///
/// # Errors
/// [`Silent`].
pub async fn ask(socket: &Path) -> Result<Daemon, Silent> {
    let stream = UnixStream::connect(socket).await.map_err(Silent::Connect)?;
    match tokio::time::timeout(PATIENCE, ask_over(stream)).await {
        Ok(answer) => answer.map_err(Silent::Call),
        Err(_) => Err(Silent::Call(format!("no answer within {PATIENCE:?}"))),
    }
}

async fn ask_over(stream: UnixStream) -> Result<Daemon, String> {
    let words = |status: Status| status.message().to_owned();
    let channel = channel(stream).await.map_err(|error| error.to_string())?;
    let version = VersionClient::new(channel.clone()).version(()).await.map_err(words)?.into_inner().version;
    let mut introspection = IntrospectionClient::new(channel);
    let all = wire::PluginsRequest { filters: Vec::new() };
    let plugins = introspection.plugins(all).await.map_err(words)?.into_inner().plugins;
    let server = introspection.server(()).await.map_err(words)?.into_inner();
    let own = std::fs::metadata("/proc/self/ns/pid").ok().map(|namespace| namespace.ino());
    let pid = Some(server.pid).filter(|pid| *pid != 0 && own == Some(server.pidns));
    Ok(Daemon { version, plugins: plugins.into_iter().map(Plugin::from).collect(), pid })
}

impl From<wire::Plugin> for Plugin {
    fn from(mut plugin: wire::Plugin) -> Self {
        Self {
            kind: plugin.r#type,
            id: plugin.id,
            address: plugin.exports.remove("address"),
            capabilities: plugin.capabilities,
            error: plugin.init_err.map(|status| status.message),
        }
    }
}

/// How a process was started.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its program.
    pub program: PathBuf,
    /// Its search path.
    pub path: OsString,
    /// The file of its `--config`.
    pub config: Option<PathBuf>,
}

impl Process {
    /// Looks at a process: its user and root may.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(pid: u64) -> io::Result<Self> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let environ = std::fs::read(folder.join("environ"))?;
        let cwd = std::fs::read_link(folder.join("cwd"))?;
        let config = config_of(&std::fs::read(folder.join("cmdline"))?);
        Ok(Self {
            program: std::fs::read_link(folder.join("exe"))?,
            path: path_of(&environ).unwrap_or_default(),
            config: config.map(|config| cwd.join(config)),
        })
    }
}

fn path_of(environ: &[u8]) -> Option<OsString> {
    let path = environ.split(|byte| *byte == 0).find_map(|variable| variable.strip_prefix(b"PATH="))?;
    Some(OsStr::from_bytes(path).to_owned())
}

/// The value of `--config` of a command line, as containerd's own parser takes it.
fn config_of(cmdline: &[u8]) -> Option<PathBuf> {
    let mut words = cmdline.split(|byte| *byte == 0).skip(1);
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix(b"-") else { continue };
        let flag = flag.strip_prefix(b"-").unwrap_or(flag);
        let value = match flag {
            b"config" | b"c" => words.next(),
            _ => flag.strip_prefix(b"config=").or_else(|| flag.strip_prefix(b"c=")),
        };
        if let Some(value) = value {
            return Some(OsStr::from_bytes(value).into());
        }
    }
    None
}

/// The release of the machine's containerd: the program on the path (it is the one that reads the configuration next), or else the
/// one that answers on the socket.
pub async fn release(socket: &Path) -> Option<Release> {
    if let Ok(Some(program)) = find("containerd", &own_path())
        && let Ok(ran) = run(&program, &[OsStr::new("--version")]).await
        && let Some(release) = release_of(&ran.out)
    {
        return Some(release);
    }
    ask(socket).await.ok()?.version.parse().ok()
}

/// From `containerd github.com/containerd/containerd/v2 2.1.9 REVISION`.
fn release_of(version: &str) -> Option<Release> {
    version.split_whitespace().nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_names_the_configuration() {
        for (line, config) in [
            ("containerd", None),
            ("/usr/bin/containerd\0--config\0/etc/c.toml\0", Some("/etc/c.toml")),
            ("containerd\0-c\0c.toml\0", Some("c.toml")),
            ("containerd\0--log-level\0debug\0--config=/x\0", Some("/x")),
            ("containerd\0--config\0", Some("")),
        ] {
            assert_eq!(config_of(line.as_bytes()), config.map(PathBuf::from), "{line:?}");
        }
    }

    #[test]
    fn the_environment_has_the_path() {
        assert_eq!(path_of(b"HOME=/\0PATH=/a:/b\0XPATH=/c\0"), Some("/a:/b".into()));
        assert_eq!(path_of(b"HOME=/\0"), None);
    }

    #[test]
    fn the_program_says_its_release() {
        let said = "containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6+deb13u1\n";
        assert_eq!(release_of(said).map(|release| release.to_string()), Some("1.7".into()));
        assert_eq!(release_of("containerd"), None);
    }
}
