//! What a client may do.

use std::{fmt, str::FromStr};

/// Where a certificate has its role: a URI among its subject's alternative names.
const PREFIX: &str = "capsule:role/";

/// What a client may do. Each may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Look at what there is.
    Viewer,
    /// And look into it, and move what is on the node into containers and out of them.
    Operator,
    /// And say what is on the node.
    Admin,
}

impl Role {
    /// All, the least first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// As certificates have it.
    pub fn uri(self) -> String {
        format!("{PREFIX}{self}")
    }

    /// What a URI says of a role: `None` when it is about something else.
    pub(crate) fn word(uri: &str) -> Option<&str> {
        uri.strip_prefix(PREFIX)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Role {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or("it must be admin, operator or viewer")
    }
}
