//! What a version says of itself beside its tree: annotations of its manifest. Pure: no I/O.
//!
//! | annotation, after `resourcecapsules.io/` | value |
//! | --- | --- |
//! | `requires` | JSON list of requirements, in the publisher's order |
//! | `environment` | JSON object of variables |
//! | `resources` | JSON object: what an attachment adds to limits of its container |
//! | `caps` | JSON object: what limits of its container are not above while it is attached |
//! | `devices` | JSON list of CDI names |
//! | `seccomp` | JSON object: `level`, and `deny`, a list of system calls |
//!
//! One that says nothing of a kind has no annotation of it, so that its digest is what it always was.

use std::collections::BTreeMap;

use serde::{Serialize, de::DeserializeOwned};

use super::{
    model::{CapsuleName, ModelError},
    requirement::Requirement,
    seccomp::{InvalidDenial, Seccomp},
};
use crate::resources::{InvalidAmount, Wanted};

const REQUIRES: &str = "resourcecapsules.io/requires";
const ENVIRONMENT: &str = "resourcecapsules.io/environment";
const RESOURCES: &str = "resourcecapsules.io/resources";
const CAPS: &str = "resourcecapsules.io/caps";
const DEVICES: &str = "resourcecapsules.io/devices";
const SECCOMP: &str = "resourcecapsules.io/seccomp";

/// See the table above.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Declared {
    /// Other capsules.
    pub requires: Vec<Requirement>,
    /// Variables for processes that use it.
    pub environment: BTreeMap<String, String>,
    /// What an attachment adds to limits, by the kernel's names, as it was written.
    pub resources: BTreeMap<String, String>,
    /// What limits are not above.
    pub caps: BTreeMap<String, String>,
    /// By their CDI names.
    pub devices: Vec<String>,
    /// System calls that are denied.
    pub seccomp: Seccomp,
}

impl Declared {
    /// Judges what a publisher sent.
    ///
    /// # Errors
    /// [`ModelError`] that names what is wrong.
    pub fn parse(
        own: &CapsuleName,
        requires: &[String],
        environment: BTreeMap<String, String>,
        (resources, caps): (BTreeMap<String, String>, BTreeMap<String, String>),
        devices: Vec<String>,
        (level, deny): (&str, Vec<String>),
    ) -> Result<Self, ModelError> {
        let requires: Vec<Requirement> = requires.iter().map(|r| r.parse()).collect::<Result<_, _>>()?;
        let wrong = |what: &'static str, which: &str, reason: &'static str| {
            Err(ModelError::Declared { what, which: which.to_owned(), reason })
        };
        for (index, requirement) in requires.iter().enumerate() {
            if requirement.name == *own {
                return wrong("requirement", &requirement.to_string(), "a capsule cannot require itself");
            }
            if requires[..index].iter().any(|other| other.name == requirement.name) {
                return wrong(
                    "requirement",
                    &requirement.to_string(),
                    "write all of one capsule's comparisons in one",
                );
            }
        }
        if let Some(name) = environment.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return wrong("variable", name, "a name is not empty and holds no '='");
        }
        if let Err(InvalidAmount { file, value, reason }) = Wanted::parse(&resources, &caps) {
            return wrong("resource", &format!("{file} = {value}"), reason);
        }
        if let Some(device) = devices.iter().find(|device| !is_cdi_name(device)) {
            return wrong("device", device, "write VENDOR/CLASS=NAME, as CDI names devices");
        }
        let seccomp = match Seccomp::parse(level, deny) {
            Ok(seccomp) => seccomp,
            Err(InvalidDenial { which, reason }) => return wrong("denial of", &which, reason),
        };
        Ok(Self { requires, environment, resources, caps, devices, seccomp })
    }

    /// As annotations have it.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let requires: Vec<String> = self.requires.iter().map(ToString::to_string).collect();
        let all = [
            (REQUIRES, text(&requires, requires.is_empty())),
            (ENVIRONMENT, text(&self.environment, self.environment.is_empty())),
            (RESOURCES, text(&self.resources, self.resources.is_empty())),
            (CAPS, text(&self.caps, self.caps.is_empty())),
            (DEVICES, text(&self.devices, self.devices.is_empty())),
            (SECCOMP, text(&self.seccomp, self.seccomp.is_empty())),
        ];
        all.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?))).collect()
    }

    /// What an image's annotations say: anybody may have written them.
    ///
    /// # Errors
    /// Why they cannot be used, as text.
    pub fn of_image(annotations: &BTreeMap<String, String>) -> Result<Self, String> {
        let requires: Vec<String> = value(annotations, REQUIRES)?;
        let requires = requires.iter().map(|r| r.parse()).collect::<Result<_, ModelError>>();
        // One of a later release may deny what is not known here: it is not attached with less than it says.
        let seccomp: Seccomp = value(annotations, SECCOMP)?;
        let cannot = |e: InvalidDenial| format!("annotation {SECCOMP}: {:?}: {}", e.which, e.reason);
        Ok(Self {
            seccomp: seccomp.checked().map_err(cannot)?,
            requires: requires.map_err(|e| e.to_string())?,
            environment: value(annotations, ENVIRONMENT)?,
            resources: value(annotations, RESOURCES)?,
            caps: value(annotations, CAPS)?,
            devices: value(annotations, DEVICES)?,
        })
    }
}

