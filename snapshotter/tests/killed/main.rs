//! kill -9 under load: a real capsuled, clients that make all kinds of calls at once, and a death at a random instant,
//! hundreds of times, also while it starts. After each: everything that was acknowledged is there and whole, a call under
//! way is done as a whole or not at all, nothing else is visible, and no directory is left over.
//!
//! The death of a process keeps what the kernel has already taken, in its page cache: this shows the order of what
//! capsuled does and what its start repairs. That it also waits for the disk is shown by the tests of storage that tears writes
//! (`tests/lifecycle`) and by the power cuts in a virtual machine.
//!
//! `CAPSULE_TEST_KILLS` makes the campaign longer, `CAPSULE_TEST_SEED` makes the choices of another run again (how
//! calls and deaths fall in time stays the machine's choice).
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod audit;
mod client;
mod ledger;
#[path = "../rig/mod.rs"]
mod rig;
mod tree;

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use audit::{Audit, Counts};
use client::Client;
use ledger::Shared;
use rig::{Daemon, Seeded, connect};

/// Kills of a campaign that is not told otherwise.
const KILLS: u64 = 520;
/// Clients that call at once.
const CLIENTS: usize = 8;
/// Longest time that the workload runs before it is killed.
const WORKLOAD: Duration = Duration::from_millis(160);

struct Campaign {
    random: Seeded,
    place: tempfile::TempDir,
    /// Where stores are looked at without their daemon.
    copies: tempfile::TempDir,
    shared: Arc<Shared>,
    clients: Vec<Client>,
    counts: Counts,
    kills: u64,
    /// Kills before the daemon served.
    early: u64,
    /// How long the last start took.
    start: Duration,
}

impl Campaign {
    fn new(seed: u64) -> Self {
        let shared = Arc::new(Shared::default());
        let mut random = Seeded::new(seed);
        let clients = (0..CLIENTS).map(|number| Client::new(number, random.next(), shared.clone())).collect();
        Self {
            random,
            place: rig::on_disk(),
            copies: tempfile::tempdir_in("/dev/shm").unwrap(),
            shared,
            clients,
            counts: Counts::default(),
            kills: 0,
            early: 0,
            start: Duration::from_millis(50),
        }
    }

    /// A copy of the store, as the last death left it.
    fn copy_store(&self) -> Option<PathBuf> {
        let copy = self.copies.path().join("metadata.redb");
        let from = self.place.path().join("lib/metadata.redb");
        from.exists().then(|| fs::copy(from, &copy).unwrap()).map(|_| copy)
    }

    fn below(&mut self, longest: Duration) -> Duration {
        Duration::from_micros(self.random.below(u64::try_from(longest.as_micros()).unwrap().max(1)))
    }

    /// Whether directories go with their snapshots or with the next Cleanup.
    fn choose_removal(&mut self) -> &'static str {
        if self.random.chance(50) {
            "snapshots.async_remove = true"
        } else {
            "snapshots.async_remove = false"
        }
    }

    /// Starts the daemon, and kills it before it serves or hardly after.
    async fn kill_early(&mut self) {
        let removal = self.choose_removal();
        let mut daemon = Daemon::spawn(self.place.path(), removal);
        let longest = self.start + self.start / 10;
        tokio::time::sleep(self.below(longest)).await;
        daemon.kill();
        self.kills += 1;
        self.early += 1;
    }

    /// Starts the daemon and compares everything with what clients know.
    async fn start(&mut self, all_trees: bool) -> Daemon {
        let (store, removal) = (self.copy_store(), self.choose_removal());
        let began = Instant::now();
        let daemon = Daemon::start_with(self.place.path(), removal);
        self.start = began.elapsed();
        let audit = Audit {
            snapshotter: connect(daemon.socket()),
            dirs: daemon.dirs(),
            store: store.as_deref(),
            shared: &self.shared,
            all_trees,
        };
        audit.run(&mut self.clients, &mut self.random, &mut self.counts).await;
        daemon
    }

    /// All clients call, until the daemon is killed.
    async fn kill_at_work(&mut self, mut daemon: Daemon) {
        self.shared.dying.store(false, Ordering::SeqCst);
        let socket = daemon.socket();
        let clients = std::mem::take(&mut self.clients).into_iter().map(|mut client| {
            let snapshotter = connect(socket.clone());
            tokio::spawn(async move {
                client.run(snapshotter).await;
                client
            })
        });
        let clients: Vec<_> = clients.collect();
        tokio::time::sleep(self.below(WORKLOAD)).await;
        self.shared.dying.store(true, Ordering::SeqCst);
        daemon.kill();
        self.kills += 1;
        for client in clients {
            self.clients.push(client.await.unwrap());
        }
        assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    }

    /// What a death leaves at worst: trees that no record names. None before there is a store.
    fn plant_leftovers(&mut self) {
        let lib = self.place.path().join("lib");
        let snapshots = lib.join("snapshots");
        if !lib.join("metadata.redb").exists() {
            return;
        }
        let names = fs::read_dir(&snapshots).unwrap().map(|entry| entry.unwrap().file_name());
        let newest = names.filter_map(|name| name.to_str()?.parse::<u64>().ok()).max().unwrap_or(0);
        for name in ["new-0".to_owned(), "new-77".to_owned(), (newest + 1).to_string()] {
            let path = snapshots.join(name).join("fs");
            fs::create_dir_all(&path).unwrap();
            for _ in 0..5 {
                tree::fill(&path, &mut self.random).unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_no_kill_loses_what_was_acknowledged() {
    let seed = rig::number("CAPSULE_TEST_SEED", Seeded::fresh_seed());
    let kills = rig::number("CAPSULE_TEST_KILLS", KILLS);
    rig::report(&format!("kill -9 campaign: {kills} kills, CAPSULE_TEST_SEED={seed}"));
    let began = Instant::now();
    let mut campaign = Campaign::new(seed);
    while campaign.kills < kills {
        while campaign.random.chance(35) {
            if campaign.random.chance(30) {
                campaign.plant_leftovers();
            }
            campaign.kill_early().await;
        }
        let daemon = campaign.start(false).await;
        campaign.kill_at_work(daemon).await;
    }
    let mut daemon = campaign.start(true).await;
    daemon.stop();
    let Campaign { counts, kills, early, clients, .. } = campaign;
    let answered: u64 = clients.iter().map(|client| client.answered).sum();
    let untold: u64 = clients.iter().map(|client| client.untold).sum();
    assert!(untold <= 1, "{untold} calls were not told that the daemon had died");
    assert!(answered > kills, "the workload was no load: {answered} calls were answered");
    rig::report(&format!(
        "kill -9 campaign: {kills} kills ({early} during a start) in {} s, {answered} calls answered; calls under way: {} \
         done, {} not done; {} trees compared; nothing lost",
        began.elapsed().as_secs(),
        counts.done,
        counts.undone,
        counts.trees,
    ));
}
