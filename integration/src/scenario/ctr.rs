//! Containers, as `ctr` drives them.

use std::cell::Cell;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::rootless;
use super::world::path;
use crate::images::Image;

/// A runtime and a snapshotter that are tested together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stack {
    /// For messages.
    pub name: &'static str,
    /// As `ctr run --runtime` takes it.
    pub runtime: &'static str,
    /// As `ctr run --snapshotter` takes it.
    pub snapshotter: &'static str,
}

/// containerd's own.
pub const REFERENCE: Stack =
    Stack { name: "reference", runtime: "io.containerd.runc.v2", snapshotter: "overlayfs" };
/// Our snapshotter below containerd's own runtime.
pub const SNAPSHOTTER: Stack =
    Stack { name: "snapshotter", runtime: "io.containerd.runc.v2", snapshotter: "capsule" };
/// Ours.
pub const OURS: Stack = Stack { name: "ours", runtime: "io.containerd.capsule.v1", snapshotter: "capsule" };

/// How long the end of a task may take.
const NEXT: Duration = Duration::from_secs(90);

/// What runc 1.1 says of an exec whose first process has died before runc has told it anything. Seen twice in some
/// 15,000 execs, with runc 1.1.15 and no other, under either shim; the exec is then gone and can be tried again.
pub const RUNC_1_1: &str = "waiting for init preliminary setup";

/// What a program wrote and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
    /// Exit status; −1 when killed by a signal.
    pub code: i32,
}

impl From<std::process::Output> for Output {
    fn from(output: std::process::Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            out: text(&output.stdout),
            err: text(&output.stderr),
            code: output.status.code().unwrap_or(-1),
        }
    }
}

impl Output {
    /// Fails unless the program succeeded; its standard output.
    pub fn success(self, what: &str) -> Result<String> {
        ensure!(self.code == 0, "{what}: exit status {}: {}", self.code, self.err.trim());
        Ok(self.out)
    }

    /// Fails unless the exit status is `code`.
    pub fn ended_with(self, code: i32) -> Result<Self> {
        ensure!(
            self.code == code,
            "exit status {} instead of {code}: {} {}",
            self.code,
            self.out.trim(),
            self.err.trim()
        );
        Ok(self)
    }
}

