//! The OCI runtime's command line (runc, crun, youki): one function per subcommand, errors with what the runtime
//! itself says.
//!
//! The crate `runc` is not used: its `exec` and `update` pass the spec through `oci-spec`, which drops the fields it
//! does not know, it cannot checkpoint, it reports nothing of a failed `create` (whose stderr is the container's),
//! and its commands would be reaped by tokio and by the subreaper loop at once.

mod checkpoint;
mod error;

use std::{
    env,
    ffi::OsString,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

pub use checkpoint::Images;
pub use error::RuntimeError;
use error::last_error;
use serde::Deserialize;
use tokio::net::unix::pipe::Receiver;

use crate::{
    command::{self, CommandError, Done},
    options::Options,
    reaper::Reaper,
};

/// Where containerd has its containers' runtime state when nothing else is asked, per namespace.
const ROOT: &str = "/run/containerd/runc";

/// The runtime of one container.
#[derive(Clone)]
pub struct Runtime {
    binary: PathBuf,
    root: PathBuf,
    global: Vec<OsString>,
    create: Vec<OsString>,
    /// The search path with criu's directory first, if the options name one.
    path: Option<OsString>,
    /// The working directory of all commands, by which those are found that a killed shim has left.
    bundle: PathBuf,
    reaper: Arc<Reaper>,
}

/// The standard streams of a container process, as the runtime is to have them.
#[derive(Default)]
pub struct Streams {
    /// Its standard input, `/dev/null` when absent; the same for the others.
    pub stdin: Option<OwnedFd>,
    /// Its standard output.
    pub stdout: Option<OwnedFd>,
    /// Its standard error.
    pub stderr: Option<OwnedFd>,
}

/// Where a new process' pid and terminal go.
pub struct NewProcess<'a> {
    /// Written by the runtime.
    pub pid_file: &'a Path,
    /// Written by the runtime, read when it fails.
    pub log: &'a Path,
    /// Where the runtime sends the terminal's master.
    pub console: Option<&'a Path>,
    /// Without a terminal.
    pub streams: Streams,
}

impl Runtime {
    /// The runtime that `options` name, for the container of `namespace` that has this bundle.
    pub fn new(options: &Options, namespace: &str, bundle: &Path, reaper: Arc<Reaper>) -> Self {
        let or =
            |value: &str, default: &str| if value.is_empty() { default.into() } else { value.to_owned() };
        let root = Path::new(&or(&options.root, ROOT)).join(namespace);
        let mut global: Vec<OsString> = vec!["--root".into(), root.clone().into()];
        if options.systemd_cgroup {
            global.push("--systemd-cgroup".into());
        }
        let switches = [("--no-pivot", options.no_pivot_root), ("--no-new-keyring", options.no_new_keyring)];
        let create = switches.into_iter().filter(|(_, on)| *on).map(|(switch, _)| switch.into()).collect();
        let path = criu_first(&options.criu_path);
        let bundle = bundle.to_owned();
        Self { binary: binary(options), root, global, create, path, bundle, reaper }
    }

    /// The same, which takes `root` for the directory of its records.
    #[must_use]
    pub fn with_root(&self, root: &Path) -> Self {
        let mut other = self.clone();
        (other.root, other.global[1]) = (root.to_owned(), root.into());
        other
    }

    /// The directory of its record of a container.
    pub fn record(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    /// Makes a container, whose init waits to be started.
    ///
    /// # Errors
    /// [`RuntimeError`] with the last error in the runtime's log.
    pub async fn create(&self, id: &str, new: NewProcess<'_>) -> Result<(), RuntimeError> {
        let mut args: Vec<OsString> = vec!["create".into(), "--bundle".into(), (&self.bundle).into()];
        args.extend(self.create.iter().cloned());
        self.make(args, id, new).await
    }

    /// Starts the init of a container that has been made.
    ///
    /// # Errors
    /// [`RuntimeError`].
    pub async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        self.call(&["start", id]).await.map(drop)
    }

