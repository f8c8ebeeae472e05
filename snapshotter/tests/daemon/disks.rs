//! Full and read-only disks: real file systems, small enough to fill.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;
use tonic::{Code, Status};

use super::{
    load::{self, Client},
    site::{Disk, Site},
};

/// An ext4 in a file.
fn make_ext4(site: &Site) -> PathBuf {
    let image = site.path().join("disk");
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    // -m 0: no blocks that only root may use.
    let mut mkfs = Command::new("mke2fs");
    let output = mkfs.args(["-q", "-F", "-t", "ext4", "-m", "0"]).arg(&image).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    image
}

/// Takes all the space that there is, to the last block.
fn fill(lib: &Path) {
    let mut file = File::options().create(true).append(true).open(lib.join("ballast")).unwrap();
    for size in [1 << 20, 4096, 1] {
        let block = vec![0x5a; size];
        while file.write_all(&block).is_ok() {}
        file.sync_all().ok();
    }
}

fn make_space(lib: &Path) {
    fs::remove_file(lib.join("ballast")).unwrap();
}

fn label(n: u32) -> String {
    format!("{n:0>4000}")
}

fn assert_out_of_space(what: &str, result: Result<(), Status>) {
    let status = result.expect_err(what);
    assert_eq!(status.code(), Code::ResourceExhausted, "{what}: {status:?}");
    assert!(status.message().contains("No space left on device"), "{what}: {status:?}");
}

/// Gives snapshots long labels until the store itself finds no space; how many were acknowledged.
async fn fill_store(client: &Client, keys: u32) -> u32 {
    for n in 0.. {
        let (key, value) = (format!("before-{}", n % keys), label(n));
        match load::update(client.clone(), key, value).await {
            Ok(()) => {}
            Err(status) => {
                assert_out_of_space("update", Err(status));
                return n;
            }
        }
    }
    unreachable!("a small disk takes everything")
}

/// After one failure the store is opened anew by the same process.
fn wait_for_reopening(site: &Site) {
    site.wait_for_log_times("a store has failed and takes no more writes: opening it again", 1);
    site.wait_for("READY=1");
}

/// Every snapshot has the label that was acknowledged last; the one whose update failed may have the newer.
async fn check_labels(client: &Client, keys: u32, acknowledged: u32) {
    for n in acknowledged.saturating_sub(keys)..acknowledged {
        let found = load::label(client.clone(), format!("before-{}", n % keys)).await.unwrap();
        let failed = n % keys == acknowledged % keys && found == label(acknowledged);
        assert!(found == label(n) || failed, "before-{}", n % keys);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_full_disk_refuses_loses_nothing_and_ends() {
    const KEYS: u32 = 64;
    let site = Site::new();
    let image = make_ext4(&site);
    let disk = Disk { image: &image, options: "rw" };
    let mut running = site.start_on(&disk);
    let lib = site.lib(&running);
    let client = load::client(&site.socket());
    for n in 0..KEYS {
        load::prepare(client.clone(), format!("before-{n}")).await.unwrap();
    }
    fill(&lib);
    assert_out_of_space("prepare", load::prepare(client.clone(), "full".to_owned()).await);

    let acknowledged = fill_store(&client, KEYS).await;
    wait_for_reopening(&site);
    check_labels(&client, KEYS, acknowledged).await;

    // A start on a disk that is still full.
    running.signal(Signal::TERM);
    assert!(running.wait().success(), "{}", site.log());
    running = site.start_on(&disk);
    check_labels(&client, KEYS, acknowledged).await;
    fill(&site.lib(&running)); // redb gave back what the failed change had taken
    assert_out_of_space("prepare", load::prepare(client.clone(), "full".to_owned()).await);

    // What was asked for in vain is not there, neither on record nor as a directory.
    let lib = site.lib(&running);
    assert_eq!(load::stat(client.clone(), "full".to_owned()).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(fs::read_dir(lib.join("snapshots")).unwrap().count(), KEYS as usize);

    make_space(&lib);
    load::prepare(client.clone(), "after".to_owned()).await.unwrap();
    load::commit(client.clone(), "after").await.unwrap();
    check_labels(&client, KEYS, acknowledged).await;
    for n in 0..KEYS {
        load::remove(client.clone(), format!("before-{n}")).await.unwrap();
    }
}

/// Removing is what makes space: it must work on a disk that is full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_snapshots_can_be_removed_on_a_full_disk() {
    const KEYS: u32 = 64;
    let site = Site::new();
    let image = make_ext4(&site);
    let running = site.start_on(&Disk { image: &image, options: "rw" });
    let lib = site.lib(&running);
    let client = load::client(&site.socket());
    for n in 0..KEYS {
        load::prepare(client.clone(), format!("before-{n}")).await.unwrap();
    }
    fill(&lib);
    fill_store(&client, KEYS).await;
    wait_for_reopening(&site);
    for n in 0..KEYS {
        load::remove(client.clone(), format!("before-{n}")).await.unwrap();
    }
    load::prepare(client.clone(), "after".to_owned()).await.unwrap();
}

#[test]
fn privileged_a_read_only_disk_is_said_at_start() {
    let site = Site::new();
    let image = make_ext4(&site);
    let mut first = site.start_on(&Disk { image: &image, options: "rw" });
    first.signal(Signal::TERM);
    assert!(first.wait().success());
    let mut second = site.spawn_on(&Disk { image: &image, options: "ro" });
    assert_eq!(second.wait().code(), Some(1));
    let log = site.log();
    let last = log.lines().last().unwrap_or_default();
    let metadata = site.path().join("lib/metadata.redb");
    assert!(
        last.contains(&metadata.display().to_string()) && last.contains("Read-only file system"),
        "{log}"
    );
}

/// ext4 makes itself read-only when it has lost its disk (`errors=remount-ro`; the mount option `abort` does the same).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_disk_that_becomes_read_only_ends_capsuled_and_loses_nothing() {
    let site = Site::new();
    let image = make_ext4(&site);
    let disk = Disk { image: &image, options: "rw" };
    let mut running = site.start_on(&disk);
    let client = load::client(&site.socket());
    load::prepare(client.clone(), "before".to_owned()).await.unwrap();
    site.remount(&running, "abort");
    let refused = load::prepare(client.clone(), "lost".to_owned()).await.unwrap_err();
    assert!(refused.message().contains("Read-only file system"), "{refused:?}");
    let refused = load::update(client.clone(), "before".to_owned(), label(1)).await.unwrap_err();
    assert!(refused.message().contains("Read-only file system"), "{refused:?}");
    assert_eq!(running.wait().code(), Some(1), "{}", site.log());
    let log = site.log();
    let last = log.lines().last().unwrap_or_default();
    assert!(last.starts_with("capsuled: open metadata store") && last.contains("Read-only"), "{log}");
    let running = site.start_on(&disk);
    load::stat(client.clone(), "before".to_owned()).await.unwrap();
    load::prepare(client.clone(), "after".to_owned()).await.unwrap();
    drop(running);
}
