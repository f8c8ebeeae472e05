//! What a StorageClass says of volumes, and a VolumeAttributesClass of their version. Pure.

use std::collections::BTreeMap;

use super::{DRIVER, slim::Modifier};
use crate::api::{VolumeMode, VolumeOwner};

/// Keys that Kubernetes' own programs put there.
const OTHERS: &str = "csi.storage.k8s.io/";
/// The longest name that capsuled takes.
const LONGEST: usize = 128;

/// What volumes of a StorageClass are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// The capsule; none for a directory that is no capsule's.
    pub capsule: Option<String>,
    /// The version, or a tag of it.
    pub version: Option<String>,
    /// Whether they are written to.
    pub mode: VolumeMode,
    /// Whose their root is.
    pub owner: Option<VolumeOwner>,
    /// Their root's mode, in octal.
    pub permissions: Option<String>,
}

impl Parameters {
    /// Reads them.
    ///
    /// # Errors
    /// Which one is wrong, and what it may be.
    pub fn read(all: &BTreeMap<String, String>) -> Result<Self, String> {
        let known = ["capsule", "version", "mode", "owner", "permissions"];
        let unknown = all.keys().find(|key| !known.contains(&key.as_str()) && !key.starts_with(OTHERS));
        if let Some(key) = unknown {
            return Err(format!("the parameter {key} is none of {}", known.join(", ")));
        }
        let of = |key: &str| all.get(key).map(String::as_str).filter(|value| !value.is_empty());
        let capsule = of("capsule");
        if let Some(name) = capsule.filter(|name| !is_name(name)) {
            return Err(format!(
                "the parameter capsule, {name:?}, is no name of a capsule: lower-case letters, digits, ., _ and -, {LONGEST} at most"
            ));
        }
        let version = of("version").map(version).transpose()?;
        let mode = match (of("mode"), capsule) {
            (Some("ro"), Some(_)) | (None, Some(_)) => VolumeMode::Ro,
            (Some("rw"), _) | (None, None) => VolumeMode::Rw,
            (Some("ro"), None) => {
                return Err("the parameter mode is ro, and there is no capsule to read: give capsule, or leave mode away for a directory".to_owned());
            }
            (Some(other), _) => return Err(format!("the parameter mode, {other:?}, is neither ro nor rw")),
        };
        if capsule.is_none() && version.is_some() {
            return Err("the parameter version is there without capsule".to_owned());
        }
        let owner = of("owner").map(owner).transpose()?;
        let permissions = of("permissions").map(permissions).transpose()?;
        if mode == VolumeMode::Ro && (owner.is_some() || permissions.is_some()) {
            return Err("the parameters owner and permissions are of volumes that are written to: leave them away, or give mode rw".to_owned());
        }
        Ok(Self { capsule: capsule.map(str::to_owned), version, mode, owner, permissions })
    }

    /// Whether volumes are written to.
    pub fn is_written(&self) -> bool {
        self.mode == VolumeMode::Rw
    }

    /// As a PersistentVolume has them, with how much it can hold where it is written to.
    pub fn attributes(&self, size: i64) -> BTreeMap<String, String> {
        let mode = if self.is_written() { "rw" } else { "ro" };
        let owner = self.owner.map(|owner| format!("{}:{}", owner.user, owner.group));
        let all = [
            ("capsule", self.capsule.clone()),
            ("version", self.version.clone()),
            ("mode", Some(mode.to_owned())),
            ("owner", owner),
            ("permissions", self.permissions.clone()),
            ("size", self.is_written().then(|| size.to_string())),
        ];
        all.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }
}

/// The version that a VolumeAttributesClass asks for.
///
/// # Errors
/// It is not one of this driver, or asks for something else too.
pub fn version_of(name: &str, class: &Modifier) -> Result<String, String> {
    if class.driver_name != DRIVER {
        return Err(format!(
            "the VolumeAttributesClass {name} is of the driver {}, not of {DRIVER}",
            class.driver_name
        ));
    }
    match class.parameters.iter().collect::<Vec<_>>()[..] {
        [(key, value)] if key == "version" => version(value),
        _ => Err(format!(
            "the VolumeAttributesClass {name} is to have one parameter, version, and nothing else"
        )),
    }
}

