//! What is told of versions and tags: the difference between what was known and what is. Pure.

use std::collections::BTreeMap;

use super::model::{CapsuleName, Digest, Version};
use crate::events::{Event, Kind};

/// A capsule, and a version or a tag of it.
pub(super) type Key = (CapsuleName, Version);

/// Versions, and what tags stand for.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// What versions are: their digests.
    pub(super) versions: BTreeMap<Key, Digest>,
    /// The version that each tag stands for.
    pub(super) tags: BTreeMap<Key, (Version, Digest)>,
}

/// What came and what went; a tag after the version that it stands for.
pub(super) fn plan_told(before: &Known, after: &Known) -> Vec<Event> {
    let other = |all: &Known, key: &Key, digest: &Digest| all.versions.get(key) != Some(digest);
    let of =
        |((name, version), digest): (&Key, &Digest), kind| Event::of_version(name, version, digest, kind);
    let untagged = before.tags.iter().filter(|(key, _)| !after.tags.contains_key(*key));
    let mut events: Vec<Event> = untagged.map(|(key, was)| tag(key, was, Kind::Untagged)).collect();
    let removed = before.versions.iter().filter(|(key, digest)| other(after, key, digest));
    events.extend(removed.map(|gone| of(gone, Kind::Removed)));
    let published = after.versions.iter().filter(|(key, digest)| other(before, key, digest));
    events.extend(published.map(|new| of(new, Kind::Published)));
    let tagged = after.tags.iter().filter(|(key, is)| before.tags.get(*key) != Some(is));
    events.extend(tagged.map(|(key, is)| {
        let from = before.tags.get(key).map(|(version, _)| version.clone());
        Event { from, ..tag(key, is, Kind::Tagged) }
    }));
    events
}

fn tag((name, tag): &Key, (version, digest): &(Version, Digest), kind: Kind) -> Event {
    Event { tag: Some(tag.clone()), ..Event::of_version(name, version, digest, kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(versions: &[&str], tags: &[(&str, &str)]) -> Known {
        let key = |text: &str| ("lib".parse().unwrap(), text.parse().unwrap());
        let digest = |version: &str| Digest::from_sha256(&[version.as_bytes()[0]; 32]);
        Known {
            versions: versions.iter().map(|v| (key(v), digest(v))).collect(),
            tags: tags.iter().map(|(t, v)| (key(t), (v.parse().unwrap(), digest(v)))).collect(),
        }
    }

    #[test]
    fn what_came_and_went_is_told() {
        let told = |before: &Known, after: &Known| -> Vec<String> {
            let line = |e: Event| {
                let [tag, from] =
                    [e.tag, e.from].map(|v| v.map_or_else(|| "-".to_owned(), |v| v.to_string()));
                format!("{} {} {tag} {from}", e.kind.word(), e.version)
            };
            plan_told(before, after).into_iter().map(line).collect()
        };
        let (one, two) = (known(&["1"], &[]), known(&["1", "2"], &[("stable", "1"), ("next", "2")]));
        assert_eq!(told(&one, &two), ["published 2 - -", "tagged 2 next -", "tagged 1 stable -"]);
        let moved = known(&["1", "2"], &[("stable", "2"), ("next", "2")]);
        assert_eq!(told(&two, &moved), ["tagged 2 stable 1"]);
        assert_eq!(told(&moved, &one), ["untagged 2 next -", "untagged 2 stable -", "removed 2 - -"]);
        assert!(told(&two, &two).is_empty());
    }
}
