//! Several clients at once make random calls on shared and on own keys of a real capsuled; some order of the calls must
//! explain every answer and what is there in the end, across stops and kills of the daemon.
//!
//! `CAPSULE_TEST_ROUNDS` makes it longer, `CAPSULE_TEST_SEED` makes the calls of another run again.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod call;
mod history;
#[path = "../reference/mod.rs"]
mod reference;
#[path = "../rig/mod.rs"]
mod rig;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use call::{Call, Seen};
use capsule_proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use history::{Event, History, explain};
use reference::Reference;
use rig::{Daemon, Seeded, connect};
use tonic::transport::Channel;

const ROUNDS: u64 = 120;
const CLIENTS: usize = 8;
/// Calls of a client in a round.
const CALLS: usize = 8;

/// What orders the beginnings and ends of all calls, and says when they may break.
#[derive(Debug, Default)]
struct Clock {
    instant: AtomicU64,
    dying: AtomicBool,
}

impl Clock {
    fn now(&self) -> u64 {
        self.instant.fetch_add(1, Ordering::SeqCst)
    }
}

async fn run_client(
    mut snapshotter: SnapshotsClient<Channel>,
    calls: Vec<Call>,
    clock: Arc<Clock>,
) -> Vec<Event> {
    let mut events = Vec::new();
    for call in calls {
        let begun = clock.now();
        let answer = call.make(&mut snapshotter).await;
        match answer {
            Ok(answer) => events.push(Event { call, begun, ended: Some((clock.now(), answer)) }),
            Err(status) => {
                assert!(clock.dying.load(Ordering::SeqCst), "{call:?}: {status}");
                events.push(Event { call, begun, ended: None });
                break;
            }
        }
    }
    events
}

async fn run_round(daemon: &mut Daemon, random: &mut Seeded, kill: Option<Duration>) -> History {
    let clock = Arc::new(Clock::default());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let calls = Call::plan(random, client, CALLS);
            tokio::spawn(run_client(connect(daemon.socket()), calls, clock.clone()))
        })
        .collect();
    if let Some(after) = kill {
        tokio::time::sleep(after).await;
        clock.dying.store(true, Ordering::SeqCst);
        daemon.kill();
    }
    let mut history = Vec::new();
    for client in clients {
        history.push(client.await.unwrap());
    }
    history
}

async fn read_all(daemon: &Daemon) -> BTreeMap<String, Seen> {
    let mut snapshotter = connect(daemon.socket());
    Call::List { filters: Vec::new() }.make(&mut snapshotter).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_some_order_explains_what_several_clients_see() {
    let seed = rig::number("CAPSULE_TEST_SEED", Seeded::fresh_seed());
    let rounds = rig::number("CAPSULE_TEST_ROUNDS", ROUNDS);
    rig::report(&format!("concurrent clients: {rounds} rounds, CAPSULE_TEST_SEED={seed}"));
    let began = Instant::now();
    let mut random = Seeded::new(seed);
    let place = rig::on_disk();
    let mut daemon = Daemon::start(place.path());
    let (mut model, mut calls, mut overlaps, mut restarts) = (Reference::default(), 0, 0, 0);
    for round in 0..rounds {
        let kill = random.chance(20).then(|| Duration::from_micros(random.below(30_000)));
        let history = run_round(&mut daemon, &mut random, kill).await;
        if kill.is_some() || random.chance(5) {
            if kill.is_none() {
                daemon.stop();
            }
            daemon = Daemon::start(place.path());
            restarts += 1;
        }
        let last = read_all(&daemon).await;
        let explained = explain(&history, &model, &last);
        assert!(
            explained.is_some(),
            "round {round} of seed {seed}: no order explains it\nbefore: {:#?}\ncalls: {history:#?}\nafter: {last:#?}",
            model.snapshots,
        );
        model = explained.unwrap();
        calls += history.iter().map(Vec::len).sum::<usize>();
        overlaps += overlapping(&history);
    }
    assert!(overlaps > calls / 4, "the clients met in {overlaps} of {calls} calls only");
    rig::report(&format!(
        "concurrent clients: {rounds} rounds of {CLIENTS} clients in {} s, {calls} calls, {overlaps} of them while another was \
         under way, {restarts} restarts; some order explains all",
        began.elapsed().as_secs(),
    ));
}

/// How many calls began while one of another client was under way.
fn overlapping(history: &History) -> usize {
    let end = |event: &Event| event.ended.as_ref().map_or(u64::MAX, |(end, _)| *end);
    let all = || history.iter().flatten();
    let meets = |event: &&Event| all().any(|other| other.begun < event.begun && event.begun < end(other));
    all().filter(meets).count()
}
