//! Devices, accesses, and the rules of a container's `config.json`. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

/// The two kinds of device nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// `b`.
    Block,
    /// `c`.
    Char,
}

/// A set of accesses, in the kernel's bits (`BPF_DEVCG_ACC_*`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Access(u8);

/// Not accesses.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no set of accesses: give r (read), w (write), m (mknod)")]
pub struct InvalidAccess(String);

impl Access {
    /// None at all.
    pub const NONE: Self = Self(0);
    /// `mknod`.
    pub const MKNOD: Self = Self(1);
    /// Read, write and `mknod`.
    pub const ALL: Self = Self(7);
    const LETTERS: [(char, u8); 3] = [('r', 2), ('w', 4), ('m', 1)];

    /// Takes letters of `rwm` in any order.
    ///
    /// # Errors
    /// Another letter.
    pub fn parse(text: &str) -> Result<Self, InvalidAccess> {
        text.chars().try_fold(Self::NONE, |set, letter| {
            let (_, bit) = Self::LETTERS
                .into_iter()
                .find(|(known, _)| *known == letter)
                .ok_or_else(|| InvalidAccess(text.to_owned()))?;
            Ok(Self(set.0 | bit))
        })
    }

    pub const fn bits(self) -> u8 {
        self.0
    }

    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & Self::ALL.0)
    }

    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub const fn overlaps(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, bit) in Self::LETTERS {
            if self.0 & bit != 0 {
                write!(f, "{letter}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl TryFrom<String> for Access {
    type Error = InvalidAccess;

    fn try_from(text: String) -> Result<Self, InvalidAccess> {
        Self::parse(&text)
    }
}

impl From<Access> for String {
    fn from(access: Access) -> Self {
        access.to_string()
    }
}

/// One device of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            DeviceKind::Block => 'b',
            DeviceKind::Char => 'c',
        };
        write!(f, "{kind} {}:{}", self.major, self.minor)
    }
}

/// What an attachment allows: never more than one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub device: Device,
    pub access: Access,
}

/// One entry of `linux.resources.devices` (OCI runtime specification, config-linux.md). What is not named is every one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub allow: bool,
    pub kind: Option<DeviceKind>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: Access,
}

/// An entry that no runtime would have taken.
#[derive(Debug, Error)]
#[error("linux.resources.devices[{index}] of config.json")]
pub struct InvalidRule {
    /// Which entry.
    pub index: usize,
    #[source]
    source: InvalidEntry,
}

/// What is wrong with an entry.
#[derive(Debug, Error)]
enum InvalidEntry {
    #[error("is no device rule")]
    Form(#[from] serde_json::Error),
    #[error("the type {0:?} is none of a, b and c")]
    Type(String),
    #[error("{0} is no device number")]
    Number(i64),
    #[error(transparent)]
    Access(#[from] InvalidAccess),
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    allow: bool,
    #[serde(rename = "type")]
    kind: Option<String>,
    major: Option<i64>,
    minor: Option<i64>,
    access: Option<String>,
}

/// Reads `linux.resources.devices`, in its order; `null` is an empty list.
///
/// # Errors
/// [`InvalidRule`] for the first entry that is none.
pub fn parse_rules(devices: &Value) -> Result<Vec<Rule>, InvalidRule> {
    let entries = match devices {
        Value::Null => return Ok(Vec::new()),
        Value::Array(entries) => entries.as_slice(),
        other => std::slice::from_ref(other),
    };
    let parse = |(index, entry)| parse_rule(entry).map_err(|source| InvalidRule { index, source });
    entries.iter().enumerate().map(parse).collect()
}

fn parse_rule(entry: &Value) -> Result<Rule, InvalidEntry> {
    let entry = Entry::deserialize(entry)?;
    let kind = match entry.kind.as_deref() {
        None | Some("" | "a") => None,
        Some("b") => Some(DeviceKind::Block),
        Some("c") => Some(DeviceKind::Char),
        Some(other) => return Err(InvalidEntry::Type(other.to_owned())),
    };
    Ok(Rule {
        allow: entry.allow,
        kind,
        major: parse_number(entry.major)?,
        minor: parse_number(entry.minor)?,
        access: Access::parse(entry.access.as_deref().unwrap_or_default())?,
    })
}

/// -1 is how runc writes "every one".
fn parse_number(number: Option<i64>) -> Result<Option<u32>, InvalidEntry> {
    match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number).map(Some).map_err(|_| InvalidEntry::Number(number)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_are_read_as_runtimes_read_them() {
        let rules = parse_rules(&json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "wr"},
            {"allow": true, "type": "b", "major": -1, "access": "m"},
            {"type": "a"},
        ]))
        .unwrap();
        let rule = |allow, kind, major, minor, access| Rule {
            allow,
            kind,
            major,
            minor,
            access: Access::parse(access).unwrap(),
        };
        assert_eq!(
            rules,
            [
                rule(false, None, None, None, "rwm"),
                rule(true, Some(DeviceKind::Char), Some(10), Some(229), "rw"),
                rule(true, Some(DeviceKind::Block), None, None, "m"),
                rule(false, None, None, None, ""),
            ]
        );
        assert_eq!(parse_rules(&Value::Null).unwrap(), []);
        assert_eq!(rules[1].access.to_string(), "rw");
    }

    #[test]
    fn what_is_no_rule_is_named() {
        for (entry, why) in [
            (json!({"type": "p"}), "none of a, b and c"),
            (json!({"type": "c", "major": -2}), "no device number"),
            (json!({"type": "c", "minor": 1_u64 << 32}), "no device number"),
            (json!({"access": "rx"}), "\"rx\" is no set of accesses"),
            (json!({"major": "10"}), "is no device rule"),
            (json!("c 1:3 rwm"), "is no device rule"),
        ] {
            let error = parse_rules(&json!([{"access": "r"}, entry])).unwrap_err();
            assert_eq!(error.to_string(), "linux.resources.devices[1] of config.json");
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains(why), "{source}");
        }
        assert!(parse_rules(&json!({"type": 7})).is_err());
    }

    /// JSON of any form, with the fields of a rule in it.
    fn anything() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-2_i64..4).prop_map(Value::from),
            any::<f64>().prop_map(|number| json!(number)),
            "[abcrwm]{0,3}".prop_map(Value::from),
            "\\PC{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 6, |inner| {
            let key = prop_oneof![Just("allow"), Just("type"), Just("major"), Just("minor"), Just("access")];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((key, inner), 0..6)
                    .prop_map(|fields| fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_value_makes_the_parser_panic(value in anything()) {
            if let Ok(rules) = parse_rules(&value) {
                prop_assert_eq!(rules.len(), value.as_array().map_or(usize::from(!value.is_null()), Vec::len));
            }
        }

        #[test]
        fn accesses_are_what_they_are_written_as(bits in 0_u8..8) {
            let access = Access::from_bits(bits);
            prop_assert_eq!(Access::parse(&access.to_string()).unwrap(), access);
        }
    }
}
