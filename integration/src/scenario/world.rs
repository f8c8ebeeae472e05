//! A private containerd with capsuled beside it, as a node has them.

use std::cell::Cell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::event::{Event, Reporter};
use crate::workspace::output_of;

/// Where capsuled listens.
pub const CAPSULED_SOCKET: &str = "/run/capsule/capsuled.sock";
/// Where containerd listens.
pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
const LOGS: &str = "/logs";
/// How long what follows a call may take.
const SETTLED: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(90);
/// The longest that containerd waits before it connects to a plugin again: three seconds, give or take a fifth.
const RECONNECT: Duration = Duration::from_secs(4);

/// The configurations that users get, of which containerd's is merged into a private one.
const CONFIGS: &str = "/payload/configs";

/// The configuration that containerd is given.
pub(super) const PRIVATE: &str = "/etc/containerd/private.toml";

/// Next to nothing here uses CRI, and it starts slowly.
const WITHOUT_CRI: &str = "disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.images\", \
                           \"io.containerd.cri.v1.runtime\"]\n";

/// The daemons of a node; they are killed when this is dropped.
#[derive(Debug)]
pub struct World {
    containerd: Daemon,
    capsuled: Option<Daemon>,
    with_capsuled: bool,
    /// containerd's search path.
    path: &'static str,
}

/// A daemon whose output goes to a log.
#[derive(Debug)]
pub(super) struct Daemon {
    name: String,
    child: Child,
}

impl Daemon {
    /// Starts it.
    pub(super) fn start(name: &str, command: &mut Command) -> Result<Self> {
        let path = log_of(name);
        fs::create_dir_all(LOGS).context("create the folder of logs")?;
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("open {}", path.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share a log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self { name: name.to_owned(), child })
    }

    /// Waits until `ready`; an error if the daemon ends before.
    pub(super) fn wait_until(&mut self, ready: impl Fn() -> bool) -> Result<()> {
        self.wait_within(PATIENCE, ready)
    }

