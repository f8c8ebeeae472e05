//! Capsules, as `capsulectl` drives them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::ctr::{Output, run};

/// Where the payload's capsule trees are.
pub const TREES: &str = "/payload/capsules";

/// Runs `capsulectl`.
pub fn capsulectl(args: &[&str]) -> Result<Output> {
    run("capsulectl", args, b"")
}

/// Runs `capsulectl`, which must succeed, and parses its JSON.
pub fn json(args: &[&str]) -> Result<Value> {
    let args: Vec<&str> = ["--output", "json"].iter().chain(args).copied().collect();
    let out = capsulectl(&args)?.success(&format!("capsulectl {}", args.join(" ")))?;
    serde_json::from_str(&out).with_context(|| format!("no JSON: {out:?}"))
}

/// Runs `capsulectl`, which must succeed.
pub fn done(args: &[&str]) -> Result<String> {
    capsulectl(args)?.success(&format!("capsulectl {}", args.join(" ")))
}

/// Runs `capsulectl`, which must refuse with one line that names every one of `words`; the line.
pub fn refused(args: &[&str], words: &[&str]) -> Result<String> {
    let output = capsulectl(args)?;
    let line = output.err.trim().to_owned();
    ensure!(output.code == 1, "exit status {} instead of 1: {}{line}", output.code, output.out);
    ensure!(line.lines().count() == 1, "not one line: {line:?}");
    ensure!(output.out.is_empty(), "wrote {:?}", output.out);
    for word in words {
        ensure!(line.contains(word), "does not name {word:?}: {line}");
    }
    Ok(line)
}

/// An attachment as `ps` shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// The container's id.
    pub container: String,
    /// The capsule.
    pub capsule: String,
    /// Its version.
    pub version: String,
    /// Where.
    pub target: String,
    /// `attached` or `draining`.
    pub state: String,
    /// Commands of the processes that use it.
    pub users: Vec<String>,
}

/// What `capsulectl ps` shows, sorted.
pub fn ps() -> Result<Vec<Seen>> {
    let list = json(&["ps"])?;
    let attachments = list["attachments"].as_array().context("ps has no attachments")?;
    let mut seen: Vec<Seen> = attachments.iter().map(seen).collect::<Result<_>>()?;
    seen.sort();
    Ok(seen)
}

fn seen(attachment: &Value) -> Result<Seen> {
    let text = |field: &str| -> Result<String> {
        Ok(attachment[field].as_str().with_context(|| format!("no {field} in {attachment}"))?.to_owned())
    };
    let users = attachment["users"].as_array().context("no users")?;
    Ok(Seen {
        container: text("container")?,
        capsule: text("capsule")?,
        version: text("version")?,
        target: text("target")?,
        state: text("state")?,
        users: users.iter().filter_map(|user| user["command"].as_str()).map(str::to_owned).collect(),
    })
}

/// The two releases of tzdata in the payload, older first: version and tree.
pub fn tzdata() -> Result<[(String, PathBuf); 2]> {
    let mut found: Vec<(String, PathBuf)> = fs::read_dir(TREES)
        .with_context(|| format!("read {TREES}"))?
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.strip_prefix("tzdata-")?.to_owned();
            Some((version, entry.path()))
        })
        .collect();
    found.sort();
    found.try_into().map_err(|found| anyhow::anyhow!("two releases of tzdata are expected: {found:?}"))
}

/// Publishes a tree; the digest.
pub fn build(tree: &Path, name: &str, version: &str, target: &str) -> Result<String> {
    let tree = tree.to_str().context("a path that is no text")?;
    let built = json(&["build", tree, "--name", name, "--version", version, "--target", target])?;
    Ok(built["version"]["digest"].as_str().context("build names no digest")?.to_owned())
}

/// Publishes both releases of tzdata and the debugging tools; the versions of tzdata, older first.
pub fn publish() -> Result<[String; 2]> {
    let releases = tzdata()?;
    for (version, tree) in &releases {
        build(tree, "tzdata", version, "/usr/share/zoneinfo")?;
    }
    build(&Path::new(TREES).join("debug-tools"), "debug-tools", "1.0.0", "/")?;
    Ok(releases.map(|(version, _)| version))
}
