//! dockerd, and containers as `docker` drives them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::until;
use crate::images::Image;
use crate::scenario::capsulectl::ps;
use crate::scenario::ctr::{OURS, Output, ctr, run};
use crate::scenario::job::Client;
use crate::scenario::readers::Inside;
use crate::scenario::reboot::kill;
use crate::scenario::world::{CONTAINERD_SOCKET, Daemon, path};

/// containerd's namespace of Docker's containers.
pub const NAMESPACE: &str = "moby";
const CONFIG: &str = "/etc/docker/daemon.json";
/// The test image as Docker saves it.
pub const SAVED: &str = "/var/lib/containerd/saved.tar";

/// How a dockerd is set up.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// One of Docker's storage drivers, or a snapshotter of containerd's.
    pub driver: &'static str,
    /// With Docker's containerd image store.
    pub in_containerd: bool,
    /// Containers outlive dockerd.
    pub live_restore: bool,
}

impl Setup {
    /// On our snapshotter.
    pub const OURS: Self = Self { driver: "capsule", in_containerd: true, live_restore: false };

    /// Starts dockerd, and gives it the test image.
    pub fn start(self) -> Result<Daemon> {
        let dockerd = self.start_again()?;
        let archive = Image::Busybox.in_machine();
        // Without containerd, Docker loads no archive but of its own kind.
        let archive = if self.in_containerd { archive.as_path() } else { Path::new(SAVED) };
        done(&["load", "-i", archive.to_str().context("an archive's path is no text")?])?;
        Ok(dockerd)
    }

    /// Starts dockerd, with the images that it has.
    pub fn start_again(self) -> Result<Daemon> {
        fs::create_dir_all("/etc/docker").context("create Docker's folder")?;
        let config = json!({
            "containerd": CONTAINERD_SOCKET,
            "storage-driver": self.driver,
            "features": {"containerd-snapshotter": self.in_containerd},
            "live-restore": self.live_restore,
            "bridge": "none",
            "iptables": false,
            "ip6tables": false,
            "ip-forward": false,
        });
        fs::write(CONFIG, config.to_string()).with_context(|| format!("write {CONFIG}"))?;
        let mut dockerd =
            Daemon::start("dockerd", Command::new("dockerd").env("PATH", path()).env("HOME", "/root"))?;
        dockerd.wait_until(|| {
            let mut info = Command::new("docker");
            let info = info.args(["info"]).env("PATH", path()).env("HOME", "/root").stdin(Stdio::null());
            info.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        })?;
        Ok(dockerd)
    }
}

/// Runs `docker`.
pub fn docker(args: &[&str]) -> Result<Output> {
    docker_with(args, b"")
}

/// Runs `docker` with `input` on its standard input.
pub fn docker_with(args: &[&str], input: &[u8]) -> Result<Output> {
    run("env", &[&["HOME=/root", "docker"], args].concat(), input)
}

/// Runs `docker`, which must succeed; what it prints.
pub fn done(args: &[&str]) -> Result<String> {
    let output = docker(args)?.success(&format!("docker {}", args.join(" ")))?;
    Ok(output.trim().to_owned())
}

/// A container of Docker's; it is removed when this is dropped.
#[derive(Debug)]
pub struct Container {
    /// The name that it was given at first.
    pub name: String,
    /// Its id.
    pub id: String,
}

impl Container {
    /// `docker run -d` on a runtime, without a network, with `options` before the image.
    pub fn run(runtime: &str, name: &str, options: &[&str], command: &[&str]) -> Result<Self> {
        let fixed = ["run", "-d", "--name", name, "--network", "none", "--runtime", runtime];
        let id = done(&[&fixed[..], options, &[Image::Busybox.name()], command].concat())?;
        ensure!(id.len() == 64, "docker run prints {id:?}");
        Ok(Self { name: name.to_owned(), id })
    }

    /// What `docker inspect --format` prints of it.
    pub fn inspect(&self, format: &str) -> Result<String> {
        done(&["inspect", "--format", format, &self.id])
    }

