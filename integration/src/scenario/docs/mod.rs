//! The examples of the documentation, run as a reader would, one after the other.

#[cfg(test)]
mod check;
#[cfg(test)]
mod errors;
mod page;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use self::page::Part;
use super::ctr::{Container, OURS, Output, ctr, run_long};
use super::world::{World, with_logs};
use crate::event::Reporter;
use crate::nerdctl;

/// A page: the last word of the scenario's name, its file, and its text.
pub type Page = (&'static str, &'static str, &'static str);

/// The pages that have examples.
pub const PAGES: [Page; 21] = [
    ("readme", "README.md", include_str!("../../../../README.md")),
    ("annotations", "docs/annotations.md", include_str!("../../../../docs/annotations.md")),
    ("ca-bundles", "docs/tasks/ca-bundles.md", include_str!("../../../../docs/tasks/ca-bundles.md")),
    ("capsule-toml", "docs/capsule-toml.md", include_str!("../../../../docs/capsule-toml.md")),
    ("distroless", "docs/tasks/distroless.md", include_str!("../../../../docs/tasks/distroless.md")),
    ("docker", "docs/docker.md", include_str!("../../../../docs/docker.md")),
    ("kubernetes", "docs/kubernetes.md", include_str!("../../../../docs/kubernetes.md")),
    ("lifecycle", "docs/lifecycle.md", include_str!("../../../../docs/lifecycle.md")),
    ("metrics", "docs/metrics.md", include_str!("../../../../docs/metrics.md")),
    ("model-weights", "docs/tasks/model-weights.md", include_str!("../../../../docs/tasks/model-weights.md")),
    ("moving", "docs/moving.md", include_str!("../../../../docs/moving.md")),
    ("nerdctl", "docs/nerdctl.md", include_str!("../../../../docs/nerdctl.md")),
    ("operations", "docs/operations.md", include_str!("../../../../docs/operations.md")),
    ("publishing", "docs/publishing.md", include_str!("../../../../docs/publishing.md")),
    ("remote", "docs/remote.md", include_str!("../../../../docs/remote.md")),
    ("seccomp", "docs/seccomp.md", include_str!("../../../../docs/seccomp.md")),
    ("setup", "docs/setup.md", include_str!("../../../../docs/setup.md")),
    ("start", "docs/start.md", include_str!("../../../../docs/start.md")),
    ("toolchain", "docs/tasks/toolchain.md", include_str!("../../../../docs/tasks/toolchain.md")),
    ("volumes", "docs/volumes.md", include_str!("../../../../docs/volumes.md")),
    ("writing", "docs/writing.md", include_str!("../../../../docs/writing.md")),
];

/// Those whose examples need control groups of version 2.
pub const UNIFIED_PAGES: [Page; 3] = [
    ("devices", "docs/devices.md", include_str!("../../../../docs/devices.md")),
    ("gpu-notebook", "docs/tasks/gpu-notebook.md", include_str!("../../../../docs/tasks/gpu-notebook.md")),
    ("limits", "docs/limits.md", include_str!("../../../../docs/limits.md")),
];

/// The page of the package, whose examples are run by the scenario `packages`, section by section.
pub const INSTALL: Page = ("install", "docs/install.md", include_str!("../../../../docs/install.md"));

/// Runs the examples of one page, or of [`UNIFIED_PAGES`], which is `unified`: a machine of theirs takes its time to start.
pub fn run(reporter: &mut Reporter, page: &str) -> Result<()> {
    if page == "unified" {
        return UNIFIED_PAGES.iter().try_for_each(|(page, ..)| run(reporter, page));
    }
    let mut pages = PAGES.iter().chain(&UNIFIED_PAGES);
    let (_, name, source) = pages.find(|(word, ..)| *word == page).context("there is no such page")?;
    if nerdctl::needed_by(&format!("docs-{page}")) {
        nerdctl::install()?;
    }
    with_logs(reporter, |reporter| examples(reporter, name, source))
}

fn examples(reporter: &mut Reporter, name: &str, source: &str) -> Result<()> {
    let world = World::start(true)?;
    OURS.import()?;
    let folder = PathBuf::from("/tmp/docs");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let parts = page::parse(source).with_context(|| format!("read {name}"))?;
    let examples = parts_of(reporter, name, parts)?;
    ensure!(examples > 0, "{name} has no example");
    for id in ctr(&["container", "ls", "-q"])?.success("ctr container ls")?.lines() {
        Container { id: id.to_owned() }.remove()?;
    }
    world.stop()
}

/// Runs the examples of a page's section, whose heading is `## HEADING`, with what is there already.
///
/// # Errors
/// As an example's; a section that is not there, or has no example.
pub fn section(reporter: &mut Reporter, (_, name, source): Page, heading: &str) -> Result<()> {
    let lines =
        page::section(source, heading).with_context(|| format!("{name} has no section {heading:?}"))?;
    let parts = page::parse(source).with_context(|| format!("read {name}"))?;
    let parts = parts.into_iter().filter(|part| lines.contains(&part.line())).collect();
    ensure!(parts_of(reporter, name, parts)? > 0, "{name}: {heading} has no example");
    Ok(())
}

/// Runs them in order, in `/tmp/docs`; how many examples they are.
fn parts_of(reporter: &mut Reporter, name: &str, parts: Vec<Part>) -> Result<u32> {
    let folder = Path::new("/tmp/docs");
    let mut examples = 0;
    for part in parts {
        match part {
            Part::Prepare { line, script } => {
                let script = format!("set -eu\n{script}");
                reporter.must(&format!("{name}:{line} prepared"), || {
                    sh(&script)?.success("the preparation")?;
                    Ok(((), String::new()))
                })?;
            }
            Part::Example { line, command, prints } => {
                examples += 1;
                // The next ones build on it.
                reporter.must(&format!("{name}:{line}  {command}"), || {
                    Ok(((), example(&command, prints.as_deref())?))
                })?;
            }
            Part::File { line, path, text } => {
                reporter.must(&format!("{name}:{line} is {path}"), || {
                    fs::write(folder.join(&path), text).with_context(|| format!("write {path}"))?;
                    Ok(((), String::new()))
                })?;
            }
            Part::Shown { line, reason } => {
                reporter.must(&format!("{name}:{line} is shown only"), || Ok(((), reason)))?;
            }
        }
    }
    Ok(examples)
}

/// Runs it; its first line.
fn example(command: &str, prints: Option<&str>) -> Result<String> {
    let output = sh(command)?;
    let all = format!("{}{}", output.out, output.err);
    let fails = prints.is_some_and(|prints| prints.starts_with("capsulectl: "));
    ensure!((output.code != 0) == fails, "exit status {}: {all}", output.code);
    if let Some(expected) = prints {
        ensure!(page::prints(expected, &all), "is shown with {expected:?}, and prints {all:?}");
    }
    Ok(all.lines().next().unwrap_or_default().to_owned())
}

fn sh(script: &str) -> Result<Output> {
    run_long("sh", &["-c", &format!("export HOME=/root\ncd /tmp/docs\n{script}")], b"")
}
