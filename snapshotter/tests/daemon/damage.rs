//! Stores whose pages are damaged past their header: any of them may be, and redb looks at each when it needs it.

use std::fs;

use rustix::process::Signal;

use super::{
    load,
    site::{Capsuled, Site},
};

const PAGE: usize = 4096;

/// A site with some snapshots, which nobody serves.
async fn written() -> Site {
    let site = Site::new();
    let running = site.start(&[]);
    let client = load::client(&site.socket());
    for n in 0..100 {
        load::prepare(client.clone(), format!("before-{n}")).await.unwrap();
    }
    end(running);
    site
}

fn end(mut running: Capsuled) -> Option<i32> {
    running.signal(Signal::TERM);
    running.wait().code()
}

/// Whether it says so of this file: with the last line, and in one; without a backtrace, by the status of all that cannot be opened.
fn told(site: &Site, file: &str) -> bool {
    let text = fs::read_to_string(site.path().join("log")).unwrap();
    fs::remove_file(site.path().join("log")).unwrap();
    for word in ["panicked at /", "stack backtrace", "RUST_BACKTRACE"] {
        assert!(!text.contains(word), "{text}");
    }
    let path = site.path().join(file).display().to_string();
    let last = text.lines().last().unwrap_or_default();
    last.starts_with("capsuled: ") && last.contains(&path) && last.contains("When the store is damaged")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_damaged_page_is_told_with_its_file_and_what_to_do() {
    let site = written().await;
    let mut counted = Vec::new();
    for file in ["lib/metadata.redb", "lib/attachments.redb"] {
        let path = site.path().join(file);
        let whole = fs::read(&path).unwrap();
        let pages =
            (1..whole.len() / PAGE).filter(|page| whole[page * PAGE..][..PAGE].iter().any(|b| *b != 0));
        let (mut seen, mut served) = (0, 0);
        for page in pages {
            let mut damaged = whole.clone();
            damaged[page * PAGE..][..PAGE].fill(0xff);
            fs::write(&path, &damaged).unwrap();
            let mut running = site.spawn(&[]);
            // Of pages that hold nothing any more nobody finds out.
            let code = match site.is_ready(&mut running) {
                true => end(running),
                false => running.wait().code(),
            };
            match code {
                Some(0) => served += 1,
                code => assert!(code == Some(1) && told(&site, file), "{file}, page {page}: {code:?}"),
            }
            seen += 1;
        }
        fs::write(&path, &whole).unwrap();
        assert!(served < seen, "{file}: {served} of {seen}");
        counted.push(format!("{file}: {} of {seen} pages", seen - served));
    }
    println!("damage told: {}", counted.join(", "));
    assert_eq!(end(site.start(&[])), Some(0), "it is whole again: {}", site.log());
}
