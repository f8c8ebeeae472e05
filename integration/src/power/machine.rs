//! The VM that works until its power is cut.

use std::fmt;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::initramfs;
use super::journal::{Mark, Marks};
use super::nbd::{self, Recorder};
use super::record::Record;
use crate::rootfs::kernel;
use crate::vm;
use crate::workspace::{Workspace, output_of};

/// Smaller, and `mke2fs` and `mkfs.xfs` choose other parameters than on a real disk, or refuse.
const DISK_SIZE: u64 = 768 << 20;
/// A boot under emulation on a busy machine, beyond the work itself.
const BOOT: Duration = Duration::from_secs(120);

/// A file system that capsuled's root may be on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Filesystem {
    /// With Debian's defaults: data ordered.
    Ext4,
    /// With its defaults.
    Xfs,
}

impl Filesystem {
    /// As the kernel names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// Makes an empty one in a new file.
    fn make(self, image: &Path) -> Result<()> {
        let file = File::create(image).with_context(|| format!("create {}", image.display()))?;
        file.set_len(DISK_SIZE).with_context(|| format!("grow {}", image.display()))?;
        let mut command = match self {
            Self::Ext4 => {
                let mut command = Command::new("mke2fs");
                // What is left to the kernel to zero would be zeroed in the record.
                command.args(["-q", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"]);
                command
            }
            Self::Xfs => {
                let mut command = Command::new("mkfs.xfs");
                command.args(["-q", "-K"]);
                command
            }
        };
        // On some systems sbin is not on root's path.
        output_of(command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").arg(image)).map(drop)
    }
}

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is done in the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
pub enum Work {
    /// Snapshots are made, committed and removed.
    Snapshots,
    /// Capsules are published, attached, moved, written to and taken away, with containerd and containers.
    Attachments,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Snapshots => "snapshots",
            Self::Attachments => "attachments",
        })
    }
}

/// A system call that capsuled is made to leave out while it believes that it was made: what the campaign must notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Omission {
    /// By which Commit makes a snapshot's files durable.
    Syncfs,
    /// By which the store makes its transactions durable.
    Fdatasync,
    /// By which what is written to attachments gets and loses names.
    Fsync,
}

impl Omission {
    /// The system call.
    pub fn name(self) -> &'static str {
        match self {
            Self::Syncfs => "syncfs",
            Self::Fdatasync => "fdatasync",
            Self::Fsync => "fsync",
        }
    }
}

/// What is done in the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// What the disk holds.
    pub filesystem: Filesystem,
    /// What the clients do.
    pub work: Work,
    /// Of the clients' choices.
    pub seed: u64,
    /// Calls of all clients, after which it is enough.
    pub calls: usize,
    /// After so many seconds it is enough too.
    pub seconds: u64,
    /// What capsuled is kept from doing.
    pub omission: Option<Omission>,
}

const PARAMETER: &str = "capsule.power=";

impl Load {
    fn to_cmdline(self) -> String {
        let omission = self.omission.map_or("", Omission::name);
        let Self { filesystem, work, seed, calls, seconds, .. } = self;
        format!("{PARAMETER}{filesystem},{work},{seed},{calls},{seconds},{omission}")
    }

    /// As it stands on the VM's kernel command line.
    pub fn from_cmdline(cmdline: &str) -> Result<Self> {
        let given = cmdline.split_ascii_whitespace().find_map(|word| word.strip_prefix(PARAMETER));
        let words: Vec<&str> = given.context("the kernel's command line names no load")?.split(',').collect();
        let [filesystem, work, seed, calls, seconds, omission] = words.as_slice() else {
            bail!("a load has six parts, not {words:?}");
        };
        let work = match *work {
            "snapshots" => Work::Snapshots,
            "attachments" => Work::Attachments,
            other => bail!("nothing called {other:?} can be done"),
        };
        let filesystem = match *filesystem {
            "ext4" => Filesystem::Ext4,
            "xfs" => Filesystem::Xfs,
            other => bail!("no file system {other:?}"),
        };
        let omission = match *omission {
            "" => None,
            "syncfs" => Some(Omission::Syncfs),
            "fdatasync" => Some(Omission::Fdatasync),
            "fsync" => Some(Omission::Fsync),
            other => bail!("nothing called {other:?} can be left out"),
        };
        let (seed, calls, seconds) = (seed.parse()?, calls.parse()?, seconds.parse()?);
        Ok(Self { filesystem, work, seed, calls, seconds, omission })
    }
}

