//! Which containers there are, held in memory so that an attach asks containerd nothing.
//!
//! Filled by listing once, then kept true by containerd's container events. What is not found here by its whole id is
//! looked for by listing again: its event may not have come yet, and a name or the beginning of an id may be another
//! container's by now.
//!
//! dockerd deletes containerd's container whenever its own stops, and creates it anew, with the same id, when it starts it
//! again. What lasts as long as Docker's container is a lease of that id (docs/adr/0022). What Docker calls it only dockerd
//! knows (docs/adr/0029).

mod choose;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::timeout};

use self::choose::{Index, choose, matching};
use super::{called::Called, error::AttachmentError, model::ContainerKey, pods::MemberRef};
use crate::{
    containerd::{Container, Containerd, ContainerdError, Lease, Member, PODS},
    docker::{Docker, Patience, Unanswered},
};

/// How long containerd may take to list its containers where a caller names one.
const LISTING: Duration = Duration::from_secs(5);

/// How many of the containers that went last are still known by what they were called: what is told of their end names them.
const GONE: usize = 256;

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

impl Wanted {
    /// The only containerd namespace in which it can be; any when empty.
    fn scope(&self) -> &str {
        match &self.name {
            Name::Member(_) if self.namespace.is_empty() => PODS,
            _ => &self.namespace,
        }
    }
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

/// The containers: cheap to clone, shared.
#[derive(Debug, Clone)]
pub struct Containers {
    containerd: Containerd,
    /// The containerd namespaces of Docker's.
    dockers: Arc<BTreeSet<String>>,
    docker: Docker,
    index: Arc<RwLock<Index>>,
    /// What containers were called that are deleted; the newest last.
    gone: Arc<Mutex<VecDeque<(ContainerKey, Called)>>>,
    /// Every change comes by an event.
    followed: Arc<watch::Sender<bool>>,
}

impl Containers {
    /// Nothing is listed yet.
    pub fn new(containerd: Containerd) -> Self {
        Self {
            containerd,
            dockers: Arc::default(),
            docker: Docker::default(),
            index: Arc::default(),
            gone: Arc::default(),
            followed: Arc::new(watch::Sender::new(false)),
        }
    }

    /// With Docker's containers in these namespaces, and what these dockerds call them.
    pub fn with_docker(self, namespaces: &BTreeSet<String>, docker: Docker) -> Self {
        Self { dockers: Arc::new(namespaces.clone()), docker, ..self }
    }

    /// Whether the containers of a namespace are Docker's.
    pub fn are_dockers(&self, namespace: &str) -> bool {
        self.dockers.contains(namespace)
    }

    /// Lists all containers of all namespaces.
    pub async fn reload(&self) -> Result<(), ContainerdError> {
        let index = self.listed("").await?;
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = index;
        Ok(())
    }

    /// What containerd has in a namespace, in all of them when it is empty.
    async fn listed(&self, only: &str) -> Result<Index, ContainerdError> {
        let mut index = Index::new();
        let namespaces = self.containerd.namespaces().await?.into_iter();
        for namespace in namespaces.filter(|namespace| only.is_empty() || namespace == only) {
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
        self.call_dockers(&mut index);
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
    pub(super) fn put(&self, key: &ContainerKey, mut known: Known) {
        known.name = self.dockers_name(&key.namespace, &key.id).or(known.name);
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        index.entry(key.id.clone()).or_default().insert(key.namespace.clone(), known);
    }

    /// Drops a container that was deleted.
    pub fn forget(&self, key: &ContainerKey) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(namespaces) = index.get_mut(&key.id) {
            if let Some(known) = namespaces.remove(&key.namespace) {
                self.note_gone(key, Called::new(known.name, known.member));
            }
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
        let mut index = match timeout(LISTING, self.listed(wanted.scope())).await {
            Ok(Ok(index)) => index,
            // Nobody makes or renames containers meanwhile.
            Ok(Err(error)) if is_unknown(&in_memory) => return Err(error.into()),
            Ok(Err(_)) => return in_memory,
            Err(_) => {
                tracing::warn!(container = %wanted, "containerd does not list its containers: what is known of them counts");
                return in_memory;
            }
        };
        let unanswered = self.name_dockers(&mut index, wanted).await;
        let key = choose(&index, wanted).map_err(|error| error.without_names(unanswered))?;
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

    /// The container that is called so, by its client or in a pod, and by no whole id. containerd is not asked.
    pub async fn by_name(&self, wanted: &Wanted) -> Option<ContainerKey> {
        let Name::Id(name) = &wanted.name else { return self.look_up(wanted).ok() };
        let (is_id, has_dockers) = {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            (index.contains_key(name), self.has_dockers(&index))
        };
        if is_id {
            return None;
        }
        if has_dockers {
            self.learn_names().await;
        }
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let is_called = |known: &Known| known.name.as_ref() == Some(name);
        let mut named = matching(index.iter(), &wanted.namespace, is_called).into_iter();
        let first = named.next()?;
        named.next().is_none().then_some(first)
    }

    /// Has dockerd say what its containers are called, where it answers soon.
    pub async fn learn_names(&self) {
        self.ask_names(Patience::Little).await;
    }

    async fn ask_names(&self, patience: Patience) -> Vec<Unanswered> {
        let unanswered = self.docker.ask(patience).await;
        self.call_dockers(&mut self.index.write().unwrap_or_else(PoisonError::into_inner));
        unanswered
    }

    /// Has Docker's containers among these called as dockerd calls them now, if one may be meant by that; why that is not known.
    async fn name_dockers(&self, index: &mut Index, wanted: &Wanted) -> Option<Unanswered> {
        let Name::Id(name) = &wanted.name else { return None };
        let found = choose(index, wanted);
        if !self.has_dockers(index) || found.as_ref().is_ok_and(|key| key.id == *name) {
            return None;
        }
        let patience = if is_unknown(&found) { Patience::Much } else { Patience::Little };
        let unanswered = self.ask_names(patience).await;
        self.call_dockers(index);
        unanswered.into_iter().next()
    }

    fn has_dockers(&self, index: &Index) -> bool {
        index
            .iter()
            .any(|(id, all)| is_dockers(id) && all.keys().any(|namespace| self.are_dockers(namespace)))
    }

    fn call_dockers(&self, index: &mut Index) {
        for (id, all) in index {
            for (namespace, known) in all {
                known.name = self.dockers_name(namespace, id).or(known.name.take());
            }
        }
    }

    /// What Docker called one of its containers when it last said so.
    fn dockers_name(&self, namespace: &str, id: &str) -> Option<String> {
        if self.are_dockers(namespace) && is_dockers(id) { self.docker.name(id) } else { None }
    }

    fn note_gone(&self, key: &ContainerKey, called: Called) {
        if called.is_none() {
            return;
        }
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.retain(|(other, _)| other != key);
        if gone.len() == GONE {
            gone.pop_front();
        }
        gone.push_back((key.clone(), called));
    }

    /// What the container is called, or was called when it was there last. From memory.
    pub fn called(&self, key: &ContainerKey) -> Called {
        if let Some(known) = self.known(key) {
            return Called::new(known.name, known.member);
        }
        let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.iter().find(|(other, _)| other == key).map(|(_, called)| called.clone()).unwrap_or_default()
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
