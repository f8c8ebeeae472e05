//! Sockets from the service manager.

use std::{fs, os::unix::net::UnixListener};

use rustix::process::Signal;
use tokio::task::spawn_blocking;

use super::{
    load::{self, Load},
    site::{Capsuled, Site},
};

const CLIENTS: usize = 16;
const RESTARTS: u32 = 50;

/// The service manager's part: it makes the socket and keeps it.
fn listen(site: &Site, name: &str) -> UnixListener {
    fs::create_dir_all(site.path().join("run")).unwrap();
    UnixListener::bind(site.path().join("run").join(name)).unwrap()
}

/// Stops `old` as `systemctl restart` does, and starts the next one when it is gone.
fn restart(site: &Site, listener: &UnixListener, mut old: Capsuled) -> Capsuled {
    old.signal(Signal::TERM);
    assert!(old.wait().success(), "{}", site.log());
    let new = site.spawn_passed(listener, 1);
    site.wait_for("READY=1");
    new
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_no_call_is_lost_over_fifty_restarts() {
    let site = Site::new();
    let listener = listen(&site, "capsuled.sock");
    // Before anybody serves: the first calls wait.
    let load = Load::start(&site.socket(), CLIENTS);
    let (site, last) = spawn_blocking(move || {
        let first = site.spawn_passed(&listener, 1);
        site.wait_for("READY=1");
        let last = (0..RESTARTS).fold(first, |old, _| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            restart(&site, &listener, old)
        });
        (site, last)
    })
    .await
    .unwrap();
    let calls = load.end("50 restarts").await;
    assert!(calls > u64::from(RESTARTS), "{calls} calls\n{}", site.log());
    load::assert_nothing_left(&site).await;
    drop(last);
}

#[test]
fn privileged_a_socket_that_clients_do_not_look_for_is_refused() {
    let site = Site::new();
    for (name, count, said) in [
        ("other.sock", 1, "make ListenStream= of capsuled.socket and `socket` the same"),
        ("capsuled.sock", 2, "passed 2 sockets: capsuled.socket must have one ListenStream="),
    ] {
        let listener = listen(&site, name);
        assert_eq!(site.spawn_passed(&listener, count).wait().code(), Some(1));
        assert!(site.log().contains(said), "{}", site.log());
    }
}
