//! `capsule.toml`: what a version is called, what it needs and how it is attached, written beside its tree.
//!
//! Pure: text in, values out. Names, versions and requirements are judged by capsuled alone. docs/capsule-toml.md
//! documents every field.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Visitor};

use crate::args::ModeArg;

/// What the file says; nothing of it is obligatory here.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declaration {
    /// The capsule.
    pub name: Option<Filled>,
    /// The version.
    pub version: Option<Filled>,
    /// Where attach puts it unless told otherwise.
    pub target: Option<Filled>,
    /// How attach mounts it unless told otherwise.
    pub mode: Option<ModeArg>,
    /// Other capsules that it needs: `NAME`, or `NAME RANGE`.
    #[serde(default)]
    pub requires: Vec<String>,
    /// Variables for processes that use it.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// What an attachment adds to the limits of its container.
    #[serde(default)]
    pub resources: BTreeMap<String, Amount>,
    /// What limits of its container are not above while it is attached.
    #[serde(default)]
    pub caps: BTreeMap<String, Amount>,
    /// Devices, by their CDI names.
    #[serde(default)]
    pub devices: Vec<String>,
    /// System calls that it denies.
    #[serde(default)]
    pub seccomp: Seccomp,
    /// Annotations of the image manifest.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// What processes are denied that are started while it is attached. capsuled judges the names.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seccomp {
    /// A named list of system calls.
    pub level: Option<Filled>,
    /// And these.
    #[serde(default)]
    pub deny: Vec<String>,
}

/// A text that is not empty.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Filled(pub String);

impl TryFrom<String> for Filled {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.is_empty() { Err("is empty: write it, or leave the field out") } else { Ok(Self(text)) }
    }
}

/// A string, or a whole number as a string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Amount(pub String);

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AmountVisitor)
    }
}

struct AmountVisitor;

impl Visitor<'_> for AmountVisitor {
    type Value = Amount;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a whole number")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Amount, E> {
        Ok(Amount(text.to_owned()))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Amount, E> {
        Ok(Amount(number.to_string()))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Amount, E> {
        Ok(Amount(number.to_string()))
    }
}

/// A mistake of the file.
#[derive(Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Counted from 1.
    pub line: usize,
    /// One line.
    pub what: String,
}

/// Parses the file.
///
/// # Errors
/// The first [`Mistake`]: what is no TOML, a field that does not exist, a value of another type.
pub fn parse(text: &[u8]) -> Result<Declaration, Mistake> {
    parse_toml(text)
}

