//! What the shim needs of a container's OCI spec. Pure.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{Bundle, BundleError};

/// Annotations that put containers in one shim, in order of preference; the same as the Go shim's.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// The attachments that a container has before its first process runs: NAME[@VERSION][:TARGET[:MODE]], by commas.
pub const ATTACH: &str = "resourcecapsules.io/attach";
/// Devices that the container is created with: VENDOR/CLASS=NAME, by commas.
const DEVICES: &str = "resourcecapsules.io/devices";
/// How annotations begin that name devices for any runtime (CDI's `AnnotationPrefix`).
const CDI: &str = "cdi.k8s.io/";
/// What CRI calls a container of a pod.
const KIND: &str = "io.kubernetes.cri.container-type";
/// The name that a container has in its pod (containerd, `internal/cri/annotations`).
const NAME: &str = "io.kubernetes.cri.container-name";
/// `false` for a container that is to have no capsules at all.
const ENABLED: &str = "resourcecapsules.io/enabled";
/// Whether a container waits for a slow log (`blocking`, what it does without this) or its output is dropped
/// (`non-blocking`), as Docker's log option `mode`.
const LOG_MODE: &str = "resourcecapsules.io/log-mode";
/// How much output waits for a slow log before it is dropped, as Docker's log option `max-buffer-size`.
const LOG_BUFFER: &str = "resourcecapsules.io/log-max-buffer-size";
/// The same as Docker's.
const DEFAULT_LOG_BUFFER: usize = 1 << 20;
/// The shim's memory is the host's, and whoever writes a pod chooses the size.
const MAX_LOG_BUFFER: usize = 64 << 20;

/// What the shim needs of `config.json`. Everything else in it is the runtime's business; `creation` adds to it, and never takes away.
#[derive(Debug, Default, Deserialize)]
pub struct Spec {
    #[serde(default)]
    annotations: HashMap<String, String>,
    #[serde(default)]
    root: Option<Root>,
    #[serde(default)]
    linux: Option<Linux>,
}

#[derive(Debug, Default, Deserialize)]
struct Root {
    #[serde(default)]
    path: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Vec<Namespace>,
    #[serde(default, rename = "cgroupsPath")]
    cgroups_path: String,
}

#[derive(Debug, Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

impl Spec {
    /// Which shim the container belongs to: its pod's or group's, or one of its own.
    pub fn group<'a>(&'a self, id: &'a str) -> &'a str {
        GROUPS.iter().find_map(|label| self.annotations.get(*label)).map_or(id, String::as_str)
    }

    /// Whether capsules may be attached at all.
    ///
    /// # Errors
    /// [`BundleError::Annotation`].
    pub fn takes_capsules(&self) -> Result<bool, BundleError> {
        match self.ours(ENABLED) {
            None | Some((_, "true")) => Ok(true),
            Some((_, "false")) => Ok(false),
            Some((key, other)) => Err(BundleError::Annotation {
                key: key.to_owned(),
                value: other.to_owned(),
                expected: "give true or false",
            }),
        }
    }

    /// What [`ATTACH`] names, if anything. The container that only keeps a pod's namespaces needs nothing.
    pub fn named_attachments(&self) -> Option<&str> {
        if self.is_sandbox() {
            return None;
        }
        self.ours(ATTACH).map(|(_, named)| named.trim()).filter(|named| !named.is_empty())
    }

    /// The annotations that name devices, by key, ours last. The container that only keeps a pod's namespaces needs none.
    pub fn named_devices(&self) -> Vec<(&str, &str)> {
        if self.is_sandbox() {
            return Vec::new();
        }
        let all = self.annotations.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let all = all.filter(|(key, _)| key.starts_with(CDI)).chain(self.ours(DEVICES));
        let mut named: Vec<_> =
            all.map(|(key, value)| (key, value.trim())).filter(|(_, value)| !value.is_empty()).collect();
        named.sort_unstable();
        named
    }

    fn is_sandbox(&self) -> bool {
        self.annotations.get(KIND).is_some_and(|kind| kind == "sandbox")
    }

