//! What a volume is asked for by keys and values: parameters of a StorageClass, `volumeAttributes` of an inline volume, and the context
//! that this driver gives with a volume. Pure.

use std::collections::{BTreeMap, HashMap};

use capsule_proto::capsule::v1::{VolumeOwner, VolumeSpec};
use tonic::Status;

use super::names::{SnapshotId, VolumeId};

/// Keys that Kubernetes adds; of those, these two are read.
const KUBERNETES: &str = "csi.storage.k8s.io/";
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
const NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";

/// Everything that can be said of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters {
    /// None for a directory that is no capsule's.
    pub capsule: Option<String>,
    /// A version or a tag; the newest when none.
    pub version: Option<String>,
    /// What is written is kept.
    pub writable: bool,
    /// Whom its root belongs to, of what is written to.
    pub owner: Option<(u32, u32)>,
    /// And its mode.
    pub permissions: Option<u32>,
    /// Bytes, of an inline volume: it has no capacity.
    pub size: Option<u64>,
    /// It is inline: it comes and goes with its pod.
    pub ephemeral: bool,
    /// The claim's namespace.
    pub namespace: Option<String>,
}

impl Parameters {
    /// From what was sent.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, with the key.
    pub fn parse(sent: &HashMap<String, String>) -> Result<Self, Status> {
        let mut found = Self { ephemeral: said(sent, EPHEMERAL) == Some("true"), ..Self::default() };
        found.namespace = said(sent, NAMESPACE).map(str::to_owned);
        let mut mode = None;
        // In one order, so that of several mistakes the same one is told.
        for (key, value) in sent.iter().collect::<BTreeMap<_, _>>() {
            match key.as_str() {
                "capsule" | "version" if value.is_empty() => {
                    return Err(wrong(key, value, "leave it out instead"));
                }
                "capsule" => found.capsule = Some(value.clone()),
                "version" => found.version = Some(value.clone()),
                "mode" => mode = Some(value.as_str()),
                "owner" => found.owner = Some(owner(value)?),
                "permissions" => found.permissions = Some(permissions(value)?),
                // Of an inline volume, or as its provisioner has made it.
                "size" => found.size = Some(size(value)?),
                key if key.starts_with(KUBERNETES) => (),
                key => {
                    let known = "capsule, version, mode, owner and permissions";
                    return Err(Status::invalid_argument(format!(
                        "parameter {key:?} is not known: use {known}"
                    )));
                }
            }
        }
        found.writable = found.is_written(mode)?;
        found.agree()?;
        Ok(found)
    }

    fn is_written(&self, mode: Option<&str>) -> Result<bool, Status> {
        match (mode, &self.capsule) {
            (Some("rw"), _) | (None, None) => Ok(true),
            (Some("ro") | None, Some(_)) => Ok(false),
            (Some("ro"), None) => {
                Err(wrong("mode", "ro", "without a capsule there is nothing to read: name one, or say rw"))
            }
            (Some(other), _) => Err(wrong("mode", other, "use ro or rw")),
        }
    }

    fn agree(&self) -> Result<(), Status> {
        if self.capsule.is_none() && self.version.is_some() {
            return Err(Status::invalid_argument(
                "parameter version is of no capsule: name one in parameter capsule",
            ));
        }
        let written = [
            ("owner", self.owner.is_some()),
            ("permissions", self.permissions.is_some()),
            ("size", self.size.is_some()),
        ];
        match written.into_iter().find(|(_, is_said)| *is_said && !self.writable) {
            Some((key, _)) => Err(Status::invalid_argument(format!(
                "parameter {key} is of what is written to: say mode rw, or leave it out"
            ))),
            None => Ok(()),
        }
    }

    /// The same over the version that a snapshot is.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`: another capsule or version is asked for.
    pub fn over(mut self, snapshot: &SnapshotId) -> Result<Self, Status> {
        let other = |asked: &Option<String>, is: &str| asked.as_deref().is_some_and(|asked| asked != is);
        if other(&self.capsule, &snapshot.capsule) || other(&self.version, &snapshot.version) {
            return Err(Status::invalid_argument(format!(
                "the parameters ask for another capsule or version than snapshot {snapshot}: leave them out"
            )));
        }
        self.capsule = Some(snapshot.capsule.clone());
        self.version = Some(snapshot.version.clone());
        self.agree()?;
        Ok(self)
    }

