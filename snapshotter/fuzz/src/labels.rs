//! Labels: containerd's limits and nothing else, and id mappings that read back as they were written.

use std::collections::BTreeMap;

use capsuled::snapshots::{
    IdMap,
    model::{LabelUpdate, Labels},
};

/// Most bytes of a label's key and value together (containerd, `pkg/labels`).
const LIMIT: usize = 4096;

/// Lines of `KEY=VALUE` are labels; the first line is what the length of all values is multiplied by, and an id mapping.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    if let Ok(map) = first.parse::<IdMap>() {
        let printed = map.to_string();
        assert_eq!(printed.parse(), Ok(map), "{first:?}");
    }
    let repeat = first.len() * first.len();
    let given: BTreeMap<String, String> = rest
        .lines()
        .map(|line| line.split_once('=').unwrap_or((line, "")))
        .map(|(key, value)| (key.to_owned(), value.repeat(repeat.min(LIMIT))))
        .collect();
    let mut kept = given.clone();
    kept.retain(|_, value| !value.is_empty());
    let fits = kept.iter().all(|(key, value)| !key.is_empty() && key.len() + value.len() <= LIMIT);
    let labels = match Labels::parse(given.clone()) {
        Ok(labels) => labels,
        Err(error) => return assert!(!fits, "{error}"),
    };
    assert!(fits);
    assert_eq!(labels.as_map(), &kept);
    // Labels replaced by themselves, all or one by one, stay what they are.
    let paths = given.keys().map(|key| format!("labels.{key}")).collect();
    for paths in [Vec::new(), vec!["labels".to_owned()], paths] {
        let update = LabelUpdate { given: given.clone(), paths };
        assert_eq!(update.apply(labels.clone()).ok(), Some(labels.clone()));
    }
}