    /// What an annotation of ours says, and under which key. CRI gives a pod's annotations to all of its containers: `KEY.NAME` is
    /// for the container of that name alone, and counts there in the place of `KEY`.
    fn ours(&self, key: &str) -> Option<(&str, &str)> {
        let own = self.annotations.get(NAME).map(|name| format!("{key}.{name}"));
        let own = own.and_then(|own| self.annotations.get_key_value(&own));
        own.or_else(|| self.annotations.get_key_value(key)).map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether it has a user namespace of its own.
    pub fn has_user_namespace(&self) -> bool {
        self.linux.as_ref().is_some_and(|linux| linux.namespaces.iter().any(|one| one.kind == "user"))
    }

    /// How many bytes of the init's output wait for a slow log before more is dropped; `None` when the container is to
    /// wait instead.
    ///
    /// # Errors
    /// [`BundleError::Annotation`].
    pub fn log_buffer(&self) -> Result<Option<usize>, BundleError> {
        let invalid = |key: &str, expected| {
            let (key, value) = self.ours(key).unwrap_or((key, ""));
            BundleError::Annotation { key: key.to_owned(), value: value.to_owned(), expected }
        };
        let size = self.ours(LOG_BUFFER).map(|(_, size)| size);
        match (self.ours(LOG_MODE).map(|(_, mode)| mode), size) {
            (None | Some("blocking"), None) => Ok(None),
            (None | Some("blocking"), Some(_)) => {
                Err(invalid(LOG_BUFFER, "it is only for resourcecapsules.io/log-mode: non-blocking"))
            }
            (Some("non-blocking"), None) => Ok(Some(DEFAULT_LOG_BUFFER)),
            (Some("non-blocking"), Some(size)) => match parse_size(size) {
                Some(size) if size <= MAX_LOG_BUFFER => Ok(Some(size)),
                _ => Err(invalid(LOG_BUFFER, "give bytes, or a number with k or m, such as 4m: at most 64m")),
            },
            (Some(_), _) => Err(invalid(LOG_MODE, "give blocking or non-blocking")),
        }
    }

    /// Whether processes outlive the container's init because it is not the init of a PID namespace of its own.
    pub fn shares_pid_namespace(&self) -> bool {
        let own = |namespace: &Namespace| namespace.kind == "pid" && namespace.path.is_empty();
        !self.linux.as_ref().is_some_and(|linux| linux.namespaces.iter().any(own))
    }

    /// Its control group as the spec names it: a path, or for systemd `SLICE:PREFIX:NAME`; empty when the runtime chooses.
    pub fn cgroups_path(&self) -> &str {
        self.linux.as_ref().map_or("", |linux| linux.cgroups_path.as_str())
    }

    /// The container's root as the spec names it, resolved against its bundle.
    pub fn rootfs(&self, bundle: &Bundle) -> PathBuf {
        let path = self.root.as_ref().map(|root| root.path.as_path()).filter(|path| *path != Path::new(""));
        bundle.0.join(path.unwrap_or(Path::new("rootfs")))
    }
}

/// A size as Docker writes them (`units.RAMInBytes`): powers of 1024, `b` and `ib` after the unit allowed. Not zero.
fn parse_size(text: &str) -> Option<usize> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(1 << shift).filter(|size| *size > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn groups_come_from_annotations_in_order() {
        for (json, group) in [
            (r#"{}"#, "c1"),
            (r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#, "pod"),
            (
                r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"}}"#,
                "g",
            ),
        ] {
            assert_eq!(spec(json).group("c1"), group);
        }
    }

    #[test]
    fn capsules_are_taken_unless_refused() {
        for (value, takes) in [
            (None, Some(true)),
            (Some("true"), Some(true)),
            (Some("false"), Some(false)),
            (Some("no"), None),
            (Some(""), None),
        ] {
            let annotations = value.map(|value| (ENABLED.to_owned(), value.to_owned()));
            let spec = Spec { annotations: annotations.into_iter().collect(), ..Spec::default() };
            assert_eq!(spec.takes_capsules().ok(), takes, "{value:?}");
        }
    }

    #[test]
    fn devices_are_named_by_anybodys_annotations_and_ours() {
        let json = r#"{"annotations": {"resourcecapsules.io/devices": " a/b=c ", "cdi.k8s.io/z": "d/e=f,d/e=g",
            "cdi.k8s.io/empty": " ", "other/cdi.k8s.io/x": "no", "resourcecapsules.io/attach": "tz"},
            "linux": {"namespaces": [{"type": "mount"}]}}"#;
        let named = [("cdi.k8s.io/z", "d/e=f,d/e=g"), (DEVICES, "a/b=c")];
        assert_eq!(spec(json).named_devices(), named);
        let pause = json
            .replace("\"other/cdi.k8s.io/x\": \"no\"", "\"io.kubernetes.cri.container-type\": \"sandbox\"");
        assert_eq!((spec(&pause).named_devices(), spec(&pause).named_attachments()), (vec![], None));
        assert!(!spec(json).has_user_namespace());
        assert!(spec(r#"{"linux":{"namespaces":[{"type":"user"}]}}"#).has_user_namespace());
    }

    #[test]
    fn an_annotation_may_be_for_one_container_of_a_pod() {
        let json = r#"{"annotations": {"io.kubernetes.cri.container-name": "app", "resourcecapsules.io/attach": "tz",
            "resourcecapsules.io/attach.app": "tz@1, tools", "resourcecapsules.io/devices.app": "a/b=c",
            "resourcecapsules.io/devices": "a/b=d", "resourcecapsules.io/enabled.log": "no"}}"#;
        let (app, log) = (spec(json), spec(&json.replace("\"app\"", "\"log\"")));
        assert_eq!(app.named_attachments(), Some("tz@1, tools"));
        assert_eq!(log.named_attachments(), Some("tz"));
        assert_eq!(app.named_devices(), [("resourcecapsules.io/devices.app", "a/b=c")]);
        assert_eq!(log.named_devices(), [(DEVICES, "a/b=d")]);
        assert!(app.takes_capsules().is_ok_and(|takes| takes));
        let error = log.takes_capsules().unwrap_err().to_string();
        assert!(error.contains("resourcecapsules.io/enabled.log"), "{error}");
        // What is for one container says nothing to one outside of pods, and nothing may be for one.
        let none = json.replace("tz@1, tools", "").replace("io.kubernetes.cri.container-name", "x");
        assert_eq!(spec(&none).named_attachments(), Some("tz"));
        assert_eq!(spec(&json.replace("tz@1, tools", "")).named_attachments(), None);
    }

    #[test]
    fn logs_are_decoupled_when_asked() {
        for (mode, size, buffer) in [
            (None, None, Some(None)),
            (Some("blocking"), None, Some(None)),
            (Some("non-blocking"), None, Some(Some(1 << 20))),
            (Some("non-blocking"), Some("4096"), Some(Some(4096))),
            (Some("non-blocking"), Some("4m"), Some(Some(4 << 20))),
            (Some("non-blocking"), Some("64 KiB"), Some(Some(64 << 10))),
            (Some("non-blocking"), Some("64m"), Some(Some(64 << 20))),
            (Some("non-blocking"), Some("65537k"), None),
            (Some("non-blocking"), Some("1g"), None),
            (Some("non-blocking"), Some("0"), None),
            (Some("non-blocking"), Some("4x"), None),
            (Some("non-blocking"), Some("99999999999g"), None),
            (None, Some("4m"), None),
            (Some("Non-Blocking"), None, None),
        ] {
            let annotations = [(LOG_MODE, mode), (LOG_BUFFER, size)];
            let annotations =
                annotations.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned())));
            let spec = Spec { annotations: annotations.collect(), ..Spec::default() };
            assert_eq!(spec.log_buffer().ok(), buffer, "{mode:?} {size:?}");
        }
    }

    #[test]
    fn only_an_own_pid_namespace_ends_with_its_init() {
        for (json, shared) in [
            (r#"{}"#, true),
            (r#"{"linux":{"namespaces":[{"type":"mount"}]}}"#, true),
            (r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}"#, true),
            (r#"{"linux":{"namespaces":[{"type":"mount"},{"type":"pid"}]}}"#, false),
        ] {
            assert_eq!(spec(json).shares_pid_namespace(), shared, "{json}");
        }
    }

    #[test]
    fn the_root_is_in_the_bundle_unless_absolute() {
        let bundle = Bundle::new("/b").unwrap();
        for (json, root) in [
            (r#"{}"#, "/b/rootfs"),
            (r#"{"root":{"path":"rootfs"}}"#, "/b/rootfs"),
            (r#"{"root":{"path":"/var/lib/docker/rootfs/x"}}"#, "/var/lib/docker/rootfs/x"),
        ] {
            assert_eq!(spec(json).rootfs(&bundle), Path::new(root));
        }
        assert!(Bundle::new("b").is_err());
    }
}
