//! Which containers there are, held in memory so that an attach asks containerd nothing.
//!
//! Filled by listing once, then kept true by containerd's container events. What is not found here by its whole id is
//! looked for by listing again: its event may not have come yet, and a name or the beginning of an id may be another
//! container's by now.
//!
//! dockerd deletes containerd's container whenever its own stops, and creates it anew, with the same id, when it starts it
//! again. What lasts as long as Docker's container is a lease of that id (docs/adr/0022).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::timeout};

use super::{
    error::AttachmentError,
    model::ContainerKey,
    pods::{self, MemberRef},
};
use crate::containerd::{Container, Containerd, ContainerdError, Lease, Member};

/// How long containerd may take to list its containers where a caller names one.
const LISTING: Duration = Duration::from_secs(5);

/// How a caller names a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub name: Name,
    /// Its containerd namespace; any when empty.
    pub namespace: String,
}

/// What a caller calls a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// Its id, its name, or the beginning of its id.
    Id(String),
    /// What it is in a pod.
    Member(MemberRef),
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.namespace.as_str()) {
            (Name::Member(member), _) => member.fmt(f),
            (Name::Id(id), "") => f.write_str(id),
            (Name::Id(id), namespace) => write!(f, "{namespace}/{id}"),
        }
    }
}

/// What is known of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Its runtime.
    pub runtime: String,
    /// When it was created, if containerd says so; of one of Docker's, when Docker created it.
    pub created: Option<SystemTime>,
    /// What it is in a pod, if it is of one.
    pub member: Option<Member>,
    /// The name that its client calls it by, if it has one beside its id.
    pub name: Option<String>,
    /// Its task is its only one: it is a pod's, and the kubelet makes another container where it restarts one.
    pub once: bool,
    /// It is Docker's, and stopped: containerd has no container of its id now.
    pub stopped: bool,
}

impl Known {
    /// What is known of a container by what containerd has, and by the lease with which Docker keeps it, where it is Docker's.
    fn of(container: Option<Container>, lease: Option<&Lease>) -> Option<Self> {
        let created = lease.map(|lease| lease.created);
        match container {
            Some(Container { runtime, created: own, member, name, once, .. }) => {
                let created = created.unwrap_or(own);
                Some(Self { runtime, created, member, name, once, stopped: false })
            }
            None => Some(Self { created: created?, stopped: true, ..Self::default() }),
        }
    }
}

