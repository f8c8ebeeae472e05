//! Which versions go together: the highest of what is asked for and of all that it requires, by the algorithm PubGrub. Pure.
//!
//! A capsule has one version in an answer. What the container has counts: of a capsule that is required, and not asked for
//! by name, the versions there are the only ones, unless it may be moved: then they are the first choice.

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    fmt,
    ops::Bound,
    rc::Rc,
};

use pubgrub::{Dependencies, DependencyProvider, PackageResolutionStatistics, PubGrubError};
use version_ranges::Ranges;

use super::{
    conflict::{Conflict, explain},
    model::{CapsuleName, Version},
    requirement::Requirement,
};

/// A published version.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The version.
    pub version: Version,
    /// What it requires, or why that is not known.
    pub requires: Result<Vec<Requirement>, String>,
}

/// What is to go together.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Asked for by name.
    pub wanted: Vec<(CapsuleName, Ranges<Version>)>,
    /// What the container has.
    pub present: BTreeMap<CapsuleName, BTreeSet<Version>>,
    /// Set where what the container has is moved, and not added to.
    pub moves: Option<Moves>,
}

/// What may become of what the container has. All of that goes together with the answer then, as far as it does now.
#[derive(Debug, Clone, Default)]
pub struct Moves {
    /// May have another version than it has, though nobody asks for it.
    pub movable: BTreeSet<CapsuleName>,
    /// Versions that capsules had before, the latest first: they are chosen before others.
    pub earlier: BTreeMap<CapsuleName, Vec<Version>>,
}

/// One capsule of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The capsule.
    pub name: CapsuleName,
    /// The version.
    pub version: Version,
    /// The container has it, and it is not asked for.
    pub present: bool,
    /// What of the answer requires it.
    pub required_by: Vec<CapsuleName>,
}

/// The versions that go together. What is required comes before what requires it; otherwise by name.
///
/// `shelf` gives the versions of a capsule, in any order.
///
/// # Errors
/// [`Conflict`].
pub fn resolve(
    asked: &Asked,
    shelf: &dyn Fn(&CapsuleName) -> Vec<Candidate>,
) -> Result<Vec<Chosen>, Conflict> {
    let provider = Provider { asked, shelf, seen: RefCell::default() };
    let Ok(root) = ROOT.parse::<Version>() else { return Err(Conflict::of(Vec::new())) };
    match pubgrub::resolve(&provider, Package::Asked, root) {
        Ok(selected) => {
            let versions = selected.into_iter().filter_map(|(package, version)| match package {
                Package::Capsule(name) => Some((name, version)),
                Package::Asked => None,
            });
            Ok(order(&provider, &versions.collect()))
        }
        Err(PubGrubError::NoSolution(error)) => Err(explain(&provider, &error)),
        // Providers of memory fail in no other way.
        Err(other) => Err(Conflict::of(vec![other.to_string()])),
    }
}

/// The capsules that `wanted` requires, and what these require, at any of their versions.
pub fn required(
    wanted: &[(CapsuleName, Ranges<Version>)],
    shelf: &dyn Fn(&CapsuleName) -> Vec<Candidate>,
) -> BTreeSet<CapsuleName> {
    let mut found = BTreeSet::new();
    let mut pending = wanted.to_vec();
    while let Some((name, range)) = pending.pop() {
        let fitting = shelf(&name).into_iter().filter(|candidate| range.contains(&candidate.version));
        for requirement in fitting.flat_map(|candidate| candidate.requires.unwrap_or_default()) {
            if found.insert(requirement.name.clone()) {
                pending.push((requirement.name, Ranges::full()));
            }
        }
    }
    found
}

/// The version of what has none.
const ROOT: &str = "0";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Package {
    /// The call, which depends on what it asks for.
    Asked,
    /// A capsule.
    Capsule(CapsuleName),
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("the call"),
            Self::Capsule(name) => name.fmt(f),
        }
    }
}

