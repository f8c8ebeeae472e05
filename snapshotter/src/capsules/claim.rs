//! What an image record of the capsule namespace is: a version, and perhaps a tag of it.
//!
//! It is what its labels say; or else what the annotations of its manifest say; or else what its reference says:
//! `…/NAME:VERSION`. Where annotations say which version it is, and the reference has another word in place of the
//! version, that word is a tag of it.

use std::collections::BTreeMap;

use super::{
    CapsuleError,
    catalogue::{Published, Tagged},
    model::{CapsuleName, Digest, ModelError, Version},
    moving::{MoveError, TRANSIT},
    oci::{self, Image},
    signing::Signature,
};
use crate::containerd::{ContainerdError, ImageRecord, Scope};

/// Largest manifest or configuration that is read: what registries accept.
const JSON_LIMIT: usize = 4 << 20;

/// What an image is.
#[derive(Debug)]
pub struct Claim {
    /// The version.
    pub version: Published,
    /// What else its name says.
    pub tag: Option<Tagged>,
}

/// Who an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    name: CapsuleName,
    version: Version,
    tag: Option<Version>,
}

/// Reads what an image record is; `None` if it can be no version. `known`: what the image says, where that was read before.
///
/// # Errors
/// containerd's.
pub async fn read_claim(
    scope: &Scope,
    record: &ImageRecord,
    known: Option<&Image>,
) -> Result<Option<Claim>, CapsuleError> {
    let (Ok(digest), false) = (record.digest.parse::<Digest>(), is_aside(&record.name)) else {
        return Ok(None);
    };
    let image = match known {
        Some(known) => Ok(known.clone()),
        None => match read_image(scope, &record.media_type, &digest).await {
            Ok(image) => Ok(image),
            Err(ReadError::Unusable(why)) => Err(why),
            Err(ReadError::Containerd(e @ ContainerdError::Altered { .. })) => Err(e.to_string()),
            Err(ReadError::Containerd(e)) => return Err(e.into()),
        },
    };
    let Some(identity) = identify(record, image.as_ref().ok().map(|image| &image.annotations)) else {
        return Ok(None);
    };
    let Identity { name, version, tag } = identity;
    let tag = tag.map(|tag| Tagged {
        name: name.clone(),
        tag,
        version: version.clone(),
        digest: digest.clone(),
        image_name: record.name.clone(),
    });
    let (image_name, created_at) = (record.name.clone(), record.created_at);
    Ok(Some(Claim { version: Published { name, version, digest, image_name, created_at, image }, tag }))
}

/// What an image is to be, whatever it says itself; what is open it says.
#[derive(Debug, Clone, Default)]
pub struct Naming {
    /// The capsule.
    pub name: Option<CapsuleName>,
    /// The version.
    pub version: Option<Version>,
}

/// An image that has come in and is to be a version.
#[derive(Debug, Clone)]
pub struct Arriving {
    /// Where it comes from, and what it is. The name is the one that it has there.
    pub record: ImageRecord,
    /// Its identity as a version.
    pub digest: Digest,
    /// What it holds.
    pub image: Image,
    /// The capsule.
    pub name: CapsuleName,
    /// The version.
    pub version: Version,
    /// What else it is called.
    pub tags: Vec<Version>,
    /// Who vouches for it, unchecked.
    pub signatures: Vec<Signature>,
}

/// Reads what has come in.
///
/// # Errors
/// [`MoveError::Unusable`], [`MoveError::Altered`], [`MoveError::Anonymous`]; containerd's.
pub async fn read_arriving(
    scope: &Scope,
    record: ImageRecord,
    naming: &Naming,
) -> Result<Arriving, CapsuleError> {
    let unusable = |reason: String| MoveError::Unusable { reference: record.name.clone(), reason };
    let digest: Digest = record.digest.parse().map_err(|e: ModelError| unusable(e.to_string()))?;
    let image = match read_image(scope, &record.media_type, &digest).await {
        Ok(image) => image,
        Err(ReadError::Unusable(why)) => return Err(unusable(why).into()),
        Err(ReadError::Containerd(e @ ContainerdError::Altered { .. })) => {
            let (action, reference) = ("take", record.name.clone());
            return Err(MoveError::Altered { action, reference, reason: e.to_string() }.into());
        }
        Err(ReadError::Containerd(e)) => return Err(e.into()),
    };
    let said = identify(&record, Some(&image.annotations));
    let tag = said.as_ref().and_then(|said| said.tag.clone());
    let tag = tag.filter(|_| naming.name.is_none() && naming.version.is_none());
    let (name, version) = said.map(|said| (said.name, said.version)).unzip();
    let version = version.or_else(|| tag_of(&record.name)?.1.parse().ok());
    let (name, version) = (naming.name.clone().or(name), naming.version.clone().or(version));
    match name.zip(version) {
        Some((name, version)) => Ok(Arriving {
            record,
            digest,
            image,
            name,
            version,
            tags: tag.into_iter().collect(),
            signatures: Vec::new(),
        }),
        None => Err(MoveError::Anonymous { reference: record.name }.into()),
    }
}

/// Records that stand for no version whatever is in them.
pub(super) fn is_aside(reference: &str) -> bool {
    // CRI keeps a record of each image under `sha256:ID`. Cosign keeps what belongs to an image under `sha256-HEX.sig`,
    // `.att` and `.sbom` beside it.
    // What is on its way has no name yet.
    reference.starts_with("sha256:")
        || reference.starts_with(TRANSIT)
        || tag_of(reference).is_some_and(|(_, tag)| {
            tag.strip_prefix("sha256-")
                .and_then(|rest| rest.get(..64).zip(rest.get(64..)))
                .is_some_and(|(hex, end)| end.starts_with('.') && hex.bytes().all(|b| b.is_ascii_hexdigit()))
        })
}