    /// What capsuled is asked for.
    pub fn spec(&self, id: &VolumeId, size: u64) -> VolumeSpec {
        VolumeSpec {
            id: id.to_string(),
            capsule: self.capsule.clone().unwrap_or_default(),
            version: self.version.clone().unwrap_or_default(),
            writable: self.writable,
            size,
            owner: self.owner.map(|(uid, gid)| VolumeOwner { uid, gid }),
            permissions: self.permissions,
        }
    }

    /// What goes along with a volume, for when it is published. Of one that is written to, capsuled keeps the version.
    pub fn context(&self) -> HashMap<String, String> {
        let capsule = self.capsule.clone().map(|capsule| ("capsule", capsule));
        let version = self.version.clone().filter(|_| !self.writable).map(|version| ("version", version));
        let mode = ("mode", if self.writable { "rw" } else { "ro" }.to_owned());
        capsule.into_iter().chain(version).chain([mode]).map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// The one parameter of a volume that can change.
///
/// # Errors
/// `INVALID_ARGUMENT`: others, or an empty one.
pub fn mutable(sent: &HashMap<String, String>) -> Result<Option<String>, Status> {
    if let Some(key) = sent.keys().filter(|key| *key != "version").min() {
        return Err(Status::invalid_argument(format!("parameter {key:?} cannot change: only version can")));
    }
    match sent.get("version") {
        Some(version) if version.is_empty() => Err(wrong("version", version, "name a version or a tag")),
        version => Ok(version.cloned()),
    }
}

fn said<'a>(sent: &'a HashMap<String, String>, key: &str) -> Option<&'a str> {
    sent.get(key).map(String::as_str)
}

fn wrong(key: &str, value: &str, what: &str) -> Status {
    Status::invalid_argument(format!("parameter {key} is {value:?}: {what}"))
}

fn owner(value: &str) -> Result<(u32, u32), Status> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    value
        .split_once(':')
        .and_then(|(uid, gid)| Some((number(uid)?, number(gid)?)))
        .ok_or_else(|| wrong("owner", value, "use UID:GID, in numbers"))
}

fn permissions(value: &str) -> Result<u32, Status> {
    let is_octal = (3..=5).contains(&value.len()) && value.bytes().all(|b| (b'0'..=b'7').contains(&b));
    u32::from_str_radix(value, 8)
        .ok()
        .filter(|mode| is_octal && *mode <= 0o7777)
        .ok_or_else(|| wrong("permissions", value, "use octal digits, as 0755"))
}