    /// The same, for one that may take so long.
    pub(super) fn wait_within(&mut self, patience: Duration, ready: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !ready() {
            if let Some(status) = self.child.try_wait().with_context(|| format!("look at {}", self.name))? {
                bail!("{} ended: {status}", self.name);
            }
            if Instant::now() > deadline {
                bail!("{} was not ready after {patience:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn has_ended(&mut self) -> Result<bool> {
        let status = self.child.try_wait().with_context(|| format!("look at {}", self.name))?;
        Ok(status.is_some())
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.name))?;
        self.child.wait().with_context(|| format!("wait for {}", self.name)).map(drop)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl World {
    /// Starts capsuled (if `with_capsuled`) and containerd, and waits until both answer.
    pub fn start(with_capsuled: bool) -> Result<Self> {
        Self::start_with(with_capsuled, "")
    }

    /// As [`World::start`], with more at the end of containerd's configuration.
    pub fn start_with(with_capsuled: bool, config: &str) -> Result<Self> {
        Self::start_by(with_capsuled, &write_configs(config)?)
    }

    /// With capsuled and with containerd's CRI. `configure` is given containerd's configuration as it is shipped.
    pub fn start_with_cri(configure: impl FnOnce(&str) -> String) -> Result<Self> {
        let private = write_configs("")?;
        let text = fs::read_to_string(&private).with_context(|| format!("read {}", private.display()))?;
        fs::write(&private, configure(&text.replace(WITHOUT_CRI, "")))
            .with_context(|| format!("write {}", private.display()))?;
        Self::start_by(true, &private)
    }

    /// containerd alone, with this configuration, as on a node that has nothing of ours.
    pub fn start_bare(config: &str) -> Result<Self> {
        fs::create_dir_all("/etc/containerd").context("create containerd's folder")?;
        fs::write(PRIVATE, config).with_context(|| format!("write {PRIVATE}"))?;
        Self::start_on(NODE_PATH, false, Path::new(PRIVATE))
    }

    fn start_by(with_capsuled: bool, config: &Path) -> Result<Self> {
        Self::start_on(path(), with_capsuled, config)
    }

    fn start_on(path: &'static str, with_capsuled: bool, config: &Path) -> Result<Self> {
        let mut containerd = Daemon::start("containerd", &mut containerd_command(config, path))?;
        // capsuled asks containerd and serves it: it is started beside it, in no order.
        let capsuled = with_capsuled.then(|| start_capsuled(&[])).transpose()?;
        containerd.wait_until(|| Path::new(CONTAINERD_SOCKET).exists() && answers())?;
        let mut world = Self { containerd, capsuled, with_capsuled, path };
        world.wait_for_capsuled()?;
        Ok(world)
    }

    fn wait_for_capsuled(&mut self) -> Result<()> {
        match &mut self.capsuled {
            Some(daemon) => {
                daemon.wait_until(|| std::os::unix::net::UnixStream::connect(CAPSULED_SOCKET).is_ok())
            }
            None => Ok(()),
        }
    }

    /// The process of `containerd` or `capsuled`.
    pub fn pid(&self, daemon: &str) -> Option<u32> {
        self.capsuled.iter().chain([&self.containerd]).find(|known| known.name == daemon).map(Daemon::pid)
    }

    /// Kills capsuled as `kill -9` does, and waits until it is gone.
    pub fn kill_capsuled(&mut self) -> Result<()> {
        let mut daemon = self.capsuled.take().context("capsuled does not run")?;
        daemon.child.kill().context("kill capsuled")?;
        daemon.child.wait().context("wait for capsuled")?;
        Ok(())
    }

    /// Kills containerd as `kill -9` does, starts it again and waits until it answers.
    pub fn restart_containerd(&mut self) -> Result<()> {
        self.kill_containerd()?;
        self.start_containerd()
    }

    /// The same, with something that is done while it is down. It is started again however that ends.
    pub fn restart_containerd_after(&mut self, while_down: impl FnOnce() -> Result<()>) -> Result<()> {
        self.kill_containerd()?;
        let done = while_down();
        self.start_containerd()?;
        done
    }

    /// Kills containerd as `kill -9` does, and waits until it is gone. Nothing can be done until it is started again.
    pub fn kill_containerd(&mut self) -> Result<()> {
        self.containerd.child.kill().context("kill containerd")?;
        self.containerd.child.wait().context("wait for containerd").map(drop)
    }

    /// Starts a containerd that was killed, and waits until it answers.
    pub fn start_containerd(&mut self) -> Result<()> {
        self.containerd =
            Daemon::start("containerd", &mut containerd_command(Path::new(PRIVATE), self.path))?;
        self.containerd.wait_until(answers)
    }

    /// Starts capsuled again and waits until it answers, whether containerd has connected again or not: for what lets
    /// nobody wait, and for what looks at that very moment. Others want [`Self::restart_capsuled`].
    pub fn restart_capsuled_alone(&mut self) -> Result<()> {
        self.capsuled = Some(start_capsuled(&[])?);
        self.wait_for_capsuled()
    }

    /// Starts capsuled again, and waits until it answers and containerd reaches it.
    pub fn restart_capsuled(&mut self) -> Result<()> {
        self.restart_capsuled_alone()?;
        self.wait_for_snapshotter()
    }

    /// Waits until containerd reaches the capsuled that was started last: it takes its time before it connects again.
    ///
    /// containerd asks its snapshotter about the snapshots of a namespace only where it knows of any, so all namespaces
    /// are listed. Where none has a snapshot, the longest time is waited for.
    pub fn wait_for_snapshotter(&self) -> Result<()> {
        let seen = Cell::new(false);
        until("its snapshotter reached by containerd", || {
            let Some(namespaces) = listed(&["namespaces", "ls", "-q"])? else { return Ok(false) };
            for namespace in namespaces.lines() {
                let list = ["-n", namespace, "snapshots", "--snapshotter", "capsule", "ls"];
                let Some(snapshots) = listed(&list)? else { return Ok(false) };
                seen.set(seen.get() || snapshots.lines().count() > 1);
            }
            Ok(true)
        })?;
        if !seen.get() {
            std::thread::sleep(RECONNECT);
        }
        Ok(())
    }

    /// Starts what was killed and not started again: a failed scenario may have left it so.
    pub fn mend(&mut self) -> Result<()> {
        if self.containerd.has_ended()? {
            self.start_containerd()?;
        }
        let gone = self.capsuled.as_mut().map_or(Ok(true), Daemon::has_ended)?;
        if !(self.with_capsuled && gone) {
            return Ok(());
        }
        self.restart_capsuled()
    }

    /// Replaces capsuled by another that takes over, and waits until the first has ended, which means that the
    /// other serves.
    pub fn take_over(&mut self) -> Result<()> {
        let successor = start_capsuled(&["--take-over"])?;
        let mut old = self.capsuled.replace(successor).context("capsuled does not run")?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match old.child.try_wait().context("look at capsuled")? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("the capsuled that was replaced ended: {status}"),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        bail!("capsuled was not replaced after {PATIENCE:?}")
    }

    /// Ends containerd as an operator would.
    pub fn stop(mut self) -> Result<()> {
        for daemon in self.capsuled.iter_mut().chain([&mut self.containerd]) {
            let pid =
                i32::try_from(daemon.child.id()).ok().and_then(Pid::from_raw).context("a process id")?;
            kill_process(pid, Signal::TERM).with_context(|| format!("end {}", daemon.name))?;
            daemon.child.wait().with_context(|| format!("wait for {}", daemon.name))?;
        }
        Ok(())
    }
}

/// Puts capsuled's and containerd's configurations, as they are shipped, in their places; containerd's path. `more` is added to
/// the end of containerd's.
pub(super) fn write_configs(more: &str) -> Result<PathBuf> {
    let version = output_of(Command::new("containerd").arg("--version").env("PATH", path()))?;
    let shipped = if version.contains(" 1.7.") { "containerd-1.7.toml" } else { "containerd-2.toml" };
    let shipped = Path::new(CONFIGS).join(shipped);
    let text = fs::read_to_string(&shipped).with_context(|| format!("read {}", shipped.display()))?;
    // A key of the top level comes before the first table; the version is the first of them.
    let (before, after) =
        text.split_once("\nversion").with_context(|| format!("{}: no version", shipped.display()))?;
    fs::create_dir_all("/etc/containerd").context("create containerd's folder")?;
    let private = PathBuf::from(PRIVATE);
    let slow = if Path::new("/run/systemd/system").exists() { SLOW } else { "" };
    let private_text = format!("{before}\n{WITHOUT_CRI}version{after}\n{more}\n{slow}");
    fs::write(&private, private_text).with_context(|| format!("write {}", private.display()))?;
    let own = Path::new(CONFIGS).join("config.toml");
    fs::copy(&own, "/etc/capsule/config.toml").with_context(|| format!("copy {}", own.display()))?;
    Ok(private)
}

/// On an emulated machine a shim's `delete`, with the runtime and systemd behind it, takes longer than the five seconds after which
/// containerd leaves the rest as it is, for good.
const SLOW: &str = "[timeouts]
  \"io.containerd.timeout.shim.cleanup\" = \"60s\"
  \"io.containerd.timeout.shim.load\" = \"60s\"
";

fn containerd_command(config: &Path, path: &str) -> Command {
    let mut command = Command::new("containerd");
    command.arg("--config").arg(config).env("PATH", path);
    command
}

fn start_capsuled(arguments: &[&str]) -> Result<Daemon> {
    let mut command = Command::new("capsuled");
    command.args(arguments).env("PATH", path()).env("RUST_LOG", "info");
    // Milliseconds between two exports of spans: nobody should wait for five seconds.
    Daemon::start("capsuled", command.env("OTEL_BSP_SCHEDULE_DELAY", "200"))
}

/// What a list of `ctr` says, or nothing where it fails.
fn listed(args: &[&str]) -> Result<Option<String>> {
    let mut ctr = Command::new("ctr");
    let output = ctr.args(args).env("PATH", path()).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let output = output.context("run ctr")?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
}

fn answers() -> bool {
    Command::new("ctr")
        .arg("version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The search path of a node without the build that is tested.
const NODE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The search path of daemons: the build that is tested first.
pub fn path() -> &'static str {
    "/payload/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

/// What a process has in memory, in KiB.
pub fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read its status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    line.split_whitespace().next().context("no number")?.parse().context("a number")
}

/// Where a daemon's output goes.
pub fn log_of(name: &str) -> PathBuf {
    Path::new(LOGS).join(format!("{name}.log"))
}

/// Waits until it is so; an error of `is` is not waited out.
pub fn until(what: &str, is: impl Fn() -> Result<bool>) -> Result<()> {
    within(SETTLED, what, is)
}

/// The same, for what may take so long.
pub fn within(patience: Duration, what: &str, is: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !is()? {
        ensure!(Instant::now() < deadline, "{patience:?} later: not {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Runs a scenario; with the ends of the daemons' logs where it, or one of its cases, fails.
pub fn with_logs(reporter: &mut Reporter, scenario: impl FnOnce(&mut Reporter) -> Result<()>) -> Result<()> {
    let outcome = scenario(reporter);
    if outcome.is_err() || !reporter.all_ok() {
        send_logs(reporter);
    }
    outcome
}

/// Sends the ends of the daemons' logs outside, for whoever looks into a failure.
pub fn send_logs(reporter: &mut Reporter) {
    for name in
        ["capsuled", "capsule-remote", "capsule-csi", "containerd", "dockerd", "kube-apiserver", "kubelet"]
    {
        let Ok(text) = fs::read_to_string(log_of(name)) else { continue };
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(25)..].join("\n");
        reporter.send(&Event::Log { program: name.to_owned(), tail });
    }
}
