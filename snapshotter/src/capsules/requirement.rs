//! What a version requires of another capsule. Pure: no I/O.
//!
//! | text | versions of `cuda` |
//! | --- | --- |
//! | `cuda`, `cuda *` | any |
//! | `cuda =12.4` | that one |
//! | `cuda >=12.4, <13` | all for which both hold |
//! | `cuda ^1.2` | from 1.2 on, below 2 (`^0.2`: below 0.3) |
//! | `cuda ~1.2` | from 1.2 on, below 1.3 (`~1`: below 2) |
//!
//! Versions are ordered as [`Version`] says. What is below 13 is below its pre-releases too, which sort before it.

use std::{fmt, ops::Bound, str::FromStr};

use version_ranges::Ranges;

use super::model::{CapsuleName, ModelError, Version};

/// A requirement. Its text is what the publisher wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    text: String,
    /// The capsule that is required.
    pub name: CapsuleName,
    /// Its versions that will do.
    pub versions: Ranges<Version>,
}

impl Requirement {
    /// Whether a text that stands where a version may is a range of them: the name of none begins so.
    pub fn is_range(text: &str) -> bool {
        let text = text.trim_start();
        text.starts_with('*') || OPERATORS.iter().any(|operator| text.starts_with(operator))
    }
}

impl FromStr for Requirement {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let text = text.trim();
        let wrong = |reason: &dyn ToString| ModelError::Requirement(text.to_owned(), reason.to_string());
        let of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let end = text.find(|c| !of_name(c)).unwrap_or(text.len());
        let (name, range) = (&text[..end], text[end..].trim());
        let name = name.parse().map_err(|e| wrong(&e))?;
        let mut versions = Ranges::full();
        for comparison in range.split(',').map(str::trim) {
            match comparison {
                "" | "*" if range == comparison => {}
                _ => versions = versions.intersection(&parse_comparison(comparison).map_err(|e| wrong(&e))?),
            }
        }
        if versions.is_empty() {
            return Err(wrong(&"no version can satisfy it"));
        }
        Ok(Self { text: text.to_owned(), name, versions })
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

const OPERATORS: [&str; 7] = [">=", "<=", ">", "<", "=", "^", "~"];

fn parse_comparison(text: &str) -> Result<Ranges<Version>, String> {
    let operator = OPERATORS.into_iter().find(|operator| text.starts_with(operator));
    let operator = operator
        .ok_or_else(|| format!("{text:?} is no comparison: begin it with one of {}", OPERATORS.join(" ")))?;
    let version: Version = text[operator.len()..].trim().parse().map_err(|e: ModelError| e.to_string())?;
    Ok(match operator {
        ">=" => Ranges::higher_than(version),
        "<=" => Ranges::lower_than(version),
        ">" => Ranges::strictly_higher_than(version),
        "<" => Ranges::strictly_lower_than(lowest_of(version)?),
        "^" => Ranges::between(version.clone(), lowest_of(next(&version, first_not_zero)?)?),
        "~" => {
            Ranges::between(version.clone(), lowest_of(next(&version, |fields| fields.len().min(2) - 1)?)?)
        }
        _ => Ranges::singleton(version),
    })
}

/// What sorts before every pre-release of a release.
const LOWEST: &str = "-0";

fn lowest_of(version: Version) -> Result<Version, String> {
    if version.is_prerelease() {
        return Ok(version);
    }
    format!("{version}{LOWEST}").parse().map_err(|e: ModelError| e.to_string())
}

fn first_not_zero(fields: &[u64]) -> usize {
    fields.iter().position(|field| *field > 0).unwrap_or(fields.len() - 1)
}

/// The release after all that have the same fields up to and with the one that `last` chooses.
fn next(version: &Version, last: impl Fn(&[u64]) -> usize) -> Result<Version, String> {
    let release = version.as_str().split('-').next().unwrap_or_default();
    let fields = release.split('.').map(str::parse).collect::<Result<Vec<u64>, _>>();
    let fields = fields.map_err(|_| format!("{version} has fields that are no numbers: write >= and <"))?;
    let last = last(&fields);
    let mut upper: Vec<String> = fields[..last].iter().map(u64::to_string).collect();
    upper.push(fields[last].saturating_add(1).to_string());
    upper.join(".").parse().map_err(|e: ModelError| e.to_string())
}

/// A set of versions as a person writes it; nothing for all of them.
pub fn show(versions: &Ranges<Version>) -> String {
    let below = |version: &Version| version.as_str().trim_end_matches(LOWEST).to_owned();
    let segment = |(low, high): (&Bound<Version>, &Bound<Version>)| match (low, high) {
        (Bound::Included(a), Bound::Included(b)) if a == b => format!("={a}"),
        (low, high) => {
            let low = match low {
                Bound::Included(v) => Some(format!(">={v}")),
                Bound::Excluded(v) => Some(format!(">{v}")),
                Bound::Unbounded => None,
            };
            let high = match high {
                Bound::Included(v) => Some(format!("<={v}")),
                Bound::Excluded(v) => Some(format!("<{}", below(v))),
                Bound::Unbounded => None,
            };
            low.into_iter().chain(high).collect::<Vec<_>>().join(", ")
        }
    };
    versions.iter().map(segment).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Requirement, ModelError> {
        text.parse()
    }

    fn satisfied(text: &str, version: &str) -> bool {
        parse(text).unwrap().versions.contains(&version.parse::<Version>().unwrap())
    }

    #[test]
    fn versions_satisfy_comparisons() {
        for (text, yes, no) in [
            ("a", "0.1 7 1.0-rc.1", ""),
            ("a *", "0.1 7", ""),
            ("a =1.2", "1.2", "1.2.0 1.3"),
            ("a>=12.4,<13", "12.4 12.10 12.9.9", "12.3 13 13.0 13-rc.1 13.1-rc"),
            ("a >=12.4, <13", "12.4", "12.4-rc.1"),
            ("a > 1, <= 2", "1.1 2 2-rc.1", "1 2.0"),
            ("a <2-rc.2", "1 2-rc.1", "2-rc.2 2"),
            ("a ^1.2", "1.2 1.10", "1.1 2 2-alpha"),
            ("a ^0.2.1", "0.2.1 0.2.9", "0.3 0.2"),
            ("a ^0", "0 0.9", "1"),
            ("a ~1.2", "1.2 1.2.9", "1.3 1.3-rc"),
            ("a ~1.2.3", "1.2.3 1.2.10", "1.3"),
            ("a ~1", "1 1.9", "2"),
        ] {
            for version in yes.split_whitespace() {
                assert!(satisfied(text, version), "{version} satisfies {text}");
            }
            for version in no.split_whitespace() {
                assert!(!satisfied(text, version), "{version} does not satisfy {text}");
            }
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, reason) in [
            ("", "name"),
            ("A >=1", "name"),
            ("a 1.2", "begin it with one of"),
            ("a >=1,", "begin it with one of"),
            ("a >=", "version"),
            ("a >=1/2", "version"),
            ("a ^1.x", "no numbers"),
            ("a >=2, <1", "no version can satisfy"),
            ("a, b", "begin it with one of"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(&format!("{text:?}")), "{text}: {error}");
        }
    }

    #[test]
    fn what_was_written_is_what_is_shown() {
        for (text, shown) in [
            ("a", ""),
            ("a =1.2", "=1.2"),
            ("a >=12.4,<13", ">=12.4, <13"),
            ("a ^1.2", ">=1.2, <2"),
            ("a >1, <=2", ">1, <=2"),
        ] {
            let requirement = parse(text).unwrap();
            assert_eq!(requirement.to_string(), text);
            assert_eq!(show(&requirement.versions), shown, "{text}");
        }
    }
}
