//! What people call containers, and texts that name them so. Pure.

use serde::{Deserialize, Serialize};

use super::model::ContainerKey;
use crate::containerd::Member;

/// What a container is called beside its id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Called {
    /// The name that its client calls it by.
    pub name: Option<String>,
    /// The pod that it is of, as `NAMESPACE/NAME`.
    pub pod: Option<String>,
    /// Its name in the pod; none of the pod's sandbox.
    pub pod_container: Option<String>,
    /// What tells the pod from others of its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
}

impl Called {
    /// Of a container with this name, which is this in a pod.
    pub fn new(name: Option<String>, member: Option<Member>) -> Self {
        match member {
            Some(Member { pod, uid, container }) => {
                Self { name, pod: Some(pod), pod_container: container, pod_uid: Some(uid) }
            }
            None => Self { name, ..Self::default() },
        }
    }

    /// Whether it is called nothing but its id.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The container of this key as commands take it: `pod/NAMESPACE/POD/CONTAINER` or `NAMESPACE/NAME`; none where it has its id
    /// alone.
    pub fn place(&self, key: &ContainerKey) -> Option<String> {
        match (&self.pod, &self.pod_container, &self.name) {
            (Some(pod), Some(container), _) => Some(format!("pod/{pod}/{container}")),
            (.., Some(name)) => Some(format!("{}/{name}", key.namespace)),
            _ => None,
        }
    }
}

/// The text with each `NAMESPACE/ID` of a container that is `called` something in its place. Only ids that clients make up for
/// people's names, which are 64 hexadecimal digits, are looked at; such an id in a path is none.
pub fn in_words(text: &str, called: impl Fn(&ContainerKey) -> Option<String>) -> String {
    let piece = |piece: &str| {
        let word = piece.trim_end_matches(|c| !is_of_word(c));
        let key = key(word)?;
        Some(format!("{}{}", called(&key)?, &piece[word.len()..]))
    };
    let pieces = text.split_inclusive(|c| !is_of_word(c));
    pieces.map(|one| piece(one).unwrap_or_else(|| one.to_owned())).collect()
}

fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-')
}

fn key(word: &str) -> Option<ContainerKey> {
    let (namespace, id) = word.split_once('/')?;
    let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_id && !namespace.is_empty())
        .then(|| ContainerKey { namespace: namespace.to_owned(), id: id.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_called_by_its_pod_or_its_clients_name() {
        let key = ContainerKey { namespace: "moby".into(), id: "a1".into() };
        let member = |container: Option<&str>| Member {
            pod: "shop/web".into(),
            uid: "u1".into(),
            container: container.map(str::to_owned),
        };
        for (name, member, place) in [
            (Some("web"), None, Some("moby/web")),
            (Some("web"), Some(member(Some("app"))), Some("pod/shop/web/app")),
            (None, Some(member(Some("app"))), Some("pod/shop/web/app")),
            (None, Some(member(None)), None),
            (None, None, None),
        ] {
            let called = Called::new(name.map(str::to_owned), member);
            assert_eq!(called.place(&key).as_deref(), place);
        }
        assert!(Called::new(None, None).is_none() && !Called::new(None, Some(member(None))).is_none());
    }

    #[test]
    fn ids_in_texts_become_names() {
        let (web, other) = ("a0".repeat(32), "b1".repeat(32));
        let called = |key: &ContainerKey| (key.id == web).then(|| format!("{}/web", key.namespace));
        for (text, expected) in [
            (format!("container moby/{web} runs on runc"), "container moby/web runs on runc".to_owned()),
            (
                format!("(moby/{web}): to start: capsulectl detach moby/{web} tz"),
                "(moby/web): to start: capsulectl detach moby/web tz".to_owned(),
            ),
            (format!("moby/{web}, moby/{other}"), format!("moby/web, moby/{other}")),
            (
                format!("cannot read /run/moby/{web}/x and moby/{web}/x"),
                format!("cannot read /run/moby/{web}/x and moby/{web}/x"),
            ),
            (
                format!("/moby/{web}, {web}, moby/{}", &web[1..]),
                format!("/moby/{web}, {web}, moby/{}", &web[1..]),
            ),
            ("Größe in default/web: 1".to_owned(), "Größe in default/web: 1".to_owned()),
            (String::new(), String::new()),
        ] {
            assert_eq!(in_words(&text, called), expected);
        }
    }
}