fn version(text: &str) -> Result<String, String> {
    let is_one = !text.is_empty()
        && text.len() <= LONGEST
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+'));
    is_one.then(|| text.to_owned()).ok_or_else(|| {
        format!("the parameter version, {text:?}, is no version: letters, digits, ., _, - and +, {LONGEST} at most")
    })
}

fn owner(text: &str) -> Result<VolumeOwner, String> {
    // The last number stands for none in chown(2).
    let id = |text: &str| text.parse::<u32>().ok().filter(|id| *id < u32::MAX).map(i64::from);
    let both = text.split_once(':').and_then(|(user, group)| Some((id(user)?, id(group)?)));
    both.map(|(user, group)| VolumeOwner { user, group })
        .ok_or_else(|| format!("the parameter owner, {text:?}, is not UID:GID, in numbers"))
}

fn permissions(text: &str) -> Result<String, String> {
    let is_mode = (3..=5).contains(&text.len())
        && text.chars().all(|c| matches!(c, '0'..='7'))
        && u32::from_str_radix(text, 8).is_ok_and(|mode| mode <= 0o7777);
    is_mode
        .then(|| text.to_owned())
        .ok_or_else(|| format!("the parameter permissions, {text:?}, is no mode in octal, as \"0750\""))
}

fn is_name(text: &str) -> bool {
    let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let within = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    text.len() <= LONGEST
        && text.chars().all(within)
        && is_end(text.chars().next())
        && is_end(text.chars().next_back())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(all: &[(&str, &str)]) -> Result<Parameters, String> {
        Parameters::read(&all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn a_capsule_is_read_and_a_directory_is_written_unless_it_is_said() {
        let plain =
            read(&[("owner", "1000:100"), ("permissions", "0750"), ("csi.storage.k8s.io/fstype", "xfs")])
                .unwrap();
        assert!(plain.is_written());
        let attributes = plain.attributes(5);
        let said: Vec<_> = attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(said, ["mode=rw", "owner=1000:100", "permissions=0750", "size=5"]);
        let capsule = read(&[("capsule", "tz"), ("version", "2026.1")]).unwrap();
        assert_eq!(capsule.mode, VolumeMode::Ro);
        assert!(!capsule.attributes(5).contains_key("size"));
        assert!(read(&[("capsule", "tz"), ("mode", "rw"), ("owner", "1:1")]).unwrap().is_written());
        // What a volume has is read again.
        assert_eq!(Parameters::read(&capsule.attributes(5)), Ok(capsule));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (all, says) in [
            (&[("size", "1")][..], "size is none of"),
            (&[("capsule", "TZ")], "\"TZ\""),
            (&[("mode", "ro")], "no capsule to read"),
            (&[("mode", "union"), ("capsule", "tz")], "neither ro nor rw"),
            (&[("version", "1")], "without capsule"),
            (&[("capsule", "tz"), ("version", "a b")], "no version"),
            (&[("owner", "root:root")], "UID:GID"),
            (&[("owner", "4294967295:0")], "UID:GID"),
            (&[("permissions", "rwx")], "octal"),
            (&[("permissions", "+75")], "octal"),
            (&[("permissions", "17777")], "octal"),
            (&[("capsule", "tz"), ("owner", "1:1")], "written to"),
        ] {
            let why = read(all).unwrap_err();
            assert!(why.contains(says), "{all:?}: {why}");
        }
    }

    #[test]
    fn a_class_of_attributes_has_a_version_alone() {
        let class = |driver: &str, all: &[(&str, &str)]| {
            let parameters =
                all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let mut class = Modifier::default();
            (class.driver_name, class.parameters) = (driver.to_owned(), parameters);
            class
        };
        assert_eq!(version_of("a", &class(DRIVER, &[("version", "2")])).as_deref(), Ok("2"));
        assert!(version_of("a", &class("other", &[("version", "2")])).unwrap_err().contains("other"));
        for all in [&[][..], &[("iops", "1")], &[("version", "2"), ("iops", "1")]] {
            assert!(version_of("a", &class(DRIVER, all)).unwrap_err().contains("one parameter"));
        }
    }
}