/// As Kubernetes writes quantities of memory, in whole numbers.
fn size(value: &str) -> Result<u64, Status> {
    let units =
        [("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30), ("Ti", 1 << 40), ("k", 1000), ("M", 1_000_000)];
    let more = [("G", 1_000_000_000), ("T", 1_000_000_000_000), ("", 1)];
    let (number, unit) = units
        .into_iter()
        .chain(more)
        .find_map(|(name, unit)| Some((value.strip_suffix(name)?, unit)))
        .unwrap_or((value, 1_u64));
    let is_number = number.bytes().all(|b| b.is_ascii_digit());
    let bytes = number.parse::<u64>().ok().filter(|_| is_number).and_then(|number| number.checked_mul(unit));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| wrong("size", value, "use bytes, as 67108864 or 64Mi"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn parse(pairs: &[(&str, &str)]) -> Result<Parameters, String> {
        Parameters::parse(&map(pairs)).map_err(|status| {
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            status.message().to_owned()
        })
    }

    #[test]
    fn what_is_not_said_is_the_default() {
        assert!(parse(&[]).unwrap().writable, "a directory");
        assert!(!parse(&[("capsule", "a")]).unwrap().writable);
        assert!(parse(&[("capsule", "a"), ("mode", "rw")]).unwrap().writable);
        let all = parse(&[
            ("mode", "rw"),
            ("owner", "1000:0"),
            ("permissions", "2770"),
            ("csi.storage.k8s.io/pvc/namespace", "shop"),
            ("csi.storage.k8s.io/pod.name", "web"),
        ]);
        let all = all.unwrap();
        assert_eq!((all.owner, all.permissions), (Some((1000, 0)), Some(0o2770)));
        assert_eq!((all.namespace.as_deref(), all.ephemeral), (Some("shop"), false));
        let inline = parse(&[("csi.storage.k8s.io/ephemeral", "true"), ("size", "64Mi")]).unwrap();
        assert_eq!((inline.size, inline.ephemeral), (Some(64 << 20), true));
    }

    #[test]
    fn mistakes_are_told_by_the_key() {
        for (pairs, words) in [
            (&[("capsle", "a")][..], "\"capsle\" is not known"),
            (&[("capsule", "")], "capsule"),
            (&[("capsule", "a"), ("version", "")], "version"),
            (&[("version", "1")], "version is of no capsule"),
            (&[("mode", "ro")], "name one, or say rw"),
            (&[("capsule", "a"), ("mode", "RW")], "use ro or rw"),
            (&[("owner", "root:root")], "UID:GID"),
            (&[("owner", "1000")], "UID:GID"),
            (&[("owner", "+1:1")], "UID:GID"),
            (&[("permissions", "0888")], "octal"),
            (&[("permissions", "17777")], "octal"),
            (&[("permissions", "+755")], "octal"),
            (&[("permissions", "7")], "octal"),
            (&[("capsule", "a"), ("owner", "1:1")], "owner is of what is written to"),
            (&[("capsule", "a"), ("permissions", "0755")], "permissions is of what is written to"),
            (&[("size", "much")], "use bytes"),
            (&[("csi.storage.k8s.io/ephemeral", "true"), ("size", "1.5Gi")], "use bytes"),
            (&[("csi.storage.k8s.io/ephemeral", "true"), ("size", "0")], "use bytes"),
            (&[("csi.storage.k8s.io/ephemeral", "true"), ("size", "99999999999Ti")], "use bytes"),
            (&[("csi.storage.k8s.io/ephemeral", "true"), ("capsule", "a"), ("size", "1Gi")], "say mode rw"),
        ] {
            let error = parse(pairs).unwrap_err();
            assert!(error.contains(words), "{pairs:?}: {error}");
        }
    }

    #[test]
    fn a_context_gives_the_same_again() {
        for pairs in [&[][..], &[("capsule", "a"), ("version", "1")], &[("capsule", "a"), ("mode", "rw")]] {
            let parameters = parse(pairs).unwrap();
            assert_eq!(Parameters::parse(&parameters.context()).unwrap(), parameters);
        }
        // The version of what is written to changes, and a context does not.
        let written = parse(&[("capsule", "a"), ("version", "1"), ("mode", "rw")]).unwrap();
        assert_eq!(written.context(), map(&[("capsule", "a"), ("mode", "rw")]));
    }

    #[test]
    fn a_snapshot_is_of_what_is_asked_for() {
        let snapshot = SnapshotId::parse("a@1").unwrap();
        let over = |pairs: &[(&str, &str)]| parse(pairs).unwrap().over(&snapshot);
        assert_eq!(over(&[]).unwrap().version.as_deref(), Some("1"));
        assert!(over(&[]).unwrap().writable);
        assert!(over(&[("capsule", "a"), ("mode", "rw")]).unwrap().writable);
        assert!(over(&[("capsule", "b")]).is_err());
        assert!(over(&[("capsule", "a"), ("version", "2")]).is_err());
        assert_eq!(over(&[("owner", "1:1")]).unwrap().owner, Some((1, 1)));
    }

    #[test]
    fn only_the_version_changes() {
        assert_eq!(mutable(&map(&[("version", "2")])).unwrap().as_deref(), Some("2"));
        assert_eq!(mutable(&map(&[])).unwrap(), None);
        assert!(mutable(&map(&[("version", "2"), ("capsule", "b")])).is_err());
        assert!(mutable(&map(&[("version", "")])).is_err());
    }
}
