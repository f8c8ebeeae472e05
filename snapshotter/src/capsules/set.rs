//! The versions of a set: what is asked for and all that it requires.

use std::collections::{BTreeMap, BTreeSet};

use version_ranges::Ranges;

use super::{
    CapsuleError, Capsules,
    catalogue::{Published, Resolved},
    model::{CapsuleName, Version},
    requirement::Requirement,
    resolve::{Asked, Candidate, Chosen, Moves, required, resolve},
};

/// The versions of each capsule that a container has.
pub type Present = BTreeMap<CapsuleName, BTreeSet<Version>>;

/// One capsule of a set.
#[derive(Debug, Clone)]
pub struct Member {
    /// The version.
    pub version: Resolved,
    /// The container has it already, and it is not asked for by name.
    pub present: bool,
    /// What of the set requires it.
    pub required_by: Vec<CapsuleName>,
}

impl Capsules {
    /// The highest versions of what is `wanted`, and of all that they require, that go together and with what is
    /// `present`. What is required comes before what requires it.
    ///
    /// # Errors
    /// As [`Capsules::resolve`]; [`CapsuleError::Conflict`], [`CapsuleError::Declared`].
    pub async fn resolve_set(
        &self,
        wanted: &[(CapsuleName, Option<Version>)],
        present: &Present,
    ) -> Result<Vec<Member>, CapsuleError> {
        let mut members = Vec::with_capacity(wanted.len());
        let mut ranges = Vec::with_capacity(wanted.len());
        let mut requires = false;
        for (name, asked) in wanted {
            let version = self.resolve(name, asked.as_ref()).await?;
            // A tag is asked for by what it stands for now.
            let range =
                asked.as_ref().map_or_else(Ranges::full, |_| Ranges::singleton(version.version.clone()));
            ranges.push((name.clone(), range));
            requires |= !requirements(&version)?.is_empty();
            members.push(Member { version, present: false, required_by: Vec::new() });
        }
        if !requires {
            return Ok(members);
        }
        let asked = Asked { wanted: ranges, present: present.clone(), moves: None };
        let catalogue = self.listed().await?;
        let shelf = |name: &CapsuleName| catalogue.list(Some(name)).iter().map(candidate).collect();
        let chosen = resolve(&asked, &shelf)?;
        let mut members = Vec::with_capacity(chosen.len());
        for one in chosen {
            // One that is there need not be published any more.
            match self.resolve(&one.name, Some(&one.version)).await {
                Ok(version) => {
                    members.push(Member { version, present: one.present, required_by: one.required_by });
                }
                Err(_) if one.present => {}
                Err(error) => return Err(error),
            }
        }
        Ok(members)
    }

    /// What a container has once it is moved to `wanted`: to the newest that go together where no version is named. What it
    /// has, and `earlier` had, is kept or gone back to where that will do.
    ///
    /// # Errors
    /// As [`Capsules::resolve_set`]. [`CapsuleError::Conflict`] also where nothing could be moved, and the newest say why.
    pub async fn resolve_upgrade(
        &self,
        wanted: &[(CapsuleName, Option<Version>)],
        has: Has,
    ) -> Result<Vec<Chosen>, CapsuleError> {
        let (mut ranges, mut newest, mut requires) = (Vec::new(), Vec::new(), false);
        for (name, version) in wanted {
            let found = self.resolve(name, version.as_ref()).await?;
            requires |= !requirements(&found)?.is_empty();
            let highest = has.present.get(name).and_then(|versions| versions.last());
            let range = match highest.filter(|highest| version.is_none() && **highest < found.version) {
                Some(highest) => Ranges::between(highest.clone(), found.version.clone())
                    .union(&Ranges::singleton(found.version.clone())),
                None => Ranges::singleton(found.version.clone()),
            };
            ranges.push((name.clone(), range));
            newest.push((name.clone(), Ranges::singleton(found.version)));
        }
        // Where nothing new is required, what is in memory is enough: containerd may be away.
        if requires {
            self.listed().await?;
        }
        let chosen = self.resolve_moves(ranges, has.clone())?;
        let is_moved =
            |one: &Chosen| has.present.get(&one.name).is_none_or(|all| !all.contains(&one.version));
        if chosen.iter().any(is_moved) { Ok(chosen) } else { self.resolve_moves(newest, has) }
    }

    /// What a container has once it is moved to exactly `wanted`: see [`Capsules::resolve_upgrade`].
    ///
    /// From memory: what it goes back to was there.
    ///
    /// # Errors
    /// [`CapsuleError::Conflict`].
    pub fn resolve_back(
        &self,
        wanted: &[(CapsuleName, Version)],
        has: Has,
    ) -> Result<Vec<Chosen>, CapsuleError> {
        let exactly = wanted.iter().map(|(name, version)| (name.clone(), Ranges::singleton(version.clone())));
        self.resolve_moves(exactly.collect(), has)
    }

    fn resolve_moves(
        &self,
        wanted: Vec<(CapsuleName, Ranges<Version>)>,
        has: Has,
    ) -> Result<Vec<Chosen>, CapsuleError> {
        let shelf = |name: &CapsuleName| self.catalogue().list(Some(name)).iter().map(candidate).collect();
        let moves = Moves { movable: required(&wanted, &shelf), earlier: has.earlier };
        let asked = Asked { wanted, present: has.present, moves: Some(moves) };
        Ok(resolve(&asked, &shelf)?)
    }
}

/// What a container has, and had.
#[derive(Debug, Clone, Default)]
pub struct Has {
    /// Its versions of each capsule.
    pub present: Present,
    /// Those before them that can be gone back to, the latest first.
    pub earlier: BTreeMap<CapsuleName, Vec<Version>>,
}

fn requirements(version: &Resolved) -> Result<Vec<Requirement>, CapsuleError> {
    Ok(version.declared()?.requires)
}

fn candidate(published: &Published) -> Candidate {
    let image = published.image.as_ref().map_err(Clone::clone);
    let requires = image.and_then(|image| image.declared()).map(|declared| declared.requires);
    Candidate { version: published.version.clone(), requires }
}
