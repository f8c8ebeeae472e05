//! What attachments do to a container's limits, as the journal keeps it. Pure.

use serde::{Deserialize, Serialize};

use super::{
    journal::State,
    model::{AttachmentId, Content},
};
use crate::limits::{Amounts, Change, File, LimitError, effective};

/// What one attachment does to the container's limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitRecord {
    /// The attachment.
    pub id: AttachmentId,
    /// What it does.
    pub change: Change,
    /// What it is to do with the content that it is being given.
    pub next: Option<(Content, Change)>,
    /// How far the last call has got: [`State::Replacing`] is not of here.
    pub state: State,
}

impl LimitRecord {
    /// What is to be in force.
    fn wanted(&self) -> Option<&Change> {
        match (&self.state, &self.next) {
            (State::Detaching, _) => None,
            (_, Some((_, next))) => Some(next),
            (_, None) => Some(&self.change),
        }
    }
}

/// A container's limits, as far as attachments change them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// By attachment, oldest first.
    pub records: Vec<LimitRecord>,
    /// The container's own, of the files that somebody changes, or did until now: those are to be put back.
    pub own: Amounts,
    /// What the files held when they were written last.
    pub written: Amounts,
}

impl Limits {
    /// The record of the attachment with this id.
    #[must_use]
    pub fn find(&self, id: &AttachmentId) -> Option<&LimitRecord> {
        self.records.iter().find(|record| record.id == *id)
    }

    /// Puts `record` in the place of the one with its id, or at the end.
    pub fn put(&mut self, record: LimitRecord) {
        match self.records.iter_mut().find(|there| there.id == record.id) {
            Some(there) => *there = record,
            None => self.records.push(record),
        }
    }

    /// Takes a record out.
    pub fn remove(&mut self, id: &AttachmentId) {
        self.records.retain(|record| record.id != *id);
    }

    /// What the files are to hold.
    ///
    /// # Errors
    /// [`LimitError::NoCpus`].
    pub fn wanted(&self) -> Result<Amounts, LimitError> {
        effective(&self.own, self.records.iter().filter_map(LimitRecord::wanted))
    }

    /// Forgets files that nobody changes any more, once they are put back.
    pub fn prune(&mut self) {
        let records = &self.records;
        let changed = |file: &_| {
            let of = |change: &Change| change.files().any(|changed| changed == file);
            records
                .iter()
                .any(|record| of(&record.change) || record.next.as_ref().is_some_and(|(_, next)| of(next)))
        };
        // Swap is told with memory: see `limits::put_in_force`.
        let with_memory = changed(&File::MemoryMax);
        self.own.retain(|file, _| changed(file) || (with_memory && *file == File::MemorySwapMax));
        let own = &self.own;
        self.written.retain(|file, _| own.contains_key(file));
    }

    /// Whether there are files that nobody changes any more, and that are to be put back.
    #[must_use]
    pub fn has_left(&self) -> bool {
        let mut pruned = self.clone();
        pruned.prune();
        pruned != *self
    }

    /// Whether nothing is changed, and nothing is to be put back.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.own.is_empty()
    }
}
