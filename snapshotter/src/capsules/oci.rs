//! A capsule version as an OCI image: manifest and configuration, made and read. Pure: no I/O.
//!
//! The bytes made here are the version's identity, so they hold nothing of the clock, the machine or the order
//! of a map. Sources: OCI image specification 1.1, "Image Manifest", "Image Configuration", "Annotations".

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    declared::Declared,
    model::{CapsuleName, Digest, Mode, Version},
};
use crate::go_arch;

/// Media type of a manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media types of an index (a list of manifests by platform): OCI's and Docker's.
pub const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
/// Media type of an image configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of an uncompressed layer.
pub const LAYER_TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// Prefix of our annotations and labels.
pub const PREFIX: &str = "resourcecapsules.io/";
/// Annotation and image label: the capsule's name.
pub const NAME: &str = "resourcecapsules.io/name";
/// Annotation and image label: the version.
pub const VERSION: &str = "resourcecapsules.io/version";
/// Image label: the tag that the record is.
pub const TAG: &str = "resourcecapsules.io/tag";
/// Annotation: where attach puts it unless told otherwise.
pub const TARGET: &str = "resourcecapsules.io/target";
/// Annotation: `ro` or `union`.
pub const MODE: &str = "resourcecapsules.io/mode";

/// Annotation: digest of the image that this one's first layers are (OCI image specification, "Pre-Defined Annotation Keys").
pub const BASE_DIGEST: &str = "org.opencontainers.image.base.digest";
/// Annotation: name of that image.
pub const BASE_NAME: &str = "org.opencontainers.image.base.name";

/// Why a manifest or configuration cannot be a capsule version.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// Not the JSON it should be.
    #[error("{what} is not valid JSON of its kind")]
    Json {
        /// Manifest or configuration, with its digest.
        what: String,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// Layers and `diff_ids` do not belong together.
    #[error("the manifest lists {layers} layers and its configuration {diff_ids} diff_ids")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// An image of no layers holds no tree.
    #[error("the image has no layers")]
    NoLayers,
}

/// A content descriptor (OCI image specification, "Content Descriptors").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    pub media_type: String,
    /// Its content's digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestJson {
    schema_version: u32,
    media_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct ConfigJson {
    rootfs: RootFs,
}

#[derive(Debug, Serialize, Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct IndexEntry {
    #[serde(flatten)]
    descriptor: Descriptor,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

fn is_here(platform: &Platform) -> bool {
    platform.os == "linux" && platform.architecture == go_arch()
}

fn parse_index_json(digest: &Digest, bytes: &[u8]) -> Result<Vec<IndexEntry>, OciError> {
    #[derive(Deserialize)]
    struct IndexJson {
        manifests: Vec<IndexEntry>,
    }
    let index: Result<IndexJson, _> = serde_json::from_slice(bytes);
    let index = index.map_err(|source| OciError::Json { what: format!("index {digest}"), source })?;
    Ok(index.manifests)
}

/// The manifest that an index holds for this machine; `None` if it has none for it.
pub fn parse_index(digest: &Digest, bytes: &[u8]) -> Result<Option<Descriptor>, OciError> {
    let manifests = parse_index_json(digest, bytes)?;
    let chosen = manifests
        .iter()
        .find(|m| m.platform.as_ref().is_some_and(is_here))
        // One manifest of no stated platform: data, the same everywhere.
        .or_else(|| manifests.iter().find(|m| m.platform.is_none()));
    Ok(chosen.map(|m| m.descriptor.clone()))
}

/// An image of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub descriptor: Descriptor,
    /// What the archive calls it: a reference, `:TAG` alone, or nothing.
    pub reference: String,
}

/// The images in an archive's index that are for this machine (OCI image layout, "index.json"; containerd adds the full
/// reference, which OCI's own annotation has no room for).
pub fn parse_archive(digest: &Digest, bytes: &[u8]) -> Result<Vec<Entry>, OciError> {
    const FULL: &str = "io.containerd.image.name";
    const TAG: &str = "org.opencontainers.image.ref.name";
    let index = parse_index_json(digest, bytes)?;
    let entry = |m: IndexEntry| {
        let tag = m
            .annotations
            .get(TAG)
            .map(|tag| if tag.contains(['/', ':', '@']) { tag.clone() } else { format!(":{tag}") });
        let reference = m.annotations.get(FULL).cloned().or(tag).unwrap_or_default();
        Entry { descriptor: m.descriptor, reference }
    };
    Ok(index.into_iter().filter(|m| m.platform.as_ref().is_none_or(is_here)).map(entry).collect())
}

/// What a version's image says, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Of an image for several platforms, the manifest for this machine.
    pub manifest: Option<Digest>,
    /// The configuration blob.
    pub config: Descriptor,
    /// Layers, bottom first.
    pub layers: Vec<Descriptor>,
    /// Digests of the layers' uncompressed tars, bottom first; as many as `layers`.
    pub diff_ids: Vec<Digest>,
    /// The manifest's annotations.
    pub annotations: BTreeMap<String, String>,
}

impl Image {
    /// Names of the committed snapshots that the layers are unpacked into, bottom first
    /// (OCI image specification, "Layer ChainID").
    pub fn chain_ids(&self) -> Vec<Digest> {
        let mut chain: Vec<Digest> = Vec::with_capacity(self.diff_ids.len());
        for diff_id in &self.diff_ids {
            let next = match chain.last() {
                None => diff_id.clone(),
                Some(parent) => {
                    Digest::from_sha256(&Sha256::digest(format!("{parent} {diff_id}").as_bytes()))
                }
            };
            chain.push(next);
        }
        chain
    }