/// Boots the VM, lets it work, and cuts its power; what its disk was told.
pub fn record(workspace: &Workspace, rootfs: &Path, folder: &Path, load: Load) -> Result<Record> {
    let (image, initrd) = (folder.join("empty.img"), folder.join("initrd"));
    load.filesystem.make(&image)?;
    let recorder = Arc::new(Recorder::new(Record::of_image(&image)?));
    fs::remove_file(&image).with_context(|| format!("remove {}", image.display()))?;
    nbd::serve(&recorder, &socket_of(folder))?;
    initramfs::write(workspace, rootfs, &initrd, load.work)?;
    let console = folder.join("console.log");
    let mut qemu = start(workspace, rootfs, folder, &console, load)?;
    let ended = wait_for_end(&recorder, &mut qemu, BOOT + Duration::from_secs(load.seconds));
    qemu.kill().context("cut the power")?;
    qemu.wait().context("wait for qemu")?;
    ended.with_context(|| {
        format!("the VM's console ends with:\n{}", vm::tail_of(&fs::read(&console).unwrap_or_default()))
    })?;
    Ok(recorder.take())
}

/// An abstract socket: paths of sockets are short, and the workspace's may not be.
fn socket_of(folder: &Path) -> String {
    format!("capsule-{}", folder.file_name().unwrap_or_default().display())
}

fn start(workspace: &Workspace, rootfs: &Path, folder: &Path, console: &Path, load: Load) -> Result<Child> {
    let root_disk = vm::disk_of_rootfs(rootfs)?;
    let (kernel, _) = kernel(rootfs)?;
    let mut command = Command::new(workspace.testbed());
    command.args(["leash", "qemu-system-x86_64"]).args(vm::accelerator(workspace, rootfs)?);
    command.args([
        "-m",
        "1024",
        "-smp",
        "2",
        "-nodefaults",
        "-display",
        "none",
        "-monitor",
        "none",
        "-no-reboot",
    ]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(folder.join("initrd"));
    command.arg("-append").arg(format!("console=ttyS0 quiet panic=-1 {}", load.to_cmdline()));
    command.arg("-serial").arg(format!("file:{}", console.display()));
    // In the order of the devices' names inside.
    command.arg("-drive");
    command.arg(format!("file={},if=none,id=root,format=raw,cache=unsafe,snapshot=on", root_disk.display()));
    command.args(["-device", "virtio-blk-pci,drive=root"]);
    for export in [nbd::DISK, nbd::MARKS] {
        // With a cache that the guest knows of and flushes.
        let drive = format!(
            "file.driver=nbd,file.server.type=unix,file.server.path={},file.server.abstract=on,\
             file.export={export},if=none,id={export},format=raw,cache=writeback",
            socket_of(folder)
        );
        // What the server does not offer, the guest is not to ask for either.
        let device = format!("virtio-blk-pci,drive={export},discard=off,write-zeroes=off");
        command.arg("-drive").arg(drive).arg("-device").arg(device);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("start qemu")
}

fn wait_for_end(recorder: &Recorder, qemu: &mut Child, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    let (mut seen, mut marks) = (0, Marks::default());
    loop {
        let new = recorder.look(seen, |events| {
            seen += events.len();
            let new: Result<Vec<_>> = events.iter().map(|event| marks.take(event)).collect();
            new.map(|marks| marks.concat())
        })?;
        for mark in new {
            match mark {
                Mark::End { .. } => return Ok(()),
                Mark::Failed { reason } => bail!("the workload failed: {reason}"),
                Mark::Begin { .. } | Mark::Done { .. } => {}
            }
        }
        if let Some(status) = qemu.try_wait().context("look at qemu")? {
            bail!("the VM ended by itself: {status}");
        }
        if Instant::now() > deadline {
            bail!("the VM's work was not done after {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
