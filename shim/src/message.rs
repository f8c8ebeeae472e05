//! Messages within messages.

use protobuf::{Message, well_known_types::any::Any};

/// The protobuf package of the Task API's events.
pub const EVENTS: &str = "containerd.events";
/// Of what `runc`'s shim tells of itself.
pub const RUNC: &str = "containerd.runc.v1";
/// Of the metrics of unified control groups.
pub const CGROUPS_V2: &str = "io.containerd.cgroups.v2";
/// Of the metrics of the older ones.
pub const CGROUPS_V1: &str = "io.containerd.cgroups.v1";

/// Wraps a message of `package`, one that is not within another message.
///
/// By hand, since the library asks the message for its descriptor: the first such question builds, and keeps, the
/// descriptors of all messages of its file and of all files that this one imports.
///
/// # Errors
/// A message of more than 2 GiB.
pub fn wrap<M: Message>(package: &str, message: &M) -> protobuf::Result<Any> {
    let value = message.write_to_bytes()?;
    Ok(Any { type_url: format!("{package}.{}", M::NAME), value, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use containerd_shim::{
        protos::{
            cgroups::metrics::Metrics as MetricsV1, cgroups_v2::metrics::Metrics as MetricsV2,
            events::task::TaskExit, shim::oci::ProcessDetails,
        },
        util::convert_to_any,
    };
    use protobuf::{MessageDyn, MessageFull};

    use super::*;

    fn as_the_library<M: MessageFull + MessageDyn>(package: &str, message: M) {
        let ours = wrap(package, &message).unwrap();
        assert_eq!(ours, convert_to_any(Box::new(message)).unwrap());
    }

    #[test]
    fn messages_have_the_names_of_their_descriptors() {
        as_the_library(EVENTS, TaskExit { id: "x".into(), ..Default::default() });
        as_the_library(RUNC, ProcessDetails { exec_id: "x".into(), ..Default::default() });
        as_the_library(CGROUPS_V1, MetricsV1::default());
        as_the_library(CGROUPS_V2, MetricsV2::default());
    }
}
