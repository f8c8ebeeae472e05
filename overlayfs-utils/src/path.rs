//! Absolute paths in a container, validated once. Pure.

use std::{fmt, path::Path};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Longest path the kernel takes, with its NUL (`PATH_MAX`).
const MAX_PATH: usize = 4096;

/// An absolute path in a container: no `..`, no NUL, no empty or `.` component, UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerPath(String);

/// Why a string is no path in a container.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidPath {
    /// It does not begin with "/".
    #[error("the path {0:?} is relative: give an absolute one")]
    Relative(String),
    /// It has a ".." component.
    #[error("the path {0:?} has a \"..\" component: give the path it means")]
    Parent(String),
    /// It has a NUL byte.
    #[error("the path {0:?} has a NUL byte")]
    Nul(String),
    /// It is longer than the kernel takes.
    #[error("a path of {0} bytes is longer than the {MAX_PATH} that the kernel takes")]
    TooLong(usize),
}

impl ContainerPath {
    /// Validates a path; repeated and trailing slashes and `.` components are dropped.
    ///
    /// # Errors
    /// [`InvalidPath`].
    pub fn parse(path: &str) -> Result<Self, InvalidPath> {
        if path.len() >= MAX_PATH {
            return Err(InvalidPath::TooLong(path.len()));
        }
        if path.contains('\0') {
            return Err(InvalidPath::Nul(path.to_owned()));
        }
        if !path.starts_with('/') {
            return Err(InvalidPath::Relative(path.to_owned()));
        }
        let mut normal = String::with_capacity(path.len());
        for part in path.split('/').filter(|p| !p.is_empty() && *p != ".") {
            if part == ".." {
                return Err(InvalidPath::Parent(path.to_owned()));
            }
            normal.push('/');
            normal.push_str(part);
        }
        Ok(Self(if normal.is_empty() { "/".to_owned() } else { normal }))
    }

    /// "/".
    #[must_use]
    pub fn root() -> Self {
        Self("/".to_owned())
    }

    /// The path as a string that starts with "/".
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is "/".
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }

    /// The path of the directory `name` in this one. `name` must be one component.
    ///
    /// # Errors
    /// [`InvalidPath`], as [`Self::parse`].
    pub fn join(&self, name: &str) -> Result<Self, InvalidPath> {
        Self::parse(&format!("{}/{name}", self.0))
    }

    /// The directory that holds it and its name there; nothing for "/".
    #[must_use]
    pub fn split(&self) -> Option<(Self, &str)> {
        let (parent, name) = self.0.rsplit_once('/')?;
        let parent = if parent.is_empty() { "/" } else { parent };
        (!name.is_empty()).then(|| (Self(parent.to_owned()), name))
    }

    /// Whether this is `other` or lies below it.
    #[must_use]
    pub fn starts_with(&self, other: &Self) -> bool {
        Path::new(&self.0).starts_with(&other.0)
    }

    /// As the kernel takes it below a root's descriptor: relative, "." for the root.
    pub(crate) fn relative(&self) -> &str {
        if self.is_root() { "." } else { &self.0[1..] }
    }
}

impl TryFrom<String> for ContainerPath {
    type Error = InvalidPath;

    fn try_from(path: String) -> Result<Self, InvalidPath> {
        Self::parse(&path)
    }
}

impl From<ContainerPath> for String {
    fn from(path: ContainerPath) -> Self {
        path.0
    }
}

impl AsRef<Path> for ContainerPath {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl fmt::Display for ContainerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normalised_or_refused() {
        for (path, want) in [
            ("/", "/"),
            ("//", "/"),
            ("/usr//share/./zoneinfo/", "/usr/share/zoneinfo"),
            ("/a b/ü:,\\", "/a b/ü:,\\"),
            ("/...", "/..."),
        ] {
            assert_eq!(ContainerPath::parse(path).unwrap().as_str(), want);
        }
        for path in ["", "usr", "./usr", "/usr/..", "/../x", "/a\0b", &format!("/{}", "x".repeat(4096))] {
            assert!(ContainerPath::parse(path).is_err(), "{path:.20}");
        }
    }

    #[test]
    fn a_path_splits_and_joins() {
        let path = ContainerPath::parse("/usr/lib").unwrap();
        let (parent, name) = path.split().unwrap();
        assert_eq!((parent.as_str(), name), ("/usr", "lib"));
        assert_eq!(parent.join(name).unwrap(), path);
        let top = ContainerPath::parse("/usr").unwrap();
        assert_eq!(top.split().map(|(p, n)| (p.0, n)), Some(("/".to_owned(), "usr")));
        assert_eq!(ContainerPath::parse("/").unwrap().split(), None);
        assert!(path.starts_with(&top) && !ContainerPath::parse("/usrlocal").unwrap().starts_with(&top));
    }
}
