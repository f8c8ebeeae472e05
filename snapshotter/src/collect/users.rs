//! Who uses versions: read once for all of them, and again before each one goes.

use std::collections::{BTreeSet, HashMap};

use super::{
    engine::{CollectError, Collector},
    plan::{Found, Rules, Verdict, plan},
};
use crate::{
    capsules::{Published, model::Digest},
    containerd::{Held, ImageRecord, Scope},
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
            used: used.or_else(of_layers).or_else(of_image).or_else(|| users.leased.holds(one, &images)),
        }
    }
}

fn is_pinned(image: &ImageRecord) -> bool {
    image.labels.get(PINNED).is_some_and(|value| value == "pinned")
}

/// What leases of the capsules' namespace hold.
#[derive(Debug, Default, PartialEq, Eq)]
struct Leased {
    /// What is held → the lease.
    resources: HashMap<Held, String>,
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

    /// The lease that holds a version, whose `images` these are: one of them, or a part.
    fn holds(&self, one: &Published, images: &[String]) -> Option<String> {
        let names = images.iter().cloned().map(Held::Image);
        let parts = one.image.iter().flat_map(|image| {
            let blobs = image.layers.iter().chain([&image.config]).map(|blob| &blob.digest);
            // Of several platforms, the version's own digest is the index's.
            let blobs: Vec<Digest> = blobs.chain(&image.manifest).cloned().collect();
            blobs.into_iter().chain(image.chain_ids())
        });
        let parts = [one.digest.clone()].into_iter().chain(parts).map(|part| Held::Part(part.to_string()));
        let lease = names.chain(parts).find_map(|held| self.resources.get(&held));
        lease.map(|lease| format!("the lease {lease} of containerd"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capsules::oci;

    #[test]
    fn a_lease_holds_a_version_by_any_of_its_parts() {
        let digest = |byte| Digest::from_sha256(&[byte; 32]);
        let blob = |byte| oci::Descriptor { media_type: String::new(), digest: digest(byte), size: 1 };
        let one = Published {
            name: "x".parse().unwrap(),
            version: "1".parse().unwrap(),
            digest: digest(1),
            image_name: "x:1".to_owned(),
            created_at: None,
            image: Ok(oci::Image {
                manifest: Some(digest(2)),
                config: blob(3),
                layers: vec![blob(4), blob(5)],
                diff_ids: vec![digest(6), digest(7)],
                annotations: std::collections::BTreeMap::new(),
            }),
        };
        let chain = one.image.as_ref().unwrap().chain_ids();
        let images = ["x:1".to_owned(), "host/x:stable".to_owned()];
        let part = |digest: &Digest| Held::Part(digest.to_string());
        for (held, holds) in [
            (part(&digest(1)), true),
            (part(&digest(2)), true),
            (part(&digest(3)), true),
            (part(&digest(5)), true),
            (part(&chain[0]), true),
            (part(&chain[1]), true),
            // What a layer is once it is uncompressed is the name of no blob here, and but for the first of no snapshot.
            (part(&digest(7)), false),
            (Held::Image("x:1".to_owned()), true),
            (Held::Image("host/x:stable".to_owned()), true),
            (Held::Image("x:2".to_owned()), false),
            (Held::Part("x:1".to_owned()), false),
        ] {
            let leased = Leased { resources: HashMap::from([(held.clone(), "backup".to_owned())]) };
            assert_eq!(leased.holds(&one, &images).is_some(), holds, "{held:?}");
        }
    }
}
