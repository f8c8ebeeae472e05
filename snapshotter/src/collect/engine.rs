//! Looking at what there is, and removing what may go.

use std::{
    collections::{BTreeSet, HashMap},
    time::SystemTime,
};

use super::plan::{Found, Room, Rules, Verdict, plan};
use crate::{
    attachments::Attachments,
    capsules::{
        CapsuleError, Capsules, Leave, Published,
        model::{CapsuleName, Digest, Version},
    },
    containerd::{Containerd, ContainerdError, Scope},
};

/// By which containerd's CRI marks images that are not to be collected.
const PINNED: &str = "io.cri-containerd.pinned";

/// Why a version was not removed.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// Somebody needs it.
    #[error("{name}@{version} cannot be removed: {reason}")]
    Needed {
        /// The capsule.
        name: CapsuleName,
        /// The version.
        version: Version,
        /// Who, and how.
        reason: String,
    },
    /// The capsule.
    #[error(transparent)]
    Capsule(#[from] CapsuleError),
    /// containerd.
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
}

/// A version, and what becomes of it.
#[derive(Debug, Clone)]
pub struct Judged {
    /// The version.
    pub published: Published,
    /// What becomes of it: [`Verdict::Remove`] where it was removed, or would be.
    pub verdict: Verdict,
}

impl Judged {
    /// `capsule@version`.
    pub fn label(&self) -> String {
        format!("{}@{}", self.published.name, self.published.version)
    }

    /// Bytes of its layers as stored.
    pub fn size(&self) -> u64 {
        self.published.image.as_ref().map(|image| image.size()).unwrap_or_default()
    }
}

/// Removes versions: cheap to clone.
#[derive(Clone)]
pub struct Collector {
    containerd: Containerd,
    capsules: Capsules,
    attachments: Attachments,
}

impl Collector {
    /// Over the engines.
    pub fn new(containerd: Containerd, capsules: Capsules, attachments: Attachments) -> Self {
        Self { containerd, capsules, attachments }
    }

    /// Removes the versions of `names` (of all, when empty) that the rules do not keep. With `dry_run`, none.
    ///
    /// # Errors
    /// [`CapsuleError::UnknownCapsule`]; containerd's: then some may be gone.
    pub async fn prune(
        &self,
        names: &[CapsuleName],
        rules: &Rules,
        dry_run: bool,
    ) -> Result<Vec<Judged>, CollectError> {
        let mut judged = self.judge(rules).await?;
        for name in names {
            self.capsules.listed().await?.find(name, None)?;
        }
        judged.retain(|one| names.is_empty() || names.contains(&one.published.name));
        if !dry_run {
            let mut removed = Vec::new();
            for one in &mut judged {
                if one.verdict != Verdict::Remove {
                    continue;
                }
                match self.take_away(&one.published).await? {
                    Err(reason) => one.verdict = Verdict::Keep(reason),
                    Ok(leave) => removed.push(leave),
                }
            }
            // One collection for all of them. Until then their snapshots are there, and nobody may take them.
            if !removed.is_empty() {
                self.capsules.collect_garbage().await?;
            }
        }
        Ok(judged)
    }

    /// Removes one version, and the tags that stand for it.
    ///
    /// # Errors
    /// [`CollectError::Needed`]; [`CapsuleError::UnknownVersion`]; containerd's.
    pub async fn remove(&self, name: &CapsuleName, version: &Version) -> Result<Judged, CollectError> {
        let found = self.capsules.listed().await?.find(name, Some(version))?;
        let needed =
            |reason| CollectError::Needed { name: name.clone(), version: found.version.clone(), reason };
        let judged = self.judge(&Rules::default()).await?;
        let Some(mut one) = judged
            .into_iter()
            .find(|one| (&one.published.name, &one.published.version) == (name, &found.version))
        else {
            return Err(needed("it is gone already".to_owned()));
        };
        match std::mem::replace(&mut one.verdict, Verdict::Remove) {
            Verdict::Keep(reason) => Err(needed(reason)),
            Verdict::Remove => match self.take_away(&one.published).await? {
                Err(reason) => Err(needed(reason)),
                Ok(leave) => {
                    self.capsules.collect_garbage().await?;
                    drop(leave);
                    Ok(one)
                }
            },
        }
    }

