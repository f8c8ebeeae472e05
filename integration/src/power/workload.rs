//! Clients that work at once, as containerd does when it unpacks images, starts containers and collects garbage.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::client::Client;
use super::expect::Kind;
use super::journal::{Call, Labels, Mark, Marker};
use super::random::Random;
use super::tree;

/// How many clients work at once, round after round: a lone client's syncs are helped by nobody else's.
const ROUNDS: [usize; 6] = [1, 4, 2, 6, 1, 3];
/// Calls of each client in a round.
const TURNS: usize = 25;
/// Most snapshots of each kind that a client has.
const ACTIVE: usize = 3;
const VIEWS: usize = 2;
const COMMITTED: usize = 10;

/// When it is enough.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// Calls of all clients.
    pub calls: usize,
    /// At the latest.
    pub until: Instant,
}

/// What the clients share.
#[derive(Debug)]
struct Shared<'a> {
    marker: &'a Marker,
    /// Of all clients: parents for anyone.
    committed: Mutex<BTreeSet<String>>,
    calls: AtomicUsize,
    limit: Limit,
}

impl Shared<'_> {
    fn committed(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.committed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn over(&self) -> bool {
        self.calls.load(Ordering::Relaxed) >= self.limit.calls || Instant::now() > self.limit.until
    }
}

/// Lets clients work on the capsuled at `socket` until the limit; how many calls were answered.
pub fn run(socket: &Path, marker: &Marker, seed: u64, limit: Limit) -> Result<usize> {
    let shared = Shared { marker, committed: Mutex::default(), calls: AtomicUsize::new(0), limit };
    let most = ROUNDS.iter().copied().max().unwrap_or(1);
    let mut workers =
        (0..most).map(|number| Worker::new(number, &shared, socket, seed)).collect::<Result<Vec<_>>>()?;
    for count in ROUNDS.iter().cycle() {
        if shared.over() {
            break;
        }
        std::thread::scope(|scope| {
            let running: Vec<_> =
                workers.iter_mut().take(*count).map(|worker| scope.spawn(|| worker.work())).collect();
            running.into_iter().try_for_each(|worker| {
                worker.join().map_err(|_| anyhow::anyhow!("a client panicked")).and_then(|worked| worked)
            })
        })?;
    }
    Ok(shared.calls.load(Ordering::Relaxed))
}

/// One client. It changes keys of its own only, and takes anyone's committed snapshots as parents.
struct Worker<'a> {
    number: usize,
    shared: &'a Shared<'a>,
    client: Client,
    random: Random,
    own: BTreeMap<String, Kind>,
    mount_point: PathBuf,
}

impl<'a> Worker<'a> {
    fn new(number: usize, shared: &'a Shared<'a>, socket: &Path, seed: u64) -> Result<Self> {
        let mount_point = PathBuf::from(format!("/run/power-{number}"));
        fs::create_dir_all(&mount_point).with_context(|| format!("create {}", mount_point.display()))?;
        let random = Random::new(seed.wrapping_add(1_000_003 * (number as u64 + 1)));
        let client = Client::connect(socket)?;
        Ok(Self { number, shared, client, random, own: BTreeMap::new(), mount_point })
    }

    fn work(&mut self) -> Result<()> {
        for _ in 0..TURNS {
            if self.shared.over() {
                break;
            }
            match self.random.below(100) {
                0..32 => self.create(Kind::Active, "k", ACTIVE)?,
                32..40 => self.create(Kind::View, "v", VIEWS)?,
                40..70 => self.commit()?,
                70..82 => self.update()?,
                82..97 => self.remove()?,
                _ => drop(self.call(Call::Cleanup)?),
            }
        }
        Ok(())
    }

