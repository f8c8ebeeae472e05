//! What images of versions say, by their digest: read from containerd once, not at every start.
//!
//! They are in the database in `/run`: an image is written with the event that tells of it, and costs no flush.

use std::collections::HashMap;

use redb::{ReadableTable, TableError, WriteTransaction};

use super::{IMAGES, Store, StoreError};
use crate::capsules::{model::Digest, oci::Image};

/// All that are known. One that does not read is not known: it is read from containerd again.
///
/// # Errors
/// The store's.
pub fn read_all(store: &Store) -> Result<HashMap<Digest, Image>, StoreError> {
    store.read(|transaction| {
        let table = match transaction.open_table(IMAGES) {
            // A capsuled that knew of none made this store.
            Err(TableError::TableDoesNotExist(_)) => return Ok(HashMap::new()),
            opened => opened?,
        };
        let mut images = HashMap::new();
        for entry in table.iter()? {
            let (key, value) = entry?;
            if let (Ok(digest), Ok(image)) = (key.value().parse(), serde_json::from_slice(value.value())) {
                images.insert(digest, image);
            }
        }
        Ok(images)
    })
}

/// Writes what an image says; with `None`, forgets it.
pub(super) fn set(
    transaction: &WriteTransaction,
    digest: &Digest,
    image: Option<&Image>,
) -> Result<(), StoreError> {
    let mut table = transaction.open_table(IMAGES)?;
    match image.map(serde_json::to_vec) {
        Some(Ok(bytes)) => _ = table.insert(digest.as_str(), bytes.as_slice())?,
        Some(Err(_)) | None => _ = table.remove(digest.as_str())?,
    }
    Ok(())
}
