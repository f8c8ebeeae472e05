//! Events by their number, the newest of them.
//!
//! They are in the database of the attachment records: an event is written in the transaction that makes it true.

use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata, TableError, WriteTransaction};

use super::{EVENTS, Store, StoreError};
use crate::events::Event;

/// How many are kept.
pub const KEPT: u64 = 10_000;

/// The events after the one of number `after`, at most `limit` of them; `None` where some are no longer kept, or ended with a
/// store before. After 0: all that are kept.
///
/// # Errors
/// The store's; [`StoreError::Damaged`] for one that does not read.
pub fn read_after(store: &Store, after: u64, limit: usize) -> Result<Option<Vec<Event>>, StoreError> {
    store.read(|transaction| {
        let table = match transaction.open_table(EVENTS) {
            // A capsuled that knew of no events made this store.
            Err(TableError::TableDoesNotExist(_)) => return Ok(Some(Vec::new())),
            opened => opened?,
        };
        let first = table.first()?.map(|(key, _)| key.value());
        if after > 0 && first.is_some_and(|first| after + 1 < first) {
            return Ok(None);
        }
        let mut events = Vec::new();
        for entry in table.range(after.saturating_add(1)..)?.take(limit) {
            let (key, value) = entry?;
            let event: Event = serde_json::from_slice(value.value()).map_err(|e| StoreError::Damaged {
                table: "events",
                key: key.value().to_string(),
                reason: e.to_string(),
            })?;
            events.push(Event { sequence: key.value(), ..event });
        }
        Ok(Some(events))
    })
}

/// The number of the newest event; 0 where there is none.
///
/// # Errors
/// The store's.
pub fn last(store: &Store) -> Result<u64, StoreError> {
    store.read(|transaction: &ReadTransaction| match transaction.open_table(EVENTS) {
        Err(TableError::TableDoesNotExist(_)) => Ok(0),
        opened => Ok(opened?.last()?.map_or(0, |(key, _)| key.value())),
    })
}

/// Writes an event behind the others, and gives its number. The first of a store has the present time for one, in
/// milliseconds since 1970: a store is made anew after each reboot, and its numbers are above those before.
pub(super) fn append(transaction: &WriteTransaction, event: &Event) -> Result<u64, StoreError> {
    let mut table = transaction.open_table(EVENTS)?;
    let last = table.last()?.map(|(key, _)| key.value());
    let sequence = last.map_or_else(|| event.milliseconds(), |last| last + 1);
    let bytes = serde_json::to_vec(event).map_err(|e| StoreError::Damaged {
        table: "events",
        key: sequence.to_string(),
        reason: e.to_string(),
    })?;
    table.insert(sequence, bytes.as_slice())?;
    if table.len()? > KEPT {
        table.pop_first()?;
    }
    Ok(sequence)
}
