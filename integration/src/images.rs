//! OCI images, written directly: one uncompressed layer, a config, a manifest, an index, in one tar that
//! `ctr image import` takes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::workspace::hex;

/// What an image's layer holds: path without leading slash → entry. A parent must sort before its children, which
/// paths do.
pub type Tree = BTreeMap<String, Entry>;

/// One file of a layer.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A folder.
    Folder,
    /// A file with its mode and content.
    File(u32, Vec<u8>),
    /// A symbolic link.
    Link(String),
}

/// Writes the image `name` with one layer to `path`. The same tree gives the same bytes.
pub fn write_image(path: &Path, name: &str, tree: &Tree) -> Result<()> {
    let layer = layer(tree)?;
    let diff_id = digest(&layer);
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Cmd": ["/bin/sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    }))?;
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({ "io.containerd.image.name": name });
    let index = serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": [entry] }))?;

    let mut files = Tree::new();
    for folder in ["blobs", "blobs/sha256"] {
        files.insert(folder.to_owned(), Entry::Folder);
    }
    for blob in [layer, config, manifest] {
        files.insert(format!("blobs/sha256/{}", hex(&Sha256::digest(&blob))), Entry::File(0o644, blob));
    }
    files.insert("index.json".to_owned(), Entry::File(0o644, index));
    files.insert("oci-layout".to_owned(), Entry::File(0o644, br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    let mut out = File::create(path).with_context(|| format!("create {}", path.display()))?;
    out.write_all(&self::layer(&files)?).with_context(|| format!("write {}", path.display()))
}

fn descriptor(media_type: &str, blob: &[u8]) -> serde_json::Value {
    json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() })
}

fn digest(blob: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(blob)))
}

fn layer(tree: &Tree) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, entry) in tree {
        let mut header = tar::Header::new_ustar();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mode(0o755);
        header.set_size(0);
        match entry {
            Entry::Folder => {
                header.set_entry_type(tar::EntryType::Directory);
                tar.append_data(&mut header, path, std::io::empty())
            }
            Entry::File(mode, content) => {
                header.set_mode(*mode);
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, path, content.as_slice())
            }
            Entry::Link(to) => {
                header.set_entry_type(tar::EntryType::Symlink);
                tar.append_link(&mut header, path, to)
            }
        }
        .with_context(|| format!("add {path} to a layer"))?;
    }
    tar.into_inner().context("finish a layer")
}

/// The tree of the test container: busybox with its applets and `capsule-reader`, `/usr` merged as in Debian, so that
/// a capsule of Debian packages finds its dynamic linker through `/lib64`.
pub fn busybox(busybox: &Path, applets: &str, reader: &Path) -> Result<Tree> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
    let mut tree = Tree::new();
    for folder in [
        "dev",
        "etc",
        "proc",
        "root",
        "run",
        "sys",
        "tmp",
        "usr",
        "usr/bin",
        "usr/lib",
        "usr/lib64",
        "usr/sbin",
    ] {
        tree.insert(folder.to_owned(), Entry::Folder);
    }
    for folder in ["usr/share", "usr/share/doc", "var", "srv"] {
        tree.insert(folder.to_owned(), Entry::Folder);
    }
    for (link, to) in [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64"), ("sbin", "usr/sbin")] {
        tree.insert(link.to_owned(), Entry::Link(to.to_owned()));
    }
    tree.insert("usr/bin/busybox".to_owned(), Entry::File(0o755, read(busybox)?));
    tree.insert("usr/bin/capsule-reader".to_owned(), Entry::File(0o755, read(reader)?));
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        tree.insert(format!("usr/bin/{applet}"), Entry::Link("busybox".to_owned()));
    }
    for (file, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("etc/group", "root:x:0:\n"),
        ("usr/share/doc/before", "what the image itself holds\n"),
    ] {
        tree.insert(file.to_owned(), Entry::File(0o644, text.into()));
    }
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_the_same_twice_and_holds_what_it_was_given() {
        let tree = Tree::from([
            ("a".to_owned(), Entry::Folder),
            ("a/b".to_owned(), Entry::File(0o755, b"x".to_vec())),
            ("c".to_owned(), Entry::Link("a/b".to_owned())),
        ]);
        let bytes = layer(&tree).unwrap();
        assert_eq!(bytes, layer(&tree).unwrap());
        let mut archive = tar::Archive::new(bytes.as_slice());
        let paths: Vec<_> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(paths, ["a", "a/b", "c"]);
    }
}
