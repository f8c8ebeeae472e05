//! What a person sees of a transfer: a bar on a terminal, which leaves nothing behind; lines elsewhere; for programs, nothing.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::FILES;
use super::daemon::{End, Registry, line};
use super::store::wipe;
use crate::event::Reporter;
use crate::scenario::capsulectl::capsulectl;
use crate::scenario::ctr::Output;
use crate::scenario::terminal::{ESCAPE, on_a_terminal, on_one_called};

/// Takes a line away.
const CLEARED: &str = "\x1b[2K";

/// Runs the room. The registry has `team/large:1`, whose layer is of 24 MiB.
pub fn run(reporter: &mut Reporter, open: &Registry) {
    reporter.check("a pull on a terminal shows a bar, and then the result alone", || bar(open));
    reporter.check("the bar tells how far it is", || halfway(open));
    reporter.check("what fails on a terminal is told on a line of its own", || failed(open));
    reporter.check("the bar is on the terminal, and the result where it is sent to", || redirected(open));
    reporter.check("a push on a terminal shows a bar", || pushed(open));
    reporter.check(
        "elsewhere, and where nothing can be drawn, there are lines, and for programs there is nothing",
        || elsewhere(open),
    );
}

/// What is on the screen's last lines, after the bar.
fn after_the_bar(seen: &Output) -> Result<String> {
    let (bar, rest) = seen.out.rsplit_once(CLEARED).with_context(|| format!("no bar: {:?}", seen.out))?;
    ensure!(bar.contains('░') || bar.contains('█'), "no bar: {bar:?}");
    ensure!(!rest.contains(ESCAPE) && !rest.contains('░') && !rest.contains('█'), "a bar is left: {rest:?}");
    Ok(rest.replace('\r', ""))
}

fn bar(open: &Registry) -> Result<String> {
    wipe()?;
    let seen = on_a_terminal(&format!("capsulectl pull {}", open.at("team/large:1")))?;
    let rest = after_the_bar(&seen)?;
    ensure!(seen.code == 0, "{seen:?}");
    ensure!(rest.starts_with("large@1  sha256:") && rest.trim().lines().count() == 1, "{rest:?}");
    // Lines would scroll the bar away.
    ensure!(!seen.out.contains("downloading layer-sha256:"), "{:?}", seen.out);
    Ok(rest.trim().to_owned())
}

/// It stops after 6 MiB, and is interrupted.
fn halfway(open: &Registry) -> Result<String> {
    wipe()?;
    let host = line(5012, &open.host, 6 << 20, End::Hangs)?;
    let seen = on_a_terminal(&format!("timeout --signal=INT 3 capsulectl pull {host}/team/large:1"))?;
    let shown: Vec<&str> = seen.out.split(CLEARED).flat_map(|text| text.split('\r')).collect();
    let last = shown.iter().rev().find(|text| text.contains("/24.00 MiB")).copied();
    let last = last
        .with_context(|| format!("no bar of 24 MiB: {:?}", shown.iter().rev().take(5).collect::<Vec<_>>()))?;
    ensure!(last.contains('█') && last.contains('░'), "it is not halfway: {last:?}");
    let done: f64 = last
        .split_once('/')
        .and_then(|(before, _)| before.split_whitespace().rev().nth(1)?.parse().ok())
        .with_context(|| format!("no number in {last:?}"))?;
    ensure!((1.0..=6.5).contains(&done), "{done} MiB of the 6 that came: {last:?}");
    Ok(last.trim().to_owned())
}

fn failed(open: &Registry) -> Result<String> {
    wipe()?;
    let host = line(5013, &open.host, 6 << 20, End::Breaks)?;
    let seen = on_a_terminal(&format!("capsulectl pull {host}/team/large:1"))?;
    let rest = after_the_bar(&seen)?;
    ensure!(seen.code == 1, "{seen:?}");
    ensure!(rest.starts_with("capsulectl: ") && rest.contains("cannot pull"), "{rest:?}");
    Ok(rest.trim().to_owned())
}

fn redirected(open: &Registry) -> Result<String> {
    wipe()?;
    let file = format!("{FILES}/result");
    let seen = on_a_terminal(&format!("capsulectl pull {} > {file}", open.at("team/large:1")))?;
    let rest = after_the_bar(&seen)?;
    ensure!(seen.code == 0 && rest.is_empty(), "{seen:?}");
    let result = fs::read_to_string(&file).context(file)?;
    ensure!(result.starts_with("large@1  sha256:") && !result.contains(ESCAPE), "{result:?}");
    Ok(String::new())
}

fn pushed(open: &Registry) -> Result<String> {
    // Not there yet, so that its bytes are sent.
    let seen = on_a_terminal(&format!("capsulectl push large {}", open.at("other/large")))?;
    let rest = after_the_bar(&seen)?;
    ensure!(seen.code == 0 && rest.contains("pushed to"), "{seen:?}");
    Ok(rest.trim().to_owned())
}

fn elsewhere(open: &Registry) -> Result<String> {
    wipe()?;
    let pull = ["pull", &open.at("team/large:1")];
    let lines = capsulectl(&pull)?;
    ensure!(lines.code == 0 && lines.err.contains("unpacking large@1\n"), "{lines:?}");
    ensure!(!lines.err.contains(ESCAPE) && !lines.err.contains('\r'), "{lines:?}");
    wipe()?;
    let dumb = on_one_called("dumb", &format!("capsulectl {}", pull.join(" ")))?;
    ensure!(dumb.code == 0 && dumb.out.contains("unpacking large@1\r\n"), "{dumb:?}");
    ensure!(!dumb.out.contains(ESCAPE), "{dumb:?}");
    wipe()?;
    let seen = on_a_terminal(&format!("capsulectl --output json {}", pull.join(" ")))?;
    let document: serde_json::Value = serde_json::from_str(&seen.out).with_context(|| format!("{seen:?}"))?;
    ensure!(seen.code == 0 && document["version"]["capsule"] == "large", "{seen:?}");
    Ok(lines.err.lines().collect::<Vec<_>>().join(" | "))
}
