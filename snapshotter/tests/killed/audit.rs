//! After a death: what the daemon says, what its store holds and what is on the disk, against what clients know.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use capsule_proto::containerd::services::snapshots::v1::{
    CleanupRequest, Info, Kind, ListSnapshotsRequest, MountsRequest, snapshots_client::SnapshotsClient,
};
use capsuled::{
    dirs::Dirs,
    store::{CHILDREN, Store, StoreError, snapshots::Reader},
};
use redb::ReadableTable;
use tonic::transport::Channel;

use super::{
    client::{Client, upper},
    ledger::{Held, Op, Shared, Snapshots, apply, tells_of},
    rig::{Seeded, id_of},
    tree,
};

/// How many of 100 trees that were checked before are checked again.
const AGAIN: u64 = 15;

/// What audits have counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// Calls that were under way at a death and turned out to be done.
    pub done: u64,
    /// Calls that were under way at a death and turned out not to be done.
    pub undone: u64,
    /// Trees compared with their digest.
    pub trees: u64,
}

async fn list(snapshotter: &mut SnapshotsClient<Channel>) -> BTreeMap<String, Info> {
    let mut stream = snapshotter.list(ListSnapshotsRequest::default()).await.unwrap().into_inner();
    let mut listing = BTreeMap::new();
    while let Some(block) = stream.message().await.unwrap() {
        for info in block.info {
            let before = listing.insert(info.name.clone(), info);
            assert!(before.is_none(), "listed twice: {before:?}");
        }
    }
    listing
}

/// Decides what became of each client's call under way, and that nothing else differs from what it knows.
fn settle(clients: &mut [Client], mut listing: BTreeMap<String, Info>, counts: &mut Counts) {
    for client in clients {
        let prefix = client.prefix();
        let (own, others) = listing.into_iter().partition(|(name, _)| name.starts_with(&prefix));
        listing = others;
        let in_flight = client.in_flight.take();
        if let Some(op) = &in_flight
            && let Some(after) = after(&client.held, op)
            && tells_of(&own, &after)
        {
            counts.done += 1;
            client.held = after;
        } else {
            counts.undone += u64::from(in_flight.is_some());
        }
        let held = &client.held;
        assert!(tells_of(&own, held), "known: {held:#?}\nunder way: {in_flight:?}\nfound: {own:#?}");
        for (name, info) in own {
            client.held.get_mut(&name).unwrap().listed = Some(info);
        }
    }
    assert!(listing.is_empty(), "nobody made {listing:#?}");
}

/// What a client would hold had its call been done; `None` when that changes nothing or must have been refused.
fn after(held: &Snapshots, op: &Op) -> Option<Snapshots> {
    let possible = match op {
        Op::Create { key, .. } => !held.contains_key(key),
        Op::Commit { name, key, .. } => {
            !held.contains_key(name) && held.get(key).is_some_and(|held| held.kind == Kind::Active)
        }
        Op::Remove { key } => held.contains_key(key) && held.values().all(|held| held.parent != *key),
        Op::Update { key, .. } => held.contains_key(key),
        Op::Mounts { .. } | Op::Usage { .. } | Op::Cleanup => false,
    };
    possible.then(|| {
        let mut after = held.clone();
        apply(&mut after, op);
        after
    })
}

/// A snapshot's id, parent's name and links, as the store holds them.
struct Stored {
    ids: BTreeMap<String, u64>,
    children: BTreeSet<(u64, u64, String)>,
}

fn read(store: &Path) -> Stored {
    let store = Store::open(store).unwrap();
    let read = store.read(|transaction| {
        let mut ids = BTreeMap::new();
        for entry in Reader::open(transaction)?.iter()? {
            let (name, record) = entry?;
            ids.insert(name, record.id);
        }
        let mut children = BTreeSet::new();
        for entry in transaction.open_table(CHILDREN)?.iter()? {
            let (link, name) = entry?;
            children.insert((link.value().0, link.value().1, name.value().to_owned()));
        }
        Ok::<_, StoreError>(Stored { ids, children })
    });
    read.unwrap()
}

/// The store's ids and links fit what clients know; ids that no mount has shown yet are noted.
fn check_store(stored: &Stored, clients: &mut [Client], shared: &Shared) {
    let held = clients.iter_mut().flat_map(|client| client.held.iter_mut());
    let mut links = BTreeSet::new();
    let mut names = BTreeSet::new();
    for (name, held) in held {
        let id = stored.ids[name];
        match held.id {
            Some(known) => assert_eq!(id, known, "{name}"),
            None => shared.take_id(id, name),
        }
        held.id = Some(id);
        if !held.parent.is_empty() {
            links.insert((stored.ids[&held.parent], id, name.clone()));
        }
        names.insert(name.clone());
    }
    assert_eq!(stored.children, links);
    assert_eq!(stored.ids.keys().cloned().collect::<BTreeSet<_>>(), names);
}

