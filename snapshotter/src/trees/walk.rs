//! Walks one tree, or two in step, directory by directory: what is held at a time is one directory and the names that are
//! still to come beside those above it, not the tree.

use std::collections::BTreeMap;

use super::{
    compare::{Change, Pair, Verdict, plan_pair, plan_pairs},
    entry::Entry,
    layers::{Layers, TreeError},
    merge::{Shown, plan_directory},
};

/// How a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// All was given.
    Done,
    /// The taker wanted no more.
    Stopped,
}

/// Gives every entry of the tree that `top` (numbers of layers, topmost first, at least one) shows, the root first, a directory
/// before what it holds, names of one directory in the order of their bytes; until `emit` returns false.
///
/// # Errors
/// [`TreeError`].
pub fn read_entries(
    layers: &Layers,
    top: &[usize],
    with_digests: bool,
    mut emit: impl FnMut(Entry) -> bool,
) -> Result<Reading, TreeError> {
    let mut pending = vec![root(layers, top)?];
    while let Some(shown) = pending.pop() {
        layers.go_on()?;
        let children = inside(layers, Some(&shown))?;
        let Shown { mut entry, layers: within } = shown;
        if with_digests && entry.size().is_some() {
            entry.sha256 = Some(layers.hash(within[0], &entry.path)?);
        }
        if !emit(entry) {
            return Ok(Reading::Stopped);
        }
        pending.extend(children.into_values().rev());
    }
    Ok(Reading::Done)
}

/// Gives what differs between the trees that `from` and `to` show, in the order of [`read_entries`], until `emit` returns
/// false. Content is read only where nothing else can tell, and directories of which both sides have the same layers are
/// not entered.
///
/// # Errors
/// [`TreeError`].
pub fn read_changes(
    layers: &Layers,
    from: &[usize],
    to: &[usize],
    mut emit: impl FnMut(Change) -> bool,
) -> Result<Reading, TreeError> {
    let mut pending = vec![Pair { sides: [Some(root(layers, from)?), Some(root(layers, to)?)] }];
    while let Some(pair) = pending.pop() {
        layers.go_on()?;
        let verdict = plan_pair(&pair);
        if verdict == Verdict::Same {
            continue;
        }
        let [from, to] = &pair.sides;
        let children = plan_pairs(inside(layers, from.as_ref())?, inside(layers, to.as_ref())?);
        if let Some(change) = read_change(layers, verdict, pair)?
            && !emit(change)
        {
            return Ok(Reading::Stopped);
        }
        pending.extend(children.rev());
    }
    Ok(Reading::Done)
}

fn root(layers: &Layers, top: &[usize]) -> Result<Shown, TreeError> {
    let entry = layers.read_root(top.first().copied().unwrap_or_default())?;
    Ok(Shown { entry, layers: top.to_vec() })
}

/// What a directory shows; nothing for anything else.
fn inside(layers: &Layers, shown: Option<&Shown>) -> Result<BTreeMap<Vec<u8>, Shown>, TreeError> {
    let Some(shown) = shown.filter(|shown| shown.entry.is_directory()) else { return Ok(BTreeMap::new()) };
    let read = |layer: &usize| Ok((*layer, layers.read_directory(*layer, &shown.entry.path)?));
    Ok(plan_directory(shown.layers.iter().map(read).collect::<Result<_, TreeError>>()?))
}

fn read_change(layers: &Layers, verdict: Verdict, pair: Pair) -> Result<Option<Change>, TreeError> {
    let content_differs = match verdict {
        Verdict::Same | Verdict::Inside => return Ok(None),
        Verdict::Differs { content } => content,
        Verdict::Read { differs } => {
            let sum = |side: &Option<Shown>| match side {
                Some(shown) => layers.hash(shown.layers[0], &shown.entry.path).map(Some),
                None => Ok(None),
            };
            let content = sum(&pair.sides[0])? != sum(&pair.sides[1])?;
            if !content && !differs {
                return Ok(None);
            }
            content
        }
    };
    let [from, to] = pair.sides.map(|side| side.map(|shown| shown.entry));
    Ok(Some(Change { from, to, content_differs }))
}
