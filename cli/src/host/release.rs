//! Releases of containerd, and what differs between them. Pure.

use std::fmt;
use std::str::FromStr;

/// A release: its first two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    major: u32,
    minor: u32,
}

impl Release {
    /// The oldest that capsules work with.
    pub const OLDEST: Self = Self { major: 1, minor: 7 };

    /// Whether it is containerd 1.7, which has another configuration than 2.x.
    pub fn is_1_7(self) -> bool {
        self.major == 1
    }

    /// Whether it is one of those that capsules are made for: 1.7 and 2.x.
    pub fn is_known(self) -> bool {
        self == Self::OLDEST || self.major == 2
    }

    /// The newest version of a configuration file that it reads (`version/version.go` of 1.7, 2.0, 2.2 and 2.3).
    pub fn config_version(self) -> i64 {
        match (self.major, self.minor) {
            (0 | 1, _) => 2,
            (2, 0..=2) => 3,
            _ => 4,
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Release {
    type Err = &'static str;

    /// From a version such as `v2.1.9`, `2.1.9+unknown`, `1.7.24~ds1` or `2.1`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "write a version of containerd, as 1.7 or 2.1.9";
        let text = text.strip_prefix('v').unwrap_or(text);
        let (major, rest) = text.split_once('.').ok_or(wrong)?;
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number = |digits: &str| digits.parse().map_err(|_| wrong);
        Ok(Self { major: number(major)?, minor: number(&rest[..end])? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_containerd_calls_itself_is_read() {
        for (text, release, version, known) in [
            ("v2.1.9", "2.1", 3, true),
            ("2.1.9+unknown", "2.1", 3, true),
            ("1.7.24~ds1", "1.7", 2, true),
            ("1.6.8", "1.6", 2, false),
            ("2.3.0-rc.1", "2.3", 4, true),
            ("3.0", "3.0", 4, false),
        ] {
            let parsed: Release = text.parse().unwrap();
            assert_eq!((parsed.to_string().as_str(), parsed.config_version()), (release, version), "{text}");
            assert_eq!((parsed.is_known(), parsed.is_1_7()), (known, text.starts_with('1')), "{text}");
        }
        for text in ["", "2", "two.1", "2.x", "v"] {
            assert!(text.parse::<Release>().is_err(), "{text}");
        }
    }
}
