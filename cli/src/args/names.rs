//! How capsules and containers are named on the command line.

use std::str::FromStr;

/// `NAME[@VERSION]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapsuleRef {
    /// Name of the capsule; not empty.
    pub name: String,
    /// Version; `None` for the newest.
    pub version: Option<String>,
}

impl FromStr for CapsuleRef {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, version) = match text.split_once('@') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        if name.is_empty() {
            return Err("the capsule's name is empty: write NAME or NAME@VERSION");
        }
        if version.is_some_and(str::is_empty) {
            return Err("the version after `@` is empty: write NAME@VERSION, or NAME for the newest");
        }
        if version.is_some_and(|v| v.contains('@')) {
            return Err("more than one `@`: write NAME@VERSION");
        }
        Ok(Self { name: name.to_owned(), version: version.map(str::to_owned) })
    }
}

/// A capsule's name where a version has no place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapsuleName(pub String);

impl FromStr for CapsuleName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let capsule: CapsuleRef = text.parse()?;
        match capsule.version {
            None => Ok(Self(capsule.name)),
            Some(_) => Err("a version has no place here: name the capsule alone"),
        }
    }
}

/// An id, a name, a unique prefix of an id, or one of them after `NAMESPACE/`; or `pod/NAMESPACE/POD[/CONTAINER]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerArg {
    /// Id, name, prefix, or the whole of a name that begins with `pod/`; not empty.
    pub id: String,
    /// containerd namespace, where the argument names one.
    pub namespace: Option<String>,
}

impl FromStr for ContainerArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // No id has a `/`. A containerd namespace may be called `pod`.
        if text.starts_with("pod/") && text.matches('/').count() > 1 {
            return Ok(Self { id: text.to_owned(), namespace: None });
        }
        let (namespace, id) = match text.split_once('/') {
            Some((namespace, id)) => (Some(namespace), id),
            None => (None, text),
        };
        if id.is_empty() || id.contains('/') || namespace.is_some_and(str::is_empty) {
            return Err(
                "write the container's id, its name, a unique prefix of the id, or NAMESPACE/NAME; or pod/NAMESPACE/POD/CONTAINER",
            );
        }
        Ok(Self { id: id.to_owned(), namespace: namespace.map(str::to_owned) })
    }
}

/// `KEY=VALUE`; the value may be empty and may hold `=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// Not empty.
    pub key: String,
    /// May be empty.
    pub value: String,
}

impl FromStr for KeyValue {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Ok(Self { key: key.to_owned(), value: value.to_owned() })
            }
            _ => Err("write KEY=VALUE"),
        }
    }
}
