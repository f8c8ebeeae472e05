//! Versions under names that move, and on their way between machines.
//!
//! | room | what it asserts |
//! | --- | --- |
//! | [`tags`] | a tag is found wherever a version is, moves, and hides none |
//! | [`moves`] | versions come through a registry as they were sent, or not at all and without a trace |
//! | [`archives`] | the same in a file, and from one containerd namespace to another |
//! | [`altered`] | bytes that are not what their digests say are taken by no way in, and told by their digest |
//! | [`signed`] | signatures come along, and a policy that wants them refuses what has none |
//! | [`terminal`] | a person sees how far a transfer is |
//! | [`old`] | what containerd 1.7 cannot do is said |
//! | [`daemon`] | nothing: a registry, and a bad line to it |
//! | [`store`] | nothing: what containerd holds |

mod altered;
mod archives;
pub(super) mod daemon;
mod moves;
mod old;
mod signed;
pub(super) mod store;
mod tags;
mod terminal;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::capsulectl::done;
use super::ctr::OURS;
use super::world::{World, with_logs};
use crate::event::Reporter;

const SLEEP: [&str; 2] = ["/bin/sleep", "100000"];
/// Where trees and archives are.
const FILES: &str = "/tmp/registry";

/// Runs every case; with `old`, those that containerd 1.7 has.
pub fn run(reporter: &mut Reporter, old: bool) -> Result<()> {
    with_logs(reporter, |reporter| cases(reporter, old))
}

fn cases(reporter: &mut Reporter, old: bool) -> Result<()> {
    let mut world = World::start(true)?;
    reporter.must("an image is there", || {
        OURS.import()?;
        Ok(((), String::new()))
    })?;
    tags::run(reporter)?;
    if old {
        old::run(reporter)?;
    } else {
        moves::run(reporter, &mut world)?;
    }
    archives::run(reporter)?;
    altered::run(reporter, old)?;
    if !old {
        signed::run(reporter, &mut world)?;
    }
    world.stop()
}

/// Publishes a tree of one file that holds the version, with more words for `build`. Its target is `/opt/NAME`.
fn publish(label: &str, more: &[&str]) -> Result<String> {
    let (name, version) = label.split_once('@').context("NAME@VERSION")?;
    let tree = tree(label, version)?;
    let tree = tree.to_str().context("a path")?;
    let target = format!("/opt/{name}");
    let args = ["build", tree, "--name", name, "--version", version, "--target", &target];
    done(&[&args[..], more].concat())
}

fn tree(label: &str, content: &str) -> Result<PathBuf> {
    let tree = Path::new(FILES).join(label);
    fs::create_dir_all(&tree).with_context(|| format!("create {}", tree.display()))?;
    fs::write(tree.join("version"), content).context("write a file")?;
    Ok(tree)
}
