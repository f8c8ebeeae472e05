//! Who may call what: every call of `capsule.v1` by its path, the least role that may make it, and what it is about.
//!
//! What is not here nobody may call. docs/remote.md has the table with the reasons; a test holds it against the API's own
//! description, so that a new call has to be decided on.

use capsule_certificates::Role::{self, Admin, Operator, Viewer};
use capsule_proto::capsule::v1;
use prost::Message;

/// Tells from a first message what its call is about.
pub type Object = fn(&[u8]) -> Option<String>;

/// What is decided of one call.
#[derive(Debug)]
pub struct Rule {
    /// `/PACKAGE.SERVICE/METHOD`.
    pub method: &'static str,
    /// The least role that may make it.
    role: Role,
    /// It goes on until somebody ends it.
    pub follows: bool,
    /// What its first message is about; `None` where no message is looked at.
    pub object: Option<Object>,
    /// A message for which only an admin may make it. What could not be looked at is one.
    only_admin: Option<fn(&[u8]) -> bool>,
}

impl Rule {
    const fn new(method: &'static str, role: Role) -> Self {
        Self { method, role, follows: false, object: None, only_admin: None }
    }

    const fn about(mut self, object: Object) -> Self {
        self.object = Some(object);
        self
    }

    const fn follows(mut self) -> Self {
        self.follows = true;
        self
    }

    const fn only_admin(mut self, which: fn(&[u8]) -> bool) -> Self {
        self.only_admin = Some(which);
        self
    }

    /// The least role that may make the call with this first message.
    pub fn least(&self, message: Option<&[u8]>) -> Role {
        match self.only_admin {
            Some(which) if message.is_none_or(which) => Admin,
            _ => self.role,
        }
    }
}

/// The rule of a path: `None` for what nobody may call.
pub fn rule(path: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.method == path)
}

