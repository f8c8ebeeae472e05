//! A capsuled process: the program itself, as a service manager starts it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use capsuled::dirs::Dirs;

/// How long a start may take on a machine that does other things too.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A running capsuled; killed when dropped.
pub struct Daemon {
    child: Child,
    place: PathBuf,
    manager: UnixDatagram,
}

impl Daemon {
    /// Starts the program with everything below `place` and more lines of configuration, and does not wait.
    pub fn spawn(place: &Path, more: &str) -> Self {
        let shown = place.display();
        let config = format!(
            "root = '{shown}/lib'\nrun = '{shown}/run'\nlog.level = 'warn'\n\
             containerd.address = '{shown}/none.sock'\n{more}\n"
        );
        fs::write(place.join("config.toml"), config).unwrap();
        let notify = place.join("notify");
        _ = fs::remove_file(&notify); // of the one before
        let manager = UnixDatagram::bind(&notify).unwrap();
        manager.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_capsuled"));
        command.arg("--config").arg(place.join("config.toml")).env("NOTIFY_SOCKET", notify);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log(place)).spawn().unwrap();
        Self { child, place: place.to_owned(), manager }
    }

    /// Starts the program and waits until it serves.
    pub fn start(place: &Path) -> Self {
        Self::start_with(place, "")
    }

    /// As [`Daemon::start`], with more lines of configuration.
    pub fn start_with(place: &Path, more: &str) -> Self {
        let mut daemon = Self::spawn(place, more);
        daemon.wait_ready();
        daemon
    }

    /// Waits for the program to say that it serves.
    pub fn wait_ready(&mut self) {
        let began = Instant::now();
        let mut buffer = [0; 64];
        loop {
            match self.manager.recv(&mut buffer) {
                Ok(length) if buffer[..length].starts_with(b"READY=1") => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("hear from capsuled: {error}"),
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("capsuled ended with {status} (it needs root): {}", self.log());
            }
            assert!(began.elapsed() < START_LIMIT, "capsuled does not serve: {}", self.log());
        }
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.place.join("run/capsuled.sock")
    }

    /// Where it keeps its snapshots.
    pub fn dirs(&self) -> Dirs {
        Dirs::new(self.place.join("lib"))
    }

    /// SIGKILL, at once; returns when the process is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM: waits for the end, which must be a success.
    pub fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "capsuled ended with {status}: {}", self.log());
    }

    /// What it and those before it in this place wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.place.join("log")).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn log(place: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(place.join("log")).unwrap()
}
