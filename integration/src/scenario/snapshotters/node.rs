//! A node with containerd, capsuled, and the peers as plain overlay snapshotters.

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::nothing;
use super::subject::{Snapshotter, Subject};
use crate::scenario::world::{Daemon, World, path};

const CAPSULED: Subject = Subject { snapshotter: Snapshotter::Capsule, behind: true };

/// The daemons of the node; they are killed when this is dropped.
#[derive(Debug)]
pub struct Node {
    world: World,
    daemons: Vec<Daemon>,
}

impl Node {
    /// Starts what serves `subjects`.
    pub fn start(subjects: &[Subject]) -> Result<Self> {
        let mut config = String::new();
        let mut daemons = Vec::new();
        for subject in subjects.iter().filter(|subject| **subject != CAPSULED) {
            let Some(socket) = subject.daemon_socket() else { continue };
            if subject.behind {
                let (name, socket) = (subject.snapshotter.name(), socket.display());
                config += &format!("[proxy_plugins.{name}]\ntype = \"snapshot\"\naddress = \"{socket}\"\n");
            }
            let folder = socket.parent().context("a socket without a folder")?;
            for folder in [folder, &subject.root()] {
                fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
            }
            match subject.snapshotter {
                Snapshotter::Nothing => nothing::start(&socket)?,
                _ => daemons.push(start(subject)?),
            }
        }
        Ok(Self { world: World::start_with(true, &config)?, daemons })
    }

    /// The process of a daemon.
    pub fn pid(&self, daemon: &str) -> Result<u32> {
        let own = self.daemons.iter().find(|known| known.name() == daemon).map(Daemon::pid);
        own.or_else(|| self.world.pid(daemon)).with_context(|| format!("{daemon} does not run"))
    }

    /// Kills the daemon of a subject that has its own socket, and starts it; returns when that takes connections.
    /// When it was started.
    pub fn restart(&mut self, subject: &Subject) -> Result<Instant> {
        let daemon = subject.daemon().filter(|_| !subject.behind).context("no daemon of its own")?;
        self.daemons.retain(|known| known.name() != daemon);
        let started = Instant::now();
        self.daemons.push(start(subject)?);
        Ok(started)
    }

    /// Ends containerd and capsuled as an operator would.
    pub fn stop(self) -> Result<()> {
        self.world.stop()
    }
}

/// Starts a daemon with a configuration that makes it an overlay snapshotter and nothing more, and waits until it
/// takes connections.
fn start(subject: &Subject) -> Result<Daemon> {
    let name = subject.daemon().context("containerd's own has no daemon")?;
    let socket = subject.daemon_socket().context("containerd's own has no socket")?;
    let config = format!("/run/peers/{name}/config");
    let text = config_of(subject)?;
    fs::write(&config, text).with_context(|| format!("write {config}"))?;
    let mut command = match subject.snapshotter {
        Snapshotter::Capsule => Command::new("capsuled"),
        Snapshotter::Soci => Command::new("/peers/soci-snapshotter-grpc"),
        Snapshotter::Nydus => Command::new("/peers/containerd-nydus-grpc"),
        Snapshotter::Overlaybd => Command::new("/peers/overlaybd-snapshotter"),
        Snapshotter::Overlayfs | Snapshotter::Nothing => bail!("{name} is no program"),
    };
    match subject.snapshotter {
        Snapshotter::Overlaybd => command.arg(&config),
        Snapshotter::Soci => {
            let (socket, root) = (socket.display(), subject.root());
            command
                .args(["-config", &config, "-log-level=warn"])
                .arg(format!("-address={socket}"))
                .arg("-root")
                .arg(root)
        }
        _ => command.args(["--config", &config]),
    };
    let mut daemon = Daemon::start(&name, command.env("PATH", path()))?;
    daemon.wait_until(|| UnixStream::connect(&socket).is_ok())?;
    Ok(daemon)
}

fn config_of(subject: &Subject) -> Result<String> {
    let root = subject.root();
    let socket = subject.daemon_socket().context("containerd's own has no socket")?;
    let folder = socket.parent().context("a socket without a folder")?;
    let (root, folder, socket) = (root.display(), folder.display(), socket.display());
    Ok(match subject.snapshotter {
        // The shipped defaults, elsewhere.
        Snapshotter::Capsule => {
            format!("root = \"{root}\"\nrun = \"{folder}\"\nsocket = \"{socket}\"\nlog.level = \"warn\"\n")
        }
        // Without nydus's own daemon: layers that are no nydus layers are plain directories.
        Snapshotter::Nydus => format!(
            "version = 1\nroot = \"{root}\"\naddress = \"{socket}\"\ndaemon_mode = \"none\"\n\
             system.enable = false\ncgroup.enable = false\ncache_manager.disable = true\nmetrics.address = \"\"\n\
             daemon = {{ fs_driver = \"nodev\", recover_policy = \"none\" }}\n\
             log = {{ log_to_stdout = true, level = \"warn\" }}\n"
        ),
        Snapshotter::Overlaybd => serde_json::json!({
            "root": root.to_string(), "address": socket.to_string(), "verbose": "warning", "rwMode": "overlayfs",
        })
        .to_string(),
        // Its defaults.
        Snapshotter::Soci | Snapshotter::Overlayfs | Snapshotter::Nothing => String::new(),
    })
}
