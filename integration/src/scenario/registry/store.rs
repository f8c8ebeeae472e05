//! What containerd holds in the capsules' namespace, so that it can be compared and taken away.

use anyhow::{Result, ensure};

use crate::scenario::ctr::ctr;

/// Everything that a call could leave behind, sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    images: Vec<String>,
    blobs: Vec<String>,
    ingests: Vec<String>,
    leases: Vec<String>,
    snapshots: Vec<String>,
}

fn words(args: &[&str], header: bool) -> Result<Vec<String>> {
    let out = ctr(&[&["-n", "capsules"], args].concat())?.success(&args.join(" "))?;
    let lines = out.lines().skip(usize::from(header));
    let mut first: Vec<String> =
        lines.filter_map(|line| line.split_ascii_whitespace().next()).map(str::to_owned).collect();
    // capsuled looks for what crashes have left whenever it likes.
    first.retain(|name| !name.contains("capsule-sweep-"));
    first.sort();
    Ok(first)
}

/// What is held now.
pub fn held() -> Result<Held> {
    Ok(Held {
        images: words(&["image", "ls", "-q"], false)?,
        blobs: words(&["content", "ls", "-q"], false)?,
        ingests: words(&["content", "active"], true)?,
        leases: words(&["leases", "ls", "-q"], false)?,
        snapshots: words(&["snapshot", "--snapshotter", "capsule", "ls"], true)?,
    })
}

/// Runs something that must fail, after which all is as it was.
pub fn leaves_nothing<T>(fails: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = held()?;
    let told = fails()?;
    same(&before)?;
    Ok(told)
}

/// Waits until all is as it was: what is abandoned is cleared up behind its caller's back.
pub fn same(before: &Held) -> Result<()> {
    let mut now = held()?;
    for _ in 0..500 {
        if now == *before {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        now = held()?;
    }
    ensure!(now == *before, "left behind: before {before:#?}, now {now:#?}");
    Ok(())
}

/// Makes this another machine: one that has no capsule, nor any content of one.
pub fn wipe() -> Result<()> {
    let images = words(&["image", "ls", "-q"], false)?;
    let names: Vec<&str> = images.iter().map(String::as_str).collect();
    if !names.is_empty() {
        ctr(&[&["-n", "capsules", "image", "rm", "--sync"], &names[..]].concat())?.success("ctr image rm")?;
    }
    for _ in 0..250 {
        let held = held()?;
        if held.blobs.is_empty() && held.snapshots.is_empty() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    anyhow::bail!("the store is not empty: {:#?}", held()?)
}
