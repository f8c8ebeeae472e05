//! Whether a container is well: a command run in it, as often as it takes.
//!
//! It runs with all that the container's own process has (user, environment, capabilities, working directory), through
//! containerd, like any other exec. What it writes is read and forgotten but for its end.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{CWD, FileType, Mode as FileMode, mknodat};
use serde_json::{Map, Value};
use tokio::{
    net::unix::pipe,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{Attachments, model::ContainerKey};
use crate::containerd::Scope;

/// The folder of the commands' output, in the run directory.
const FOLDER: &str = "checks";
/// How long to wait before the command is run again.
const PAUSE: Duration = Duration::from_secs(1);
/// How much of what a command wrote last is kept for a message.
const TAIL: usize = 256;

/// A command that tells by its exit status whether a container is well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// The command and its arguments; not empty.
    pub args: Vec<String>,
    /// For all its runs together.
    pub timeout: Duration,
}

/// Where the commands' output goes: cheap to clone.
#[derive(Debug, Clone)]
pub struct Checks {
    folder: PathBuf,
}

impl Checks {
    /// Below the run directory `run`.
    pub fn new(run: &Path) -> Self {
        Self { folder: run.join(FOLDER) }
    }

    fn open(&self, id: &str) -> io::Result<Output> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let path = self.folder.join(id);
        mknodat(CWD, &path, FileType::Fifo, FileMode::RUSR | FileMode::WUSR, 0)?;
        // Read and write: it has no end while a run of the command hands over to the next.
        let reader = pipe::OpenOptions::new().read_write(true).open_receiver(&path);
        let output = Output { path, reader: reader?, tail: Vec::new() };
        Ok(output)
    }
}

/// What a command writes.
struct Output {
    path: PathBuf,
    reader: pipe::Receiver,
    tail: Vec<u8>,
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a pipe");
        }
    }
}

impl Output {
    /// Reads for ever: to be dropped.
    async fn read(&mut self) -> io::Result<()> {
        let mut piece = [0; 4096];
        loop {
            self.reader.readable().await?;
            while let Ok(read @ 1..) = self.reader.try_read(&mut piece) {
                self.keep(&piece[..read]);
            }
        }
    }

    /// Reads what is there, whether or not that has been announced.
    fn drain(&mut self) {
        let mut piece = [0; 4096];
        while let Ok(read @ 1..) = rustix::io::read(&self.reader, &mut piece) {
            self.keep(&piece[..read]);
        }
    }

    fn keep(&mut self, piece: &[u8]) {
        self.tail.extend_from_slice(piece);
        let surplus = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..surplus);
    }

    /// The last line that says something, after a colon.
    fn last_line(&self) -> String {
        let text = String::from_utf8_lossy(&self.tail);
        let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
        line.map(|line| format!(": {line}")).unwrap_or_default()
    }
}

impl Attachments {
    /// Runs the command until it succeeds. Why the container is not well, in a line, if its time is over before, or it
    /// cannot be run.
    pub(super) async fn prove(
        &self,
        container: &ContainerKey,
        call: &str,
        check: &HealthCheck,
    ) -> Result<(), String> {
        let command = check.args.join(" ");
        let failed = |error: &dyn ToString| format!("{command:?} could not be run: {}", error.to_string());
        let scope = self.containerd.namespace(&container.namespace).map_err(|e| failed(&e))?;
        let spec = scope.spec(&container.id).await.map_err(|e| failed(&e))?;
        let process = spec.and_then(|spec| plan_process(&spec, &check.args));
        let process = process.ok_or_else(|| failed(&"the container's specification has no process"))?;
        let id = exec_id(call);
        let mut output = self.checks.open(&id).map_err(|e| failed(&e))?;
        let path = output.path.to_string_lossy().into_owned();
        let deadline = Instant::now() + check.timeout;
        loop {
            output.tail.clear();
            let run = run(&scope, &container.id, &id, process.clone(), &path);
            let ended = tokio::select! {
                ended = timeout_at(deadline, run) => ended,
                read = output.read() => return Err(failed(&read.err().map(|e| e.to_string()).unwrap_or_default())),
            };
            let deleted = delete(&scope, &container.id, &id).await;
            if deleted.is_err() {
                // containerd may be away: the command is ended when it is back.
                tokio::spawn(self.clone().end_check(container.clone(), call.to_owned()));
            }
            output.drain();
            let status = match ended {
                Ok(ended) => ended.map_err(|e| failed(&e))?,
                Err(_) => {
                    let seconds = check.timeout.as_secs_f64();
                    return Err(format!("{command:?} has not ended in {seconds} s{}", output.last_line()));
                }
            };
            deleted.map_err(|e| failed(&e))?;
            if status == 0 {
                return Ok(());
            }
            if Instant::now() + PAUSE >= deadline {
                return Err(format!("{command:?} ends with status {status}{}", output.last_line()));
            }
            sleep(PAUSE).await;
        }
    }

