//! Log files and logging programs.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::fs::OFlags;

use super::Case;
use super::bed::{Bed, FILES, eventually};
use super::task::{Stdio, Task};
use crate::scenario::ctr::ctr;

/// The cases.
pub const CASES: &[Case] = &[
    Case::new("a log file takes output and errors", log_file),
    Case::new("a logging program gets all output", logging_program).in_vm(),
    Case::new(
        "a logging program that stalls gets all output, and the container waits for it",
        stalling_program,
    ),
    Case::new("a container that writes much and ends at once is logged whole", ends_at_once),
    Case::new("an unknown log URI is refused by name", unknown_uri),
    Case::new("a logging program of a terminal", terminal_program),
    Case::new("output and errors to one file that is no FIFO, and to a device", other_file),
];

/// What containerd's own runtime has not, or not yet in 2.1.
pub const OWN: &[Case] = &[
    Case::new("a logging program that must say that it is ready", says_ready),
    Case::new("a log file of a terminal", terminal_file),
    Case::new("non-blocking, and read late: nothing that fits the buffer is lost", read_late),
];

/// Lines in a log that is longer than a pipe and than the smallest buffer.
pub const LINES: usize = 100_000;

/// What `seq 1 LINES` writes.
pub fn all_lines() -> String {
    (1..=LINES).fold(String::new(), |all, line| all + &line.to_string() + "\n")
}

