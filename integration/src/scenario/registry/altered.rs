//! Content that is not what its digest says: in an archive, and in containerd's content store, where containerd itself looks at
//! it no more.

use std::fs;
use std::io::Read as _;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::daemon::{Door, Registry};
use super::store::{leaves_nothing, wipe};
use super::{FILES, SLEEP};
use crate::event::Reporter;
use crate::images::layer::{self, Entry};
use crate::images::oci::{Archive, Packed};
use crate::scenario::capsulectl::{done, json, ps, refused};
use crate::scenario::ctr::{OURS, ctr};

const IMAGE: &str = "localhost/packed:1";
const ARCHIVE: &str = "/tmp/registry/packed.tar";
const CONTENT: &str = "/var/lib/containerd/io.containerd.content.v1.content/blobs/sha256";

/// Runs the room; with `old`, what containerd 1.7 has of it.
pub fn run(reporter: &mut Reporter, old: bool) -> Result<()> {
    let parts = reporter.must("an image of a plain and a packed layer is there", || {
        fs::create_dir_all(FILES).context("create a folder")?;
        let mut archive = Archive::create(ARCHIVE.as_ref())?;
        for (name, packed) in [("plain", Packed::Plain), ("packed", Packed::Gzip)] {
            archive.layer(&layer::archive(&[Entry::file(name, vec![7; 5000])])?, packed)?;
        }
        archive.finish(IMAGE)?;
        ctr(&["-n", "elsewhere", "image", "import", "--snapshotter", "overlayfs", ARCHIVE])?
            .success("ctr image import")?;
        Ok((parts()?, String::new()))
    })?;
    reporter.check("an altered blob of an archive is named", || loaded(&parts));
    reporter.check("an image with an altered blob is not imported", || imported(&parts));
    reporter.check("an image with an altered blob is not published", || built(&parts));
    if !old {
        reporter.check("what containerd has already is not taken when it is altered", || pulled(&parts));
    }
    reporter.check("a version with an altered layer is not attached", || attached(&parts));
    Ok(())
}

/// A blob of the image, and which of its bytes to alter: one that neither JSON nor gzip has a use for, where there is one.
struct Part {
    what: &'static str,
    digest: String,
    at: usize,
    is_layer: bool,
}

fn parts() -> Result<Vec<Part>> {
    let index: Value = serde_json::from_slice(&member("index.json")?).context("an index")?;
    let manifest = digest(&index["manifests"][0])?;
    let read: Value = serde_json::from_slice(&blob(&manifest)?).context("a manifest")?;
    let (config, plain, packed) =
        (digest(&read["config"])?, digest(&read["layers"][0])?, digest(&read["layers"][1])?);
    // The letter case of a key; a byte of a file; the operating system of a gzip header (RFC 1952, 2.3).
    let key = |digest: &str| -> Result<usize> {
        Ok(blob(digest)?.iter().position(|byte| *byte == b'"').context("a key")? + 1)
    };
    let plain_at = blob(&plain)?.iter().position(|byte| *byte == 7).context("a file")?;
    Ok(vec![
        Part { what: "manifest", at: key(&manifest)?, digest: manifest, is_layer: false },
        Part { what: "config", at: key(&config)?, digest: config, is_layer: false },
        Part { what: "plain", at: plain_at, digest: plain, is_layer: true },
        Part { what: "packed", at: 9, digest: packed, is_layer: true },
    ])
}

fn digest(descriptor: &Value) -> Result<String> {
    Ok(descriptor["digest"].as_str().context("a digest")?.to_owned())
}

fn path(digest: &str) -> String {
    digest.replacen("sha256:", &format!("{CONTENT}/"), 1)
}

fn blob(digest: &str) -> Result<Vec<u8>> {
    let path = path(digest);
    fs::read(&path).with_context(|| format!("read {path}"))
}

fn member(name: &str) -> Result<Vec<u8>> {
    let file = fs::File::open(ARCHIVE).context("open an archive")?;
    for entry in tar::Archive::new(file).entries().context("read an archive")? {
        let mut entry = entry.context("read a member")?;
        if entry.path().context("a path")?.to_str() == Some(name) {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).context("read a member")?;
            return Ok(bytes);
        }
    }
    anyhow::bail!("no {name} in {ARCHIVE}")
}

