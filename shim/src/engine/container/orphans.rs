//! Commands of the OCI runtime that a killed shim has left. They go on, and one that makes a container would finish it
//! after all that there was of it had been cleaned up.

use std::{
    fs,
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long a killed command takes to be gone.
const GONE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(2);

/// Kills every command that works on container `id` in `bundle`, and waits until they are gone.
pub async fn kill(bundle: &Path, id: &str) {
    let commands: Vec<(Pid, OwnedFd)> = find(bundle, id);
    for (pid, command) in &commands {
        log::info!("kill the runtime's command {pid:?}, which the killed shim has left");
        let _ = pidfd_send_signal(command, Signal::KILL); // it may have ended by itself
    }
    let began = Instant::now();
    while commands.iter().any(|(pid, _)| !has_ended(*pid)) && began.elapsed() < GONE {
        tokio::time::sleep(LOOK).await;
    }
}

/// A command has the bundle as its working directory and names the runtime's root, and the container or something in
/// the bundle, among its arguments. No process of a container can be
/// taken for one: none has a directory of the host.
fn find(bundle: &Path, id: &str) -> Vec<(Pid, OwnedFd)> {
    let Ok(wanted) = fs::canonicalize(bundle) else { return Vec::new() };
    let own = rustix::process::getpid();
    let processes = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let command = |entry: fs::DirEntry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?).filter(|pid| *pid != own)?;
        // Before the look at it: a pid that is used again later is not killed.
        let pinned = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // By name: to look at the directory itself would wait for the file system that it is on, whatever process has it.
        fs::read_link(entry.path().join("cwd")).ok().filter(|directory| *directory == wanted)?;
        let arguments = fs::read(entry.path().join("cmdline")).ok()?;
        let words = || arguments.split(|byte| *byte == 0);
        // A shim has the same directory and the same id among its arguments: it is asked to end, not killed.
        let is_command = words().any(|word| word == b"--root");
        let names = words().any(|word| word == id.as_bytes() || names_in(bundle, word));
        (is_command && names).then_some((pid, pinned))
    };
    processes.filter_map(command).collect()
}

fn names_in(bundle: &Path, argument: &[u8]) -> bool {
    std::str::from_utf8(argument).is_ok_and(|argument| Path::new(argument).starts_with(bundle))
}

/// A zombie makes nothing any more.
fn has_ended(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[tokio::test]
    async fn only_commands_on_the_bundle_are_killed() {
        let bundle = tempfile::tempdir().unwrap();
        let start_with = |root: &str, directory: &Path, argument: &Path| {
            let mut command = Command::new("sh");
            command.args(["-c", "echo; sleep 60; :", root]).arg(argument).current_dir(directory);
            let mut child = command.stdout(Stdio::piped()).process_group(0).spawn().unwrap();
            // Its command line is its own once it writes.
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
            child
        };
        use std::os::unix::process::{CommandExt, ExitStatusExt};
        let start = |directory: &Path, argument: &Path| start_with("--root", directory, argument);
        let mut shim = start_with("-id", bundle.path(), Path::new("c1"));
        let mut command = start(bundle.path(), &bundle.path().join("init.pid"));
        let mut by_id = start(bundle.path(), Path::new("c1"));
        let mut elsewhere = start(Path::new("/"), bundle.path());
        let mut other = start(bundle.path(), Path::new("/other"));
        kill(bundle.path(), "c1").await;
        assert_eq!(command.wait().unwrap().signal(), Some(9));
        assert_eq!(by_id.wait().unwrap().signal(), Some(9));
        for child in [&mut elsewhere, &mut other, &mut shim] {
            assert!(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
