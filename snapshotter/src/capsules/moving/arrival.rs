//! What came becomes versions: judged, unpacked, and then named, all of it or none.

use std::collections::HashMap;

use super::MoveError;
use crate::{
    capsules::{
        CapsuleError, Capsules,
        catalogue::{Published, image_name},
        claim::Arriving,
        oci,
        tags::Undo,
        unpack::check_layers,
    },
    containerd::{ImageRecord, Scope},
};

/// A version that came from elsewhere.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// The version.
    pub published: Published,
    /// It was here already.
    pub existed: bool,
    /// What it was called where it came from.
    pub reference: String,
}

impl Capsules {
    /// Makes versions of what came. The scope's lease keeps it until then. Durable and unpacked when it returns.
    ///
    /// # Errors
    /// [`MoveError::Differs`], and whatever keeps one of them from being attached; then none of them is a version.
    pub(super) async fn keep(
        &self,
        scope: &Scope,
        arriving: &[Arriving],
    ) -> Result<Vec<Arrived>, CapsuleError> {
        for (index, one) in arriving.iter().enumerate() {
            self.judge(scope, one, &arriving[..index]).await?;
        }
        for one in arriving {
            let unpacked = self.unpack_arriving(scope, one).await;
            unpacked.map_err(|error| error.of("unpack", &one.name, &one.version))?;
        }
        let _names = self.names.lock().await;
        let (mut undo, mut arrived) = (Vec::new(), Vec::new());
        for one in arriving {
            match self.name(scope, one, &mut undo).await {
                Ok(existed) => arrived.push((one, existed)),
                Err(error) => {
                    self.take_back(scope, undo).await;
                    return Err(error);
                }
            }
        }
        let mut all = Vec::with_capacity(arrived.len());
        for (one, existed) in arrived {
            self.refresh(&image_name(&one.name, &one.version)).await?;
            for tag in &one.tags {
                self.refresh(&image_name(&one.name, tag)).await?;
            }
            let published = self.catalogue().find(&one.name, Some(&one.version))?;
            all.push(Arrived { published, existed, reference: one.record.name.clone() });
        }
        Ok(all)
    }

    async fn unpack_arriving(&self, scope: &Scope, one: &Arriving) -> Result<(), CapsuleError> {
        if let Some(missing) = check_layers(scope, &one.image).await? {
            let reason = format!("{missing}: it did not come, or is not what its digest says");
            return Err(MoveError::Unusable { reference: one.record.name.clone(), reason }.into());
        }
        self.unpack_to_stay(scope, &one.image).await
    }

    /// Refuses what would change a version, be called as a tag, or contradict what came with it.
    async fn judge(&self, scope: &Scope, one: &Arriving, before: &[Arriving]) -> Result<(), CapsuleError> {
        let (name, version) = (&one.name, &one.version);
        self.check_version(name, version).await?;
        self.verify_arriving(scope, (name, version, &one.digest), &one.signatures).await?;
        let known = self.catalogue().version(name, version).map(|known| known.digest.to_string());
        let named = scope.image(&image_name(name, version)).await?;
        let twin = before.iter().find(|other| other.name == *name && other.version == *version);
        let here = known
            .into_iter()
            .chain(named.map(|record| record.digest))
            .chain(twin.map(|twin| twin.digest.to_string()));
        match here.into_iter().find(|here| here != one.digest.as_str()) {
            None => Ok(()),
            Some(here) => Err(MoveError::Differs {
                name: name.clone(),
                version: version.clone(),
                reference: one.record.name.clone(),
                here,
                came: one.digest.clone(),
            }
            .into()),
        }
    }

    /// Makes the image records; true if the version had one.
    async fn name(&self, scope: &Scope, one: &Arriving, undo: &mut Vec<Undo>) -> Result<bool, CapsuleError> {
        let record = ImageRecord {
            name: image_name(&one.name, &one.version),
            labels: HashMap::from([
                (oci::NAME.to_owned(), one.name.to_string()),
                (oci::VERSION.to_owned(), one.version.to_string()),
            ]),
            created_at: None,
            ..one.record.clone()
        };
        let existed = match scope.create_image(&record).await {
            Ok(()) => {
                undo.push(Undo::Delete(record.name.clone()));
                false
            }
            Err(error) if error.is_already_exists() => {
                // Another call was faster: what it made is judged as what was here before.
                self.judge(scope, one, &[]).await?;
                true
            }
            Err(error) => return Err(error.into()),
        };
        undo.extend(self.keep_signatures(scope, &one.name, &one.digest, &one.signatures).await?);
        for tag in &one.tags {
            if self.catalogue().version(&one.name, tag).is_some() {
                tracing::warn!(capsule = %one.name, %tag, of = %one.version, "the tag of what came is a version here: left out");
            } else {
                undo.extend(self.apply_tag(scope, &record, (&one.name, &one.version), tag).await?);
            }
        }
        Ok(existed)
    }
}
