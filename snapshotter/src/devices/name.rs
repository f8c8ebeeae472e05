//! Names of devices: `VENDOR/CLASS=NAME`.

use std::{fmt, str::FromStr};

use thiserror::Error;

/// A text that names no device.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{name:?} names no CDI device: {reason}; write VENDOR/CLASS=NAME, as nvidia.com/gpu=0")]
pub struct InvalidName {
    name: String,
    reason: &'static str,
}

/// A device's full name (CDI's SPEC.md, "kind" and "devices"). The parts are letters, digits, `_`, `-` and `.` (a name `:` too), with a letter
/// or digit at each end; vendor and class begin with a letter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceName {
    kind: String,
    name: String,
}

impl DeviceName {
    /// Of a spec's kind and a device's name in it.
    ///
    /// # Errors
    /// [`InvalidName`].
    pub fn new(kind: &str, name: &str) -> Result<Self, InvalidName> {
        let invalid = |reason| InvalidName { name: format!("{kind}={name}"), reason };
        check_kind(kind).map_err(invalid)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.:".contains(c);
        if !name.chars().all(plain) || !ends_are(name, |c| c.is_ascii_alphanumeric()) {
            return Err(invalid(
                "the name is letters, digits, '_', '-', '.' and ':', with a letter or digit at each end",
            ));
        }
        Ok(Self { kind: kind.to_owned(), name: name.to_owned() })
    }

    /// `VENDOR/CLASS`.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }
}

impl FromStr for DeviceName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text.split_once('=') {
            Some((kind, name)) => Self::new(kind, name),
            None => Err(InvalidName { name: text.to_owned(), reason: "it has no '='" }),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.name)
    }
}

/// Whether a text is `VENDOR/CLASS`.
pub(super) fn check_kind(kind: &str) -> Result<(), &'static str> {
    let (vendor, class) = kind.split_once('/').ok_or("the kind has no '/'")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let good = |part: &str| {
        part.chars().all(plain)
            && part.starts_with(|c: char| c.is_ascii_alphabetic())
            && ends_are(part, |c| c.is_ascii_alphanumeric())
    };
    match good(vendor) && good(class) {
        true => Ok(()),
        false => Err(
            "vendor and class are letters, digits, '_', '-' and '.', with a letter first and a letter or digit last",
        ),
    }
}

fn ends_are(text: &str, wanted: impl Fn(char) -> bool) -> bool {
    text.chars().next().is_some_and(&wanted) && text.chars().next_back().is_some_and(&wanted)
}
