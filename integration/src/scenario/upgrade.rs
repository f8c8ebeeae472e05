//! capsuled is replaced again and again while containerd calls it: no call fails.
//!
//! Natively the clients are containerd's: its own connection to the proxy plugin is what must survive, so every call goes
//! through containerd's socket, and `ctr` runs containers beside them. containerd gives a connection about one second to be
//! answered (v2.1.9 `cmd/containerd/server/server.go`: `ConnectParams` without `MinConnectTimeout`), and in a VM without KVM
//! the start of a process takes longer: there the clients are our own.

use std::error::Error as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use capsule_proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use capsule_proto::containerd::services::snapshots::v1::{
    MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

use super::ctr::{SNAPSHOTTER, ctr};
use super::world::{CAPSULED_SOCKET, CONTAINERD_SOCKET, World, send_logs};
use crate::event::Reporter;
use crate::workspace::output_of;

const CLIENTS: usize = 8;

/// Replaces capsuled `times` times by `capsuled --take-over`.
pub fn take_over(reporter: &mut Reporter, times: u32) -> Result<()> {
    let mut world = World::start(true)?;
    SNAPSHOTTER.import()?;
    let load = Load::start(CONTAINERD_SOCKET, CLIENTS, true);
    under_load(reporter, load, &format!("{times} times capsuled --take-over"), times, || world.take_over())?;
    world.stop()
}

/// Restarts capsuled `times` times by systemd, with the units as they are shipped.
pub fn systemd(reporter: &mut Reporter, times: u32) -> Result<()> {
    reporter.must("systemd starts capsuled by its shipped units", || {
        for unit in ["capsuled.service", "capsuled.socket"] {
            let from = Path::new("/payload/configs").join(unit);
            std::fs::copy(&from, Path::new("/run/systemd/system").join(unit))
                .with_context(|| format!("copy {}", from.display()))?;
        }
        let drop_in = "[Service]\nExecStart=\nExecStart=/payload/bin/capsuled\n";
        std::fs::create_dir_all("/run/systemd/system/capsuled.service.d").context("create a folder")?;
        std::fs::write("/run/systemd/system/capsuled.service.d/program.conf", drop_in).context("write")?;
        systemctl(&["daemon-reload"])?;
        systemctl(&["start", "capsuled.service"])?;
        Ok(((), systemctl(&["is-active", "capsuled.socket"])?.trim().to_owned()))
    })?;
    let load = Load::start(CAPSULED_SOCKET, CLIENTS, false);
    let outcome = under_load(reporter, load, &format!("{times} times systemctl restart"), times, || {
        systemctl(&["restart", "capsuled.service"]).map(drop)
    });
    reporter.check("capsuled taken over from keeps its unit", || {
        let before = main_pid()?;
        let status = Command::new("systemd-run")
            .args(["--collect", "--quiet", "/payload/bin/capsuled", "--take-over"])
            .status()
            .context("start systemd-run")?;
        ensure!(status.success(), "{status}");
        for _ in 0..600 {
            if main_pid()? != before && !Path::new("/proc").join(&before).exists() {
                sleep(Duration::from_secs(2)); // were it to be restarted, it would be by now
                let state = systemctl(&["is-active", "capsuled.service"])?;
                return Ok(format!("{before} -> {}: {}", main_pid()?, state.trim()));
            }
            sleep(Duration::from_millis(100));
        }
        anyhow::bail!("the main process is still {before}")
    });
    if outcome.is_err() || !reporter.all_ok() {
        let journal =
            output_of(Command::new("journalctl").args(["--no-pager", "-n60", "-ucapsuled.service"]));
        reporter.show(&journal.unwrap_or_default());
    }
    outcome
}

fn systemctl(args: &[&str]) -> Result<String> {
    output_of(Command::new("systemctl").args(args))
}

fn main_pid() -> Result<String> {
    Ok(systemctl(&["show", "--property=MainPID", "--value", "capsuled.service"])?.trim().to_owned())
}

/// Replaces capsuled under load; no call and no container may fail.
fn under_load(
    reporter: &mut Reporter,
    load: Load,
    how: &str,
    times: u32,
    mut replace: impl FnMut() -> Result<()>,
) -> Result<()> {
    let replaced = reporter.must(how, || {
        for time in 1..=times {
            sleep(Duration::from_millis(50));
            replace().with_context(|| format!("the {time}. time"))?;
        }
        Ok(((), String::new()))
    });
    let (calls, containers) = (load.calls.clone(), load.containers.clone());
    let failures = load.end();
    reporter.check(&format!("no call failed: {how}"), || {
        ensure!(failures.is_empty(), "{} failed: {}", failures.len(), failures.join("; "));
        let (calls, containers) = (calls.load(Ordering::Relaxed), containers.load(Ordering::Relaxed));
        ensure!(calls > 0, "no call was made");
        Ok(format!("{calls} calls by {CLIENTS} clients and {containers} containers: 0 failed"))
    });
    if replaced.is_err() || !reporter.all_ok() {
        send_logs(reporter);
    }
    replaced
}

/// Clients at work, each in a thread of its own.
pub(super) struct Load {
    end: Arc<AtomicBool>,
    /// Calls that have succeeded.
    pub(super) calls: Arc<AtomicU64>,
    containers: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// So many clients of the socket; with `containers_too`, `ctr` too.
    pub(super) fn start(socket: &'static str, clients: usize, containers_too: bool) -> Self {
        let (end, calls, containers) = <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let mut threads = Vec::new();
        for number in 0..clients {
            let (end, calls) = (end.clone(), calls.clone());
            threads.push(spawn(move || call_until(&end, &calls, socket, number)));
        }
        if containers_too {
            let (ending, count) = (end.clone(), containers.clone());
            threads.push(spawn(move || run_until(&ending, &count)));
        }
        Self { end, calls, containers, threads }
    }

    /// Ends the clients after the calls that they are at; what failed.
    pub(super) fn end(self) -> Vec<String> {
        self.end.store(true, Ordering::Relaxed);
        let ended = self.threads.into_iter().map(JoinHandle::join);
        ended
            .filter_map(|outcome| match outcome {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("{error:#}")),
                Err(_) => Some("a client panicked".to_owned()),
            })
            .collect()
    }
}