pub(super) struct Provider<'a> {
    pub(super) asked: &'a Asked,
    shelf: &'a dyn Fn(&CapsuleName) -> Vec<Candidate>,
    seen: RefCell<HashMap<CapsuleName, Rc<Vec<Candidate>>>>,
}

impl Provider<'_> {
    pub(super) fn is_wanted(&self, name: &CapsuleName) -> bool {
        self.asked.wanted.iter().any(|(wanted, _)| wanted == name)
    }

    /// The versions that a capsule can have, highest first.
    pub(super) fn candidates(&self, name: &CapsuleName) -> Rc<Vec<Candidate>> {
        if let Some(seen) = self.seen.borrow().get(name) {
            return seen.clone();
        }
        let mut all = (self.shelf)(name);
        let present = self.asked.present.get(name);
        let is_fixed = present.is_some() && !self.is_wanted(name) && !self.is_movable(name);
        if is_fixed || self.asked.moves.is_some() {
            let known: BTreeSet<&Version> = present.into_iter().flatten().chain(self.earlier(name)).collect();
            // One whose image is gone, or cannot be read, was there all the same, and what it requires was there when it came.
            for candidate in all.iter_mut().filter(|c| c.requires.is_err() && known.contains(&c.version)) {
                candidate.requires = Ok(Vec::new());
            }
            let gone = known.into_iter().filter(|version| all.iter().all(|c| c.version != **version));
            let gone: Vec<Candidate> =
                gone.map(|v| Candidate { version: v.clone(), requires: Ok(Vec::new()) }).collect();
            all.extend(gone);
        }
        if let Some(present) = present.filter(|_| is_fixed) {
            all.retain(|candidate| present.contains(&candidate.version));
            if self.asked.moves.is_some() {
                all.iter_mut().for_each(|candidate| candidate.requires = Ok(self.met(candidate)));
            }
        }
        all.sort_by(|a, b| b.version.cmp(&a.version));
        let all = Rc::new(all);
        self.seen.borrow_mut().insert(name.clone(), all.clone());
        all
    }

    fn is_movable(&self, name: &CapsuleName) -> bool {
        self.asked.moves.as_ref().is_some_and(|moves| moves.movable.contains(name))
    }

    fn earlier(&self, name: &CapsuleName) -> &[Version] {
        self.asked.moves.as_ref().and_then(|moves| moves.earlier.get(name)).map_or(&[], Vec::as_slice)
    }

    /// What of its requirements the container meets.
    fn met(&self, candidate: &Candidate) -> Vec<Requirement> {
        let meets = |r: &Requirement| {
            self.asked.present.get(&r.name).is_some_and(|all| all.iter().any(|v| r.versions.contains(v)))
        };
        candidate.requires.iter().flatten().filter(|r| meets(r)).cloned().collect()
    }

    /// The first choice of a capsule that is moved only where it must be.
    fn preferred<'a>(&'a self, name: &CapsuleName, range: &Ranges<Version>) -> Option<&'a Version> {
        let present = self.asked.present.get(name).into_iter().flatten().rev();
        present.chain(self.earlier(name)).find(|version| range.contains(*version))
    }

    fn requirements(&self, name: &CapsuleName, version: &Version) -> Result<Vec<Requirement>, String> {
        let found = self.candidates(name).iter().find(|c| c.version == *version).cloned();
        found.map_or(Ok(Vec::new()), |candidate| candidate.requires)
    }
}

