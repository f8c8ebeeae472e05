//! Lock files: the versions that a plan chose, so that the same are attached later and elsewhere. Pure.
//!
//! TOML, to be read and kept beside what is deployed:
//!
//! ```toml
//! version = 1
//!
//! [[capsule]]
//! name = "lib"
//! version = "1.5"
//! digest = "sha256:..."
//! ```

use capsule_proto::capsule::v1;
use serde::{Deserialize, Serialize};

use crate::declaration::{Mistake, parse_toml};

/// The form of the file.
const FORM: u32 = 1;

/// What a lock file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Form of the file: 1.
    version: u32,
    /// What is required comes before what requires it.
    #[serde(rename = "capsule", default)]
    capsules: Vec<Locked>,
}

/// One version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Locked {
    name: String,
    version: String,
    digest: String,
}

impl Lock {
    /// The versions of a plan.
    pub fn of(planned: &[v1::Planned]) -> Self {
        let lock = |p: &v1::Planned| Locked {
            name: p.capsule.clone(),
            version: p.version.clone(),
            digest: p.digest.clone(),
        };
        Self { version: FORM, capsules: planned.iter().map(lock).collect() }
    }

    /// # Errors
    /// [`Mistake`]: no TOML, another form, nothing in it.
    pub fn parse(text: &[u8]) -> Result<Self, Mistake> {
        let lock: Self = parse_toml(text)?;
        let wrong = |what: String| Err(Mistake { line: 1, what });
        if lock.version != FORM {
            return wrong(format!("form {} is not known: this capsulectl reads {FORM}", lock.version));
        }
        if lock.capsules.is_empty() {
            return wrong("it locks no capsule".to_owned());
        }
        Ok(lock)
    }

    /// What to ask for, so that exactly these are attached.
    pub fn specs(self) -> Vec<v1::AttachmentSpec> {
        let spec = |locked: Locked| v1::AttachmentSpec {
            capsule: locked.name,
            version: locked.version,
            digest: locked.digest,
            unless_present: true,
            ..v1::AttachmentSpec::default()
        };
        self.capsules.into_iter().map(spec).collect()
    }

    /// The file's text.
    ///
    /// # Errors
    /// None that strings and numbers can have.
    pub fn text(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_locked_reads_back() {
        let planned = |capsule: &str| v1::Planned {
            capsule: capsule.into(),
            version: "1".into(),
            digest: "sha256:00".into(),
            ..v1::Planned::default()
        };
        let lock = Lock::of(&[planned("lib"), planned("app")]);
        let text = lock.text().expect("TOML");
        assert!(text.starts_with("version = 1\n"), "{text}");
        assert_eq!(Lock::parse(text.as_bytes()), Ok(lock.clone()));
        let specs = lock.specs();
        assert_eq!((specs[1].capsule.as_str(), specs[1].digest.as_str()), ("app", "sha256:00"));
        assert!(specs.iter().all(|spec| spec.unless_present));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, line, word) in [
            ("version = 2", 1, "form 2"),
            ("version = 1", 1, "no capsule"),
            ("version = 1\nunknown = 2\n", 2, "unknown"),
            ("version = 1\n[[capsule]]\nname = \"a\"\n", 2, "version"),
            ("nothing", 1, "="),
        ] {
            let mistake = Lock::parse(text.as_bytes()).expect_err(text);
            assert!(mistake.line == line && mistake.what.contains(word), "{text:?}: {mistake:?}");
        }
    }
}