    /// Bytes of all layers as stored.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|l| l.size).sum()
    }

    /// The default mode, where one is annotated and known.
    pub fn default_mode(&self) -> Option<Mode> {
        self.annotations.get(MODE).and_then(|m| m.parse().ok())
    }

    /// What it declares.
    ///
    /// # Errors
    /// Why its annotations cannot be used, as text.
    pub fn declared(&self) -> Result<Declared, String> {
        Declared::of_image(&self.annotations)
    }

    /// The default target, where one is annotated.
    pub fn default_target(&self) -> Option<&str> {
        self.annotations.get(TARGET).map(String::as_str).filter(|t| !t.is_empty())
    }
}

/// Reads a manifest; the configuration that it names is still to be read.
pub fn parse_manifest(digest: &Digest, bytes: &[u8]) -> Result<Image, OciError> {
    let manifest: ManifestJson = serde_json::from_slice(bytes)
        .map_err(|source| OciError::Json { what: format!("manifest {digest}"), source })?;
    if manifest.layers.is_empty() {
        return Err(OciError::NoLayers);
    }
    Ok(Image {
        manifest: None,
        config: manifest.config,
        layers: manifest.layers,
        diff_ids: Vec::new(),
        annotations: manifest.annotations,
    })
}

/// Completes `image` with what its configuration says.
pub fn parse_config(image: Image, bytes: &[u8]) -> Result<Image, OciError> {
    let config: ConfigJson = serde_json::from_slice(bytes).map_err(|source| OciError::Json {
        what: format!("configuration {}", image.config.digest),
        source,
    })?;
    let diff_ids = config.rootfs.diff_ids;
    if diff_ids.len() != image.layers.len() {
        return Err(OciError::LayerCount { layers: image.layers.len(), diff_ids: diff_ids.len() });
    }
    Ok(Image { diff_ids, ..image })
}

/// What the publisher says of a version beside its tree.
#[derive(Debug, Clone)]
pub struct Declaration {
    /// The capsule.
    pub name: CapsuleName,
    /// The version.
    pub version: Version,
    /// Where attach puts it unless told otherwise.
    pub default_target: Option<String>,
    /// How, unless told otherwise.
    pub default_mode: Option<Mode>,
    /// What it requires, and what it does for those that use it.
    pub declared: Declared,
    /// Other annotations, none of them with our prefix.
    pub annotations: BTreeMap<String, String>,
}

/// The layers of a version that is to be.
#[derive(Debug)]
pub struct Stack {
    /// Bottom first.
    pub layers: Vec<Descriptor>,
    /// Digests of their uncompressed tars; as many.
    pub diff_ids: Vec<Digest>,
    /// The name and digest of the image that the first of them are from.
    pub base: Option<(String, Digest)>,
}

/// The blobs of an image beside its layers, in the order in which they must be stored.
#[derive(Debug)]
pub struct Blobs {
    /// The configuration's bytes and descriptor.
    pub config: (Vec<u8>, Descriptor),
    /// The manifest's bytes and descriptor.
    pub manifest: (Vec<u8>, Descriptor),
}

/// The configuration and manifest of a version: the same input gives the same bytes on every machine of one architecture.
pub fn make_image(declaration: &Declaration, stack: &Stack) -> Result<Blobs, OciError> {
    #[derive(Serialize)]
    struct NewConfig<'a> {
        architecture: &'a str,
        os: &'a str,
        config: BTreeMap<String, String>,
        rootfs: RootFs,
    }
    let json = |what: &str, source| OciError::Json { what: what.to_owned(), source };
    let config = serde_json::to_vec(&NewConfig {
        architecture: go_arch(),
        os: "linux",
        config: BTreeMap::new(),
        rootfs: RootFs { kind: "layers".to_owned(), diff_ids: stack.diff_ids.clone() },
    })
    .map_err(|e| json("configuration", e))?;
    let config_descriptor = describe(CONFIG, &config);
    let manifest = serde_json::to_vec(&ManifestJson {
        schema_version: 2,
        media_type: Some(MANIFEST.to_owned()),
        config: config_descriptor.clone(),
        layers: stack.layers.clone(),
        annotations: annotations(declaration, stack),
    })
    .map_err(|e| json("manifest", e))?;
    let manifest_descriptor = describe(MANIFEST, &manifest);
    Ok(Blobs { config: (config, config_descriptor), manifest: (manifest, manifest_descriptor) })
}

fn annotations(declaration: &Declaration, stack: &Stack) -> BTreeMap<String, String> {
    let mut annotations = declaration.annotations.clone();
    annotations.extend(declaration.declared.annotations());
    annotations.insert(NAME.to_owned(), declaration.name.to_string());
    annotations.insert(VERSION.to_owned(), declaration.version.to_string());
    if let Some(target) = &declaration.default_target {
        annotations.insert(TARGET.to_owned(), target.clone());
    }
    if let Some(mode) = declaration.default_mode {
        annotations.insert(MODE.to_owned(), mode.to_string());
    }
    if let Some((name, digest)) = &stack.base {
        annotations.insert(BASE_NAME.to_owned(), name.clone());
        annotations.insert(BASE_DIGEST.to_owned(), digest.to_string());
    }
    annotations
}

fn describe(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::from_sha256(&Sha256::digest(bytes)),
        size: bytes.len() as u64,
    }
}

#[cfg(test)]
mod tests;
