//! What the runtime takes beyond a container's OCI spec: log URIs and real-time signals, which containerd's own must take
//! too, and the annotations that are ours alone.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::capsulectl::{done, ps, publish, refused};
use super::ctr::{OURS, REFERENCE, Stack, ctr};
use super::world::{World, send_logs};
use crate::event::Reporter;
use crate::images::Image;

const LOGS: &str = "/run/runtime-logs";
const ATTACH: &str = "resourcecapsules.io/attach";
const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];
/// Lines in a log that is longer than a pipe and than the smallest buffer.
const LINES: usize = 100_000;

/// Runs every case.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    let outcome = cases(reporter);
    if outcome.is_err() || !reporter.all_ok() {
        send_logs(reporter);
    }
    outcome
}

fn cases(reporter: &mut Reporter) -> Result<()> {
    let mut world = World::start(true)?;
    fs::create_dir_all(LOGS).with_context(|| format!("create {LOGS}"))?;
    let [_, newest] = reporter.must("images and capsules are there", || {
        OURS.import()?;
        REFERENCE.import()?;
        Ok((publish()?, String::new()))
    })?;
    for stack in [REFERENCE, OURS] {
        logs(reporter, stack);
        signals(reporter, stack);
    }
    slow_log(reporter);
    named(reporter, &newest);
    mistakes(reporter);
    refusing(reporter);
    away(reporter, &mut world);
    world.stop()
}