/// The services of `capsule.v1` and gRPC's own.
pub const RULES: &[Rule] = &[
    Rule::new("/capsule.v1.Attachments/Attach", Operator).about(|m| about(m, attach)).only_admin(|m| {
        // Devices are the node's: an operator has them with versions that an admin has published.
        v1::AttachRequest::decode(m).map_or(true, |request| !request.devices.is_empty())
    }),
    Rule::new("/capsule.v1.Attachments/Upgrade", Operator)
        .about(|m| about(m, |r: v1::UpgradeRequest| moved(r.container, &r.specs)))
        // A command for the health of a container runs in it.
        .only_admin(|m| v1::UpgradeRequest::decode(m).map_or(true, |request| request.health.is_some())),
    Rule::new("/capsule.v1.Attachments/Rollback", Operator)
        .about(|m| about(m, |r: v1::RollbackRequest| moved(r.container, &r.specs))),
    Rule::new("/capsule.v1.Attachments/Detach", Operator).about(|m| {
        about(m, |r: v1::DetachRequest| {
            words(container(r.container), std::iter::once(r.capsule).chain(r.devices))
        })
    }),
    Rule::new("/capsule.v1.Attachments/ListAttachments", Viewer)
        .about(|m| about(m, |r: v1::ListAttachmentsRequest| container(r.container))),
    Rule::new("/capsule.v1.Attachments/Resolve", Viewer)
        .about(|m| about(m, |r: v1::ResolveRequest| container(r.container))),
    Rule::new("/capsule.v1.Budgets/ListBudgets", Viewer),
    Rule::new("/capsule.v1.Capsules/Build", Admin).about(|m| about(m, build)),
    Rule::new("/capsule.v1.Capsules/ListCapsules", Viewer)
        .about(|m| about(m, |r: v1::ListCapsulesRequest| r.name)),
    Rule::new("/capsule.v1.Capsules/InspectCapsule", Viewer)
        .about(|m| about(m, |r: v1::InspectCapsuleRequest| version(&r.name, &r.version))),
    Rule::new("/capsule.v1.Collector/Prune", Admin),
    Rule::new("/capsule.v1.Collector/Remove", Admin)
        .about(|m| about(m, |r: v1::RemoveRequest| version(&r.name, &r.version))),
    Rule::new("/capsule.v1.Devices/ListDevices", Viewer),
    Rule::new("/capsule.v1.Events/Watch", Viewer).follows(),
    Rule::new("/capsule.v1.Metrics/ReadMetrics", Viewer),
    Rule::new("/capsule.v1.Signatures/Sign", Admin)
        .about(|m| about(m, |r: v1::SignRequest| version(&r.name, &r.version))),
    Rule::new("/capsule.v1.Signatures/ListSignatures", Viewer)
        .about(|m| about(m, |r: v1::ListSignaturesRequest| version(&r.name, &r.version))),
    Rule::new("/capsule.v1.Tags/Tag", Admin)
        .about(|m| about(m, |r: v1::TagRequest| words(version(&r.name, &r.version), r.tags))),
    Rule::new("/capsule.v1.Tags/Untag", Admin)
        .about(|m| about(m, |r: v1::UntagRequest| version(&r.name, &r.tag))),
    Rule::new("/capsule.v1.Transfers/Pull", Admin).about(|m| about(m, |r: v1::PullRequest| r.reference)),
    Rule::new("/capsule.v1.Transfers/Push", Admin).about(|m| {
        about(m, |r: v1::PushRequest| format!("{} to {}", version(&r.name, &r.version), r.reference))
    }),
    Rule::new("/capsule.v1.Transfers/Save", Operator).about(|m| {
        about(m, |r: v1::SaveRequest| {
            words(String::new(), r.versions.iter().map(|one| version(&one.name, &one.version)))
        })
    }),
    Rule::new("/capsule.v1.Transfers/Load", Admin),
    Rule::new("/capsule.v1.Transfers/Import", Admin)
        .about(|m| about(m, |r: v1::ImportRequest| format!("{}/{}", r.namespace, r.image))),
    Rule::new("/capsule.v1.Trees/ListTree", Operator)
        .about(|m| about(m, |r: v1::ListTreeRequest| reference(r.version))),
    Rule::new("/capsule.v1.Trees/DiffTrees", Operator)
        .about(|m| about(m, |r: v1::DiffTreesRequest| format!("{} {}", reference(r.from), reference(r.to)))),
    Rule::new("/capsule.v1.Uppers/Commit", Admin).about(|m| about(m, commit)),
    Rule::new("/capsule.v1.Uppers/ListUppers", Viewer),
    Rule::new("/capsule.v1.Uppers/RemoveUpper", Admin)
        .about(|m| about(m, |r: v1::RemoveUpperRequest| r.name)),
    Rule::new("/capsule.v1.Usage/ListUsage", Viewer),
    Rule::new("/capsule.v1.Volumes/CreateVolume", Admin)
        .about(|m| about(m, |r: v1::CreateVolumeRequest| r.spec.unwrap_or_default().id)),
    Rule::new("/capsule.v1.Volumes/ReplaceVolume", Admin)
        .about(|m| about(m, |r: v1::ReplaceVolumeRequest| version(&r.id, &r.version))),
    Rule::new("/capsule.v1.Volumes/RemoveVolume", Admin)
        .about(|m| about(m, |r: v1::RemoveVolumeRequest| r.id)),
    Rule::new("/capsule.v1.Volumes/CommitVolume", Admin)
        .about(|m| about(m, |r: v1::CommitVolumeRequest| version(&r.id, &r.version))),
    Rule::new("/capsule.v1.Volumes/ListVolumes", Viewer),
    Rule::new("/grpc.health.v1.Health/Check", Viewer),
    Rule::new("/grpc.health.v1.Health/Watch", Viewer).follows(),
    Rule::new(REFLECTION, Viewer).follows(),
];

/// What nobody calls from elsewhere: it takes paths of the node, and whoever mounts at any of them has the node.
#[cfg(test)]
const LOCAL: &[&str] = &[
    "/capsule.v1.Volumes/MountVolume",
    "/capsule.v1.Volumes/UnmountVolume",
    "/capsule.v1.Volumes/StatVolume",
];

/// gRPC's reflection, which is answered here.
pub const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// Longest description of what a call is about.
const LONGEST: usize = 200;

fn about<M: Message + Default>(message: &[u8], tell: impl FnOnce(M) -> String) -> Option<String> {
    M::decode(message).ok().map(|message| tell(message).chars().take(LONGEST).collect())
}

fn container(reference: Option<v1::ContainerRef>) -> String {
    let v1::ContainerRef { id, namespace } = reference.unwrap_or_default();
    if namespace.is_empty() { id } else { format!("{namespace}/{id}") }
}

fn version(name: &str, version: &str) -> String {
    if version.is_empty() { name.to_owned() } else { format!("{name}@{version}") }
}

fn reference(reference: Option<v1::VersionRef>) -> String {
    let v1::VersionRef { capsule, version: of, .. } = reference.unwrap_or_default();
    version(&capsule, &of)
}

fn attach(request: v1::AttachRequest) -> String {
    let specs = request.specs.iter().map(|spec| version(&spec.capsule, &spec.version));
    words(container(request.container), specs.chain(request.devices))
}

fn moved(of: Option<v1::ContainerRef>, specs: &[v1::MoveSpec]) -> String {
    words(container(of), specs.iter().map(|spec| version(&spec.capsule, &spec.version)))
}