/// Container Device Interface, `SPEC.md`, "Kind" and "Device name".
fn is_cdi_name(text: &str) -> bool {
    let word = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':'))
    };
    text.split_once('=')
        .and_then(|(kind, name)| Some((kind.split_once('/')?, name)))
        .is_some_and(|((vendor, class), name)| word(vendor) && word(class) && word(name))
}

/// Nothing for what is empty, and for what no value of these types is.
fn text(value: &impl Serialize, empty: bool) -> Option<String> {
    if empty { None } else { serde_json::to_string(value).ok() }
}

fn value<T: DeserializeOwned + Default>(
    annotations: &BTreeMap<String, String>,
    name: &str,
) -> Result<T, String> {
    let Some(text) = annotations.get(name) else { return Ok(T::default()) };
    serde_json::from_str(text).map_err(|e| format!("annotation {name} cannot be read: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn parse(
        requires: &[&str],
        environment: &[(&str, &str)],
        resources: &[(&str, &str)],
        devices: &[&str],
    ) -> Result<Declared, ModelError> {
        let owned = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let own = "app".parse().unwrap();
        Declared::parse(
            &own,
            &owned(requires),
            pairs(environment),
            (pairs(resources), pairs(resources)),
            owned(devices),
            (if devices.is_empty() { "" } else { "restricted" }, owned(&["socket"][..devices.len().min(1)])),
        )
    }

    #[test]
    fn what_is_declared_reads_back() {
        let all = parse(
            &["cuda >=12.4, <13", "libc"],
            &[("A", "1=2")],
            &[("memory.max", "64M"), ("hugetlb.2MB.max", "4M")],
            &["nvidia.com/gpu=0", "vendor.com/net=a:b"],
        )
        .unwrap();
        let annotations = all.annotations();
        assert_eq!(annotations[REQUIRES], r#"["cuda >=12.4, <13","libc"]"#);
        assert_eq!(annotations[SECCOMP], r#"{"level":"restricted","deny":["socket"]}"#);
        assert_eq!(Declared::of_image(&annotations), Ok(all));
        assert_eq!(parse(&[], &[], &[], &[]).unwrap().annotations(), BTreeMap::new());
        assert_eq!(Declared::of_image(&BTreeMap::new()), Ok(Declared::default()));
    }

    #[test]
    fn mistakes_are_named() {
        for (declared, reason) in [
            (parse(&["app >1"], &[], &[], &[]), "cannot require itself"),
            (parse(&["a >1", "a <2"], &[], &[], &[]), "in one"),
            (parse(&["a 1"], &[], &[], &[]), "comparison"),
            (parse(&[], &[("A=B", "")], &[], &[]), "\"A=B\""),
            (parse(&[], &[], &[("memory", "1")], &[]), "memory.max"),
            (parse(&[], &[], &[("hugetlb..max", "1")], &[]), "hugetlb.SIZE.max"),
            (parse(&[], &[], &[("pids.max", " ")], &[]), "above 0"),
            (parse(&[], &[], &[], &["gpu0"]), "VENDOR/CLASS=NAME"),
            (parse(&[], &[], &[], &["a/b="]), "VENDOR/CLASS=NAME"),
        ] {
            let error = declared.unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn annotations_of_others_are_judged() {
        for (name, text, reason) in [
            (REQUIRES, "cuda", "cannot be read"),
            (REQUIRES, r#"["cuda 12"]"#, "comparison"),
            (ENVIRONMENT, "[]", "cannot be read"),
            (SECCOMP, r#"{"level":"strictest"}"#, "cannot be read"),
            (SECCOMP, r#"{"deny":["mounts"]}"#, "no system call"),
            (SECCOMP, r#"{"allow":["mount"]}"#, "cannot be read"),
        ] {
            let error = Declared::of_image(&pairs(&[(name, text)])).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
