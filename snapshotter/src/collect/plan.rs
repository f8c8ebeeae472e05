//! Which versions go. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use crate::capsules::{
    model::{CapsuleName, Version},
    requirement::Requirement,
};

/// What is kept though nobody uses it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// So many of the newest versions of each capsule.
    pub keep_last: usize,
    /// Versions that a tag stands for.
    pub keep_tagged: bool,
    /// Versions that are not older than this; that is no rule when `None`.
    pub older_than: Option<Duration>,
}

/// A version as it is found.
#[derive(Debug, Clone)]
pub struct Found {
    /// The capsule.
    pub name: CapsuleName,
    /// The version.
    pub version: Version,
    /// When it was published here, if that is known.
    pub created_at: Option<SystemTime>,
    /// Its tags.
    pub tags: Vec<Version>,
    /// What it requires.
    pub requires: Vec<Requirement>,
    /// Who uses it.
    pub used: Option<String>,
}

/// What becomes of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes.
    Remove,
    /// It stays, and why.
    Keep(String),
}

/// The verdict on each version. Those of one capsule come newest first, as the catalogue lists them.
pub fn plan(found: &[Found], rules: &Rules, now: SystemTime) -> Vec<Verdict> {
    let needed = needed(found);
    let mut newest: BTreeMap<&CapsuleName, usize> = BTreeMap::new();
    let mut verdicts = Vec::with_capacity(found.len());
    for (index, one) in found.iter().enumerate() {
        let rank = newest.entry(&one.name).or_default();
        *rank += 1;
        let age = one.created_at.and_then(|at| now.duration_since(at).ok());
        let is_young = |limit: &Duration| age.is_none_or(|age| age < *limit);
        verdicts.push(if let Some(user) = &one.used {
            Verdict::Keep(format!("in use: {user}"))
        } else if let Some(by) = needed.get(&index) {
            Verdict::Keep(format!("required by {by}, which is in use"))
        } else if rules.keep_tagged && !one.tags.is_empty() {
            let tags: Vec<&str> = one.tags.iter().map(Version::as_str).collect();
            Verdict::Keep(format!("tagged {}", tags.join(", ")))
        } else if *rank <= rules.keep_last {
            Verdict::Keep(format!("one of the newest {}", rules.keep_last))
        } else if rules.older_than.as_ref().is_some_and(is_young) {
            Verdict::Keep("not old enough".to_owned())
        } else {
            Verdict::Remove
        });
    }
    verdicts
}

/// The versions that what is in use requires, and what these require, each with one that does. Of a requirement the
/// highest version that meets it counts, and every one that is in use.
fn needed(found: &[Found]) -> BTreeMap<usize, String> {
    let mut needed: BTreeMap<usize, String> = BTreeMap::new();
    let mut pending: Vec<usize> = (0..found.len()).filter(|index| found[*index].used.is_some()).collect();
    let mut seen: BTreeSet<usize> = pending.iter().copied().collect();
    while let Some(index) = pending.pop() {
        let by = format!("{}@{}", found[index].name, found[index].version);
        for requirement in &found[index].requires {
            let meets =
                |one: &Found| one.name == requirement.name && requirement.versions.contains(&one.version);
            // As they are resolved: a release before a pre-release.
            let release = |one: &Found| meets(one) && !one.version.is_prerelease();
            let best = found.iter().position(release).or_else(|| found.iter().position(meets));
            let Some(best) = best else { continue };
            if seen.insert(best) {
                needed.insert(best, by.clone());
                pending.push(best);
            }
        }
    }
    needed
}

/// What goes first when room is wanted: the oldest, and what is of unknown age last.
pub(super) fn oldest_first<T>(all: &mut [T], created_at: impl Fn(&T) -> Option<SystemTime>) {
    all.sort_by_key(|one| created_at(one).map_or((true, SystemTime::UNIX_EPOCH), |at| (false, at)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first() {
        let now = SystemTime::UNIX_EPOCH + DAY * 1000;
        let mut all = [("b", Some(5)), ("unknown", None), ("c", Some(4)), ("a", Some(9)), ("d", Some(1))];
        oldest_first(&mut all, |one| one.1.map(|days| now - DAY * days));
        assert_eq!(all.map(|one| one.0), ["a", "b", "c", "d", "unknown"]);
    }

    const DAY: Duration = Duration::from_secs(86_400);

    /// `NAME@VERSION`, its age in days, and words: `used`, `tag=T`, `needs=REQUIREMENT`.
    fn found(all: &[(&str, u32, &str)], now: SystemTime) -> Vec<Found> {
        let parse = |(label, days, words): &(&str, u32, &str)| {
            let (name, version) = label.split_once('@').unwrap();
            let word = |key: &str| {
                words.split("; ").filter_map(|w| w.strip_prefix(key)).map(str::to_owned).collect::<Vec<_>>()
            };
            Found {
                name: name.parse().unwrap(),
                version: version.parse().unwrap(),
                created_at: Some(now - DAY * *days),
                tags: word("tag=").iter().map(|t| t.parse().unwrap()).collect(),
                requires: word("needs=").iter().map(|r| r.parse().unwrap()).collect(),
                used: words.contains("used").then(|| "a container".to_owned()),
            }
        };
        all.iter().map(parse).collect()
    }

    #[test]
    fn only_what_nobody_needs_goes() {
        let now = SystemTime::UNIX_EPOCH + DAY * 1000;
        let all = [
            ("app@3", 1, "needs=lib >=2"),
            ("app@2", 5, "used; needs=lib <2"),
            ("app@1", 9, ""),
            ("base@1", 90, ""),
            ("lib@2.0", 2, ""),
            ("lib@1.5", 30, "needs=base"),
            ("lib@1.0", 40, "tag=stable"),
        ];
        let gone = |keep_last, keep_tagged, days: Option<u32>| {
            let rules = Rules { keep_last, keep_tagged, older_than: days.map(|days| DAY * days) };
            let found = found(&all, now);
            let verdicts = plan(&found, &rules, now);
            let gone = found.iter().zip(verdicts).filter(|(_, v)| *v == Verdict::Remove);
            gone.map(|(f, _)| format!("{}@{}", f.name, f.version)).collect::<Vec<_>>().join(" ")
        };
        // What app@2 requires, and what that requires, is never among them.
        assert_eq!(gone(0, false, None), "app@3 app@1 lib@2.0 lib@1.0");
        assert_eq!(gone(0, true, None), "app@3 app@1 lib@2.0");
        assert_eq!(gone(1, false, None), "app@1 lib@1.0");
        assert_eq!(gone(2, false, None), "app@1 lib@1.0");
        assert_eq!(gone(3, false, None), "");
        assert_eq!(gone(0, false, Some(7)), "app@1 lib@1.0");
        assert_eq!(gone(0, false, Some(400)), "");
    }

    #[test]
    fn reasons_are_told_and_unknown_ages_are_young() {
        let now = SystemTime::UNIX_EPOCH + DAY * 1000;
        let mut all = found(&[("a@2", 1, "used; needs=b"), ("a@1", 9, ""), ("b@1", 9, "")], now);
        all[1].created_at = None;
        let rules = Rules { older_than: Some(DAY), ..Rules::default() };
        let told: Vec<String> = plan(&all, &rules, now)
            .into_iter()
            .map(|verdict| match verdict {
                Verdict::Keep(why) => why,
                Verdict::Remove => "-".to_owned(),
            })
            .collect();
        assert_eq!(told, ["in use: a container", "not old enough", "required by a@2, which is in use"]);
    }
}
