//! Containers, as `nerdctl` drives them.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::until;
use crate::images::Image;
use crate::scenario::capsulectl::ps;
use crate::scenario::ctr::{OURS, Output, Stack, run};
use crate::scenario::job::Client;
use crate::scenario::readers::Inside;

/// Runs `nerdctl`.
pub fn nerdctl(args: &[&str]) -> Result<Output> {
    nerdctl_with(args, b"")
}

/// Runs `nerdctl` with `input` on its standard input.
pub fn nerdctl_with(args: &[&str], input: &[u8]) -> Result<Output> {
    run("env", &[&["HOME=/root", "nerdctl"], args].concat(), input)
}

/// Runs `nerdctl`, which must succeed; what it prints.
pub fn done(args: &[&str]) -> Result<String> {
    let output = nerdctl(args)?.success(&format!("nerdctl {}", args.join(" ")))?;
    Ok(output.trim().to_owned())
}

/// Loads the test image and unpacks it with a stack's snapshotter.
pub fn load(stack: Stack) -> Result<String> {
    let archive = Image::Busybox.in_machine();
    let archive = archive.to_str().context("an archive's path is no text")?;
    done(&["--snapshotter", stack.snapshotter, "load", "-i", archive])
}

/// A container of nerdctl's; it is removed when this is dropped.
#[derive(Debug)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
}

impl Container {
    /// `nerdctl run -d` without a network, with `options` before the image.
    pub fn run(stack: Stack, name: &str, options: &[&str], command: &[&str]) -> Result<Self> {
        Self::run_in(stack, name, &[&["--network", "none"], options].concat(), command)
    }

    /// The same, with the network that `options` say, or nerdctl's own.
    pub fn run_in(stack: Stack, name: &str, options: &[&str], command: &[&str]) -> Result<Self> {
        let fixed = ["run", "-d", "--name", name];
        let args = [&fixed[..], &stack.words(), options, &[Image::Busybox.name()], command].concat();
        let id = done(&args)?;
        ensure!(id.len() == 64, "nerdctl run prints {id:?}");
        Ok(Self { name: name.to_owned(), id })
    }

    /// What `nerdctl inspect --format` prints of it.
    pub fn inspect(&self, format: &str) -> Result<String> {
        done(&["inspect", "--format", format, &self.id])
    }

    /// Its first process on the node.
    pub fn pid(&self) -> Result<u32> {
        self.inspect("{{.State.Pid}}")?.parse().context("a process id")
    }

    /// As `nerdctl ps -a` shows it.
    pub fn status(&self) -> Result<String> {
        let list = done(&["ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Names}} {{.Status}}"])?;
        let row = list.lines().find_map(|line| line.strip_prefix(&self.id));
        let status = row.and_then(|row| row.trim().strip_prefix(&self.name)).map(|row| row.trim().to_owned());
        status.with_context(|| format!("{} is not listed: {list}", self.name))
    }

    /// Runs a command in it.
    pub fn exec(&self, command: &[&str]) -> Result<Output> {
        nerdctl(&[&["exec", &self.name], command].concat())
    }

    /// Runs a shell's command in it that must succeed; what it prints.
    pub fn sh(&self, script: &str) -> Result<String> {
        Ok(self.exec(&["/bin/sh", "-c", script])?.success(script)?.trim().to_owned())
    }

    /// All that `nerdctl logs` has of it, once that is as wanted.
    pub fn logs_until(&self, what: &str, is: impl Fn(&str) -> bool) -> Result<String> {
        let logs = || done(&["logs", &self.name]);
        until(&format!("in its log: {what}"), || Ok(is(&logs()?)))
            .with_context(|| format!("its log: {:?}", logs()))?;
        logs()
    }

    /// Kills its first process, and waits until another runs.
    pub fn kill_and_wait(&self) -> Result<()> {
        let before = self.pid()?;
        crate::scenario::reboot::kill(before)?;
        self.runs_again(before)
    }

    /// Waits until another process than this one runs.
    pub fn runs_again(&self, before: u32) -> Result<()> {
        until("started again", || {
            let running = self.inspect("{{.State.Status}} {{.State.Pid}}")?;
            let pid = running.strip_prefix("running ").and_then(|pid| pid.parse().ok());
            Ok(pid.is_some_and(|pid: u32| pid != 0 && pid != before))
        })
    }

    /// Its attachments, as `NAME@VERSION STATE`.
    pub fn has(&self) -> Result<Vec<String>> {
        let of_it = ps()?.into_iter().filter(|seen| seen.container == self.id);
        Ok(of_it.map(|seen| format!("{}@{} {}", seen.capsule, seen.version, seen.state)).collect())
    }

    /// That it has these, as [`Container::has`] shows them.
    pub fn expect(&self, expected: &[&str]) -> Result<()> {
        let found = self.has()?;
        ensure!(found == expected, "{found:?} instead of {expected:?}");
        Ok(())
    }

    /// That it has these, soon.
    pub fn comes_to(&self, expected: &[&str]) -> Result<()> {
        until("as expected", || Ok(self.has()? == expected)).context(format!("{expected:?}"))?;
        self.expect(expected)
    }

    /// A file of its root.
    pub fn read(&self, path: &str) -> Result<String> {
        let path = format!("/proc/{}/root{path}", self.pid()?);
        fs::read_to_string(&path).with_context(|| format!("read {path}"))
    }

    /// Removes it, by force.
    pub fn remove(self) -> Result<()> {
        done(&["rm", "-f", &self.name])?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Client for Container {
    const NAME: &str = "nerdctl";

    fn run(name: &str, options: &[&str], command: &[&str]) -> Result<Self> {
        Self::run(OURS, name, options, command)
    }

    fn annotation(&self, name: &str) -> Result<String> {
        let format = ["--format", "{{json .Spec.annotations}}"];
        let all = done(&[&["inspect", "--mode", "native"], &format[..], &[&self.id]].concat())?;
        let all: serde_json::Value = serde_json::from_str(&all).context("its annotations")?;
        Ok(all[name].as_str().with_context(|| format!("no annotation {name}: {all}"))?.to_owned())
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
        done(&[&["exec", "-d", &self.name], command].concat()).map(drop)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = nerdctl(&["rm", "-f", &self.id]);
    }
}