    /// Its first process on the node; 0 where none runs.
    pub fn pid(&self) -> Result<u32> {
        self.inspect("{{.State.Pid}}")?.parse().context("a process id")
    }

    /// As `docker ps -a` shows it.
    pub fn status(&self) -> Result<String> {
        let filter = format!("id={}", self.id);
        done(&["ps", "-a", "--filter", &filter, "--format", "{{.Names}} {{.Status}}"])
    }

    /// Runs a command in it.
    pub fn exec(&self, command: &[&str]) -> Result<Output> {
        docker(&[&["exec", &self.id], command].concat())
    }

    /// Runs a shell's command in it that must succeed; what it prints.
    pub fn sh(&self, script: &str) -> Result<String> {
        Ok(self.exec(&["/bin/sh", "-c", script])?.success(script)?.trim().to_owned())
    }

    /// All that `docker logs` has of its standard output, once that is as wanted.
    pub fn logs_until(&self, what: &str, is: impl Fn(&str) -> bool) -> Result<String> {
        let logs = || done(&["logs", &self.id]);
        until(&format!("in its log: {what}"), || Ok(is(&logs()?)))
            .with_context(|| format!("its log: {:?}", logs()))?;
        logs()
    }

    /// Kills its first process, and waits until Docker has started another.
    pub fn kill_and_wait(&self) -> Result<()> {
        let before = self.pid()?;
        kill(before)?;
        self.runs_again(before)
    }

    /// Waits until another process than this one runs.
    pub fn runs_again(&self, before: u32) -> Result<()> {
        until("started again by Docker", || {
            let running = self.inspect("{{.State.Running}} {{.State.Pid}}")?;
            let pid = running.strip_prefix("true ").and_then(|pid| pid.parse().ok());
            Ok(pid.is_some_and(|pid: u32| pid != 0 && pid != before))
        })
    }

    /// Its attachments, as `NAME@VERSION STATE`.
    pub fn has(&self) -> Result<Vec<String>> {
        let of_it = ps()?.into_iter().filter(|seen| seen.container == self.id);
        Ok(of_it.map(|seen| format!("{}@{} {}", seen.capsule, seen.version, seen.state)).collect())
    }

    /// That it has these.
    pub fn expect(&self, expected: &[&str]) -> Result<()> {
        let found = self.has()?;
        ensure!(found == expected, "{found:?} instead of {expected:?}");
        Ok(())
    }

    /// That it has these, and they wait for its next start, soon.
    pub fn waits(&self, expected: &[&str]) -> Result<()> {
        until("waiting", || Ok(self.has()?.iter().all(|one| one.ends_with(" waiting"))))?;
        self.expect(expected)
    }

    /// That it is there with Docker, and not with containerd.
    pub fn is_away(&self) -> Result<()> {
        let list = ctr(&["-n", NAMESPACE, "containers", "ls", "-q"])?.success("ctr containers ls")?;
        ensure!(!list.contains(&self.id), "containerd has it: {list}");
        Ok(())
    }

    /// Removes it, by force.
    pub fn remove(self) -> Result<()> {
        done(&["rm", "-f", &self.id])?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Client for Container {
    const NAME: &str = "docker";

    fn run(name: &str, options: &[&str], command: &[&str]) -> Result<Self> {
        Self::run(OURS.runtime, name, options, command)
    }

    fn annotation(&self, name: &str) -> Result<String> {
        self.inspect(&format!("{{{{index .HostConfig.Annotations \"{name}\"}}}}"))
    }

    fn exec(&self, command: &[&str]) -> Result<Output> {
        self.exec(command)
    }

    fn restart(&self) -> Result<()> {
        done(&["restart", "-t", "0", &self.name]).map(drop)
    }

    fn expect(&self, expected: &[&str]) -> Result<()> {
        self.expect(expected)
    }

    fn remove(self) -> Result<()> {
        self.remove()
    }
}

impl Inside for Container {
    fn spawn(&self, _: &str, command: &[&str]) -> Result<()> {
        done(&[&["exec", "-d", &self.id], command].concat()).map(drop)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = docker(&["rm", "-f", &self.id]);
    }
}
