//! Following what is told, as it comes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::spawn;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::capsulectl::done;
use super::ctr::ctr;
use super::world::path;

/// How long an event may take to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// `capsulectl events`, or another program that prints a line for each event.
#[derive(Debug)]
pub struct Follower {
    child: Child,
    lines: Receiver<String>,
}

impl Follower {
    /// Starts it.
    pub fn start(program: &str, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(args).env("PATH", path()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {program}"))?;
        let output = child.stdout.take().context("its output")?;
        let (sender, lines) = channel();
        spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// `ctr events`, which hears all that happens from now on: it says when it has begun to listen by nothing but an event.
    pub fn of_containerd() -> Result<Self> {
        let stream = Self::start("ctr", &["events"])?;
        for probe in 0..PATIENCE.as_secs() * 5 {
            ctr(&["namespaces", "label", "default", &format!("probe={probe}")])?
                .success("ctr namespaces label")?;
            if stream.lines.recv_timeout(Duration::from_millis(200)).is_ok() {
                return Ok(stream);
            }
        }
        bail!("ctr events hears nothing")
    }

    /// The next line.
    pub fn next(&self) -> Result<String> {
        self.lines.recv_timeout(PATIENCE).context("no event in a minute")
    }

    /// The next events, each as `KIND CAPSULE VERSION`.
    pub fn kinds(&self, count: usize) -> Result<Vec<String>> {
        let kind = |line: String| -> Result<String> {
            let event: Value = serde_json::from_str(&line).context("JSON")?;
            Ok(format!("{} {} {}", event["kind"], event["capsule"], event["version"]).replace('"', ""))
        };
        (0..count).map(|_| kind(self.next()?)).collect()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The number of the newest event.
pub fn last() -> Result<String> {
    let all = done(&["events", "--all", "--no-follow", "-o", "json"])?;
    let event: Value = serde_json::from_str(all.lines().last().context("no event")?).context("JSON")?;
    Ok(event["sequence"].to_string())
}
