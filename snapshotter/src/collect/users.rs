//! Who uses versions: read once for all of them, and again before each one goes.

use std::collections::{BTreeSet, HashMap};

use super::{
    engine::{CollectError, Collector},
    plan::{Found, Rules, Verdict, plan},
};
use crate::{
    capsules::{Published, model::Digest},
    containerd::{ImageRecord, Scope},
};

/// By which containerd's CRI marks images that are not to be collected.
const PINNED: &str = "io.cri-containerd.pinned";

/// Who uses versions, beside those that have pinned their directories.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Users {
    /// Digest → who has it attached, or could go back to it.
    holders: HashMap<Digest, String>,
    leased: Leased,
    /// Names of the images that are not to be collected.
    pinned: BTreeSet<String>,
}

impl Collector {
    /// All of them.
    pub(super) async fn users(&self, scope: &Scope) -> Result<Users, CollectError> {
        let pinned = scope.images().await?.into_iter().filter(is_pinned).map(|image| image.name);
        let pinned = pinned.collect();
        Ok(Users { holders: self.attachments.holders(), leased: Leased::read(scope).await?, pinned })
    }

    /// The verdict on each of `all`.
    pub(super) fn verdicts(&self, all: &[Published], users: &Users, rules: &Rules) -> Vec<Verdict> {
        let found: Vec<Found> = all.iter().map(|one| self.found(one, users)).collect();
        plan(&found, rules, std::time::SystemTime::now())
    }

    /// Why a version that was to go stays: somebody has begun to need it since `users` were read, which are then those of now.
    /// Nobody tags it meanwhile.
    pub(super) async fn needed_by_now(
        &self,
        one: &Published,
        rules: &Rules,
        users: &mut Users,
    ) -> Result<Option<String>, CollectError> {
        let scope = self.containerd.namespace(self.capsules.namespace())?;
        let mut pinned = users.pinned.clone();
        for image in self.capsules.catalogue().images_of(&one.name, &one.version) {
            if scope.image(&image).await?.as_ref().is_some_and(is_pinned) {
                pinned.insert(image);
            } else {
                pinned.remove(&image);
            }
        }
        let now = Users { holders: self.attachments.holders(), leased: Leased::read(&scope).await?, pinned };
        // While nobody came and nobody went, no other version requires what it did not require before.
        let is_same = now == *users;
        *users = now;
        let catalogue = self.capsules.catalogue();
        let all = if is_same { vec![one.clone()] } else { catalogue.list(None) };
        // How new and how old it is was judged among those that were there then.
        let rules = Rules { keep_last: 0, older_than: None, keep_tagged: rules.keep_tagged };
        let verdicts = self.verdicts(&all, users, &rules);
        let of_it = all.iter().zip(verdicts).find(|(other, _)| {
            (&other.name, &other.version, &other.digest) == (&one.name, &one.version, &one.digest)
        });
        Ok(match of_it {
            Some((_, Verdict::Remove)) => None,
            Some((_, Verdict::Keep(why))) => Some(why),
            None => Some("it is another by now".to_owned()),
        })
    }

    fn found(&self, one: &Published, users: &Users) -> Found {
        let image = one.image.as_ref().ok();
        let declared = image.and_then(|image| image.declared().ok());
        let images = self.capsules.catalogue().images_of(&one.name, &one.version);
        let of_image = || {
            let is_pinned = images.iter().any(|image| users.pinned.contains(image));
            is_pinned.then(|| format!("pinned by the label {PINNED}"))
        };
        // What drains, who reads, a call under way, a version with the same tree.
        let of_layers = || self.capsules.pinned_by(one).map(|owner| format!("its layers, by {owner}"));
        let used = users.holders.get(&one.digest).cloned();
        Found {
            name: one.name.clone(),
            version: one.version.clone(),
            created_at: one.created_at,
            tags: self.capsules.catalogue().tags_of(one),
            requires: declared.map(|declared| declared.requires).unwrap_or_default(),
            used: used.or_else(of_layers).or_else(of_image).or_else(|| users.leased.holds(one)),
        }
    }
}

fn is_pinned(image: &ImageRecord) -> bool {
    image.labels.get(PINNED).is_some_and(|value| value == "pinned")
}

/// What leases of the capsules' namespace hold.
#[derive(Debug, Default, PartialEq, Eq)]
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
