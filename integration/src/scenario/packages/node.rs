//! The machine around the package: Debian's own containerd, apt, and what lies on the disk.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::packages;
use crate::scenario::boots::systemctl;
use crate::scenario::ctr::{Output, ctr, run};
use crate::scenario::world::path;
use crate::workspace::output_of;

/// The package.
pub const NAME: &str = "resource-capsules";
/// Its units that are enabled and started.
pub const UNITS: [&str; 2] = ["capsuled.socket", "capsuled.service"];
/// Its units that wait for the administrator.
pub const CHOICES: [&str; 2] = ["capsule-metrics.service", "capsule-remote.service"];
/// Its programs.
pub const PROGRAMS: [&str; 4] = ["capsuled", "capsulectl", "containerd-shim-capsule-v1", "capsule-remote"];
/// What users have made is in there.
pub const DATA: &str = "/var/lib/capsule";
/// Its configuration.
pub const CONFIG: &str = "/etc/capsule/config.toml";

/// Where a package may leave something.
const ROOTS: [&str; 4] = ["/etc", "/usr", "/var/lib/systemd", "/run/capsule"];
/// systemd's own, which come by themselves.
const PASSING: [&str; 2] = ["/var/lib/systemd/timers", "/var/lib/systemd/random-seed"];

/// Starts Debian's containerd as it is shipped, and hides the programs of the payload; what is on the disk then.
pub fn prepare() -> Result<BTreeSet<String>> {
    output_of(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/payload/bin"]))?;
    for program in PROGRAMS {
        ensure!(run("sh", &["-c", &format!("command -v {program}")], b"")?.code != 0, "{program} is there");
    }
    // Not even documentation is left out when it is installed.
    fs::remove_file("/etc/dpkg/dpkg.cfg.d/99mmdebstrap").context("apt's options of the test bed")?;
    // Made by the test bed.
    for folder in [DATA, "/etc/capsule"] {
        fs::remove_dir(folder).with_context(|| format!("remove {folder}"))?;
    }
    systemctl(&["unmask", "containerd.service"])?;
    systemctl(&["start", "containerd.service"])?;
    ctr(&["version"])?.success("ctr version")?;
    fs::create_dir_all("/tmp/docs").context("create /tmp/docs")?;
    for package in packages::in_folder(Path::new(packages::AT))? {
        let at = Path::new("/tmp/docs").join(package.file_name().context("a name")?);
        fs::copy(&package, &at).with_context(|| format!("copy {}", package.display()))?;
    }
    on_disk()
}

/// All files and links of the folders in which packages have theirs.
pub fn on_disk() -> Result<BTreeSet<String>> {
    let folders = ROOTS.into_iter().filter(|folder| Path::new(folder).exists());
    let found = output_of(Command::new("find").args(folders).args(["-xdev", "!", "-type", "d"]))?;
    let passing = |path: &&str| PASSING.iter().any(|start| path.starts_with(start));
    Ok(found.lines().filter(|path| !passing(path)).map(str::to_owned).collect())
}

/// apt's client on the package, or its newer file, whatever it exits with. It may take minutes on emulated processors.
pub fn apt(words: &[&str], variables: &[(&str, &str)]) -> Result<Output> {
    let output = Command::new("apt-get")
        .args(["-y", "-q"])
        .args(words)
        .current_dir("/tmp/docs")
        .env("PATH", path())
        .env("LC_ALL", "C")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .context("start apt-get")?;
    Ok(output.into())
}

/// The file of the newer package, as apt takes it.
pub fn newer() -> Result<String> {
    let all = packages::in_folder(Path::new("/tmp/docs"))?;
    let newest = all.last().and_then(|path| path.file_name()?.to_str()).context("no package")?;
    Ok(format!("./{newest}"))
}

/// What dpkg says of the package: its state, and the last part of its version.
pub fn state() -> Result<(String, String)> {
    let shown = run("dpkg-query", &["-W", "-f", "${db:Status-Abbrev} ${Version}", NAME], b"")?.out;
    let (state, version) = shown.split_once(' ').unwrap_or_default();
    let revision = version.rsplit('-').next().unwrap_or_default();
    Ok((state.trim().to_owned(), revision.trim().to_owned()))
}

/// The process that systemd has as capsuled.
pub fn capsuled() -> Result<String> {
    process("capsuled")
}

/// The process of the program's unit, which must be of the program that is on the disk now.
pub fn process(name: &str) -> Result<String> {
    let unit = format!("{name}.service");
    let pid = systemctl(&["show", "--property=MainPID", "--value", &unit])?.trim().to_owned();
    let link = format!("/proc/{pid}/exe");
    let program = fs::read_link(&link).with_context(|| link.clone())?;
    ensure!(program == Path::new("/usr/bin").join(name), "process {pid} is of {}", program.display());
    Ok(pid)
}
