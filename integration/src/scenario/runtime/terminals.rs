//! Terminals: their size, their end, and what comes out of them.

use std::fs::File;
use std::io::Write as _;

use anyhow::{Context as _, Result, ensure};
use capsule_proto::containerd::v1::types::Status as TaskStatus;

use super::Case;
use super::bed::{Bed, SLEEP, eventually};
use super::task::{Stdio, Task, read_all, text_of};

/// The cases.
pub const CASES: &[Case] = &[
    Case::new("an init on a terminal: input, output, size", init_terminal).in_vm(),
    Case::new("an exec on a terminal: input, output, size", exec_terminal),
    Case::new("all that was written before the exit comes out", all_output),
    Case::new("a child that keeps the terminal delays no exit", kept_terminal),
    Case::new("processes on the terminal are hung up with their leader", hang_up),
];

/// Waits for a line, then tells the size that the terminal has now.
const SIZE: [&str; 3] = ["/bin/sh", "-c", "read line; echo got $line; stty size"];

fn converse(task: &Task<'_>, exec: &str, stdio: &Stdio) -> Result<()> {
    task.resize(exec, 123, 45)?;
    // The client keeps it open: a terminal's input has no end of its own.
    let mut input = File::options().write(true).open(&stdio.stdin).context("open the input")?;
    input.write_all(b"hello\n").context("write the input")?;
    ensure!(task.wait(exec)?.exit_status == 0, "it failed");
    Ok(())
}

fn judge(out: &str) -> Result<()> {
    ensure!(out.contains("got hello\r\n") && out.contains("45 123\r\n"), "{out:?}");
    Ok(())
}

fn init_terminal(bed: &Bed) -> Result<String> {
    let stdio = Stdio::terminal(bed)?;
    let out = read_all(&stdio.stdout);
    let task = Task::started(bed, "terminal", &stdio, &SIZE)?;
    ensure!(task.expect("", TaskStatus::Running)?.terminal, "it has no terminal");
    converse(&task, "", &stdio)?;
    task.remove()?;
    judge(&text_of(out)?)?;
    Ok(String::new())
}

fn exec_terminal(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "terminal", &Stdio::default(), &SLEEP)?;
    let stdio = Stdio::terminal(bed)?;
    let out = read_all(&stdio.stdout);
    task.run_exec("e1", &stdio, &SIZE)?;
    converse(&task, "e1", &stdio)?;
    task.delete_exec("e1")?;
    judge(&text_of(out)?)?;
    task.remove().map(|()| String::new())
}

fn all_output(bed: &Bed) -> Result<String> {
    const LINES: usize = 20_000;
    let task = Task::started(bed, "terminal", &Stdio::default(), &SLEEP)?;
    let stdio = Stdio::terminal(bed)?;
    let out = read_all(&stdio.stdout);
    task.run_exec("e1", &stdio, &["/bin/seq", "1", &LINES.to_string()])?;
    ensure!(task.wait("e1")?.exit_status == 0, "it failed");
    task.delete_exec("e1")?;
    let out = text_of(out)?;
    let expected: String = (1..=LINES).map(|n| format!("{n}\r\n")).collect();
    ensure!(out == expected, "{} of {} bytes", out.len(), expected.len());
    task.remove().map(|()| String::new())
}

fn kept_terminal(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "terminal", &Stdio::default(), &SLEEP)?;
    let stdio = Stdio::terminal(bed)?;
    let out = read_all(&stdio.stdout);
    let script = "trap '' HUP; sleep 100000 & echo told";
    task.run_exec("e1", &stdio, &["/bin/sh", "-c", script])?;
    ensure!(task.wait("e1")?.exit_status == 0, "it failed");
    task.delete_exec("e1")?;
    task.remove()?;
    let out = text_of(out)?;
    ensure!(out == "told\r\n", "{out:?}");
    Ok(String::new())
}

fn hang_up(bed: &Bed) -> Result<String> {
    let task = Task::started(bed, "terminal", &Stdio::default(), &SLEEP)?;
    let stdio = Stdio::terminal(bed)?;
    let out = read_all(&stdio.stdout);
    let script = "sh -c \"trap 'touch /hung-up; exit' HUP; touch /ready; while :; do sleep 0.05; done\"; :";
    task.run_exec("e1", &stdio, &["/bin/sh", "-c", script])?;
    let root = format!("/proc/{}/root", task.get("")?.pid);
    let there = |file: &str| {
        ensure!(std::fs::exists(format!("{root}/{file}"))?, "no /{file}");
        Ok(())
    };
    eventually("the child", || there("ready"))?;
    task.kill("e1", 9, false)?;
    ensure!(task.wait("e1")?.exit_status == 137, "not by SIGKILL");
    eventually("the hang-up", || there("hung-up"))?;
    task.delete_exec("e1")?;
    text_of(out)?;
    task.remove().map(|()| String::new())
}
