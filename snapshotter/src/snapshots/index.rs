//! What the engine knows without asking the database: the committed snapshots as containerd names them, and
//! which of them must not go.
//!
//! In memory only; filled from the store at start and kept in step by the engine.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A committed snapshot and those below it.
#[derive(Debug)]
struct Layer {
    id: u64,
    parent: Option<Arc<Layer>>,
}

/// The shared index. See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Index {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By full name, as the store has it.
    layers: HashMap<Arc<str>, Arc<Layer>>,
    /// Containerd namespace → containerd's name → full name.
    aliases: HashMap<String, HashMap<String, Arc<str>>>,
    /// Snapshot id → owners that hold it.
    pins: HashMap<u64, Vec<Arc<str>>>,
    /// Owner → ids of the snapshots that it holds.
    held: HashMap<Arc<str>, Vec<u64>>,
    /// Owner → containerd namespace of which it holds all that is committed. At a start there is one for each container.
    all: HashMap<Arc<str>, String>,
}

/// Why [`Index::begin_remove`] refuses: who holds the snapshot.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pinned {
    pub(super) owner: String,
}

/// Splits containerd's `NAMESPACE/SEQUENCE/NAME` (core/metadata/snapshot.go, `createKey`) into namespace and name.
fn parse_alias(full: &str) -> Option<(&str, &str)> {
    let (namespace, rest) = full.split_once('/')?;
    let (sequence, name) = rest.split_once('/')?;
    sequence.bytes().all(|byte| byte.is_ascii_digit()).then_some((namespace, name))
}

impl Index {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change below is complete before anything can panic, so a poisoned state is a whole one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds committed snapshots, name → (id, parent's name or empty), in whatever order. A parent need not be older than
    /// its children: one that was given at a commit may be newer.
    pub(super) fn fill(&self, mut snapshots: HashMap<String, (u64, String)>) {
        let names: Vec<String> = snapshots.keys().cloned().collect();
        for mut next in names {
            let mut chain = Vec::new();
            while let Some((id, parent)) = snapshots.remove(&next) {
                chain.push((std::mem::replace(&mut next, parent.clone()), id, parent));
            }
            for (name, id, parent) in chain.iter().rev() {
                self.insert(name, *id, Some(parent.as_str()).filter(|name| !name.is_empty()));
            }
        }
    }

    /// Adds a committed snapshot. Its parent, if any, must have been added before.
    pub(super) fn insert(&self, name: &str, id: u64, parent: Option<&str>) {
        let mut state = self.lock();
        let parent = parent.and_then(|parent| state.layers.get(parent).cloned());
        let full: Arc<str> = name.into();
        if let Some((namespace, alias)) = parse_alias(name) {
            state.aliases.entry(namespace.to_owned()).or_default().insert(alias.to_owned(), full.clone());
        }
        state.layers.insert(full, Arc::new(Layer { id, parent }));
    }

    /// Takes a snapshot out unless it is pinned, so that nothing can pin it from here on. Unknown names are fine:
    /// active snapshots are not listed here.
    pub(super) fn begin_remove(&self, name: &str, id: u64) -> Result<(), Pinned> {
        let mut state = self.lock();
        if let Some(owner) = state.owner(name, id) {
            return Err(Pinned { owner: owner.to_string() });
        }
        state.layers.remove(name);
        if let Some((namespace, alias)) = parse_alias(name)
            && let Some(names) = state.aliases.get_mut(namespace)
            && names.get(alias).is_some_and(|full| &**full == name)
        {
            names.remove(alias);
        }
        Ok(())
    }

    /// Ids of the snapshot that containerd calls `name` in `namespace` and of all below it, topmost first.
    pub(super) fn chain(&self, namespace: &str, name: &str) -> Option<Vec<u64>> {
        let state = self.lock();
        let layer = state.resolve(namespace, name)?;
        Some(ids(layer))
    }

    /// As [`Index::chain`], and pins the topmost for `owner` in the same step.
    pub(super) fn pin(&self, namespace: &str, name: &str, owner: &str) -> Option<Vec<u64>> {
        let mut state = self.lock();
        let chain = ids(state.resolve(namespace, name)?);
        state.add_pin(*chain.first()?, owner);
        Some(chain)
    }

    /// Pins a snapshot by id, whether or not it is known (yet).
    pub(super) fn pin_id(&self, id: u64, owner: &str) {
        self.lock().add_pin(id, owner);
    }

    /// Pins all committed snapshots of a containerd namespace, and those that come, until [`Index::repin`] or [`Index::unpin`].
    pub(super) fn pin_all(&self, namespace: &str, owner: &str) {
        self.lock().all.insert(owner.into(), namespace.to_owned());
    }

    /// Lets `owner` hold `ids` and nothing else, in one step: what it held and still holds is pinned throughout.
    pub(super) fn repin(&self, ids: &[u64], owner: &str) {
        let mut state = self.lock();
        state.unpin(owner);
        ids.iter().for_each(|id| state.add_pin(*id, owner));
    }

    /// One who has pinned the snapshot that containerd calls `name` in `namespace`.
    pub(super) fn owner(&self, namespace: &str, name: &str) -> Option<String> {
        let state = self.lock();
        let full = state.aliases.get(namespace)?.get(name)?;
        let id = state.layers.get(full)?.id;
        state.owner(full, id).map(ToString::to_string)
    }

    /// Drops every pin of `owner`.
    pub(super) fn unpin(&self, owner: &str) {
        self.lock().unpin(owner);
    }
}

impl State {
    fn resolve(&self, namespace: &str, name: &str) -> Option<&Arc<Layer>> {
        self.layers.get(self.aliases.get(namespace)?.get(name)?)
    }