/// A program that logs as containerd's protocol has it, after a moment in which it reads nothing. It leaves
/// `CONTAINER.args`, `.out` and `.err` in [`FILES`].
pub fn logger(name: &str, pause: &str) -> Result<String> {
    let path = format!("{FILES}/{name}");
    let script = format!(
        "#!/bin/busybox sh\nexec 5>&-\n/bin/busybox sleep {pause}\n\
         echo \"$@ $CONTAINER_ID $CONTAINER_NAMESPACE\" > {FILES}/$CONTAINER_ID.args\n\
         /bin/busybox cat <&4 > {FILES}/$CONTAINER_ID.err &\n\
         /bin/busybox cat <&3 > {FILES}/$CONTAINER_ID.out\n"
    );
    fs::write(&path, script).with_context(|| format!("write {path}"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).with_context(|| format!("chmod {path}"))?;
    Ok(path)
}

/// Waits until a log ends with `end`; the log.
pub fn log_with(path: &str, end: &str) -> Result<String> {
    eventually(&format!("{path} to end with {end:?}"), || {
        let log = fs::read_to_string(path).unwrap_or_default();
        let tail = &log[log.len().saturating_sub(200)..];
        ensure!(log.ends_with(end), "{tail:?}");
        Ok(log)
    })
}

fn log_file(bed: &Bed) -> Result<String> {
    let id = bed.id("file");
    let path = format!("{FILES}/a b/{id}.log");
    let uri = format!("file://{FILES}/a%20b/{id}.log");
    let script = "echo one; echo two >&2; sleep 0.2; echo three; exec sleep 100000";
    let container = bed.start_logged(&id, &["--log-uri", &uri], script)?;
    let log = log_with(&path, "three\n")?;
    ensure!(log.contains("one\n") && log.contains("two\n"), "{log:?}");
    container.remove().map(|_| log.replace('\n', " "))
}

/// Its task is deleted as soon as it has ended, and its shim ends with that.
fn ends_at_once(bed: &Bed) -> Result<String> {
    for (id, uri, out) in
        [(bed.id("at-once-file"), "file", "log"), (bed.id("at-once-program"), "binary", "out")]
    {
        let uri = match uri {
            "file" => format!("file://{FILES}/{id}.log"),
            _ => format!("binary://{}?k=v", logger("at-once", "0")?),
        };
        let script = format!("seq 1 {LINES}");
        let container = bed.start_logged(&id, &["--log-uri", &uri], &script)?;
        container.wait_for("STOPPED")?;
        ctr(&["task", "rm", &id])?.success("ctr task rm")?;
        let log = log_with(&format!("{FILES}/{id}.{out}"), &format!("\n{LINES}\n"))?;
        ensure!(log == all_lines(), "{uri}: {} of {} bytes", log.len(), all_lines().len());
        ctr(&["container", "rm", &id])?.success("ctr container rm")?;
        std::mem::forget(container);
    }
    Ok(String::new())
}

fn logging_program(bed: &Bed) -> Result<String> {
    let (id, program) = (bed.id("program"), logger("quick", "0")?);
    let uri = format!("binary://{program}?--key=a%20b");
    let script = format!("seq 1 {LINES}; echo oops >&2; exec sleep 100000");
    let container = bed.start_logged(&id, &["--log-uri", &uri], &script)?;
    let out = log_with(&format!("{FILES}/{id}.out"), &format!("\n{LINES}\n"))?;
    let err = log_with(&format!("{FILES}/{id}.err"), "oops\n")?;
    ensure!(out == all_lines() && err == "oops\n", "{} bytes of output, errors {err:?}", out.len());
    let args = log_with(&format!("{FILES}/{id}.args"), "\n")?;
    ensure!(args == format!("--key a b {id} default\n"), "{args:?}");
    container.remove().map(|_| args)
}

fn stalling_program(bed: &Bed) -> Result<String> {
    let id = bed.id("stalls");
    let uri = format!("binary://{}?k=v", logger("stalls", "2")?);
    let began = Instant::now();
    let script = format!("seq 1 {LINES}; touch /done; exec sleep 100000");
    let container = bed.start_logged(&id, &["--log-uri", &uri], &script)?;
    let done = format!("/proc/{}/root/done", container.pid()?);
    std::thread::sleep(Duration::from_secs(1));
    let waits = !Path::new(&done).exists();
    ensure!(waits || began.elapsed() > Duration::from_secs(2), "it wrote all though nobody read it");
    let out = log_with(&format!("{FILES}/{id}.out"), &format!("\n{LINES}\n"))?;
    ensure!(out == all_lines(), "{} of {} bytes came", out.len(), all_lines().len());
    eventually("the container to go on", || {
        ensure!(Path::new(&done).exists(), "it still waits");
        Ok(())
    })?;
    container.remove().map(|_| format!("{} bytes", out.len()))
}

fn unknown_uri(bed: &Bed) -> Result<String> {
    let id = bed.id("uri");
    let refused = bed.start_logged(&id, &["--log-uri", "ftp:///x"], "true");
    let error = refused.err().context("it was taken")?.to_string();
    ctr(&["container", "rm", &id])?;
    ensure!(error.contains("ftp"), "{error}");
    Ok(error)
}

/// As `nerdctl run -d -t` asks for it.
fn terminal_program(bed: &Bed) -> Result<String> {
    let uri = format!("binary://{}?k=v", logger("terminal", "0")?);
    logged_terminal(bed, &uri, "out")
}

fn terminal_file(bed: &Bed) -> Result<String> {
    logged_terminal(bed, &format!("file://{FILES}/{{}}.log"), "log")
}

/// An init and an exec on terminals, whose output goes to a log URI (with the id for `{}`) and so to `ID.kind`.
fn logged_terminal(bed: &Bed, uri: &str, kind: &str) -> Result<String> {
    let task = Task::container(bed, "tty", &["--tty"], &["/bin/sh", "-c", "seq 1 5000; exec sleep 100000"])?;
    let stdio = |id: &str| Stdio { stdout: uri.replace("{}", id), terminal: true, ..Stdio::default() };
    task.create(&stdio(&task.id))?;
    task.start("")?;
    let expected = (1..=5000).fold(String::new(), |all, line| all + &line.to_string() + "\r\n");
    let path = format!("{FILES}/{}.{kind}", task.id);
    let log = log_with(&path, "\n5000\r\n")?;
    ensure!(log == expected, "{} of {} bytes", log.len(), expected.len());
    task.run_exec("e1", &stdio("e1"), &["/bin/seq", "1", "5000"])?;
    ensure!(task.wait("e1")?.exit_status == 0, "it failed");
    task.delete_exec("e1")?;
    // A program is told the exec's id for the container's.
    let log = log_with(&format!("{FILES}/e1.{kind}"), "\n5000\r\n")?;
    ensure!(log == expected, "{} of {} bytes of an exec", log.len(), expected.len());
    task.remove().map(|()| String::new())
}

/// Clients that want a log and no URI give a path.
fn other_file(bed: &Bed) -> Result<String> {
    let path = format!("{FILES}/{}", bed.id("file"));
    fs::write(&path, "there\n").context("write a file")?;
    let to = |path: &str| Stdio { stdout: path.to_owned(), stderr: path.to_owned(), ..Stdio::default() };
    let script = "echo one; echo two >&2; sleep 0.1; seq 1 5000";
    let task = Task::started(bed, "file", &to(&path), &["/bin/sh", "-c", script])?;
    ensure!(task.wait("")?.exit_status == 0, "it failed");
    task.remove()?;
    let log = log_with(&path, "\n5000\n")?;
    let whole = ["there\n", "one\n", "two\n"].iter().all(|line| log.contains(line));
    ensure!(whole && log.lines().count() == 5003, "{} lines: {:?}", log.lines().count(), &log[..40]);
    let task = Task::started(bed, "device", &to("/dev/null"), &["/bin/seq", "1", "5000"])?;
    ensure!(task.wait("")?.exit_status == 0, "it failed");
    task.remove().map(|()| String::new())
}

/// The process has ended and is deleted before anybody reads more than the pipes hold.
fn read_late(bed: &Bed) -> Result<String> {
    let mode = ["--annotation", "resourcecapsules.io/log-mode=non-blocking"];
    let task = Task::container(bed, "late", &mode, &["/bin/seq", "1", &LINES.to_string()])?;
    let stdio = Stdio::fifos(bed, &["stdout"])?;
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).context("a flag")?;
    let mut fifo = File::options().read(true).custom_flags(flags).open(&stdio.stdout).context("open")?;
    task.create(&stdio)?;
    task.start("")?;
    ensure!(task.wait("")?.exit_status == 0, "it failed");
    let reading = std::thread::spawn(move || -> Result<String> {
        std::thread::sleep(Duration::from_secs(2));
        rustix::io::ioctl_fionbio(&fifo, false).context("wait for what comes")?;
        let mut text = String::new();
        fifo.read_to_string(&mut text).context("read").map(|_| text)
    });
    task.remove()?;
    let text = reading.join().map_err(|_| anyhow!("the reader panicked"))??;
    ensure!(text == all_lines(), "{} of {} bytes", text.len(), all_lines().len());
    Ok(String::new())
}

fn says_ready(bed: &Bed) -> Result<String> {
    let program = logger("ready", "0")?;
    let script = fs::read_to_string(&program).context("read the program")?;
    let (id, says) = (bed.id("ready"), script.replace("exec 5>&-", "echo >&5\nexec 5>&-"));
    fs::write(&program, says).context("write the program")?;
    let uri = format!("binary-v2://{program}?k=v");
    let container =
        bed.start_logged(&id, &["--log-uri", &uri], &format!("seq 1 {LINES}; exec sleep 100000"))?;
    let out = log_with(&format!("{FILES}/{id}.out"), &format!("\n{LINES}\n"))?;
    ensure!(out == all_lines(), "{} of {} bytes came", out.len(), all_lines().len());
    container.remove()?;
    let (id, silent) = (bed.id("silent"), logger("silent", "0")?);
    let uri = format!("binary-v2://{silent}?k=v");
    let refused = bed.start_logged(&id, &["--log-uri", &uri], "true");
    let error = refused.err().context("it was taken")?.to_string();
    ctr(&["container", "rm", &id])?;
    ensure!(error.contains("did not say that it is ready"), "{error}");
    Ok(error)
}