/// Whether an id is one that dockerd makes. It has other leases in its namespace, of pulls and builds.
fn is_dockers(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// container id → (containerd namespace → what is known of it).
type Index = BTreeMap<String, BTreeMap<String, Known>>;

/// The containers: cheap to clone, shared.
#[derive(Debug, Clone)]
pub struct Containers {
    containerd: Containerd,
    docker: Arc<BTreeSet<String>>,
    index: Arc<RwLock<Index>>,
    /// Every change comes by an event.
    followed: Arc<watch::Sender<bool>>,
}

impl Containers {
    /// Nothing is listed yet.
    pub fn new(containerd: Containerd) -> Self {
        Self {
            containerd,
            docker: Arc::default(),
            index: Arc::default(),
            followed: Arc::new(watch::Sender::new(false)),
        }
    }

    /// With Docker's containers in these namespaces.
    pub fn with_docker(self, namespaces: &BTreeSet<String>) -> Self {
        Self { docker: Arc::new(namespaces.clone()), ..self }
    }

    /// Whether the containers of a namespace are Docker's.
    pub fn are_dockers(&self, namespace: &str) -> bool {
        self.docker.contains(namespace)
    }

    /// Lists all containers of all namespaces.
    pub async fn reload(&self) -> Result<(), ContainerdError> {
        let index = self.listed().await?;
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = index;
        Ok(())
    }

    async fn listed(&self) -> Result<Index, ContainerdError> {
        let mut index = Index::new();
        for namespace in self.containerd.namespaces().await? {
            let scope = self.containerd.namespace(&namespace)?;
            let containers = scope.containers().await?.into_iter().map(|c| (c.id.clone(), c));
            let mut containers: BTreeMap<String, Container> = containers.collect();
            // After the containers: one whose lease is gone by then is being removed.
            let leases = if self.are_dockers(&namespace) { scope.leases().await? } else { Vec::new() };
            let of_lease = |lease: &Lease| {
                Some((lease.id.clone(), Known::of(containers.remove(&lease.id), Some(lease))?))
            };
            let mut all: Vec<_> =
                leases.iter().filter(|lease| is_dockers(&lease.id)).filter_map(of_lease).collect();
            all.extend(containers.into_iter().filter_map(|(id, c)| Some((id, Known::of(Some(c), None)?))));
            for (id, known) in all {
                index.entry(id).or_default().insert(namespace.clone(), known);
            }
        }
        Ok(index)
    }

    /// Whether every change comes by an event from now on.
    pub fn set_followed(&self, followed: bool) {
        self.followed.send_replace(followed);
    }

    /// Whether every change comes by an event.
    pub fn is_followed(&self) -> bool {
        *self.followed.borrow()
    }

    /// The same, and each change of it.
    pub fn followed(&self) -> watch::Receiver<bool> {
        self.followed.subscribe()
    }

    /// Looks at a container again where no event would have told that another one has its id by now. A containerd that does not
    /// answer makes no new one.
    pub async fn refresh_unless_followed(&self, key: &ContainerKey) {
        if self.is_followed() {
            return;
        }
        if let Err(error) = self.refresh(key).await {
            tracing::debug!(container = %key, %error, "what is known of it may be of an earlier one");
        }
    }

    /// Looks at one container again after an event.
    pub async fn refresh(&self, key: &ContainerKey) -> Result<(), ContainerdError> {
        let scope = self.containerd.namespace(&key.namespace)?;
        let container = scope.container(&key.id).await?;
        // After the container, as above.
        let leased = self.are_dockers(&key.namespace) && is_dockers(&key.id);
        let lease = if leased { scope.lease(&key.id).await? } else { None };
        match Known::of(container, lease.as_ref()) {
            Some(known) => self.put(key, known),
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

    /// The container that is meant. An exact id wins over a name, and a name over the beginning of an id.
    pub async fn find(&self, wanted: &Wanted) -> Result<ContainerKey, AttachmentError> {
        let in_memory = self.look_up(wanted);
        if matches!((&in_memory, &wanted.name), (Ok(key), Name::Id(id)) if key.id == *id) {
            return in_memory;
        }
        let index = match timeout(LISTING, self.listed()).await {
            Ok(Ok(index)) => index,
            // Nobody makes or renames containers meanwhile.
            Ok(Err(error)) if is_unknown(&in_memory) => return Err(error.into()),
            Ok(Err(_)) => return in_memory,
            Err(_) => {
                tracing::warn!(container = %wanted, "containerd does not list its containers: what is known of them counts");
                return in_memory;
            }
        };
        let key = choose(&index, wanted)?;
        if self.known(&key).as_ref() != index.get(&key.id).and_then(|all| all.get(&key.namespace)) {
            // Its event is still on its way, or came since: what is listed may be the older word.
            match timeout(LISTING, self.refresh(&key)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(container = %key, %error, "its event is waited for"),
                Err(_) => {
                    tracing::debug!(container = %key, "containerd does not answer: its event is waited for")
                }
            }
        }
        Ok(key)
    }

    /// The container that is called so, by its client or in a pod, and by no whole id. From memory.
    pub fn by_name(&self, wanted: &Wanted) -> Option<ContainerKey> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let Name::Id(name) = &wanted.name else { return choose(&index, wanted).ok() };
        let mut named =
            matching(index.iter(), &wanted.namespace, |known| known.name.as_ref() == Some(name)).into_iter();
        let first = named.next().filter(|_| !index.contains_key(name))?;
        named.next().is_none().then_some(first)
    }

    /// What the container is in a pod, if it is of one.
    pub fn member(&self, key: &ContainerKey) -> Option<Member> {
        self.known(key)?.member
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

fn is_unknown(found: &Result<ContainerKey, AttachmentError>) -> bool {
    matches!(found, Err(AttachmentError::UnknownContainer { .. } | AttachmentError::UnknownMember { .. }))
}

fn choose(index: &Index, wanted: &Wanted) -> Result<ContainerKey, AttachmentError> {
    match &wanted.name {
        Name::Id(id) => choose_by_id(index, id, &wanted.namespace),
        Name::Member(member) => pods::choose(members(index, &wanted.namespace), member),
    }
}

/// All containers of pods in a containerd namespace, or in all when it is empty.
fn members<'a>(index: &'a Index, namespace: &str) -> Vec<pods::Candidate<'a>> {
    let all = index.iter().flat_map(|(id, namespaces)| namespaces.iter().map(move |of| (id, of)));
    all.filter(|(_, (of, _))| namespace.is_empty() || *of == namespace)
        .filter_map(|(id, (of, known))| {
            let key = ContainerKey { namespace: of.clone(), id: id.clone() };
            Some((key, known.member.as_ref()?, known.created))
        })
        .collect()
}

fn choose_by_id(index: &Index, wanted: &str, namespace: &str) -> Result<ContainerKey, AttachmentError> {
    let unknown =
        || AttachmentError::UnknownContainer { id: wanted.to_owned(), namespace: namespace.to_owned() };
    if wanted.is_empty() {
        return Err(unknown());
    }
    // One after the other: what is exact wins, and only where it finds nothing is the next looked for.
    let by_id = index.get_key_value(wanted).into_iter();
    let mut matches = matching(by_id, namespace, |_| true);
    if matches.is_empty() {
        matches = matching(index.iter(), namespace, |known| known.name.as_deref() == Some(wanted));
    }
    if matches.is_empty() {
        let by_prefix = index.range(wanted.to_owned()..).take_while(|(id, _)| id.starts_with(wanted));
        matches = matching(by_prefix, namespace, |_| true);
    }
    match matches.len() {
        0 => Err(unknown()),
        1 => Ok(matches.remove(0)),
        _ => Err(AttachmentError::AmbiguousContainer {
            id: wanted.to_owned(),
            matches: matches.iter().map(ToString::to_string).collect(),
        }),
    }
}

/// Those of the wanted namespace, any when it is empty, of which `is` holds.
fn matching<'a>(
    ids: impl Iterator<Item = (&'a String, &'a BTreeMap<String, Known>)>,
    wanted: &str,
    is: impl Fn(&Known) -> bool,
) -> Vec<ContainerKey> {
    let of = |namespace: &String| wanted.is_empty() || namespace == wanted;
    ids.flat_map(|(id, namespaces)| namespaces.iter().map(move |(namespace, known)| (id, namespace, known)))
        .filter(|(_, namespace, known)| of(namespace) && is(known))
        .map(|(id, namespace, _)| ContainerKey { namespace: namespace.clone(), id: id.clone() })
        .collect()
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
        for (namespace, id, name) in [
            ("default", "c1f0", "shop"),
            ("other", "c2f0", "shop"),
            ("default", "c3f0", "c1f0"),
            ("default", "c4f0", "web-"),
            ("default", "5hop", "5"),
        ] {
            let known = Known { name: Some(name.to_owned()), ..Known::default() };
            index.entry(id.into()).or_default().insert(namespace.into(), known);
        }
        index
    }

    fn find(id: &str, namespace: &str) -> Result<String, String> {
        let wanted = Wanted { name: Name::Id(id.into()), namespace: namespace.into() };
        choose(&index(), &wanted).map(|k| k.to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn ids_and_unique_prefixes_find_containers() {
        assert_eq!(find("web", "").unwrap(), "default/web");
        assert_eq!(find("web-2", "").unwrap(), "default/web-2");
        assert_eq!(find("7", "").unwrap(), "moby/77");
        assert_eq!(find("3f", "moby").unwrap(), "moby/3f9a");
    }

    #[test]
    fn names_find_containers_after_ids_and_before_prefixes() {
        assert_eq!(find("shop", "other").unwrap(), "other/c2f0");
        assert_eq!(find("shop", "default").unwrap(), "default/c1f0");
        assert_eq!(find("c1f0", "").unwrap(), "default/c1f0"); // though another has it for a name
        assert_eq!(find("web-", "").unwrap(), "default/c4f0"); // though an id begins with it
        assert_eq!(find("web-", "default").unwrap(), "default/c4f0");
        // The beginning of a name finds nothing, and one of an id is not kept from it by names.
        assert!(find("sho", "").unwrap_err().contains("not known"));
        assert_eq!(find("5h", "").unwrap(), "default/5hop");
        let ambiguous = find("shop", "").unwrap_err();
        assert!(ambiguous.contains("could be default/c1f0, other/c2f0"), "{ambiguous}");
    }

    #[tokio::test]
    async fn only_a_name_is_one() {
        let containers = Containers::new(Containerd::new(std::path::Path::new("/nowhere.sock")));
        *containers.index.write().unwrap() = index();
        let named = |id: &str, namespace: &str| {
            let wanted = Wanted { name: Name::Id(id.into()), namespace: namespace.into() };
            containers.by_name(&wanted).map(|key| key.to_string())
        };
        assert_eq!(named("shop", "other").as_deref(), Some("other/c2f0"));
        // Of two, a whole id (which another has for a name), the beginning of an id, nothing.
        for id in ["shop", "c1f0", "3f", "nope"] {
            assert_eq!(named(id, ""), None, "{id}");
        }
    }

    #[test]
    fn a_container_of_dockers_is_there_as_long_as_its_lease() {
        let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let (id, runtime) = ("c0".repeat(32), "io.containerd.capsule.v1".to_owned());
        let container = Container {
            id: id.clone(),
            runtime: runtime.clone(),
            created: at(9),
            member: None,
            name: None,
            once: false,
        };
        let lease = Lease { id: id.clone(), created: at(5), labels: std::collections::HashMap::new() };
        let known = |runtime: &str, created, stopped| {
            Some(Known { runtime: runtime.to_owned(), created, stopped, ..Known::default() })
        };
        for (container, lease, expected) in [
            (Some(&container), None, known(&runtime, at(9), false)),
            (Some(&container), Some(&lease), known(&runtime, at(5), false)),
            (None, Some(&lease), known("", at(5), true)),
            (None, None, None),
        ] {
            assert_eq!(Known::of(container.cloned(), lease), expected);
        }
        assert!(is_dockers(&id));
        for other in ["web", "1764398000-abcd", &id[1..], &id.to_uppercase()] {
            assert!(!is_dockers(other), "{other}");
        }
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
