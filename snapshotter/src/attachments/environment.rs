//! Variables that capsules give to processes: those that are started while they are attached. Pure.

use crate::capsules::declared::Declared;

/// What a version declares, as `NAME=VALUE`.
pub(super) fn environment(declared: &Declared) -> Vec<String> {
    // A value with a NUL could not be given to any process.
    let variables = declared.environment.iter().filter(|(_, value)| !value.contains('\0'));
    variables.map(|(name, value)| format!("{name}={value}")).collect()
}
