//! System calls that capsules deny: to processes that are started while they are attached, and to containers that are created with
//! them; with runc and crun, in containers with a filter of their own and without. What a container is denied is what its processes
//! cannot do.

mod programs;

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use self::programs::{all_get_eperm, mkdir_of_i386};
use super::capsulectl::{done, json, refused};
use super::ctr::{Container, OURS, Output, ctr, run as program};
use super::sets::publish_with as publish;
use super::world::{World, until, with_logs};
use crate::event::Reporter;

const FILES: &str = "/tmp/denials";
const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];
/// Says what it could do, a word for each.
const PROBE: &str = "rmdir /tmp/a /tmp/by-32 2>/dev/null
mkdir /tmp/a 2>/dev/null && echo mkdir
/tmp/as-32; [ -d /tmp/by-32 ] && echo as-32
chroot / /bin/true 2>/dev/null && echo chroot
mount -t tmpfs none /dev/shm 2>/dev/null && { umount /dev/shm; echo mount; }
:";
const ALL: &[&str] = &["mkdir", "as-32", "chroot", "mount"];
/// A call of Linux 6.15.
const NEW: &str = "open_tree_attr";
/// Calls of x86-64: one that nothing denies, and one that takes a path.
const SYSINFO: u32 = 99;
const ACCT: u32 = 163;
/// Of i386.
const SOCKETCALL: u32 = 102;
const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task/default";

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    with_logs(reporter, cases)
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let world = World::start(true)?;
    reporter.must("an image and capsules are there", || {
        OURS.import()?;
        fs::create_dir_all(FILES).context("a folder")?;
        publish("strict@1", &["--seccomp", "restricted"])?;
        publish("plain@1", &["--deny", "mkdir", "--deny", "mkdirat"])?;
        publish("plain@2", &["--deny", "rmdir"])?;
        publish("plain@3", &[])?;
        Ok(((), done(&["inspect", "strict@1"])?))
    })?;
    for (binary, filter) in [("runc", false), ("runc", true), ("crun", false), ("crun", true)] {
        let own = if filter { "with a filter of its own" } else { "without one" };
        let case = |what: &str| format!("{binary}, a container {own}: {what}");
        reporter.check(&case("what is started while it is attached"), || live(binary, filter));
        reporter.check(&case("from the first process on"), || created(binary, filter));
        reporter.check(&case("what it had, at its next start"), || given_back(binary, filter));
    }
    reporter.check("what each level denies, a process gets EPERM for", levels);
    for binary in ["runc", "crun"] {
        reporter.check(&format!("{binary}: programs of 32 bits, users and terminals"), || others(binary));
        reporter.check(&format!("{binary}: a profile that kills"), || deadly(binary));
        reporter.check(&format!("{binary}: what an exec takes, with denials and without"), || cost(binary));
    }
    reporter.check("what cannot be denied is refused, and nothing is published", mistakes);
    reporter.check("a runtime of another kind is refused, and nothing changes", foreign);
    world.stop()
}

/// A privileged container, so that what fails does so because it is denied; with the program of 32 bits.
fn start(id: &str, binary: &str, filter: bool, options: &[&str], command: &[&str]) -> Result<Container> {
    let toml = format!("{FILES}/{binary}.toml");
    fs::write(&toml, format!("BinaryName = {binary:?}\n")).context("options")?;
    let own = if filter { &["--seccomp"][..] } else { &[] };
    let options = [&["--privileged", "--runtime-config-path", &toml], own, options].concat();
    OURS.start(id, &options, command)
}

/// What a new process can do.
fn can(container: &Container, exec: &str) -> Result<Vec<String>> {
    let said = container.sh(exec, PROBE)?;
    Ok(said.split_whitespace().map(str::to_owned).collect())
}

fn expect(container: &Container, exec: &str, want: &[&str]) -> Result<()> {
    let seen = can(container, exec)?;
    ensure!(seen == want, "{exec}: a new process can {seen:?}, not {want:?}");
    let left: Vec<_> = fs::read_dir(Path::new(BUNDLES).join(&container.id))
        .context("the bundle")?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("exec-"))
        .collect();
    ensure!(left.is_empty(), "{exec}: {left:?} are left in the bundle");
    Ok(())
}

/// `Seccomp:` of a new process: 0 for no filter, 2 for one.
fn mode(container: &Container, exec: &str) -> Result<String> {
    Ok(container.sh(exec, "grep ^Seccomp: /proc/self/status")?.replace("Seccomp:", "").trim().to_owned())
}

