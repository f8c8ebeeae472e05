//! Which of the layers' entries an overlay shows. Pure.
//!
//! The rules of `fs/overlayfs/namei.c` (`ovl_lookup`, `ovl_lookup_single`): the topmost layer that has a name decides. A
//! whiteout hides what is below. Directories of one name merge, down to the first layer in which the name is something
//! else, a whiteout, or a directory that is opaque (which still counts). Opaque marks of a layer's root mean nothing.

use std::collections::BTreeMap;

use super::entry::Entry;

/// What one layer has under one name.
#[derive(Debug, Clone)]
pub enum Found {
    /// Nothing, and hides what is below.
    Whiteout,
    /// Something.
    Entry {
        /// What.
        entry: Entry,
        /// A directory that does not show what is below.
        opaque: bool,
    },
}

/// What one layer has in one directory, by name.
pub type Listing = BTreeMap<Vec<u8>, Found>;

/// One name as the overlay shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// As the topmost layer that has it says.
    pub entry: Entry,
    /// The layers, topmost first, whose directories merge into it; for anything else the layer that it is in.
    pub layers: Vec<usize>,
}

/// What is known of a name when the layers down to some one have been looked at.
struct Slot {
    shown: Option<Shown>,
    /// What is further below still counts.
    open: bool,
}

/// The directory that layers show together. `listings`: the layers that take part, topmost first, and what each has.
pub fn plan_directory(listings: Vec<(usize, Listing)>) -> BTreeMap<Vec<u8>, Shown> {
    let mut slots: BTreeMap<Vec<u8>, Slot> = BTreeMap::new();
    for (layer, listing) in listings {
        for (name, found) in listing {
            match slots.get_mut(&name) {
                None => {
                    slots.insert(name, first(layer, found));
                }
                Some(slot) if slot.open => further(slot, layer, found),
                Some(_) => {}
            }
        }
    }
    slots.into_iter().filter_map(|(name, slot)| Some((name, slot.shown?))).collect()
}

fn first(layer: usize, found: Found) -> Slot {
    match found {
        Found::Whiteout => Slot { shown: None, open: false },
        Found::Entry { entry, opaque } => {
            let open = entry.is_directory() && !opaque;
            Slot { shown: Some(Shown { entry, layers: vec![layer] }), open }
        }
    }
}

/// The name is a directory already.
fn further(slot: &mut Slot, layer: usize, found: Found) {
    match (&mut slot.shown, found) {
        (Some(shown), Found::Entry { entry, opaque }) if entry.is_directory() => {
            shown.layers.push(layer);
            slot.open = !opaque;
        }
        _ => slot.open = false,
    }
}
