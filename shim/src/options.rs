//! Runtime options, decoded by the type that containerd names: `containerd.runc.v1.Options`, or
//! `runtimeoptions.v1.Options` with a TOML body or the path of a TOML file (what CRI sends for any runtime type but
//! runc's own). An option that the shim does not know is an error: dropping it would run a container otherwise than
//! asked.

mod checkpoint;

use std::{io, path::PathBuf};

pub use checkpoint::CheckpointOptions;
use containerd_shim::{
    api::Options as RuncOptions,
    protos::protobuf::{
        self, CodedInputStream, Message, UnknownValueRef, rt::WireType, well_known_types::any::Any,
    },
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

const RUNC: &str = "containerd.runc.v1.Options";
const GENERIC: &str = "runtimeoptions.v1.Options";

/// What the operator asked of the runtime, under the names of containerd's documentation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct Options {
    /// Do not pivot the root: for a root file system that is the initial ramdisk.
    pub no_pivot_root: bool,
    /// Do not make a session keyring.
    pub no_new_keyring: bool,
    /// The cgroup that the shim itself is put in.
    pub shim_cgroup: String,
    /// Owner of the standard streams' pipes.
    pub io_uid: u32,
    /// Group of the standard streams' pipes.
    pub io_gid: u32,
    /// The OCI runtime: a path, or a name on containerd's PATH. Empty: `runc`.
    pub binary_name: String,
    /// Where the runtime keeps its state. Empty: containerd's own place.
    pub root: String,
    /// cgroups by systemd.
    pub systemd_cgroup: bool,
    /// The checkpoint program.
    pub criu_path: String,
    /// Where checkpoint images are.
    pub criu_image_path: String,
    /// Where the checkpoint program works.
    pub criu_work_path: String,
    /// Where the task API is served, when not by this shim.
    pub task_api_address: String,
    /// Its version.
    pub task_api_version: u32,
}

