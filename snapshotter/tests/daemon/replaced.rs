//! `capsuled --take-over`.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    thread::sleep,
    time::{Duration, Instant},
};

use capsuled::{
    handover::{self, Sockets},
    server,
};
use rustix::process::Signal;
use tokio::task::spawn_blocking;

use super::{
    load::{self, Load},
    site::{Capsuled, Site},
};

const CLIENTS: usize = 16;
const REPLACEMENTS: u32 = 50;

/// Replaces `old` by another capsuled, which serves when this returns.
fn replace(site: &Site, mut old: Capsuled) -> Capsuled {
    let new = site.start(&["--take-over"]);
    assert!(old.wait().success(), "{}", site.log());
    new
}

/// Does `work` under the load of clients, none of whose calls may fail. The site's directories are empty afterwards.
async fn under_load(what: &str, work: impl FnOnce(&Site, Capsuled) -> Capsuled + Send + 'static) {
    let site = Site::new();
    let first = site.start(&[]);
    let load = Load::start(&site.socket(), CLIENTS);
    let (site, last) = spawn_blocking(move || {
        let last = work(&site, first);
        (site, last)
    })
    .await
    .unwrap();
    let calls = load.end(what).await;
    assert!(calls > 100, "{calls} calls\n{}", site.log());
    load::assert_nothing_left(&site).await;
    drop(last);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_no_call_is_lost_over_fifty_replacements() {
    under_load("50 replacements", |site, first| {
        (0..REPLACEMENTS).fold(first, |old, _| {
            sleep(Duration::from_millis(20));
            replace(site, old)
        })
    })
    .await;
}

/// A successor that says these lines, hears as many, and ends.
fn fail_after(site: &Site, says: &[&str]) {
    let mut stream = site.connect_handover();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    for line in says {
        stream.write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_successor_that_ends_on_the_way_takes_nothing_with_it() {
    under_load("successors that fail", |site, mut first| {
        // One that gets as far as the stores, and cannot open its own.
        let broken = fs::read_to_string(site.config()).unwrap().replace("/lib'", "/config.toml/lib'");
        let other = site.path().join("broken.toml");
        fs::write(&other, broken).unwrap();
        for round in 1..=5 {
            fail_after(site, &[]);
            fail_after(site, &["take-over 1\n"]);
            fail_after(site, &["take-over 2\n"]);
            fail_after(site, &["take-over 1\n", "ready\n"]);
            site.wait_for_log_times("serving again", 2 * round - 1);
            site.wait_for("READY=1");
            let mut successor = site.spawn_with(&other, &["--take-over"]);
            assert_eq!(successor.wait().code(), Some(1));
            site.wait_for_log_times("serving again", 2 * round);
            site.wait_for("READY=1");
            assert!(first.is_running());
        }
        let log = site.log();
        assert!(log.contains("capsuled: make directory"), "{log}");
        first
    })
    .await;
}

#[test]
fn privileged_a_successor_that_would_serve_elsewhere_is_told_so_and_changes_nothing() {
    let site = Site::new();
    let mut first = site.start(&[]);
    let other = site.path().join("other.toml");
    let text = fs::read_to_string(site.config()).unwrap();
    fs::write(&other, format!("socket = '{}/run/other.sock'\n{text}", site.path().display())).unwrap();
    let mut successor = site.spawn_with(&other, &["--take-over"]);
    assert_eq!(successor.wait().code(), Some(1));
    let log = site.log();
    assert!(log.contains("a socket can only be changed by a restart"), "{log}");
    assert!(!log.contains("serving again"), "{log}");
    assert!(first.is_running());
    drop(UnixStream::connect(site.socket()).unwrap());
}

#[test]
fn privileged_with_nothing_to_take_over_it_starts() {
    let site = Site::new();
    let mut first = site.start(&["--take-over"]);
    first.signal(Signal::KILL);
    first.wait();
    // The sockets of one that was killed are there, and nobody answers on them.
    drop(site.start(&["--take-over"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_client_that_says_nothing_delays_a_replacement_and_no_more() {
    let site = Site::new();
    let first = site.start(&[]);
    let silent = UnixStream::connect(site.socket()).unwrap();
    load::prepare(load::client(&site.socket()), "a".to_owned()).await.unwrap(); // `silent` is accepted by now
    let began = Instant::now();
    let last = replace(&site, first);
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    load::stat(load::client(&site.socket()), "a".to_owned()).await.unwrap();
    drop((silent, last));
}

#[tokio::test]
async fn a_successor_goes_on_when_the_one_that_ran_ends() {
    let root = tempfile::tempdir().unwrap();
    let (api, handover) = (root.path().join("api.sock"), root.path().join(handover::SOCKET));
    assert!(handover::take_over(&handover, &api).unwrap().is_none());
    let sockets =
        Sockets { api: server::listen(&api).unwrap(), handover: server::listen(&handover).unwrap() };
    let taken = spawn_blocking(move || {
        let (taken, mut predecessor) = handover::take_over(&handover, &api).unwrap().unwrap();
        predecessor.wait_until_closed().unwrap();
        (taken, predecessor, api)
    });
    drop(handover::offer(&sockets).await.unwrap()); // the end of a process closes the connection as this does
    drop(sockets);
    let (taken, predecessor, api) = taken.await.unwrap();
    let _waiting = UnixStream::connect(&api).unwrap();
    taken.api.accept().unwrap();
    predecessor.dismiss();
}
