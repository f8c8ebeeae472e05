//! From one machine to another in a file, and from one containerd namespace to another.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::store::{leaves_nothing, wipe};
use super::{FILES, SLEEP, publish};
use crate::event::Reporter;
use crate::scenario::capsulectl::{capsulectl, done, json, refused};
use crate::scenario::ctr::{OURS, ctr, run as program};

const ARCHIVE: &str = "/tmp/registry/capsules.tar";

/// Runs the room.
pub fn run(reporter: &mut Reporter) -> Result<()> {
    reporter.check("versions are saved, and loaded on another machine", saved);
    reporter.check("what ctr and docker write is loaded, and ctr reads what is saved", others);
    reporter.check("an archive that is cut, altered or none leaves nothing", damaged);
    reporter.check("an archive is taken whole or not at all", whole);
    reporter.check("an image of another namespace becomes a version, and is attached", imported);
    Ok(())
}

fn digests() -> Result<Vec<String>> {
    let all = json(&["ls"])?;
    let versions = all["versions"].as_array().context("versions")?;
    Ok(versions.iter().map(|v| format!("{}@{} {}", v["capsule"], v["version"], v["digest"])).collect())
}

fn saved() -> Result<String> {
    wipe()?;
    publish("a@1", &["--tag", "stable"])?;
    publish("a@2", &[])?;
    publish("b@1", &["--require", "a"])?;
    let known = digests()?;
    let said = done(&["save", "a@stable", "a", "b", "-f", ARCHIVE])?;
    wipe()?;
    let arrived = json(&["load", "-f", ARCHIVE])?;
    ensure!(
        arrived["arrived"].as_array().context("arrived")?.iter().all(|one| one["existed"] == false),
        "{arrived}"
    );
    ensure!(digests()? == known, "{:?} instead of {known:?}", digests()?);
    let a = json(&["inspect", "a@stable"])?["version"].clone();
    ensure!(a["version"] == "1" && a["complete"] == true, "{a}");
    // Again, through a pipe.
    let piped = "capsulectl save a@1 b | capsulectl load";
    let again = program("sh", &["-c", piped], b"")?.success(piped)?;
    ensure!(again.lines().count() == 2 && again.lines().all(|line| line.contains("already here")), "{again}");
    refused(&["save", "lost", "-f", "/tmp/registry/lost.tar"], &["lost is not known"])?;
    ensure!(!Path::new("/tmp/registry/lost.tar").exists(), "a file is there");
    let names = fs::read_dir("/tmp/registry").context("read the folder")?.flatten();
    let parts: Vec<_> =
        names.map(|one| one.file_name()).filter(|n| n.to_string_lossy().ends_with(".part")).collect();
    ensure!(parts.is_empty(), "parts of files are there: {parts:?}");
    Ok(said.trim().to_owned())
}

fn others() -> Result<String> {
    ctr(&["-n", "elsewhere", "image", "import", "--snapshotter", "overlayfs", ARCHIVE])?
        .success("ctr image import")?;
    let list = ctr(&["-n", "elsewhere", "image", "ls", "-q"])?.success("ctr image ls")?;
    ensure!(list.contains("localhost/capsules/b:1"), "{list}");
    let exported = "/tmp/registry/ctr.tar";
    // Through the transfer service ctr may end before the last bytes are written: the service does not end the stream.
    ctr(&["-n", "elsewhere", "image", "export", "--local", exported, "localhost/capsules/b:1"])?
        .success("ctr image export")?;
    let known = digests()?;
    wipe()?;
    done(&["load", "-f", exported])?;
    ensure!(known.iter().any(|one| digests().is_ok_and(|now| now == [one.clone()])), "{:?}", digests()?);
    // As `docker save` writes it: only Docker's own manifest.
    let docker = without(exported, &["index.json", "oci-layout"], |bytes| bytes)?;
    wipe()?;
    fs::write("/tmp/registry/docker.tar", docker).context("write an archive")?;
    let said = done(&["load", "-f", "/tmp/registry/docker.tar"])?;
    ensure!(said.starts_with("b@1 "), "{said}");
    for image in list.lines() {
        ctr(&["-n", "elsewhere", "image", "rm", image])?.success("ctr image rm")?;
    }
    Ok(said.trim().to_owned())
}

/// An archive without some of its members, and with what `change` makes of its layers.
fn without(archive: &str, names: &[&str], change: impl Fn(Vec<u8>) -> Vec<u8>) -> Result<Vec<u8>> {
    let file = fs::File::open(archive).with_context(|| format!("open {archive}"))?;
    let mut builder = tar::Builder::new(Vec::new());
    for entry in tar::Archive::new(file).entries().context("read an archive")? {
        let mut entry = entry.context("read a member")?;
        let path = entry.path().context("a path")?.into_owned();
        let mut header = entry.header().clone();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).context("read a member")?;
        if path.to_str().is_some_and(|path| names.contains(&path)) {
            continue;
        }
        // A layer is a tar: its first member's mark is at 257 (pax, "ustar Interchange Format").
        if bytes.get(257..262) == Some(b"ustar") {
            bytes = change(bytes);
        }
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, path, &bytes[..]).context("write a member")?;
    }
    builder.into_inner().context("end an archive")
}

fn damaged() -> Result<String> {
    wipe()?;
    let whole = fs::read(ARCHIVE).context("read an archive")?;
    let flipped = without(ARCHIVE, &[], |mut bytes| {
        let end = bytes.len() - 1;
        bytes[end] ^= 1;
        bytes
    })?;
    let mut told = Vec::new();
    for (name, bytes, word) in [
        ("cut", &whole[..whole.len() / 2], "cannot load the archive"),
        ("flipped", &flipped[..], "is altered"),
        ("none", &b"no archive"[..], "cannot load the archive: it"),
        ("empty", &b""[..], "cannot load the archive: it is no OCI"),
    ] {
        let path = format!("{FILES}/{name}.tar");
        fs::write(&path, bytes).context("write an archive")?;
        let line = leaves_nothing(|| refused(&["load", "-f", &path], &[word]))?;
        told.push(line);
    }
    refused(&["load", "-f", "/tmp/registry/nothing.tar"], &["/tmp/registry/nothing.tar", "No such file"])?;
    Ok(told.join(" | "))
}

fn whole() -> Result<String> {
    wipe()?;
    // One of them is here with other content.
    let tree = super::tree("other-a", "another content")?;
    let tree = tree.to_str().context("a path")?;
    done(&["build", tree, "--name", "a", "--version", "2"])?;
    leaves_nothing(|| refused(&["load", "-f", ARCHIVE], &["a@2 is here already as sha256:"]))
}

fn imported() -> Result<String> {
    OURS.import()?;
    let image = "localhost/busybox:latest";
    leaves_nothing(|| {
        refused(&["import", "localhost/lost:1", "-n", "default"], &["no image localhost/lost:1"])
    })?;
    let output = capsulectl(&["import", image])?;
    ensure!(output.code == 2 && output.err.contains("--namespace"), "{output:?}");
    let said = done(&["import", image, "--namespace", "default", "--as", "box@1"])?;
    let again = json(&["import", image, "--namespace", "default", "--as", "box@1"])?;
    ensure!(again["existed"] == true, "{again}");
    let bench = OURS.start("imported", &[], &SLEEP)?;
    done(&["attach", "imported", "box@1", "--target", "/opt/box"])?;
    let out = bench.sh("box", "/opt/box/bin/busybox echo here")?;
    ensure!(out == "here\n", "{out:?}");
    done(&["detach", "imported", "box"])?;
    bench.remove()?;
    Ok(said.trim().to_owned())
}