/// A program that logs as containerd's protocol has it, after a moment in which it reads nothing.
fn logger(name: &str, pause: &str) -> Result<String> {
    let path = format!("{LOGS}/{name}");
    let script = format!(
        "#!/bin/busybox sh\nexec 5>&-\n/bin/busybox sleep {pause}\n\
         echo \"$@ $CONTAINER_ID $CONTAINER_NAMESPACE\" > {LOGS}/$CONTAINER_ID.args\n\
         /bin/busybox cat <&4 > {LOGS}/$CONTAINER_ID.err &\n\
         /bin/busybox cat <&3 > {LOGS}/$CONTAINER_ID.out\n"
    );
    fs::write(&path, script).with_context(|| format!("write {path}"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).with_context(|| format!("chmod {path}"))?;
    Ok(path)
}

/// Waits until a log ends with `end`; the log.
fn log_with(path: &str, end: &str) -> Result<String> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let log = fs::read_to_string(path).unwrap_or_default();
        if log.ends_with(end) {
            return Ok(log);
        }
        let tail = &log[log.len().saturating_sub(200)..];
        ensure!(Instant::now() < deadline, "{path} does not end with {end:?}: {tail:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn logs(reporter: &mut Reporter, stack: Stack) {
    let name = stack.name;
    reporter.check(&format!("{name}: a log file takes output and errors"), || {
        let (id, path) = (format!("file-{name}"), format!("{LOGS}/a b/{name}.log"));
        let uri = format!("file://{LOGS}/a%20b/{name}.log");
        let script = "echo one; echo two >&2; sleep 0.2; echo three; exec sleep 100000";
        let container = start_logged(stack, &id, &["--log-uri", &uri], script)?;
        let log = log_with(&path, "three\n")?;
        ensure!(log.contains("one\n") && log.contains("two\n"), "{log:?}");
        container.remove().map(|_| log.replace('\n', " "))
    });
    reporter.check(&format!("{name}: a logging program gets all output"), || {
        let (id, program) = (format!("program-{name}"), logger("quick", "0")?);
        let uri = format!("binary://{program}?--key=a%20b");
        let script = format!("seq 1 {LINES}; echo oops >&2; exec sleep 100000");
        let container = start_logged(stack, &id, &["--log-uri", &uri], &script)?;
        log_with(&format!("{LOGS}/{id}.out"), &format!("\n{LINES}\n"))?;
        log_with(&format!("{LOGS}/{id}.err"), "oops\n")?;
        let args = log_with(&format!("{LOGS}/{id}.args"), "\n")?;
        ensure!(args == format!("--key a b {id} default\n"), "{args:?}");
        container.remove().map(|_| args)
    });
    reporter.check(&format!("{name}: an unknown log URI is refused by name"), || {
        let refused = start_logged(stack, &format!("uri-{name}"), &["--log-uri", "ftp:///x"], "true");
        let error = refused.err().context("it was taken")?.to_string();
        ctr(&["container", "rm", &format!("uri-{name}")])?;
        ensure!(error.contains("ftp"), "{error}");
        Ok(error)
    });
}

fn start_logged(stack: Stack, id: &str, options: &[&str], script: &str) -> Result<super::ctr::Container> {
    stack.start_with_output(id, options, &["/bin/sh", "-c", script])
}

fn signals(reporter: &mut Reporter, stack: Stack) {
    let name = stack.name;
    reporter.check(&format!("{name}: a real-time signal reaches an exec, and its exit tells"), || {
        let container = stack.start(&format!("signal-{name}"), &[], &SLEEP)?;
        let id = container.id.clone();
        let exec =
            std::thread::spawn(move || ctr(&["task", "exec", "--exec-id", "x", &id, SLEEP[0], SLEEP[1]]));
        let deadline = Instant::now() + Duration::from_secs(30);
        while ctr(&["task", "kill", "--exec-id", "x", "-s", "40", &container.id])?.code != 0 {
            ensure!(Instant::now() < deadline, "the exec cannot be signalled");
            std::thread::sleep(Duration::from_millis(20));
        }
        let ended = exec.join().map_err(|_| anyhow::anyhow!("the exec panicked"))??;
        ensure!(ended.code == 128 + 40, "exit status {} instead of 168: {}", ended.code, ended.err);
        container.remove().map(|_| String::new())
    });
}

fn slow_log(reporter: &mut Reporter) {
    reporter.check("ours: with a slow log, blocking keeps all and non-blocking does not wait", || {
        let uri = format!("binary://{}?k=v", logger("slow", "2")?);
        let mode = "resourcecapsules.io/log-mode=non-blocking";
        let size = "resourcecapsules.io/log-max-buffer-size=64k";
        let script = format!("seq 1 {LINES}; touch /done; exec sleep 100000");
        let mut told = Vec::new();
        for (id, options) in [("keeps", vec![]), ("drops", vec!["--annotation", mode, "--annotation", size])]
        {
            let began = Instant::now();
            let options = [vec!["--log-uri", uri.as_str()], options].concat();
            let container = start_logged(OURS, id, &options, &script)?;
            let root = format!("/proc/{}/root/done", container.pid()?);
            while !Path::new(&root).exists() {
                ensure!(began.elapsed() < Duration::from_secs(60), "{id}: it never wrote all");
                std::thread::sleep(Duration::from_millis(5));
            }
            told.push((began.elapsed(), container));
        }
        ensure!(told[1].0 < told[0].0, "non-blocking waited: {:?}, {:?}", told[0].0, told[1].0);
        let all = log_with(&format!("{LOGS}/keeps.out"), &format!("\n{LINES}\n"))?;
        let times = format!("{:?} and {:?}", told[0].0, told[1].0);
        for (_, container) in told {
            container.remove()?;
        }
        let some = log_with(&format!("{LOGS}/drops.out"), "\n")?;
        ensure!(all.lines().count() == LINES && some.lines().count() < LINES, "nothing was dropped");
        let numbers = some.lines().map(str::parse).collect::<Result<Vec<u32>, _>>().context("a torn line")?;
        ensure!(numbers.is_sorted(), "out of order");
        Ok(format!("{} of {LINES} lines kept; {times}", numbers.len()))
    });
}

/// The annotation's capsules are there for the very first program: it is one of them.
fn named(reporter: &mut Reporter, newest: &str) {
    for runtime in ["runc", "crun"] {
        reporter.check(&format!("ours, {runtime}: named capsules are there first"), || {
            let options = format!("{LOGS}/{runtime}.toml");
            fs::write(&options, format!("BinaryName = \"{runtime}\"\n")).context("write options")?;
            let named = format!("{ATTACH}=tzdata@{newest}, debug-tools:/:union");
            let read = "test -s /usr/share/zoneinfo/Europe/Berlin && ls /usr/share/zoneinfo | wc -l";
            let id = format!("named-{runtime}");
            let run = ["run", "--rm", "--runtime", OURS.runtime, "--snapshotter", OURS.snapshotter];
            let with =
                ["--runtime-config-path", &options, "--annotation", &named, Image::Busybox.name(), &id];
            let args = [&run[..], &with, &["/bin/sh", "-c", read]].concat();
            let out = ctr(&args)?.success("run with named capsules")?;
            ensure!(ps()?.iter().all(|seen| seen.container != id), "still on record: {:?}", ps()?);
            Ok(format!("{} entries", out.trim()))
        });
    }
    reporter.check("ours: a task made anew has what its annotation names", || {
        let named = format!("{ATTACH}=tzdata");
        let container = OURS.start("again", &["--annotation", &named], &SLEEP)?;
        let read = |exec: &str| container.sh(exec, "ls /usr/share/zoneinfo | wc -l");
        let first = read("one")?;
        container.kill("SIGKILL")?;
        container.wait_for("STOPPED")?;
        ctr(&["task", "rm", &container.id])?.success("ctr task rm")?;
        ctr(&["task", "start", "-d", "--null-io", &container.id])?.success("ctr task start")?;
        container.wait_for("RUNNING")?;
        ensure!(read("two")? == first, "not the same: {first}");
        ensure!(ps()?.iter().filter(|seen| seen.container == container.id).count() == 1, "{:?}", ps()?);
        container.remove().map(|_| first.trim().to_owned())
    });
}

fn mistakes(reporter: &mut Reporter) {
    for (entry, words) in [
        ("no-such", vec!["no-such", "not known"]),
        ("tzdata:relative", vec!["tzdata:relative", "absolute"]),
        ("tzdata,tzdata", vec!["/usr/share/zoneinfo", "taken"]),
        ("tzdata,no-such", vec!["no-such"]),
    ] {
        reporter.check(&format!("ours: annotation {entry:?} is refused, and nothing is left"), || {
            let named = format!("{ATTACH}={entry}");
            let refused = OURS.start("wrong", &["--annotation", &named], &SLEEP);
            let error = refused.err().context("it was taken")?.to_string();
            for word in [vec![ATTACH], words].concat() {
                ensure!(error.contains(word), "does not name {word:?}: {error}");
            }
            ctr(&["task", "rm", "-f", "wrong"])?;
            ctr(&["container", "rm", "wrong"])?.success("ctr container rm")?;
            ensure!(ps()?.is_empty(), "left: {:?}", ps()?);
            Ok(error)
        });
    }
}

fn refusing(reporter: &mut Reporter) {
    reporter.check("ours: a container that takes no capsules gets none", || {
        let named = format!("{ATTACH}=tzdata");
        let options = ["--annotation", "resourcecapsules.io/enabled=false", "--annotation", &named];
        let container = OURS.start("none", &options, &SLEEP)?;
        ensure!(ps()?.is_empty(), "attached: {:?}", ps()?);
        let line = refused(&["attach", "none", "tzdata"], &["none", "resourcecapsules.io/enabled"])?;
        container.remove().map(|_| line)
    });
}

/// A container that names capsules waits for a capsuled that is being replaced.
fn away(reporter: &mut Reporter, world: &mut World) {
    reporter.check("ours: a start waits for capsuled", || {
        world.kill_capsuled()?;
        let args = ["run", "-d", "--null-io", "--runtime", OURS.runtime, "--rootfs"];
        let named = format!("{ATTACH}=tzdata");
        let root = format!("{LOGS}/root");
        fs::create_dir_all(format!("{root}/bin")).context("make a root")?;
        for (directory, file) in [("bin", "busybox"), ("bin", "sleep")] {
            fs::copy("/bin/busybox", format!("{root}/{directory}/{file}")).context("copy busybox")?;
        }
        for directory in ["proc", "sys", "dev", "usr/share", "run", "tmp", "etc"] {
            fs::create_dir_all(format!("{root}/{directory}")).context("make a root")?;
        }
        let started = std::thread::spawn(move || {
            ctr(&[&args[..], &["--annotation", &named, &root, "late"], &SLEEP].concat())
        });
        std::thread::sleep(Duration::from_secs(1));
        world.restart_capsuled()?;
        let started = started.join().map_err(|_| anyhow::anyhow!("the start panicked"))??;
        started.success("ctr run while capsuled is away")?;
        ensure!(ps()?.iter().any(|seen| seen.container == "late"), "{:?}", ps()?);
        done(&["detach", "late", "tzdata"])?;
        ctr(&["task", "rm", "-f", "late"])?;
        ctr(&["container", "rm", "late"])?.success("ctr container rm").map(|_| String::new())
    });
}
