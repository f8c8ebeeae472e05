//! What a crash may leave on a node beside what capsuled lists: mounts, loop devices, files of the pool, images.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::OnceLock;

use anyhow::{Context as _, Result};

use super::model::Node;
use super::others::{RUN, bounded};
use crate::scenario::ctr::ctr;

/// The node's mounts before there was anything.
static MOUNTS: OnceLock<String> = OnceLock::new();

fn mounts() -> Result<String> {
    fs::read_to_string("/proc/self/mountinfo").context("mounts")
}

/// Takes down what is mounted before anything is.
pub fn remember() -> Result<()> {
    MOUNTS.set(mounts()?).ok().context("it is remembered twice")
}

/// What is there that nothing needs, and what is needed and not there.
pub fn on_the_node(node: &Node) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let before = MOUNTS.get().context("nothing is remembered")?;
    // Those of containers' roots are containerd's.
    let ours = |line: &&str| line.contains("capsule") && !line.contains(" /run/containerd/");
    left.extend(mounts()?.lines().filter(ours).filter(|line| !before.contains(*line)).map(str::to_owned));
    let devices = fs::read_dir("/sys/block").context("block devices")?.flatten();
    let files = devices.filter_map(|d| fs::read_to_string(d.path().join("loop/backing_file")).ok());
    let loops = files.filter(|file| file.contains(RUN.as_str())).count();
    let wanted = bounded(node).len();
    if loops != wanted {
        left.push(format!("{loops} loop devices, not {wanted}"));
    }
    let pool = "/var/lib/capsule/pool";
    for entry in fs::read_dir(pool).context("the pool")?.flatten() {
        // It may go at this moment.
        if entry.metadata().is_ok_and(|file| file.nlink() < 2) {
            left.push(format!("no version has {pool}/{}", entry.file_name().display()));
        }
    }
    left.extend(images(node)?);
    Ok(left)
}

/// Images of the capsules' namespace that are no version, tag or signature.
fn images(node: &Node) -> Result<Vec<String>> {
    let list = ctr(&["-n", "capsules", "images", "ls", "-q"])?.success("ctr images ls")?;
    let versions =
        node.published.iter().flat_map(|(name, all)| all.iter().map(move |v| format!("{name}:{v}")));
    let tags = node.tags.keys().map(|(name, tag)| format!("{name}:{tag}"));
    let known: BTreeSet<String> =
        versions.chain(tags).map(|name| format!("localhost/capsules/{name}")).collect();
    let is_known = |image: &&str| known.contains(*image) || image.ends_with(".sig");
    Ok(list.lines().filter(|image| !is_known(image)).map(|image| format!("the image {image}")).collect())
}
