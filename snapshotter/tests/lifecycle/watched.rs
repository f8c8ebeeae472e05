//! A store whose disk dies is known to have failed, with the disk's own error, before anybody else asks.

use std::time::Duration;

use capsuled::store::Store;

use super::{faulty::Faulty, in_memory, open, ops::create};

#[tokio::test]
async fn a_failed_disk_is_told_once_and_by_its_own_error() {
    let whole = Faulty::new(Vec::new(), u64::MAX);
    drop(Store::with_backend(whole.clone()).unwrap());
    let empty = whole.after_power_cut(0);

    let root = in_memory();
    let dirs = capsuled::dirs::Dirs::new(root.path());
    let disk = Faulty::new(empty, 20);
    let store = Store::with_backend(disk).unwrap();
    let mut watch = store.watch();
    let engine = open(store, &dirs);
    let mut made = 0;
    while engine.prepare(&create(&format!("a{made}"), "", "")).is_ok() {
        made += 1;
    }
    let failed = tokio::time::timeout(Duration::from_secs(1), watch.failed()).await.unwrap();
    assert_eq!(failed.to_string(), "the disk is gone");
    assert!(engine.prepare(&create("more", "", "")).is_err());
    assert!(!watch.is_closed());
    drop(engine);
    assert!(watch.is_closed());
}