impl DependencyProvider for Provider<'_> {
    type P = Package;
    type V = Version;
    type VS = Ranges<Version>;
    type M = String;
    type Priority = (bool, u32, Reverse<usize>);
    type Err = Infallible;

    fn prioritize(
        &self,
        package: &Package,
        range: &Ranges<Version>,
        statistics: &PackageResolutionStatistics,
    ) -> Self::Priority {
        let Package::Capsule(name) = package else { return (true, u32::MAX, Reverse(0)) };
        let count = self.candidates(name).iter().filter(|c| range.contains(&c.version)).count();
        // What is asked for is chosen first: what is there must not hold it back where it can be moved.
        (self.is_wanted(name), statistics.conflict_count(), Reverse(count))
    }

    fn choose_version(
        &self,
        package: &Package,
        range: &Ranges<Version>,
    ) -> Result<Option<Version>, Infallible> {
        let Package::Capsule(name) = package else { return Ok(ROOT.parse().ok()) };
        if self.is_movable(name)
            && !self.is_wanted(name)
            && let Some(preferred) = self.preferred(name, range)
        {
            return Ok(Some(preferred.clone()));
        }
        let all = self.candidates(name);
        Ok(highest(range, || all.iter().map(|c| &c.version)).cloned())
    }

    fn get_dependencies(
        &self,
        package: &Package,
        version: &Version,
    ) -> Result<Dependencies<Package, Ranges<Version>, String>, Infallible> {
        let Package::Capsule(name) = package else {
            let wanted =
                self.asked.wanted.iter().map(|(n, range)| (Package::Capsule(n.clone()), range.clone()));
            let stay = self.asked.present.keys().filter(|n| self.asked.moves.is_some() && !self.is_wanted(n));
            let stay = stay.map(|n| (Package::Capsule(n.clone()), Ranges::full()));
            return Ok(Dependencies::Available(stay.chain(wanted).collect()));
        };
        Ok(match self.requirements(name, version) {
            Ok(all) => {
                let all = all.into_iter().map(|r| (Package::Capsule(r.name), r.versions));
                Dependencies::Available(all.collect())
            }
            Err(reason) => Dependencies::Unavailable(reason),
        })
    }
}

/// The highest of `all`, which are in order, highest first, that lies in a range. A pre-release is chosen where one is named, where the lowest
/// version asked for is one, and where there is nothing else.
pub fn highest<'a, I>(range: &Ranges<Version>, all: impl Fn() -> I) -> Option<&'a Version>
where
    I: Iterator<Item = &'a Version>,
{
    let fits = || all().filter(|version| range.contains(*version));
    let lowest = range.bounding_range().map(|(low, _)| low);
    let is_named = matches!(lowest, Some(Bound::Included(v) | Bound::Excluded(v)) if v.is_prerelease());
    let takes_prereleases = || is_named || all().all(Version::is_prerelease);
    let release = fits().find(|version| !version.is_prerelease());
    release.or_else(|| fits().next().filter(|_| takes_prereleases()))
}

fn order(provider: &Provider<'_>, versions: &BTreeMap<CapsuleName, Version>) -> Vec<Chosen> {
    let mut chosen: Vec<Chosen> = Vec::with_capacity(versions.len());
    for name in versions.keys() {
        put(provider, versions, name, &mut BTreeSet::new(), &mut chosen);
    }
    for (name, version) in versions {
        for requirement in provider.requirements(name, version).unwrap_or_default() {
            if let Some(required) = chosen.iter_mut().find(|c| c.name == requirement.name) {
                required.required_by.push(name.clone());
            }
        }
    }
    chosen
}

/// Puts a capsule behind all that it requires. `above`: what is being put, so that a circle ends.
fn put(
    provider: &Provider<'_>,
    versions: &BTreeMap<CapsuleName, Version>,
    name: &CapsuleName,
    above: &mut BTreeSet<CapsuleName>,
    chosen: &mut Vec<Chosen>,
) {
    let Some(version) = versions.get(name) else { return };
    if chosen.iter().any(|c| c.name == *name) || !above.insert(name.clone()) {
        return;
    }
    for requirement in provider.requirements(name, version).unwrap_or_default() {
        put(provider, versions, &requirement.name, above, chosen);
    }
    let there = provider.asked.present.get(name).is_some_and(|all| all.contains(version));
    let present = there && !provider.is_wanted(name);
    let (name, version) = (name.clone(), version.clone());
    chosen.push(Chosen { name, version, present, required_by: Vec::new() });
}

#[cfg(test)]
mod tests;
