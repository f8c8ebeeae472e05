//! Whether all that a container has still has what it requires. Pure.

use crate::capsules::{
    model::{CapsuleName, Version},
    requirement::Requirement,
};

/// A capsule version in a container, and what it requires there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The capsule.
    pub capsule: CapsuleName,
    /// The version.
    pub version: Version,
    /// Of the others.
    pub requires: Vec<Requirement>,
}

/// A requirement that a change leaves unmet, and whose it is: one that was met before, or of what was not there before.
pub fn unmet<'a>(before: &[Holding], after: &'a [Holding]) -> Option<(&'a Holding, &'a Requirement)> {
    let met = |all: &[Holding], requirement: &Requirement| {
        all.iter().any(|h| h.capsule == requirement.name && requirement.versions.contains(&h.version))
    };
    after
        .iter()
        .flat_map(|holding| holding.requires.iter().map(move |requirement| (holding, requirement)))
        .find(|(holding, requirement)| {
            !met(after, requirement) && (met(before, requirement) || !before.contains(holding))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `NAME@VERSION`, or `NAME@VERSION: REQUIREMENT`.
    fn holdings(all: &[&str]) -> Vec<Holding> {
        let holding = |text: &&str| {
            let (label, requires) = text.split_once(": ").unwrap_or((text, ""));
            let (name, version) = label.split_once('@').unwrap();
            let requires = Some(requires).filter(|r| !r.is_empty()).map(|r| r.parse().unwrap());
            Holding {
                capsule: name.parse().unwrap(),
                version: version.parse().unwrap(),
                requires: requires.into_iter().collect(),
            }
        };
        all.iter().map(holding).collect()
    }

    #[test]
    fn only_what_a_change_takes_away_is_unmet() {
        let app = "app@1: lib >=1, <2";
        for (before, after, unmet_of) in [
            (&[app, "lib@1"][..], &[app][..], Some("app")),
            (&[app, "lib@1"], &["lib@1"], None),
            (&[app, "lib@1"], &[app, "lib@2"], Some("app")),
            (&[app, "lib@1"], &[app, "lib@1.9"], None),
            // Another attachment of it will do.
            (&[app, "lib@1", "lib@1.5"], &[app, "lib@1.5"], None),
            // It lacked that before.
            (&[app, "x@1"], &[app], None),
            // A version that comes has requirements of its own.
            (&["app@0", "lib@2"], &[app, "lib@2"], Some("app")),
            (&["app@0", "lib@1"], &[app, "lib@1"], None),
        ] {
            let (before, after) = (holdings(before), holdings(after));
            let found = unmet(&before, &after).map(|(holding, _)| holding.capsule.as_str());
            assert_eq!(found, unmet_of, "{before:?} {after:?}");
        }
    }
}
