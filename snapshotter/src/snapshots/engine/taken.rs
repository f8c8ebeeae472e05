//! Snapshots on record whose directories a power cut took: made anew at start.
//!
//! Prepare and View wait for their record only. The directory is on the disk with the file system's next journal
//! commit, and a power cut may come before that (seen on ext4 and xfs: fdatasync of a file whose size and blocks stay
//! as they are commits no journal). Nothing is lost with it: the journal is in order, so that whatever a client had
//! made durable in the directory would have taken the directory along.
//!
//! The same order tells a power cut from a hand that took directories away, after which making them anew would hide
//! the loss ([`super::lost`]): directories get their ids in the order in which they are made, so a power cut takes the
//! newest and leaves every older one, and never takes a committed snapshot's, since Commit syncs the file system.

use std::{
    collections::{HashMap, HashSet},
    error::Error,
};

use crate::{
    dirs::{Dirs, DirsError},
    snapshots::{idmap::IdMaps, model::Kind},
    store::snapshots::Record,
};

/// A directory to be made anew.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken {
    key: String,
    id: u64,
    kind: Kind,
    owner: Owner,
}

/// Whom a snapshot's root belongs to, as when it was made.
#[derive(Debug, PartialEq, Eq)]
enum Owner {
    Root,
    Mapped(u32, u32),
    AsParent(u64),
}

/// Finds the snapshots whose directories a power cut took. `present` are the ids of all directories that are there,
/// also of those that no snapshot has.
pub(super) fn plan_taken(present: &HashSet<u64>, records: &[(String, Record)]) -> Vec<Taken> {
    let missing = records.iter().filter(|(_, record)| !present.contains(&record.id));
    let newest = present.iter().max().copied().unwrap_or(0);
    if missing.clone().any(|(_, record)| record.kind() == Kind::Committed || record.id < newest) {
        return Vec::new();
    }
    let ids: HashMap<&str, u64> = records.iter().map(|(key, record)| (key.as_str(), record.id)).collect();
    let taken = missing.map(|(key, record)| {
        let mapped = IdMaps::of(&record.labels()).ok().and_then(|maps| maps.owner());
        let owner = match (mapped, ids.get(record.parent.as_str())) {
            (Some((user, group)), _) => Owner::Mapped(user, group),
            (None, Some(parent)) => Owner::AsParent(*parent),
            (None, None) => Owner::Root,
        };
        Taken { key: key.clone(), id: record.id, kind: record.kind(), owner }
    });
    taken.collect()
}

impl Taken {
    /// Makes the directory. One that cannot be made is logged, and is found lost then.
    pub(super) fn make_anew(&self, dirs: &Dirs) {
        let (key, id) = (&self.key, self.id);
        match self.apply(dirs) {
            Ok(()) => tracing::info!(key, id, "a power cut took the new snapshot's directory: made anew"),
            Err(error) => {
                let error: &dyn Error = &error;
                tracing::warn!(
                    key,
                    id,
                    error,
                    "a power cut took the new snapshot's directory, and it cannot be made"
                );
            }
        }
    }

    fn apply(&self, dirs: &Dirs) -> Result<(), DirsError> {
        let mut staged = dirs.stage(self.kind)?;
        match self.owner {
            Owner::Root => {}
            Owner::Mapped(user, group) => staged.give_to(user, group)?,
            Owner::AsParent(parent) => staged.inherit_owner(parent)?,
        }
        staged.place(self.id)?;
        staged.keep();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::snapshots::model::Labels;

    fn check(present: &[u64], records: &[(u64, Kind)], expected: &[u64], why: &str) {
        let record = |(id, kind): &(u64, Kind)| {
            (format!("k{id}"), Record::new(*id, *kind, "", Labels::default(), SystemTime::now()))
        };
        let records: Vec<_> = records.iter().map(record).collect();
        let taken = plan_taken(&present.iter().copied().collect(), &records);
        assert_eq!(taken.iter().map(|taken| taken.id).collect::<Vec<_>>(), expected, "{why}");
    }

    #[test]
    fn a_power_cut_takes_the_newest_and_nothing_committed() {
        use Kind::{Active, Committed, View};
        let records = [(1, Committed), (3, Active), (4, View), (5, Active)];
        check(&[1, 3, 4, 5], &records, &[], "none is missing");
        check(&[1, 3], &records, &[4, 5], "the newest");
        check(&[1], &records, &[3, 4, 5], "all since the last sync");
        check(&[1, 2, 3], &records, &[4, 5], "a directory that no snapshot has");
        check(&[1, 3, 5], &records, &[], "an older one is gone");
        check(&[1, 6], &records, &[], "older than what no snapshot has");
        check(&[3], &records, &[], "a committed one is gone");
        check(&[], &records, &[], "all are gone");
        check(&[], &[(1, Active)], &[1], "the first of all");
    }
}
