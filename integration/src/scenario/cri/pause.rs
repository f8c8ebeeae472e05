//! The image of pods' sandboxes: the test image with another first process.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::images::Image;
use crate::workspace::hex;

/// What containerd calls it.
pub const NAME: &str = "localhost/pause:latest";

/// The files of an OCI archive, by name.
type Files = BTreeMap<String, Vec<u8>>;

/// Writes its archive to `path`.
pub fn write(path: &Path) -> Result<()> {
    let mut files = read(&Image::Busybox.in_machine())?;
    let index: Value = parse(&files, "index.json")?;
    let mut manifest: Value = parse(&files, &blob(&index["manifests"][0]["digest"])?)?;
    let mut config: Value = parse(&files, &blob(&manifest["config"]["digest"])?)?;
    config["config"]["Cmd"] = json!(["/bin/sleep", "100000"]);
    let config = serde_json::to_vec(&config)?;
    let config = add(&mut files, "application/vnd.oci.image.config.v1+json", config);
    manifest["config"] = config;
    let mut manifest =
        add(&mut files, "application/vnd.oci.image.manifest.v1+json", serde_json::to_vec(&manifest)?);
    manifest["annotations"] = json!({ "io.containerd.image.name": NAME });
    let index = serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": [manifest] }))?;
    files.insert("index.json".to_owned(), index);
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut tar = tar::Builder::new(file);
    for (name, content) in &files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, &content[..]).with_context(|| format!("add {name}"))?;
    }
    tar.into_inner().context("write an image").map(drop)
}

fn read(path: &Path) -> Result<Files> {
    let mut archive =
        tar::Archive::new(File::open(path).with_context(|| format!("open {}", path.display()))?);
    let mut files = Files::new();
    for entry in archive.entries().context("read an image")? {
        let mut entry = entry.context("read an image")?;
        if entry.header().entry_type().is_file() {
            let (name, mut content) = (entry.path()?.display().to_string(), Vec::new());
            entry.read_to_end(&mut content).with_context(|| format!("read {name}"))?;
            files.insert(name, content);
        }
    }
    Ok(files)
}

fn parse(files: &Files, name: &str) -> Result<Value> {
    let content = files.get(name).with_context(|| format!("the image has no {name}"))?;
    serde_json::from_slice(content).with_context(|| format!("parse {name}"))
}

/// Where the content of a digest is.
fn blob(digest: &Value) -> Result<String> {
    Ok(format!("blobs/{}", digest.as_str().context("no digest")?.replace(':', "/")))
}

/// Adds content; its descriptor.
fn add(files: &mut Files, media_type: &str, content: Vec<u8>) -> Value {
    let (digest, size) = (hex(&Sha256::digest(&content)), content.len());
    files.insert(format!("blobs/sha256/{digest}"), content);
    json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size })
}
