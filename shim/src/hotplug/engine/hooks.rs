//! Hooks of devices, in a live container: programs of the node that put the container's files right, as `nvidia-cdi-hook` does.
//!
//! A runtime runs `createContainer` hooks when the container's mounts are there and its root is not changed yet: the host's programs
//! are at hand, and the container's files are below its bundle's root. A live container has left that behind. So each call's hooks get a
//! mount namespace of their own, a copy of the host's, in which everything that is mounted in the container, as it is now, lies at that
//! root; what they write is in the container's files. The namespace ends with them. Mounts that they make are not seen in the container.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use overlayfs_utils::{ContainerRoot, attach, in_mount_namespace, in_new_mount_namespace};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    mount::MountPropagationFlags,
    process::{Pid, PidfdFlags, Signal},
};
use serde_json::json;

use crate::{
    hotplug::{
        config::Config,
        edits::Hook,
        error::{DevicesError, EngineError},
        scene::Scene,
    },
    reaper::{Claim, Reaper},
};

/// How long the hooks of one device may take: capsuled waits longer for its answer.
const DEADLINE: Duration = Duration::from_secs(20);
/// How long one may take that names no time of its own.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long one that was killed may take to end.
const END: Duration = Duration::from_secs(2);
/// How much of what a hook says is told.
const SAID: usize = 300;
/// The file in the bundle with what a hook says.
const OUTPUT: &str = "capsule-hook.log";

/// Runs hooks one after the other; the first that fails ends it. `reaper`: who waits for this process' children, if somebody does.
///
/// # Errors
/// [`EngineError`]. What the hooks have written by then stays written.
pub(super) fn run_all(
    scene: &Scene,
    container: &str,
    hooks: &[Hook],
    reaper: Option<&Reaper>,
) -> Result<(), EngineError> {
    if hooks.is_empty() {
        return Ok(());
    }
    let until = Instant::now() + DEADLINE;
    let config = Config::read(scene.bundle())?;
    let state = json!({
        "ociVersion": config.version,
        "id": container,
        "status": "running",
        "pid": scene.task.pid(),
        "bundle": scene.bundle(),
    });
    let (state, root) = (state.to_string(), scene.task.root());
    let mounts = in_mount_namespace(scene.task.pidfd(), || root.clone_mounts())??;
    let rootfs = scene.rootfs();
    in_new_mount_namespace(|| {
        let failed = |source: rustix::io::Errno| DevicesError::Stage(source.into());
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).map_err(failed)?;
        let at = ContainerRoot::open(rootfs).map_err(failed)?;
        attach(&mounts, at.fd(), rootfs)?;
        hooks.iter().try_for_each(|hook| Ok(run(hook, &state, scene.bundle(), until, reaper)?))
    })?
}

fn run(
    hook: &Hook,
    state: &str,
    bundle: &Path,
    until: Instant,
    reaper: Option<&Reaper>,
) -> Result<(), DevicesError> {
    let failed = |reason: String| DevicesError::Hook { path: hook.path.clone(), reason };
    let cannot_start = |error: io::Error| failed(format!("it cannot be started: {error}"));
    let output = bundle.join(OUTPUT);
    let log = File::create(&output).map_err(cannot_start)?;
    let mut command = Command::new(&hook.path);
    command.env_clear().envs(hook.env.iter().map(|(name, value)| (name, value))).current_dir(bundle);
    if let [name, rest @ ..] = hook.args.as_slice() {
        command.arg0(name).args(rest);
    }
    // A group of its own: what it has started ends with it.
    command.process_group(0).stdin(Stdio::piped()).stderr(log.try_clone().map_err(cannot_start)?).stdout(log);
    let limit = hook.timeout.map_or(TIMEOUT, |seconds| Duration::from_secs(seconds.into()));
    let until = until.min(Instant::now() + limit);
    let mut running = Running::start(&mut command, reaper).map_err(cannot_start)?;
    // As large as a pipe holds: nobody need read it.
    if let Some(mut stdin) = running.take_stdin() {
        let _ = stdin.write_all(state.as_bytes());
    }
    let is_done = running.ended_by(until);
    // What it has started and left behind would keep the mount namespace, and with it the container's mounts.
    running.kill();
    let outcome = if is_done {
        match running.status() {
            0 => Ok(()),
            status => Err(failed(format!("it ended with status {status}{}", said(&output)))),
        }
    } else {
        let seconds = limit.min(DEADLINE).as_secs();
        // The container waits for this call: one that the kernel does not let end is left to the kernel.
        let end = if running.ended_by(Instant::now() + END) { "" } else { ", but has not ended yet" };
        Err(failed(format!("it was not done after {seconds} s, and is killed{end}")))
    };
    let _ = std::fs::remove_file(output);
    outcome
}

