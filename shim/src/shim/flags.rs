//! The command line, as containerd writes it and Go's `flag` package reads it: `-name value`, `-name=value`, one dash or
//! two, flags before the action (`pkg/shim/shim.go`, the same from 1.7 to 2.4).

use std::ffi::OsString;

use thiserror::Error;

/// What to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Action {
    /// Serve the Task API: what `start` starts.
    #[default]
    Serve,
    /// Find or start the server of a container's group.
    Start,
    /// Clean up after a server that is gone.
    Delete,
    /// Describe the runtime.
    Info,
    /// Tell the version.
    Version,
}

/// The flags and the action.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// What to do.
    pub action: Action,
    /// Log more.
    pub debug: bool,
    /// containerd's namespace.
    pub namespace: String,
    /// The container.
    pub id: String,
    /// Where the server was bound, for `Serve`.
    pub socket: String,
    /// The bundle, unless it is the working directory.
    pub bundle: String,
    /// containerd's gRPC socket.
    pub address: String,
}

/// A command line that cannot be understood.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FlagsError {
    /// Not UTF-8.
    #[error("argument {0:?} is not UTF-8")]
    Text(OsString),
    /// No such flag.
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    /// A flag without its value.
    #[error("flag needs an argument: -{0}")]
    NoValue(String),
    /// A switch that is neither on nor off.
    #[error("flag -{0} is true or false, not {1:?}")]
    Switch(String, String),
    /// No such action.
    #[error("there is no action {0:?}: use start or delete, or one of -info and -v")]
    Action(String),
    /// Not said whose container it is.
    #[error("shim namespace cannot be empty")]
    Namespace,
}

/// Reads the arguments after the program's name.
///
/// # Errors
/// [`FlagsError`], naming the argument.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Flags, FlagsError> {
    let mut flags = Flags::default();
    let (mut info, mut version) = (false, false);
    let mut args = args.into_iter().map(|arg| arg.into_string().map_err(FlagsError::Text));
    while let Some(arg) = args.next().transpose()? {
        let Some(flag) = arg.strip_prefix('-').filter(|flag| !flag.is_empty()) else {
            flags.action = parse_action(&arg)?;
            break;
        };
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
        let mut text = || match value {
            Some(value) => Ok(value.to_owned()),
            None => args.next().transpose()?.ok_or_else(|| FlagsError::NoValue(name.to_owned())),
        };
        match name {
            "debug" => flags.debug = parse_switch(name, value)?,
            "info" => info = parse_switch(name, value)?,
            "v" | "version" => version = parse_switch(name, value)?,
            "namespace" => flags.namespace = text()?,
            "id" => flags.id = text()?,
            "socket" => flags.socket = text()?,
            "bundle" => flags.bundle = text()?,
            "address" => flags.address = text()?,
            // Go's publisher program and profiling socket: this shim has neither.
            "publish-binary" | "debug-socket" => drop(text()?),
            _ => return Err(FlagsError::Unknown(name.to_owned())),
        }
    }
    match (version, info) {
        (true, _) => flags.action = Action::Version,
        (_, true) => flags.action = Action::Info,
        _ if flags.namespace.is_empty() => return Err(FlagsError::Namespace),
        _ => {}
    }
    Ok(flags)
}

fn parse_action(text: &str) -> Result<Action, FlagsError> {
    match text {
        "start" => Ok(Action::Start),
        "delete" => Ok(Action::Delete),
        _ => Err(FlagsError::Action(text.to_owned())),
    }
}

fn parse_switch(name: &str, value: Option<&str>) -> Result<bool, FlagsError> {
    match value {
        None | Some("true" | "1" | "t" | "T" | "TRUE" | "True") => Ok(true),
        Some("false" | "0" | "f" | "F" | "FALSE" | "False") => Ok(false),
        Some(value) => Err(FlagsError::Switch(name.to_owned(), value.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Flags, FlagsError> {
        parse(line.split_ascii_whitespace().map(OsString::from))
    }

    #[test]
    fn what_containerd_writes_is_understood() {
        let common = "-namespace ns -address /a.sock -publish-binary /usr/bin/containerd";
        let expected = |action, debug, bundle: &str| Flags {
            action,
            debug,
            namespace: "ns".into(),
            id: "c1".into(),
            address: "/a.sock".into(),
            bundle: bundle.into(),
            ..Flags::default()
        };
        for (line, flags) in [
            ("-id c1 start", expected(Action::Start, false, "")),
            ("-id c1 -debug start", expected(Action::Start, true, "")),
            ("-id c1 -bundle /b delete", expected(Action::Delete, false, "/b")),
            ("--id=c1 -debug=false delete ignored", expected(Action::Delete, false, "")),
            ("-id c1", expected(Action::Serve, false, "")),
        ] {
            assert_eq!(parsed(&format!("{common} {line}")), Ok(flags), "{line}");
        }
        assert_eq!(parsed("-info").map(|flags| flags.action), Ok(Action::Info));
        assert_eq!(parsed("-v").map(|flags| flags.action), Ok(Action::Version));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, error) in [
            ("-namespace ns -colour red start", FlagsError::Unknown("colour".into())),
            ("-namespace ns -id", FlagsError::NoValue("id".into())),
            ("-namespace ns -debug=maybe", FlagsError::Switch("debug".into(), "maybe".into())),
            ("-namespace ns begin", FlagsError::Action("begin".into())),
            ("-id c1 start", FlagsError::Namespace),
        ] {
            assert_eq!(parsed(line), Err(error), "{line}");
        }
    }
}
