//! What was written, published as a version, while it may still be written to.

use std::{error::Error, sync::Arc};

use tokio::{sync::mpsc, task::spawn_blocking};
use tokio_stream::wrappers::ReceiverStream;

use super::{UpperError, Uppers, layer::Broken, model::Over, reading::Reading};
use crate::capsules::{
    BaseRef, CapsuleError, Capsules, Declaration, Origin, Published, Resolved, model::Version, oci,
};

/// How often what changed while it was read is read again.
const TRIES: u32 = 5;
/// Pieces of the tar that wait for containerd.
const PIECES: usize = 4;

impl Uppers {
    /// The version that what is read was written over. What has a name keeps no version from being removed: what was written is
    /// whole without it, and goes over any other version of the capsule.
    ///
    /// # Errors
    /// [`UpperError::NoBase`], [`UpperError::OtherBase`], [`UpperError::Capsule`].
    pub async fn base(&self, capsules: &Capsules, reading: &Reading) -> Result<Resolved, UpperError> {
        let Over { capsule, version, digest } = reading.over().clone();
        match capsules.resolve(&capsule, Some(&version)).await {
            Ok(base) if base.digest == digest => Ok(base),
            Ok(base) => Err(UpperError::OtherBase { capsule, version, was: digest, now: base.digest }),
            Err(CapsuleError::UnknownCapsule { .. } | CapsuleError::UnknownVersion { .. }) => {
                Err(UpperError::NoBase { capsule, version })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Publishes what was written over `base` as a version of the same capsule, with its tags: its layers, and one more. True
    /// beside it if the same version was there already. What changes while it is read is read again, some times.
    ///
    /// # Errors
    /// [`UpperError::Nothing`], [`UpperError::Changed`], and what a publish can fail with; then nothing is published.
    pub async fn commit(
        &self,
        capsules: &Capsules,
        reading: &Arc<Reading>,
        base: &Resolved,
        version: (&Version, &[Version]),
    ) -> Result<(Published, bool), UpperError> {
        let mut tries = TRIES;
        loop {
            match publish(Arc::clone(reading), capsules, base, version).await {
                Err(Broken::Changed(_)) if tries > 1 => tries -= 1,
                Err(Broken::Changed(why)) => return Err(UpperError::Changed(why)),
                Err(Broken::Failed(error)) => return Err(error),
                // The publish ended first, and said why.
                Err(Broken::Unwanted) => return Err(UpperError::Changed("it could not be read".to_owned())),
                Ok(published) => return Ok(published),
            }
        }
    }
}

async fn publish(
    reading: Arc<Reading>,
    capsules: &Capsules,
    base: &Resolved,
    (version, tags): (&Version, &[Version]),
) -> Result<(Published, bool), Broken> {
    let (sender, receiver) = mpsc::channel(PIECES);
    let layers = capsules.layers();
    let written = spawn_blocking(move || {
        let written = match reading.write(layers, &sender) {
            Ok(0) => Err(Broken::Failed(UpperError::Nothing)),
            other => other.map(drop),
        };
        if let Err(broken) = &written {
            // Nobody may listen any more.
            sender.blocking_send(Err(describe(broken))).ok();
        }
        written
    });
    let on = BaseRef { name: base.name.clone(), version: base.version.clone(), digest: base.digest.clone() };
    let tar = ReceiverStream::new(receiver);
    let published = match declare(base, version) {
        Ok(declaration) => capsules.publish(declaration, tags, Origin::Delta(on, tar)).await,
        Err(error) => Err(error),
    };
    let written = written.await.unwrap_or(Err(Broken::Unwanted));
    match (written, published) {
        // A failure of the reader is why the publish failed; one that lost its listener knows nothing.
        (Err(broken @ (Broken::Changed(_) | Broken::Failed(_))), Err(_)) => Err(broken),
        (_, Err(error)) => Err(Broken::Failed(error.into())),
        (_, Ok(published)) => Ok(published),
    }
}

fn describe(broken: &Broken) -> String {
    match broken {
        Broken::Changed(why) => why.clone(),
        Broken::Unwanted => "nobody listens".to_owned(),
        Broken::Failed(error) => match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

/// What the version before says of itself, under another name.
fn declare(base: &Resolved, version: &Version) -> Result<Declaration, CapsuleError> {
    let image = &base.image;
    let is_ours =
        |key: &str| key.starts_with(oci::PREFIX) || [oci::BASE_NAME, oci::BASE_DIGEST].contains(&key);
    Ok(Declaration {
        name: base.name.clone(),
        version: version.clone(),
        default_target: image.default_target().map(ToOwned::to_owned),
        default_mode: image.default_mode(),
        declared: base.declared()?,
        annotations: image
            .annotations
            .iter()
            .filter(|(key, _)| !is_ours(key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
    })
}
