//! An OCI runtime that fails as it is told: a script in front of the real one.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use containerd_shim::api::Options;

use super::asked::Asked;
use crate::scenario::ctr::{REFERENCE, Stack};

/// The first word that is a subcommand is the step; a plan for it is used up by the first that follows it.
const SCRIPT: &str = r#"#!/bin/sh
here=${0%/*}
step=
for word; do
	case $word in
	create | start | exec | kill | pause | resume | update | delete | ps) step=$word; break ;;
	esac
done
echo "$PATH $(stat -L -c %u:%g /proc/$$/fd/1) $*" >> "$here/log"
mv "$here/$step.plan" "$here/$step.$$" 2> /dev/null || exec @RUNTIME@ "$@"
read -r how pause < "$here/$step.$$"
rm "$here/$step.$$"
case $how in
die) kill -9 $$ ;;
do-and-die) @RUNTIME@ "$@"; kill -9 $$ ;;
hang) echo $$ > "$here/hung.new"; mv "$here/hung.new" "$here/hung"; exec sleep 100000 ;;
slow) echo $$ > "$here/hung.new"; mv "$here/hung.new" "$here/hung"; sleep "$pause"; exec @RUNTIME@ "$@" ;;
do-and-hang) @RUNTIME@ "$@"; echo $$ > "$here/hung.new"; mv "$here/hung.new" "$here/hung"; exec sleep 100000 ;;
# The real runtime's command alone is killed, somewhere on its way.
cut) @RUNTIME@ "$@" & sleep "$pause"; kill -9 $!; wait $!; exit 137 ;;
esac
"#;
const PATIENCE: Duration = Duration::from_secs(30);

/// What a step does in place of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It is killed before it does anything.
    Die,
    /// It is killed when all is done.
    DoAndDie,
    /// It does nothing and never ends.
    Hang,
    /// It does its work so many microseconds later.
    Slow(u32),
    /// It does its work and never ends.
    DoAndHang,
    /// It is killed so many microseconds after it has begun.
    Cut(u32),
}

/// A runtime of its own folder.
#[derive(Debug)]
pub struct Faulty {
    folder: PathBuf,
}

/// How it was called.
#[derive(Debug)]
pub struct Call {
    /// The directories in which it looks for programs.
    pub path: Vec<String>,
    /// `UID:GID` of its standard output.
    pub owner: String,
    /// Its arguments.
    pub args: Vec<String>,
}

impl Faulty {
    /// Puts it in front of `runtime` (`runc`, `crun`).
    pub fn new(name: &str, runtime: &str) -> Result<Self> {
        let folder = Path::new("/var/lib/faulty").join(name);
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let this = Self { folder };
        let program = this.folder.join("runtime");
        let real = ["/usr/sbin", "/usr/bin"].map(|bin| Path::new(bin).join(runtime));
        let real = real.iter().find(|path| path.exists()).with_context(|| format!("no {runtime}"))?;
        fs::write(&program, SCRIPT.replace("@RUNTIME@", &real.display().to_string()))
            .and_then(|()| fs::set_permissions(&program, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("make {}", program.display()))?;
        Ok(this)
    }

    /// Its program.
    pub fn program(&self) -> String {
        self.folder.join("runtime").display().to_string()
    }

    /// For `ctr run`, which gives options of containerd's own runtime to no other.
    pub fn options(&self, stack: Stack) -> Result<[String; 2]> {
        let program = self.program();
        if stack.runtime == REFERENCE.runtime {
            return Ok(["--runc-binary".to_owned(), program]);
        }
        let file = self.folder.join("options.toml");
        fs::write(&file, format!("BinaryName = {program:?}\n")).context("write the options")?;
        Ok(["--runtime-config-path".to_owned(), file.display().to_string()])
    }

    /// The same for a container in a scope of systemd, `capsule-NAME.scope`.
    pub fn options_in_scope(&self, stack: Stack, name: &str) -> Result<Vec<String>> {
        let mut options = self.options(stack)?.to_vec();
        if stack.runtime == REFERENCE.runtime {
            options.push("--runc-systemd-cgroup".to_owned());
        } else {
            let mut text = fs::read_to_string(&options[1]).context("read the options")?;
            text += "SystemdCgroup = true\n";
            fs::write(&options[1], text).context("write the options")?;
        }
        options.extend(["--cgroup".to_owned(), format!("system.slice:capsule:{name}")]);
        Ok(options)
    }

    /// For a task that is made with runc's options.
    pub fn asked(&self) -> Result<Asked> {
        Asked::with(&Options { binary_name: self.program(), ..Default::default() })
    }

    /// The next `step` does this.
    pub fn plan(&self, step: &str, how: How) -> Result<()> {
        let how = match how {
            How::Die => "die".to_owned(),
            How::DoAndDie => "do-and-die".to_owned(),
            How::Hang => "hang".to_owned(),
            How::DoAndHang => "do-and-hang".to_owned(),
            How::Slow(after) => format!("slow {}", seconds(after)),
            How::Cut(after) => format!("cut {}", seconds(after)),
        };
        fs::write(self.folder.join(format!("{step}.plan")), how).with_context(|| format!("plan {step}"))
    }

    /// Waits until a step hangs, or begins to be slow; its process.
    pub fn hung(&self) -> Result<u32> {
        let file = self.folder.join("hung");
        let deadline = Instant::now() + PATIENCE;
        while !file.exists() {
            ensure!(
                Instant::now() < deadline,
                "the runtime does not hang after {PATIENCE:?}: {:?}",
                self.calls()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        let pid = fs::read_to_string(&file).context("read the hung process")?;
        fs::remove_file(&file).context("forget the hung process")?;
        pid.trim().parse().with_context(|| format!("a process: {pid:?}"))
    }

    /// The calls so far. No argument that a shim makes has blanks in it.
    pub fn calls(&self) -> Vec<Call> {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let call = |line: &str| {
            let mut words = line.split(' ').map(str::to_owned);
            let path = words.next().unwrap_or_default().split(':').map(str::to_owned).collect();
            Call { path, owner: words.next().unwrap_or_default(), args: words.collect() }
        };
        log.lines().map(call).collect()
    }

    /// The first call of `step`.
    pub fn call(&self, step: &str) -> Result<Call> {
        let found = self.calls().into_iter().find(|call| call.args.iter().any(|arg| arg == step));
        found.with_context(|| format!("no {step} among {:?}", self.calls()))
    }
}

fn seconds(micros: u32) -> String {
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}