    /// Makes one call between its two marks; whether it was done.
    fn call(&mut self, call: Call) -> Result<bool> {
        let client = self.number;
        self.shared.marker.mark(&Mark::Begin { client, call: call.clone() })?;
        let refused = self.client.call(&call)?;
        let done = refused.is_none();
        self.shared.marker.mark(&Mark::Done { client, refused })?;
        self.shared.calls.fetch_add(1, Ordering::Relaxed);
        Ok(done)
    }

    /// A key of this client's that is free, if it may have one more.
    fn free(&mut self, prefix: &str, most: usize) -> Option<String> {
        let start = self.random.below(most);
        let keys = (0..most).map(|at| format!("{prefix}{}-{}", self.number, (start + at) % most));
        keys.into_iter().find(|key| !self.own.contains_key(key))
    }

    fn any(&mut self, wanted: impl Fn(Kind) -> bool) -> Option<String> {
        let keys: Vec<&String> =
            self.own.iter().filter(|(_, kind)| wanted(**kind)).map(|(key, _)| key).collect();
        self.random.pick(&keys).map(|key| (*key).clone())
    }

    fn labels(&mut self) -> Labels {
        (0..self.random.below(4))
            .map(|_| (format!("label-{}", self.random.below(6)), format!("{:x}", self.random.number())))
            .collect()
    }

    fn create(&mut self, kind: Kind, prefix: &str, most: usize) -> Result<()> {
        let Some(key) = self.free(prefix, most) else { return Ok(()) };
        let parents: Vec<String> = self.shared.committed().iter().cloned().collect();
        let parent = match self.random.percent(75) {
            true => self.random.pick(&parents).cloned().unwrap_or_default(),
            false => String::new(),
        };
        let (labels, view) = (self.labels(), kind == Kind::View);
        if self.call(Call::Create { key: key.clone(), parent, labels, view })? {
            self.own.insert(key, kind);
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<()> {
        let Some(key) = self.any(|kind| kind == Kind::Active) else { return Ok(()) };
        let Some(name) = self.free("n", COMMITTED) else { return self.remove() };
        let manifest = self.fill(&key)?;
        let labels = self.labels();
        if self.call(Call::Commit { key: key.clone(), name: name.clone(), labels, manifest })? {
            self.own.remove(&key);
            self.own.insert(name.clone(), Kind::Committed);
            self.shared.committed().insert(name);
        }
        Ok(())
    }

    fn update(&mut self) -> Result<()> {
        let Some(key) = self.any(|_| true) else { return Ok(()) };
        let labels = self.labels();
        self.call(Call::Update { key, labels }).map(drop)
    }

    fn remove(&mut self) -> Result<()> {
        let Some(key) = self.any(|_| true) else { return Ok(()) };
        let committed = self.shared.committed().remove(&key);
        if self.call(Call::Remove { key: key.clone() })? {
            self.own.remove(&key);
        } else if committed {
            self.shared.committed().insert(key); // it has children
        }
        Ok(())
    }

    /// Writes into an active snapshot; what is in its directory then. Through an overlay, also a volatile one, or
    /// into the directory itself, as other unpackers do: unmounting an overlay that is not volatile syncs it, and
    /// nothing may depend on that.
    fn fill(&mut self, key: &str) -> Result<Vec<String>> {
        let mounted = self.client.mounts(key)?;
        let top = mounted.top()?;
        if mounted.kind == "overlay" && self.random.percent(60) {
            let mut options = mounted.options.join(",");
            if self.random.percent(70) && !options.contains("volatile") {
                options.push_str(",volatile");
            }
            let data = CString::new(options.clone()).context("mount options")?;
            mount("overlay", &self.mount_point, "overlay", MountFlags::empty(), data.as_c_str())
                .with_context(|| format!("mount an overlay with {options}"))?;
            let changed = tree::change(&self.mount_point, &mut self.random);
            unmount(&self.mount_point, UnmountFlags::empty()).context("unmount an overlay")?;
            changed?;
        } else {
            tree::change(&top, &mut self.random)?;
        }
        tree::manifest(&top)
    }
}
