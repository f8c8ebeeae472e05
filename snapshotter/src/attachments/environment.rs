//! Variables that capsules give to processes: those that are started while they are attached. Pure.

use crate::capsules::Resolved;

/// What a version declares, as `NAME=VALUE`. A declaration that cannot be read declares none: what needs it says so.
pub(super) fn environment(version: &Resolved) -> Vec<String> {
    let declared = version.image.declared().unwrap_or_default();
    // A value of NUL could not be given to any process.
    let variables = declared.environment.into_iter().filter(|(_, value)| !value.contains('\0'));
    variables.map(|(name, value)| format!("{name}={value}")).collect()
}
