//! Tags.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::{FILES, SLEEP, publish, tree};
use crate::event::Reporter;
use crate::scenario::capsulectl::{done, json, refused};
use crate::scenario::ctr::{Container, OURS, ctr};

/// Runs the room.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    reporter.must("versions are published, one with tags", || {
        publish("lib@1", &[])?;
        publish("lib@2", &[])?;
        publish("tool@1", &["--require", "lib"])?;
        let said = publish("tool@2", &["--require", "lib", "--tag", "stable", "--tag", "dev-main-3f2a91c"])?;
        Ok(((), said.trim().to_owned()))
    })?;
    let bench = OURS.start("bench", &[], &SLEEP)?;
    reporter.check("a tag is found wherever a version is", || found(&bench));
    reporter.check("a tag moves, and what is attached stays", || moved(&bench));
    reporter.check("no tag is called as a version, and no version as a tag", names);
    reporter.check("a tag goes, the version stays", untagged);
    reporter.check(
        "a version that a broken removal has left by its tag alone stays when that moves or goes",
        left,
    );
    reporter.check("images of others are what their annotations say, and tags of it", annotated);
    bench.remove()?;
    Ok(())
}

/// As a removal that was killed after the first image record leaves it.
fn left() -> Result<String> {
    for version in ["71", "72"] {
        publish(&format!("left@{version}"), &[])?;
    }
    let is_there = || -> Result<bool> {
        let all = json(&["ls", "left"])?;
        let all = all["versions"].as_array().context("versions")?;
        Ok(all.len() == 2 && all.iter().all(|one| one["complete"] == true))
    };
    let ways: [&[&str]; 2] = [&["tag", "left@72", "only"], &["untag", "left@only"]];
    for way in ways {
        done(&["tag", "left@71", "only"])?;
        ctr(&["-n", "capsules", "image", "rm", "--sync", "localhost/capsules/left:71"])?
            .success("ctr image rm")?;
        ensure!(is_there()?, "the tag does not keep it");
        done(way)?;
        ensure!(is_there()?, "after {way:?} it is gone");
        ensure!(tags("left@71")?.is_empty(), "{:?}", tags("left@71")?);
    }
    for version in ["71", "72"] {
        done(&["rm", &format!("left@{version}")])?;
    }
    Ok(String::new())
}

/// The version of `tool` that the container has, by its file and by `ps`.
fn tool(bench: &Container) -> Result<String> {
    let path = format!("/proc/{}/root/opt/tool/version", bench.pid()?);
    let content = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let list = json(&["ps", "bench"])?;
    let all = list["attachments"].as_array().context("attachments")?;
    let shown = all.iter().find(|a| a["capsule"] == "tool").context("no tool in ps")?;
    ensure!(shown["version"] == content.as_str(), "{content}: {shown}");
    Ok(content)
}

fn tags(label: &str) -> Result<Vec<String>> {
    let all = json(&["inspect", label])?;
    let tags = all["version"]["tags"].as_array().context("tags")?;
    Ok(tags.iter().filter_map(|tag| tag.as_str()).map(str::to_owned).collect())
}