fn words(first: String, more: impl IntoIterator<Item = String>) -> String {
    more.into_iter().filter(|word| !word.is_empty()).fold(first, |all, word| format!("{all} {word}"))
}

fn build(request: v1::BuildRequest) -> String {
    match request.part {
        Some(v1::build_request::Part::Header(header)) => version(&header.name, &header.version),
        _ => String::new(),
    }
}

fn commit(request: v1::CommitRequest) -> String {
    let what = match request.of {
        Some(v1::commit_request::Of::Attachment(one)) => {
            format!("{} {}", container(one.container), one.capsule)
        }
        Some(v1::commit_request::Of::Upper(name)) => name,
        None => String::new(),
    };
    format!("{what} as {}", request.version)
}

#[cfg(test)]
mod tests {
    use prost_types::FileDescriptorSet;

    use super::*;

    /// Every call of `capsule.v1`, as the API itself describes them.
    fn described() -> Vec<String> {
        let set = FileDescriptorSet::decode(v1::DESCRIPTORS).unwrap();
        let own = set.file.iter().filter(|file| file.package() == "capsule.v1");
        let services = own.flat_map(|file| &file.service);
        let methods = services.flat_map(|service| {
            service.method.iter().map(|method| format!("/capsule.v1.{}/{}", service.name(), method.name()))
        });
        methods.collect()
    }

    #[test]
    fn every_call_is_decided_on_and_nothing_else_can_be_called() {
        let described = described();
        assert!(described.len() > 25, "{described:?}");
        for method in &described {
            let is_decided = rule(method).is_some() != LOCAL.contains(&method.as_str());
            assert!(is_decided, "{method} has no rule: decide which role may call it, or that nobody may");
        }
        let own = RULES.iter().filter(|rule| rule.method.starts_with("/capsule.v1."));
        for rule in own {
            assert!(described.iter().any(|method| method == rule.method), "there is no {}", rule.method);
        }
        let others = RULES.iter().filter(|rule| !rule.method.starts_with("/capsule.v1."));
        assert!(others.clone().all(|rule| rule.method.starts_with("/grpc.")), "{others:?}");
        for path in [
            "/containerd.services.snapshots.v1.Snapshots/Prepare",
            "/containerd.services.snapshots.v1.Snapshots/List",
            "/capsule.node.v1.Node/AttachNamed",
            "/capsule.hotplug.v1.Hotplug/Attach",
            "/capsule.v1.Attachments/attach",
            "/capsule.v1.Attachments/Attach/",
            "//capsule.v1.Attachments/Attach",
            "",
            "/",
        ] {
            assert!(rule(path).is_none(), "{path:?}");
        }
    }

    #[test]
    fn the_documentation_has_the_same_table() {
        let page = include_str!("../../docs/remote.md");
        for rule in RULES {
            let name = rule.method.trim_start_matches('/');
            let row = page.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
            let row = row.unwrap_or_else(|| panic!("docs/remote.md has no row for {name}"));
            let role = row.split('|').nth(2).unwrap_or_default().trim();
            assert!(role.starts_with(rule.role.name()), "{row}: {}", rule.role);
            assert_eq!(role.contains("admin for"), rule.only_admin.is_some(), "{row}");
        }
        let rows = page.lines().filter(|line| line.starts_with("| `") && line.contains(".v1.")).count();
        assert_eq!(rows, RULES.len(), "docs/remote.md has rows of what cannot be called");
    }

    #[test]
    fn devices_are_named_by_admins_alone() {
        let rule = rule("/capsule.v1.Attachments/Attach").unwrap();
        let mut request = v1::AttachRequest {
            container: Some(v1::ContainerRef { id: "web".into(), namespace: "default".into() }),
            specs: vec![v1::AttachmentSpec {
                capsule: "tz".into(),
                version: "1".into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        assert_eq!(rule.least(Some(&request.encode_to_vec())), Operator);
        request.devices.push("vendor.com/gpu=0".into());
        assert_eq!(rule.least(Some(&request.encode_to_vec())), Admin);
        // What cannot be read may have some.
        assert_eq!(rule.least(None), Admin);
        assert_eq!(rule.least(Some(&[0xff])), Admin);
        let object = rule.object.unwrap()(&request.encode_to_vec());
        assert_eq!(object.as_deref(), Some("default/web tz@1 vendor.com/gpu=0"));
    }

    #[test]
    fn what_is_about_much_is_told_in_part() {
        let request = v1::PullRequest { reference: "ä".repeat(1000), ..Default::default() };
        let object = rule("/capsule.v1.Transfers/Pull").unwrap().object.unwrap();
        assert_eq!(object(&request.encode_to_vec()).unwrap().chars().count(), LONGEST);
        assert_eq!(object(&[0xff]), None);
    }
}
