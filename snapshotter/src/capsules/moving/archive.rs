//! From and to archives, and from other containerd namespaces, which is an archive that nobody writes down.

use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Arrived, MoveError, transit::Transit};
use crate::{
    capsules::{
        CapsuleError, Capsules,
        claim::{Arriving, Naming, ReadError, is_aside, read_arriving, read_image},
        model::{CapsuleName, Digest, Version},
        oci::{self, OciError},
        signing::{read_signatures, signature_tag},
    },
    containerd::{ContainerdError, ImageRecord, Scope, Watched},
};

/// Largest index of an archive.
const INDEX_LIMIT: usize = 20 << 20;
/// Pieces of an archive between two namespaces.
const PIECES: usize = 16;

/// Pieces of an archive; an error, as text, ends it.
pub type Pieces = mpsc::Sender<Result<Vec<u8>, String>>;

impl Capsules {
    /// Writes versions as one OCI archive. A tag that one is named by is in it too. The archive is whole only if this
    /// succeeds.
    ///
    /// # Errors
    /// As [`Capsules::resolve`]; [`MoveError`].
    pub async fn save(
        &self,
        versions: &[(CapsuleName, Option<Version>)],
        pieces: &Pieces,
    ) -> Result<(), CapsuleError> {
        let scope = self.containerd.namespace(&self.namespace)?;
        let mut images: Vec<String> = Vec::new();
        for (name, version) in versions {
            let found = self.resolve(name, version.as_ref()).await?;
            if let Some(missing) = self.missing_blob(&scope, &found.image).await? {
                return Err(self.incomplete(name, &found.version, missing));
            }
            images.push(self.catalogue().find(name, Some(&found.version))?.image_name);
            images.extend(self.beside(&scope, name, &found.digest).await?.map(|record| record.name));
            let tag = version.as_ref().and_then(|tag| self.catalogue().tag(name, tag));
            images.extend(tag.filter(|tag| tag.version == found.version).map(|tag| tag.image_name));
        }
        images.sort();
        images.dedup();
        let told = |e| MoveError::failed("save", &images.join(", "), e);
        scope.export_archive(&images, pieces).await.map_err(told)?;
        Ok(())
    }

    /// Makes the images of an archive versions: all of them or none.
    ///
    /// # Errors
    /// [`MoveError`].
    pub async fn load(
        &self,
        archive: impl Stream<Item = Result<Vec<u8>, String>> + Send + Unpin,
    ) -> Result<Vec<Arrived>, CapsuleError> {
        self.listed().await?;
        let transit = self.begin().await?;
        let outcome = self.load_into(&transit, ("load", "the archive"), archive, &Naming::default()).await;
        self.finish(transit, outcome).await
    }

