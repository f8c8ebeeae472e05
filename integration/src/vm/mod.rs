//! A machine of its own kernel: Debian's, with systemd and unified cgroups, in qemu.
//!
//! The root file system is a disk image made once from the tree and never written (qemu keeps a run's changes in a
//! temporary file); the payload is a second disk, and what others' programs a scenario needs a third. Events come through a virtio port, the console goes to a log. qemu
//! dies with the harness.

mod disk;
mod kvm;

pub(crate) use disk::of_rootfs as disk_of_rootfs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::event::{Event, Report};
use crate::machine::{Job, listen};
use crate::payload::Payload;
use crate::rootfs::kernel;
use crate::scenario::boots;
use crate::workspace::{Workspace, output_of, remove_tree};

/// The port inside that leads to the harness.
pub const RESULTS: &str = "/dev/virtio-ports/capsule.results";

/// What a VM has, as folders: they become its disks, in this order.
pub struct Disks {
    /// Its root.
    pub rootfs: PathBuf,
    /// What is tested.
    pub payload: Payload,
    /// Programs of others, where the scenario needs some.
    pub peers: Option<PathBuf>,
}

/// The third disk, and where it is mounted.
const PEERS: (&str, &str) = ("/dev/vdc", "/peers");

/// Mounts what others' programs the VM was given. The payload's disk is mounted by the unit.
///
/// # Errors
/// `mount`'s.
pub fn mount_peers() -> Result<()> {
    let (disk, at) = PEERS;
    if !Path::new(disk).exists() {
        return Ok(());
    }
    fs::create_dir_all(at).with_context(|| format!("create {at}"))?;
    output_of(Command::new("mount").args(["-o", "ro", disk, at])).map(drop)
}

/// The program whose log the kernel's messages are.
const CONSOLE: &str = "console";
/// What the kernel says at its end.
const PANIC: &str = "Kernel panic - not syncing: Fatal exception";

/// Runs a scenario in a VM; see [`crate::machine::Machine::run`].
///
/// A kernel on emulated processors now and then panics: where one of them patches a jump (a static key), another may still
/// execute the breakpoint that was there for a moment, of which the kernel then knows nothing (qemu 7.2 with
/// `-accel tcg,thread=multi`). That says nothing of the scenario, which is run again, once, if no step of it had failed.
pub fn run(workspace: &Workspace, disks: &Disks, job: &Job, mut watch: impl FnMut(&Event)) -> Result<Report> {
    let first = run_once(workspace, disks, job, &mut watch)?;
    if !has_panicked(&first) || kvm::works(workspace, &disks.rootfs)? {
        return Ok(first);
    }
    watch(&Event::Say { text: "the emulated kernel has panicked: once more, from the beginning".to_owned() });
    run_once(workspace, disks, job, &mut watch)
}

/// Whether only the kernel's end has ended it.
fn has_panicked(report: &Report) -> bool {
    let failed = |event: &Event| matches!(event, Event::Step { ok: false, .. } | Event::Done { .. });
    let panicked = |event: &Event| matches!(event, Event::Log { program, tail } if program == CONSOLE && tail.contains(PANIC));
    report.events.iter().any(panicked) && !report.events.iter().any(failed)
}

