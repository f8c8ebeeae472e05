//! What the tests of a running daemon share: the process itself, a client's connection, and random choices that can
//! be made again.
#![allow(dead_code, unused_imports)] // each test program uses its part

mod daemon;
mod seeded;

use std::path::{Path, PathBuf};

use capsule_proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

pub use self::{daemon::Daemon, seeded::Seeded};

/// A channel to a socket, opened at the first call.
pub fn channel(socket: impl Into<PathBuf>) -> Channel {
    let socket = socket.into();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://snapshots").connect_with_connector_lazy(connector)
}

/// A client of the snapshotter at a socket.
pub fn connect(socket: impl Into<PathBuf>) -> SnapshotsClient<Channel> {
    SnapshotsClient::new(channel(socket))
}

/// A directory on the disk that the build is on, not on a tmpfs: what is synced there waits for a disk.
pub fn on_disk() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Tells a count past the capture of cargo's test runner, so that every run of the tests shows it.
pub fn report(line: &str) {
    use std::io::Write as _;
    _ = writeln!(std::io::stderr(), "{line}"); // with nowhere to write to, the test still counts
}

/// The number in an environment variable, or a default.
pub fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, and must be a number")),
        Err(_) => default,
    }
}

/// The id of the snapshot whose directory (`…/snapshots/ID/fs`) is `upper`.
pub fn id_of(upper: &Path) -> u64 {
    let id = upper.parent().and_then(Path::file_name).unwrap();
    id.to_str().unwrap().parse().unwrap()
}
