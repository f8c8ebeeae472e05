//! Keys, and names of capsules: within their limits, and the same when read back.

use std::{fmt::Display, str::FromStr};

use capsuled::{
    capsules::model::{CapsuleName, Digest, Version},
    snapshots::model::Key,
};

/// containerd's own limit on a key (`core/metadata`, bbolt's `MaxKeySize`).
const KEY_LIMIT: usize = 32768;

pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Key::parse(text.to_owned()) {
        Ok(key) => assert_eq!(key.as_str(), text),
        Err(_) => assert!(text.is_empty() || text.len() > KEY_LIMIT),
    }
    reads_back::<CapsuleName>(text);
    reads_back::<Digest>(text);
    if let Some(version) = reads_back::<Version>(text) {
        assert_eq!(version.cmp(&version), std::cmp::Ordering::Equal);
        _ = version.is_prerelease();
    }
}

fn reads_back<T: FromStr + Display>(text: &str) -> Option<T> {
    let value: T = text.parse().ok()?;
    assert_eq!(value.to_string(), text);
    Some(value)
}
