//! Which containers there are, held in memory so that an attach asks containerd nothing.
//!
//! Filled by listing once, then kept true by containerd's container events. What is not found here is looked for
//! by listing again, in case its event has not come yet.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use super::{error::AttachmentError, model::ContainerKey};
use crate::containerd::{Containerd, ContainerdError};

/// How a caller names a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its id, or the beginning of it.
    pub id: String,
    /// Its containerd namespace; any when empty.
    pub namespace: String,
}

/// What is known of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Its runtime.
    pub runtime: String,
    /// When it was created, if containerd says so.
    pub created: Option<SystemTime>,
}

/// container id → (containerd namespace → what is known of it).
type Index = BTreeMap<String, BTreeMap<String, Known>>;

/// The containers: cheap to clone, shared.
#[derive(Debug, Clone)]
pub struct Containers {
    containerd: Containerd,
    index: Arc<RwLock<Index>>,
}

impl Containers {
    /// Nothing is listed yet.
    pub fn new(containerd: Containerd) -> Self {
        Self { containerd, index: Arc::default() }
    }

    /// Lists all containers of all namespaces.
    pub async fn reload(&self) -> Result<(), ContainerdError> {
        let mut index = Index::new();
        for namespace in self.containerd.namespaces().await? {
            for container in self.containerd.namespace(&namespace)?.containers().await? {
                let known = Known { runtime: container.runtime, created: container.created };
                index.entry(container.id).or_default().insert(namespace.clone(), known);
            }
        }
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = index;
        Ok(())
    }

    /// Looks at one container again after an event.
    pub async fn refresh(&self, key: &ContainerKey) -> Result<(), ContainerdError> {
        match self.containerd.namespace(&key.namespace)?.container(&key.id).await? {
            Some(container) => {
                self.put(key, Known { runtime: container.runtime, created: container.created });
            }
            None => self.forget(key),
        }
        Ok(())
    }

    /// Adds a container, or changes what is known of it.
    pub(super) fn put(&self, key: &ContainerKey, known: Known) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        index.entry(key.id.clone()).or_default().insert(key.namespace.clone(), known);
    }

    /// Drops a container that was deleted.
    pub fn forget(&self, key: &ContainerKey) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(namespaces) = index.get_mut(&key.id) {
            namespaces.remove(&key.namespace);
            if namespaces.is_empty() {
                index.remove(&key.id);
            }
        }
    }

    /// The container that is meant. An exact id wins over a prefix.
    pub async fn find(&self, wanted: &Wanted) -> Result<ContainerKey, AttachmentError> {
        match self.look_up(wanted) {
            Err(AttachmentError::UnknownContainer { .. }) => {
                self.reload().await?;
                self.look_up(wanted)
            }
            found => found,
        }
    }

    /// What is known of the container.
    pub fn known(&self, key: &ContainerKey) -> Option<Known> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.get(&key.id)?.get(&key.namespace).cloned()
    }

    fn look_up(&self, wanted: &Wanted) -> Result<ContainerKey, AttachmentError> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        choose(&index, wanted)
    }
}

fn choose(index: &Index, wanted: &Wanted) -> Result<ContainerKey, AttachmentError> {
    let unknown =
        || AttachmentError::UnknownContainer { id: wanted.id.clone(), namespace: wanted.namespace.clone() };
    if wanted.id.is_empty() {
        return Err(unknown());
    }
    let in_namespace = |id: &String, namespaces: &BTreeMap<String, Known>| -> Vec<ContainerKey> {
        let named = |n: &&String| wanted.namespace.is_empty() || **n == wanted.namespace;
        namespaces
            .keys()
            .filter(named)
            .map(|n| ContainerKey { namespace: n.clone(), id: id.clone() })
            .collect()
    };
    let mut matches: Vec<ContainerKey> =
        index.get_key_value(&wanted.id).map(|(id, n)| in_namespace(id, n)).unwrap_or_default();
    if matches.is_empty() {
        matches = index
            .range(wanted.id.clone()..)
            .take_while(|(id, _)| id.starts_with(&wanted.id))
            .flat_map(|(id, n)| in_namespace(id, n))
            .collect();
    }
    match matches.len() {
        0 => Err(unknown()),
        1 => Ok(matches.remove(0)),
        _ => Err(AttachmentError::AmbiguousContainer {
            id: wanted.id.clone(),
            matches: matches.iter().map(ToString::to_string).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        let mut index = Index::new();
        for (namespace, id) in
            [("default", "web"), ("default", "web-2"), ("k8s.io", "3f9a"), ("moby", "3f9a"), ("moby", "77")]
        {
            index.entry(id.into()).or_default().insert(namespace.into(), Known::default());
        }
        index
    }

    fn find(id: &str, namespace: &str) -> Result<String, String> {
        let wanted = Wanted { id: id.into(), namespace: namespace.into() };
        choose(&index(), &wanted).map(|k| k.to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn ids_and_unique_prefixes_find_containers() {
        assert_eq!(find("web", "").unwrap(), "default/web");
        assert_eq!(find("web-", "").unwrap(), "default/web-2");
        assert_eq!(find("7", "").unwrap(), "moby/77");
        assert_eq!(find("3f", "moby").unwrap(), "moby/3f9a");
    }

    #[test]
    fn what_is_unknown_or_ambiguous_is_said() {
        assert!(find("we", "").unwrap_err().contains("could be default/web, default/web-2"));
        assert!(find("3f9a", "").unwrap_err().contains("k8s.io/3f9a, moby/3f9a"));
        assert!(find("nope", "").unwrap_err().contains("\"nope\" is not known"));
        assert!(find("web", "moby").unwrap_err().contains("in the containerd namespace moby"));
        assert!(find("", "").is_err());
    }
}
