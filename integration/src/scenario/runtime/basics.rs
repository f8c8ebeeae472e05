//! What `ctr run`, `exec`, `kill` and `rm` need of a runtime, and of the snapshotter below it.

use anyhow::{Result, ensure};

use super::bed::Bed;
use super::signals::until_handled;
use super::{Case, Need};
use crate::images::Image;
use crate::scenario::ctr::{Container, ctr, run as run_program};

/// What a pipe holds (pipe(7)).
const PIPE: usize = 64 * 1024;

/// The cases.
pub const CASES: &[Case] = &[
    Case::new("run: standard output", |bed| {
        let out = bed.stack.run_once("once", &["/bin/echo", "hello"], b"")?.success("run")?;
        ensure!(out == "hello\n", "{out:?}");
        Ok(String::new())
    }),
    Case::new("run: exit status and standard error", |bed| {
        let command = ["/bin/sh", "-c", "echo oops >&2; exit 7"];
        let output = bed.stack.run_once("once", &command, b"")?.ended_with(7)?;
        ensure!(output.err.contains("oops") && output.out.is_empty(), "{output:?}");
        Ok(String::new())
    })
    .in_vm(),
    Case::new("run: standard input, 4 MiB there and back", |bed| {
        let input = "0123456789abcde\n".repeat(256 * 1024);
        let out = bed.stack.run_once("once", &["/bin/cat"], input.as_bytes())?.success("run")?;
        // containerd's own shim loses the end of an output now and then, as it loses all of a short one (`ten_at_once`).
        let forgiven = if bed.is_reference() { PIPE } else { 0 };
        let lost = input.len().saturating_sub(out.len());
        ensure!(input.starts_with(&out) && lost <= forgiven, "{} bytes came back", out.len());
        Ok(if lost > 0 { format!("the last {lost} bytes are lost") } else { String::new() })
    }),
    Case::new("run: a program that is not there fails, and the id is free again", |bed| {
        let output = bed.stack.run_once("once", &["/bin/no-such-program"], b"")?;
        ensure!(output.code != 0 && output.err.contains("no-such-program"), "{output:?}");
        bed.stack.run_once("once", &["/bin/true"], b"")?.success("run again").map(|_| String::new())
    }),
    Case::new("run: a terminal", terminal),
    Case::new("exec: output, exit status, standard input", |bed| {
        let container = bed.start_container("exec", &STAYS)?;
        let command = ["/bin/sh", "-c", "cat; echo err >&2; exit 5"];
        let output = container.exec("e1", &command, b"in")?.ended_with(5)?;
        ensure!(output.out == "in" && output.err.contains("err"), "{output:?}");
        container.remove().map(|_| String::new())
    })
    .in_vm(),
    Case::new("exec: sees the container's processes and files", |bed| {
        let container = bed.start_container("exec", &STAYS)?;
        let out = container.sh("e2", "cat /proc/1/comm; cat /usr/share/doc/before; touch /written")?;
        ensure!(out == "sh\nwhat the image itself holds\n", "{out:?}");
        container.remove().map(|_| String::new())
    }),
    Case::new("exec: ten at once", |bed| {
        let container = bed.start_container("exec", &STAYS)?;
        let detail = ten_at_once(bed, &container)?;
        container.remove().map(|_| detail)
    }),
    Case::new("ps lists the first process", |bed| {
        let container = bed.start_container("ps", &STAYS)?;
        let list = ctr(&["task", "ps", &container.id])?.success("ctr task ps")?;
        let pid = container.pid()?.to_string();
        ensure!(list.lines().any(|line| line.starts_with(&pid)), "{list}");
        container.remove().map(|_| String::new())
    })
    .needs(&[Need::Cgroups]),
    Case::new("pause and resume", |bed| {
        let container = bed.start_container("pause", &STAYS)?;
        ctr(&["task", "pause", &container.id])?.success("pause")?;
        container.wait_for("PAUSED")?;
        ctr(&["task", "resume", &container.id])?.success("resume")?;
        container.wait_for("RUNNING")?;
        container.remove().map(|_| String::new())
    })
    .needs(&[Need::Cgroups])
    .in_vm(),
    Case::new("kill: the exit status comes back through task rm", |bed| {
        let container = bed.start_container("kill", &STAYS)?;
        until_handled(container.pid()?, 15)?;
        container.kill("SIGTERM")?;
        container.wait_for("STOPPED")?;
        let code = container.remove()?;
        ensure!(code == 9, "exit status {code}");
        Ok(String::new())
    }),
    Case::new("kill -9", |bed| {
        let code = bed.start_container("kill", &STAYS)?.remove()?;
        ensure!(code == 137, "exit status {code}");
        Ok(String::new())
    }),
];

/// Ends with 9 when it is asked to.
const STAYS: [&str; 3] = ["/bin/sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.05; done"];

fn terminal(bed: &Bed) -> Result<String> {
    let words = bed.stack.words().join("' '");
    let line = format!("ctr run --rm -t '{words}' {} once /usr/bin/tty", Image::Busybox.name());
    let out = run_program("script", &["-qec", &line, "/dev/null"], b"")?.success("run -t")?;
    ensure!(out.contains("/dev/pts/0"), "{out:?}");
    Ok(String::new())
}

fn ten_at_once(bed: &Bed, container: &Container) -> Result<String> {
    let outcomes: Vec<Result<String>> = std::thread::scope(|scope| {
        let execs: Vec<_> = (0..10)
            .map(|n| scope.spawn(move || container.sh(&format!("many{n}"), &format!("echo {n}"))))
            .collect();
        execs
            .into_iter()
            .map(|exec| exec.join().unwrap_or_else(|_| Err(anyhow::anyhow!("panicked"))))
            .collect()
    });
    // containerd's own shim loses the output of an exec now and then (9 of 500, measured); ours must not.
    let forgiven = if bed.is_reference() { 2 } else { 0 };
    let mut lost = 0;
    for (n, outcome) in outcomes.into_iter().enumerate() {
        let out = outcome?;
        lost += usize::from(out.is_empty());
        ensure!(out.is_empty() || out == format!("{n}\n"), "exec {n} wrote {out:?}");
    }
    ensure!(lost <= forgiven, "the output of {lost} execs is lost");
    Ok(if lost > 0 { format!("the output of {lost} is lost") } else { String::new() })
}
