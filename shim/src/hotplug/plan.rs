//! Which mounts make an attachment. Pure: what the capsule and the container hold comes through traits.
//!
//! A union covers a directory as a whole, and would hide what is mounted below it. So where something is mounted
//! below, the union goes to the entries that the capsule has in the directory, each by the same rule.

use overlayfs_utils::ContainerPath;
use thiserror::Error;

/// What a directory of a capsule holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Dir,
    /// A symbolic link, with its text.
    Link(String),
    /// A file, device, …
    Other,
}

/// The capsule's merged tree.
pub trait Capsule {
    /// Why it cannot be read.
    type Error: From<PlanRefusal>;

    /// Entries of the directory `dir`, by name.
    ///
    /// # Errors
    /// When a layer cannot be read.
    fn entries(&self, dir: &ContainerPath) -> Result<Vec<(String, Entry)>, Self::Error>;

    /// The directory that `path` leads to inside the capsule, links followed; none if it leads to no directory.
    ///
    /// # Errors
    /// When a layer cannot be read.
    fn resolve_dir(&self, path: &ContainerPath) -> Result<Option<ContainerPath>, Self::Error>;
}

/// What the container's own root file system has at a path, whatever is mounted over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum There {
    /// Nothing.
    Missing,
    /// A directory.
    Dir,
    /// A link: its text, and the directory it leads to.
    Link(String, Option<ContainerPath>),
    /// Something else.
    Other,
}

/// The container's root file system.
pub trait Place<E> {
    /// What is at `path`, whose parent has no links.
    ///
    /// # Errors
    /// When it cannot be looked at.
    fn look(&self, path: &ContainerPath) -> Result<There, E>;
}

/// A mount that the container sees, other than its root and the attachment's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Where.
    pub path: String,
    /// How to name it to a person.
    pub what: String,
}

/// One mount to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Where in the container, without links.
    pub at: ContainerPath,
    /// Which directory of the capsule.
    pub from: ContainerPath,
    /// The capsule alone, rather than over what is there.
    pub alone: bool,
}

/// Why a capsule cannot be put where it was to go.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlanRefusal {
    /// Something is mounted at the very place.
    #[error("{path} is occupied by {by}: choose another target, or detach it first")]
    Occupied {
        /// Where.
        path: ContainerPath,
        /// What.
        by: String,
    },
    /// The place is in another mount, of which the host has no view to lay under a union.
    #[error(
        "{path} lies in {by}, mounted at {mount}: a union needs a place on the container's own root; use mode ro"
    )]
    InMount {
        /// Where.
        path: ContainerPath,
        /// The mount's place.
        mount: String,
        /// What.
        by: String,
    },
    /// The capsule has a file where only directories can be mounted one by one.
    #[error(
        "the capsule has {path}, which is no directory, and {dir} cannot be covered as a whole ({why}): leave it out of the capsule, or choose a target above or below"
    )]
    File {
        /// The file, by its place in the container.
        path: ContainerPath,
        /// Where it would go.
        dir: ContainerPath,
        /// Why not the whole directory.
        why: String,
    },
    /// The capsule has a directory where the container has a file.
    #[error("{0} is not a directory in the container: choose another target")]
    NotADirectory(ContainerPath),
    /// Container and capsule have a link of the same name that leads elsewhere, or nowhere.
    #[error(
        "{path} is a link in the {whose} that leads to no common directory: build the capsule with the container's layout"
    )]
    Link {
        /// The link.
        path: ContainerPath,
        /// "capsule" or "container".
        whose: &'static str,
    },
    /// Two directories of the capsule would go to one place.
    #[error(
        "{first} and {second} of the capsule go to the same place in the container, which has links there: build the capsule with the container's layout"
    )]
    Overlap {
        /// One.
        first: ContainerPath,
        /// Another.
        second: ContainerPath,
    },
    /// The capsule adds nothing.
    #[error("the capsule has nothing to put at {0}: is it empty?")]
    Nothing(ContainerPath),
    /// A name of the capsule cannot be a path.
    #[error("the capsule has a name in {0} that makes no path")]
    Name(ContainerPath),
}

/// Plans a union of `capsule` at `target`, a path without links, in a container that sees `mounts`.
///
/// # Errors
/// [`PlanRefusal`], or what the traits report.
pub fn plan_union<C: Capsule>(
    capsule: &C,
    place: &dyn Place<C::Error>,
    mounts: &[Seen],
    target: &ContainerPath,
) -> Result<Vec<Planned>, C::Error> {
    let mut planner = Planner { capsule, place, mounts, planned: Vec::new() };
    let top = ContainerPath::root();
    if target.is_root() {
        planner.descend(&top, &top, "a union at \"/\" goes to its directories")?;
    } else {
        planner.put(target, &top)?;
    }
    let planned = planner.planned;
    check_overlap(&planned)?;
    if planned.is_empty() { Err(PlanRefusal::Nothing(target.clone()).into()) } else { Ok(planned) }
}

