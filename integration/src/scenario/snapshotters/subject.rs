//! What is measured: snapshotters, each reached in one or two ways.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::scenario::world::CAPSULED_SOCKET;

/// containerd's socket.
pub const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// A snapshotter; the peers are all run as plain overlay snapshotters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshotter {
    /// containerd's own, with which everything is compared.
    Overlayfs,
    /// Ours.
    Capsule,
    /// AWS's `soci-snapshotter`.
    Soci,
    /// `nydus-snapshotter`.
    Nydus,
    /// `accelerated-container-image`.
    Overlaybd,
    /// Answers at once and keeps nothing on the disk: nothing behind containerd can be faster.
    Nothing,
}

impl Snapshotter {
    /// Its name in containerd's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Overlayfs => "overlayfs",
            Self::Capsule => "capsule",
            Self::Soci => "soci",
            Self::Nydus => "nydus",
            Self::Overlaybd => "overlaybd",
            Self::Nothing => "nothing",
        }
    }
}

/// A snapshotter and the way to it.
///
/// containerd removes from a snapshotter whatever its own metadata does not know. So the two ways lead to two daemons,
/// each with directories of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    /// Which.
    pub snapshotter: Snapshotter,
    /// Through containerd, which has metadata of its own and a collector; otherwise through the daemon's own socket.
    pub behind: bool,
}

impl Subject {
    /// All ways to these snapshotters, containerd's own first.
    pub fn of(snapshotters: &[Snapshotter]) -> Vec<Self> {
        let behind = snapshotters.iter().map(|snapshotter| Self { snapshotter: *snapshotter, behind: true });
        let own = snapshotters
            .iter()
            .filter(|snapshotter| !matches!(snapshotter, Snapshotter::Overlayfs | Snapshotter::Nothing))
            .map(|snapshotter| Self { snapshotter: *snapshotter, behind: false });
        behind.chain(own).collect()
    }

    /// For the table.
    pub fn name(&self) -> String {
        let way = if self.behind { "behind containerd" } else { "own socket" };
        format!("{}, {way}", self.snapshotter.name())
    }

    /// The daemon's name, which its log has too; none when containerd is the daemon.
    pub fn daemon(&self) -> Option<String> {
        match (self.snapshotter, self.behind) {
            (Snapshotter::Overlayfs, _) => None,
            (Snapshotter::Capsule, true) => Some("capsuled".to_owned()),
            (snapshotter, true) => Some(snapshotter.name().to_owned()),
            (snapshotter, false) => Some(format!("{}-own", snapshotter.name())),
        }
    }

    /// Where the daemon listens.
    pub fn daemon_socket(&self) -> Option<PathBuf> {
        match (self.snapshotter, self.behind) {
            (Snapshotter::Overlayfs, _) => None,
            (Snapshotter::Capsule, true) => Some(CAPSULED_SOCKET.into()),
            _ => self.daemon().map(|daemon| PathBuf::from(format!("/run/peers/{daemon}/{daemon}.sock"))),
        }
    }

    /// Where clients connect.
    pub fn socket(&self) -> PathBuf {
        self.daemon_socket().filter(|_| !self.behind).unwrap_or_else(|| CONTAINERD.into())
    }

    /// Where its files are, on the one disk that all share.
    pub fn root(&self) -> PathBuf {
        match self.daemon().as_deref() {
            None => "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs".into(),
            Some("capsuled") => "/var/lib/capsule".into(),
            Some(daemon) => PathBuf::from(format!("/var/lib/containerd/peers/{daemon}")),
        }
    }

    /// The daemons that work when it is called.
    pub fn daemons(&self) -> Vec<String> {
        let own = self.daemon().filter(|_| self.snapshotter != Snapshotter::Nothing);
        self.behind.then(|| "containerd".to_owned()).into_iter().chain(own).collect()
    }

    /// The names of the directories of its snapshots.
    pub fn directories(&self) -> Result<BTreeSet<String>> {
        let folder = match self.snapshotter {
            Snapshotter::Soci => self.root().join("snapshotter/snapshots"),
            _ => self.root().join("snapshots"),
        };
        let entries = fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
        Ok(entries.filter_map(Result::ok).map(|entry| entry.file_name().display().to_string()).collect())
    }
}
