//! Containers by the names that they have in pods of Kubernetes: `pod/NAMESPACE/POD[/CONTAINER]`, or, for programs, which mean one pod and
//! none that comes after it, `pod-uid/UID[/CONTAINER]`. Pure.
//!
//! Containers of one name come and go in a pod, and pods of one name (a StatefulSet's) do: the newest is meant.

use std::{collections::BTreeSet, fmt, str::FromStr, time::SystemTime};

use super::{error::AttachmentError, model::ContainerKey};
use crate::containerd::Member;

/// How such a name begins. No id of a container has a `/`.
const PREFIX: &str = "pod/";
const BY_UID: &str = "pod-uid/";

/// A container of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRef {
    /// The pod.
    pod: PodRef,
    /// The container's name in the pod; none where the pod has one container.
    container: Option<String>,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
enum PodRef {
    /// The newest of this name, `NAMESPACE/NAME`.
    Name(String),
    /// This one.
    Uid(String),
}

impl PodRef {
    fn is(&self, member: &Member) -> bool {
        match self {
            Self::Name(name) => member.pod == *name,
            Self::Uid(uid) => member.uid == *uid,
        }
    }
}

/// A name that begins with `pod/` and is none of a container of a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no container of a pod: write pod/NAMESPACE/POD or pod/NAMESPACE/POD/CONTAINER")]
pub struct InvalidMember(String);

impl MemberRef {
    /// Whether a name is to be one of these.
    pub fn is_meant(text: &str) -> bool {
        text.starts_with(PREFIX) || text.starts_with(BY_UID)
    }
}

impl FromStr for MemberRef {
    type Err = InvalidMember;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidMember(text.to_owned());
        let (parts, by_uid): (Vec<&str>, bool) = match text.strip_prefix(BY_UID) {
            Some(rest) => (rest.split('/').collect(), true),
            None => (text.strip_prefix(PREFIX).unwrap_or_default().split('/').collect(), false),
        };
        if parts.iter().any(|part| part.is_empty()) {
            return Err(invalid());
        }
        let (pod, container) = match (by_uid, &parts[..]) {
            (true, [uid, container @ ..]) => (PodRef::Uid((*uid).to_owned()), container),
            (false, [namespace, name, container @ ..]) => {
                (PodRef::Name(format!("{namespace}/{name}")), container)
            }
            _ => return Err(invalid()),
        };
        match container {
            [] => Ok(Self { pod, container: None }),
            [container] => Ok(Self { pod, container: Some((*container).to_owned()) }),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for MemberRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pod {
            PodRef::Name(name) => write!(f, "{PREFIX}{name}")?,
            PodRef::Uid(uid) => write!(f, "{BY_UID}{uid}")?,
        }
        self.container.as_ref().map_or(Ok(()), |container| write!(f, "/{container}"))
    }
}

/// A container of a pod, with when it was created.
pub type Candidate<'a> = (ContainerKey, &'a Member, Option<SystemTime>);