thread_local! {
    /// The containerd namespace of all that `ctr` is asked by this thread; `ctr`'s own when there is none.
    static NAMESPACE: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Runs what asks `ctr`, in another containerd namespace.
pub fn in_namespace<T>(namespace: &'static str, run: impl FnOnce() -> T) -> T {
    let before = NAMESPACE.replace(Some(namespace));
    let done = run();
    NAMESPACE.set(before);
    done
}

/// Runs a program with `input` on its standard input, for at most two minutes.
pub fn run(program: &str, args: &[&str], input: &[u8]) -> Result<Output> {
    run_raw(program, args, input).map(Output::from)
}

/// The same for what takes minutes on emulated processors, for at most seven.
pub fn run_long(program: &str, args: &[&str], input: &[u8]) -> Result<Output> {
    run_raw_for("420", program, args, input).map(Output::from)
}

/// [`run`] for a program that writes no text.
pub fn run_raw(program: &str, args: &[&str], input: &[u8]) -> Result<std::process::Output> {
    run_raw_for("120", program, args, input)
}

fn run_raw_for(seconds: &str, program: &str, args: &[&str], input: &[u8]) -> Result<std::process::Output> {
    let mut child = Command::new("timeout")
        .args(["--kill-after=5", seconds, program])
        .args(args)
        .env("PATH", path())
        .envs(NAMESPACE.get().map(|namespace| ("CONTAINERD_NAMESPACE", namespace)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let input = input.to_owned();
    // Beside the reading of its output: a program that echoes more than a pipe holds would block.
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().with_context(|| format!("wait for {program}"))?;
    // A program may end without reading all of its input.
    let _ = writer.join();
    Ok(output)
}

/// Runs `ctr`.
pub fn ctr(args: &[&str]) -> Result<Output> {
    run("ctr", args, b"")
}

impl Stack {
    /// What `ctr run` is told of it.
    pub fn words(self) -> Vec<&'static str> {
        let own = ["--runtime", self.runtime, "--snapshotter", self.snapshotter];
        [&own[..], rootless::options()].concat()
    }

    /// Imports the test image and unpacks it with this stack's snapshotter.
    pub fn import(self) -> Result<String> {
        self.import_image(Image::Busybox)
    }

    /// Imports an image and unpacks it with this stack's snapshotter.
    pub fn import_image(self, image: Image) -> Result<String> {
        let archive = image.in_machine();
        let archive = archive.to_str().context("an archive's path is no text")?;
        let args = ["image", "import", "--snapshotter", self.snapshotter, archive];
        ctr(&args)?.success("import the image")
    }

    /// Runs a container to its end, as `ctr run --rm` does.
    pub fn run_once(self, id: &str, command: &[&str], input: &[u8]) -> Result<Output> {
        let mut args = [&["run", "--rm"], &self.words()[..]].concat();
        args.extend([Image::Busybox.name(), id]);
        args.extend(command);
        run("ctr", &args, input)
    }

    /// Runs a command on an image to its end, with `options` of `ctr run`; its standard output.
    pub fn run_image_once(self, image: Image, options: &[&str], command: &[&str]) -> Result<String> {
        let mut args = [&["run", "--rm"], &self.words()[..]].concat();
        args.extend(options);
        args.extend([image.name(), "once"]);
        args.extend(command);
        ctr(&args)?.success("ctr run")
    }

    /// Starts a container that stays, with `options` of `ctr run` before the image.
    pub fn start(self, id: &str, options: &[&str], command: &[&str]) -> Result<Container> {
        self.start_with_output(id, &[&["--null-io"], options].concat(), command)
    }

    /// As [`Stack::start`], with output that `options` must send somewhere.
    pub fn start_with_output(self, id: &str, options: &[&str], command: &[&str]) -> Result<Container> {
        let mut args = [&["run", "-d"], &self.words()[..]].concat();
        args.extend(options);
        args.extend([Image::Busybox.name(), id]);
        args.extend(command);
        ctr(&args)?.success("ctr run -d")?;
        let container = Container { id: id.to_owned() };
        // It may have ended since.
        container.wait_for_one_of(&["RUNNING", "STOPPED"])?;
        Ok(container)
    }
}

/// A container that was started; it is killed and removed when this is dropped.
#[derive(Debug)]
pub struct Container {
    /// As containerd knows it.
    pub id: String,
}

impl Container {
    /// The task's process and status, from `ctr task ls`; none when it has no task.
    pub fn task(&self) -> Result<Option<(u32, String)>> {
        let list = ctr(&["task", "ls"])?.success("ctr task ls")?;
        let row = list.lines().skip(1).map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
        Ok(row.filter(|cells| cells.first() == Some(&self.id.as_str())).find_map(|cells| match cells[..] {
            [_, pid, status] => Some((pid.parse().ok()?, status.to_owned())),
            _ => None,
        }))
    }

    /// The task's process on the node.
    pub fn pid(&self) -> Result<u32> {
        let deadline = Instant::now() + NEXT;
        loop {
            // 0 is of a shim that takes more than two seconds to answer.
            match self.task()?.with_context(|| format!("{} has no task", self.id))?.0 {
                0 if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(100)),
                pid => return Ok(pid),
            }
        }
    }

    /// Waits until the task has this status.
    pub fn wait_for(&self, status: &str) -> Result<()> {
        self.wait_for_one_of(&[status])
    }

    fn wait_for_one_of(&self, wanted: &[&str]) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let seen = self.task()?;
            if seen.as_ref().is_some_and(|(_, seen)| wanted.contains(&seen.as_str())) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{} is {seen:?}, not {}, after 30 s", self.id, wanted.join(" or "));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs a command in the container, once more if runc 1.1 has lost it.
    pub fn exec(&self, exec_id: &str, command: &[&str], input: &[u8]) -> Result<Output> {
        let once = |exec_id: &str| {
            let mut args = vec!["task", "exec", "--exec-id", exec_id, &self.id];
            args.extend(command);
            run("ctr", &args, input)
        };
        let output = once(exec_id)?;
        if output.err.contains(RUNC_1_1) { once(&format!("{exec_id}-again")) } else { Ok(output) }
    }

    /// Runs a command in the container that must succeed; its standard output.
    pub fn sh(&self, exec_id: &str, script: &str) -> Result<String> {
        self.exec(exec_id, &["/bin/sh", "-c", script], b"")?.success(script)
    }

    /// Starts a command in the container and does not wait for it.
    pub fn spawn(&self, exec_id: &str, command: &[&str]) -> Result<()> {
        let mut args = vec!["task", "exec", "-d", "--null-io", "--exec-id", exec_id, &self.id];
        args.extend(command);
        let output = ctr(&args)?;
        if output.err.contains("null-io") {
            args.retain(|arg| *arg != "--null-io");
            return ctr(&args)?.success("ctr task exec -d").map(drop);
        }
        output.success("ctr task exec -d").map(drop)
    }

    /// Starts its next task, once the last one is gone: one that has ended is removed here; behind a shim that was killed containerd
    /// clears up in its own time, and shows no task meanwhile.
    pub fn start_again(&self) -> Result<()> {
        let said = std::cell::RefCell::new(String::new());
        let started = super::world::within(NEXT, "its next task started", || {
            if self.task()?.is_some_and(|(_, status)| status == "STOPPED") {
                ctr(&["task", "rm", &self.id])?;
            }
            let output = ctr(&["task", "start", "-d", "--null-io", &self.id])?;
            said.replace(output.err);
            Ok(output.code == 0)
        });
        started.with_context(|| format!("{}: {}", self.id, said.borrow().trim()))?;
        self.wait_for("RUNNING")
    }

    /// Sends a signal to the container's first process.
    pub fn kill(&self, signal: &str) -> Result<()> {
        ctr(&["task", "kill", "-s", signal, &self.id])?.success("ctr task kill").map(drop)
    }

    /// The mount table as the container's first process sees it, without what differs from one mount to the next.
    pub fn mounts(&self) -> Result<Vec<String>> {
        let path = format!("/proc/{}/mountinfo", self.pid()?);
        let table = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        Ok(table.lines().map(str::to_owned).collect())
    }

    /// Kills the task and removes it and the container; the task's exit status.
    pub fn remove(self) -> Result<i32> {
        let code = self.remove_now()?;
        std::mem::forget(self);
        Ok(code)
    }

    fn remove_now(&self) -> Result<i32> {
        if self.task()?.is_some_and(|(_, status)| status != "STOPPED") {
            self.kill("SIGKILL")?;
            self.wait_for("STOPPED")?;
        }
        let code = match self.task()? {
            Some(_) => {
                let removed = ctr(&["task", "rm", &self.id])?;
                let code = exit_status_in(&removed.err);
                removed.success("ctr task rm")?;
                code
            }
            None => 0,
        };
        ctr(&["container", "rm", &self.id])?.success("ctr container rm")?;
        Ok(code)
    }
}

/// `ctr task rm` succeeds whatever the task's exit status was; it says so in a warning, unless the status is 0.
fn exit_status_in(warnings: &str) -> i32 {
    let (_, code) = warnings.split_once("exit with non-zero exit code ").unwrap_or_default();
    code.split(|c: char| !c.is_ascii_digit()).next().and_then(|code| code.parse().ok()).unwrap_or(0)
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.remove_now();
    }
}
