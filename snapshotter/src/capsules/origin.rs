//! What a version's layers are made from: a tar, a tar over another version, or an image.

use futures::Stream;

use super::{
    CapsuleError, Capsules,
    catalogue::image_name,
    claim::{ReadError, read_image},
    model::{CapsuleName, Digest, Version},
    oci::{Declaration, Descriptor, Stack},
    publish::store_layer,
    unpack::{check_layers, missing},
};
use crate::containerd::Scope;

/// Most layers of a version that is built on another: as many as other programs take.
const LAYERS: usize = 127;

/// What a version is made from. A tar yields pieces of at most a few MiB; an error in it, as text, ends the publish.
#[derive(Debug)]
pub enum Origin<T> {
    /// One uncompressed tar.
    Tree(T),
    /// One that holds what differs from another version.
    Delta(BaseRef, T),
    /// The layers of an image.
    Image(ImageRef),
}

/// A version that another is built on.
#[derive(Debug)]
pub struct BaseRef {
    /// The capsule.
    pub name: CapsuleName,
    /// The version.
    pub version: Version,
    /// What the tar was made against.
    pub digest: Digest,
}

/// An image of any containerd namespace.
#[derive(Debug)]
pub struct ImageRef {
    /// As containerd names it.
    pub reference: String,
    /// `None` for the namespace of the capsules.
    pub namespace: Option<String>,
}

impl<T: Stream<Item = Result<Vec<u8>, String>> + Send + Unpin> Origin<T> {
    /// Sees to it that all layers are in the namespace of the capsules, held by the scope's lease. `id` is unique to
    /// this publish.
    pub(super) async fn store(
        self,
        capsules: &Capsules,
        scope: &Scope,
        id: &str,
        declaration: &Declaration,
    ) -> Result<Stack, CapsuleError> {
        match self {
            Self::Tree(tar) => {
                let layer = store_layer(scope, id, declaration, tar).await?;
                Ok(Stack { diff_ids: vec![layer.digest.clone()], layers: vec![layer], base: None })
            }
            Self::Delta(base, tar) => {
                let mut stack = capsules.base(scope, id, base).await?;
                let layer = store_layer(scope, id, declaration, tar).await?;
                stack.diff_ids.push(layer.digest.clone());
                stack.layers.push(layer);
                Ok(stack)
            }
            Self::Image(image) => capsules.image(scope, id, image).await,
        }
    }
}

impl Capsules {
    /// The layers of the version that a delta goes on.
    async fn base(&self, scope: &Scope, id: &str, base: BaseRef) -> Result<Stack, CapsuleError> {
        let BaseRef { name, version, digest: wanted } = base;
        let found = self.resolve(&name, Some(&version)).await?;
        if found.digest != wanted {
            return Err(CapsuleError::BaseMoved { name, version, found: found.digest, wanted });
        }
        let layers = found.image.layers.len();
        if layers >= LAYERS {
            return Err(CapsuleError::TooManyLayers { name, version, layers });
        }
        if let Some(lost) = share(scope, scope, id, &found.image.layers).await? {
            return Err(self.incomplete(&name, &version, missing(&lost)));
        }
        // The name that it has everywhere, and not that of a registry it may have come from: the digest depends on it.
        let base = Some((image_name(&name, &version), wanted));
        Ok(Stack { layers: found.image.layers, diff_ids: found.image.diff_ids, base })
    }

    /// The layers of an image; this machine's, where it is one for several.
    async fn image(&self, scope: &Scope, id: &str, image: ImageRef) -> Result<Stack, CapsuleError> {
        let ImageRef { reference, namespace } = image;
        let namespace = namespace.unwrap_or_else(|| self.namespace().to_owned());
        let from = self.containerd.namespace(&namespace)?;
        let Some(record) = from.image(&reference).await? else {
            return Err(CapsuleError::UnknownImage { reference, namespace });
        };
        let refuse = |reason| CapsuleError::Image {
            reference: reference.clone(),
            namespace: namespace.clone(),
            reason,
        };
        let digest: Digest = record.digest.parse()?;
        let image = match read_image(&from, &record.media_type, &digest).await {
            Ok(image) => image,
            Err(ReadError::Unusable(why)) => return Err(refuse(why)),
            Err(ReadError::Containerd(error)) => return Err(error.into()),
        };
        if let Some(lost) = check_layers(&from, &image).await? {
            return Err(refuse(lost));
        }
        if let Some(lost) = share(scope, &from, id, &image.layers).await? {
            return Err(refuse(missing(&lost)));
        }
        Ok(Stack { layers: image.layers, diff_ids: image.diff_ids, base: Some((reference, digest)) })
    }
}

/// Brings layers from a namespace into the scope's, held by its lease; the first that is not there.
async fn share(
    scope: &Scope,
    from: &Scope,
    id: &str,
    layers: &[Descriptor],
) -> Result<Option<Digest>, CapsuleError> {
    for layer in layers {
        let digest = layer.digest.as_str();
        if !scope.share_blob(from, digest, layer.size, &format!("{id}-{digest}")).await? {
            return Ok(Some(layer.digest.clone()));
        }
    }
    Ok(None)
}