/// Why options cannot be understood.
#[derive(Debug, Error)]
pub enum OptionsError {
    /// Neither of the two types.
    #[error("runtime options of type {0:?} are not known: use {RUNC} or {GENERIC}")]
    Type(String),
    /// Not the one type of a checkpoint's.
    #[error("checkpoint options of type {0:?} are not known: use containerd.runc.v1.CheckpointOptions")]
    CheckpointType(String),
    /// The message cannot be decoded.
    #[error("runtime options of type {0} cannot be decoded")]
    Decode(&'static str, #[source] protobuf::Error),
    /// The message has a field that this shim does not know.
    #[error("runtime options of type {kind} have an unknown field number {number}")]
    UnknownField {
        /// The message's type.
        kind: &'static str,
        /// The field's number.
        number: u32,
    },
    /// The TOML file cannot be read.
    #[error("runtime options cannot be read from {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// The TOML cannot be understood; the source names the option.
    #[error("runtime options in {origin} are not valid: {reason}")]
    Toml {
        /// The file, or the body.
        origin: String,
        /// What the parser says, in one line.
        reason: String,
    },
}

/// Whether `any` holds runtime options, and not another extension of containerd's.
pub fn is_known(any: &Any) -> bool {
    matches!(type_name(any), RUNC | GENERIC)
}

/// containerd writes bare names, protobuf's own `pack` prefixes a host.
fn type_name(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

impl Options {
    /// Decodes what containerd sent; nothing sent is all defaults.
    ///
    /// # Errors
    /// [`OptionsError`], naming the unknown type, field or option.
    pub fn from_any(any: Option<&Any>) -> Result<Self, OptionsError> {
        let Some(any) = any else { return Ok(Self::default()) };
        match type_name(any) {
            "" => Ok(Self::default()),
            RUNC => from_runc(&any.value),
            GENERIC => from_generic(&any.value),
            other => Err(OptionsError::Type(other.to_owned())),
        }
    }

    /// The same options in runc's message.
    #[cfg(test)]
    pub fn to_runc(&self) -> RuncOptions {
        RuncOptions {
            no_pivot_root: self.no_pivot_root,
            no_new_keyring: self.no_new_keyring,
            shim_cgroup: self.shim_cgroup.clone(),
            io_uid: self.io_uid,
            io_gid: self.io_gid,
            binary_name: self.binary_name.clone(),
            root: self.root.clone(),
            systemd_cgroup: self.systemd_cgroup,
            criu_image_path: self.criu_image_path.clone(),
            criu_work_path: self.criu_work_path.clone(),
            task_api_address: self.task_api_address.clone(),
            task_api_version: self.task_api_version,
            ..Default::default()
        }
    }
}

/// Number of `criu_path`, which containerd has taken out of the message and older clients still send.
const CRIU_PATH: u32 = 8;

fn from_runc(bytes: &[u8]) -> Result<Options, OptionsError> {
    let message = RuncOptions::parse_from_bytes(bytes).map_err(|e| OptionsError::Decode(RUNC, e))?;
    let mut criu_path = String::new();
    for (number, value) in message.special_fields.unknown_fields() {
        match (number, value) {
            (CRIU_PATH, UnknownValueRef::LengthDelimited(path)) => {
                criu_path = String::from_utf8_lossy(path).into_owned();
            }
            _ => return Err(OptionsError::UnknownField { kind: RUNC, number }),
        }
    }
    Ok(Options {
        no_pivot_root: message.no_pivot_root,
        no_new_keyring: message.no_new_keyring,
        shim_cgroup: message.shim_cgroup,
        io_uid: message.io_uid,
        io_gid: message.io_gid,
        binary_name: message.binary_name,
        root: message.root,
        systemd_cgroup: message.systemd_cgroup,
        criu_path,
        criu_image_path: message.criu_image_path,
        criu_work_path: message.criu_work_path,
        task_api_address: message.task_api_address,
        task_api_version: message.task_api_version,
    })
}

/// `runtimeoptions.v1.Options`: `type_url` = 1, `config_path` = 2, `config_body` = 3. The body wins, as in
/// containerd.
fn from_generic(bytes: &[u8]) -> Result<Options, OptionsError> {
    let (path, body) = read_generic(bytes)?;
    if !body.is_empty() {
        return from_toml(&body, "config_body");
    }
    if path.is_empty() {
        return Ok(Options::default());
    }
    let text = std::fs::read(&path).map_err(|e| OptionsError::Read(PathBuf::from(&path), e))?;
    from_toml(&text, &path)
}

fn read_generic(bytes: &[u8]) -> Result<(String, Vec<u8>), OptionsError> {
    let decode = |e| OptionsError::Decode(GENERIC, e);
    let (mut path, mut body) = (String::new(), Vec::new());
    let mut input = CodedInputStream::from_bytes(bytes);
    while let Some(tag) = input.read_raw_tag_or_eof().map_err(decode)? {
        let (number, wire) = (tag >> 3, tag & 7);
        match number {
            1..=3 if wire != WireType::LengthDelimited as u32 => {
                return Err(OptionsError::UnknownField { kind: GENERIC, number });
            }
            // The name of the options' type, which says nothing that this shim could choose by.
            1 => drop(input.read_string().map_err(decode)?),
            2 => path = input.read_string().map_err(decode)?,
            3 => body = input.read_bytes().map_err(decode)?,
            number => return Err(OptionsError::UnknownField { kind: GENERIC, number }),
        }
    }
    Ok((path, body))
}

fn from_toml(text: &[u8], origin: &str) -> Result<Options, OptionsError> {
    let invalid = |reason: String| OptionsError::Toml { origin: origin.to_owned(), reason };
    let text = std::str::from_utf8(text).map_err(|e| invalid(e.to_string()))?;
    toml::from_str(text).map_err(|e| {
        let line = e.span().map(|span| 1 + text[..span.start].matches('\n').count());
        let message = e.message().replace('\n', " ");
        invalid(line.map_or_else(|| message.clone(), |line| format!("line {line}: {message}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: Vec<u8>) -> Any {
        Any { type_url: type_url.into(), value, ..Default::default() }
    }

    /// `runtimeoptions.v1.Options` as containerd writes it.
    fn generic(path: &str, body: &str) -> Any {
        let mut bytes = Vec::new();
        for (number, value) in [(1, "io.containerd.x.Options"), (2, path), (3, body)] {
            if !value.is_empty() {
                bytes.extend([number << 3 | 2, u8::try_from(value.len()).unwrap()]);
                bytes.extend(value.as_bytes());
            }
        }
        any(GENERIC, bytes)
    }

    #[test]
    fn nothing_sent_is_the_default() {
        assert_eq!(Options::from_any(None).unwrap(), Options::default());
        assert_eq!(Options::from_any(Some(&any("", vec![]))).unwrap(), Options::default());
    }

    #[test]
    fn runc_options_survive_in_both_spellings_of_their_type() {
        let options =
            Options { binary_name: "crun".into(), systemd_cgroup: true, io_uid: 7, ..Default::default() };
        let bytes = options.to_runc().write_to_bytes().unwrap();
        for url in [RUNC.to_owned(), format!("type.googleapis.com/{RUNC}")] {
            assert_eq!(Options::from_any(Some(&any(&url, bytes.clone()))).unwrap(), options);
        }
    }

    #[test]
    fn an_unknown_field_is_named() {
        let error = Options::from_any(Some(&any(RUNC, vec![0xf8, 0x01, 1]))).unwrap_err();
        assert!(error.to_string().ends_with("unknown field number 31"), "{error}");
    }

    #[test]
    fn toml_comes_from_the_body_or_the_file() {
        let body = "BinaryName = \"crun\"\nSystemdCgroup = true\n";
        let expected = Options { binary_name: "crun".into(), systemd_cgroup: true, ..Default::default() };
        assert_eq!(Options::from_any(Some(&generic("", body))).unwrap(), expected);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), body).unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(Options::from_any(Some(&generic(path, ""))).unwrap(), expected);
        assert_eq!(Options::from_any(Some(&generic(path, "IoUid = 5"))).unwrap().io_uid, 5);
    }

    #[test]
    fn a_mistake_in_toml_is_one_line_with_its_place() {
        for (body, expected) in [
            ("IoUid = 1\nSystemdCGroup = true", "line 2: unknown field `SystemdCGroup`"),
            ("IoUid = \"x\"", "line 1: invalid type: string"),
            ("IoUid = ", "line 1: "),
        ] {
            let error = Options::from_any(Some(&generic("", body))).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn other_types_and_missing_files_are_errors() {
        assert!(
            matches!(Options::from_any(Some(&any("x.Y", vec![]))), Err(OptionsError::Type(t)) if t == "x.Y")
        );
        assert!(matches!(Options::from_any(Some(&generic("/nonexistent", ""))), Err(OptionsError::Read(..))));
    }
}