    /// Runs one more process, described by the file `process`.
    ///
    /// # Errors
    /// [`RuntimeError`] with the last error in the runtime's log.
    pub async fn exec(&self, id: &str, process: &Path, new: NewProcess<'_>) -> Result<(), RuntimeError> {
        let args = vec!["exec".into(), "--detach".into(), "--process".into(), process.into()];
        self.make(args, id, new).await
    }

    /// Sends a signal to the container's init, or to all its processes.
    ///
    /// # Errors
    /// [`RuntimeError`]; see [`RuntimeError::is_finished`].
    pub async fn kill(&self, id: &str, signal: u32, all: bool) -> Result<(), RuntimeError> {
        let signal = signal.to_string();
        let args: &[&str] = if all { &["kill", "--all", id, &signal] } else { &["kill", id, &signal] };
        self.call(args).await.map(drop)
    }

    /// Removes a container that has ended or was never started; any container when forced. Not an error when there
    /// is none.
    ///
    /// # Errors
    /// [`RuntimeError`].
    pub async fn delete(&self, id: &str, force: bool) -> Result<(), RuntimeError> {
        let args: &[&str] = if force { &["delete", "--force", id] } else { &["delete", id] };
        match self.call(args).await {
            Err(error) if error.is_missing() => Ok(()),
            result => result.map(drop),
        }
    }

    /// Whether the runtime may have a record of a container: each known one keeps it in a directory of the container's
    /// name below its root, and removes that when it is deleted.
    pub fn may_have(&self, id: &str) -> bool {
        self.record(id).try_exists().unwrap_or(true)
    }

    /// Freezes the container.
    ///
    /// # Errors
    /// [`RuntimeError`].
    pub async fn pause(&self, id: &str) -> Result<(), RuntimeError> {
        self.call(&["pause", id]).await.map(drop)
    }

    /// Thaws it.
    ///
    /// # Errors
    /// [`RuntimeError`].
    pub async fn resume(&self, id: &str) -> Result<(), RuntimeError> {
        self.call(&["resume", id]).await.map(drop)
    }

    /// Its status in the words of the OCI runtime specification: `created`, `running`, `paused`, `stopped`.
    ///
    /// # Errors
    /// [`RuntimeError`].
    pub async fn status(&self, id: &str) -> Result<String, RuntimeError> {
        #[derive(Deserialize)]
        struct Answer {
            status: String,
        }
        let output = self.call(&["state", id]).await?;
        let answer: Answer = serde_json::from_slice(&output).map_err(|e| RuntimeError::Output("state", e))?;
        Ok(answer.status)
    }

    /// Changes its resources to those in the file `resources`, which goes to the runtime as it came.
    ///
    /// # Errors
    /// [`RuntimeError`].
    pub async fn update(&self, id: &str, resources: &Path) -> Result<(), RuntimeError> {
        let args: Vec<OsString> = vec!["update".into(), "--resources".into(), resources.into(), id.into()];
        self.call(&args).await.map(drop)
    }

    /// The pids of its processes.
    ///
    /// # Errors
    /// [`RuntimeError`].
    pub async fn ps(&self, id: &str) -> Result<Vec<u32>, RuntimeError> {
        let output = self.call(&["ps", "--format", "json", id]).await?;
        // No process is `null`.
        let pids: Option<Vec<u32>> =
            serde_json::from_slice(&output).map_err(|e| RuntimeError::Output("ps", e))?;
        Ok(pids.unwrap_or_default())
    }

    /// A command that makes a process: its streams are the process', so what goes wrong is read from a log.
    async fn make(&self, args: Vec<OsString>, id: &str, new: NewProcess<'_>) -> Result<(), RuntimeError> {
        let subcommand = args.first().cloned().unwrap_or_default();
        let mut command = self.command(Some(new.log));
        command.args(args).arg("--pid-file").arg(new.pid_file);
        if let Some(console) = new.console {
            command.arg("--console-socket").arg(console);
        }
        command.arg(id);
        let stdio = |stream: Option<OwnedFd>| stream.map_or_else(Stdio::null, Stdio::from);
        command.stdin(stdio(new.streams.stdin));
        command.stdout(stdio(new.streams.stdout));
        command.stderr(stdio(new.streams.stderr));
        let done = self.run(command, None, None).await?;
        if done.status == 0 {
            // Gone unless the runtime warned of something.
            let _ = fs::remove_file(new.log);
            return Ok(());
        }
        let log = fs::read_to_string(new.log).unwrap_or_default();
        Err(RuntimeError::of(&subcommand, done.status, last_error(&log)))
    }