fn live(binary: &str, filter: bool) -> Result<String> {
    let first = "while [ ! -e /tmp/go ]; do sleep 0.1; done; mkdir /tmp/by-first; sleep 100000";
    let box_ = start("live", binary, filter, &[], &["/bin/sh", "-c", first])?;
    give_program(&box_)?;
    let own = mode(&box_, "own")?;
    ensure!(own == if filter { "2" } else { "0" }, "the container has {own}");
    expect(&box_, "before", ALL)?;
    done(&["attach", "live", "strict"])?;
    expect(&box_, "strict", &["mkdir", "as-32"])?;
    done(&["attach", "live", "plain@1"])?;
    expect(&box_, "both", &[])?;
    ensure!(mode(&box_, "denied")? == "2", "a process without a filter");
    // Who was there before is not denied anything.
    box_.sh("go", "touch /tmp/go")?;
    until("the first process made a directory", || {
        Ok(box_.sh("look", "test -d /tmp/by-first; echo $?")?.trim() == "0")
    })?;
    done(&["upgrade", "live", "plain@3"])?;
    expect(&box_, "upgraded", &["mkdir", "as-32"])?;
    done(&["rollback", "live", "plain"])?;
    expect(&box_, "rolled-back", &[])?;
    done(&["detach", "live", "strict"])?;
    expect(&box_, "plain", &["chroot", "mount"])?;
    done(&["upgrade", "live", "plain@2"])?;
    let rmdir = box_.sh("rmdir", "mkdir /tmp/stays && ! rmdir /tmp/stays 2>&1")?;
    ensure!(rmdir.contains("Operation not permitted"), "rmdir says {rmdir:?}");
    done(&["detach", "live", "plain"])?;
    expect(&box_, "after", ALL)?;
    ensure!(mode(&box_, "own-again")? == own, "another filter than before");
    box_.remove()?;
    Ok(format!("Seccomp: {own} before and after, 2 between"))
}

/// Tries to make a directory, and says how that ended.
const FIRST: [&str; 3] = [
    "/bin/sh",
    "-c",
    "rmdir /tmp/first 2>/dev/null; mkdir /tmp/first 2>/tmp/said; echo $? >/tmp/code; sleep 100000",
];

/// What the first process said, once it has.
fn first_said(container: &Container, exec: &str) -> Result<String> {
    let ask = || container.sh(exec, "cat /tmp/code 2>/dev/null; :");
    until("the first process tried", || Ok(ask()?.ends_with('\n')))?;
    container.sh(exec, "cat /tmp/code /tmp/said")
}

fn is_denied(said: &str) -> bool {
    said.starts_with("1\n") && said.contains("Operation not permitted")
}

fn created(binary: &str, filter: bool) -> Result<String> {
    let attach = ["--annotation", "resourcecapsules.io/attach=strict,plain@1"];
    let box_ = start("made", binary, filter, &attach, &FIRST)?;
    let said = first_said(&box_, "first")?;
    ensure!(is_denied(&said), "the first process: {said:?}");
    // Written by the shell: it makes no directory.
    give_program(&box_)?;
    expect(&box_, "made", &[])?;
    restart(&box_)?;
    let again = first_said(&box_, "again")?;
    ensure!(is_denied(&again), "after a restart the first process: {again:?}");
    box_.remove()?;
    Ok(said.trim().to_owned())
}

/// What was attached while it ran is given back at the next start, to its first process too.
fn given_back(binary: &str, filter: bool) -> Result<String> {
    let box_ = start("kept", binary, filter, &[], &FIRST)?;
    ensure!(first_said(&box_, "first")?.starts_with("0\n"), "denied something, with nothing attached");
    give_program(&box_)?;
    done(&["attach", "kept", "strict", "plain@1"])?;
    restart(&box_)?;
    let said = first_said(&box_, "second")?;
    ensure!(is_denied(&said), "the next task's first process: {said:?}");
    done(&["detach", "kept", "plain"])?;
    done(&["detach", "kept", "strict"])?;
    // What it was created with stays until the task ends.
    expect(&box_, "detached", &[])?;
    restart(&box_)?;
    ensure!(
        first_said(&box_, "third")?.starts_with("0\n"),
        "denied something, with nothing attached any more"
    );
    expect(&box_, "free", ALL)?;
    box_.remove()?;
    Ok(said.trim().to_owned())
}

/// The same container's next task.
fn restart(container: &Container) -> Result<()> {
    container.sh("before", "rm /tmp/code")?;
    container.kill("SIGKILL")?;
    container.wait_for("STOPPED")?;
    container.start_again()
}

/// Puts a program into the container's `/tmp`.
fn give(container: &Container, name: &str, program: &[u8]) -> Result<()> {
    let script = format!("cat > /tmp/{name} && chmod 755 /tmp/{name}");
    let give = container.exec(&format!("give-{name}"), &["/bin/sh", "-c", &script], program)?;
    give.success(&script).map(drop)
}

