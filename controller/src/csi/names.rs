//! What volumes, snapshots and pages are called. Pure.
//!
//! A volume's id is capsuled's: `[STACK/]NAME`. A snapshot's id is the version that it is: `CAPSULE@VERSION`. Which volume it was taken of
//! is a tag of that version, for capsuled remembers nothing else of it.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// Longest id of a volume and longest version, in bytes: capsuled's.
const MAX: usize = 128;
/// How much of a digest tells two names apart, in hexadecimal digits.
const DIGITS: usize = 12;
/// Stands for `/` in a tag: it has a letter that no id has.
const SLASH: &str = "_S_";
/// What versions made from names begin with. By the `-` they are pre-releases, which nobody gets who asks for the newest.
const MADE: &str = "snapshot-";

/// A volume's id, of capsuled's form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(String);

impl VolumeId {
    /// What an id has to look like, for whoever wrote another.
    pub const FORM: &str = "[STACK/]NAME, each of lower-case letters, digits, '.', '_' and '-', with a letter or a digit \
                            first and last; 128 bytes at most";

    /// From text that should be one.
    pub fn parse(text: &str) -> Option<Self> {
        let (stack, name) = match text.split_once('/') {
            Some((stack, name)) => (Some(stack), name),
            None => (None, text),
        };
        let is_good = text.len() <= MAX && stack.is_none_or(is_part) && is_part(name);
        is_good.then(|| Self(text.to_owned()))
    }