    /// A command with output of its own.
    async fn call<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Result<Vec<u8>, RuntimeError> {
        let spawn = |e| RuntimeError::Spawn(self.binary.clone(), e);
        let (stdout, stdout_writer) = io::pipe().map_err(spawn)?;
        let (stderr, stderr_writer) = io::pipe().map_err(spawn)?;
        let mut command = self.command(None);
        command.args(args).stdin(Stdio::null()).stdout(stdout_writer).stderr(stderr_writer);
        let stdout = Receiver::from_owned_fd(stdout.into()).map_err(spawn)?;
        let stderr = Receiver::from_owned_fd(stderr.into()).map_err(spawn)?;
        let done = self.run(command, Some(stdout), Some(stderr)).await?;
        if done.status == 0 {
            return Ok(done.stdout);
        }
        let subcommand = args.first().map(|arg| arg.as_ref().to_owned()).unwrap_or_default();
        Err(RuntimeError::of(&subcommand, done.status, last_error(&String::from_utf8_lossy(&done.stderr))))
    }

    fn command(&self, log: Option<&Path>) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(&self.global);
        if let Some(log) = log {
            command.arg("--log").arg(log).args(["--log-format", "json"]);
        }
        if let Some(path) = &self.path {
            command.env("PATH", path);
        }
        // systemd's readiness protocol is between systemd and containerd.
        command.env_remove("NOTIFY_SOCKET").current_dir(&self.bundle);
        command
    }

    async fn run(
        &self,
        command: Command,
        stdout: Option<Receiver>,
        stderr: Option<Receiver>,
    ) -> Result<Done, RuntimeError> {
        // A box, or each future that runs a command holds all of this.
        Box::pin(command::run(&self.reaper, command, stdout, stderr)).await.map_err(|error| match error {
            CommandError::Spawn(e) => RuntimeError::Spawn(self.binary.clone(), e),
            CommandError::Reaper => RuntimeError::Reaper,
        })
    }
}

/// What the runtime can do (`features.json` of the OCI runtime specification), as it prints it; nothing for a runtime
/// that has no such command. Blocks: for the `-info` action alone, which does nothing else.
///
/// # Errors
/// When the program cannot be executed.
pub fn features(options: &Options) -> Result<Option<Vec<u8>>, RuntimeError> {
    let binary = binary(options);
    let output =
        Command::new(&binary).arg("features").output().map_err(|e| RuntimeError::Spawn(binary, e))?;
    let json = serde_json::from_slice::<serde_json::Value>(&output.stdout).is_ok();
    Ok((output.status.success() && json).then_some(output.stdout))
}

/// The runtimes look for `criu` on their search path, and have no switch for it any more (runc 1.2).
fn criu_first(criu: &str) -> Option<OsString> {
    let directory = Path::new(criu).parent().filter(|directory| directory.is_absolute())?;
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths([directory.to_owned()].into_iter().chain(env::split_paths(&path))).ok()
}

fn binary(options: &Options) -> PathBuf {
    if options.binary_name.is_empty() { "runc".into() } else { options.binary_name.as_str().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_arguments() {
        let options =
            Options { no_pivot_root: true, systemd_cgroup: true, root: "/r".into(), ..Default::default() };
        let reaper = Arc::new(Reaper::idle());
        let runtime = Runtime::new(&options, "ns", Path::new("/"), reaper);
        assert_eq!(runtime.binary, Path::new("runc"));
        assert_eq!(runtime.global, ["--root", "/r/ns", "--systemd-cgroup"]);
        assert_eq!(runtime.create, ["--no-pivot"]);
        let other = runtime.with_root(Path::new("/o"));
        assert_eq!((other.global[1].as_os_str(), other.record("c")), ("/o".as_ref(), "/o/c".into()));
    }
}
