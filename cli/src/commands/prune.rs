//! `prune` and `rm`: removing versions that nobody needs.

use std::time::SystemTime;

use capsule_proto::capsule::v1;
use serde::Serialize;

use super::Target;
use crate::args::{PruneArgs, RemoveArgs};
use crate::error::Error;
use crate::table::Table;
use crate::text::{Text, short_digest, size};
use crate::view::filled;

/// Result of `prune` and `rm`.
#[derive(Debug, Serialize)]
struct Pruned {
    dry_run: bool,
    /// Bytes of the layers of what is removed; others may share them.
    bytes: u64,
    removed: Vec<Version>,
    kept: Vec<Version>,
}

#[derive(Debug, Serialize)]
struct Version {
    capsule: String,
    version: String,
    digest: String,
    size: u64,
    /// Why it is kept; `null` for one that is removed.
    reason: Option<String>,
}

impl Pruned {
    fn new(judged: Vec<v1::Judged>, dry_run: bool) -> Self {
        let (removed, kept): (Vec<_>, Vec<_>) = judged.into_iter().partition(|one| one.removed);
        let version = |one: v1::Judged| Version {
            capsule: one.capsule,
            version: one.version,
            digest: one.digest,
            size: one.size,
            reason: filled(one.reason),
        };
        let bytes = removed.iter().map(|one| one.size).sum();
        let [removed, kept] = [removed, kept].map(|all| all.into_iter().map(version).collect());
        Self { dry_run, bytes, removed, kept }
    }
}

impl Text for Pruned {
    fn text(&self, _: SystemTime) -> String {
        let mut table = Table::new(["CAPSULE", "VERSION", "DIGEST", "SIZE", "VERDICT"]);
        let would = if self.dry_run { "would be removed" } else { "removed" };
        for one in self.removed.iter().chain(&self.kept) {
            let verdict =
                one.reason.as_ref().map_or_else(|| would.to_owned(), |reason| format!("kept: {reason}"));
            table.row([
                one.capsule.clone(),
                one.version.clone(),
                short_digest(&one.digest).to_owned(),
                size(one.size),
                verdict,
            ]);
        }
        format!("{table}\n{} {would}, {} of layers\n", self.removed.len(), size(self.bytes))
    }
}

/// Removes what nobody needs.
///
/// # Errors
/// capsuled's.
pub async fn prune(to: Target<'_>, args: PruneArgs) -> Result<(), Error> {
    let older_than = args.older_than.map(prost_types::Duration::try_from).transpose();
    let request = v1::PruneRequest {
        names: args.capsules.into_iter().map(|name| name.0).collect(),
        keep_last: args.keep_last,
        keep_tagged: args.keep_tagged,
        older_than: older_than.map_err(|_| Error::Usage("--older-than is too long".to_owned()))?,
        dry_run: args.dry_run,
    };
    let answer = to.connect().await?.collector().prune(request).await?.into_inner();
    let pruned = Pruned::new(answer.judged, args.dry_run);
    to.print(&pruned, &pruned)
}

/// Removes versions, one after the other.
///
/// # Errors
/// Usage, when one is named without its version; capsuled's for the first that is needed: those before it are gone.
pub async fn remove(to: Target<'_>, args: RemoveArgs) -> Result<(), Error> {
    let mut requests = Vec::with_capacity(args.capsules.len());
    for capsule in args.capsules {
        let Some(version) = capsule.version else {
            let name = capsule.name;
            return Err(Error::Usage(format!("say which version of {name} to remove: write {name}@VERSION")));
        };
        requests.push(v1::RemoveRequest { name: capsule.name, version });
    }
    let client = to.connect().await?;
    let mut removed = Vec::with_capacity(requests.len());
    for request in requests {
        let answer = client.collector().remove(request).await?.into_inner();
        removed.push(answer.removed.ok_or(Error::Answer("rm"))?);
    }
    let pruned = Pruned::new(removed, false);
    to.print(&pruned, &pruned)
}
