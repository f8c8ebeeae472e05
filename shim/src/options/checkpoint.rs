//! The options of a checkpoint: `containerd.runc.v1.CheckpointOptions`, which clients send whatever the runtime.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::PathBuf};

use containerd_shim::protos::{
    protobuf::{Message, UnknownValueRef, well_known_types::any::Any},
    shim::oci,
};

use super::OptionsError;

const CHECKPOINT: &str = "containerd.runc.v1.CheckpointOptions";

/// How processes are written down. What a field says is runc's switch of that name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// The container ends with it.
    pub exit: bool,
    /// With open TCP connections.
    pub open_tcp: bool,
    /// With connections to sockets outside.
    pub external_unix_sockets: bool,
    /// With a terminal that is the client's.
    pub terminal: bool,
    /// With file locks.
    pub file_locks: bool,
    /// Namespaces to be restored empty.
    pub empty_namespaces: Vec<String>,
    /// What of the control groups is written down; the runtime's choice when empty.
    pub cgroups_mode: String,
    /// Where criu works and logs; the bundle, for the moment, when none is given.
    pub work_path: Option<PathBuf>,
    /// The images of an earlier checkpoint, of which this one is to be the difference (containerd 2.4).
    pub parent_path: Option<PathBuf>,
}

/// The field `parent_path`, which the message that we have does not know.
const PARENT_PATH: u32 = 10;

impl CheckpointOptions {
    /// Decodes what containerd sent; nothing sent is all defaults. `image_path` is containerd's own business: it sends
    /// the path beside the options.
    ///
    /// # Errors
    /// [`OptionsError`], naming the unknown type or field.
    pub fn from_any(any: Option<&Any>) -> Result<Self, OptionsError> {
        let Some(any) = any else { return Ok(Self::default()) };
        match any.type_url.rsplit('/').next().unwrap_or_default() {
            "" => return Ok(Self::default()),
            CHECKPOINT => {}
            other => return Err(OptionsError::CheckpointType(other.to_owned())),
        }
        let message = oci::CheckpointOptions::parse_from_bytes(&any.value)
            .map_err(|e| OptionsError::Decode(CHECKPOINT, e))?;
        let mut parent_path = None;
        for (number, value) in message.special_fields.unknown_fields().iter() {
            match (number, value) {
                (PARENT_PATH, UnknownValueRef::LengthDelimited(path)) if !path.is_empty() => {
                    parent_path = Some(PathBuf::from(OsStr::from_bytes(path)));
                }
                (PARENT_PATH, UnknownValueRef::LengthDelimited(_)) => {}
                _ => return Err(OptionsError::UnknownField { kind: CHECKPOINT, number }),
            }
        }
        Ok(Self {
            exit: message.exit,
            open_tcp: message.open_tcp,
            external_unix_sockets: message.external_unix_sockets,
            terminal: message.terminal,
            file_locks: message.file_locks,
            empty_namespaces: message.empty_namespaces,
            cgroups_mode: message.cgroups_mode,
            work_path: (!message.work_path.is_empty()).then(|| message.work_path.into()),
            parent_path,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: Vec<u8>) -> Any {
        Any { type_url: type_url.into(), value, ..Default::default() }
    }

    #[test]
    fn what_was_sent_is_what_is_asked() {
        let sent = oci::CheckpointOptions {
            exit: true,
            file_locks: true,
            empty_namespaces: vec!["network".into()],
            image_path: "/images".into(),
            work_path: "/work".into(),
            ..Default::default()
        };
        let asked = CheckpointOptions {
            exit: true,
            file_locks: true,
            empty_namespaces: vec!["network".into()],
            work_path: Some("/work".into()),
            ..Default::default()
        };
        let mut bytes = sent.write_to_bytes().unwrap();
        assert_eq!(CheckpointOptions::from_any(Some(&any(CHECKPOINT, bytes.clone()))).unwrap(), asked);
        bytes.extend(b"\x52\x04/old");
        let asked = CheckpointOptions { parent_path: Some("/old".into()), ..asked };
        assert_eq!(CheckpointOptions::from_any(Some(&any(CHECKPOINT, bytes))).unwrap(), asked);
        for nothing in [None, Some(any("", vec![])), Some(any(CHECKPOINT, vec![]))] {
            assert_eq!(CheckpointOptions::from_any(nothing.as_ref()).unwrap(), CheckpointOptions::default());
        }
    }

    #[test]
    fn what_is_unknown_is_named() {
        let error = |any| CheckpointOptions::from_any(Some(&any)).unwrap_err().to_string();
        assert!(error(any("x.Y", vec![])).contains("\"x.Y\""));
        assert!(error(any(CHECKPOINT, vec![0xf8, 0x01, 1])).ends_with("unknown field number 31"));
    }
}