    /// One who holds the snapshot of this full name and id.
    fn owner(&self, full: &str, id: u64) -> Option<&Arc<str>> {
        let of_all = || {
            let (namespace, _) = parse_alias(full)?;
            self.all.iter().find(|(_, of)| *of == namespace).map(|(owner, _)| owner)
        };
        self.pins.get(&id).and_then(|owners| owners.first()).or_else(of_all)
    }

    fn unpin(&mut self, owner: &str) {
        self.all.remove(owner);
        for id in self.held.remove(owner).unwrap_or_default() {
            let Some(owners) = self.pins.get_mut(&id) else { continue };
            owners.retain(|other| &**other != owner);
            if owners.is_empty() {
                self.pins.remove(&id);
            }
        }
    }

    fn add_pin(&mut self, id: u64, owner: &str) {
        let owner =
            self.held.get_key_value(owner).map_or_else(|| owner.into(), |(known, _)| Arc::clone(known));
        let held = self.held.entry(Arc::clone(&owner)).or_default();
        if !held.contains(&id) {
            held.push(id);
            self.pins.entry(id).or_default().push(owner);
        }
    }
}

fn ids(layer: &Arc<Layer>) -> Vec<u64> {
    std::iter::successors(Some(layer), |layer| layer.parent.as_ref()).map(|layer| layer.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        let index = Index::default();
        index.insert("capsules/4/sha256:a", 1, None);
        index.insert("capsules/9/sha256:b", 2, Some("capsules/4/sha256:a"));
        index.insert("k8s.io/2/sha256:a", 3, None);
        index
    }

    #[test]
    fn names_resolve_per_namespace_to_their_chains() {
        let index = index();
        assert_eq!(index.chain("capsules", "sha256:b"), Some(vec![2, 1]));
        assert_eq!(index.chain("k8s.io", "sha256:a"), Some(vec![3]));
        assert_eq!(index.chain("k8s.io", "sha256:b"), None);
        assert_eq!(index.chain("moby", "sha256:a"), None);
    }

    #[test]
    fn names_may_hold_slashes_and_foreign_keys_are_not_resolved() {
        let index = Index::default();
        index.insert("ns/1/a/b/c", 1, None);
        index.insert("plain", 2, None);
        index.insert("ns/x1/name", 3, None);
        assert_eq!(index.chain("ns", "a/b/c"), Some(vec![1]));
        assert_eq!(index.chain("ns", "name"), None);
    }

    #[test]
    fn a_pinned_snapshot_stays_until_its_last_owner_lets_go() {
        let index = index();
        assert_eq!(index.pin("capsules", "sha256:b", "one"), Some(vec![2, 1]));
        assert_eq!(index.pin("capsules", "sha256:b", "two"), Some(vec![2, 1]));
        index.unpin("one");
        let refused = index.begin_remove("capsules/9/sha256:b", 2);
        assert_eq!(refused, Err(Pinned { owner: "two".to_owned() }));
        index.unpin("two");
        assert_eq!(index.begin_remove("capsules/9/sha256:b", 2), Ok(()));
        assert_eq!(index.pin("capsules", "sha256:b", "late"), None);
    }

    #[test]
    fn an_owner_changes_what_it_holds_in_one_step() {
        let index = index();
        index.pin_all("capsules", "owner");
        assert!(index.begin_remove("capsules/4/sha256:a", 1).is_err());
        assert_eq!(index.begin_remove("k8s.io/2/sha256:a", 3), Ok(()));
        index.repin(&[2], "owner");
        assert!(index.begin_remove("capsules/9/sha256:b", 2).is_err());
        assert_eq!(index.begin_remove("capsules/4/sha256:a", 1), Ok(()));
        index.repin(&[], "owner");
        assert_eq!(index.begin_remove("capsules/9/sha256:b", 2), Ok(()));
    }

    #[test]
    fn chains_are_whole_whatever_the_order_of_their_ids() {
        let names = ["ns/1/bottom", "ns/2/middle", "ns/3/top", "ns/4/other"];
        let parents = ["", "ns/1/bottom", "ns/2/middle", "ns/1/bottom"];
        for ids in [[1, 2, 3, 4], [4, 3, 2, 1], [2, 4, 1, 3]] {
            let index = Index::default();
            let owned =
                |(name, (id, parent)): (&str, (u64, &str))| (name.to_owned(), (id, parent.to_owned()));
            index.fill(names.into_iter().zip(ids.into_iter().zip(parents)).map(owned).collect());
            assert_eq!(index.chain("ns", "top"), Some(vec![ids[2], ids[1], ids[0]]));
            assert_eq!(index.chain("ns", "other"), Some(vec![ids[3], ids[0]]));
        }
    }

    #[test]
    fn a_newer_snapshot_of_the_same_name_survives_the_removal_of_the_older() {
        let index = index();
        index.insert("capsules/12/sha256:a", 7, None);
        assert_eq!(index.begin_remove("capsules/4/sha256:a", 1), Ok(()));
        assert_eq!(index.chain("capsules", "sha256:a"), Some(vec![7]));
    }
}