/// The end of what a hook said, on one line.
fn said(output: &Path) -> String {
    let text = std::fs::read(output).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    let from = line.char_indices().rev().nth(SAID).map_or(0, |(at, _)| at);
    match &line[from..] {
        "" => String::new(),
        end => format!(": {}", end.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'")),
    }
}

/// A hook that runs, waited for by the reaper where there is one.
struct Running {
    pid: i32,
    pidfd: OwnedFd,
    stdin: Option<std::process::ChildStdin>,
    waited: Waited,
}

enum Waited {
    ByReaper(Option<crate::reaper::Exited>),
    Here(Child),
}

impl Running {
    fn start(command: &mut Command, reaper: Option<&Reaper>) -> io::Result<Self> {
        let Some(reaper) = reaper else {
            let mut child = command.spawn()?;
            let pidfd = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
            let (pid, stdin) = (child.id().cast_signed(), child.stdin.take());
            return Ok(Self { pid, pidfd, stdin, waited: Waited::Here(child) });
        };
        let (claim, pid, stdin) = reaper.spawn_with_input(command)?;
        let Claim { exited, pidfd } = claim;
        let pidfd = pidfd.ok_or_else(|| io::Error::other("it has ended at once"))?;
        Ok(Self { pid, pidfd, stdin, waited: Waited::ByReaper(Some(exited)) })
    }

    fn take_stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.stdin.take()
    }

    fn ended_by(&self, until: Instant) -> bool {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match rustix::event::poll(&mut fds, Some(&timeout)) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Waits for the end; the status as a shell has it.
    fn status(&mut self) -> u32 {
        match &mut self.waited {
            Waited::ByReaper(exited) => {
                exited.take().and_then(|exited| exited.blocking_recv().ok()).map_or(255, |exit| exit.status)
            }
            Waited::Here(child) => child.wait().map_or(255, |status| {
                let signal = status.signal().map(|signal| 128 + signal);
                status.code().or(signal).unwrap_or(255).cast_unsigned()
            }),
        }
    }

    fn kill(&self) {
        // Its group, then itself where it has left that.
        if let Some(group) = Pid::from_raw(self.pid) {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = rustix::process::pidfd_send_signal(self.pidfd.as_fd(), Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, timeout: Option<u32>) -> Hook {
        Hook {
            path: "/bin/sh".into(),
            args: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec![("WHO".to_owned(), "hook".to_owned())],
            timeout,
        }
    }

    fn ran(script: &str, timeout: Option<u32>) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        let until = Instant::now() + DEADLINE;
        let outcome = run(&hook(script, timeout), "the state", dir.path(), until, None);
        outcome.map_err(|error| error.to_string())?;
        Ok(std::fs::read_to_string(dir.path().join("out")).unwrap_or_default())
    }

    #[test]
    fn a_hook_has_its_environment_alone_and_reads_the_state() {
        let text = ran("read -r state; echo \"$WHO $state ${HOME-none}\" >out", None).unwrap();
        assert_eq!(text, "hook the state none\n");
        // One that reads nothing is as good.
        ran("true", None).unwrap();
    }

    #[test]
    fn a_hook_that_fails_says_why() {
        let error = ran("echo 'first line'; echo last >&2; exit 3", None).unwrap_err();
        assert!(error.contains("/bin/sh") && error.contains("status 3: first line last"), "{error}");
        let error = ran("kill -9 $$", None).unwrap_err();
        assert!(error.contains("status 137"), "{error}");
        let missing = Hook { path: "/none".into(), ..hook("", None) };
        let dir = tempfile::tempdir().unwrap();
        let error = run(&missing, "", dir.path(), Instant::now() + DEADLINE, None).unwrap_err().to_string();
        assert!(error.contains("/none") && error.contains("cannot be started"), "{error}");
    }

    #[test]
    fn a_hook_that_hangs_is_killed_with_what_it_has_started() {
        let began = Instant::now();
        let error = ran("sleep 61.5 & wait", Some(1)).unwrap_err();
        assert!(error.contains("not done after 1 s") && began.elapsed() < Duration::from_secs(10), "{error}");
        assert!(ends("61.5"), "its child is left");
    }

    #[test]
    fn what_a_hook_leaves_behind_ends_with_it() {
        ran("sleep 61.25 & true", None).unwrap();
        assert!(ends("61.25"), "its child is left");
        ran("sleep 61.75 & exit 3", None).unwrap_err();
        assert!(ends("61.75"), "its child is left");
    }

    /// Whether no process sleeps for so long, before long.
    fn ends(seconds: &str) -> bool {
        let command = format!("sleep\0{seconds}\0");
        let runs = || {
            std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
                let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                line == command.as_bytes()
            })
        };
        let until = Instant::now() + Duration::from_secs(5);
        while runs() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        !runs()
    }
}
