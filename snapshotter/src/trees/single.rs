//! What one layer has by itself: its entries, and what it takes away from those below.

use std::fs::File;

use super::{
    entry::Entry,
    layers::{Layers, TreeError, child},
    merge::Found,
};

/// One thing that a layer has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// It hides what is below at this path.
    Whiteout(Vec<u8>),
    /// It is there.
    Entry {
        /// What.
        entry: Entry,
        /// A directory that shows nothing of what is below.
        opaque: bool,
    },
}

/// Gives everything that a layer has but its root, a directory before what it holds, names of one directory in the order of
/// their bytes. What is held at a time is as in [`super::read_entries`].
///
/// # Errors
/// [`TreeError`], or what `emit` says.
pub fn read_layer<E: From<TreeError>>(
    layers: &Layers,
    layer: usize,
    mut emit: impl FnMut(&Item) -> Result<(), E>,
) -> Result<(), E> {
    let list = |path: &[u8]| {
        let listing = layers.read_directory(layer, path)?;
        Ok::<_, TreeError>(
            listing.into_iter().rev().map(|(name, found)| (child(path, &name), found)).collect(),
        )
    };
    let mut pending: Vec<(Vec<u8>, Found)> = list(b"")?;
    while let Some((path, found)) = pending.pop() {
        layers.go_on()?;
        let item = match found {
            Found::Whiteout => Item::Whiteout(path),
            Found::Entry { entry, opaque } => Item::Entry { entry, opaque },
        };
        emit(&item)?;
        if let Item::Entry { entry, .. } = &item
            && entry.is_directory()
        {
            pending.extend(list(&entry.path)?);
        }
    }
    Ok(())
}

/// Opens a file of a layer.
///
/// # Errors
/// [`TreeError::Read`].
pub fn open_file(layers: &Layers, layer: usize, path: &[u8]) -> Result<File, TreeError> {
    Ok(File::from(layers.open(layer, path)?))
}