fn give_program(container: &Container) -> Result<()> {
    give(container, "as-32", &mkdir_of_i386("/tmp/by-32"))
}

/// Each call of a level is made, as a program of 64 bits and as one of 32, by a process that may do everything: EPERM is the filter's.
fn levels() -> Result<String> {
    let mut told = Vec::new();
    for level in ["baseline", "restricted"] {
        publish(&format!("{level}@1"), &["--seccomp", level])?;
        for binary in ["runc", "crun"] {
            let old = binary == "runc" && program("runc", &["--version"], b"")?.out.contains("version 1.1");
            let box_ = start("level", binary, false, &[], &SLEEP)?;
            give(&box_, "before", &all_get_eperm(&[ACCT], false))?;
            ensure!(
                box_.exec("before", &["/tmp/before"], b"")?.code == 1,
                "acct is denied without a capsule"
            );
            done(&["attach", "level", level])?;
            let journal = Path::new(BUNDLES).join("level/capsule-hotplug.json");
            let journal = fs::read(&journal).with_context(|| journal.display().to_string())?;
            let journal: Value = serde_json::from_slice(&journal).context("the journal")?;
            let calls = journal["attachments"][0]["spec"]["content"]["denied"].as_array().context("calls")?;
            let calls: Vec<&str> = calls.iter().filter_map(Value::as_str).collect();
            // What runc 1.1's libseccomp has no name for, it leaves out.
            let calls: Vec<&str> = calls.into_iter().filter(|call| !(old && *call == NEW)).collect();
            ensure!(["mount", "bpf", "reboot"].iter().all(|call| calls.contains(call)), "{level}: {calls:?}");
            let numbers =
                |of: fn(&str) -> Option<u32>| calls.iter().filter_map(|call| of(call)).collect::<Vec<_>>();
            let of_64 = numbers(|call| call.parse::<syscalls::x86_64::Sysno>().ok().map(|call| call as u32));
            let of_32 = numbers(|call| call.parse::<syscalls::x86::Sysno>().ok().map(|call| call as u32));
            told.push(format!("{binary}, {level}: {} and {} calls", of_64.len(), of_32.len()));
            give(&box_, "all-64", &all_get_eperm(&of_64, false))?;
            give(&box_, "all-32", &all_get_eperm(&of_32, true))?;
            give(&box_, "none", &all_get_eperm(&[SYSINFO], false))?;
            for (program, want) in [("all-64", 0), ("all-32", 0), ("none", 1)] {
                let code = box_.exec(program, &[&format!("/tmp/{program}")], b"")?.code;
                ensure!(code == want, "{binary}, {level}: {program} ended with {code}, not {want}");
            }
            box_.remove()?;
        }
    }
    Ok(told.join(", "))
}

/// A container as most are: no privileges, none to be had, and containerd's own profile.
fn others(binary: &str) -> Result<String> {
    let toml = format!("{FILES}/{binary}.toml");
    let box_ = OURS.start("user", &["--runtime-config-path", &toml, "--seccomp"], &SLEEP)?;
    give_program(&box_)?;
    publish("silent@1", &["--deny", "socket"])?;
    done(&["attach", "user", "plain@1", "silent"])?;
    let exec = |options: &[&str], command: &[&str]| -> Result<Output> {
        ctr(&[&["task", "exec"], options, &["user"], command].concat())
    };
    let by_user =
        exec(&["--exec-id", "u", "--user", "1000:1000"], &["/bin/mkdir", "/tmp/by-user"])?.ended_with(1)?;
    ensure!(by_user.err.contains("Operation not permitted"), "{}", by_user.err);
    let typed = ["task", "exec", "-t", "--exec-id", "t", "user", "/bin/mkdir", "/tmp/by-terminal"];
    let typed = program("script", &["-qec", &format!("ctr {}", typed.join(" ")), "/dev/null"], b"")?;
    ensure!(typed.out.contains("Operation not permitted"), "{} {}", typed.out, typed.err);
    let code = exec(&["--exec-id", "b"], &["/tmp/as-32"])?.code;
    ensure!(code == 1, "mkdir of i386 ended with {code}, not EPERM");
    // What is many calls in one for programs of 32 bits.
    give(&box_, "socket-32", &all_get_eperm(&[SOCKETCALL], true))?;
    let code = exec(&["--exec-id", "s"], &["/tmp/socket-32"])?.code;
    ensure!(code == 0, "socketcall of i386 does not get EPERM");
    done(&["detach", "user", "silent"])?;
    let code = exec(&["--exec-id", "a"], &["/tmp/socket-32"])?.code;
    ensure!(code == 1, "socketcall of i386 gets EPERM, and nothing denies it");
    box_.remove()?;
    Ok(by_user.err.trim().to_owned())
}