    /// Removes the oldest versions that nobody needs, until so many bytes of layers are gone; how many, and bytes.
    pub(super) async fn make_room(&self, bytes: u64) -> Result<(usize, u64), CollectError> {
        let rules = Rules { keep_last: 1, keep_tagged: true, older_than: None };
        let mut judged = self.judge(&rules).await?;
        judged.retain(|one| one.verdict == Verdict::Remove);
        let mut room = Room::new(judged, bytes, |one| one.published.created_at);
        let mut leaves = Vec::new();
        while let Some(one) = room.next() {
            if let Ok(leave) = self.take_away(&one.published).await? {
                leaves.push(leave);
                room.gone(one.size());
            }
        }
        if room.removed > 0 {
            self.capsules.collect_garbage().await?;
        }
        Ok((room.removed, room.bytes))
    }

    async fn judge(&self, rules: &Rules) -> Result<Vec<Judged>, CollectError> {
        let all = self.capsules.listed().await?.list(None);
        let scope = self.containerd.namespace(self.capsules.namespace())?;
        let leased = Leased::read(&scope).await?;
        let pinned = self.pinned(&scope).await?;
        let holders = self.attachments.holders();
        let found: Vec<Found> = all.iter().map(|one| self.found(one, &leased, &pinned, &holders)).collect();
        let verdicts = plan(&found, rules, SystemTime::now());
        Ok(all.into_iter().zip(verdicts).map(|(published, verdict)| Judged { published, verdict }).collect())
    }

    fn found(
        &self,
        one: &Published,
        leased: &Leased,
        pinned: &BTreeSet<String>,
        holders: &HashMap<Digest, String>,
    ) -> Found {
        let image = one.image.as_ref().ok();
        let declared = image.and_then(|image| image.declared().ok());
        let of_image = || {
            let images = self.capsules.catalogue().images_of(&one.name, &one.version);
            images.iter().any(|image| pinned.contains(image)).then(|| format!("pinned by the label {PINNED}"))
        };
        let used = holders.get(&one.digest).cloned();
        let used = used.or_else(|| self.pinned_by(one)).or_else(of_image);
        Found {
            name: one.name.clone(),
            version: one.version.clone(),
            created_at: one.created_at,
            tags: self.capsules.catalogue().tags_of(one),
            requires: declared.map(|declared| declared.requires).unwrap_or_default(),
            used: used.or_else(|| leased.holds(one)),
        }
    }

    /// Who uses its layers otherwise: what drains, who reads, a call under way, a version with the same tree.
    fn pinned_by(&self, one: &Published) -> Option<String> {
        self.capsules.pinned_by(one).map(|owner| format!("its layers, by {owner}"))
    }

    /// Names of the images that are not to be collected.
    async fn pinned(&self, scope: &Scope) -> Result<BTreeSet<String>, CollectError> {
        let images = scope.images().await?.into_iter();
        let is =
            |image: &crate::containerd::ImageRecord| image.labels.get(PINNED).is_some_and(|v| v == "pinned");
        Ok(images.filter(is).map(|image| image.name).collect())
    }

    /// Removes a version's image records. Nobody begins to use it until what is given is dropped, which is to be after containerd's
    /// collection. Or else why it stays: somebody uses it by now.
    async fn take_away(&self, one: &Published) -> Result<Result<Leave, String>, CollectError> {
        let leaving = self.capsules.leave(&one.digest);
        let user = self.attachments.holders().remove(&one.digest).or_else(|| self.pinned_by(one));
        if let Some(user) = user {
            return Ok(Err(format!("in use: {user}")));
        }
        let removed = self.capsules.remove_images(one).await?;
        Ok(if removed { Ok(leaving) } else { Err("it is another by now".to_owned()) })
    }
}

/// What leases of the capsules' namespace hold.
struct Leased {
    /// Digest of a blob or name of a snapshot → the lease.
    resources: HashMap<String, String>,
}

impl Leased {
    async fn read(scope: &Scope) -> Result<Self, CollectError> {
        let mut resources = HashMap::new();
        for lease in scope.leases().await? {
            for resource in scope.lease_resources(&lease.id).await? {
                resources.insert(resource, lease.id.clone());
            }
        }
        Ok(Self { resources })
    }

    fn holds(&self, one: &Published) -> Option<String> {
        let own = [one.digest.to_string()].into_iter();
        let parts = one.image.iter().flat_map(|image| {
            let blobs = image.layers.iter().chain([&image.config]).map(|blob| blob.digest.to_string());
            blobs.chain(image.chain_ids().into_iter().map(|id| id.to_string())).collect::<Vec<_>>()
        });
        let lease = own.chain(parts).find_map(|part| self.resources.get(&part));
        lease.map(|lease| format!("the lease {lease} of containerd"))
    }
}