/// Runs one container after the other.
fn run_until(end: &AtomicBool, count: &AtomicU64) -> Result<()> {
    while !end.load(Ordering::Relaxed) {
        SNAPSHOTTER.run_once("upgrade", &["/bin/true"], b"")?.success("ctr run")?;
        let key = "upgrade-by-ctr";
        ctr(&["snapshots", "--snapshotter", "capsule", "prepare", key])?.success("ctr snapshots prepare")?;
        ctr(&["snapshots", "--snapshotter", "capsule", "rm", key])?.success("ctr snapshots rm")?;
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Makes, looks at and removes one snapshot after the other; ends with the first call that fails.
fn call_until(end: &AtomicBool, calls: &AtomicU64, socket: &'static str, number: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    runtime.block_on(async {
        let connector =
            tower::service_fn(
                move |_: Uri| async move { UnixStream::connect(socket).await.map(TokioIo::new) },
            );
        let channel = Endpoint::from_static("http://snapshots").connect_with_connector(connector).await?;
        let mut round = 0_u64;
        while !end.load(Ordering::Relaxed) {
            round += 1;
            let client = Client {
                channel: SnapshotsClient::new(channel.clone()),
                key: format!("upgrade-{number}-{round}"),
            };
            client.round().await.with_context(|| client.key.clone())?;
            calls.fetch_add(4, Ordering::Relaxed);
        }
        Ok(())
    })
}

/// A client and the snapshot that it is at.
struct Client {
    channel: SnapshotsClient<Channel>,
    key: String,
}

impl Client {
    async fn round(&self) -> Result<(), Status> {
        let (snapshotter, key) = ("capsule".to_owned(), self.key.clone());
        // Containers end beside this: containerd would collect what nothing refers to.
        let labels = [("containerd.io/gc.root".to_owned(), key.clone())].into();
        let prepare = PrepareSnapshotRequest { snapshotter, key, labels, ..Default::default() };
        let (snapshotter, key) = (prepare.snapshotter.clone(), prepare.key.clone());
        let stat = StatSnapshotRequest { snapshotter, key };
        let (snapshotter, key) = (stat.snapshotter.clone(), stat.key.clone());
        let mounts = MountsRequest { snapshotter, key };
        let (snapshotter, key) = (mounts.snapshotter.clone(), mounts.key.clone());
        let remove = RemoveSnapshotRequest { snapshotter, key };
        self.call(async |mut channel| channel.prepare(namespaced(prepare.clone())).await).await?;
        self.call(async |mut channel| channel.stat(namespaced(stat.clone())).await).await?;
        self.call(async |mut channel| channel.mounts(namespaced(mounts.clone())).await).await?;
        self.call(async |mut channel| channel.remove(namespaced(remove.clone())).await).await
    }

    /// Makes a call, and again if the server has certainly not seen it: gRPC's transparent retry, which tonic has not.
    async fn call<T>(
        &self,
        call: impl AsyncFn(SnapshotsClient<Channel>) -> Result<T, Status>,
    ) -> Result<(), Status> {
        loop {
            match call(self.channel.clone()).await {
                Err(status) if never_left(&status) => {}
                done => return done.map(drop),
            }
        }
    }
}

/// Whether a request was waiting to be sent when its connection ended, or was excluded by the server's GOAWAY.
fn never_left(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        let canceled = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled);
        let excluded = error
            .downcast_ref::<h2::Error>()
            .is_some_and(|e| e.is_go_away() && e.is_remote() && e.reason() == Some(h2::Reason::NO_ERROR));
        if canceled || excluded {
            return true;
        }
        source = error.source();
    }
    false
}

fn namespaced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let namespace = tonic::metadata::MetadataValue::from_static("upgrade");
    request.metadata_mut().insert("containerd-namespace", namespace);
    request
}