/// A container that is killed for what its profile does not know: for what a capsule denies it is not.
fn deadly(binary: &str) -> Result<String> {
    let all: Vec<&str> =
        syscalls::x86_64::Sysno::iter().map(|call| call.name()).filter(|name| *name != "acct").collect();
    let profile = serde_json::json!({
        "defaultAction": "SCMP_ACT_KILL_PROCESS",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [{ "names": all, "action": "SCMP_ACT_ALLOW" }],
    });
    let (file, toml) = (format!("{FILES}/deadly.json"), format!("{FILES}/{binary}.toml"));
    fs::write(&file, profile.to_string()).context("a profile")?;
    let options = ["--privileged", "--runtime-config-path", &toml, "--seccomp", "--seccomp-profile", &file];
    let box_ = OURS.start("deadly", &options, &SLEEP)?;
    give(&box_, "acct", &all_get_eperm(&[ACCT], false))?;
    let acct = |exec: &str| Ok::<_, anyhow::Error>(box_.exec(exec, &["/tmp/acct"], b"")?.code);
    ensure!(acct("own")? == 159, "the container's own profile kills nobody");
    done(&["attach", "deadly", "plain@1"])?;
    let said = box_.exec("mkdir", &["/bin/mkdir", "/tmp/a"], b"")?.ended_with(1)?.err;
    ensure!(said.contains("Operation not permitted"), "{said}");
    ensure!(acct("still")? == 159, "the container's own profile kills nobody any more");
    box_.remove()?;
    Ok(said.trim().to_owned())
}

/// Medians of execs in turn, in two containers.
fn cost(binary: &str) -> Result<String> {
    let (with, without) =
        (start("with", binary, true, &[], &SLEEP)?, start("without", binary, true, &[], &SLEEP)?);
    done(&["attach", "with", "strict"])?;
    done(&["attach", "without", "plain@3"])?;
    let mut took = [Vec::new(), Vec::new()];
    for turn in 0..20 {
        for (container, took) in [&with, &without].into_iter().zip(&mut took) {
            let began = Instant::now();
            container.exec(&format!("e{turn}"), &["/bin/true"], b"")?.success("true")?;
            took.push(began.elapsed());
        }
    }
    let [with_median, without_median] = took.map(|mut all| {
        all.sort();
        all[all.len() / 2]
    });
    with.remove()?;
    without.remove()?;
    let ratio = with_median.as_secs_f64() / without_median.as_secs_f64();
    let said = format!("{with_median:.1?} beside {without_median:.1?}: {ratio:.2} times");
    ensure!(ratio < 3.0, "{said}");
    Ok(said)
}

fn mistakes() -> Result<String> {
    let build = ["build", FILES, "--name", "wrong", "--version", "1"];
    let mut told = Vec::new();
    for (more, words) in [
        (&["--seccomp", "strictest"][..], &["strictest", "baseline or restricted"][..]),
        (&["--deny", "mkdri"], &["mkdri", "no system call"]),
        (&["--deny", "execve"], &["execve", "no process could be started"]),
    ] {
        told.push(refused(&[&build, more].concat(), words)?);
    }
    refused(&["inspect", "wrong"], &["wrong"])?;
    let shown = json(&["inspect", "strict"])?;
    ensure!(shown["version"]["seccomp"]["level"] == "restricted", "{shown}");
    ensure!(json(&["inspect", "plain@3"])?["version"]["seccomp"].is_null(), "plain@3 denies something");
    Ok(told.join(" | "))
}

/// A runtime whose records are of another form: runc's, with the record hidden from who looks.
fn foreign() -> Result<String> {
    let box_ = start("foreign", "runc", false, &[], &SLEEP)?;
    let record = "/run/containerd/runc/default/foreign/state.json";
    let other = format!("{record}.hidden");
    fs::rename(record, &other).context("the record")?;
    let (mounts, line) =
        (box_.mounts()?, refused(&["attach", "foreign", "strict"], &["strict@1", "runc or crun"])?);
    ensure!(box_.mounts()? == mounts, "something is mounted");
    done(&["attach", "foreign", "plain@3"])?;
    let upgrade = refused(&["upgrade", "foreign", "plain@1"], &["plain@1", "runc or crun"])?;
    ensure!(done(&["ps", "foreign"])?.contains("plain"), "plain@3 is gone");
    fs::rename(&other, record).context("the record")?;
    box_.remove()?;
    Ok(format!("{line} | {upgrade}"))
}