/// The last component of a reference's repository, and its tag.
fn tag_of(reference: &str) -> Option<(&str, &str)> {
    let last = reference.rsplit('/').next()?;
    last.split('@').next()?.split_once(':')
}

fn identify(record: &ImageRecord, annotations: Option<&BTreeMap<String, String>>) -> Option<Identity> {
    let labels = &record.labels;
    if let (Some(name), Some(version)) = (labels.get(oci::NAME), labels.get(oci::VERSION)) {
        let tag = labels.get(oci::TAG).and_then(|tag| tag.parse().ok());
        return Some(Identity { name: name.parse().ok()?, version: version.parse().ok()?, tag });
    }
    let reference = tag_of(&record.name);
    let annotated = annotations.and_then(|a| a.get(oci::NAME).zip(a.get(oci::VERSION)));
    if let Some((name, version)) = annotated
        && let (Ok(name), Ok(version)) = (name.parse(), version.parse::<Version>())
    {
        let tag = reference.and_then(|(_, tag)| tag.parse().ok()).filter(|tag| *tag != version);
        return Some(Identity { name, version, tag });
    }
    let (name, version) = reference?;
    Some(Identity { name: name.parse().ok()?, version: version.parse().ok()?, tag: None })
}

pub(super) enum ReadError {
    Unusable(String),
    Containerd(ContainerdError),
}

impl From<ContainerdError> for ReadError {
    fn from(e: ContainerdError) -> Self {
        Self::Containerd(e)
    }
}

pub(super) async fn read_image(scope: &Scope, media_type: &str, digest: &Digest) -> Result<Image, ReadError> {
    let unusable = |e: oci::OciError| ReadError::Unusable(describe(&e));
    let mut manifest = digest.clone();
    if oci::INDEXES.contains(&media_type) {
        let bytes = read_part(scope, "index", digest).await?;
        let chosen = oci::parse_index(digest, &bytes).map_err(unusable)?;
        manifest = chosen
            .ok_or_else(|| ReadError::Unusable(format!("index {digest} has no image for this machine")))?
            .digest;
    }
    let bytes = read_part(scope, "manifest", &manifest).await?;
    let image = oci::parse_manifest(&manifest, &bytes).map_err(unusable)?;
    let bytes = read_part(scope, "configuration", &image.config.digest).await?;
    let image = Image { manifest: Some(manifest).filter(|manifest| manifest != digest), ..image };
    oci::parse_config(image, &bytes).map_err(unusable)
}

async fn read_part(scope: &Scope, what: &str, digest: &Digest) -> Result<Vec<u8>, ReadError> {
    let bytes = scope.read_blob(digest.as_str(), JSON_LIMIT).await?;
    bytes.ok_or_else(|| ReadError::Unusable(format!("{what} {digest} is not in containerd's content store")))
}

fn describe(e: &dyn std::error::Error) -> String {
    match e.source() {
        Some(source) => format!("{e}: {source}"),
        None => e.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, labels: &[(&str, &str)]) -> ImageRecord {
        ImageRecord {
            name: name.into(),
            labels: labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            media_type: oci::MANIFEST.into(),
            digest: Digest::from_sha256(&[1; 32]).to_string(),
            size: 1,
            created_at: None,
        }
    }

    /// `NAME@VERSION`, and `TAG` after a space.
    fn id(reference: &str, labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Option<String> {
        let annotations = annotations.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let Identity { name, version, tag } = identify(&record(reference, labels), Some(&annotations))?;
        let tag = tag.map(|tag| format!(" {tag}")).unwrap_or_default();
        Some(format!("{name}@{version}{tag}"))
    }

    #[test]
    fn images_are_identified_by_label_then_annotation_then_reference() {
        let labels = [(oci::NAME, "tz"), (oci::VERSION, "2024.1")];
        let tag = [(oci::NAME, "tz"), (oci::VERSION, "2024.1"), (oci::TAG, "stable")];
        let said = [(oci::NAME, "app"), (oci::VERSION, "3")];
        for (reference, labels, annotations, want) in [
            ("whatever", &labels[..], &said[..], Some("tz@2024.1")),
            ("localhost/capsules/tz:stable", &tag, &said, Some("tz@2024.1 stable")),
            ("host:5000/x/thing:3", &[], &said, Some("app@3")),
            ("host:5000/x/thing:stable", &[], &said, Some("app@3 stable")),
            ("host:5000/x/thing@sha256:00", &[], &said, Some("app@3")),
            ("x/thing:3", &[], &[(oci::NAME, "app")], Some("thing@3")),
            ("x/thing:3", &[], &[(oci::NAME, "App"), (oci::VERSION, "3")], Some("thing@3")),
            ("localhost/capsules/a:1", &[], &[], Some("a@1")),
            ("host:5000/x/b:2.0", &[], &[], Some("b@2.0")),
            ("b:2.0@sha256:00", &[], &[], Some("b@2.0")),
            ("no-tag", &[], &[], None),
        ] {
            assert_eq!(id(reference, labels, annotations).as_deref(), want, "{reference}");
        }
    }

    #[test]
    fn what_stands_beside_images_is_no_version() {
        let hex = "0123456789abcdef".repeat(4);
        for (reference, aside) in [
            ("sha256:abc".to_owned(), true),
            (format!("host:5000/a:sha256-{hex}.sig"), true),
            (format!("host/a:sha256-{hex}"), false),
            ("host/a:sha256-00.sig".to_owned(), false),
            ("host:5000/a".to_owned(), false),
        ] {
            assert_eq!(is_aside(&reference), aside, "{reference}");
        }
    }
}
