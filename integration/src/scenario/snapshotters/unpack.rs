//! Unpacking an image of forty layers, as clients of containerd do it: for each layer Prepare, the differ's Apply, Commit.
//!
//! Each client unpacks the image under names of its own, as if it were another image, so that nobody finds the work
//! done. The content is in containerd already.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use capsule_proto::containerd::services::diff::v1::ApplyRequest;
use capsule_proto::containerd::services::diff::v1::diff_client::DiffClient;
use capsule_proto::containerd::types::Descriptor;
use serde_json::Value;
use tonic::transport::Channel;

use super::client::{Client, Lease, NAMESPACE, connect, request};
use super::load::{each, settle};
use super::subject::{CONTAINERD, Subject};
use crate::images::Image;
use crate::scenario::ctr::ctr;

/// Puts the image into containerd's content store; its layers, lowest first.
pub fn import() -> Result<Vec<Descriptor>> {
    let archive = Image::Forty.in_machine();
    let path = archive.to_str().context("the image's path")?;
    ctr(&["-n", NAMESPACE, "image", "import", "--local", "--no-unpack", path])?
        .success("ctr image import")?;
    let files = small_files(&archive)?;
    let index = files.get("index.json").context("the image has no index")?;
    let manifest = index["manifests"][0]["digest"].as_str().context("the index names no manifest")?;
    let manifest = format!("blobs/sha256/{}", manifest.trim_start_matches("sha256:"));
    let manifest = files.get(&manifest).context("the image has no manifest")?;
    let layers = manifest["layers"].as_array().context("the manifest has no layers")?;
    layers.iter().map(descriptor).collect()
}

/// The archive's JSON files by their paths.
fn small_files(archive: &Path) -> Result<HashMap<String, Value>> {
    let file = File::open(archive).with_context(|| format!("open {}", archive.display()))?;
    let mut files = HashMap::new();
    for entry in tar::Archive::new(file).entries().context("read the image")? {
        let mut entry = entry.context("read the image")?;
        let path = entry.path().context("read the image")?.display().to_string();
        let mut text = Vec::new();
        if entry.size() < 1 << 20 {
            entry.read_to_end(&mut text).context("read the image")?;
        }
        if let Ok(value) = serde_json::from_slice(&text) {
            files.insert(path, value);
        }
    }
    Ok(files)
}

fn descriptor(layer: &Value) -> Result<Descriptor> {
    let text = |field: &str| layer[field].as_str().map(str::to_owned).context("a layer's descriptor");
    let size = layer["size"].as_i64().context("a layer's size")?;
    Ok(Descriptor { media_type: text("mediaType")?, digest: text("digest")?, size, ..Default::default() })
}

struct Unpacker {
    client: Client,
    differ: DiffClient<Channel>,
    layers: Vec<Descriptor>,
    tag: String,
}

impl Unpacker {
    fn name(&self, layer: usize) -> String {
        format!("{}-{layer}", self.tag)
    }

    async fn unpack(&mut self) -> Result<Duration> {
        let started = Instant::now();
        let mut parent = String::new();
        for (number, layer) in self.layers.iter().enumerate() {
            let name = self.name(number);
            let key = format!("extract-{name}");
            let mounts = self.client.prepare(&key, &parent).await?;
            let message = ApplyRequest { diff: Some(layer.clone()), mounts, ..Default::default() };
            self.differ.apply(request(message, None)).await.with_context(|| format!("apply {name}"))?;
            self.client.commit(&name, &key).await?;
            parent = name;
        }
        Ok(started.elapsed())
    }

    async fn remove(&mut self) -> Result<()> {
        for number in (0..self.layers.len()).rev() {
            self.client.remove(&self.name(number)).await?;
        }
        Ok(())
    }
}

/// How long it took.
#[derive(Debug)]
pub struct Unpacked {
    /// Each client.
    pub latencies: Vec<Duration>,
    /// Until the last client was done.
    pub elapsed: Duration,
    /// Until the disk had all of it, whoever saw to that.
    pub durable: Duration,
}

/// Lets `clients` unpack at once. Leaves nothing behind.
pub async fn measure(
    subject: &Subject,
    layers: &[Descriptor],
    clients: usize,
    tag: &str,
) -> Result<Unpacked> {
    let lease = if subject.behind { Some(Lease::create(tag).await?) } else { None };
    let mut unpackers = Vec::new();
    for number in 0..clients {
        unpackers.push(Unpacker {
            client: Client::connect(subject, lease.as_ref()).await?,
            differ: DiffClient::new(connect(Path::new(CONTAINERD)).await?),
            layers: layers.to_vec(),
            tag: format!("{tag}-{number}"),
        });
    }
    settle()?;
    let started = Instant::now();
    let (unpackers, latencies) = each(unpackers, async |unpacker| unpacker.unpack().await).await?;
    let elapsed = started.elapsed();
    settle()?;
    let durable = started.elapsed();
    match lease {
        Some(lease) => lease.collect().await?,
        None => {
            each(unpackers, async |unpacker| unpacker.remove().await).await?;
            Client::connect(subject, None).await?.cleanup().await?;
        }
    }
    Ok(Unpacked { latencies, elapsed, durable })
}
