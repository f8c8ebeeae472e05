//! The versions of a set: what is asked for and all that it requires.

use std::collections::{BTreeMap, BTreeSet};

use version_ranges::Ranges;

use super::{
    CapsuleError, Capsules,
    catalogue::{Published, Resolved},
    model::{CapsuleName, Version},
    requirement::Requirement,
    resolve::{Asked, Candidate, resolve},
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
        let asked = Asked { wanted: ranges, present: present.clone() };
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
}

fn requirements(version: &Resolved) -> Result<Vec<Requirement>, CapsuleError> {
    version.image.declared().map(|declared| declared.requires).map_err(|reason| CapsuleError::Declared {
        name: version.name.clone(),
        version: version.version.clone(),
        reason,
    })
}

fn candidate(published: &Published) -> Candidate {
    let image = published.image.as_ref().map_err(Clone::clone);
    let requires = image.and_then(|image| image.declared()).map(|declared| declared.requires);
    Candidate { version: published.version.clone(), requires }
}
