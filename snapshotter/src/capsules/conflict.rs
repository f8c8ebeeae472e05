//! Why no versions go together, told in facts that a person can act on. Pure.

use pubgrub::{DerivationTree, External};
use version_ranges::Ranges;

use super::{
    model::{CapsuleName, Version},
    requirement::show,
    resolve::{Package, Provider},
};

/// Why nothing goes together, in the facts that contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no versions go together: {}", .0.join("; "))]
pub struct Conflict(Vec<String>);

impl Conflict {
    pub(super) fn of(facts: Vec<String>) -> Self {
        Self(facts)
    }
}

/// The facts at the leaves of the derivation, each once, in the order of the reasoning; and what to do, where none of them says.
pub(super) fn explain(
    provider: &Provider<'_>,
    tree: &DerivationTree<Package, Ranges<Version>, String>,
) -> Conflict {
    let mut facts: Vec<Fact> = Vec::new();
    let mut pending = vec![tree];
    while let Some(tree) = pending.pop() {
        match tree {
            DerivationTree::Derived(derived) => pending.extend([&*derived.cause2, &*derived.cause1]),
            DerivationTree::External(external) => match fact(provider, external) {
                Some(fact) if !facts.contains(&fact) => facts.push(fact),
                _ => {}
            },
        }
    }
    let cure = cure(provider, &facts);
    Conflict(facts.into_iter().map(|fact| fact.text).chain(cure).collect())
}

/// One of the reasons.
#[derive(PartialEq)]
struct Fact {
    text: String,
    /// It says what to do.
    cures: bool,
}

impl Fact {
    fn plain(text: String) -> Self {
        Self { text, cures: false }
    }

    fn with_cure(fact: &str, cure: &str) -> Self {
        Self { text: format!("{fact}: {cure}"), cures: true }
    }
}

/// What to do about what was asked for, unless a fact says what to do about what is in its way.
fn cure(provider: &Provider<'_>, facts: &[Fact]) -> Option<String> {
    if facts.iter().any(|fact| fact.cures) {
        return None;
    }
    let names: Vec<String> = provider.asked.wanted.iter().map(|(name, _)| name.to_string()).collect();
    match &names[..] {
        [] => None,
        [one] => Some(format!("ask for another version of {one} (see \"capsulectl ls {one}\")")),
        all => Some(format!("ask for other versions of {}, or for fewer of them", all.join(" and "))),
    }
}

/// What to do about what is not here.
const PUBLISH: &str = "publish or pull it";

fn fact(provider: &Provider<'_>, external: &External<Package, Ranges<Version>, String>) -> Option<Fact> {
    let label = |package: &Package, range: &Ranges<Version>| match range.as_singleton() {
        Some(version) => format!("{package}@{version}"),
        None => format!("{package} {}", show(range)).trim_end().to_owned(),
    };
    match external {
        External::NotRoot(..) => None,
        External::FromDependencyOf(Package::Asked, _, Package::Capsule(name), _)
            if !provider.is_wanted(name) =>
        {
            Some(stays(provider, name))
        }
        External::FromDependencyOf(Package::Asked, _, package, range) => {
            Some(Fact::plain(format!("{} is asked for", label(package, range))))
        }
        External::FromDependencyOf(package, of, required, range) => {
            let range = show(range);
            let text = format!("{} requires {required} {range}", label(package, of));
            Some(Fact::plain(text.trim_end().to_owned()))
        }
        External::NoVersions(Package::Capsule(name), range) => Some(missing(provider, name, range)),
        External::NoVersions(Package::Asked, _) => None,
        External::Custom(package, range, reason) => {
            Some(Fact::plain(format!("{} cannot be used: {reason}", label(package, range))))
        }
    }
}

/// What the container has of a capsule, and keeps unless it is told otherwise.
fn stays(provider: &Provider<'_>, name: &CapsuleName) -> Fact {
    let present = provider.asked.present.get(name).into_iter().flatten();
    let present = present.map(|version| format!("{name}@{version}")).collect::<Vec<_>>().join(" and ");
    let cure = match provider.asked.moves {
        Some(_) => "move it too, or detach it",
        None => "upgrade it first",
    };
    Fact::with_cure(&format!("the container has {present}"), cure)
}

fn missing(provider: &Provider<'_>, name: &CapsuleName, range: &Ranges<Version>) -> Fact {
    let all = provider.candidates(name);
    if all.is_empty() {
        return Fact::with_cure(&format!("capsule {name} is not known here"), PUBLISH);
    }
    let mut have: Vec<&str> = all.iter().map(|c| c.version.as_str()).take(SHOWN).collect();
    if all.len() > SHOWN {
        have.push("and older ones");
    }
    let have = have.join(", ");
    let only = provider.asked.present.contains_key(name) && !provider.is_wanted(name);
    match (only, show(range)) {
        (true, _) => stays(provider, name),
        // All but some that have been ruled out.
        (false, range) if range.is_empty() || range.contains(" or ") => {
            Fact::plain(format!("there is no other {name} than {have}"))
        }
        (false, range) => Fact::with_cure(&format!("there is no {name} {range}, only {have}"), PUBLISH),
    }
}

/// How many versions an explanation names.
const SHOWN: usize = 8;
