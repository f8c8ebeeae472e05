//! OCI images, written directly: layers, a config, a manifest, an index, in one tar that `ctr image import` takes.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::layer;
use crate::workspace::hex;

/// How a layer lies in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packed {
    /// As it is.
    Plain,
    /// By `gzip`, which most images in the wild use.
    Gzip,
}

/// An image's archive, written layer by layer, so that only one is in memory.
pub struct Archive {
    tar: tar::Builder<BufWriter<File>>,
    layers: Vec<Value>,
    diff_ids: Vec<String>,
}

impl Archive {
    /// Starts an image at `path`.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        let mut archive =
            Self { tar: tar::Builder::new(BufWriter::new(file)), layers: Vec::new(), diff_ids: Vec::new() };
        for folder in ["blobs/", "blobs/sha256/"] {
            archive.append(folder, tar::EntryType::Directory, &[])?;
        }
        Ok(archive)
    }

    /// Adds a layer on top. The same layers give the same bytes.
    pub fn layer(&mut self, layer: &[u8], packed: Packed) -> Result<()> {
        self.diff_ids.push(digest(layer));
        let descriptor = match packed {
            Packed::Plain => self.blob("application/vnd.oci.image.layer.v1.tar", layer)?,
            Packed::Gzip => self.blob("application/vnd.oci.image.layer.v1.tar+gzip", &gzip(layer)?)?,
        };
        self.layers.push(descriptor);
        Ok(())
    }

    /// Writes what makes the layers the image `name`.
    pub fn finish(mut self, name: &str) -> Result<()> {
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Cmd": ["/bin/sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] },
            "rootfs": { "type": "layers", "diff_ids": self.diff_ids },
        });
        let config = self.blob("application/vnd.oci.image.config.v1+json", &serde_json::to_vec(&config)?)?;
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": self.layers });
        let mut manifest = self.blob(media_type, &serde_json::to_vec(&manifest)?)?;
        manifest["annotations"] = json!({ "io.containerd.image.name": name });
        let index = serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": [manifest] }))?;
        self.append("index.json", tar::EntryType::Regular, &index)?;
        self.append("oci-layout", tar::EntryType::Regular, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let mut file = self.tar.into_inner().context("finish an image")?;
        file.flush().context("write an image")
    }

    fn blob(&mut self, media_type: &str, content: &[u8]) -> Result<Value> {
        let path = format!("blobs/sha256/{}", hex(&Sha256::digest(content)));
        self.append(&path, tar::EntryType::Regular, content)?;
        Ok(json!({ "mediaType": media_type, "digest": digest(content), "size": content.len() }))
    }

    fn append(&mut self, path: &str, kind: tar::EntryType, content: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        self.tar.append_data(&mut header, path, content).with_context(|| format!("add {path} to an image"))
    }
}

/// Writes the image `name` of these layers, lowest first, to `path`.
pub fn write(path: &Path, name: &str, layers: &[Vec<layer::Entry>]) -> Result<()> {
    let mut archive = Archive::create(path)?;
    for entries in layers {
        archive.layer(&layer::archive(entries)?, Packed::Plain)?;
    }
    archive.finish(name)
}

fn digest(blob: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(blob)))
}

/// Without name and time, so that the same layer gives the same bytes.
fn gzip(layer: &[u8]) -> Result<Vec<u8>> {
    let mut gzip = Command::new("gzip")
        .args(["--stdout", "--no-name", "--fast"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start gzip")?;
    let mut stdin = gzip.stdin.take().context("gzip has no input")?;
    // Beside the reading of its output: a pipe holds less than a layer.
    let output = std::thread::scope(|scope| {
        let writer = scope.spawn(move || stdin.write_all(layer));
        let output = gzip.wait_with_output().context("wait for gzip")?;
        let written = writer.join().map_err(|_| anyhow::anyhow!("writing to gzip panicked"))?;
        written.context("write to gzip").map(|()| output)
    })?;
    ensure!(output.status.success(), "gzip: {}", output.status);
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_the_same_twice_and_every_blob_is_named_by_its_digest() {
        let folder = std::env::temp_dir().join(format!("capsule-oci-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let make = |name: &str| {
            let path = folder.join(name);
            let mut archive = Archive::create(&path).unwrap();
            archive.layer(&layer::archive(&[layer::Entry::folder("a")]).unwrap(), Packed::Plain).unwrap();
            let big = layer::archive(&[layer::Entry::file("b", vec![7; 1 << 20])]).unwrap();
            archive.layer(&big, Packed::Gzip).unwrap();
            archive.finish("localhost/a:b").unwrap();
            std::fs::read(path).unwrap()
        };
        let (first, second) = (make("first"), make("second"));
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(first, second);
        let mut archive = tar::Archive::new(first.as_slice());
        let mut blobs = 0;
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            match path.strip_prefix("blobs/sha256/") {
                Some(name) if !name.is_empty() => {
                    assert_eq!(name, hex(&Sha256::digest(&content)));
                    blobs += 1;
                }
                _ => {}
            }
        }
        assert_eq!(blobs, 4, "two layers, a config and a manifest");
    }
}
