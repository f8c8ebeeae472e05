//! Whether containerd's configuration says of this snapshotter what ours says: two files that have to agree. Only
//! told, in the log: it is containerd's to decide.

use std::time::Duration;

use crate::{config::Config, containerd::Containerd};

/// How long to wait before containerd is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// Asks containerd, as soon as it answers, and warns of every disagreement.
pub async fn check(containerd: Containerd, config: Config) {
    let name = &config.containerd.snapshotter;
    let capabilities = loop {
        match containerd.snapshotter_capabilities(name).await {
            Ok(capabilities) => break capabilities,
            Err(error) => tracing::debug!(%error, "cannot ask containerd about this snapshotter yet"),
        }
        tokio::time::sleep(RETRY).await;
    };
    for warning in disagreements(name, capabilities.as_deref(), config.snapshots.behaviour.remap_ids) {
        tracing::warn!("{warning}");
    }
}

/// What is wrong between the two, each with what to do about it. Pure.
fn disagreements(name: &str, capabilities: Option<&[String]>, remap_ids: bool) -> Vec<String> {
    let Some(capabilities) = capabilities else {
        return vec![format!(
            "containerd has no snapshotter {name}: add [proxy_plugins.{name}] to its configuration, or set \
             containerd.snapshotter to the name that it has there"
        )];
    };
    let has = |capability: &str| capabilities.iter().any(|has| has == capability);
    let mut found = Vec::new();
    match (has("remap-ids"), remap_ids) {
        (true, false) => found.push(format!(
            "containers in user namespaces will see wrong owners: [proxy_plugins.{name}] has the capability remap-ids, \
             and snapshots.remap_ids is false: set it to true (containerd 1.7: take the capability away)"
        )),
        (false, true) => found.push(format!(
            "containers in user namespaces will not start: snapshots.remap_ids is true, and [proxy_plugins.{name}] lacks \
             capabilities = [\"remap-ids\"]: add it (containerd 1.7: set snapshots.remap_ids to false)"
        )),
        (true, true) | (false, false) => {}
    }
    if has("rebase") {
        found.push(format!(
            "images may come out wrong: [proxy_plugins.{name}] has the capability rebase, with which containerd unpacks \
             layers side by side and loses the deletions in them: take it away, and pull again what was pulled with it"
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// containerd's capabilities, our setting, and a part of each warning.
    type Case<'a> = (Option<&'a [&'a str]>, bool, &'a [&'a str]);

    #[test]
    fn every_disagreement_is_told() {
        let cases: [Case<'_>; 6] = [
            (Some(&["remap-ids"]), true, &[]),
            (Some(&[]), false, &[]),
            (Some(&["remap-ids"]), false, &["wrong owners"]),
            (Some(&[]), true, &["will not start"]),
            (Some(&["rebase"]), true, &["will not start", "images may come out wrong"]),
            (None, true, &["containerd has no snapshotter capsule"]),
        ];
        for (capabilities, remap_ids, expected) in cases {
            let owned =
                capabilities.map(|list| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
            let found = disagreements("capsule", owned.as_deref(), remap_ids);
            assert_eq!(found.len(), expected.len(), "{found:?}");
            assert!(found.iter().zip(expected).all(|(found, part)| found.contains(part)), "{found:?}");
        }
    }
}