    /// Ends a command that nobody waits for any more, however long containerd is away. Where the task is gone, so is it.
    pub(super) async fn end_check(self, container: ContainerKey, call: String) {
        let id = exec_id(&call);
        match self.containerd.namespace(&container.namespace) {
            Ok(scope) => until_ended(&container, RETRY, || delete(&scope, &container.id, &id)).await,
            Err(error) => tracing::warn!(%container, %error, "no command can run there"),
        }
        match fs::remove_file(self.checks.folder.join(&id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%container, %error, "cannot remove the pipe of a command that has ended");
            }
            _ => {}
        }
    }
}

/// Ends a command; why that is not known, if it takes too long.
async fn delete(scope: &Scope, container: &str, id: &str) -> Result<(), String> {
    match timeout(PATIENCE, scope.delete_exec(container, id)).await {
        Ok(deleted) => deleted.map_err(|error| error.to_string()),
        Err(_) => Err(format!("it does not end in {} s", PATIENCE.as_secs())),
    }
}

/// How long the end of a command may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How soon the end of one is tried again at first; and how soon in the end, when it has failed for long.
const RETRY: Duration = Duration::from_secs(5);
const SELDOM: u32 = 12;

/// Tries `end` until it succeeds, `pause` after the first time, and ever less often.
async fn until_ended<F: Future<Output = Result<(), String>>>(
    container: &ContainerKey,
    pause: Duration,
    end: impl Fn() -> F,
) {
    let mut times = 1;
    while let Err(error) = end().await {
        if times == 1 {
            tracing::warn!(%container, error, "a command that was to prove it well may still run: it is tried on");
        } else {
            tracing::debug!(%container, error, times, "a command that was to prove it well may still run");
        }
        sleep(pause * times.min(SELDOM)).await;
        times = times.saturating_add(1);
    }
}

async fn run(
    scope: &Scope,
    container: &str,
    id: &str,
    process: Vec<u8>,
    output: &str,
) -> Result<u32, crate::containerd::ContainerdError> {
    scope.exec(container, id, process, output).await?;
    scope.wait_exec(container, id).await
}

fn exec_id(call: &str) -> String {
    format!("capsule-check-{call}")
}

/// The process of an OCI specification, as JSON, with other arguments and without a terminal.
fn plan_process(spec: &[u8], args: &[String]) -> Option<Vec<u8>> {
    let mut spec: Map<String, Value> = serde_json::from_slice(spec).ok()?;
    let mut process = spec.remove("process")?;
    let fields = process.as_object_mut()?;
    for without in ["terminal", "consoleSize", "commandLine"] {
        fields.remove(without);
    }
    fields.insert("args".to_owned(), args.into());
    serde_json::to_vec(&process).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_runs_as_the_containers_own_process() {
        let spec = br#"{"process":{"terminal":true,"consoleSize":{"height":1,"width":1},"user":{"uid":7},
            "args":["/app"],"env":["A=1"],"cwd":"/","unknown":{"x":1}},"root":{}}"#;
        let process = plan_process(spec, &["/check".into(), "x".into()]).unwrap();
        let process: Value = serde_json::from_slice(&process).unwrap();
        let expected = serde_json::json!({
            "user": {"uid": 7}, "args": ["/check", "x"], "env": ["A=1"], "cwd": "/", "unknown": {"x": 1},
        });
        assert_eq!(process, expected);
        assert_eq!(plan_process(b"{}", &[]), None);
    }

    #[tokio::test]
    async fn the_end_of_a_command_is_tried_until_it_ends() {
        let key = ContainerKey { namespace: "default".into(), id: "c1".into() };
        let tries = std::cell::Cell::new(0);
        let end = || {
            tries.set(tries.get() + 1);
            std::future::ready(if tries.get() < 1000 { Err("containerd is away".to_owned()) } else { Ok(()) })
        };
        until_ended(&key, Duration::ZERO, end).await;
        assert_eq!(tries.get(), 1000);
    }

    #[tokio::test]
    async fn only_the_end_of_the_output_is_kept() {
        let run = tempfile::tempdir().unwrap();
        let mut output = Checks::new(run.path()).open("x").unwrap();
        fs::write(&output.path, format!("{}\nit is late \n\n", "y".repeat(4000))).unwrap();
        output.drain();
        assert_eq!(output.last_line(), ": it is late");
        assert_eq!(output.tail.len(), TAIL);
        drop(output);
        assert_eq!(fs::read_dir(run.path().join(FOLDER)).unwrap().count(), 0);
    }
}
