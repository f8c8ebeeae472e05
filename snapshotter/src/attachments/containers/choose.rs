//! Which container is meant, among those that are known. Pure.

use std::collections::BTreeMap;

use super::{Known, Name, Wanted};
use crate::attachments::{error::AttachmentError, model::ContainerKey, pods};

/// container id → (containerd namespace → what is known of it).
pub(super) type Index = BTreeMap<String, BTreeMap<String, Known>>;

/// The one that is meant. An exact id wins over a name, and a name over the beginning of an id.
pub(super) fn choose(index: &Index, wanted: &Wanted) -> Result<ContainerKey, AttachmentError> {
    match &wanted.name {
        Name::Id(id) => choose_by_id(index, id, &wanted.namespace),
        Name::Member(member) => pods::choose(members(index, &wanted.namespace), member),
    }
}

/// All containers of pods in a containerd namespace, or in all when it is empty.
fn members<'a>(index: &'a Index, namespace: &str) -> Vec<pods::Candidate<'a>> {
    let all = index.iter().flat_map(|(id, namespaces)| namespaces.iter().map(move |of| (id, of)));
    all.filter(|(_, (of, _))| namespace.is_empty() || *of == namespace)
        .filter_map(|(id, (of, known))| {
            let key = ContainerKey { namespace: of.clone(), id: id.clone() };
            Some((key, known.member.as_ref()?, known.created))
        })
        .collect()
}

fn choose_by_id(index: &Index, wanted: &str, namespace: &str) -> Result<ContainerKey, AttachmentError> {
    let unknown = || AttachmentError::UnknownContainer {
        id: wanted.to_owned(),
        namespace: namespace.to_owned(),
        unanswered: None,
    };
    if wanted.is_empty() {
        return Err(unknown());
    }
    // One after the other: what is exact wins, and only where it finds nothing is the next looked for.
    let by_id = index.get_key_value(wanted).into_iter();
    let mut matches = matching(by_id, namespace, |_| true);
    if matches.is_empty() {
        matches = matching(index.iter(), namespace, |known| known.name.as_deref() == Some(wanted));
    }
    if matches.is_empty() {
        let by_prefix = index.range(wanted.to_owned()..).take_while(|(id, _)| id.starts_with(wanted));
        matches = matching(by_prefix, namespace, |_| true);
    }
    match matches.len() {
        0 => Err(unknown()),
        1 => Ok(matches.remove(0)),
        _ => Err(AttachmentError::AmbiguousContainer {
            id: wanted.to_owned(),
            matches: matches.iter().map(ToString::to_string).collect(),
        }),
    }
}

/// Those of the wanted namespace, any when it is empty, of which `is` holds.
pub(super) fn matching<'a>(
    ids: impl Iterator<Item = (&'a String, &'a BTreeMap<String, Known>)>,
    wanted: &str,
    is: impl Fn(&Known) -> bool,
) -> Vec<ContainerKey> {
    let of = |namespace: &String| wanted.is_empty() || namespace == wanted;
    ids.flat_map(|(id, namespaces)| namespaces.iter().map(move |(namespace, known)| (id, namespace, known)))
        .filter(|(_, namespace, known)| of(namespace) && is(known))
        .map(|(id, namespace, _)| ContainerKey { namespace: namespace.clone(), id: id.clone() })
        .collect()
}