    /// Of the volume that is asked for by this name, in a stack if any. A name that is of the form is kept; of two others, no two give
    /// the same. None when the stack is none.
    pub fn of_name(name: &str, stack: Option<&str>) -> Option<Self> {
        let Some(stack) = stack else { return Self::parse(&made_valid(name, MAX)) };
        let room = MAX.checked_sub(stack.len() + 1).filter(|room| *room > DIGITS)?;
        Self::parse(&format!("{stack}/{}", made_valid(name, room)))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its last part.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_edge(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

fn is_part(text: &str) -> bool {
    text.starts_with(is_edge)
        && text.ends_with(is_edge)
        && text.chars().all(|c| is_edge(c) || matches!(c, '.' | '_' | '-'))
}

/// Hexadecimal digits that tell texts apart.
fn digits(text: &str) -> String {
    let sum = Sha256::digest(text.as_bytes());
    sum.iter().map(|byte| format!("{byte:02x}")).collect::<String>().chars().take(DIGITS).collect()
}

/// A name of the form, of so many bytes at most: the text itself where it is one, else what can be kept of it and digits that tell it
/// apart.
fn made_valid(text: &str, max: usize) -> String {
    if is_part(text) && text.len() <= max {
        return text.to_owned();
    }
    let other = |c: char| {
        let c = c.to_ascii_lowercase();
        if is_edge(c) || matches!(c, '.' | '_' | '-') { c } else { '-' }
    };
    let room = max.saturating_sub(DIGITS + 1);
    let kept: String = text.chars().map(other).skip_while(|c| !is_edge(*c)).take(room).collect();
    let kept = kept.trim_end_matches(|c| !is_edge(c));
    if kept.is_empty() { digits(text) } else { format!("{kept}-{}", digits(text)) }
}

/// The version that a snapshot of this name is, unless it is told another: a pre-release.
pub fn version_of(snapshot: &str) -> String {
    if snapshot.starts_with(MADE) && made_valid(snapshot, MAX) == snapshot {
        return snapshot.to_owned();
    }
    format!("{MADE}{}", made_valid(snapshot, MAX - MADE.len()))
}

/// A snapshot's id: a capsule's version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotId {
    /// The capsule.
    pub capsule: String,
    /// Its version, and no tag of it.
    pub version: String,
}

impl SnapshotId {
    /// From text that should be one.
    pub fn parse(text: &str) -> Option<Self> {
        let (capsule, version) = text.split_once('@')?;
        let is_good = !capsule.is_empty() && !version.is_empty() && !version.contains('@');
        is_good.then(|| Self { capsule: capsule.to_owned(), version: version.to_owned() })
    }

    /// The tag that says that it was taken of this volume. No other snapshot has it. None where the id is too long for one.
    pub fn tag(&self, of: &VolumeId) -> Option<String> {
        let tag = format!("csi-{}-{}", digits(&self.version), of.as_str().replace('/', SLASH));
        (tag.len() <= MAX).then_some(tag)
    }

    /// Which volume it was taken of, by the tags that its version has; none for a version that is no snapshot of a volume's.
    pub fn source(&self, tags: &[String]) -> Option<VolumeId> {
        let start = format!("csi-{}-", digits(&self.version));
        let ids = tags.iter().filter_map(|tag| tag.strip_prefix(&start));
        ids.filter_map(|id| VolumeId::parse(&id.replace(SLASH, "/"))).next()
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.capsule, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_of_capsuleds_form() {
        let long = "a".repeat(129);
        for good in ["a", "pvc-1", "shop/pvc-1", "a.b_c-d", "0/1"] {
            assert_eq!(VolumeId::parse(good).map(|id| id.0), Some(good.to_owned()));
        }
        for bad in ["", "/", "a/", "/a", "a/b/c", "A", "-a", "a-", "a b", "ä", "../a", &long] {
            assert_eq!(VolumeId::parse(bad), None, "{bad}");
        }
        assert_eq!(VolumeId::parse("shop/pvc-1").unwrap().name(), "pvc-1");
        assert_eq!(VolumeId::parse("pvc-1").unwrap().name(), "pvc-1");
    }

    #[test]
    fn any_name_gives_an_id_and_no_two_the_same() {
        let names = [
            "pvc-1",
            "PVC-1",
            "pvc_1",
            "a/b",
            "a-b",
            "-",
            "ä",
            "ö",
            "..",
            &"x".repeat(128),
            &"y".repeat(128),
        ];
        for stack in [None, Some("shop"), Some(&*"n".repeat(63))] {
            let ids: std::collections::BTreeSet<_> =
                names.iter().map(|name| VolumeId::of_name(name, stack).unwrap()).collect();
            assert_eq!(ids.len(), names.len(), "{ids:?}");
        }
        assert_eq!(VolumeId::of_name("pvc-1", None).unwrap().as_str(), "pvc-1");
        assert_eq!(VolumeId::of_name("pvc-1", Some("shop")).unwrap().as_str(), "shop/pvc-1");
        assert_eq!(VolumeId::of_name(&"x".repeat(128), None).unwrap().as_str(), "x".repeat(128));
        assert_eq!(VolumeId::of_name("a", Some("no stack")), None);
        assert_eq!(VolumeId::of_name("a", Some(&"n".repeat(120))), None);
    }

    #[test]
    fn a_snapshots_version_is_a_pre_release() {
        let id = "snapshot-7f1d7c6e-1111-2222-3333-444455556666";
        assert_eq!(version_of(id), id);
        for name in ["nightly", "2026.1", "Upper Case", &"z".repeat(128), "snapshot-", "snapshot-A"] {
            let version = version_of(name);
            assert!(version.starts_with(MADE) && version.len() <= MAX, "{version}");
            assert!(is_part(&version), "{version}");
        }
        assert_ne!(version_of("a b"), version_of("a/b"));
    }

    #[test]
    fn a_snapshot_says_what_it_was_taken_of() {
        let id = SnapshotId::parse("tzdata@snapshot-1").unwrap();
        assert_eq!(id.to_string(), "tzdata@snapshot-1");
        for volume in ["pvc-1", "shop/pvc-1", "s_s/p_s"] {
            let volume = VolumeId::parse(volume).unwrap();
            let tag = id.tag(&volume).unwrap();
            assert_eq!(id.source(&["stable".to_owned(), tag.clone()]), Some(volume.clone()));
            // The next one of the same volume leaves it its own.
            let next = SnapshotId { version: "snapshot-2".to_owned(), ..id.clone() };
            assert_ne!(next.tag(&volume), Some(tag.clone()));
            assert_eq!(next.source(&[tag]), None);
        }
        assert_eq!(id.source(&["stable".to_owned()]), None);
        assert_eq!(id.tag(&VolumeId::parse(&"a".repeat(128)).unwrap()), None);
        for bad in ["", "tzdata", "@1", "tzdata@", "a@b@c"] {
            assert_eq!(SnapshotId::parse(bad), None, "{bad}");
        }
    }
}