/// Parses any file of ours.
///
/// # Errors
/// As [`parse`].
pub fn parse_toml<T: DeserializeOwned>(text: &[u8]) -> Result<T, Mistake> {
    let line_at = |at: usize| 1 + text[..at.min(text.len())].iter().filter(|b| **b == b'\n').count();
    let checked = std::str::from_utf8(text)
        .map_err(|e| Mistake { line: line_at(e.valid_up_to()), what: "it is not UTF-8".to_owned() })?;
    toml::from_str(checked).map_err(|e| Mistake {
        line: line_at(e.span().unwrap_or_default().start),
        what: e.message().lines().collect::<Vec<_>>().join(": "),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: &str = include_str!("../../docs/capsule-toml.md");

    /// The fields, as the page's table has them.
    const FIELDS: [&str; 11] = [
        "name",
        "version",
        "target",
        "mode",
        "requires",
        "devices",
        "[environment]",
        "[resources]",
        "[caps]",
        "[seccomp]",
        "[annotations]",
    ];

    /// The page's example, in which every field is set.
    fn example() -> &'static str {
        let (_, rest) = PAGE.split_once("```toml\n").expect("an example");
        rest.split_once("```").expect("its end").0
    }

    #[test]
    fn every_field_is_read() {
        let read = parse(example().as_bytes()).expect("the example of docs/capsule-toml.md");
        let filled = |text: &str| Some(Filled(text.to_owned()));
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let want = Declaration {
            name: filled("tensor-tools"),
            version: filled("2.3.0"),
            target: filled("/opt/tensor-tools"),
            mode: Some(ModeArg::Ro),
            requires: vec!["cuda-runtime >=12.4, <13".to_owned(), "ca-bundle".to_owned()],
            devices: vec!["nvidia.com/gpu=all".to_owned()],
            environment: [pair("TENSOR_HOME", "/opt/tensor-tools")].into(),
            resources: [
                ("memory.max".to_owned(), Amount("512M".to_owned())),
                ("pids.max".to_owned(), Amount("64".to_owned())),
            ]
            .into(),
            caps: [("cpu.max".to_owned(), Amount("2cpus".to_owned()))].into(),
            seccomp: Seccomp { level: filled("baseline"), deny: vec!["ptrace".to_owned()] },
            annotations: [pair("org.opencontainers.image.source", "https://example.com/tensor-tools")].into(),
        };
        assert_eq!(read, want);
    }

    #[test]
    fn every_field_is_documented() {
        let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
        let rows: Vec<_> = rows.map(|(field, _)| field).collect();
        assert_eq!(rows, FIELDS);
        // serde names all fields when it meets one that it does not know.
        let unknown = parse(b"x = 1").expect_err("no field");
        for field in FIELDS {
            let field = format!("`{}`", field.trim_matches(['[', ']']));
            assert!(unknown.what.contains(&field), "{field}: {}", unknown.what);
        }
        assert_eq!(unknown.what.matches('`').count(), 2 * (1 + FIELDS.len()), "{}", unknown.what);
    }

    #[test]
    fn nothing_is_obligatory() {
        assert_eq!(parse(b"# to come\n"), Ok(Declaration::default()));
    }

    #[test]
    fn amounts_are_strings_or_whole_numbers() {
        for (value, want) in [
            ("1", Some("1")),
            ("-1", Some("-1")),
            ("0x10", Some("16")),
            ("1_000", Some("1000")),
            ("9223372036854775807", Some("9223372036854775807")),
            ("'max'", Some("max")),
            ("''", Some("")),
            ("1.5", None),
            ("true", None),
            ("[1]", None),
            ("2026-01-01", None),
        ] {
            let read = parse(format!("[resources]\n'memory.max' = {value}").as_bytes());
            let got = read.as_ref().ok().map(|d| d.resources["memory.max"].0.as_str());
            assert_eq!(got, want, "{value}: {read:?}");
        }
    }

    #[test]
    fn mistakes_have_their_line() {
        for (text, line, what) in [
            (&b"name = 'a'\nversoin = '1'"[..], 2, "unknown field `versoin`, expected one of `name`"),
            (b"\n[limits]\n", 2, "unknown field `limits`"),
            (b"version = 1.0", 1, "floating point `1.0`, expected a string"),
            (b"name = ''", 1, "is empty"),
            (b"\nmode = 'rw'", 2, "unknown variant `rw`, expected `ro` or `union`"),
            (b"requires = 'a'", 1, "expected a sequence"),
            (b"requires = [\n'a',\n1]", 3, "expected a string"),
            (b"[environment]\nA = 'a'\nB = 1", 3, "expected a string"),
            (b"[resources]\na = 1.5", 2, "expected a string or a whole number"),
            (b"devices = { a = 1 }", 1, "expected a sequence"),
            (b"name = 'a'\nname = 'b'", 2, "duplicate key"),
            (b"name = a", 1, "string"),
            (b"name = 'a'\n\xff", 2, "not UTF-8"),
        ] {
            let mistake = parse(text).expect_err(what);
            assert_eq!(mistake.line, line, "{what}: {mistake:?}");
            assert!(mistake.what.contains(what), "{what}: {mistake:?}");
            assert_eq!(mistake.what.lines().count(), 1, "{mistake:?}");
        }
    }

    const PIECES: &[&[u8]] = &[
        b"name = 'a'\n",
        b"[environment]\n",
        b"requires = [\n",
        b"\xff",
        b"\"\"\"",
        b"\\\r\n",
        "é\n".as_bytes(),
        b"x = \"a\nb\"\n",
    ];

    proptest! {
        #[test]
        fn whatever_the_bytes_are(text in proptest::collection::vec(proptest::sample::select(PIECES), 0..6)) {
            let text = text.concat();
            if let Err(mistake) = parse(&text) {
                prop_assert!((1..=text.split(|b| *b == b'\n').count()).contains(&mistake.line), "{:?}", mistake);
                prop_assert!(mistake.what.lines().count() == 1, "{:?}", mistake);
            }
        }
    }
}