    async fn load_into(
        &self,
        transit: &Transit,
        (action, what): (&'static str, &str),
        archive: impl Stream<Item = Result<Vec<u8>, String>> + Send + Unpin,
        naming: &Naming,
    ) -> Result<Vec<Arrived>, CapsuleError> {
        let Transit { scope, name, .. } = transit;
        let mut archive = Watched::new(archive);
        let imported = scope.import_archive(name, &mut archive).await;
        if let Some(member) = archive.altered() {
            return Err(MoveError::altered(action, what, &member).into());
        }
        imported.map_err(|e| MoveError::failed(action, what, e))?;
        let mut arriving: Vec<Arriving> = Vec::new();
        let (aside, images): (Vec<_>, Vec<_>) =
            read_archive(scope, name).await?.into_iter().partition(|record| is_aside(&record.name));
        for record in images {
            let one = read_arriving(scope, record, naming).await?;
            // An archive has an image once under each of its names.
            let is = |a: &&mut Arriving| {
                (&a.name, &a.version, &a.digest) == (&one.name, &one.version, &one.digest)
            };
            match arriving.iter_mut().find(is) {
                Some(same) => same.tags.extend(one.tags),
                None => arriving.push(one),
            }
        }
        for one in &mut arriving {
            let tag = format!(":{}", signature_tag(&one.digest));
            for record in aside.iter().filter(|record| record.name.ends_with(&tag)) {
                one.signatures.extend(read_signatures(scope, &record.digest).await?);
            }
        }
        if arriving.is_empty() {
            return Err(MoveError::Empty.into());
        }
        self.keep(scope, &arriving).await
    }

    /// Makes an image of another containerd namespace a version.
    ///
    /// # Errors
    /// [`MoveError`].
    pub async fn import(
        &self,
        image: &str,
        namespace: &str,
        naming: &Naming,
    ) -> Result<Arrived, CapsuleError> {
        let from = self.containerd.namespace(namespace)?;
        if from.image(image).await?.is_none() {
            let (image, namespace) = (image.to_owned(), namespace.to_owned());
            return Err(MoveError::NoImage { image, namespace }.into());
        }
        self.listed().await?;
        let transit = self.begin().await?;
        let outcome = self.import_into(&transit, &from, image, naming).await;
        self.finish(transit, outcome).await
    }

    async fn import_into(
        &self,
        transit: &Transit,
        from: &Scope,
        image: &str,
        naming: &Naming,
    ) -> Result<Arrived, CapsuleError> {
        check_parts(from, image).await?;
        let (pieces, archive) = mpsc::channel(PIECES);
        let images = [image.to_owned()];
        let export = async {
            let exported = from.export_archive(&images, &pieces).await;
            if let Err(error) = &exported {
                // Not an end, or what came so far would count as the whole.
                pieces.send(Err(error.to_string())).await.ok();
            }
            drop(pieces);
            exported
        };
        let load = self.load_into(transit, ("import", image), ReceiverStream::new(archive).boxed(), naming);
        let (exported, loaded) = tokio::join!(export, load);
        match exported {
            // Whose error it is: the archive was not taken.
            Ok(()) | Err(ContainerdError::Abandoned) => {}
            Err(_) if matches!(&loaded, Err(CapsuleError::Move(MoveError::Altered { .. }))) => {}
            Err(error) => return Err(MoveError::failed("import", image, error).into()),
        }
        let missing = || ContainerdError::Incomplete { what: "import".to_owned(), missing: "the image" };
        Ok(loaded?.pop().ok_or_else(missing)?)
    }
}

/// Refuses an image whose manifest or configuration is altered: containerd, which reads them to find what it is to send, takes them as
/// they are. Layers are looked at as they flow by.
async fn check_parts(from: &Scope, image: &str) -> Result<(), CapsuleError> {
    let Some(record) = from.image(image).await? else { return Ok(()) };
    let Ok(digest) = record.digest.parse::<Digest>() else { return Ok(()) };
    match read_image(from, &record.media_type, &digest).await {
        Err(ReadError::Containerd(e @ ContainerdError::Altered { .. })) => {
            let (reference, reason) = (image.to_owned(), e.to_string());
            Err(MoveError::Altered { action: "import", reference, reason }.into())
        }
        Err(ReadError::Containerd(e)) => Err(e.into()),
        // What is wrong with it is said of what comes.
        Ok(_) | Err(ReadError::Unusable(_)) => Ok(()),
    }
}

/// The images of an archive that has come in under `name`, as records that are not there.
async fn read_archive(scope: &Scope, name: &str) -> Result<Vec<ImageRecord>, CapsuleError> {
    let missing = |missing| ContainerdError::Incomplete { what: "load".to_owned(), missing };
    let index = scope.image(name).await?.ok_or_else(|| missing("the archive's index"))?;
    let digest: Digest = index.digest.parse()?;
    let bytes = scope.read_blob(digest.as_str(), INDEX_LIMIT).await?;
    let bytes = bytes.ok_or_else(|| missing("the archive's index"))?;
    let entries = oci::parse_archive(&digest, &bytes).map_err(|e: OciError| CapsuleError::Oci(e))?;
    let record = |entry: oci::Entry| ImageRecord {
        name: Some(entry.reference)
            .filter(|reference| !reference.is_empty())
            .unwrap_or_else(|| format!("image {}", entry.descriptor.digest)),
        labels: std::collections::HashMap::new(),
        media_type: entry.descriptor.media_type,
        digest: entry.descriptor.digest.to_string(),
        size: i64::try_from(entry.descriptor.size).unwrap_or(i64::MAX),
        created_at: None,
    };
    Ok(entries.into_iter().map(record).collect())
}
