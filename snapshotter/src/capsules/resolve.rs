//! Which versions go together: the highest of what is asked for and of all that it requires, by the algorithm PubGrub. Pure.
//!
//! A capsule has one version in an answer. What the container has counts: of a capsule that is required, and not asked for
//! by name, the versions there are the only ones.

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
        if let Some(present) = self.asked.present.get(name).filter(|_| !self.is_wanted(name)) {
            // One whose image is gone is still there, and what it requires was there when it came.
            let gone = |version: &&Version| all.iter().all(|c| c.version != **version);
            let gone: Vec<Candidate> = present
                .iter()
                .filter(gone)
                .map(|version| Candidate { version: version.clone(), requires: Ok(Vec::new()) })
                .collect();
            all.retain(|candidate| present.contains(&candidate.version));
            all.extend(gone);
        }
        all.sort_by(|a, b| b.version.cmp(&a.version));
        let all = Rc::new(all);
        self.seen.borrow_mut().insert(name.clone(), all.clone());
        all
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
    type Priority = (u32, Reverse<usize>);
    type Err = Infallible;

    fn prioritize(
        &self,
        package: &Package,
        range: &Ranges<Version>,
        statistics: &PackageResolutionStatistics,
    ) -> Self::Priority {
        let Package::Capsule(name) = package else { return (u32::MAX, Reverse(0)) };
        let count = self.candidates(name).iter().filter(|c| range.contains(&c.version)).count();
        (statistics.conflict_count(), Reverse(count))
    }

    fn choose_version(
        &self,
        package: &Package,
        range: &Ranges<Version>,
    ) -> Result<Option<Version>, Infallible> {
        let Package::Capsule(name) = package else { return Ok(ROOT.parse().ok()) };
        let all = self.candidates(name);
        let fits = || all.iter().map(|c| &c.version).filter(|version| range.contains(*version));
        let release = fits().find(|version| !version.is_prerelease());
        let prerelease = || fits().next().filter(|_| takes_prereleases(range, &all));
        Ok(release.or_else(prerelease).cloned())
    }

    fn get_dependencies(
        &self,
        package: &Package,
        version: &Version,
    ) -> Result<Dependencies<Package, Ranges<Version>, String>, Infallible> {
        let Package::Capsule(name) = package else {
            let wanted =
                self.asked.wanted.iter().map(|(n, range)| (Package::Capsule(n.clone()), range.clone()));
            return Ok(Dependencies::Available(wanted.collect()));
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

/// A pre-release is chosen where one is named, where the lowest version asked for is one, and where there is nothing else.
fn takes_prereleases(range: &Ranges<Version>, all: &[Candidate]) -> bool {
    let lowest = range.bounding_range().map(|(low, _)| low);
    let named = matches!(lowest, Some(Bound::Included(v) | Bound::Excluded(v)) if v.is_prerelease());
    named || all.iter().all(|candidate| candidate.version.is_prerelease())
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
mod tests {
    use super::*;

    /// `NAME@VERSION` and its requirements, separated by `;`.
    type Published = [(&'static str, &'static str)];

    fn shelf(published: &Published) -> impl Fn(&CapsuleName) -> Vec<Candidate> + use<'_> {
        |name| {
            let of_name = published.iter().filter_map(|(label, requires)| {
                let (n, version) = label.split_once('@').unwrap();
                let requires = match *requires {
                    "!" => Err("its manifest is gone".to_owned()),
                    all => Ok(all.split(';').filter(|r| !r.is_empty()).map(|r| r.parse().unwrap()).collect()),
                };
                (n == name.as_str()).then(|| Candidate { version: version.parse().unwrap(), requires })
            });
            of_name.collect()
        }
    }

    fn run(published: &Published, wanted: &[&str], present: &[&str]) -> Result<String, String> {
        let wanted = wanted.iter().map(|text| text.parse::<Requirement>().unwrap());
        let mut asked = Asked { wanted: wanted.map(|r| (r.name, r.versions)).collect(), ..Asked::default() };
        for label in present {
            let (name, version) = label.split_once('@').unwrap();
            asked.present.entry(name.parse().unwrap()).or_default().insert(version.parse().unwrap());
        }
        let chosen = resolve(&asked, &shelf(published)).map_err(|conflict| conflict.to_string())?;
        let show = |c: &Chosen| {
            let by = c.required_by.iter().map(CapsuleName::as_str).collect::<Vec<_>>().join("+");
            format!(
                "{}@{}{}{}",
                c.name,
                c.version,
                if c.present { "!" } else { "" },
                if by.is_empty() { by } else { format!("<{by}") }
            )
        };
        Ok(chosen.iter().map(show).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn the_highest_that_go_together_are_chosen() {
        let published: &Published = &[
            ("app@1", "cuda >=12, <13"),
            ("app@2", "cuda >=12.4, <13; libc"),
            ("app@3-rc.1", "cuda"),
            ("cuda@12.2", ""),
            ("cuda@12.10", ""),
            ("cuda@12.11-rc.1", ""),
            ("cuda@13", ""),
            ("libc@2", ""),
            ("plugin@1", "cuda <12.10"),
            ("broken@1", "libc"),
            ("broken@2", "!"),
            ("a@1", "b"),
            ("b@1", "a"),
            ("pre@1-alpha", ""),
        ];
        for (wanted, present, expected) in [
            (&["app"][..], &[][..], "cuda@12.10<app libc@2<app app@2"),
            (&["app =1"], &[], "cuda@12.10<app app@1"),
            (&["app", "plugin"], &[], "cuda@12.2<app+plugin app@1 plugin@1"),
            (&["app"], &["cuda@12.2"], "cuda@12.2!<app app@1"),
            (&["app"], &["cuda@12.10", "cuda@12.2"], "cuda@12.10!<app libc@2<app app@2"),
            (&["app", "cuda"], &["cuda@13"], "cuda@12.10<app libc@2<app app@2"),
            (&["app"], &["cuda@12.9"], "cuda@12.9!<app libc@2<app app@2"),
            (&["broken"], &[], "libc@2<broken broken@1"),
            (&["a"], &[], "b@1<a a@1<b"),
            (&["pre"], &[], "pre@1-alpha"),
            (&["app =3-rc.1"], &[], "cuda@13<app app@3-rc.1"),
            (&["app >=3-rc"], &[], "cuda@13<app app@3-rc.1"),
        ] {
            assert_eq!(run(published, wanted, present).as_deref(), Ok(expected), "{wanted:?} {present:?}");
        }
    }

    #[test]
    fn a_conflict_is_explained_in_facts() {
        let published: &Published = &[
            ("app@1", "cuda >=12, <13"),
            ("plugin@1", "cuda >=13"),
            ("cuda@12.4", ""),
            ("cuda@13", ""),
            ("lonely@1", "nothing >=1"),
            ("dead@1", "!"),
        ];
        for (wanted, present, facts) in [
            (
                &["app", "plugin"][..],
                &[][..],
                &["app@1 requires cuda >=12, <13", "plugin@1 requires cuda >=13", "app is asked for"][..],
            ),
            (&["lonely"], &[], &["capsule nothing is not known here: publish or pull it"]),
            (&["app"], &["cuda@13"], &["the container has cuda@13: upgrade it first"]),
            (&["app =2"], &[], &["app@2 is asked for", "there is no app =2, only 1"]),
            (&["dead"], &[], &["dead@1 cannot be used: its manifest is gone"]),
        ] {
            let error = run(published, wanted, present).unwrap_err();
            for fact in facts {
                assert!(error.contains(fact), "{wanted:?} {present:?}: {error} lacks {fact:?}");
            }
            assert!(!error.contains("the call"), "{error}");
        }
    }
}