fn check_overlap(planned: &[Planned]) -> Result<(), PlanRefusal> {
    for (n, first) in planned.iter().enumerate() {
        for second in &planned[n + 1..] {
            if first.at.starts_with(&second.at) || second.at.starts_with(&first.at) {
                let (first, second) = (first.from.clone(), second.from.clone());
                return Err(PlanRefusal::Overlap { first, second });
            }
        }
    }
    Ok(())
}

struct Planner<'a, C: Capsule> {
    capsule: &'a C,
    place: &'a dyn Place<C::Error>,
    mounts: &'a [Seen],
    planned: Vec<Planned>,
}

impl<C: Capsule> Planner<'_, C> {
    /// Plans the capsule's directory `from` for the path `at`.
    fn put(&mut self, at: &ContainerPath, from: &ContainerPath) -> Result<(), C::Error> {
        let there = self.place.look(at)?;
        let adds_nothing = self.capsule.entries(from)?.is_empty();
        if adds_nothing && matches!(there, There::Dir | There::Link(_, Some(_))) {
            return Ok(());
        }
        self.check_mounts_over(at)?;
        match there {
            There::Missing => self.push(at, from, true),
            There::Dir => match self.first_below(at) {
                Some(seen) => {
                    self.descend(at, from, &format!("{} is mounted at {}", seen.what, seen.path))?
                }
                None => self.push(at, from, false),
            },
            There::Link(_, Some(real)) => self.put(&real, from)?,
            There::Link(_, None) => {
                return Err(PlanRefusal::Link { path: at.clone(), whose: "container" }.into());
            }
            There::Other => return Err(PlanRefusal::NotADirectory(at.clone()).into()),
        }
        Ok(())
    }

    fn push(&mut self, at: &ContainerPath, from: &ContainerPath, alone: bool) {
        self.planned.push(Planned { at: at.clone(), from: from.clone(), alone });
    }

    /// Plans each entry of the capsule's directory `from` for the directory `at`.
    fn descend(&mut self, at: &ContainerPath, from: &ContainerPath, why: &str) -> Result<(), C::Error> {
        for (name, entry) in self.capsule.entries(from)? {
            let named = |dir: &ContainerPath| dir.join(&name).map_err(|_| PlanRefusal::Name(dir.clone()));
            let (place, source) = (named(at)?, named(from)?);
            match entry {
                Entry::Dir => self.put(&place, &source)?,
                Entry::Link(text) => self.put_link(&place, &source, &text)?,
                Entry::Other => {
                    let (dir, why) = (at.clone(), why.to_owned());
                    return Err(PlanRefusal::File { path: place, dir, why }.into());
                }
            }
        }
        Ok(())
    }

    /// A link of the capsule: skipped where the container has it too, else taken for the directory it leads to.
    fn put_link(&mut self, at: &ContainerPath, from: &ContainerPath, text: &str) -> Result<(), C::Error> {
        let leads_to = self.capsule.resolve_dir(from)?;
        match (self.place.look(at)?, leads_to) {
            (There::Link(theirs, _), _) if theirs == text => Ok(()),
            (There::Link(_, Some(real)), Some(dir)) if real == dir => Ok(()),
            (There::Link(..), _) => Err(PlanRefusal::Link { path: at.clone(), whose: "container" }.into()),
            (There::Other, _) => Err(PlanRefusal::NotADirectory(at.clone()).into()),
            (There::Missing | There::Dir, Some(dir)) => self.put(at, &dir),
            (There::Missing | There::Dir, None) => {
                Err(PlanRefusal::Link { path: at.clone(), whose: "capsule" }.into())
            }
        }
    }

    fn check_mounts_over(&self, at: &ContainerPath) -> Result<(), PlanRefusal> {
        for seen in self.mounts {
            if seen.path == at.as_str() {
                return Err(PlanRefusal::Occupied { path: at.clone(), by: seen.what.clone() });
            }
            if lies_in(at.as_str(), &seen.path) {
                let (path, mount, by) = (at.clone(), seen.path.clone(), seen.what.clone());
                return Err(PlanRefusal::InMount { path, mount, by });
            }
        }
        Ok(())
    }

    fn first_below(&self, at: &ContainerPath) -> Option<Seen> {
        self.mounts.iter().find(|seen| lies_in(&seen.path, at.as_str())).cloned()
    }
}

/// Whether `path` is strictly below `dir`.
fn lies_in(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
