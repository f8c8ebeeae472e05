//! Programs on a terminal, which script(1) makes.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::capsulectl::done;
use super::ctr::{Container, Output, run};

/// Begins a control sequence of a terminal (ECMA-48).
pub const ESCAPE: char = '\x1b';
/// xterm's other screen, and the one from before again.
const OTHER: [&str; 2] = ["\x1b[?1049h", "\x1b[?1049l"];
/// The cursor is seen again.
const CURSOR: &str = "\x1b[?25h";

/// Runs a command of a shell on a terminal of a hundred columns; all that was written to it.
pub fn on_a_terminal(command: &str) -> Result<Output> {
    on_one_called("xterm", command)
}

/// The same on a terminal of another kind.
pub fn on_one_called(terminal: &str, command: &str) -> Result<Output> {
    let command = format!("stty cols 100 rows 30; export TERM={terminal}; {command}");
    run("script", &["--quiet", "--return", "--command", &command, "/dev/null"], b"")
}

/// `capsulectl top` shows what is attached meanwhile, and whatever ends it, the terminal is as it was. `lib@1` is attached, and
/// `tool@1` is there.
pub fn top(shop: &Container) -> Result<String> {
    let mut said = Vec::new();
    for (how, end) in
        [("the key q", "printf q"), ("Control-C", "printf '\\003'"), ("SIGTERM", "pkill -TERM -x capsulectl")]
    {
        let tool = format!("capsulectl attach {} tool@1", shop.id);
        // Keys are typed when it is there: before, the terminal would show them.
        let typed = format!("sleep 2; {tool} >/dev/null; sleep 2; {end}; sleep 1");
        let shown =
            "stty -g >/tmp/before; capsulectl top --every 500ms; echo $? >/tmp/code; stty -g >/tmp/after";
        let script = format!(
            "({typed}) | script --quiet --return --command 'stty cols 100 rows 30; export TERM=xterm; {shown}' /dev/null"
        );
        let seen = run("sh", &["-c", &script], b"")?;
        restored(&seen).with_context(|| format!("ended by {how}: {:?}", seen.out))?;
        let (first, later) = seen.out.split_once("lib@1").context("it does not show what is attached")?;
        ensure!(
            !first.contains("tool@1") && later.contains("tool@1"),
            "it is not drawn again: {:?}",
            seen.out
        );
        done(&["detach", &shop.id, "tool"])?;
        said.push(how);
    }
    Ok(format!("ended by {}", said.join(", ")))
}

fn restored(seen: &Output) -> Result<()> {
    let [there, back] = OTHER.map(|sequence| seen.out.matches(sequence).count());
    ensure!((there, back) == (1, 1), "{there} times to the other screen, {back} times back");
    let (_, rest) = seen.out.rsplit_once(OTHER[1]).context("the screen from before")?;
    ensure!(!rest.replace(CURSOR, "").contains(ESCAPE) && seen.out.contains(CURSOR), "left: {rest:?}");
    let [code, before, after] =
        ["code", "before", "after"].map(|name| fs::read_to_string(format!("/tmp/{name}")));
    let (code, before, after) = (code?, before?, after?);
    ensure!(code == "0\n" && before == after, "exit status {code}; {before} before, {after} after");
    Ok(())
}
