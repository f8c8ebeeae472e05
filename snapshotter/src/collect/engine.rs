//! Looking at what there is, and removing what may go.

use super::{
    plan::{Rules, Verdict, oldest_first},
    users::Users,
};
use crate::{
    attachments::Attachments,
    capsules::{
        CapsuleError, Capsules, Leave, Published,
        model::{CapsuleName, Version},
    },
    containerd::{Containerd, ContainerdError},
};

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
    pub(super) containerd: Containerd,
    pub(super) capsules: Capsules,
    pub(super) attachments: Attachments,
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
        let (mut judged, mut users) = self.judge(rules).await?;
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
                match self.take_away(&one.published, rules, &mut users).await? {
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
        let (judged, mut users) = self.judge(&Rules::default()).await?;
        let Some(mut one) = judged
            .into_iter()
            .find(|one| (&one.published.name, &one.published.version) == (name, &found.version))
        else {
            return Err(needed("it is gone already".to_owned()));
        };
        match std::mem::replace(&mut one.verdict, Verdict::Remove) {
            Verdict::Keep(reason) => Err(needed(reason)),
            Verdict::Remove => match self.take_away(&one.published, &Rules::default(), &mut users).await? {
                Err(reason) => Err(needed(reason)),
                Ok(leave) => {
                    self.capsules.collect_garbage().await?;
                    drop(leave);
                    Ok(one)
                }
            },
        }
    }

    /// Removes versions that nobody needs, the oldest first, while `is_full` says so: it is asked before each, when what the last
    /// one held is collected. The newest of each capsule and what has a tag stays. How many went.
    ///
    /// # Errors
    /// containerd's: then some may be gone.
    pub(super) async fn make_room(&self, is_full: impl Fn() -> bool) -> Result<usize, CollectError> {
        let rules = Rules { keep_last: 1, keep_tagged: true, older_than: None };
        let (mut judged, mut users) = self.judge(&rules).await?;
        judged.retain(|one| one.verdict == Verdict::Remove);
        oldest_first(&mut judged, |one| one.published.created_at);
        let mut removed = 0;
        for one in judged {
            if !is_full() {
                break;
            }
            if let Ok(leave) = self.take_away(&one.published, &rules, &mut users).await? {
                // Others may hold the same layers, so that only the disk knows how much room that made.
                self.capsules.collect_garbage().await?;
                drop(leave);
                removed += 1;
            }
        }
        Ok(removed)
    }

    async fn judge(&self, rules: &Rules) -> Result<(Vec<Judged>, Users), CollectError> {
        let all = self.capsules.listed().await?.list(None);
        let users = self.users(&self.containerd.namespace(self.capsules.namespace())?).await?;
        let verdicts = self.verdicts(&all, &users, rules);
        let judged = all.into_iter().zip(verdicts);
        Ok((judged.map(|(published, verdict)| Judged { published, verdict }).collect(), users))
    }

    /// Removes a version's image records. Nobody begins to use it until what is given is dropped, which is to be after containerd's
    /// collection. Or else why it stays: somebody needs it by now.
    async fn take_away(
        &self,
        one: &Published,
        rules: &Rules,
        users: &mut Users,
    ) -> Result<Result<Leave, String>, CollectError> {
        let leaving = self.capsules.leave(&one.digest);
        // A tag that was made before is seen, and who would make one now finds no version afterwards.
        let names = self.capsules.hold_names().await;
        if let Some(reason) = self.needed_by_now(one, rules, users).await? {
            return Ok(Err(reason));
        }
        let removed = self.capsules.remove_images(&names, one).await?;
        Ok(if removed { Ok(leaving) } else { Err("it is another by now".to_owned()) })
    }
}

#[cfg(test)]
mod tests;
