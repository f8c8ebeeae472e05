//! capsuled as a process of its own, with directories of its own.

use std::{
    fs::{self, File},
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use capsuled::handover;
use rustix::process::{Pid, Signal, kill_process};

/// More than any step of capsuled takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Where one capsuled after the other runs.
pub struct Site {
    root: tempfile::TempDir,
    manager: UnixDatagram,
}

/// A file system of its own below the site's `lib`, seen by the capsuled that is started with it alone.
pub struct Disk<'a> {
    /// The file that holds it.
    pub image: &'a Path,
    /// Options of its mount.
    pub options: &'a str,
}

/// A capsuled; killed when this is dropped.
pub struct Capsuled(Child);

impl Site {
    pub fn new() -> Self {
        // Commit and redb sync: on a tmpfs that costs nothing, and durability is not what is tested here.
        let root = tempfile::tempdir_in("/dev/shm").unwrap();
        let directory = root.path().display().to_string();
        let text = format!(
            "root = '{directory}/lib'\nrun = '{directory}/run'\ncontainerd.address = '{directory}/none.sock'\n"
        );
        fs::write(root.path().join("config.toml"), text).unwrap();
        let manager = UnixDatagram::bind(root.path().join("notify")).unwrap();
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { root, manager }
    }

    pub fn path(&self) -> &Path {
        self.root.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.path().join("run/capsuled.sock")
    }

    pub fn handover(&self) -> PathBuf {
        self.path().join("run").join(handover::SOCKET)
    }

    /// Everything that all the capsuleds of this site wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }

    pub fn config(&self) -> PathBuf {
        self.path().join("config.toml")
    }

    fn prepare(&self, mut command: Command, config: &Path) -> Command {
        let log = File::options().create(true).append(true).open(self.path().join("log")).unwrap();
        command.arg("--config").arg(config);
        command.env("NOTIFY_SOCKET", self.path().join("notify")).stdin(Stdio::null()).stderr(log);
        command
    }

    /// Starts one and does not wait for it.
    pub fn spawn(&self, arguments: &[&str]) -> Capsuled {
        self.spawn_with(&self.config(), arguments)
    }

    /// As [`Site::spawn`], with another configuration.
    pub fn spawn_with(&self, config: &Path, arguments: &[&str]) -> Capsuled {
        let mut command = self.prepare(Command::new(env!("CARGO_BIN_EXE_capsuled")), config);
        Capsuled(command.args(arguments).spawn().unwrap())
    }

    /// Starts one that serves when this returns.
    pub fn start(&self, arguments: &[&str]) -> Capsuled {
        let capsuled = self.spawn(arguments);
        self.wait_for("READY=1");
        capsuled
    }

    /// Starts one with `count` times this socket from the service manager, by systemd's protocol; does not wait for it.
    pub fn spawn_passed(&self, listener: &UnixListener, count: u32) -> Capsuled {
        let mut command = Command::new("sh");
        let script = format!("exec 3<&0 4<&0 0</dev/null; LISTEN_FDS={count} LISTEN_PID=$$ exec \"$@\"");
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_capsuled")]);
        let mut command = self.prepare(command, &self.config());
        Capsuled(command.stdin(OwnedFd::from(listener.try_clone().unwrap())).spawn().unwrap())
    }

    /// Starts one that sees the disk in `lib`; does not wait for it.
    pub fn spawn_on(&self, disk: &Disk<'_>) -> Capsuled {
        let lib = self.path().join("lib");
        fs::create_dir_all(&lib).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation=private", "sh", "-c"]);
        command.arg("mount -o \"loop,$0\" \"$1\" \"$2\" && shift 2 && exec \"$@\"");
        command.arg(disk.options).arg(disk.image).arg(lib).arg(env!("CARGO_BIN_EXE_capsuled"));
        Capsuled(self.prepare(command, &self.config()).spawn().unwrap())
    }

    /// Starts one that sees the disk in `lib`, and serves when this returns.
    pub fn start_on(&self, disk: &Disk<'_>) -> Capsuled {
        let capsuled = self.spawn_on(disk);
        self.wait_for("READY=1");
        capsuled
    }

    /// Remounts the disk that a capsuled sees.
    pub fn remount(&self, capsuled: &Capsuled, options: &str) {
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(format!("--mount=/proc/{}/ns/mnt", capsuled.0.id()));
        let remount =
            nsenter.args(["mount", "-o", &format!("remount,{options}")]).arg(self.path().join("lib"));
        let output = remount.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// The site's `lib` as a capsuled sees it.
    pub fn lib(&self, capsuled: &Capsuled) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", capsuled.0.id()));
        root.join(self.path().join("lib").strip_prefix("/").unwrap())
    }

    /// Waits until a capsuled of this site tells the service manager so.
    pub fn wait_for(&self, state: &str) {
        let mut buffer = [0; 64];
        loop {
            let length = self
                .manager
                .recv(&mut buffer)
                .unwrap_or_else(|error| panic!("no {state}: {error}; capsuled needs root\n{}", self.log()));
            if buffer[..length] == *state.as_bytes() {
                return;
            }
        }
    }

    /// Waits until one serves, or has ended.
    pub fn is_ready(&self, capsuled: &mut Capsuled) -> bool {
        self.manager.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let mut buffer = [0; 64];
        let deadline = Instant::now() + PATIENCE;
        let is_ready = loop {
            let is_told = self.manager.recv(&mut buffer).is_ok_and(|length| buffer[..length] == *b"READY=1");
            if is_told || !capsuled.is_running() {
                break is_told;
            }
            assert!(Instant::now() < deadline, "it neither serves nor ends:\n{}", self.log());
        };
        // What one that has ended said last is nothing that the next one says.
        while !is_ready && self.manager.recv(&mut buffer).is_ok() {}
        self.manager.set_read_timeout(Some(PATIENCE)).unwrap();
        is_ready
    }

    /// Waits until the log has `count` lines with this text.
    pub fn wait_for_log_times(&self, text: &str, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.log().matches(text).count() < count {
            assert!(Instant::now() < deadline, "not {count} times {text:?} in the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A connection of a successor that speaks for itself.
    pub fn connect_handover(&self) -> UnixStream {
        let stream = UnixStream::connect(self.handover()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

impl Capsuled {
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "capsuled did not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Capsuled {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
