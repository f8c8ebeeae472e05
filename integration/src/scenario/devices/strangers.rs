//! Programs of others in a container's control group, there before an attach or put there afterwards, and what is told of them.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use overlayfs_utils::{DeviceCgroup, DeviceProgram, Instruction};

use super::{DENIED, SLEEP, denied, open, opens, told};
use crate::scenario::capsulectl::{done, refused};
use crate::scenario::ctr::{Container, OURS};
use crate::scenario::world::{World, until};

const ATTACH: [&str; 4] = ["attach", "stranger", "--device", "example.com/gpu=0"];
const DETACH: [&str; 4] = ["detach", "stranger", "--device", "example.com/gpu=0"];
const CONFIG: &str = "/etc/capsule/config.toml";

/// Denies `/dev/fuse` and `/dev/zero`, and nothing else.
fn stranger() -> Result<DeviceProgram> {
    let load = |register, offset| Instruction::new(0x61, register, 1, offset, 0);
    let unless = |register, number, jump| Instruction::new(0x55, register, 0, jump, number);
    let (set, exit) = (|number| Instruction::new(0xb7, 0, 0, 0, number), Instruction::new(0x95, 0, 0, 0, 0));
    let program = [
        load(3, 4),
        load(4, 8),
        unless(3, 10, 3),
        unless(4, 229, 2),
        set(0),
        exit,
        unless(3, 1, 3),
        unless(4, 5, 2),
        set(0),
        exit,
        set(1),
        exit,
    ];
    DeviceProgram::load("stranger", &program).context("load a program")
}

fn cgroup(container: &Container) -> Result<DeviceCgroup> {
    let text =
        fs::read_to_string(format!("/proc/{}/cgroup", container.pid()?)).context("its control group")?;
    let path =
        text.lines().find_map(|line| line.strip_prefix("0::/")).context("no control group of version 2")?;
    DeviceCgroup::open(&PathBuf::from("/sys/fs/cgroup").join(path)).context("open the control group")
}

fn start() -> Result<Container> {
    let container = OURS.start("stranger", &[], &SLEEP)?;
    container.sh("own", "mknod /dev/own c 10 229")?;
    Ok(container)
}

/// There first: kept behind the device, and told once.
pub fn kept() -> Result<String> {
    let container = start()?;
    let (cgroup, program) = (cgroup(&container)?, stranger()?);
    cgroup.attach(&program).context("attach it")?;
    denied(&container, "zero", "<", "/dev/zero", DENIED)?;
    done(&ATTACH)?;
    opens(&container, "attached", "<>", "/dev/own")?;
    denied(&container, "zero-again", "<", "/dev/zero", DENIED)?;
    until("told of the stranger", || Ok(!told("foreign-program", "stranger")?.is_empty()))?;
    std::thread::sleep(std::time::Duration::from_secs(6));
    let lines = told("foreign-program", "stranger")?;
    ensure!(
        lines.len() == 1 && lines[0].contains("stranger") && lines[0].contains("example.com/gpu=0"),
        "{lines:?}"
    );
    done(&DETACH)?;
    denied(&container, "after", "<>", "/dev/own", DENIED)?;
    let tag = program.info().context("its tag")?.tag;
    let tags: Vec<_> = cgroup
        .attached()?
        .programs
        .into_iter()
        .map(|id| Ok(DeviceProgram::open(id)?.info()?.tag))
        .collect::<Result<_>>()?;
    ensure!(tags.contains(&tag), "the stranger is not as it was: {tags:?} without {tag}");
    container.remove()?;
    Ok(lines[0].clone())
}

/// Put there afterwards: the device is back within seconds, without anybody asking, and both are told.
pub fn repaired() -> Result<String> {
    let container = start()?;
    let before = told("repaired", "stranger")?.len();
    done(&ATTACH)?;
    cgroup(&container)?.attach(&stranger()?).context("attach it")?;
    let began = std::time::Instant::now();
    let count = std::cell::Cell::new(0);
    until("the device is back", || {
        count.set(count.get() + 1);
        Ok(open(&container, &format!("back-{}", count.get()), "<>", "/dev/own")?.is_ok())
    })?;
    let took = began.elapsed();
    denied(&container, "zero", "<", "/dev/zero", DENIED)?;
    until("told of the repair", || Ok(told("repaired", "stranger")?.len() == before + 1))?;
    let line = told("repaired", "stranger")?.pop().context("no event")?;
    ensure!(line.contains("example.com/gpu=0"), "{line}");
    done(&DETACH)?;
    container.remove()?;
    Ok(format!("after {:.1} s: {line}", took.as_secs_f64()))
}

/// With `refuse_foreign_programs` they are left alone, whichever was first.
pub fn refusing(world: &mut World) -> Result<String> {
    let shipped = fs::read_to_string(CONFIG).context("the configuration")?;
    let strict = shipped.replace("refuse_foreign_programs = false", "refuse_foreign_programs = true");
    ensure!(strict != shipped, "the configuration does not say it");
    fs::write(CONFIG, strict).context("the configuration")?;
    world.kill_capsuled()?;
    world.restart_capsuled()?;
    let done_so = refused_both_ways();
    fs::write(CONFIG, shipped).context("the configuration")?;
    world.kill_capsuled()?;
    world.restart_capsuled()?;
    done_so
}

fn refused_both_ways() -> Result<String> {
    let container = start()?;
    let (cgroup, program) = (cgroup(&container)?, stranger()?);
    cgroup.attach(&program).context("attach it")?;
    let before = cgroup.attached()?.programs;
    let line = refused(&ATTACH, &["c 10:229", "stranger"])?;
    ensure!(cgroup.attached()?.programs == before, "the programs are others");
    cgroup.detach(&program).context("detach it")?;
    done(&ATTACH)?;
    opens(&container, "attached", "<>", "/dev/own")?;
    cgroup.attach(&program).context("attach it")?;
    std::thread::sleep(std::time::Duration::from_secs(8));
    denied(&container, "taken", "<>", "/dev/own", DENIED)?;
    cgroup.detach(&program).context("detach it")?;
    opens(&container, "back", "<>", "/dev/own")?;
    done(&DETACH)?;
    container.remove()?;
    Ok(line)
}