fn found(bench: &Container) -> Result<String> {
    ensure!(tags("tool@2")? == ["dev-main-3f2a91c", "stable"], "{:?}", tags("tool@2")?);
    ensure!(tags("tool@stable")? == tags("tool@2")?, "another version");
    let list = done(&["ls", "tool"])?;
    ensure!(list.contains("dev-main-3f2a91c,stable"), "{list}");
    let said = done(&["tag", "tool@1", "old"])?;
    // One that requires something goes through the resolver.
    done(&["attach", "bench", "tool@old"])?;
    ensure!(tool(bench)? == "1", "{}", tool(bench)?);
    done(&["upgrade", "bench", "tool@stable"])?;
    ensure!(tool(bench)? == "2", "{}", tool(bench)?);
    done(&["upgrade", "bench", "tool@old"])?;
    done(&["upgrade", "bench", "tool@latest"])?;
    ensure!(tool(bench)? == "2", "{}", tool(bench)?);
    let planned = json(&["resolve", "tool@old"])?["planned"].to_string();
    ensure!(planned.contains(r#""capsule":"tool""#) && planned.contains(r#""version":"1""#), "{planned}");
    let lock = format!("{FILES}/tool.lock");
    done(&["resolve", "tool@old", "--lock", &lock])?;
    let text = fs::read_to_string(&lock).context("read the lock file")?;
    ensure!(text.contains("version = \"1\"") && !text.contains("old"), "{text}");
    let lost = refused(&["attach", "bench", "tool@lost"], &["has no version lost", "2, 1", "stable (tag)"])?;
    Ok(format!("{} | {lost}", said.trim()))
}

fn moved(bench: &Container) -> Result<String> {
    let said = done(&["tag", "tool@1", "stable", "next"])?;
    ensure!(tool(bench)? == "2", "{}", tool(bench)?);
    ensure!(tags("tool@1")? == ["next", "old", "stable"], "{:?}", tags("tool@1")?);
    ensure!(tags("tool@2")? == ["dev-main-3f2a91c"], "{:?}", tags("tool@2")?);
    done(&["upgrade", "bench", "tool@stable"])?;
    ensure!(tool(bench)? == "1", "{}", tool(bench)?);
    // A tag of a tag is one of its version; `latest` is the newest until somebody says otherwise.
    done(&["tag", "tool@stable", "latest"])?;
    ensure!(json(&["inspect", "tool@latest"])?["version"]["version"] == "1");
    done(&["untag", "tool@latest"])?;
    ensure!(json(&["inspect", "tool@latest"])?["version"]["version"] == "2");
    Ok(said.trim().replace('\n', " | "))
}

fn names() -> Result<String> {
    let line = refused(&["tag", "tool@1", "fresh", "2"], &["tool@2 is a version"])?;
    ensure!(tags("tool@1")? == ["next", "old", "stable"], "one of two was made: {:?}", tags("tool@1")?);
    let tree = tree("tool@stable", "x")?;
    let tree = tree.to_str().context("a path")?;
    let build = |version: &str, tag: &[&str]| {
        let args = ["build", tree, "--name", "tool", "--version", version];
        let words = [&args[..], tag].concat();
        refused(&words, &["tool@"])
    };
    let taken = build("stable", &[])?;
    ensure!(taken.contains("is a tag of tool@1"), "{taken}");
    build("3", &["--tag", "2"])?;
    build("3", &["--tag", "3"])?;
    refused(&["tag", "tool@1", "no space"], &["not valid"])?;
    refused(&["inspect", "tool@3"], &["has no version 3"])?;
    Ok(format!("{line} | {taken}"))
}

fn untagged() -> Result<String> {
    let said = done(&["untag", "tool@old"])?;
    refused(&["untag", "tool@old"], &["has no tag old"])?;
    refused(&["untag", "tool@1"], &["has no tag 1"])?;
    ensure!(json(&["inspect", "tool@1"])?["version"]["complete"] == true);
    Ok(said.trim().to_owned())
}

/// As a registry or an archive leaves them: under a reference of their own and without our labels.
fn annotated() -> Result<String> {
    let reference = "registry.example/team/anything:edge";
    let own = "localhost/capsules/tool:2";
    ctr(&["-n", "capsules", "image", "tag", own, reference])?.success("ctr image tag")?;
    ctr(&[
        "-n",
        "capsules",
        "image",
        "label",
        reference,
        "resourcecapsules.io/name=",
        "resourcecapsules.io/version=",
    ])?
    .success("ctr image label")?;
    wait_for(|| Ok(tags("tool@edge").is_ok()))?;
    ensure!(tags("tool@2")? == ["dev-main-3f2a91c", "edge"], "{:?}", tags("tool@2")?);
    let line = refused(&["untag", "tool@edge"], &[reference, "images rm"])?;
    // The version is there while an image of it is.
    ctr(&["-n", "capsules", "image", "rm", own])?.success("ctr image rm")?;
    wait_for(|| Ok(json(&["inspect", "tool@2"])?["version"]["image"] != own))?;
    ctr(&["-n", "capsules", "image", "tag", reference, own])?.success("ctr image tag")?;
    ctr(&["-n", "capsules", "image", "rm", reference])?.success("ctr image rm")?;
    wait_for(|| Ok(tags("tool@2").is_ok_and(|tags| tags == ["dev-main-3f2a91c"])))?;
    Ok(line)
}

/// capsuled hears of images by events.
pub fn wait_for(mut happened: impl FnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..250 {
        if happened()? {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    anyhow::bail!("it did not happen in 5 s")
}