/// Runs something while the byte is another in containerd's content store.
fn while_altered<T>(part: &Part, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let (path, right) = (path(&part.digest), blob(&part.digest)?);
    let mut wrong = right.clone();
    wrong[part.at] ^= 0x20;
    fs::write(&path, &wrong).context("alter a blob")?;
    let done = run();
    fs::write(&path, &right).context("put a blob back")?;
    done.with_context(|| format!("{} {}", part.what, part.digest))
}

fn loaded(parts: &[Part]) -> Result<String> {
    wipe()?;
    let (mut told, path) = (String::new(), format!("{FILES}/altered.tar"));
    let whole = fs::read(ARCHIVE).context("read an archive")?;
    for part in parts {
        let right = blob(&part.digest)?;
        let place = whole.windows(right.len()).position(|bytes| bytes == right).context("its place")?;
        let mut bytes = whole.clone();
        bytes[place + part.at] ^= 0x20;
        fs::write(&path, bytes).context("write an archive")?;
        let words = ["cannot load the archive", "is altered", &part.digest];
        told = leaves_nothing(|| refused(&["load", "-f", &path], &words)).context(part.what)?;
    }
    done(&["load", "-f", ARCHIVE])?;
    Ok(told)
}

fn imported(parts: &[Part]) -> Result<String> {
    wipe()?;
    let import = ["import", IMAGE, "--namespace", "elsewhere"];
    let mut told = Vec::new();
    for part in parts {
        let words = ["cannot import localhost/packed:1", "is altered", &part.digest];
        told.push(while_altered(part, || leaves_nothing(|| refused(&import, &words)))?);
    }
    done(&import)?;
    Ok(told.join(" | "))
}

fn built(parts: &[Part]) -> Result<String> {
    wipe()?;
    let build =
        ["build", "--image", IMAGE, "--image-namespace", "elsewhere", "--name", "packed", "--version", "2"];
    let refuse = |part: &Part| {
        let words = ["cannot publish packed@2", "is altered", "elsewhere", &part.digest];
        while_altered(part, || leaves_nothing(|| refused(&build, &words)))
    };
    let told = parts.iter().map(refuse).collect::<Result<Vec<_>>>()?;
    done(&build)?;
    // Unpacked layers are no reason to look at them no more.
    let again =
        ["build", "--image", IMAGE, "--image-namespace", "elsewhere", "--name", "packed", "--version", "3"];
    for part in parts {
        let words = ["cannot publish packed@3", "is altered", &part.digest];
        while_altered(part, || leaves_nothing(|| refused(&again, &words)))?;
    }
    Ok(told.join(" | "))
}

/// The registry has all as it should be, and containerd takes what it has of it from another namespace.
fn pulled(parts: &[Part]) -> Result<String> {
    wipe()?;
    done(&["import", IMAGE, "--namespace", "elsewhere"])?;
    let registry = Registry::start(5011, Door::Open)?;
    let reference = registry.at("team/packed:1");
    done(&["-o", "json", "push", "packed@1", &reference])?;
    wipe()?;
    let mut told = String::new();
    for part in parts {
        let words = ["is altered", &part.digest, if part.is_layer { "packed@1" } else { &reference }];
        let pull = ["-o", "json", "pull", &reference];
        told = while_altered(part, || leaves_nothing(|| refused(&pull, &words)))?;
    }
    done(&["pull", &reference])?;
    Ok(told)
}

/// What others have pulled for the namespace of capsules is unpacked when it is attached first.
fn attached(parts: &[Part]) -> Result<String> {
    wipe()?;
    OURS.import()?;
    let bench = OURS.start("altered", &[], &SLEEP)?;
    ctr(&["-n", "capsules", "image", "import", "--no-unpack", ARCHIVE])?.success("ctr image import")?;
    // What the import has left unreferenced goes at the next collection, whoever causes it.
    for words in [&["create", "--id", "collect"][..], &["rm", "--sync", "collect"]] {
        ctr(&[&["-n", "capsules", "leases"], words].concat())?.success("ctr leases")?;
    }
    let attach = ["attach", "altered", "packed@1", "--target", "/opt/packed"];
    let (before, mut told) = ((ps()?, bench.mounts()?), String::new());
    for part in parts.iter().filter(|part| part.is_layer) {
        let words = ["packed@1", "is altered", &part.digest];
        told = while_altered(part, || leaves_nothing(|| refused(&attach, &words)))?;
        ensure!(before == (ps()?, bench.mounts()?), "something changed");
    }
    done(&attach)?;
    ensure!(json(&["inspect", "packed@1"])?["version"]["complete"] == true);
    done(&["detach", "altered", "packed"])?;
    bench.remove()?;
    Ok(told)
}