/// The directories are those of the snapshots, and nothing else is there.
fn check_directories(dirs: &Dirs, held: &Snapshots) {
    let names = |path: PathBuf| -> BTreeSet<String> {
        let entries = fs::read_dir(path).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let ids = held.values().map(|held| held.id.unwrap().to_string()).collect();
    assert_eq!(names(dirs.snapshots()), ids, "directories (left) and records (right)");
    assert_eq!(names(dirs.empty()), BTreeSet::new());
    for (name, held) in held {
        assert!(dirs.upper(held.id.unwrap()).is_dir(), "{name}");
        assert!(held.kind != Kind::Active || dirs.work(held.id.unwrap()).is_dir(), "{name}");
    }
}

/// Parents are there, and the mounts of a snapshot lead to its own directory and to theirs.
async fn check_mounts(snapshotter: &mut SnapshotsClient<Channel>, dirs: &Dirs, held: &Snapshots) {
    for (key, snapshot) in held {
        let mut chain = Vec::new();
        let mut parent = &snapshot.parent;
        while !parent.is_empty() {
            let below = held.get(parent).unwrap_or_else(|| panic!("{parent}, parent of {key}, is gone"));
            assert_eq!(below.kind, Kind::Committed, "{parent}");
            chain.push(below.id.unwrap());
            parent = &below.parent;
        }
        if snapshot.kind == Kind::Committed {
            continue;
        }
        let request = MountsRequest { snapshotter: "capsule".to_owned(), key: key.clone() };
        let mounts = snapshotter.mounts(request).await.unwrap().into_inner().mounts;
        let lower = mounts[0].options.iter().find_map(|option| option.strip_prefix("lowerdir="));
        let own = snapshot.kind == Kind::Active || chain.is_empty();
        match lower {
            Some(lower) => {
                let ids: Vec<u64> = lower.split(':').map(|path| id_of(path.as_ref())).collect();
                assert_eq!(ids, chain, "{key}: {mounts:?}");
            }
            None => assert_eq!(chain.len(), usize::from(!own), "{key}: {mounts:?}"),
        }
        let top = if own { snapshot.id } else { chain.first().copied() };
        if own || lower.is_none() {
            assert_eq!(upper(&mounts[0]), dirs.upper(top.unwrap()), "{key}");
        }
    }
}

/// The files of a snapshot are those that its client wrote; none if it was never told that it may.
fn check_tree(dirs: &Dirs, name: &str, held: &mut Held) {
    let upper = dirs.upper(held.id.unwrap());
    let digest = tree::digest(&upper).unwrap();
    match held.content {
        Some(content) => assert!(digest == content, "files of {name} in {} changed", upper.display()),
        None => {
            assert_eq!(fs::read_dir(&upper).unwrap().count(), 0, "nobody wrote to {}", upper.display());
            held.content = Some(digest);
        }
    }
}

/// What an audit looks at.
pub struct Audit<'a> {
    pub snapshotter: SnapshotsClient<Channel>,
    pub dirs: Dirs,
    /// The store as the last death left it; `None` before the first.
    pub store: Option<&'a Path>,
    pub shared: &'a Shared,
    /// Check every tree, and not only new ones and some of the others.
    pub all_trees: bool,
}

impl Audit<'_> {
    /// Compares everything, and decides what became of the calls under way.
    pub async fn run(mut self, clients: &mut [Client], random: &mut Seeded, counts: &mut Counts) {
        settle(clients, list(&mut self.snapshotter).await, counts);
        let Some(store) = self.store else { return };
        check_store(&read(store), clients, self.shared);
        let held: Snapshots = clients.iter().flat_map(|client| client.held.clone()).collect();
        // Leftovers go in the background, and with this call.
        self.snapshotter.cleanup(CleanupRequest { snapshotter: "capsule".to_owned() }).await.unwrap();
        check_directories(&self.dirs, &held);
        check_mounts(&mut self.snapshotter, &self.dirs, &held).await;
        for (name, held) in clients.iter_mut().flat_map(|client| client.held.iter_mut()) {
            if !held.audited || self.all_trees || random.chance(AGAIN) {
                check_tree(&self.dirs, name, held);
                held.audited = true;
                counts.trees += 1;
            }
        }
    }
}