fn run_once(
    workspace: &Workspace,
    Disks { rootfs, payload, peers }: &Disks,
    job: &Job,
    watch: impl FnMut(&Event),
) -> Result<Report> {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let id = format!("vm-{}-{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
    let runs = workspace.target("runs")?;
    sweep(&runs)?;
    let folder = runs.join(id);
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let root_disk = disk::of_rootfs(rootfs)?;
    let payload_disk = disk::of_folder(&payload.folder, &folder.join("payload.ext4"))?;
    let mut more = vec![payload_disk];
    if let Some(peers) = peers {
        more.push(disk::of_folder(peers, &folder.join("peers.ext4"))?);
    }
    let console = folder.join("console.log");
    let mut qemu = Command::new(workspace.testbed())
        .args(["leash", "qemu-system-x86_64"])
        .args(accelerator(workspace, rootfs)?)
        .args(["-m", "4096", "-smp", "2", "-nodefaults", "-display", "none", "-monitor", "none"])
        .args(if boots::SCENARIOS.contains(&job.scenario.as_str()) { None } else { Some("-no-reboot") })
        .args(boot(rootfs, &job.scenario)?)
        .arg("-drive")
        .arg(format!("file={},if=virtio,format=raw,cache=unsafe,snapshot=on", root_disk.display()))
        .args(more.iter().flat_map(|disk| {
            let drive = format!("file={},if=virtio,format=raw,readonly=on", disk.display());
            ["-drive".to_owned(), drive]
        }))
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        // A chardev `stdio` counts as unplugged when its input ends, and the guest's writes block; a file never does.
        .args(["-device", "virtio-serial-pci", "-chardev", "file,id=results,path=/dev/stdout"])
        .args(["-device", "virtserialport,chardev=results,name=capsule.results"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start qemu")?;
    let mut report = listen(&mut qemu, job.silence, watch)?;
    if !matches!(report.events.last(), Some(Event::Done { ok: true })) {
        let tail = tail_of(&fs::read(&console).unwrap_or_default());
        let at = report.events.len().saturating_sub(1);
        report.events.insert(at, Event::Log { program: CONSOLE.to_owned(), tail });
    }
    remove_tree(&folder)?;
    Ok(report)
}

/// Removes the folders of runs whose harness is gone. (Nothing else is left of a VM: qemu dies with its harness.)
pub(crate) fn sweep(runs: &Path) -> Result<()> {
    for entry in
        fs::read_dir(runs).with_context(|| format!("read {}", runs.display()))?.filter_map(Result::ok)
    {
        let name = entry.file_name();
        let harness = name.to_str().and_then(|name| name.strip_prefix("vm-")?.split('-').next());
        if harness.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// Becomes `program`, killed when the process that called this is gone. Returns only if something failed.
pub fn leash(program: &str, args: &[String]) -> Result<()> {
    use std::os::unix::process::CommandExt as _;
    set_parent_process_death_signal(Some(Signal::KILL)).context("tie to the parent's life")?;
    Err(Command::new(program).args(args).exec()).with_context(|| format!("start {program}"))
}

pub(crate) fn accelerator(workspace: &Workspace, rootfs: &Path) -> Result<[&'static str; 4]> {
    Ok(if kvm::works(workspace, rootfs)? {
        ["-accel", "kvm", "-cpu", "host"]
    } else {
        ["-accel", "tcg,thread=multi", "-cpu", "max"]
    })
}

fn boot(rootfs: &Path, scenario: &str) -> Result<Vec<std::ffi::OsString>> {
    let (kernel, initrd) = kernel(rootfs)?;
    // An emulated kernel now and then panics in its first seconds, before a scenario has begun: it then boots again, or ends.
    let append = format!(
        "root=/dev/vda rw console=ttyS0 quiet panic=5 TERM=dumb systemd.firstboot=off systemd.show_status=0 \
         systemd.unit=capsule-testbed.service capsule.scenario={scenario}"
    );
    Ok(vec![
        "-kernel".into(),
        kernel.into(),
        "-initrd".into(),
        initrd.into(),
        "-append".into(),
        append.into(),
    ])
}

/// The scenario named on the kernel's command line.
pub fn scenario_of(cmdline: &str) -> Option<&str> {
    cmdline.split_ascii_whitespace().find_map(|word| word.strip_prefix("capsule.scenario="))
}

pub(crate) fn tail_of(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_panic_of_a_kernel_that_met_no_failure_is_run_again() {
        let log =
            |program: &str, tail: &str| Event::Log { program: program.to_owned(), tail: tail.to_owned() };
        let step = |ok| Event::Step { name: String::new(), ok, detail: String::new(), took_us: 1 };
        let panic = "[   66.4] Kernel panic - not syncing: Fatal exception in interrupt\n[   66.5] Kernel Offset: 0x1";
        for (events, again) in [
            (vec![log(CONSOLE, panic)], true),
            (vec![step(true), log(CONSOLE, panic)], true),
            (vec![step(false), log(CONSOLE, panic)], false),
            (vec![log(CONSOLE, panic), Event::Done { ok: true }], false),
            (vec![log("containerd", panic)], false),
            (vec![log(CONSOLE, "Kernel panic - not syncing: Attempted to kill init!")], false),
            (vec![step(true)], false),
        ] {
            assert_eq!(has_panicked(&Report { events: events.clone() }), again, "{events:?}");
        }
    }
}
