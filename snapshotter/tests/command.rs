//! The program as an operator and a service manager meet it.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that cannot go on has failed

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

fn capsuled() -> Command {
    Command::new(env!("CARGO_BIN_EXE_capsuled"))
}

fn check(config: &Path) -> Output {
    capsuled().args(["--check-config", "--config"]).arg(config).output().unwrap()
}

#[test]
fn mistakes_of_a_configuration_are_listed_with_their_lines() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("config.toml");
    fs::write(&path, "root = 1\n\n[log]\nlevel = 'loud'\n").unwrap();
    let output = check(&path);
    assert_eq!(output.status.code(), Some(2));
    let path = path.display();
    let expected = format!(
        "{path}:1: root is an integer, and must be a string\n\
         {path}:4: log.level is \"loud\": it must be error, warn, info, debug or trace\n"
    );
    assert_eq!(String::from_utf8_lossy(&output.stderr), expected);
}

#[test]
fn a_good_configuration_is_silent_and_a_named_one_must_be_there() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("config.toml");
    let missing = check(&path);
    assert_eq!(missing.status.code(), Some(2));
    let expected = format!("read configuration {}: No such file or directory (os error 2)\n", path.display());
    assert_eq!(String::from_utf8_lossy(&missing.stderr), expected);
    fs::write(&path, "").unwrap();
    let good = check(&path);
    assert!(good.status.success() && good.stderr.is_empty());
}

/// Ends what it started, also when a test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn wait(child: &mut Child) -> std::process::ExitStatus {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "capsuled did not stop");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn hear(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).expect("capsuled said nothing: it needs root to probe the kernel");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

#[test]
fn privileged_it_tells_when_it_is_ready_is_alone_and_stops_when_asked() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().display();
    let path = root.path().join("config.toml");
    let text = format!(
        "root = '{directory}/lib'\nrun = '{directory}/run'\ncontainerd.address = '{directory}/none.sock'\n"
    );
    fs::write(&path, text).unwrap();
    let manager = UnixDatagram::bind(root.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    let mut command = capsuled();
    command.arg("--config").arg(&path).env("NOTIFY_SOCKET", root.path().join("notify"));
    let mut running = Running(command.stderr(Stdio::null()).spawn().unwrap());
    assert_eq!(hear(&manager), "READY=1");
    assert!(root.path().join("run/capsuled.sock").exists());

    let second = capsuled().arg("--config").arg(&path).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.lines().last().unwrap().starts_with("capsuled: another process answers on"), "{said}");

    let pid = rustix::process::Pid::from_child(&running.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(hear(&manager), "STOPPING=1");
    assert!(wait(&mut running.0).success());
}