/// The container that is meant, among all those of pods.
///
/// # Errors
/// [`AttachmentError::UnknownMember`], [`AttachmentError::WhichMember`].
pub fn choose(all: Vec<Candidate<'_>>, wanted: &MemberRef) -> Result<ContainerKey, AttachmentError> {
    let mut of_pod: Vec<_> = all.into_iter().filter(|(_, member, _)| wanted.pod.is(member)).collect();
    of_pod.sort_by_key(|(.., created)| *created);
    // The pod of this name that is there now, its sandbox included.
    let uid = of_pod.last().map(|(_, member, _)| member.uid.clone());
    of_pod.retain(|(_, member, _)| Some(&member.uid) == uid.as_ref() && member.container.is_some());
    let names: BTreeSet<&str> =
        of_pod.iter().filter_map(|(_, member, _)| member.container.as_deref()).collect();
    let name = match (&wanted.container, names.len()) {
        (Some(name), _) => name.as_str(),
        (None, 1) => names.first().copied().unwrap_or_default(),
        (None, 0) => "",
        (None, _) => {
            let names = names.into_iter().map(str::to_owned).collect();
            return Err(AttachmentError::WhichMember { wanted: wanted.clone(), names });
        }
    };
    let newest = of_pod.iter().rev().find(|(_, member, _)| member.container.as_deref() == Some(name));
    newest.map(|(key, ..)| key.clone()).ok_or_else(|| {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        AttachmentError::UnknownMember { wanted: wanted.clone(), names }
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_member_is_named_by_its_pod() {
        for text in ["pod/shop/web", "pod/shop/web/app", "pod-uid/u1", "pod-uid/u1/app"] {
            assert_eq!(text.parse::<MemberRef>().unwrap().to_string(), text);
        }
        for text in [
            "pod/shop",
            "pod/",
            "pod//web",
            "pod/shop/",
            "pod/shop/web/",
            "pod/a/b/c/d",
            "shop/web",
            "pod-uid/",
            "pod-uid/u/",
            "pod-uid/u/a/b",
        ] {
            let error = text.parse::<MemberRef>().unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("write pod/NAMESPACE/POD"), "{error}");
        }
    }

    /// Id, pod, uid, container (`-` for the sandbox) and when it was created.
    const ALL: [(&str, &str, &str, &str, u64); 9] = [
        ("s1", "shop/web", "u1", "-", 1),
        ("a1", "shop/web", "u1", "app", 2),
        ("l1", "shop/web", "u1", "log", 3),
        ("a2", "shop/web", "u1", "app", 9),
        ("s2", "shop/db", "u2", "-", 1),
        ("d1", "shop/db", "u2", "db", 2),
        ("s3", "shop/db", "u3", "-", 3),
        ("d2", "shop/db", "u3", "sql", 4),
        ("s4", "shop/new", "u4", "-", 1),
    ];

    fn find(text: &str) -> Result<String, String> {
        let members: Vec<_> = ALL
            .iter()
            .map(|(id, pod, uid, container, created)| {
                let container = (*container != "-").then(|| (*container).to_owned());
                let member = Member { pod: (*pod).into(), uid: (*uid).into(), container };
                let key = ContainerKey { namespace: "k8s.io".into(), id: (*id).into() };
                (key, member, SystemTime::UNIX_EPOCH + Duration::from_secs(*created))
            })
            .collect();
        let all = members.iter().map(|(key, member, at)| (key.clone(), member, Some(*at))).collect();
        choose(all, &text.parse().unwrap()).map(|key| key.id).map_err(|error| error.to_string())
    }

    #[test]
    fn the_newest_of_a_name_is_meant() {
        assert_eq!(find("pod/shop/web/app").unwrap(), "a2");
        assert_eq!(find("pod/shop/web/log").unwrap(), "l1");
        // The only one of the pod that is there now.
        assert_eq!(find("pod/shop/db").unwrap(), "d2");
        // Whatever came after it.
        assert_eq!((find("pod-uid/u2/db").unwrap(), find("pod-uid/u3").unwrap()), ("d1".into(), "d2".into()));
        assert!(find("pod-uid/u9/db").unwrap_err().contains("pod-uid/u9/db"));
    }

    #[test]
    fn what_is_not_there_or_not_one_is_said() {
        let said = find("pod/shop/web").unwrap_err();
        assert!(
            said.contains("pod/shop/web has the containers app, log: name one, as pod/shop/web/app"),
            "{said}"
        );
        let said = find("pod/shop/db/db").unwrap_err();
        assert!(said.contains("pod/shop/db/db") && said.contains("the pod has sql"), "{said}");
        for none in ["pod/shop/lost", "pod/shop/new", "pod/shop/new/app"] {
            let said = find(none).unwrap_err();
            assert!(said.contains(none) && said.contains("crictl ps"), "{said}");
        }
    }
}
